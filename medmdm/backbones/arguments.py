"""What the arguments of an ADM U-Net have to satisfy."""

from __future__ import annotations

from typing import Any

from medmdm.errors import UserError

__all__ = ["check_arguments"]


def check_arguments(
    *,
    spatial_dims: int,
    model_channels: int,
    channel_mult: list[float],
    attention_resolutions: list[int],
    num_heads: int,
    num_head_channels: int,
    dropout: float,
    **others: Any,
) -> None:
    """Raise a :class:`UserError` for the first argument that is out of range or contradicts another."""
    if spatial_dims not in (2, 3):
        raise UserError(f"ADMUNet: spatial_dims is {spatial_dims!r}, expected 2 or 3.")
    counts = {"model_channels": model_channels, "num_heads": num_heads}
    counts |= {key: others[key] for key in ("in_channels", "out_channels", "num_res_blocks")}
    if others["num_classes"] is not None:
        counts["num_classes"] = others["num_classes"]
    for key, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise UserError(f"ADMUNet: {key} is {value!r}, expected a whole number of at least 1.")
    if not 0 <= dropout < 1:
        raise UserError(f"ADMUNet: dropout is {dropout!r}, expected a probability in [0, 1).")
    if not channel_mult:
        raise UserError("ADMUNet: channel_mult is empty, expected one number for each level.")

    widths = [multiple * model_channels for multiple in channel_mult]
    for width in widths:
        if width < 32 or abs(width / 32 - round(width / 32)) > 1e-6:
            raise UserError(
                f"ADMUNet: model_channels {model_channels} with channel_mult {channel_mult} makes a level of {width:g} "
                "channels; group normalisation with 32 groups needs multiples of 32."
            )
    rates = [2**level for level in range(len(channel_mult))]
    for rate in attention_resolutions:
        if rate not in rates:
            raise UserError(
                f"ADMUNet: attention_resolutions holds {rate!r}, but the {len(rates)} levels of channel_mult have the "
                f"down-sampling rates {rates} (rates, not sizes in pixels)."
            )
    if num_head_channels != -1 and (not isinstance(num_head_channels, int) or num_head_channels < 1):
        raise UserError(
            f"ADMUNet: num_head_channels is {num_head_channels!r}, expected at least 1, or -1 to use num_heads."
        )
    key, divisor = ("num_heads", num_heads) if num_head_channels == -1 else ("num_head_channels", num_head_channels)
    for rate, width in zip(rates, widths, strict=True):
        if (rate in attention_resolutions or rate == rates[-1]) and round(width) % divisor:
            raise UserError(
                f"ADMUNet: {key} {divisor} does not divide the {width:g} channels of the level with attention at "
                f"down-sampling rate {rate}."
            )
