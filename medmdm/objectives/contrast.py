"""Contrastive terms: of cells, of images, of slices by their place."""

from __future__ import annotations

import copy

import torch
from monai.losses import ContrastiveLoss
from torch import Tensor, nn
from torch.nn import functional as F

from medmdm.components import declared
from medmdm.errors import UserError
from medmdm.objectives.term import Restored, Term, gathered, pooled


class _Contrast(Term):
    """Base: a projector on one decoder block, and a temperature."""

    projector: nn.Sequential

    def project(self, channels: int, block: int, temperature: float, size: int, seed: int) -> None:
        """Check what all contrasts have, and make the projector: two linear layers from ``channels`` to ``size``."""
        if temperature <= 0 or size < 1:
            fault = f"temperature and size must be positive, got {temperature} and {size}"
            raise UserError(f"{type(self).__name__}: {fault}.")
        self.blocks, self.temperature = [block], temperature

        def layers() -> None:
            self.projector = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, size))

        self.make(layers, seed)


class DenseContrast(_Contrast):
    """Cells that show the same place are alike, others are not (InfoNCE over cells: DenseCL, arXiv 2011.09157).

    The averaged network sees a second crop, a window of the clean image that is mirrored along the last axis for half
    of the images; the network has seen the whole damaged image. Cells of the window are positives by geometry;
    negatives are the window's other cells, those of the other images (of all processes), and a queue of earlier ones.
    The projector of the second crop follows that of the first as a moving average (MoCo, arXiv 1911.05722).

    Args:
        channels: channels of ``block``.
        block: the decoder block whose cells are compared.
        weight: see :class:`medmdm.objectives.Term`.
        warmup: see there.
        temperature: of InfoNCE, positive.
        size: length of the projected vectors.
        cells: how many cells of each image are compared, at least 1.
        queue: how many earlier cells are kept, at least 0.
        window: edge of the second crop as a share of the image's, in (0, 1].
        momentum: of the second projector, in [0, 1).
        learning_rate: of the projector.
        seed: of its weights.

    Raises:
        UserError: a number is out of range.
    """

    queue: Tensor
    filled: Tensor

    def __init__(
        self,
        channels: int,
        block: int,
        weight: float = 0.1,
        warmup: float = 0.1,
        temperature: float = 0.2,
        size: int = 64,
        cells: int = 64,
        queue: int = 4096,
        window: float = 0.75,
        momentum: float = 0.99,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__(weight, warmup, learning_rate)
        self.config = declared(locals())
        if cells < 1 or queue < 0 or not 0 < window <= 1 or not 0 <= momentum < 1:
            raise UserError(
                "DenseContrast: cells must be at least 1, queue at least 0, window in (0, 1] and momentum in [0, 1), "
                f"got {cells}, {queue}, {window} and {momentum}."
            )
        self.cells, self.window, self.momentum = cells, window, momentum
        self.register_buffer("queue", torch.zeros(queue, size))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))
        self.project(channels, block, temperature, size, seed)
        self.averaged = copy.deepcopy(self.projector).requires_grad_(False)
        self._seen: list[Tensor] = []

    def forward(self, seen: Restored) -> Tensor:
        maps = seen.features[self.blocks[0]]
        keys_at, windows, flips = self._windows(seen, maps)
        with torch.no_grad():
            taught = seen.taught(windows, self.blocks)[0].float()
            taught = torch.where(flips.reshape(-1, *[1] * (taught.ndim - 1)), taught.flip(-1), taught)
            chosen = torch.stack(
                [torch.rand(taught[0, 0].numel(), generator=g).argsort()[: self.cells] for g in seen.generators]
            ).to(taught.device)
            keys = taught.flatten(2).gather(2, chosen[:, None].expand(-1, taught.shape[1], -1)).transpose(1, 2)
        with torch.autocast(maps.device.type, enabled=False):
            keys = F.normalize(self.averaged(keys), dim=-1)  # whose weights get no gradient
            at = keys_at.gather(1, chosen)
            queries = maps.float().flatten(2).gather(2, at[:, None].expand(-1, maps.shape[1], -1)).transpose(1, 2)
            queries = F.normalize(self.projector(queries), dim=-1).flatten(0, 1)
            own = keys.flatten(0, 1)
            everyone = gathered(own)
            negatives = torch.cat([everyone, self.queue[: int(self.filled)].to(everyone)])
            logits = queries @ negatives.T / self.temperature
            first = 0
            if len(everyone) > len(own):
                first = torch.distributed.get_rank() * len(own)
            target = torch.arange(len(own), device=logits.device) + first
            self._seen.append(everyone)
            # The mean over images of the mean over their cells, which are equally many.
            return F.cross_entropy(logits, target)

    def after_step(self) -> None:
        with torch.no_grad():
            for old, new in zip(self.averaged.parameters(), self.projector.parameters(), strict=True):
                old.lerp_(new, 1 - self.momentum)
            for keys in self._seen:
                kept = torch.cat([keys, self.queue[: int(self.filled)]])[: len(self.queue)]
                self.queue[: len(kept)] = kept
                self.filled.fill_(len(kept))
        self._seen.clear()

    def _windows(self, seen: Restored, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return for each cell of the windows its flat place in ``maps``, the windows, and which are mirrored."""
        spatial, cells = seen.images.shape[2:], maps.shape[2:]
        step = int(getattr(seen.teacher, "reduction", 1))  # the network takes multiples of it
        edges = [max(step, round(n * self.window / step) * step) for n in spatial]
        cell = [n // m for n, m in zip(spatial, cells, strict=True)]
        numbers = torch.stack([torch.rand(len(spatial) + 1, generator=g) for g in seen.generators])
        places = torch.arange(maps[0, 0].numel(), device=maps.device).reshape(cells)
        windows, keys_at = [], []
        for image, row in zip(seen.images, numbers, strict=True):
            # Corners lie on cells, so that each cell of the window is one cell of the image.
            free = [(n - edge) // c for n, edge, c in zip(spatial, edges, cell, strict=True)]
            corner = [min(int(u * (f + 1)), f) for u, f in zip(row.tolist(), free, strict=False)]
            pixels = [slice(k * c, k * c + edge) for k, c, edge in zip(corner, cell, edges, strict=True)]
            whole_channels = (slice(None), *pixels)
            part = image[whole_channels]
            windows.append(part.flip(-1) if row[-1] < 0.5 else part)
            inside = tuple(slice(k, k + edge // c) for k, c, edge in zip(corner, cell, edges, strict=True))
            keys_at.append(places[inside].flatten())
        return torch.stack(keys_at), torch.stack(windows), (numbers[:, -1] < 0.5).to(maps.device)


class ImageContrast(_Contrast):
    """A damaged image is most like its own clean version (NT-Xent: SimCLR, arXiv 2002.05709; MONAI's ContrastiveLoss).

    Compared are the network's pooled features of the damaged image and the averaged network's of the clean one, both
    through one projector; negatives are the other images of the batch, of all processes.

    Args:
        channels: channels of ``block``.
        block: the decoder block that is pooled.
        weight: see :class:`medmdm.objectives.Term`.
        warmup: see there.
        temperature: of NT-Xent, positive.
        size: length of the projected vectors.
        learning_rate: of the projector.
        seed: of its weights.

    Raises:
        UserError: a number is out of range.
    """

    def __init__(
        self,
        channels: int,
        block: int,
        weight: float = 0.1,
        warmup: float = 0.1,
        temperature: float = 0.5,
        size: int = 64,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__(weight, warmup, learning_rate)
        self.config = declared(locals())
        self.project(channels, block, temperature, size, seed)
        self.contrast = ContrastiveLoss(temperature)

    def forward(self, seen: Restored) -> Tensor:
        with torch.no_grad():
            taught = pooled(seen.taught(seen.images, self.blocks)[0])
        with torch.autocast(taught.device.type, enabled=False):
            found = self.projector(pooled(seen.features[self.blocks[0]]))
            everyone = gathered(found)
            loss: Tensor = self.contrast(everyone, gathered(self.projector(taught)))
        # Each process has the loss of all images and gradients for its own; the mean over processes is to be their sum.
        processes = len(everyone) // len(found)
        return loss * processes - loss.detach() * (processes - 1)


class SlicePosition(_Contrast):
    """Slices from about the same place of different volumes are alike (PCL, arXiv 2106.09157; arXiv 2006.10511).

    The loss is supervised contrast (arXiv 2004.11362, eq. 2).
    Positives of a slice are the slices of the batch, of all processes, whose place along the axis, 0 for the first
    slice of a volume and 1 for the last, differs by less than ``distance``. Slices without any positive count 0.

    Args:
        channels: channels of ``block``.
        block: the decoder block that is pooled.
        weight: see :class:`medmdm.objectives.Term`.
        warmup: see there.
        distance: below which two places are the same, in (0, 1].
        temperature: positive.
        size: length of the projected vectors.
        learning_rate: of the projector.
        seed: of its weights.

    Raises:
        UserError: a number is out of range; in a run, the images are no slices of volumes.
    """

    def __init__(
        self,
        channels: int,
        block: int,
        weight: float = 0.1,
        warmup: float = 0.0,
        distance: float = 0.1,
        temperature: float = 0.1,
        size: int = 64,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__(weight, warmup, learning_rate)
        self.config = declared(locals())
        if not 0 < distance <= 1:
            raise UserError(f"SlicePosition: distance must lie in (0, 1], got {distance}.")
        self.distance = distance
        self.project(channels, block, temperature, size, seed)

    def forward(self, seen: Restored) -> Tensor:
        if "position" not in seen.batch:
            raise UserError("SlicePosition needs slices of volumes: the images of this run have no place in one.")
        maps = seen.features[self.blocks[0]]
        with torch.autocast(maps.device.type, enabled=False):
            own = F.normalize(self.projector(pooled(maps)), dim=-1)
            vectors = gathered(own)
            places = gathered(seen.batch["position"].to(own).reshape(-1))
            first = torch.distributed.get_rank() * len(own) if len(vectors) > len(own) else 0
            rows = torch.arange(len(own), device=own.device)
            itself = torch.zeros(len(own), len(vectors), dtype=torch.bool, device=own.device)
            itself[rows, rows + first] = True
            logits = (own @ vectors.T / self.temperature).masked_fill(itself, -torch.inf)
            likely = logits.log_softmax(1).masked_fill(itself, 0.0)
            alike = ((places[rows + first][:, None] - places[None]).abs() < self.distance) & ~itself
            counts = alike.sum(1)
            return (-(likely * alike).sum(1) / counts.clamp_min(1)).mean()
