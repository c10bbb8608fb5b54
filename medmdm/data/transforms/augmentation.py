"""Strong augmentation of labelled images, for networks that are trained whole on a handful of them."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai.transforms import (
    Compose,
    MapTransform,
    Rand2DElasticd,
    RandAdjustContrastd,
    RandBiasFieldd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    Randomizable,
    RandScaleIntensityd,
    RandShiftIntensityd,
    Transform,
)

from medmdm.data.transforms.stain import RandStainJitterd
from medmdm.errors import UserError, nearest


class Rescaled(MapTransform, Randomizable):
    """Apply a random transform that is made for intensities in [0, 1] to images in [-1, 1], and clip the result.

    Args:
        keys: keys of images in [-1, 1].
        transform: a MONAI dictionary transform of these keys.
    """

    def __init__(self, keys: str | Sequence[str], transform: Transform) -> None:
        MapTransform.__init__(self, keys)
        self.transform = transform

    def set_random_state(self, seed: int | None = None, state: Any = None) -> Rescaled:
        """Seed the transform inside."""
        self.transform.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = (d[key] + 1) / 2
        d = dict(self.transform(d))
        for key in self.key_iterator(d):
            d[key] = (d[key] * 2 - 1).clamp(-1, 1)
        return d


@dataclass(frozen=True)
class Augmentation:
    """What is done to a crop of a labelled image, in two parts, for unlabelled images are shown with and without one.

    Args:
        spatial: a random MONAI dictionary transform of ``image`` and ``label`` that keeps them aligned; None for none.
        intensity: one of ``image`` alone; None for none.
        turns: also turn by quarter turns, by exchanging rows and columns before the crop (with mirroring along both
            axes that gives all eight symmetries of a square, without interpolation).
    """

    spatial: Transform | None = None
    intensity: Transform | None = None
    turns: bool = False


def histology(channels: int = 3) -> Augmentation:
    """Return the augmentation of stained tissue: every orientation, elastic, stain in optical density, blur, noise.

    Images of other than three channels have no stain that could be told apart.
    """
    image = ["image"]
    jitter = [
        RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5)),
        RandScaleIntensityd(image, factors=0.2, prob=0.3, channel_wise=True),
        RandShiftIntensityd(image, offsets=0.1, prob=0.3, channel_wise=True),
        RandGaussianSmoothd(image, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0), prob=0.2),
        RandGaussianNoised(image, prob=0.2, std=0.05),
    ]
    stain = [RandStainJitterd(image, sigma=0.2, prob=0.8)] if channels == 3 else []
    intensity = Compose([*stain, Rescaled(image, Compose(jitter))])
    return Augmentation(_warp(rotation=0.5, scale=0.25), intensity, turns=True)


def radiology(channels: int = 1) -> Augmentation:
    """Return the augmentation of MR, CT and the like: small rotation, scale, elastic, contrast, bias field, noise."""
    image = ["image"]
    jitter = [
        RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5)),
        RandScaleIntensityd(image, factors=0.25, prob=0.3),
        RandShiftIntensityd(image, offsets=0.1, prob=0.3),
        RandBiasFieldd(image, degree=2, coeff_range=(-0.2, 0.2), prob=0.2),
        RandGaussianSmoothd(image, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0), prob=0.2),
        RandGaussianNoised(image, prob=0.2, std=0.05),
    ]
    return Augmentation(_warp(rotation=0.26, scale=0.2), Rescaled(image, Compose(jitter)))


PRESETS = {"histology": histology, "radiology": radiology}


def preset(name: str, channels: int = 3) -> Augmentation:
    """Return the augmentation of a name.

    Args:
        name: ``"histology"`` or ``"radiology"``.
        channels: of the images.

    Raises:
        UserError: there is no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"There is no augmentation {name!r}{nearest(name, PRESETS)}: use {' or '.join(PRESETS)}.")
    return PRESETS[name](channels)


#: Words of a data list's ``modality``, as in the Medical Segmentation Decathlon's and in DICOM's.
_WORDS = {
    "histology": r"histo|patho|h ?& ?e|\bhe\b|ihc|stain|bright ?field|slide",
    "radiology": r"\b(mri?|ct|pt|pet|us|xa|cr|dx|mg)\b|ultrasound|x-?ray|tomo|magnetic|flair|\bt[12]",
}


def modality_of(told: str, is_volume: bool, channels: int) -> str:
    """Return which preset suits images: ``"histology"`` or ``"radiology"``.

    Args:
        told: what the data list says of the modality; "" for nothing.
        is_volume: whether the images are volumes.
        channels: of the images; pictures of three are taken for stained tissue where nothing is told, or both
            ("MRI of pathological knees").
    """
    said = [name for name, words in _WORDS.items() if re.search(words, told, re.IGNORECASE)]
    if len(said) == 1:
        return said[0]
    return "histology" if channels == 3 and not is_volume else "radiology"


def _warp(rotation: float, scale: float) -> Rand2DElasticd:
    """Rotate by ± ``rotation`` radians, scale by ± ``scale``, and bend, in one interpolation, two crops in three.

    What comes from beyond the crop is its reflection, of image and label alike. Control points stand every 32 pixels
    and move by up to three standard deviations of 0 to 3 pixels.
    """
    return Rand2DElasticd(
        ["image", "label"],
        spacing=(32, 32),
        magnitude_range=(0, 3),
        prob=2 / 3,
        rotate_range=rotation,
        scale_range=(scale, scale),
        mode=("bilinear", "nearest"),
        padding_mode="reflection",
    )
