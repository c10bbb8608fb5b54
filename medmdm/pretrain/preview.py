"""Pictures and scores of what the network has learnt, on held-out crops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine
from monai.metrics import PSNRMetric, SSIMMetric
from PIL import Image, ImageDraw
from torch import Tensor

from medmdm.backbones.colours import coloured
from medmdm.corruption import Corrupted, Corruption
from medmdm.errors import UserError
from medmdm.files import atomic_file, is_main_process, mark_outputs
from medmdm.pretrain.checkpoints import mix
from medmdm.pretrain.log import Periodic

_WINDOW = 11  # pixels, of SSIM


@dataclass(eq=False)
class Preview(Periodic):
    """Every so many steps, restore fixed held-out crops at several t with the averaged weights.

    The scores go to ``engine.state.heldout`` for the log: ``ssim_t<t>`` and ``psnr_t<t>`` of the restored crops, with
    the pixels that the corruption left as they were pasted back, and ``ssim_mean_fill_t<t>`` of
    the same crops with each hole filled with the channel means of the whole clean crop (for pure noise: of the noisy
    crop itself), which a network must beat. SSIM is MONAI's, on a data range of 2, its window
    as long as a crop where that is shorter than 11 pixels.

    Beside them stand the network's features of the undamaged crops as colours, the same ones for all crops of a picture
    (:class:`medmdm.backbones.colours.coloured`): pixels of one colour look alike to the network.

    Attach it to a trainer that has ``restore(x_t, t)`` and, for the features, ``features(x)``. The picture goes to
    ``engine.state.picture`` too, for TensorBoard.

    Args:
        folder: the run folder; pictures go to ``previews/step_*.png`` in it.
        crops: ``[N, C, *spatial]`` in [-1, 1].
        corruption: what damages the crops; the damage is the same each time.
        timesteps: the t's to show.
        every: steps between two previews; there is also one before the first step and one after the last.
        seed: of the damage.
        note: a line under the picture, for example that the crops were trained on.
        max_shown: how many crops the picture shows; all are scored.
        given: what the corruption is given of the crops, by name, ``[N, 1, *spatial]``.
    """

    folder: str | Path
    crops: Tensor
    corruption: Corruption
    timesteps: Sequence[int] = (250, 500, 750)
    every: int = 1000
    seed: int = 0
    note: str = ""
    max_shown: int = 4
    given: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for t in self.timesteps:
            if not 0 <= t < self.corruption.num_timesteps:
                raise UserError(f"preview timesteps must lie in 0...{self.corruption.num_timesteps - 1}, got {t}.")
        self.crops = torch.as_tensor(self.crops).float()
        #: Names of the held-out scores, in the order in which they are computed.
        self.names = [f"{kind}_t{t}" for t in self.timesteps for kind in ("ssim", "psnr", "ssim_mean_fill")]
        self.damaged: list[Corrupted] = []
        for t in self.timesteps:
            seeds = [mix(self.seed, 3, t, n) for n in range(len(self.crops))]
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            times = torch.full((len(self.crops),), t)
            self.damaged.append(self.corruption(self.crops, times, generators, **self.given))
        windows = [min(_WINDOW, n - 1 + n % 2) for n in self.crops.shape[2:]]
        self.ssim = SSIMMetric(spatial_dims=len(windows), data_range=2.0, win_size=windows)
        self.psnr = PSNRMetric(max_val=2.0)

    def __call__(self, engine: Engine) -> None:
        """Restore, score, draw."""
        if not is_main_process():
            return
        scores: dict[str, float] = {}
        shown: list[Tensor] = []
        for t, damage in zip(self.timesteps, self.damaged, strict=True):
            # One crop at a time: the preview must not need more memory than a training step.
            when = torch.tensor([t], device=engine.state.device)
            restored = [engine.restore(x[None].to(when.device), when).cpu().clamp(-1, 1) for x in damage.x_t]
            result = torch.cat(restored)
            # What was not damaged at all is pasted back; noise, blur and the like leave no such pixel.
            whole = damage.visible.bool() & (damage.x_t == self.crops).all(1, keepdim=True)
            result = torch.where(whole, self.crops, result)
            scores[f"ssim_t{t}"] = self._mean(self.ssim, result)
            scores[f"psnr_t{t}"] = self._mean(self.psnr, result)
            scores[f"ssim_mean_fill_t{t}"] = self._mean(self.ssim, fill_with_mean(self.crops, damage))
            shown += [damage.x_t, result]
        self.leave(engine, scores)
        titles = ["original"] + [f"{what} t={t}" for t in self.timesteps for what in ("given", "restored")]
        columns = [self.crops, *shown]
        colours = self._features(engine)
        if colours is not None:
            columns, titles = [*columns, colours], [*titles, "features"]
        picture = preview_grid([c[: self.max_shown] for c in columns], titles, self.note)
        mark_outputs(Path(self.folder) / "previews")
        with atomic_file(Path(self.folder) / "previews" / f"step_{engine.state.iteration:08d}.png") as file:
            picture.save(file, format="PNG")
        engine.state.picture = np.asarray(picture)

    def _features(self, engine: Engine) -> Tensor | None:
        """Return the features of the crops that are shown as colours, ``[N, 3, *spatial]``."""
        found = []
        for crop in self.crops[: self.max_shown] if hasattr(engine, "features") else ():
            maps = engine.features(crop[None].to(engine.state.device))
            if maps is None:
                return None
            found.append([f.cpu() for f in maps])
        return coloured(found, self.crops.shape[2:]) if found else None

    def _mean(self, metric: SSIMMetric | PSNRMetric, images: Tensor) -> float:
        return metric._compute_metric(images, self.crops).mean().item()


def fill_with_mean(crops: Tensor, damage: Corrupted) -> Tensor:
    """Return the damaged crops with their holes filled with the channel means of the clean ones."""
    mean = crops.flatten(2).mean(2).reshape(*crops.shape[:2], *[1] * (crops.ndim - 2))
    return torch.where(damage.visible.bool(), damage.x_t, mean.expand_as(crops)).clamp(-1, 1)


def preview_grid(columns: Sequence[Tensor], titles: Sequence[str], note: str = "") -> Image.Image:
    """Draw columns of images under their titles.

    Args:
        columns: each ``[N, C, H, W]`` (of volumes the middle slice is drawn) in [-1, 1]; one or two channels are drawn
            in grey (the first), three or more in colour (the first three).
        titles: one for each column.
        note: a line at the foot.
    """
    tiles = []
    for column in columns:
        images = column[:, :, column.shape[2] // 2] if column.ndim == 5 else column
        images = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
        tiles.append(((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    count, height, width = tiles[0].shape[:3]
    scale = max(1, round(128 / max(height, width)))  # small crops are drawn larger
    gap, head, foot = 4, 16, 16 if note else 0
    cell_w, cell_h = width * scale + gap, height * scale + gap
    size = (cell_w * len(tiles) + gap, head + cell_h * count + gap + foot)
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    for i, (column_tiles, title) in enumerate(zip(tiles, titles, strict=True)):
        pen.text((gap + i * cell_w, 2), title, fill="black")
        for j, tile in enumerate(column_tiles):
            image = Image.fromarray(tile).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            picture.paste(image, (gap + i * cell_w, head + gap + j * cell_h))
    pen.text((gap, size[1] - foot), note, fill="black")
    return picture
