"""Fit a closed-form head, choosing ridge, blocks and timesteps on the labelled support alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from medmdm.backbones.cache import CachedExtractor
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.data.reading import Example
from medmdm.errors import UserError
from medmdm.hashing import tensor_hash
from medmdm.heads.classifier_network import LinearClassifier
from medmdm.heads.pixel_sums import PixelSums, check_method, fit_linear, left_out_errors, pixel_sums
from medmdm.heads.segmenter import Segmenter
from medmdm.heads.task import Fitted, Task
from medmdm.heads.views import views
from medmdm.labels import IGNORE

__all__ = ["ClosedFormHead"]


class ClosedFormHead:
    """Ridge regression or linear discriminants on the features: no epochs, no seeds.

    Images are read in the views that predictions are made in; where windows overlap, a pixel counts once in each of
    them. The sums of an image are kept as features are (24 MB an image for the paper's 1728 channels), so that a
    second fit with other images of the same set, as in a study, costs a linear solve.

    Args:
        method: ``"ridge"`` or ``"lda"``, see :func:`medmdm.heads.fit_linear`.
        ridges: compared by leaving one labelled image (or volume) out; with a single one the largest is taken.
        choices: sets of the extractor's features to compare in the same way, each ``{"blocks": [...], "timesteps":
            [...]}``; None for all features that the extractor gives. With a single image the first is taken.
        standardize: give every channel unit variance first.
        most_folds: with more images, as many groups of them are left out in turn.

    Raises:
        UserError: an argument is out of range.
    """

    needs_backbone = True

    def __init__(
        self,
        method: str = "lda",
        ridges: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        choices: Sequence[Mapping[str, Sequence[int]]] | None = None,
        standardize: bool = True,
        most_folds: int = 10,
    ) -> None:
        check_method(method, ridges)
        if most_folds < 2:
            raise UserError(f"most_folds must be at least 2, got {most_folds}.")
        self.method = method
        self.ridges = list(ridges)
        self.choices = choices
        self.standardize = standardize
        self.most_folds = most_folds

    def fit(self, task: Task, extractor: CachedExtractor | FeatureExtractor | None) -> Fitted:
        """Fit to the labelled images; see :class:`medmdm.heads.task.Fitter`."""
        assert extractor is not None
        return self.fit_sums(self._folds(task, extractor), task, extractor)

    def fit_sums(self, folds: Sequence[PixelSums], task: Task, extractor: CachedExtractor | FeatureExtractor) -> Fitted:
        """Fit to the sums (:meth:`sums`) of what is left out together; all of them are then fitted to."""
        choices = self._choices(extractor)
        tried = []
        for choice, channels in choices:
            parts = [fold.select(channels) for fold in folds]
            errors = left_out_errors(parts, self.ridges, self.standardize).tolist() if len(parts) > 1 else None
            for i, ridge in enumerate(self.ridges):
                tried.append({**choice, "ridge": ridge, "left_out_error": None if errors is None else errors[i]})
        best = min(range(len(tried)), key=lambda i: (tried[i]["left_out_error"] or 0.0, -tried[i]["ridge"]))
        channels = choices[best // len(self.ridges)][1]
        small = fit_linear(PixelSums.total(folds).select(channels), tried[best]["ridge"], self.method, self.standardize)
        weight = torch.zeros(task.num_classes, extractor.num_features)
        weight[:, channels] = small.weight
        head = LinearClassifier(weight, small.bias).to(task.device)
        evidence = {"chosen": tried[best], "tried": tried, "left_out_in_turn": len(folds)}
        return Fitted(Segmenter(extractor, head), evidence)  # type: ignore[arg-type]

    def _folds(self, task: Task, extractor: CachedExtractor | FeatureExtractor) -> list[PixelSums]:
        """Return the sums of what is left out together; the images' own sums need not be in memory at once."""
        groups: dict[str, list[Example]] = {}
        for number, example in enumerate(task.examples):
            if bool((example.label != IGNORE).any()):
                groups.setdefault(example.group or f"image {number}", []).append(example)
        if not groups:
            raise UserError("There is no labelled pixel to fit a head to: check the labels and the ignore value.")
        names = list(groups)
        return [
            PixelSums.total(
                self.sums(e, task, extractor) for name in names[fold :: self.most_folds] for e in groups[name]
            )
            for fold in range(min(self.most_folds, len(names)))
        ]

    def sums(self, example: Example, task: Task, extractor: CachedExtractor | FeatureExtractor) -> PixelSums:
        """Return the sums of one image over the views that predictions will be made in."""
        reading = task.reading

        def compute() -> dict[str, Tensor]:
            parts = []
            for view in views(example, reading.kind, reading.window, reading.overlap):
                maps = extractor(view.image[None].to(task.device))
                size = extractor.padded_size(view.image.shape[1:])
                parts.append(pixel_sums(maps, view.label.to(task.device), task.num_classes, size))
            total = PixelSums.total(parts)
            return {"gram": total.gram.cpu(), "products": total.products.cpu(), "counts": total.counts.cpu()}

        if not isinstance(extractor, CachedExtractor):
            return PixelSums(**compute())
        read = "whole" if reading.whole else f"{reading.window} {reading.overlap}"
        settings = f"sums {extractor.config['normalize']} {task.num_classes} {read}"
        content = tensor_hash(example.image, example.label)
        name = hashlib.sha256(f"{settings} {content}".encode()).hexdigest()
        return PixelSums(**extractor.remembered(name, compute))

    def _choices(self, extractor: Any) -> list[tuple[dict[str, Any], Tensor]]:
        """Return each choice and the channels that it stands for."""
        info = extractor.feature_info
        ends = torch.tensor([i["channels"] for i in info]).cumsum(0).tolist()
        spans = [torch.arange(end - i["channels"], end) for end, i in zip(ends, info, strict=True)]
        everything = {"blocks": sorted({i["block"] for i in info}), "timesteps": sorted({i["timestep"] for i in info})}
        result = []
        for choice in self.choices or [everything]:
            wrong = [key for key in choice if key not in everything]
            if wrong:
                raise UserError(f"A choice is made of 'blocks' and 'timesteps', got {wrong[0]!r}.")
            wanted = {**everything, **choice}
            unknown = [key for key in everything if not wanted[key] or not set(wanted[key]) <= set(everything[key])]
            if unknown:
                raise UserError(
                    f"choices asks for {unknown[0]} {list(wanted[unknown[0]])}, but features are extracted at "
                    f"{everything[unknown[0]]}: add them to {unknown[0]}."
                )
            channels = [
                span
                for span, i in zip(spans, info, strict=True)
                if i["block"] in wanted["blocks"] and i["timestep"] in wanted["timesteps"]
            ]
            result.append(({k: list(wanted[k]) for k in ("blocks", "timesteps")}, torch.cat(channels)))
        return result
