"""Fit a closed-form head, choosing ridge, blocks and timesteps on the labelled support alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medmdm.backbones.extractor import Extractor
from medmdm.components import LATER
from medmdm.data.reading import Example
from medmdm.errors import UserError
from medmdm.files import tensor_hash, text_hash
from medmdm.heads.classifier_network import LinearClassifier
from medmdm.heads.left_out import choose_bias, read_left_out
from medmdm.heads.pixel_sums import PixelSums, check_method, fit_linear, left_out_errors, pixel_sums
from medmdm.heads.segmenter import Segmenter
from medmdm.heads.self_training import SelfTraining
from medmdm.heads.task import Fitted, Task, labelled, views
from medmdm.progress import followed


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
        choose_threshold: choose from which probability on a pixel is foreground (with several classes: a bias for each)
            by the Dice of the labelled images, each left out in turn; see :func:`medmdm.heads.left_out.choose_bias`.
            With a single one it stays 0.5. The bias becomes part of the head.
        unlabelled: how unlabelled images are used; None leaves them alone.

    Raises:
        UserError: an argument is out of range.
    """

    method: str = "lda"
    ridges: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    choices: Sequence[Mapping[str, Sequence[int]]] | None = None
    standardize: bool = True
    most_folds: int = 10
    choose_threshold: bool = field(default=False, metadata={LATER: True})
    unlabelled: SelfTraining | None = field(default=None, metadata={LATER: True})

    needs_backbone = True

    def __post_init__(self) -> None:
        check_method(self.method, self.ridges)
        if self.most_folds < 2:
            raise UserError(f"most_folds must be at least 2, got {self.most_folds}.")
        if not isinstance(self.choose_threshold, bool):
            raise UserError(f"choose_threshold must be true or false, got {self.choose_threshold!r}.")
        self.ridges = tuple(self.ridges)

    @property
    def uses_unlabelled(self) -> bool:
        """Whether a fit looks at unlabelled images."""
        return self.unlabelled is not None

    def fit(self, task: Task, extractor: Extractor | None) -> Fitted:
        """Fit to the labelled images; see :class:`medmdm.heads.task.Fitter`."""
        assert extractor is not None
        parts = self._parts(task)
        reading = followed((e for part in parts for e in part), "reading features of images", sum(map(len, parts)))
        # The images' own sums need not be in memory at once.
        folds = [PixelSums.total(self.sums(next(reading), task, extractor) for _ in part) for part in parts]
        fitted = self.fit_sums(folds, task, extractor)
        if not self.choose_threshold and self.unlabelled is None:
            return fitted
        chosen, evidence = fitted.evidence["chosen"], dict(fitted.evidence)
        total = PixelSums.total(folds)
        parts = parts if len(folds) > 1 else []  # of a single image nothing can be left out
        models = [self.solve(total, chosen, task, extractor)]
        models += [self.solve(total - fold, chosen, task, extractor) for fold, _ in zip(folds, parts, strict=False)]
        left_out = read_left_out(models[1:], parts, task)
        if self.unlabelled is not None:
            taught = self.unlabelled.sums(models, folds, task, extractor, self.method)
            again = [self.solve(sums, chosen, task, extractor) for sums in taught]
            others = read_left_out(again[1:], parts, task)
            evidence["unlabelled"] = self.unlabelled.judge(left_out, others, task, self.choose_threshold)
            if evidence["unlabelled"]["kept"]:
                left_out, models = others, again
        head = models[0].head
        assert isinstance(head, LinearClassifier)
        if self.choose_threshold:
            bias, evidence["threshold"] = choose_bias(left_out, task.num_classes)
            head.bias += bias.to(head.bias)
        return Fitted(models[0], evidence)

    def fit_sums(self, folds: Sequence[PixelSums], task: Task, extractor: Extractor) -> Fitted:
        """Fit to the sums (:meth:`sums`) of what is left out together; all of them are then fitted to."""
        tried = []
        for choice, channels in self._choices(extractor, self.choices):
            parts = [fold.select(channels) for fold in folds]
            errors: list[float | None] = [None] * len(self.ridges)
            if len(parts) > 1:
                errors = left_out_errors(parts, self.ridges, self.standardize).tolist()
            tried += [{**choice, "ridge": r, "left_out_error": e} for r, e in zip(self.ridges, errors, strict=True)]
        chosen = min(tried, key=lambda row: (row["left_out_error"] or 0.0, -row["ridge"]))
        model = self.solve(PixelSums.total(folds), chosen, task, extractor)
        return Fitted(model, {"chosen": chosen, "tried": tried, "left_out_in_turn": len(folds)})

    def solve(self, sums: PixelSums, chosen: Mapping[str, Any], task: Task, extractor: Extractor) -> Segmenter:
        """Return the segmenter of some sums with a ridge, blocks and timesteps that were chosen."""
        choice = {key: chosen[key] for key in ("blocks", "timesteps")}
        ((_, channels),) = self._choices(extractor, [choice])
        small = fit_linear(sums.select(channels), chosen["ridge"], self.method, self.standardize)
        weight = torch.zeros(task.num_classes, extractor.num_features)
        weight[:, channels] = small.weight
        classifier = LinearClassifier(weight, small.bias).to(task.device)
        return Segmenter(extractor, classifier, undeclared=task.undeclared)

    def _parts(self, task: Task) -> list[list[Example]]:
        """Return what is left out together."""
        groups: dict[str, list[Example]] = {}
        for number, example in enumerate(labelled(task.examples)):
            groups.setdefault(example.group or f"image {number}", []).append(example)
        names, most = list(groups), self.most_folds
        return [[e for name in names[fold::most] for e in groups[name]] for fold in range(min(most, len(names)))]

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

    def _choices(
        self, extractor: Extractor, choices: Sequence[Mapping[str, Sequence[int]]] | None
    ) -> list[tuple[dict[str, Any], Tensor]]:
        """Return each choice and the channels that it stands for."""
        info = extractor.feature_info
        spans = torch.arange(extractor.num_features).split([i["channels"] for i in info])
        everything = {"blocks": sorted({i["block"] for i in info}), "timesteps": sorted({i["timestep"] for i in info})}
        result = []
        for choice in choices or [everything]:
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
