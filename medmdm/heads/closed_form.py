"""Fit a closed-form head, choosing ridge, blocks and timesteps on the labelled support alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medmdm.backbones.extractor import Extractor
from medmdm.data.reading import Example
from medmdm.errors import UserError
from medmdm.files import tensor_hash, text_hash
from medmdm.heads.classifier_network import LinearClassifier
from medmdm.heads.pixel_sums import PixelSums, check_method, fit_linear, left_out_errors, pixel_sums
from medmdm.heads.segmenter import Segmenter
from medmdm.heads.task import Fitted, Task, labelled, views
from medmdm.progress import Progress


@dataclass
class ClosedFormHead:
    """Ridge regression or linear discriminants on the features: no epochs, no seeds.

    Images are read in the views that predictions are made in; where windows overlap, a pixel counts once in each. The
    sums of an image are kept as features are (24 MB for the paper's 1728 channels), so that a second fit with other
    images of the same set costs a linear solve.

    Args:
        method: ``"ridge"`` or ``"lda"``, see :func:`medmdm.heads.pixel_sums.fit_linear`.
        ridges: compared by leaving one labelled image (or volume) out; with a single one the largest is taken.
        choices: sets of the extractor's features to compare in the same way, each ``{"blocks": [...], "timesteps":
            [...]}``; None for all features that the extractor gives. With a single image the first is taken.
        standardize: give every channel unit variance first.
        most_folds: with more images, as many groups of them are left out in turn.

    Raises:
        UserError: an argument is out of range.
    """

    method: str = "lda"
    ridges: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    choices: Sequence[Mapping[str, Sequence[int]]] | None = None
    standardize: bool = True
    most_folds: int = 10

    needs_backbone = True

    def __post_init__(self) -> None:
        check_method(self.method, self.ridges)
        if self.most_folds < 2:
            raise UserError(f"most_folds must be at least 2, got {self.most_folds}.")
        self.ridges = tuple(self.ridges)

    def fit(self, task: Task, extractor: Extractor | None) -> Fitted:
        """Fit to the labelled images; see :class:`medmdm.heads.task.Fitter`."""
        assert extractor is not None
        return self.fit_sums(self._folds(task, extractor), task, extractor)

    def fit_sums(self, folds: Sequence[PixelSums], task: Task, extractor: Extractor) -> Fitted:
        """Fit to the sums (:meth:`sums`) of what is left out together; all of them are then fitted to."""
        choices = self._choices(extractor)
        tried = []
        for choice, channels in choices:
            parts = [fold.select(channels) for fold in folds]
            errors: list[float | None] = [None] * len(self.ridges)
            if len(parts) > 1:
                errors = left_out_errors(parts, self.ridges, self.standardize).tolist()
            tried += [{**choice, "ridge": r, "left_out_error": e} for r, e in zip(self.ridges, errors, strict=True)]
        best = min(range(len(tried)), key=lambda i: (tried[i]["left_out_error"] or 0.0, -tried[i]["ridge"]))
        channels = choices[best // len(self.ridges)][1]
        small = fit_linear(PixelSums.total(folds).select(channels), tried[best]["ridge"], self.method, self.standardize)
        weight = torch.zeros(task.num_classes, extractor.num_features)
        weight[:, channels] = small.weight
        model = Segmenter(extractor, LinearClassifier(weight, small.bias).to(task.device))
        return Fitted(model, {"chosen": tried[best], "tried": tried, "left_out_in_turn": len(folds)})

    def _folds(self, task: Task, extractor: Extractor) -> list[PixelSums]:
        """Return the sums of what is left out together; the images' own sums need not be in memory at once."""
        groups: dict[str, list[Example]] = {}
        for number, example in enumerate(labelled(task.examples)):
            groups.setdefault(example.group or f"image {number}", []).append(example)
        names, most = list(groups), self.most_folds
        parts = [[e for name in names[fold::most] for e in groups[name]] for fold in range(min(most, len(names)))]
        reading = Progress("reading features of images", sum(map(len, parts)))

        def sums(example: Example) -> PixelSums:
            found = self.sums(example, task, extractor)
            reading.tick()
            return found

        return [PixelSums.total(map(sums, part)) for part in parts]

    def sums(self, example: Example, task: Task, extractor: Extractor) -> PixelSums:
        """Return the sums of one image over the views that predictions will be made in."""
        reading = task.reading

        def compute() -> dict[str, Tensor]:
            parts = []
            for view in views(example, reading.kind, reading.window, reading.overlap):
                maps = extractor(view.image[None].to(task.device))
                size = extractor.padded_size(view.image.shape[1:])
                parts.append(pixel_sums(maps, view.label.to(task.device), task.num_classes, size))
            return {name: value.cpu() for name, value in vars(PixelSums.total(parts)).items()}

        read = "whole" if reading.whole else f"{reading.window} {reading.overlap}"
        settings = f"sums {extractor.config['normalize']} {task.num_classes} {read}"
        name = text_hash(f"{settings} {tensor_hash(example.image, example.label)}")
        return PixelSums(**extractor.remembered(name, compute))

    def _choices(self, extractor: Extractor) -> list[tuple[dict[str, Any], Tensor]]:
        """Return each choice and the channels that it stands for."""
        info = extractor.feature_info
        spans = torch.arange(extractor.num_features).split([i["channels"] for i in info])
        everything = {"blocks": sorted({i["block"] for i in info}), "timesteps": sorted({i["timestep"] for i in info})}
        result = []
        for choice in self.choices or [everything]:
            wrong = [key for key in choice if key not in everything]
            if wrong:
                raise UserError(f"A choice is made of 'blocks' and 'timesteps', got {wrong[0]!r}.")
            wanted = {key: list(choice.get(key, known)) for key, known in everything.items()}
            for key, known in everything.items():
                if not wanted[key] or not set(wanted[key]) <= set(known):
                    asked = f"choices asks for {key} {wanted[key]}, but features are extracted at {known}"
                    raise UserError(f"{asked}: add them to {key}.")
            taken = [i["block"] in wanted["blocks"] and i["timestep"] in wanted["timesteps"] for i in info]
            result.append((wanted, torch.cat([span for span, t in zip(spans, taken, strict=True) if t])))
        return result
