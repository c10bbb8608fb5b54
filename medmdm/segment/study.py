"""A grid of backbones, heads, numbers of labelled images, draws of them and seeds: the tables of papers."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from medmdm.artifacts.backbone import PREPROCESSING, OpenBackbone
from medmdm.data.cases import Cases
from medmdm.data.reading import CaseReader, LoadedCase, content_hash, data_hash
from medmdm.errors import UserError, nearest
from medmdm.files import atomic_write, save_json
from medmdm.heads.prediction import Predictor
from medmdm.heads.task import Fitter, Task, check_normalize, check_windows
from medmdm.heads.views import view_sizes
from medmdm.metrics.pixels import mean_scores
from medmdm.reports.study import study_table
from medmdm.runs.folder import RunFolder
from medmdm.runs.provenance import ledger_stamp, support_ledger
from medmdm.runs.record import Provenance

__all__ = ["Study"]

logger = logging.getLogger(__name__)

NO_BACKBONE = "none"


@dataclass(frozen=True)
class Cell:
    """One fit of a study and its scores on the test cases."""

    backbone: str
    head: str
    shots: int
    draw: int
    seed: int

    @property
    def name(self) -> str:
        """Its file name."""
        words = f"{self.backbone}__{self.head}__k{self.shots}__draw{self.draw}__seed{self.seed}"
        return "".join(c if c.isalnum() or c in "_-." else "-" for c in words)


class Study:
    """Fit and test every cell of a grid; each finished cell is a file and is never computed again.

    The run folder receives ``cells/*.json``, ``study.csv`` (a row for each test case and cell: backbone, head, shots,
    draw, seed, case, dice, iou), ``study.json`` (settings, stamps, the table as numbers) and ``study.md``.

    Args:
        run_dir: the run folder.
        cases: training and test cases.
        backbones: by name; :func:`medmdm.artifacts.open_backbone` makes them.
        heads: by name; each is tried on every backbone, one that needs none only once.
        heads_config: their configs by the same names: a cell whose head has another config now is computed again.
        config: merged config of the run.
        postprocess: probabilities → masks, before scoring.
        postprocess_config: its config.
        shots: numbers of labelled training images; null stands for all of them.
        draws: how many seeded subsets of each number; all images are one draw.
        seeds: of the fits.
        only: restrict a head to some backbones, ``{head: [backbone, ...]}``.
        rule: ``"seeded"``, or ``"paper"`` for the paper's one draw.
        window: as the next three, see :class:`medmdm.segment.Segmentation`.
        whole: read images whole.
        overlap: of windows.
        section: to test on.
        reference: (backbone, head) that all others are compared with, paired by test case; None for no comparison.
        slice_cache: folder of decoded volumes.
        device: where to compute.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        cases: Cases,
        backbones: Mapping[str, OpenBackbone],
        heads: Mapping[str, Fitter],
        heads_config: Mapping[str, Any],
        config: Mapping[str, Any],
        postprocess: Any,
        postprocess_config: Mapping[str, Any] | None = None,
        shots: Sequence[int | None] = (8, None),
        draws: int = 10,
        seeds: Sequence[int] = (0,),
        only: Mapping[str, Sequence[str]] | None = None,
        rule: str = "seeded",
        window: Sequence[int] | None = None,
        whole: bool = False,
        overlap: float = 0.2,
        section: str = "test",
        reference: Sequence[str] | None = None,
        slice_cache: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.folder = Path(run_dir)
        self.cases = cases
        self.backbones = dict(backbones)
        self.heads = dict(heads)
        self.heads_config = heads_config
        self.config = dict(config)
        self.postprocess = postprocess
        self.postprocess_config = postprocess_config
        self.shots = list(dict.fromkeys(len(cases.training) if n is None else n for n in shots))
        self.draws = draws
        self.seeds = list(dict.fromkeys(seeds))
        self.only = {head: list(names) for head, names in (only or {}).items()}
        self.rule = rule
        first = next(iter(self.backbones.values()))
        self.preprocessing = _preprocessing(first.plan)
        self.window = check_windows(window or first.plan.get("crop_size") or (256, 256), overlap)
        self.whole = whole
        self.overlap = overlap
        self.section = section
        self.reference = None if reference is None else tuple(reference)
        self.slice_cache = slice_cache
        self.device = torch.device(device)
        self._check()

    def _check(self) -> None:
        for head, names in self.only.items():
            for name, known in ((head, list(self.heads)), *((n, list(self.backbones)) for n in names)):
                if name not in known:
                    raise UserError(f"only names {name!r}, which the study does not have{nearest(name, known)}.")
        if NO_BACKBONE in self.backbones:
            raise UserError(f"backbones#{NO_BACKBONE}: that name stands for networks from scratch, choose another.")
        for name, backbone in self.backbones.items():
            if backbone.extractor is not None:
                check_normalize(backbone.extractor, self.whole)
            other = _preprocessing(backbone.plan)
            differs = [key for key in other if other[key] != self.preprocessing[key]]
            if differs:
                key, first = differs[0], next(iter(self.backbones))
                raise UserError(
                    f"backbones#{name} was trained with {key} {other[key]}, {first} with {self.preprocessing[key]}, "
                    f"but a study reads images once: leave one out, or set backbones#{name}#preprocessing#{key}."
                )
        if any(not isinstance(seed, int) or seed < 0 for seed in self.seeds):
            raise UserError(f"seeds must be whole numbers of 0 or more, got {self.seeds}.")
        wrong = [n for n in self.shots if not isinstance(n, int) or not 1 <= n <= len(self.cases.training)]
        if wrong:
            raise UserError(f"shots asks for {wrong[0]} images, but there are {len(self.cases.training)} to train on.")
        if self.draws < 1 or not self.seeds:
            raise UserError("A study needs one draw and one seed at least.")
        if self.rule == "paper" and self.draws > 1:
            raise UserError("The paper's rule gives one draw: set draws to 1, or subset_rule to 'seeded'.")
        if not getattr(self.cases, self.section, None):
            raise UserError(f"There is no {self.section} case to test on.")
        files: dict[str, Cell] = {}
        for cell in self.cells():
            first_of_name = files.setdefault(cell.name, cell)
            if first_of_name != cell:
                both = " and ".join(f"{c.backbone} / {c.head}" for c in (first_of_name, cell))
                raise UserError(f"{both} would have one file: give them names that differ in letters or digits.")
        rows = {(cell.backbone, cell.head) for cell in files.values()}
        if self.reference is not None and self.reference not in rows:
            raise UserError(f"reference {list(self.reference)} is not in the study: it has {sorted(rows)}.")

    def cells(self) -> Iterator[Cell]:
        """Yield all cells: those of one backbone together."""
        for backbone, opened in [*self.backbones.items(), (NO_BACKBONE, None)]:
            for head, fitter in self.heads.items():
                if fitter.needs_backbone != (opened is not None):
                    continue
                if opened is not None and opened.extractor is None:  # it only says how images are read
                    continue
                if opened is not None and backbone not in self.only.get(head, self.backbones):
                    continue
                for shots in self.shots:
                    draws = 1 if shots == len(self.cases.training) else self.draws
                    for draw in range(draws):
                        for seed in self.seeds:
                            yield Cell(backbone, head, shots, draw, seed)

    def run(self) -> pd.DataFrame:
        """Compute what is missing and write the tables; return the rows."""
        for sentence in (*self.cases.sentences, *self.cases.warnings):
            logger.info(sentence)
        first = next(iter(self.backbones.values()))
        reader = CaseReader(self.cases, first.plan, self.slice_cache)
        training = {str(e["case"]): reader.read(e) for e in self.cases.training}
        tested = list(reader.read_all(getattr(self.cases, self.section)))
        identity = data_hash(training=list(training.values()), **{self.section: tested})
        data = {"hash": identity, "cases": len(training), self.section: len(tested)}
        (self.folder / "cells").mkdir(parents=True, exist_ok=True)
        # What changes from session to session is checked cell by cell, so that a study can grow.
        record = RunFolder(self.folder, {"bundle": self.config.get("bundle")}, {}, data, 0)
        record.open()
        for name, backbone in self.backbones.items():
            if backbone.extractor is not None:
                sizes = view_sizes([*training.values(), *tested], self.whole, self.window, self.overlap)
                logger.info("%s: %s", name, backbone.extractor.announce(sizes))
        cells = list(self.cells())
        contents = {case.name: content_hash(case) for case in [*training.values(), *tested]}
        tested_contents = [[case.name, contents[case.name]] for case in tested]
        supports, keys, found = [], [], []
        for cell in cells:
            drawn = self.cases.subset(cell.shots, self.rule, cell.draw).training
            support = [training[str(entry["case"])] for entry in drawn]
            supports.append(support)
            keys.append(self._key(cell, [[case.name, contents[case.name]] for case in support], tested_contents))
            found.append(_finished(self._path(cell), keys[-1]))
        logger.info("%d cells, %d of them finished before", len(cells), sum(one is not None for one in found))
        rows: list[dict[str, Any]] = []
        every = zip(cells, supports, keys, found, strict=True)
        for number, (cell, support, key, content) in enumerate(every, start=1):
            if content is None:
                content = self._compute(cell, key, support, tested)
                save_json(content, self._path(cell))
                dice = np.nanmean([_number(row["dice"]) for row in content["rows"]])
                logger.info(
                    "cell %d of %d, %s: Dice %.4f, %.1f s", number, len(cells), cell.name, dice, content["seconds"]
                )
            rows += [{**_columns(cell), **row} for row in content["rows"]]
        table = pd.DataFrame(rows)
        atomic_write(self.folder / "study.csv", table.to_csv(index=False))
        labelled = support_ledger(list(training.values()))
        stamps = {
            name: ledger_stamp(tested, backbone.plan.get("ledger"), labelled)
            for name, backbone in self.backbones.items()
        }
        patients = {case.name: case.entry.get("patient_id") for case in tested}
        seen = {
            name: Provenance(one["kind"], tuple(one["overlapping"]), one["sentence"]) for name, one in stamps.items()
        }
        summary, page = study_table(table, patients, seen, self.reference)
        save_json({"settings": self.config, "stamps": stamps, "table": summary}, self.folder / "study.json")
        atomic_write(self.folder / "study.md", page)
        record.finish(0)
        print(page)
        return table

    def _path(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.name}.json"

    def _compute(
        self, cell: Cell, key: str, support: Sequence[LoadedCase], tested: Sequence[LoadedCase]
    ) -> dict[str, Any]:
        examples = [example for case in support for example in case.examples]
        task = Task(examples, self.cases.num_classes, self.window, self.whole, self.overlap, cell.seed, self.device)
        extractor = None if cell.backbone == NO_BACKBONE else self.backbones[cell.backbone].extractor
        started = time.perf_counter()
        fitted = self.heads[cell.head].fit(task, extractor)
        seconds = time.perf_counter() - started
        predictor = Predictor(fitted.model, self.window, self.whole, self.overlap, device=self.device)
        rows = []
        for case in tested:
            mask = self.postprocess(predictor.case(case).probabilities, case.spacing)["mask"]
            assert case.truth is not None
            scores = mean_scores(mask, case.truth, self.cases.num_classes, self.cases.ignore)
            rows.append({"case": case.name, **{name: _json_number(value) for name, value in scores.items()}})
        return {
            "key": key,
            "cell": _columns(cell),
            "support": [case.name for case in support],
            "seconds": round(seconds, 3),
            "evidence": fitted.evidence,
            "rows": rows,
        }

    def _key(self, cell: Cell, support: Sequence[Any], tested: Sequence[Any]) -> str:
        """A hash of all that a cell's numbers depend on."""
        backbone = self.backbones.get(cell.backbone)
        extractor = None if backbone is None else backbone.extractor
        content = {
            "cell": _columns(cell),
            "support": support,
            "tested": tested,
            "classes": self.cases.num_classes,
            "head": self.heads_config.get(cell.head),
            "postprocess": self.postprocess_config,
            "features": None if extractor is None else [extractor.key, dict(extractor.config)],
            "reading": [list(self.window), self.whole, self.overlap, self.preprocessing],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _preprocessing(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return how images are read, whether a plan says the defaults or leaves them out."""
    read = {key: plan.get(key) or None for key in PREPROCESSING if key != "crop_size"}
    return {**read, "slice_axis": read["slice_axis"] or "axial"}


def _columns(cell: Cell) -> dict[str, Any]:
    return {
        "backbone": cell.backbone,
        "head": cell.head,
        "shots": cell.shots,
        "draw": cell.draw,
        "seed": cell.seed,
    }


def _finished(path: Path, key: str) -> dict[str, Any] | None:
    """Return a cell that was computed under the same settings."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if content.get("key") != key:
        logger.warning("%s was computed with other settings or data; it is computed again.", path)
        return None
    return content


def _json_number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
