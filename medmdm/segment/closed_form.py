"""Fit a closed-form head, choosing ridge, blocks and timesteps on the labelled support alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from medmdm.errors import UserError
from medmdm.features.cache import CachedExtractor
from medmdm.features.closed_form import PixelSums, fit_linear, left_out_errors, pixel_sums
from medmdm.networks.extractor import FeatureExtractor
from medmdm.networks.pixel_classifier import LinearClassifier
from medmdm.networks.segmenter import Segmenter
from medmdm.segment.context import Fitted, Task
from medmdm.segment.views import Example, views

__all__ = ["ClosedFormHead"]


class ClosedFormHead:
    """Ridge regression or linear discriminants on the features: no epochs, no seeds.

    The sums of each image are computed once and kept, so that a second fit with other images of the same set, as in a
    study, costs a linear solve.

    Args:
        method: ``"ridge"`` or ``"lda"``, see :func:`medmdm.features.fit_linear`.
        ridges: compared by leaving one labelled image out; with a single image the largest is taken.
        choices: sets of the extractor's features to compare in the same way, each ``{"blocks": [...], "timesteps":
            [...]}``; None for all features that the extractor gives.
        standardize: give every channel unit variance first.
    """

    needs_backbone = True

    def __init__(
        self,
        method: str = "lda",
        ridges: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        choices: Sequence[Mapping[str, Sequence[int]]] | None = None,
        standardize: bool = True,
    ) -> None:
        self.method = method
        self.ridges = list(ridges)
        self.choices = choices
        self.standardize = standardize
        self._sums: dict[tuple[str, str], PixelSums] = {}

    def fit(self, task: Task, extractor: CachedExtractor | FeatureExtractor | None) -> Fitted:
        """Fit to the labelled images; see :class:`medmdm.segment.context.Fitter`."""
        assert extractor is not None
        images = [self.sums(example, task, extractor) for example in task.examples]
        choices = self._choices(extractor)
        tried = []
        for choice, channels in choices:
            parts = [image.select(channels) for image in images]
            errors = left_out_errors(parts, self.ridges, self.standardize) if len(parts) > 1 else None
            for i, ridge in enumerate(self.ridges):
                error = None if errors is None else float(errors[i])
                tried.append({**choice, "ridge": ridge, "left_out_error": error})
        best = min(range(len(tried)), key=lambda i: (tried[i]["left_out_error"] or 0.0, -tried[i]["ridge"]))
        channels = choices[best // len(self.ridges)][1]
        total = PixelSums.total(image.select(channels) for image in images)
        small = fit_linear(total, tried[best]["ridge"], self.method, self.standardize)
        weight = torch.zeros(task.num_classes, extractor.num_features)
        weight[:, channels] = small.weight
        head = LinearClassifier(weight, small.bias)
        return Fitted(Segmenter(extractor, head), {"chosen": tried[best], "tried": tried})  # type: ignore[arg-type]

    def sums(self, example: Example, task: Task, extractor: CachedExtractor | FeatureExtractor) -> PixelSums:
        """Return the sums of one image over the views that predictions will be made in."""
        key = (
            f"{getattr(extractor, 'key', id(extractor))} {extractor.config} {task.whole} {task.window}",
            example.case,
        )
        if key not in self._sums:
            kind = "whole" if task.whole else "windows"
            parts = []
            for view in views(example, kind, task.window, task.overlap):
                maps = extractor(view.image[None].to(task.device))
                size = extractor.padded_size(view.image.shape[1:])
                parts.append(pixel_sums([f.cpu() for f in maps], view.label, task.num_classes, size))
            self._sums[key] = PixelSums.total(parts)
        return self._sums[key]

    def _choices(self, extractor: Any) -> list[tuple[dict[str, Any], Tensor]]:
        """Return each choice and the channels that it stands for."""
        info = extractor.feature_info
        ends = torch.tensor([i["channels"] for i in info]).cumsum(0).tolist()
        spans = [torch.arange(end - i["channels"], end) for end, i in zip(ends, info, strict=True)]
        everything = {"blocks": sorted({i["block"] for i in info}), "timesteps": sorted({i["timestep"] for i in info})}
        result = []
        for choice in self.choices or [everything]:
            wanted = {**everything, **choice}
            unknown = [k for k in ("blocks", "timesteps") for v in wanted[k] if v not in everything[k]]
            if unknown:
                raise UserError(
                    f"choices asks for {unknown[0]} {list(wanted[unknown[0]])}, but features are extracted at "
                    f"{everything[unknown[0]]}: add them to {unknown[0]}."
                )
            channels = [
                span
                for span, i in zip(spans, info, strict=True)
                if i["block"] in wanted["blocks"] and i["timestep"] in wanted["timesteps"]
            ]
            result.append(({k: list(wanted[k]) for k in ("blocks", "timesteps")}, torch.cat(channels)))
        return result
