"""A cache of features: what a frozen network says of a window never changes, so it is computed once."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from medmdm.features.identity import weights_hash
from medmdm.files import save_torch, sweep_temporaries
from medmdm.networks.extractor import FeatureExtractor
from medmdm.networks.feature_maps import factor

__all__ = ["CachedExtractor"]

logger = logging.getLogger(__name__)

_GIB = 1 << 30
# Maps in 16 bits, what each is multiplied by, and the factors of the normalisations that were asked for.
_Stored = tuple[list[Tensor], list[float], dict[str, float]]


class CachedExtractor(nn.Module):
    """A :class:`medmdm.networks.FeatureExtractor` that remembers, in 16 bits and at the maps' own resolution.

    A file a window, named by a hash of its pixels, in a folder named by a hash of the backbone's weights and of all
    settings that change its features; normalisation is applied on reading, so that it does not. Files are written
    atomically: a killed run leaves whole ones. What is read back is what the first reading gave, bit for bit.

    Args:
        extractor: what computes the features.
        folder: where the files go; None keeps features in memory only.
        max_gib: when the files of this folder are larger, further features are streamed: computed at every use.
        memory_gib: features that are also kept in memory, the longest unused being dropped.
        backbone_hash: :func:`medmdm.features.identity.weights_hash` of the backbone where it is known.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        folder: str | os.PathLike[str] | None = None,
        max_gib: float = 20.0,
        memory_gib: float = 2.0,
        backbone_hash: str | None = None,
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.backbone_hash = backbone_hash or weights_hash(extractor.backbone.state_dict())
        corruption = None if extractor.corruption is None else extractor.corruption.to_config()
        settings = {k: v for k, v in extractor.config.items() if k != "normalize"}
        settings |= {"backbone": self.backbone_hash, "corruption": corruption}
        self.key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
        self.folder = None if folder is None else Path(folder) / self.key
        self.max_bytes = max_gib * _GIB
        self.memory_bytes = memory_gib * _GIB
        self.memory: OrderedDict[str, _Stored] = OrderedDict()
        self.in_memory = 0
        self.on_disk = 0
        self.extracted = 0  # windows computed by this object
        if self.folder is not None and self.folder.is_dir():
            sweep_temporaries(self.folder)
            self.on_disk = sum(file.stat().st_size for file in self.folder.glob("*.pt"))

    @property
    def config(self) -> dict[str, object]:
        """That of the extractor inside."""
        return self.extractor.config

    @property
    def feature_info(self) -> list[dict[str, int]]:
        """That of the extractor inside."""
        return self.extractor.feature_info

    @property
    def num_features(self) -> int:
        """That of the extractor inside."""
        return self.extractor.num_features

    def padded_size(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """That of the extractor inside."""
        return self.extractor.padded_size(spatial)

    def bytes_per_window(self, spatial: Sequence[int]) -> int:
        """Return the size of the cached features of one window of that size: for the paper's network 28 MB at 256²."""
        size = self.padded_size(spatial)
        return sum(2 * info["channels"] * math.prod(n // info["reduction"] for n in size) for info in self.feature_info)

    def announce(self, windows: Sequence[Sequence[int]]) -> str:
        """Say beforehand what the features of windows of these sizes take, and whether they are kept."""
        size = sum(self.bytes_per_window(window) for window in windows)
        where = "in memory" if self.folder is None else f"in {self.folder}"
        limit = self.memory_bytes if self.folder is None else self.max_bytes
        sentence = f"features of {len(windows)} windows take {size / 1e6:.0f} MB, cached {where}"
        if size > limit:
            sentence += f"; more than {limit / _GIB:g} GiB is not kept, the rest is computed at every use"
        return sentence

    @torch.no_grad()
    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the normalised maps, as :meth:`medmdm.networks.FeatureExtractor.forward` does but for 16 bits."""
        each = [self._one(image[None]) for image in x]
        return [torch.cat(same).to(x.device) for same in zip(*each, strict=True)]

    def _one(self, x: Tensor) -> list[Tensor]:
        array = x.detach().cpu().float().contiguous().numpy()
        name = hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()
        kind = str(self.config["normalize"])
        if name in self.memory:
            self.memory.move_to_end(name)
            stored = self.memory[name]
        else:
            stored = self._load(name) or self._compute(x, name)
            self._remember(name, stored)
        maps, scales, factors = stored
        if kind not in factors:
            raw = [f.float() * scale for f, scale in zip(maps, scales, strict=True)]
            factors[kind] = float(factor(raw, self.padded_size(x.shape[2:]), kind))
        return [f.float() * (scale * factors[kind]) for f, scale in zip(maps, scales, strict=True)]

    def _compute(self, x: Tensor, name: str) -> _Stored:
        maps = [f.float().cpu() for f in self.extractor.raw(x)]
        self.extracted += 1
        # A power of two brings the largest value near the middle of half precision's range and loses nothing.
        scales = [2.0 ** math.ceil(math.log2(max(float(f.abs().max()), 1e-12)) - 8) for f in maps]
        stored: _Stored = [(f / scale).half() for f, scale in zip(maps, scales, strict=True)], scales, {}
        size = _size(stored)
        if self.folder is not None and self.on_disk + size <= self.max_bytes:
            save_torch({"maps": stored[0], "scales": scales}, self.folder / f"{name}.pt")
            self.on_disk += size
        return stored

    def _load(self, name: str) -> _Stored | None:
        path = None if self.folder is None else self.folder / f"{name}.pt"
        if path is None or not path.is_file():
            return None
        try:
            content = torch.load(path, weights_only=True)
            return content["maps"], content["scales"], {}
        except Exception:  # damaged by something else than us: computed again
            logger.warning("%s is damaged; its features are computed again.", path)
            path.unlink(missing_ok=True)
            return None

    def _remember(self, name: str, stored: _Stored) -> None:
        if _size(stored) > self.memory_bytes:
            return
        self.memory[name] = stored
        self.in_memory += _size(stored)
        while self.in_memory > self.memory_bytes:
            self.in_memory -= _size(self.memory.popitem(last=False)[1])


def _size(stored: _Stored) -> int:
    return sum(f.numel() * f.element_size() for f in stored[0])
