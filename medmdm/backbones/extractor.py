"""Per-pixel features of a frozen backbone: decoder activations of a corrupted image (arXiv 2308.05695, section 3.2)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from medmdm.backbones.concatenation import Concatenation
from medmdm.backbones.feature_maps import NORMALIZATIONS, normalize, pad_ends, surroundings
from medmdm.components import declared
from medmdm.corruption import Corrupted, Corruption, PatchMasking
from medmdm.errors import UserError

#: Scale, offset and visible pixels of a corruption whose randomness is fixed, each ``[1, 1 or C, *spatial]``.
_Damage = tuple[Tensor, Tensor | None, Tensor]
MASKINGS = ("seeded", "none", "partition")
_MOST_SHAPES = 32  # whose masks are remembered
#: Not in a config where they are not used, so that files and caches from before there was any stay as they are.
_LEFT_OUT = ("context", "context_deviation")


class Extractor(Protocol):
    """What heads read features from: nobody asks whether they are computed now or were computed before."""

    @property
    def config(self) -> dict[str, Any]:
        """Settings of the features, JSON-able."""

    @property
    def feature_info(self) -> list[dict[str, int]]:
        """Of each map its ``block``, ``timestep``, ``channels`` and ``reduction``; of a pooled one its ``context``."""

    @property
    def num_features(self) -> int:
        """Channels of all maps together."""

    @property
    def innermost(self) -> FeatureExtractor:
        """What computes the features, with the backbone."""

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Return the normalised maps of images ``[B, C, *spatial]``."""

    def padded_size(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Return the size to which the maps of an image are up-sampled."""

    def remembered(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what follows from the features, computed unless it is remembered under its name."""


class FeatureExtractor(nn.Module):
    """Run a backbone on a corrupted image and return the outputs of some decoder blocks, at their own resolution.

    Nothing here is random from call to call: the same image always gives the same features.

    Args:
        backbone: has ``features(x, timesteps, blocks)`` and ``feature_info``, see :class:`medmdm.backbones.ADMUNet`.
        blocks: numbers of decoder blocks; the paper's are 8 to 12 for histology.
        timesteps: the image is corrupted and read at each of these; the paper's is 50 of 1000 for histology.
        corruption: what the backbone was trained on; None shows the image as it is, as ``masking="none"`` does.
        masking: ``"seeded"`` corrupts every window of one shape by one mask (or noise) drawn from ``seed``; ``"none"``
            does not corrupt; ``"partition"`` averages over complementary masks, each patch being hidden by exactly one.
        partitions: number of these masks; None for the one that hides as much as t does, ``round(T / t)``.
        normalize: ``"global_l2"`` (the paper's, valid for windows of one size), ``"rms"``, ``"standardize"`` or
            ``"none"``; see :func:`medmdm.backbones.feature_maps.normalize`.
        seed: of the masks.
        context: windows, in pixels of the image; for each of them and each map, one more map holds the local mean over
            a square window of ``round(window / reduction)`` of the map's pixels, an even number being raised to the
            next odd one. They follow the maps themselves, and :attr:`feature_info` gives them their ``context``. Edges
            are reflected; an image that is read in windows has edges there.
        context_deviation: after each of these the local standard deviation too, ``deviation`` in ``feature_info``.

    Raises:
        UserError: a block or timestep does not exist, a masking does not go with the corruption, or a number is out of
            range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        blocks: Sequence[int] = (8, 9, 10, 11, 12),
        timesteps: Sequence[int] = (50,),
        corruption: Corruption | None = None,
        masking: str = "seeded",
        partitions: int | None = None,
        normalize: str = "global_l2",
        seed: int = 0,
        context: Sequence[int] | None = None,
        context_deviation: bool = False,
    ) -> None:
        super().__init__()
        given = {k: v for k, v in declared(locals()).items() if k not in ("backbone", "corruption")}
        self._config = {k: v for k, v in given.items() if v or k not in _LEFT_OUT}
        known: dict[int, dict[str, int]] = {info["block"]: info for info in backbone.feature_info}  # type: ignore[union-attr]
        if not _some(blocks) or any(block not in known for block in blocks):
            has = f"of which the backbone has {min(known)} to {max(known)}"
            raise UserError(f"blocks must be a list of decoder blocks, {has}, got {blocks!r}.")
        if masking not in MASKINGS:
            raise UserError(f"masking must be one of {', '.join(MASKINGS)}, got {masking!r}.")
        if normalize not in NORMALIZATIONS:
            raise UserError(f"normalize must be one of {', '.join(NORMALIZATIONS)}, got {normalize!r}.")
        last = 1000 if corruption is None else corruption.num_timesteps
        if not _some(timesteps) or any(t not in range(last) for t in timesteps):
            raise UserError(f"timesteps must be a list of numbers from 0 to {last - 1}, got {timesteps!r}.")
        if partitions is not None and (not isinstance(partitions, int) or partitions < 2):
            raise UserError(f"partitions must be at least 2 (one mask would hide everything), got {partitions}.")
        if seed < 0:
            raise UserError(f"seed must be at least 0, got {seed}.")
        _check_context(context, context_deviation)
        if masking == "partition" and not isinstance(corruption, PatchMasking):
            raise UserError("masking 'partition' needs a backbone that was trained with PatchMasking; use 'seeded'.")
        self.backbone = backbone
        self.corruption = corruption
        self.feature_info = [{**known[block], "timestep": t} for t in timesteps for block in blocks]
        self.feature_info += _surrounded(self.feature_info, context or (), context_deviation)
        self._drawn: dict[tuple[Any, ...], list[_Damage]] = {}
        self.requires_grad_(False)
        self.eval()

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments apart from backbone and corruption, ready for JSON."""
        return copy.deepcopy(self._config)

    @property
    def num_features(self) -> int:
        """Channels of the up-sampled and concatenated stack."""
        return sum(info["channels"] for info in self.feature_info)

    @property
    def innermost(self) -> FeatureExtractor:
        """Itself."""
        return self

    def remembered(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Compute; only :class:`medmdm.backbones.CachedExtractor` remembers."""
        return compute()

    @property
    def multiple(self) -> int:
        """What the sides of the backbone's input are multiples of; other images are padded at their lower right."""
        damaged = 1 if self.corruption is None else self.corruption.multiple
        return math.lcm(int(self.backbone.reduction), damaged)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the normalised maps of images ``[B, C, *spatial]`` in [-1, 1] of any size.

        They are ``[B, C_i, *spatial_i]`` for each of :attr:`feature_info`, of the padded image: up-sample them to
        :meth:`padded_size` and cut.
        """
        return normalize(self.raw(x), self.padded_size(x.shape[2:]), self._config["normalize"], consume=True)

    def padded_size(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Return the size of an image after padding to multiples of :attr:`multiple`."""
        return tuple(-(-int(n) // self.multiple) * self.multiple for n in spatial)

    def pad(self, x: Tensor) -> Tensor:
        """Repeat the last row and column until the sides are multiples of :attr:`multiple`."""
        return pad_ends(x, self.padded_size(x.shape[2:]))

    def raw(self, x: Tensor) -> list[Tensor]:
        """Return the maps before normalisation, with their context."""
        x = self.pad(x)
        maps: list[Tensor] = []
        for t in self._config["timesteps"]:
            views = [self._features(corrupted.x_t, t, x) for corrupted in self.corruptions(x, t)]
            maps += views[0] if len(views) == 1 else [torch.stack(same).mean(0) for same in zip(*views, strict=True)]
        return self._with_context(maps)

    def views(self, x: Tensor) -> Iterator[list[Tensor]]:
        """Yield the normalised maps under each mask of a partition; their spread is an uncertainty.

        Of timesteps with partitions of different sizes the largest counts, and the smaller ones begin anew.
        """
        x = self.pad(x)
        times = self._config["timesteps"]
        per_t = [self.corruptions(x, t) for t in times]
        for k in range(max(map(len, per_t))):
            maps = [f for c, t in zip(per_t, times, strict=True) for f in self._features(c[k % len(c)].x_t, t, x)]
            yield normalize(self._with_context(maps), x.shape[2:], self._config["normalize"])

    def corruptions(self, x: Tensor, t: int) -> list[Corrupted]:
        """Return the corrupted versions of ``x`` (padded) that are read at ``t``; all images share the masks."""
        shown = torch.ones_like(x[:, :1])
        if self._config["masking"] == "none" or self.corruption is None:
            return [Corrupted(x, shown)]
        return [
            Corrupted(x * scale if offset is None else x * scale + offset, visible.expand_as(shown))
            for scale, offset, visible in self._damage(t, x.shape[1:], x)
        ]

    def prepare(self, spatial: Sequence[int], channels: int | None = None) -> None:
        """Draw the masks of images of a size (before padding), so that tracing or exporting this sees constants.

        Without ``channels`` the backbone says how many the images have (``in_channels``).
        """
        count: int = self.backbone.in_channels if channels is None else channels  # type: ignore[assignment]
        if self._config["masking"] != "none" and self.corruption is not None:
            like = next(iter(self.backbone.parameters()))
            for t in self._config["timesteps"]:
                self._damage(t, (count, *self.padded_size(spatial)), like)

    def _damage(self, t: int, shape: Sequence[int], like: Tensor) -> list[_Damage]:
        """Return what is done at ``t`` to images ``[channels, *spatial]``, whatever their batch; drawn once a shape."""
        assert self.corruption is not None
        channels, *spatial = (int(n) for n in shape)
        key = (t, channels, *spatial, like.device, like.dtype)
        if key not in self._drawn:
            if torch.jit.is_tracing() or torch.compiler.is_compiling():
                fault = f"The masks for images of {'x'.join(map(str, spatial))} pixels are not drawn yet"
                reason = "what is traced here would draw them at every call"
                raise UserError(f"{fault}, and {reason}: call extractor.prepare(size) or the module first.")
            while len(self._drawn) >= _MOST_SHAPES:
                self._drawn.pop(next(iter(self._drawn)))
            drawn = np.random.SeedSequence([int(self._config["seed"]), t, *spatial]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(drawn[0] >> np.uint64(1)))
            if self._config["masking"] == "seeded":
                # In float64, so that it does not depend on the type of the image.
                zero = torch.zeros(1, channels, *spatial, dtype=torch.float64)
                views = [self.corruption(zero, torch.tensor([t]), generator, **self.corruption.blank(zero))]
            else:
                views = self._partition(t, spatial, generator)
            damages = []
            for view in views:
                if view.scale is None:
                    kind = type(self.corruption).__name__
                    raise UserError(f"{kind} does not say by scale and offset how it acts: use masking 'none'.")
                offset = None if view.offset is None else view.offset.to(like)
                damages.append((view.scale.to(like), offset, view.visible.to(like)))
            self._drawn[key] = damages
        return self._drawn[key]

    def _partition(self, t: int, spatial: Sequence[int], generator: torch.Generator) -> list[Corrupted]:
        """Return masks ``[1, 1, *spatial]``, each patch being hidden by exactly one of them."""
        masking = self.corruption
        assert isinstance(masking, PatchMasking)
        grid = masking.grid(spatial)
        count = min(self._config["partitions"] or max(2, round(masking.num_timesteps / max(t, 1))), math.prod(grid))
        order = torch.randperm(math.prod(grid), generator=generator) % count
        masks = [masking.to_pixels((order != part).float().reshape(1, 1, *grid)) for part in range(count)]
        return [Corrupted(mask, mask, scale=mask) for mask in masks]

    def _features(self, x_t: Tensor, t: int, x: Tensor) -> list[Tensor]:
        times = torch.full((x_t.shape[0],), t, dtype=torch.long, device=x_t.device)
        if isinstance(self.backbone, Concatenation):
            return self.backbone.features(x_t, times, self._config["blocks"], clean=x)
        return self.backbone.features(x_t, times, self._config["blocks"])  # type: ignore[operator]

    def _with_context(self, maps: list[Tensor]) -> list[Tensor]:
        added: list[Tensor] = []
        for window in self._config.get("context", ()):
            for f, info in zip(maps, self.feature_info[: len(maps)], strict=True):
                width = max(1, round(window / info["reduction"])) | 1
                added += surroundings(f, width, self._config.get("context_deviation", False))
        return maps + added

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stay in evaluation mode: the backbone is frozen."""
        return super().train(False)


def _some(values: object) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0


def _check_context(context: Sequence[int] | None, deviation: bool) -> None:
    if context and (not _some(context) or any(not isinstance(n, int) or n < 1 for n in context)):
        raise UserError(f"context must be a list of windows in pixels, of 1 or more each, got {context!r}.")
    if deviation and not context:
        raise UserError("context_deviation is that of the windows in context, and there are none.")


def _surrounded(read: list[dict[str, int]], context: Sequence[int], deviation: bool) -> list[dict[str, int]]:
    """Return what is known of the pooled maps, in the order in which they are made."""
    notes: list[dict[str, int]] = [{}, {"deviation": True}] if deviation else [{}]
    return [{**info, "context": window, **note} for window in context for info in read for note in notes]
