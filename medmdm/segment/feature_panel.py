"""A picture of what the backbone makes of some cases, for the page of the report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from medmdm.backbones.colours import coloured
from medmdm.data.reading import LoadedCase
from medmdm.files import atomic_file
from medmdm.heads.predictor import Predictor
from medmdm.heads.segmenter import Segmenter
from medmdm.pretrain.preview import preview_grid
from medmdm.reports.pictures import FEATURES_FILE, feature_cases
from medmdm.segment.cross_validation import FoldPredictor

logger = logging.getLogger(__name__)

_SIDE = 256  # pixels of the middle of an image that are read at most


def write_feature_panel(cases: Sequence[LoadedCase], predictor: Predictor | FoldPredictor, folder: Path) -> Path | None:
    """Draw the middle of some cases, of volumes of the middle slice, above its features as colours.

    One that an earlier session left is replaced or removed.

    Args:
        cases: those of the evaluation, in its order, with their images.
        predictor: has a :class:`medmdm.heads.Segmenter`, or of folds several, of which the first is read. Networks
            trained from scratch have no such features, and get no panel.
        folder: of the run.

    Returns:
        The picture, None without one.
    """
    path = folder / FEATURES_FILE
    path.unlink(missing_ok=True)
    chosen = [cases[number] for number in feature_cases(len(cases))]
    of = next(iter(predictor.predictors.values())) if isinstance(predictor, FoldPredictor) else predictor
    if not isinstance(of.model, Segmenter) or not all(case.examples for case in chosen):
        return None
    extractor = of.model.extractor.innermost.to(of.device)
    images = [case.examples[len(case.examples) // 2].image for case in chosen]
    if any(image.ndim != 3 for image in images):
        return None
    side = min(_SIDE, *(n for image in images for n in image.shape[1:]))
    middles = [_middle(image, side)[None] for image in images]
    with torch.no_grad():
        maps = [[f.float().cpu() for f in extractor(image.to(of.device))] for image in middles]
    drawn = coloured(maps, extractor.padded_size((side, side)))
    if drawn is None:
        logger.warning("The features are not finite: the report shows none of them.")
        return None
    columns = [
        torch.cat([_in_colour(image), colours[None, :, :side, :side]])
        for image, colours in zip(middles, drawn, strict=True)
    ]
    picture = preview_grid(columns, [str(number) for number in range(1, len(columns) + 1)])
    with atomic_file(path) as file:
        picture.save(file, format="PNG")
    return path


def _middle(image: Tensor, side: int) -> Tensor:
    """Cut the middle square out of ``[C, H, W]``."""
    top, left = ((n - side) // 2 for n in image.shape[1:])
    return image[:, top : top + side, left : left + side].as_subclass(Tensor)


def _in_colour(image: Tensor) -> Tensor:
    """Return ``[1, C, H, W]`` with three channels; of other numbers, such as neighbouring slices, the middle one."""
    count = image.shape[1]
    return image if count == 3 else image[:, count // 2 : count // 2 + 1].expand(-1, 3, -1, -1)
