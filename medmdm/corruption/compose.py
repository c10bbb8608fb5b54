"""Several corruptions after one another, or one of them drawn for each image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medmdm.components import buildable
from medmdm.corruption.base import Corrupted, Corruption, Generators, draw, per_image
from medmdm.errors import UserError


@dataclass(frozen=True)
class _Several(Corruption):
    corruptions: Sequence[Corruption] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.corruptions:
            raise UserError(f"{type(self).__name__} needs at least one corruption.")
        for one in self.corruptions:
            if one.num_timesteps != self.num_timesteps:
                fault = f"{type(one).__name__} has num_timesteps {one.num_timesteps}"
                raise UserError(f"{fault}, {type(self).__name__} {self.num_timesteps}: give both the same.")

    @property
    def multiple(self) -> int:
        return math.lcm(*(one.multiple for one in self.corruptions))

    @property
    def takes(self) -> tuple[str, ...]:  # type: ignore[override]
        """What its parts can be given."""
        return tuple(sorted({name for one in self.corruptions for name in one.takes}))


def _apply(one: Corruption, x0: Tensor, t: Tensor, generator: Generators, given: dict[str, Tensor]) -> Corrupted:
    return one(x0, t, generator, **{name: values for name, values in given.items() if name in one.takes})


@buildable
@dataclass(frozen=True)
class Compose(_Several):
    """Corruptions one after another, all at the same t.

    Visible is what all of them leave visible. Affine ones make an affine one, spatial ones a spatial one; a mixture
    reports neither.

    Args:
        num_timesteps: T, the same in all parts.
        corruptions: the parts, the first acts first.
    """

    def _corrupt(self, x0: Tensor, t: Tensor, generator: Generators, **given: Tensor) -> Corrupted:
        x, visible = x0, torch.ones_like(x0[:, :1])
        parts = []
        for one in self.corruptions:
            part = _apply(one, x, t, generator, given)
            x, visible = part.x_t, visible * part.visible
            parts.append(part)
        together = parts[0]
        for part in parts[1:]:
            together = _after(together, part)
        return replace(together, x_t=x, visible=visible, noise=None)


def _after(first: Corrupted, then: Corrupted) -> Corrupted:
    """Return how two corruptions act together: their scale and offset, or their source, where both have them."""
    scale = offset = source = None
    if first.scale is not None and then.scale is not None:
        scale = then.scale * first.scale
        offset = None if first.offset is None else then.scale * first.offset
        if then.offset is not None:
            offset = then.offset if offset is None else offset + then.offset
    if first.source is not None and then.source is not None:
        source = first.source.flatten(1).gather(1, then.source.flatten(1)).reshape(first.source.shape)
    return replace(then, scale=scale, offset=offset, source=source)


@buildable
@dataclass(frozen=True)
class RandomChoice(_Several):
    """One of several corruptions, drawn for each image.

    Args:
        num_timesteps: T, the same in all parts.
        corruptions: what is drawn from.
        weights: how often each is drawn, positive numbers; None for equally often.
    """

    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is not None and (len(self.weights) != len(self.corruptions) or min(self.weights) <= 0):
            what = f"one positive number for each of {len(self.corruptions)} corruptions"
            raise UserError(f"weights must be {what}, got {list(self.weights)}.")

    def _corrupt(self, x0: Tensor, t: Tensor, generator: Generators, **given: Tensor) -> Corrupted:
        weights = torch.tensor(self.weights or [1.0] * len(self.corruptions), dtype=torch.float64)
        limits = (weights.cumsum(0) / weights.sum())[:-1].to(x0.device)
        chosen = torch.bucketize(draw(torch.rand, (len(x0),), generator, x0.device).double(), limits, right=True)
        results = []
        for number, one in enumerate(self.corruptions):
            if where := (chosen == number).nonzero()[:, 0].tolist():
                some = {name: values[where] for name, values in given.items()}
                results.append((where, _apply(one, x0[where], t[where], per_image(generator, where), some)))
        order = torch.tensor([place for where, _ in results for place in where], device=x0.device).argsort()
        parts = [part for _, part in results]
        offsets = parts
        if any(part.offset is not None for part in parts):
            offsets = [replace(p, offset=torch.zeros_like(p.x_t) if p.offset is None else p.offset) for p in parts]
        return Corrupted(
            torch.cat([part.x_t for part in parts])[order],
            torch.cat([part.visible for part in parts])[order],
            scale=_together([part.scale for part in parts], order),
            offset=_together([part.offset for part in offsets], order),
            source=_together([part.source for part in parts], order),
        )


def _together(values: Sequence[Tensor | None], order: Tensor) -> Tensor | None:
    """Return what all parts report, image by image in the batch's order; None where one reports nothing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    size = torch.broadcast_shapes(*[value.shape[1:] for value in known])
    return torch.cat([value.expand(len(value), *size) for value in known])[order]
