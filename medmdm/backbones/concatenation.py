"""Several backbones read as one: their features side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from medmdm.backbones.layers import BlockNetwork
from medmdm.components import buildable, instantiate, to_config
from medmdm.errors import UserError


@buildable
class Concatenation(BlockNetwork):
    """The features of several backbones, of images that are read once.

    The blocks are those of the first, then those of the second, and so on, numbered through. Backbones that were
    trained to restore images are shown the corrupted image, the others (``restores`` is False: networks of timm,
    filters, raw pixels) the image as it is.

    Args:
        backbones: two or more :class:`medmdm.backbones.BlockNetwork`, or their configs; of a concatenation its parts.

    Raises:
        UserError: there are less than two, or they take images of different channels or axes.

    Example:
        >>> import torch
        >>> from medmdm.backbones import FilterBank, RawPixels
        >>> both = Concatenation([RawPixels(), FilterBank()])
        >>> [f.shape[1] for f in both.features(torch.zeros(1, 3, 8, 8), torch.tensor([0]), [0, 1])]
        [3, 72]
    """

    parts: Any

    def __init__(self, backbones: Sequence[BlockNetwork | Mapping[str, Any]]) -> None:
        made = [instantiate(one, kind=BlockNetwork) if isinstance(one, Mapping) else one for one in backbones]
        # The parts of a concatenation become parts of this one, so that each sees the image that suits it.
        made = [part for one in made for part in (one.parts if isinstance(one, Concatenation) else [one])]
        parts: Any = nn.ModuleList(made)
        if len(parts) < 2:
            raise UserError(f"Concatenation: backbones has {len(parts)} of them, expected two or more.")
        for key, what in (("in_channels", "channels"), ("spatial_dims", "spatial axes")):
            found = [part.config.get(key, getattr(part, key, None)) for part in parts]
            if any(number != found[0] for number in found):
                raise UserError(f"Concatenation: the backbones take images of different {what}: {found}.")
        super().__init__({"backbones": to_config(made)}, math.lcm(*(int(part.reduction) for part in parts)))
        self.parts = parts
        #: Of each block its part and the number there.
        self._places: list[tuple[int, int]] = []
        for number, part in enumerate(parts):
            for info in part.feature_info:
                self._places.append((number, info["block"]))
                self.add_block(info["channels"], info["reduction"])
        self.restores = any(part.restores for part in parts)

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return int(self.parts[0].in_channels)

    @property
    def spatial_dims(self) -> int:
        """2 for images, 3 for volumes."""
        return int(self.parts[0].spatial_dims)

    @property
    def usual_blocks(self) -> list[int]:
        """Those of each part."""
        wanted = [(number, block) for number, part in enumerate(self.parts) for block in part.usual_blocks]
        return [self._places.index(place) for place in wanted]

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the first backbone restores."""
        restored: Tensor = self.parts[0](x, timesteps)
        return restored

    def features(
        self, x: Tensor, timesteps: Tensor, blocks: Sequence[int], clean: Tensor | None = None
    ) -> list[Tensor]:
        """Return the outputs of blocks, see :class:`medmdm.backbones.BlockNetwork`.

        Args:
            x: the images, corrupted or not.
            timesteps: see there.
            blocks: see there.
            clean: the same images without corruption, for backbones that were not trained on it; None for ``x``.
        """
        self.check_blocks(blocks)
        kept: dict[int, Tensor] = {}
        for number, part in enumerate(self.parts):
            own = {block: self._places[block][1] for block in blocks if self._places[block][0] == number}
            if own:
                shown = x if clean is None or part.restores else clean
                kept |= zip(own, part.features(shown, timesteps, list(own.values())), strict=True)
        return [kept[block] for block in blocks]
