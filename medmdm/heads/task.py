"""What a way of fitting is given: the labelled images, the backbone, and how predictions will be made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer
from torch import nn

from medmdm.backbones.extractor import Extractor
from medmdm.data.reading import Example
from medmdm.data.validity import check_known
from medmdm.errors import UserError
from medmdm.labels import IGNORE

__all__ = ["Fitted", "Fitter", "Reading", "Task", "check_normalize", "labelled"]


@dataclass(frozen=True)
class Reading:
    """How images are read, when a head is fitted and when it predicts: in overlapping windows, or whole.

    Args:
        window: rows and columns (the paper: 256 x 256); three numbers for volumes that are read as such.
        whole: images are read whole instead.
        overlap: of neighbouring windows, as a share of the window in [0, 1) (the paper: 0.2).

    Raises:
        UserError: the window is not two (or three) whole numbers above 0, or the overlap is out of range.
    """

    window: tuple[int, ...]
    whole: bool = False
    overlap: float = 0.2

    def __post_init__(self) -> None:
        sizes: list[Any] = list(self.window) if isinstance(self.window, (list, tuple)) else [self.window]
        if len(sizes) not in (2, 3) or not all(isinstance(n, int) and n > 0 for n in sizes):
            raise UserError(f"window must be two whole numbers above 0, such as [96, 96], got {self.window!r}.")
        if not 0 <= self.overlap < 1:
            raise UserError(f"overlap must be at least 0 and less than 1, got {self.overlap}.")
        object.__setattr__(self, "window", tuple(sizes))

    @property
    def kind(self) -> str:
        """The kind of :func:`medmdm.heads.views` that predictions are made from: ``"whole"`` or ``"windows"``."""
        return "whole" if self.whole else "windows"

    def inferer(self, batch_size: int = 4) -> Inferer:
        """Return MONAI's inferer that reads so; logits of windows are blended by Gaussian weights."""
        return (
            SimpleInferer() if self.whole else SlidingWindowInferer(self.window, batch_size, self.overlap, "gaussian")
        )


@dataclass(frozen=True)
class Task:
    """A segmentation to be learnt.

    Args:
        examples: the labelled support.
        num_classes: K, background included.
        reading: how images are read, here and when predictions are made.
        seed: of everything random.
        device: where to compute.

    Raises:
        UserError: there is no labelled image, less than two classes, the window has another number of
            dimensions than the images, or a label names a class that does not exist.
    """

    examples: Sequence[Example]
    num_classes: int
    reading: Reading
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        if not self.examples:
            raise UserError("There is no labelled image to learn from: the training list is empty.")
        if self.num_classes < 2:
            raise UserError(f"A segmentation needs two classes or more, background included, got {self.num_classes}.")
        for example in self.examples:
            if example.label.ndim != len(self.reading.window):
                raise UserError(
                    f"window must be {example.label.ndim} whole numbers for images of {example.label.ndim} dimensions, "
                    f"got {list(self.reading.window)}."
                )
            above = example.label[example.known & (example.label >= self.num_classes)]
            check_known(
                set(above.tolist()), range(self.num_classes), IGNORE, f"the label of {example.case or 'an image'}"
            )


@dataclass(frozen=True)
class Fitted:
    """What comes out of a fit.

    Args:
        model: image ``[B, C, *spatial]`` → logits ``[B, K, *spatial]``, in evaluation mode.
        evidence: what was chosen and why, learning curves, epochs: JSON-able.
    """

    model: nn.Module
    evidence: dict[str, Any]


class Fitter(Protocol):
    """A way to learn a segmentation, constructible from JSON.

    One that trains the backbone too has an attribute ``changes_backbone`` that is true.
    """

    #: Whether ``fit`` needs a backbone's features (else ``extractor`` may be None).
    needs_backbone: bool

    def fit(self, task: Task, extractor: Extractor | None) -> Fitted:
        """Learn from ``task.examples`` alone."""
        ...


NOTHING_LABELLED = "There is no labelled pixel to learn from: check the labels and the ignore value."


def labelled(examples: Iterable[Example]) -> list[Example]:
    """Return the images (or views of them) that hold a labelled pixel.

    Raises:
        UserError: none does.
    """
    found = [example for example in examples if bool(example.known.any())]
    if not found:
        raise UserError(NOTHING_LABELLED)
    return found


def check_normalize(extractor: Extractor, whole: bool) -> None:
    """Refuse the paper's norm for whole images.

    Args:
        extractor: of the features.
        whole: images are read whole, and may be of another size than the windows.

    Raises:
        UserError: it grows with the area, so images of different sizes would have features of different scales.
    """
    if whole and extractor.config["normalize"] == "global_l2":
        raise UserError(
            "normalize 'global_l2' depends on the area, so it is for windows of one size: set whole_images to false "
            "(and the head's views to 'windows' or 'crops'), or normalize to 'rms', 'standardize' or 'none'."
        )
