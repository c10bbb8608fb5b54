"""What a head says of labelled images that it was fitted without, and what follows for its threshold."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medmdm.data.reading import Example
from medmdm.heads.predictor import Predictor
from medmdm.heads.task import Task

logger = logging.getLogger(__name__)

_MOST_PIXELS = 50_000  # of an image; more, evenly spaced, would change no decision
_LEVELS = np.linspace(0.01, 0.99, 49)


@dataclass(frozen=True)
class LeftOut:
    """A labelled image as a head sees it that was fitted without it.

    Args:
        scores: of its labelled pixels, ``[K, N]``: the largest wins.
        label: class numbers, ``[N]``.
    """

    scores: Tensor
    label: Tensor


def read_left_out(models: Sequence[nn.Module], parts: Sequence[Sequence[Example]], task: Task) -> list[LeftOut]:
    """Return what each model says of the images that were left out of it; slices of a volume are one image.

    Args:
        models: image → logits; none where nothing can be left out.
        parts: what was left out of each.
        task: reading and device.
    """
    found: list[LeftOut] = []
    for model, part in zip(models, parts, strict=False):
        predictor = Predictor(model, task.reading, device=task.device)
        groups: dict[str, list[LeftOut]] = {}
        for number, example in enumerate(part):
            scores, label = predictor.image(example.image)[:, example.known], example.label[example.known]
            step = -(-len(label) // _MOST_PIXELS)
            groups.setdefault(example.group or str(number), []).append(LeftOut(scores[:, ::step], label[::step]))
        for same in groups.values():
            found.append(LeftOut(torch.cat([o.scores for o in same], 1), torch.cat([o.label for o in same])))
    return found


def image_dice(left_out: Sequence[LeftOut], bias: Tensor) -> NDArray[np.float64]:
    """Return the mean Dice of each image over the classes but 0 that label or mask hold, NaN where they hold none.

    Args:
        left_out: the images.
        bias: added to the scores, ``[K]``.
    """
    each = []
    for one in left_out:
        said = (one.scores + bias[:, None]).argmax(0)
        dice = []
        for k in range(1, len(bias)):
            size = int((said == k).sum() + (one.label == k).sum())
            dice += [2 * int(((said == k) & (one.label == k)).sum()) / size] if size else []
        each.append(float(np.mean(dice)) if dice else float("nan"))
    return np.array(each)


def mean_dice(left_out: Sequence[LeftOut], bias: Tensor) -> float:
    """Return the mean of :func:`image_dice` over images, 0 where none has any."""
    each = image_dice(left_out, bias)
    return float(np.nanmean(each)) if np.isfinite(each).any() else 0.0


def choose_bias(left_out: Sequence[LeftOut], num_classes: int) -> tuple[Tensor, dict[str, Any]]:
    """Choose what is added to the scores of each class, by the Dice of images that were left out.

    Class 0 keeps its scores. For each other class the values at which a share of pixels, 1 % to 99 %, changes to it are
    tried, and leaving it; of several classes one after the other, twice. Of equal ones the smallest is taken.

    Args:
        left_out: from :func:`read_left_out`; none leaves everything as it is.
        num_classes: K.

    Returns:
        The bias ``[K]`` and what to record: it, of two classes the ``probability`` from which on a pixel is foreground,
        and the Dice of the left-out images without and with it.
    """
    bias = torch.zeros(num_classes)
    if not left_out:
        note = "there is one labelled image, so none can be left out to choose a threshold: it stays 0.5"
        logger.warning(note)
        return bias, {"bias": bias.tolist(), **({"probability": 0.5} if num_classes == 2 else {}), "note": note}
    before = best = mean_dice(left_out, bias)
    for _ in range(1 if num_classes == 2 else 2):
        for k in range(1, num_classes):
            others = [c for c in range(num_classes) if c != k]
            needed = [(o.scores[others] + bias[others, None]).amax(0) - o.scores[k] for o in left_out]
            levels = np.mean([np.quantile(n.double().numpy(), _LEVELS) for n in needed if len(n)], axis=0)
            for value in sorted({*levels.tolist(), 0.0}, key=abs):
                tried = bias.clone()
                tried[k] = value
                score = mean_dice(left_out, tried)
                if score > best:
                    best, bias = score, tried
    record: dict[str, Any] = {"bias": bias.tolist(), "left_out_dice": [before, best], "images": len(left_out)}
    if num_classes == 2:
        record["probability"] = float(torch.sigmoid(-bias[1]))
    logger.info("threshold: left-out Dice %.4f with %s instead of %.4f", best, record.get("probability", "it"), before)
    return bias, record
