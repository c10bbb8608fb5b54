"""From a case to its mask: where each pixel's class is chosen by itself, while the picture is being read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medmdm.data.reading import LoadedCase
from medmdm.heads.predictor import Choice, Prediction, Predictor
from medmdm.segment.cross_validation import FoldPredictor
from medmdm.segment.postprocessing import PostProcess, Postprocessing


@dataclass(frozen=True)
class Masks:
    """What was made of a case.

    Args:
        mask: class numbers ``[*spatial]``.
        instances: numbers of objects ``[*spatial]``, None if none were found.
        probabilities: ``[K, *spatial]``, None unless kept.
        uncertainty: ``[2, *spatial]``, None if not asked for.
    """

    mask: np.ndarray
    instances: np.ndarray | None
    probabilities: np.ndarray | None
    uncertainty: np.ndarray | None


def make_masks(
    case: LoadedCase, predictor: Predictor | FoldPredictor, postprocess: Postprocessing, keep: bool = False
) -> Masks:
    """Predict a case and process what was predicted.

    Args:
        case: as it was read.
        predictor: see :meth:`medmdm.heads.Predictor.choice` for what it can read row by row.
        postprocess: one of the caller's own is given the whole probabilities.
        keep: return the probabilities.
    """
    own = postprocess if type(postprocess) is PostProcess else None
    rows = own is not None and own.needed_map is None and not keep
    choice = predictor.choice(case, own.classes) if rows and own is not None else None
    found: Prediction | Choice
    processed: Mapping[str, np.ndarray | None]
    probabilities = None
    if own is not None and choice is not None:
        found, processed = choice, own.finished(choice.classes, case.spacing)
    else:
        found = predictor.case(case)
        further = {} if own is None else {"maps": found.maps}
        processed, probabilities = postprocess(found.probabilities, case.spacing, **further), found.probabilities
    mask = processed["mask"]
    assert mask is not None
    return Masks(mask, processed.get("instances"), probabilities if keep else None, found.uncertainty)
