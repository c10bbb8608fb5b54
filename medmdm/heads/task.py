"""What a head is given: the labelled images, how they are read, and the views that it learns from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer
from monai.transforms import Compose, RandFlipd, RandSpatialCropd, SpatialCropd
from torch import Tensor, nn
from torch.nn import functional as F

from medmdm.backbones.extractor import Extractor
from medmdm.data.reading import Example, LoadedCase
from medmdm.data.transforms.augmentation import Augmentation
from medmdm.data.transforms.spatial import PadToSize
from medmdm.data.validity import check_known
from medmdm.errors import UserError
from medmdm.labels import IGNORE


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
        """The kind of :func:`medmdm.heads.task` that predictions are made from: ``"whole"`` or ``"windows"``."""
        return "whole" if self.whole else "windows"

    def inferer(self, batch_size: int = 4) -> Inferer:
        """Return MONAI's inferer that reads so; logits of windows are blended by Gaussian weights."""
        if self.whole:
            return SimpleInferer()
        return SlidingWindowInferer(self.window, batch_size, self.overlap, "gaussian")


@dataclass(frozen=True)
class Task:
    """A segmentation to be learnt.

    Args:
        examples: the labelled support.
        num_classes: K, background included: one more than the largest class number.
        reading: how images are read, here and when predictions are made.
        seed: of everything random.
        device: where to compute.
        unlabelled: images ``[C, *spatial]`` in [-1, 1] that a fit may look at besides, never those it is tested on.
        modality: ``"histology"`` or ``"radiology"``: which augmentation suits the images; None for none.
        classes: the numbers of the classes, rising, where some below K are none (0, 1, 4); None for all of them.

    Raises:
        UserError: there is no labelled image, less than two classes, the window has another number of
            dimensions than the images, or a label names a class that does not exist.
    """

    examples: Sequence[Example]
    num_classes: int
    reading: Reading
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    unlabelled: Sequence[Tensor] = field(default=(), repr=False)
    modality: str | None = None
    classes: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not self.examples:
            raise UserError("There is no labelled image to learn from: the training list is empty.")
        if self.num_classes < 2:
            raise UserError(f"A segmentation needs two classes or more, background included, got {self.num_classes}.")
        for example in self.examples:
            n, window = example.label.ndim, list(self.reading.window)
            if n != len(window):
                raise UserError(f"window must be {n} whole numbers for images of {n} dimensions, got {window}.")
            known, found = self.known_classes, set(example.label[example.known].unique().tolist())
            check_known(found, known, IGNORE, f"the label of {example.case or 'an image'}")

    @property
    def known_classes(self) -> tuple[int, ...]:
        """The numbers of the classes, rising."""
        return tuple(range(self.num_classes) if self.classes is None else self.classes)

    @property
    def undeclared(self) -> tuple[int, ...]:
        """The numbers below K that are no class, for :class:`medmdm.heads.Segmenter`."""
        return tuple(number for number in range(self.num_classes) if number not in self.known_classes)

    def without_gaps(self, logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and labels of the declared classes alone, numbered one after the other: a loss sees no others.

        Args:
            logits: ``[B, K, *spatial]``.
            label: class numbers, ``[B, *spatial]``; ignored pixels keep their number.
        """
        kept = sorted({0, *self.known_classes})  # losses take the first for the background
        if len(kept) == self.num_classes:
            return logits, label
        places = torch.full((IGNORE + 1,), IGNORE, device=label.device)
        places[kept] = torch.arange(len(kept), device=label.device)
        return logits[:, kept], places[label]


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

    One that trains the backbone too has an attribute ``changes_backbone`` that is true; one that looks at unlabelled
    images, ``uses_unlabelled``.
    """

    #: Whether ``fit`` needs a backbone's features (else ``extractor`` may be None).
    needs_backbone: bool

    def fit(self, task: Task, extractor: Extractor | None) -> Fitted:
        """Learn from ``task.examples`` alone."""


#: Where a study names backbones: that of heads that need none.
NO_BACKBONE = "none"
NOTHING_LABELLED = "There is no labelled pixel to learn from: check the labels and the ignore value."
VIEWS = ("whole", "windows", "crops")


def labelled(examples: Iterable[Example]) -> list[Example]:
    """Return the images (or views of them) that hold a labelled pixel; refuse if none does."""
    found = [example for example in examples if bool(example.known.any())]
    if not found:
        raise UserError(NOTHING_LABELLED)
    return found


def check_normalize(extractor: Extractor, whole: bool) -> None:
    """Refuse the paper's norm where images are read ``whole``: features of other sizes would have other scales."""
    if whole and extractor.config["normalize"] == "global_l2":
        raise UserError(
            "normalize 'global_l2' depends on the area, so it is for windows of one size: set whole_images to false "
            "(and the head's views to 'windows' or 'crops'), or normalize to 'rms', 'standardize' or 'none'."
        )


def views(
    example: Example,
    kind: str = "windows",
    window: Sequence[int] = (256, 256),
    overlap: float = 0.2,
    per_image: int = 1,
    seed: int = 0,
) -> list[Example]:
    """Cut an image into the windows that a frozen backbone reads.

    Args:
        example: the labelled image.
        kind: ``"whole"``, the image as it is; ``"windows"``, a grid that covers it; ``"crops"``, ``per_image`` random
            crops, half of them mirrored, as the paper draws them.
        window: size of windows and crops; smaller images are padded, the padding being ignored.
        overlap: of neighbouring windows, as a share of the window, in [0, 1).
        per_image: number of crops.
        seed: of the crops; with the case's id it fixes them.

    Raises:
        UserError: an unknown kind.
    """
    if kind == "whole":
        return [example]
    if kind not in VIEWS:
        raise UserError(f"views must be one of {', '.join(VIEWS)}, got {kind!r}.")
    if kind == "crops":
        rng = np.random.default_rng([seed, 5, *example.case.encode()])
        return [random_crop(example, window, int(rng.integers(2**31))) for _ in range(per_image)]
    image, labels = _padded(example, window)
    step = tuple(max(1, int(n * (1 - overlap))) for n in window)
    places = dense_patch_slices(tuple(labels.shape[1:]), tuple(window), step)
    every = [(slice(None), *place) for place in places]
    return [_with_labels(example, image[place], labels[place]) for place in every]


def random_crop(
    example: Example,
    window: Sequence[int],
    seed: int,
    flips: Sequence[int] = (-1,),
    augmentation: Augmentation | None = None,
    foreground: float = 0.0,
) -> Example:
    """Return a random crop, mirrored with probability 1/2 along each of some axes.

    Args:
        example: the labelled image; smaller ones are padded, the padding being ignored.
        window: size of the crop.
        seed: fixes the crop.
        flips: spatial axes that may be mirrored; the last, the paper's, is left-right.
        augmentation: what else is done to the crop.
        foreground: probability that the crop holds a pixel of a class other than 0, drawn at random, the class first so
            that rare ones are seen; where the image has none, the crop is drawn as any other (nnU-Net's oversampling).
    """
    rng = np.random.default_rng([seed, 8])
    if augmentation is not None and augmentation.turns and rng.random() < 0.5:
        turned = [part.transpose(-1, -2).contiguous() for part in (example.image, _labels(example))]
        example = _with_labels(example, *turned)
    image, labels = _padded(example, window)
    keys = ("image", "label")
    around = _around_object(labels[0], window, rng) if rng.random() < foreground else None
    cut = RandSpatialCropd(keys, roi_size=list(window), random_size=False) if around is None else around
    mirrors = [RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in flips]
    further = [] if augmentation is None else [augmentation.spatial, augmentation.intensity]
    chain = Compose()  # given transforms, it would seed them, and the next line again
    chain.transforms = (cut, *mirrors, *(part for part in further if part is not None))
    chain.set_random_state(seed=seed)
    out = chain({"image": image, "label": labels})
    image, labels = torch.as_tensor(out["image"]), torch.as_tensor(out["label"]).to(labels.dtype)
    return _with_labels(example, image.contiguous(), labels.contiguous())


def _around_object(label: Tensor, window: Sequence[int], rng: np.random.Generator) -> SpatialCropd | None:
    """Return what cuts a window with a random pixel of a random class in it, at a random place; None without one."""
    classes = [c for c in label.unique().tolist() if c not in (0, IGNORE)]
    if not classes:
        return None
    pixels = (label == classes[int(rng.integers(len(classes)))]).nonzero()
    pixel = pixels[int(rng.integers(len(pixels)))].tolist()
    starts = [
        int(rng.integers(max(0, at - size + 1), min(at, extent - size) + 1))
        for at, size, extent in zip(pixel, window, label.shape, strict=True)
    ]
    ends = [start + size for start, size in zip(starts, window, strict=True)]
    return SpatialCropd(("image", "label"), roi_start=starts, roi_end=ends)


def _padded(example: Example, window: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Pad to at least the window: the image by reflection, on both sides; labels by the ignored class and no object."""
    image = PadToSize(window)(example.image)
    missing = [new - old for new, old in zip(image.shape[1:], example.label.shape, strict=True)]
    both = [n for m in reversed(missing) for n in (m // 2, m - m // 2)]
    padded = [F.pad(part, both, value=value) for part, value in zip(_labels(example), (IGNORE, 0), strict=False)]
    return image, torch.stack(padded)


def _labels(example: Example) -> Tensor:
    """Return class numbers and, where there are any, numbers of objects: ``[1 or 2, *spatial]``."""
    if example.objects is None:
        return example.label[None]
    return torch.stack([example.label, example.objects.to(example.label.dtype)])


def _with_labels(example: Example, image: Tensor, labels: Tensor) -> Example:
    """Return the example with another image and what :func:`_labels` returns of it."""
    return replace(example, image=image, label=labels[0], objects=labels[1] if len(labels) > 1 else None)


def view_sizes(cases: Sequence[LoadedCase], reading: Reading) -> list[tuple[int, ...]]:
    """Return the sizes of all that a backbone will read of some cases, to say beforehand what the features take."""
    examples = [example for case in cases for example in case.examples]
    read = (view for e in examples for view in views(e, reading.kind, reading.window, reading.overlap))
    return [tuple(view.image.shape[1:]) for view in read]
