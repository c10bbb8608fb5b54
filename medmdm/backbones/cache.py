"""A cache of features: what a frozen network says of a window never changes, so it is computed once."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medmdm.backbones.extractor import FeatureExtractor
from medmdm.backbones.feature_maps import normalization
from medmdm.components import to_config
from medmdm.errors import UserError, counted
from medmdm.files import save_torch, sweep_temporaries, tensor_hash, text_hash, weights_hash
from medmdm.intact import DamagedFileError, load_torch

logger = logging.getLogger(__name__)

_GIB = 1 << 30
_FORMAT = 1  # of the files, and of how features are computed from the same settings
_STALE_SECONDS = 3600  # what was half-written so long ago is of a killed run, not of another worker
_TOP = 15  # half precision ends at 65504: the largest value of a map is brought to between 2**14 and 2**15


class CachedExtractor(nn.Module):
    """A :class:`medmdm.backbones.FeatureExtractor` that remembers, in 16 bits and at the maps' own resolution.

    A file a window, named by a hash of its pixels, in a folder named by a hash of the backbone's weights and of all
    settings that change its features; normalisation is applied on reading, so that it does not. Files are written
    atomically: a killed run leaves whole ones. What is read back is what the first reading gave, bit for bit; what is
    damaged, or was computed by another version of PyTorch, is computed again.

    Args:
        extractor: what computes the features.
        folder: where the files go; None keeps features in memory only.
        max_gib: when the files of this folder are larger, further features are streamed: computed at every use.
        memory_gib: features that are also kept in memory, the longest unused being dropped.
        backbone_hash: :func:`medmdm.files.weights_hash` of the backbone where it is known.
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
        settings = {k: v for k, v in extractor.config.items() if k != "normalize"}
        network = getattr(extractor.backbone, "config", None)
        if isinstance(network, dict) and network.get("num_groups") == 32:  # what it always was: old files stay valid
            network = {k: v for k, v in network.items() if k != "num_groups"}
        settings |= {
            "format": _FORMAT,
            "weights": self.backbone_hash,
            # Heads and strides are not seen in the weights.
            "backbone": [type(extractor.backbone).__name__, network],
            "corruption": to_config(extractor.corruption),
        }
        self.key = text_hash(json.dumps(settings, sort_keys=True, default=repr))[:32]
        self.folder = None if folder is None else Path(folder) / self.key
        self.max_bytes, self.memory_bytes = max_gib * _GIB, memory_gib * _GIB
        self.memory: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.in_memory = self.on_disk = 0
        self.extracted = 0  # windows computed by this object
        self.keeps = True
        if self.folder is not None and self.folder.is_dir():
            sweep_temporaries(self.folder, _STALE_SECONDS if os.environ.get("MEDMDM_WORKER") else 0)
            self.on_disk = sum(file.stat().st_size for file in self.folder.glob("*.pt"))

    def __getattr__(self, name: str) -> Any:
        """What is not said here is said by the extractor inside: its settings, sizes and views."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("extractor"), name)

    def bytes_per_window(self, spatial: Sequence[int]) -> int:
        """Return the size of the cached features of one window of that size: for the paper's network 28 MB at 256²."""
        size = self.padded_size(spatial)
        return sum(2 * info["channels"] * math.prod(n // info["reduction"] for n in size) for info in self.feature_info)

    def announce(self, windows: Sequence[Sequence[int]]) -> str:
        """Say beforehand what the features of windows of these sizes take, and whether they are kept."""
        size = sum(map(self.bytes_per_window, windows))
        where, limit = ("memory", self.memory_bytes) if self.folder is None else (self.folder, self.max_bytes)
        sentence = f"features of {counted(len(windows), 'window')} take {size / 1e6:.0f} MB, cached in {where}"
        if size > limit:
            sentence += f"; more than {limit / _GIB:g} GiB is not kept, the rest is computed at every use"
        return sentence

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """Read in the block as :attr:`extractor` does and keep nothing: images that are read once, with all their bits.

        So a run's masks are those that its saved segmenter makes of the same images.
        """
        self.keeps, before = False, self.keeps
        try:
            yield
        finally:
            self.keeps = before

    @torch.no_grad()
    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the normalised maps, as :meth:`medmdm.backbones.FeatureExtractor.forward` does but for 16 bits."""
        if not self.keeps:
            same_bits: list[Tensor] = self.extractor(x)
            return same_bits
        each = [self._one(image[None]) for image in x.as_subclass(Tensor)]
        return [torch.cat(same) for same in zip(*each, strict=True)]

    def remembered(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what was computed under a name before, in this run or an earlier one, or compute it now.

        The name, of a file, tells it from all else of this extractor; it is a dictionary of tensors, lists of tensors
        and numbers.
        """
        if name in self.memory:
            self.memory.move_to_end(name)
            return self.memory[name]
        content = self._load(name)
        if content is None:
            content = compute()
            if not self.keeps:
                return content
            self._save(name, content)
        size = _size(content)
        if size <= self.memory_bytes:
            self.memory[name] = content
            self.in_memory += size
            while self.in_memory > self.memory_bytes:
                self.in_memory -= _size(self.memory.popitem(last=False)[1])
        return content

    def _one(self, x: Tensor) -> list[Tensor]:
        content = self.remembered(tensor_hash(x.float()), functools.partial(self._extract, x))
        kind = str(self.config["normalize"])
        maps = [f.to(x.device).float() for f in content["maps"]]
        found: dict[str, list[tuple[Any, Any]]] = content.setdefault("normalizations", {})
        if kind not in found:
            centres = [None if c is None else c.to(x.device) for c in content.get("centres") or [None] * len(maps)]
            stored = zip(maps, content["scales"], centres, strict=True)
            raw = [f * scale if centre is None else f * scale + centre for f, scale, centre in stored]
            subtracted = normalization(raw, self.padded_size(x.shape[2:]), kind)
            # By what each map is multiplied, and what is then added: a training step reads each map anew.
            found[kind] = [
                (float(multiplier) if mean is None else multiplier.float(), _shift(mean, multiplier, centre))
                for (mean, multiplier), centre in zip(subtracted, centres, strict=True)
            ]
        for f, scale, (multiplier, shift) in zip(maps, content["scales"], found[kind], strict=True):
            f.mul_(scale * multiplier)
            if shift is not None:
                f.add_(shift)
        return maps

    def _extract(self, x: Tensor) -> dict[str, Any]:
        maps = [f.float() for f in self.extractor.raw(x)]
        self.extracted += 1
        # The means over wide windows differ by little, which 16 bits keep once their level is taken off.
        pooled = ["context" in info for info in self.extractor.feature_info]
        centres = [
            f.mean(tuple(range(2, f.ndim)), keepdim=True) if p else None for f, p in zip(maps, pooled, strict=True)
        ]
        maps = [f if centre is None else f - centre for f, centre in zip(maps, centres, strict=True)]
        tops = [float(f.abs().max()) for f in maps]
        if not all(map(math.isfinite, tops)):
            raise UserError("The backbone's features are not finite: its weights, or the image, hold NaN or infinity.")
        # Powers of two lose nothing.
        scales = [math.ldexp(1.0, math.frexp(top)[1] - _TOP) for top in tops]
        small = [(f / scale).half().cpu() for f, scale in zip(maps, scales, strict=True)]
        # A pixel's channels side by side: what gathers pixels need not transpose, and products do not mind.
        content = {"maps": [f.movedim(1, -1).contiguous().movedim(-1, 1) for f in small], "scales": scales}
        return {**content, "centres": [None if c is None else c.cpu() for c in centres]} if any(pooled) else content

    def _save(self, name: str, content: dict[str, Any]) -> None:
        if self.folder is None or self.on_disk + _size(content) > self.max_bytes:
            return
        try:
            save_torch({**content, "torch": str(torch.__version__)}, self.folder / f"{name}.pt")
            self.on_disk += _size(content)
        except OSError as error:  # a full disk must not end a run that can do without
            logger.warning("%s cannot be written (%s): nothing more is cached.", self.folder, error.strerror or error)
            self.max_bytes = 0

    def _load(self, name: str) -> dict[str, Any] | None:
        path = None if self.folder is None else self.folder / f"{name}.pt"
        if path is None or not path.is_file():
            return None
        try:
            content: dict[str, Any] = load_torch(path)
            # Earlier versions of medmdm do not say.
            if isinstance(content, dict) and content.pop("torch", torch.__version__) == torch.__version__:
                return content
        except DamagedFileError:  # by something else than us
            logger.warning("%s is damaged; it is computed again.", path)
        with contextlib.suppress(FileNotFoundError):  # another worker was faster
            self.on_disk -= path.stat().st_size
            path.unlink()
        return None


def _shift(mean: Tensor | None, multiplier: Tensor, centre: Tensor | None) -> Tensor | None:
    """What is added after the multiplication, so that a map gets back its centre and loses its mean."""
    if mean is None and centre is None:
        return None
    level = (0.0 if centre is None else centre.double()) - (0.0 if mean is None else mean)
    return torch.as_tensor(level * multiplier).float()


def _size(content: dict[str, Any]) -> int:
    """Bytes of all tensors."""
    tensors = [t for value in content.values() for t in (value if isinstance(value, list) else [value])]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
