"""Features of a frozen backbone: their cache, and heads that follow from sums over them."""

from __future__ import annotations

from medmdm.features.closed_form import PixelSums, fit_linear, left_out_errors, pixel_sums

__all__ = ["PixelSums", "fit_linear", "left_out_errors", "pixel_sums"]
