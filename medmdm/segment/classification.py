"""Labels of whole images from a few labelled ones: how much of them a frozen backbone's features tell."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmdm.artifacts.backbone import OpenBackbone
from medmdm.data.lists import image_name
from medmdm.data.reading import CaseReader, LoadedCase
from medmdm.data.selection import Selection
from medmdm.data.splits import default_rule
from medmdm.errors import UserError, counted, nearest
from medmdm.files import atomic_write, save_json, table_text
from medmdm.heads.image_classifier import METHODS, linear_scores, neighbour_scores, pooled_features
from medmdm.heads.task import Reading
from medmdm.metrics.classification import MEASURES, classification_scores
from medmdm.patients import patient_id
from medmdm.progress import followed
from medmdm.reports.pseudonyms import without_paths
from medmdm.reports.rendering import render
from medmdm.runs.record import cases_ledger, find_provenance
from medmdm.segment.grid import Grid
from medmdm.stats import bootstrap_interval, json_ready
from medmdm.stats.statistics import independent_units

logger = logging.getLogger(__name__)

CSV_FILE, JSON_FILE, PAGE_FILE = "classification.csv", "classification.json", "classification.md"


@dataclass(frozen=True)
class Classification:
    """Learn a column of the data list from a few images, and tell it of the test images.

    The folder receives ``classification.csv`` (a row per method, number of labelled images, draw and test image: what
    it is, what was said, the score of each class), ``classification.json`` and ``classification.md``: accuracy,
    balanced accuracy and AUC, each the mean over draws, with a bootstrap interval over patients, or over images where
    there are too few patients, and the standard deviation of the draws.

    Args:
        cases: training and test cases, whose masks are not looked at.
        backbone: whose features are pooled over each image.
        label: the column of the data list's entries.
        grid: numbers of labelled images and draws, the same as a study draws.
        methods: of :data:`medmdm.heads.image_classifier.METHODS`.
        rule: of the draws, ``"paper"`` or ``"seeded"``; None as in :class:`medmdm.segment.LabelledData`.
        section: that is tested.
        neighbours: that vote, for ``"knn"``.

    Raises:
        UserError: the section is empty or the one that is learnt from, a case has no such label, all have the same
            one, a method is unknown, or the paper's rule is asked for several draws.
    """

    cases: Selection
    backbone: OpenBackbone
    label: str
    grid: Grid
    methods: Sequence[str] = ("linear",)
    rule: str | None = None
    section: str = "test"
    neighbours: int = 5

    def __post_init__(self) -> None:
        known = self.cases.data_list
        if self.rule is None:
            object.__setattr__(self, "rule", default_rule(None if known is None else known.name))
        for method in self.methods:
            if method not in METHODS:
                raise UserError(f"the method {method!r} is unknown{nearest(method, METHODS)}: use linear or knn.")
        if self.neighbours < 1:
            raise UserError(f"neighbours is {self.neighbours}: give a whole number from 1.")
        if self.section == "training":
            raise UserError("section is 'training', which is learnt from: test on another one.")
        if not self.cases.training or not self._tested:
            missing = "training" if self._tested else self.section
            raise UserError(f"The data list has no {missing} image: image labels need some to learn and some to test.")
        if self.rule == "paper" and self.grid.draws > 1:
            raise UserError("The paper's rule gives one draw: set draws to 1, or the rule to seeded.")
        if len(self.classes) < 2:
            raise UserError(f"All images have the {self.label} {self.classes[0]!r}: there is nothing to tell apart.")
        list(self.grid.samples(len(self.cases.training)))  # refuses numbers that are too large

    @property
    def _tested(self) -> Sequence[Mapping[str, Any]]:
        return getattr(self.cases, self.section)

    @property
    def classes(self) -> list[str]:
        """The values of the column, in string order."""
        return sorted({self._value(entry) for entry in [*self.cases.training, *self._tested]})

    def _value(self, entry: Mapping[str, Any]) -> str:
        value = entry["columns"].get(self.label)
        if value is None or str(value).strip() == "":
            close = nearest(self.label, entry["columns"])
            has = ", ".join(entry["columns"]) or "none"
            raise UserError(f"{image_name(entry)} has no {self.label!r}{close}: the columns of its entry are {has}.")
        return str(value).strip()

    def run(self, folder: str | os.PathLike[str]) -> str:
        """Write the three files into a folder; return the page."""
        for sentence in self.cases.warnings:
            logger.warning(sentence)
        training, tested = self._read(self.cases.training), self._read(self._tested)
        names, patients = [str(e["case"]) for e in self._tested], [_patient(e) for e in self._tested]
        truth = np.array([self.classes.index(self._value(entry)) for entry in self._tested])
        by_patient = independent_units(np.zeros(len(names)), patients).name == "patients"
        units = np.unique(np.array(patients, str), return_inverse=True)[1] if by_patient else np.arange(len(names))
        rows, table, notes = list[dict[str, Any]](), list[dict[str, Any]](), list[str]()
        samples: dict[int, list[int]] = {}
        for shots, draw, _ in self.grid.samples(len(self.cases.training)):
            samples.setdefault(shots, []).append(draw)
        for shots, draws in samples.items():
            supports = [self.cases.subset(shots, str(self.rule), draw).training for draw in draws]
            notes += [note for draw, one in zip(draws, supports, strict=True) for note in self._lacking(one, draw)]
            for method in self.methods:
                scores = np.stack([self._scores(method, one, training[1], tested[1]) for one in supports])
                table += self._lines(method, shots, draws, scores, names, truth)
                rows.append({"method": method, "shots": shots, **_measured(scores, truth, units)})
        seen = find_provenance(tested[0], self.backbone.plan.get("ledger"), cases_ledger(training[0]))
        most = Counter(truth.tolist()).most_common(1)[0][0]
        always = classification_scores(np.eye(len(self.classes))[[most] * len(truth)], truth)
        there = [name for number, name in enumerate(self.classes) if number in truth]
        absent = [name for name in self.classes if name not in there]
        notes += [
            f"No test image has the {self.label} {name!r}: its recall and its AUC are not known." for name in absent
        ]
        summary = {
            "label": self.label,
            "classes": self.classes,
            "training": len(self.cases.training),
            "tested": len(names),
            "unit": "patients" if by_patient else "images",
            "rule": self.rule,
            "backbone": self.backbone.name or "without weights",
            "features": without_paths(dict(self.backbone.extractor.config)) if self.backbone.extractor else None,
            "tested_classes": there,
            "most_frequent": {"class": self.classes[most], **{name: float(always[name]) for name in MEASURES}},
            "stamp": {"kind": seen.kind, "sentence": seen.sentence},
            "rows": rows,
            "notes": list(dict.fromkeys(notes)),
        }
        summary = json_ready(summary)
        page = render("classification.md.j2", summary=summary)
        for note in summary["notes"]:
            logger.warning(note)
        atomic_write(Path(folder) / CSV_FILE, table_text(pd.DataFrame(table)))
        save_json(summary, Path(folder) / JSON_FILE)
        atomic_write(Path(folder) / PAGE_FILE, page)
        return page

    def _read(self, entries: Sequence[Mapping[str, Any]]) -> tuple[list[LoadedCase], dict[str, NDArray[np.float64]]]:
        """Return the cases, without their images, and the pooled features of each by its name."""
        plan, extractor = self.backbone.plan, self.backbone.extractor
        assert extractor is not None
        # Without the list: what its masks mean need not be known.
        reader = CaseReader(replace(self.cases, data_list=None), plan)
        reading = Reading(tuple(plan.get("crop_size") or (256, 256)))
        cases, features = list[LoadedCase](), dict[str, NDArray[np.float64]]()
        for entry in followed(entries, "reading images"):
            case = reader.read({key: value for key, value in entry.items() if key != "label"})
            features[case.name] = pooled_features(case, extractor, reading, self.backbone.device)
            cases.append(replace(case, examples=(), original=None))
        return cases, features

    def _scores(
        self,
        method: str,
        support: Sequence[Mapping[str, Any]],
        training: Mapping[str, NDArray[np.float64]],
        tested: Mapping[str, NDArray[np.float64]],
    ) -> NDArray[np.float64]:
        features = np.stack([training[str(entry["case"])] for entry in support])
        labels = [self.classes.index(self._value(entry)) for entry in support]
        others = np.stack([tested[str(entry["case"])] for entry in self._tested])
        if method == "knn":
            return neighbour_scores(features, labels, others, len(self.classes), self.neighbours)
        groups = [_patient(entry) or str(entry["case"]) for entry in support]
        return linear_scores(features, labels, groups, others, len(self.classes))

    def _lacking(self, support: Sequence[Mapping[str, Any]], draw: int) -> list[str]:
        there = {self._value(entry) for entry in support}
        images = counted(len(support), "labelled image")
        absent = [name for name in self.classes if name not in there]
        return [f"No {self.label} {name!r} among {images} of draw {draw}: it is never said there." for name in absent]

    def _lines(
        self,
        method: str,
        shots: int,
        draws: Sequence[int],
        scores: NDArray[np.float64],
        names: Sequence[str],
        truth: NDArray[np.int64],
    ) -> list[dict[str, Any]]:
        said = scores.argmax(-1)
        return [
            {
                **{"method": method, "shots": shots, "draw": draw, "case": name},
                **{"true": self.classes[truth[i]], "said": self.classes[said[d, i]]},
                **{f"score_{c}": _finite(score) for c, score in zip(self.classes, scores[d, i], strict=True)},
            }
            for d, draw in enumerate(draws)
            for i, name in enumerate(names)
        ]


def _finite(score: float) -> float:
    return float(score) if math.isfinite(score) else math.nan  # a class that no labelled image has


def _patient(entry: Mapping[str, Any]) -> str | None:
    return patient_id(entry.get("patient_id"))


def _measured(scores: NDArray[np.float64], truth: NDArray[np.int64], units: NDArray[np.int64]) -> dict[str, Any]:
    """Return the measures of a method: means over draws, their intervals over units, the spread of draws."""
    every = classification_scores(scores, truth)
    found: dict[str, Any] = {"draws": len(scores)}
    for name in MEASURES:

        def mean_over_draws(places: NDArray[np.int64], name: str = name) -> float:
            return float(np.mean(classification_scores(scores[:, places], truth[places])[name]))

        spread = float(np.std(every[name], ddof=1)) if len(scores) > 1 else math.nan
        interval = bootstrap_interval(mean_over_draws, units)
        found[name] = {"mean": float(np.mean(every[name])), "interval": interval, "draw_sd": spread}
    return found
