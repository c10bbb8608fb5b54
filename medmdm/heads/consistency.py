"""Unlabelled images beside the labelled ones: an averaged teacher, and a network that must agree with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from medmdm.data.reading import Example
from medmdm.data.transforms.augmentation import Augmentation
from medmdm.errors import UserError
from medmdm.heads.task import Task
from medmdm.labels import IGNORE


@dataclass(kw_only=True)
class Consistency:
    """Unlabelled images beside the labelled ones: weak-to-strong consistency with an averaged teacher, and CutMix.

    The averaged network (Tarvainen and Valpola, mean teacher, 2017) says what it sees in a crop of an unlabelled image;
    the network must say the same of the crop in other colours (Sohn et al., FixMatch, 2020; Yang et al., UniMatch,
    2023), into which a rectangle of another crop was pasted (Yun et al., CutMix, 2019; French et al., 2020), wherever
    the teacher is sure.

    Args:
        weight: of its loss beside that of the labelled crops.
        threshold: probability, in [0, 1), from which the teacher is sure of a pixel.
        batch_size: unlabelled crops a step.
        ramp: shares of the steps between which the weight rises from 0; before it no unlabelled image is read.
        cutmix: paste rectangles.
        tolerance: by how much the loss of the labelled images may end above what it was when the weight began to rise.
            Above it the unlabelled images are said to hurt, and the network is trained anew without them.

    Raises:
        UserError: a number is out of range.
    """

    weight: float = 1.0
    threshold: float = 0.9
    batch_size: int = 4
    ramp: Sequence[float] = (0.15, 0.4)
    cutmix: bool = True
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        self.ramp = tuple(self.ramp)
        first, last = self.ramp
        if self.weight < 0 or not 0 <= self.threshold < 1 or self.batch_size < 1 or not 0 <= first <= last <= 1:
            raise UserError(
                "unlabelled: weight must be at least 0, threshold in [0, 1), batch_size at least 1 and ramp two shares "
                f"that rise, got {self.weight}, {self.threshold}, {self.batch_size} and {list(self.ramp)}."
            )

    def weight_at(self, progress: float) -> float:
        """Return the weight at a share of the run."""
        first, last = self.ramp
        risen = 1.0 if progress >= last else max(0.0, progress - first) / max(last - first, 1e-9)
        return self.weight * risen

    def mix(self, strong: Tensor, probabilities: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Paste a rectangle of the next crop of the batch into each: its pixels, and what the teacher says of them.

        A rectangle takes a quarter to half of the crop and may be up to twice as long as wide, or as wide as long.
        """
        if not self.cutmix or len(strong) < 2:
            return strong, probabilities
        mixed, said = strong.clone(), probabilities.clone()
        size = np.array(strong.shape[2:])
        for target in range(len(strong)):
            share, aspect = rng.uniform(0.25, 0.5), math.exp(rng.uniform(-math.log(2) / 2, math.log(2) / 2))
            sides = np.minimum(
                size, np.rint(size * share ** (1 / len(size)) * aspect ** np.array([1, *[-1] * (len(size) - 1)]))
            )
            starts = [int(rng.integers(0, int(n - side) + 1)) for n, side in zip(size, sides, strict=True)]
            place = (slice(None), *(slice(a, a + int(side)) for a, side in zip(starts, sides, strict=True)))
            source = (target + 1) % len(strong)
            mixed[target][place], said[target][place] = strong[source][place], probabilities[source][place]
        return mixed, said

    def loss(self, logits: Tensor, probabilities: Tensor) -> Tensor:
        """Return the cross-entropy of ``logits [B, K, ...]`` with the teacher's class, over all pixels.

        Pixels of which the teacher (``probabilities [B, K, ...]``) is not sure count as 0.
        """
        confidence, said = probabilities.max(1)
        each = F.cross_entropy(logits, said, reduction="none")
        return (each * (confidence >= self.threshold)).mean()


@dataclass(frozen=True)
class Taught:
    """Crops of unlabelled images and what the network makes of them: ``loss(logits)``."""

    images: Tensor
    loss: Callable[[Tensor], Tensor]


class Teacher:
    """The averaged network as it teaches, and the notes of what came of it."""

    def __init__(
        self,
        consistency: Consistency,
        network: nn.Module,
        views: Views,
        support_loss: Callable[[], float],
        autocast: Callable[[torch.device], torch.autocast],
        task: Task,
    ) -> None:
        self.consistency, self.network, self.support_loss = consistency, network, support_loss
        self.autocast, self.task = autocast, task
        self.views = iter(DataLoader(views, batch_size=consistency.batch_size))
        self.before: float | None = None
        self.sure: list[float] = []

    def crops(self, step: int, progress: float) -> Taught | None:
        """Return the crops of a step; None where their weight is 0."""
        weight = self.consistency.weight_at(progress)
        if weight <= 0:
            return None
        if self.before is None:
            self.before = self.support_loss()
        weak, strong = (part.to(self.task.device) for part in next(self.views))
        with torch.no_grad(), self.autocast(self.task.device):
            said = self.network(weak).float().softmax(1)
        strong, said = self.consistency.mix(strong, said, np.random.default_rng([self.task.seed, 9, step]))
        self.sure.append(float((said.max(1).values >= self.consistency.threshold).float().mean()))
        return Taught(strong, lambda logits: weight * self.consistency.loss(logits, said))

    def evidence(self) -> dict[str, Any]:
        """Return the number of images, the loss of the labelled ones before and after, and how sure the teacher was."""
        after = self.support_loss()
        parts = np.array_split(self.sure, min(20, len(self.sure))) if self.sure else []
        return {
            "images": len(self.task.unlabelled),
            "support_loss": [after if self.before is None else self.before, after],
            "share_sure": [float(np.mean(part)) for part in parts],
        }


@dataclass
class Views(Dataset):
    """Crop ``k`` of the unlabelled images as the teacher sees it, and in other colours as the network does."""

    images: Sequence[Tensor]
    cut: Callable[..., Example]
    augmentation: Augmentation | None
    seed: int

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, 10, k])
        image = self.images[int(rng.integers(len(self.images)))]
        example = Example(image, torch.full(image.shape[1:], IGNORE))
        spatial = None if self.augmentation is None else replace(self.augmentation, intensity=None)
        weak = self.cut(example, seed=int(rng.integers(2**31)), augmentation=spatial).image
        if self.augmentation is None or self.augmentation.intensity is None:
            return weak, weak
        recolour: Any = self.augmentation.intensity
        recolour.set_random_state(seed=int(rng.integers(2**31)))
        return weak, torch.as_tensor(recolour({"image": weak.clone()})["image"]).as_subclass(Tensor)
