"""A round of self-training for closed-form heads: sums of unlabelled pixels that a first fit is sure of."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medmdm.backbones.extractor import Extractor
from medmdm.backbones.feature_maps import cut
from medmdm.data.reading import Example
from medmdm.errors import UserError
from medmdm.heads.left_out import LeftOut, choose_bias, image_dice
from medmdm.heads.pixel_sums import PixelSums, pixel_sums
from medmdm.heads.segmenter import Segmenter
from medmdm.heads.task import Task, views
from medmdm.labels import IGNORE

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SelfTraining:
    """Unlabelled images beside the labelled ones of a closed-form head: one round of self-training.

    A first fit to the labelled images says what the unlabelled ones hold; pixels that it is sure of are added with that
    label, and the head is fitted anew (Scudder 1965; Lee, pseudo-label, 2013). The same is done without each of the
    labelled images in turn: unless their Dice rises by more than its standard error, the first fit is kept, and the run
    says so.

    Args:
        threshold: probability, in [0, 1), from which it is sure of a pixel: of ridge regression the score itself, which
            estimates it, of linear discriminants the posterior.
        weight: of all these pixels together, as a multiple of the labelled ones.

    Raises:
        UserError: a number is out of range.
    """

    threshold: float = 0.8
    weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1 or self.weight <= 0:
            given = f"got {self.threshold} and {self.weight}"
            raise UserError(f"unlabelled: threshold must be in [0, 1) and weight above 0, {given}.")

    def sums(
        self, models: Sequence[Segmenter], folds: Sequence[PixelSums], task: Task, extractor: Extractor, method: str
    ) -> list[PixelSums]:
        """Return what each model is to be fitted to: the labelled pixels and those of which it is sure.

        Features of an image are read once for all models.

        Args:
            models: fitted to all labelled images, and to all but each fold in turn.
            folds: sums of what is left out together.
            task: with the unlabelled images.
            extractor: of features.
            method: of the head, which says what its scores mean.
        """
        total = PixelSums.total(folds)
        bases = [total, *(total - fold for fold in folds)][: len(models)]
        found: list[PixelSums | None] = [None] * len(models)
        reading = task.reading
        for image in task.unlabelled:
            blank = Example(image, torch.zeros(image.shape[1:], dtype=torch.long))
            for view in views(blank, reading.kind, reading.window, reading.overlap):
                maps = extractor(view.image[None].to(task.device))
                size = extractor.padded_size(view.image.shape[1:])
                for number, model in enumerate(models):
                    logits = cut(model.head(maps, size)[0], view.label.shape)[0].cpu()
                    label = torch.where(view.known, self.pseudo_label(logits, method), IGNORE)
                    if bool((label != IGNORE).any()):
                        part = pixel_sums(maps, label.to(task.device), task.num_classes, size)
                        part = PixelSums(part.gram.cpu(), part.products.cpu(), part.counts.cpu())
                        before = found[number]
                        found[number] = part if before is None else before + part
        return [self._joined(base, more) for base, more in zip(bases, found, strict=True)]

    def pseudo_label(self, logits: Tensor, method: str) -> Tensor:
        """Return the class of the pixels ``[*spatial]`` of which ``logits [K, *spatial]`` are sure, else ignored."""
        sure, label = (logits if method == "ridge" else logits.softmax(0)).max(0)
        return torch.where(sure >= self.threshold, label, IGNORE)

    def _joined(self, labelled: PixelSums, more: PixelSums | None) -> PixelSums:
        if more is None:
            return labelled
        scale = self.weight * labelled.counts.sum() / more.counts.sum()
        return labelled + PixelSums(more.gram * scale, more.products * scale, more.counts * scale)

    def judge(
        self, before: Sequence[LeftOut], after: Sequence[LeftOut], task: Task, choose_threshold: bool
    ) -> dict[str, Any]:
        """Say whether the unlabelled images help those that were left out, and so are kept.

        Args:
            before: what models said that were fitted to labelled images alone.
            after: what models said that were fitted to unlabelled ones too.
            task: number of classes, and the unlabelled images.
            choose_threshold: compare each at the threshold that suits it best.
        """
        record: dict[str, Any] = {"images": len(task.unlabelled), "kept": False}
        if not task.unlabelled:
            record["note"] = "there are no unlabelled images"
        elif not before:
            record["note"] = "there is one labelled image, so none can be left out to see whether unlabelled ones help"
        else:
            each = []
            for left_out in (before, after):
                bias = torch.zeros(task.num_classes)
                if choose_threshold:
                    bias = choose_bias(left_out, task.num_classes)[0]
                each.append(image_dice(left_out, bias))
            gain = (each[1] - each[0])[np.isfinite(each[1] - each[0])]
            error = float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else 0.0
            dice = [float(np.nanmean(one)) if np.isfinite(one).any() else 0.0 for one in each]
            record |= {"left_out_dice": dice, "standard_error": error}
            record["kept"] = bool(len(gain) and gain.mean() > error)
            logger.info("self-training: left-out Dice %.4f with unlabelled images, %.4f without", dice[1], dice[0])
            if not record["kept"]:
                record["note"] = "the unlabelled images did not help the labelled ones that were left out"
        if "note" in record:
            logger.warning("%s: the head is fitted to the labelled images alone", record["note"])
        return record
