"""The transforms that a labelled entry passes, as one chain."""

from typing import Any

from monai.transforms import Compose

from medmdm.data.loading import LabelToClassesd, LoadCased
from medmdm.data.selection import Selection
from medmdm.data.transforms.intensity import ScaleIntensityByDtyped
from medmdm.data.transforms.spatial import ResampleToSpacingd


def chain(cases: Selection, spacing: Any = None, intensity_range: Any = None, **load: Any) -> Compose:
    """Load, cut, turn the label into class numbers, resample, scale."""
    classes = None if cases.label_type == "instances" else cases.classes
    keys = ("image", "label")
    return Compose(
        [
            LoadCased(keys, **load, allow_missing_keys=True),
            LabelToClassesd("label", cases.label_type, classes, allow_missing_keys=True),
            ResampleToSpacingd(keys, spacing, mode=("bilinear", "nearest"), allow_missing_keys=True),
            ScaleIntensityByDtyped("image", intensity_range),
        ]
    )
