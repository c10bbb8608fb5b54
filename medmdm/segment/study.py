"""A grid of backbones, heads, numbers of labelled images, draws of them and seeds: the tables of papers."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.inferers import Inferer

from medmdm.artifacts.backbone import OpenBackbone, read_by
from medmdm.components import to_config
from medmdm.data.reading import LoadedCase
from medmdm.errors import UserError, nearest
from medmdm.files import atomic_write, save_json, sweep_temporaries, table_text, text_hash
from medmdm.heads.predictor import Predictor
from medmdm.heads.task import NO_BACKBONE, Fitter, Reading, check_normalize, view_sizes, views
from medmdm.intact import save_record
from medmdm.metrics.baselines import all_foreground_by
from medmdm.metrics.pixels import mean_scores
from medmdm.progress import Progress, followed
from medmdm.reports.study import study_table
from medmdm.runs.cluster import Cluster, GivenUpError
from medmdm.runs.folder import RunFolder
from medmdm.runs.record import cases_ledger, find_provenance
from medmdm.segment.grid import Cell, CellCases, Grid, StudyCases, finished
from medmdm.segment.label_defaults import follow_labels
from medmdm.segment.labelled_data import LabelledData
from medmdm.segment.masks import make_masks
from medmdm.segment.postprocessing import Postprocessing, masks_alone

logger = logging.getLogger(__name__)

_FORMAT = 1  # of a cell: the next where the same settings give other numbers


@dataclass(frozen=True)
class Study:
    """Fit and test every cell of a grid; each finished cell is a file and is never computed again.

    The run folder receives ``cells/*.json``, ``study.csv`` (per test case and cell: backbone, head, shots, draw, seed,
    case, dice, iou), ``study.json`` (settings, provenance, the table as numbers) and ``study.md``; the table also has
    what masks that cost nothing score.

    Args:
        run_dir: the run folder.
        data: training and test cases, read once.
        backbones: by name; :func:`medmdm.artifacts.open_backbone` makes them.
        heads: by name; each is tried on every backbone, one that needs none only once. A cell whose head has another
            config now is computed again.
        grid: how many images, draws and seeds.
        reading: how images are read: windows, or whole.
        postprocess: probabilities → masks, before scoring; what it leaves to the labels follows those of each cell.
        inferer: of MONAI's; None for what ``reading`` says.
        metrics: ``metrics(mask, truth, num_classes, ignore)`` gives ``dice`` and ``iou`` of a case.
        reference: (backbone, head) that all others are compared with, paired by test case; None for no comparison.
        left_out: score each cell also on the labelled training cases that it did not see, so that choices can be made
            without the test cases; ``study.csv`` then has a column ``section``, and the page a second table.
        config: merged config of the run.

    Raises:
        UserError: the parts do not go together.
    """

    run_dir: str | os.PathLike[str]
    data: LabelledData
    backbones: Mapping[str, OpenBackbone]
    heads: Mapping[str, Fitter]
    grid: Grid
    reading: Reading
    postprocess: Postprocessing
    inferer: Inferer | None = None
    metrics: Callable[..., Mapping[str, float]] = mean_scores
    reference: Sequence[str] | None = None
    left_out: bool = False
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: What cells are fitted to and scored on, as far as they were asked for.
    _drawn: dict[Cell, CellCases] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for head, names in self.grid.only.items():
            for name, known in ((head, list(self.heads)), *((n, list(self.backbones)) for n in names)):
                if name not in known:
                    raise UserError(f"only names {name!r}, which the study does not have{nearest(name, known)}.")
        if self.data.cross_validated:
            title = "the data" if self.data.cases.data_list is None else self.data.cases.data_list.title
            how = "python -m medmdm split writes one, or name some cases of the data list 'test'"
            raise UserError(f"{title} has no test section, on which a study scores its cells: {how}.")
        if self.data.rule == "paper" and self.grid.draws > 1:
            raise UserError("The paper's rule gives one draw: set draws to 1, or subset_rule to 'seeded'.")
        self._check_backbones()
        files: dict[str, Cell] = {}
        for cell in self.cells():
            first = files.setdefault(cell.name, cell)
            if first != cell:
                both = " and ".join(f"{c.backbone} / {c.head}" for c in (first, cell))
                raise UserError(f"{both} would have one file: give them names that differ in letters or digits.")
        rows = {(cell.backbone, cell.head) for cell in files.values()}
        if self.reference is not None and tuple(self.reference) not in rows:
            raise UserError(f"reference {list(self.reference)} is not in the study: it has {sorted(rows)}.")

    def _check_backbones(self) -> None:
        if NO_BACKBONE in self.backbones:
            raise UserError(f"backbones#{NO_BACKBONE}: that name stands for networks from scratch, choose another.")
        expected = read_by(self._first.plan)
        for name, backbone in self.backbones.items():
            if backbone.extractor is not None:
                check_normalize(backbone.extractor, self.reading.whole)
            other = read_by(backbone.plan)
            for key in (key for key in other if other[key] != expected[key]):
                both = f"with {key} {other[key]}, {next(iter(self.backbones))} with {expected[key]}"
                own = "none" if expected[key] is None else expected[key]
                advice = f"leave one out, or set backbones#{name}#preprocessing#{key} to {json.dumps(own)}"
                raise UserError(f"backbones#{name} was trained {both}, but a study reads images once: {advice}.")

    @property
    def _first(self) -> OpenBackbone:
        """The backbone by whose plan images are read."""
        return next(iter(self.backbones.values()))

    def cells(self) -> Iterator[Cell]:
        """Yield all cells: those of one backbone together."""
        for backbone, opened in [*self.backbones.items(), (NO_BACKBONE, None)]:
            for head, fitter in self.heads.items():
                if fitter.needs_backbone != (opened is not None):
                    continue
                if opened is not None and opened.extractor is None:  # it only says how images are read
                    continue
                if opened is not None and backbone not in self.grid.only.get(head, self.backbones):
                    continue
                for shots, draw, seed in self.grid.samples(len(self.data.cases.training)):
                    yield Cell(backbone, head, shots, draw, seed)

    def run(self, cluster: Cluster | None = None) -> pd.DataFrame:
        """Compute what is missing and write the tables; return the rows.

        Args:
            cluster: whose workers compute the cells; None computes them here. The files are the same.

        Raises:
            UserError: as :class:`medmdm.runs.Cluster`; a worker reads other images than this process.
        """
        self.data.announce()
        folder = Path(self.run_dir)
        training, tested = self._images.training, self._images.tested
        identity = self.data.identity(tested, list(training.values()))
        # What changes from session to session is checked cell by cell, so that a study can grow.
        record = RunFolder(folder, {"bundle": self.config.get("bundle")}, {}, identity, 0)
        record.open()
        sweep_temporaries(folder / "cells")
        notes, supports = dict[str, None](), dict[tuple[int, int], Sequence[LoadedCase]]()
        cells = {cell.name: cell for cell in self.cells()}
        for name in dict.fromkeys(cell.backbone for cell in cells.values() if self._reads_features(cell)):
            extractor = self.backbones[name].extractor
            assert extractor is not None
            logger.info("%s: %s", name, extractor.announce(view_sizes([*training.values(), *tested], self.reading)))
        for cell in cells.values():
            supports[cell.shots, cell.draw] = support = self._cases_of(cell).support
            notes |= dict.fromkeys(self.data.lacking(support, cell.draw))
        keys = {name: self._key(cell) for name, cell in cells.items()}
        found = {name: finished(cell.path(folder), keys[name]) for name, cell in cells.items()}
        contents = {name: content for name, content in found.items() if content is not None}
        for note in notes:
            logger.warning("%s: it cannot be learnt from them.", note)
        logger.info("%d cells, %d of them finished before", len(cells), len(contents))
        missing = {name: cell for name, cell in cells.items() if name not in contents}
        computing, numbers = Progress("study", len(missing)), {name: n for n, name in enumerate(cells, start=1)}
        for name, content in self._computed(missing, cluster):
            if content["key"] != keys[name]:
                raise UserError(f"{name}: a worker reads other images or weights than this process: look at its paths.")
            save_record(content, cells[name].path(folder))
            contents[name] = content
            dices = [row["dice"] for row in content["rows"][: len(tested)]]
            dice = np.nanmean([np.nan if one is None else one for one in dices])
            where = f"cell {numbers[name]} of {len(cells)}, {name}"
            computing.done += 1
            logger.info("%s: Dice %.4f, %.1f s; %s left", where, dice, content["seconds"], computing.left())
        table = pd.DataFrame([{**asdict(c), **row} for name, c in cells.items() for row in contents[name]["rows"]])
        atomic_write(folder / "study.csv", table_text(table))
        page = self._summarise(table, self._baselines(supports, tested), list(training.values()), tested, list(notes))
        record.finish(0)
        print(page)
        return table

    def _computed(self, cells: Mapping[str, Cell], cluster: Cluster | None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the contents of cells as they are computed."""
        if cluster is None or not cells:
            yield from ((name, self.compute(cell)) for name, cell in cells.items())
            return
        reading: dict[str, dict[str, Any]] = {}
        for cell in filter(self._reads_features, cells.values()):
            extractor, cases = self.backbones[cell.backbone].extractor, self._cases_of(cell)
            if extractor is not None and extractor.folder is not None:
                for case in [*cases.support, *self._images.tested, *cases.left_out, *cases.others]:
                    reading[f"{cell.backbone} {case.name}"] = {"backbone": cell.backbone, "case": case.name}
        with cluster.workers() as workers:
            with contextlib.suppress(GivenUpError):  # the cells that need it will tell
                for _ in followed(workers.each("extract", reading), "reading features", len(reading)):
                    pass
            yield from workers.each("compute", {name: {"cell": cell} for name, cell in cells.items()})

    def extract(self, backbone: str, case: str) -> None:
        """Read the features of a case into the cache, as heads and predictions read them."""
        extractor = self.backbones[backbone].extractor
        assert extractor is not None
        for example in self._images.every[case].examples:
            for view in views(example, self.reading.kind, self.reading.window, self.reading.overlap):
                extractor(view.image[None].to(self._first.device))

    def _summarise(
        self,
        table: pd.DataFrame,
        baselines: pd.DataFrame,
        training: Sequence[LoadedCase],
        tested: Sequence[LoadedCase],
        notes: Sequence[str],
    ) -> str:
        """Write ``study.json`` and ``study.md``; return the page."""
        folder = Path(self.run_dir)
        ledger = cases_ledger(training)
        seen = {n: find_provenance(tested, b.plan.get("ledger"), ledger) for n, b in self.backbones.items()}
        taught = find_provenance(tested, cases_ledger(list(self._images.unlabeled.values())))
        if taught.kind != "inductive":
            heads = ", ".join(dict.fromkeys(cell.head for cell in self.cells() if self._looks_at_others(cell)))
            said = f"{taught.sentence[0].lower()}{taught.sentence[1:]}"
            notes = [*notes, f"heads that look at unlabelled images ({heads}): {said.rstrip('.')}"]
        patients = {case.name: case.entry.get("patient_id") for case in [*training, *tested]}
        summary, page = study_table(table, patients, seen, self.reference, baselines, notes)
        stamps = {name: one.as_dict() for name, one in seen.items()}
        content = {"settings": dict(self.config), "stamps": stamps, "table": summary, "notes": list(notes)}
        save_json(content, folder / "study.json")
        atomic_write(folder / "study.md", page)
        return page

    @functools.cached_property
    def _images(self) -> StudyCases:
        """All cases, read once."""
        training = {case.name: case for case in self.data.support()}
        tested = self.data.tested()
        looking = any(self._looks_at_others(cell) for cell in self.cells())
        unlabeled = {case.name: case for case in self.data.others(list(training.values()))} if looking else {}
        return StudyCases(training, unlabeled, tested)

    def _cases_of(self, cell: Cell) -> CellCases:
        """Return what a cell is fitted to and scored on."""
        if cell in self._drawn:
            return self._drawn[cell]
        images = self._images
        support = [images.training[str(entry["case"])] for entry in self.data.draw_support(cell.shots, cell.draw)]
        labelled = [case for case in images.training.values() if case.truth is not None] if self.left_out else []
        others: list[LoadedCase] = []
        if self._looks_at_others(cell):
            names = {case.name for case in support}
            others = [case for name, case in (images.training | images.unlabeled).items() if name not in names]
        post = follow_labels(self.postprocess, self.data.cases.label_type, support)[0]
        left_out = [case for case in labelled if case not in support]
        return self._drawn.setdefault(cell, CellCases(support, others, left_out, post))

    def _reads_features(self, cell: Cell) -> bool:
        """Whether a cell's head reads the features of a frozen backbone."""
        head = self.heads[cell.head]
        return head.needs_backbone and not getattr(head, "changes_backbone", False)

    def _looks_at_others(self, cell: Cell) -> bool:
        return getattr(self.heads[cell.head], "uses_unlabelled", False)

    def compute(self, cell: Cell) -> dict[str, Any]:
        """Fit and test a cell; return the content of its file."""
        backbone, cases, given = self.backbones.get(cell.backbone), self.data.cases, self._cases_of(cell)
        device, tested = self._first.device, self._images.tested
        task = self.data.task(given.support, given.others, self.reading, cell.seed, device)
        started = time.perf_counter()
        fitted = self.heads[cell.head].fit(task, None if backbone is None else backbone.extractor)
        seconds = time.perf_counter() - started
        predictor = Predictor(fitted.model, self.reading, device=device, inferer=self.inferer)
        rows: list[dict[str, Any]] = []
        for case in followed([*tested, *given.left_out], "predicting"):
            mask = make_masks(case, predictor, masks_alone(given.postprocess)).mask
            scores = self.metrics(mask, case.truth, cases.num_classes, cases.ignore)
            numbers = {name: None if np.isnan(value) else float(value) for name, value in scores.items()}
            section = {"section": "test" if len(rows) < len(tested) else "training"} if self.left_out else {}
            rows.append({"case": case.name, **numbers, **section})
        return {
            "key": self._key(cell),
            "cell": asdict(cell),
            "support": [case.name for case in given.support],
            "seconds": round(seconds, 3),
            "evidence": fitted.evidence,
            "rows": rows,
        }

    def _baselines(
        self, supports: Mapping[tuple[int, int], Sequence[LoadedCase]], tested: Sequence[LoadedCase]
    ) -> pd.DataFrame:
        """Score masks that cost nothing as the cells' masks are: a row for each, number of shots, draw and case."""
        num_classes, ignore = self.data.cases.num_classes, self.data.cases.ignore
        truths = {case.name: case.truth for case in tested if case.truth is not None}
        rows: list[dict[str, Any]] = []
        for name, truth in truths.items():
            scores = all_foreground_by(self.metrics, truth, num_classes, ignore)
            rows.append({"head": "all_foreground", "shots": 0, "draw": 0, "case": name, **scores})
        for (shots, draw), support in supports.items():
            mask = self.data.mean_mask(support, tested)
            for name, truth in truths.items() if mask is not None else ():
                found = self.metrics(mask, truth, num_classes, ignore)
                rows.append({"head": "mean_mask", "shots": shots, "draw": draw, "case": name, **found})
        return pd.DataFrame(rows).assign(backbone="(none)", seed=0)

    def _key(self, cell: Cell) -> str:
        """A hash of all that a cell's numbers depend on."""
        images, given = self._images, self._cases_of(cell)
        support, tested = (
            [images.contents[case.name] for case in cases]
            for cases in (given.support, [*images.tested, *given.left_out])
        )
        looks = self._looks_at_others(cell)
        looked_at = [images.contents[name] for name in [*images.training, *images.unlabeled]] if looks else []
        backbone = self.backbones.get(cell.backbone)
        extractor = None if backbone is None else backbone.extractor
        content = {
            "format": _FORMAT,
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
            "cell": asdict(cell),
            "support": support,
            "tested": tested,
            **({"looked_at": looked_at} if looked_at else {}),
            **({"left_out": True} if self.left_out else {}),
            "classes": self.data.cases.num_classes,
            "head": to_config(self.heads[cell.head], strict=False),
            "postprocess": to_config(given.postprocess, strict=False),
            "inferer": to_config(self.inferer, strict=False),
            "metrics": to_config(self.metrics, strict=False),
            "features": None if extractor is None else [extractor.key, dict(extractor.config)],
            "reading": [to_config(self.reading), read_by(self._first.plan)],
        }
        return text_hash(json.dumps(content, sort_keys=True, default=str))
