"""How many labels do I need? The learning curve of a closed-form head, and the images to label next."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser

from medmdm.artifacts.backbone import OpenBackbone, open_backbone
from medmdm.artifacts.segmenter_file import load_segmenter
from medmdm.artifacts.weights import read_checkpoint
from medmdm.backbones.cache import CachedExtractor
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.backbones.filter_bank import FilterBank
from medmdm.data.cases import select_cases
from medmdm.data.files.formats import is_volume
from medmdm.data.folders import DEMO, list_file
from medmdm.data.lists import image_names
from medmdm.data.reading import CaseReader, LoadedCase
from medmdm.data.splits import patient_numbers
from medmdm.data.transforms.intensity import percentiles_record
from medmdm.errors import UserError, counted
from medmdm.files import atomic_write, expanded, save_json, table_text
from medmdm.heads.closed_form import ClosedFormHead
from medmdm.heads.label_plan import (
    case_sums,
    curve_scores,
    draw_cases,
    image_sums,
    next_to_label,
)
from medmdm.heads.segmenter import Segmenter
from medmdm.heads.task import Reading
from medmdm.metrics.baselines import all_foreground_by
from medmdm.metrics.pixels import mean_scores
from medmdm.reports.label_plan import CSV_FILE, JSON_FILE, as_table, as_text
from medmdm.segment.labelled_data import LabelledData
from medmdm.stats.learning_curve import FURTHEST, curve_means, extrapolate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelPlanner:
    """Say what more labels would give, and which images to label next.

    A closed-form head is fitted to 1, 2, 4, 8 ... of the labelled images and scored on those of other patients; the
    curve is continued by a power law where it has four points or more, at most to four times its largest number.

    Args:
        data: labelled training cases, and unlabelled ones beside them; test cases are not looked at.
        backbone: whose features are read; without any, scikit-image's filters are.
        reading: how images are read.
        head: None for ridge regression.
        draws: of labelled images.
        count: how many images to name.
        at: numbers of labelled images to continue the curve to; None for the next powers of 2.
        seed: of the draws.

    Raises:
        UserError: later, from :meth:`run`: fewer than two labelled images of different patients, or a number that is
            too far.
    """

    data: LabelledData
    backbone: OpenBackbone
    reading: Reading
    head: ClosedFormHead | None = None
    draws: int = 20
    count: int = 10
    at: Sequence[int] | None = None
    seed: int = 0

    def run(self, folder: str | os.PathLike[str]) -> str:
        """Write ``label_plan.csv`` and ``label_plan.json`` into a folder; return what they say in a few lines."""
        support = self.data.support()
        head = self.head or ClosedFormHead("ridge")
        extractor, name = self._extractor(support[0].examples[0].image.shape)
        task = self.data.task(support, [], self.reading, self.seed, self.backbone.device)
        patients = patient_numbers([case.entry for case in support])
        parts = len(set(patients)) == 1 and not any("patient_id" in case.entry for case in support)
        if parts:  # of one image, such as a slide: better than no plan, and the plan says so
            patients = list(range(len(support)))
        if self.count < 0:
            raise UserError(f"count is {self.count}: give how many images to name, 0 or more.")
        if not any(bool(example.known.any()) for case in support for example in case.examples):
            raise UserError(f"None of the {counted(len(support), 'labelled image')} has a pixel whose class is known.")
        draws = draw_cases(patients, self.draws, self.seed)
        counts = list(draws[0].counts)
        logger.info("learning curve: %s labelled images, %d draws, features: %s", counts, len(draws), name)
        scores = curve_scores(support, patients, draws, task, head, extractor)
        curve = _measured(counts, scores)
        more, note = self._continued(counts, scores, patients, len(support))
        whole = [case_sums(case, task, head, extractor) for case in support]
        whole = [part for part in whole if float(part.counts.sum())]
        ridge = head.fit_sums(whole, task, extractor)
        others = {case.name: image_sums(case, task, head, extractor) for case in self.data.each_other(support)}
        chosen = next_to_label(whole, others, float(ridge.evidence["chosen"]["ridge"]), self.count)
        plan = {
            "features": name,
            "head": head.method,
            "labelled": len(support),
            "patients": len(set(patients)),
            "parts_of_one_image": parts and len(support) > 1,
            "patients_known": all("patient_id" in case.entry for case in support),
            "unlabelled": len(others),
            "all_foreground": self._all_foreground(support),
            "curve": curve,
            "continued": more,
            "note": note,
            "next": [{"image": image, "leverage": leverage} for image, leverage in chosen],
        }
        save_json(plan, Path(folder) / JSON_FILE)
        atomic_write(Path(folder) / CSV_FILE, table_text(as_table(plan)))
        return as_text(plan)

    def _extractor(self, shape: Sequence[int]) -> tuple[CachedExtractor, str]:
        if self.backbone.extractor is not None:
            network = type(self.backbone.extractor.innermost.backbone).__name__
            return self.backbone.extractor, f"{network} {self.backbone.path or self.backbone.name}".strip()
        bank = FilterBank(int(shape[0]), len(shape) - 1).eval()
        read = FeatureExtractor(bank, [0], [0], masking="none", normalize="none")
        return CachedExtractor(read), "scikit-image's filters"

    def _all_foreground(self, support: Sequence[LoadedCase]) -> float | None:
        """Return the mean Dice of marking every known pixel; None where no pixel is known."""
        num_classes, ignore = self.data.cases.num_classes, self.data.cases.ignore
        truths = [case.truth for case in support if case.truth is not None]
        each = [all_foreground_by(mean_scores, truth, num_classes, ignore)["dice"] for truth in truths]
        known = [dice for dice in each if not math.isnan(dice)]
        return sum(known) / len(known) if known else None

    def _continued(
        self, counts: Sequence[int], scores: np.ndarray, patients: Sequence[int], labelled: int
    ) -> tuple[list[dict[str, Any]], str]:
        """Return the curve beyond what was measured, or none and why."""
        far = FURTHEST * counts[-1]
        powers = [2**i for i in range(1, 40) if labelled < 2**i <= far]
        at = sorted({labelled, *powers} if self.at is None else set(self.at))
        try:
            rows = extrapolate(counts, scores, at, patients, seed=self.seed)
        except UserError as error:
            if self.at is not None:
                raise
            return [], str(error)
        return [asdict(row) for row in rows], ""


def _measured(counts: Sequence[int], scores: np.ndarray) -> list[dict[str, Any]]:
    known = ~np.isnan(scores)
    filled = np.where(known, scores, 0.0)
    means = curve_means(filled, known, np.ones(len(scores)), np.ones(scores.shape[2]))
    rows = []
    for k, count in enumerate(counts):
        drawn = [float(np.nanmean(one)) for one in scores[:, k] if not np.isnan(one).all()]
        if drawn:
            spread = {"low": min(drawn), "high": max(drawn), "sd": float(np.std(drawn, ddof=1)) if drawn[1:] else None}
            rows.append({"images": count, "score": float(means[k]), **spread, "draws": len(drawn)})
    return rows


def planner_of(
    source: str | os.PathLike[str],
    dataset_dir: str | os.PathLike[str] | None = None,
    features: str | os.PathLike[str] | None = None,
    spacing: Sequence[float] | None = None,
    out: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> tuple[LabelPlanner, Path]:
    """Return the planner of a run or of a data list, and the folder that it writes to.

    Args:
        source: the run folder of a segmentation, whose cases, features and reading are taken; or a data list: a JSON
            file, a folder that holds one, the name of a list that comes with medmdm, or ``"demo"``.
        dataset_dir: folder of a list's images; None for the list's own.
        features: a ``model.pt`` or ``segmenter.pt`` whose features are read; None for the run's backbone, or for
            scikit-image's filters.
        spacing: mm per pixel (rows, columns) at which a list's images are read; None for that of the features.
        out: None for the run folder, or ``label_plan``.
        **settings: of :class:`LabelPlanner`: ``draws``, ``count``, ``at``, ``seed``.

    Raises:
        UserError: there is neither a run nor a data list, or what is given does not go together.
    """
    path = expanded(source)
    if (path / "run.json").is_file():
        if dataset_dir is not None or spacing is not None:
            raise UserError(f"{path} is a run, which knows its images: leave out --dataset_dir and --spacing.")
        config = _run_config(path)
        parser = ConfigParser(config)
        own = features is None
        if not own:
            parser["backbone"], parser["preprocessing"] = None, {**config["preprocessing"], "crop_size": [256, 256]}
        data, backbone = parser.get_parsed_content("data"), parser.get_parsed_content("opened")
        reading = parser.get_parsed_content("reading")
        is_closed = str(config["head"].get("_target_", "")).endswith(".ClosedFormHead")
        head = parser.get_parsed_content("head") if is_closed else None
        folder = Path(path if out is None else out)
        if not own:
            backbone, reading = _features(features, folder)
            data = replace(data, reader=CaseReader(data.cases, backbone.plan, data.reader.slice_cache))
        return LabelPlanner(data, backbone, reading, head, **settings), folder
    folder = Path("label_plan" if out is None else out)
    if str(source) == DEMO:
        cases = select_cases(DEMO, None, _SECTIONS)
    elif path.is_dir():
        cases = select_cases(path if dataset_dir is None else dataset_dir, list_file(path), _SECTIONS)
    elif path.is_file() or dataset_dir is not None:
        cases = select_cases(path.parent if dataset_dir is None else dataset_dir, str(source), _SECTIONS)
    else:
        raise UserError(f"{source} is neither a run folder with run.json nor a data list: give one of them.")
    if features is None:
        volumes = bool(cases.training) and is_volume(image_names(cases.training[0])[0])
        plan = {"percentiles": percentiles_record([1, 99])} if volumes else {}
        backbone, reading = OpenBackbone(plan), Reading((256, 256), whole=True)
    else:
        backbone, reading = _features(features, folder)
    if spacing is not None:
        backbone = replace(backbone, plan={**backbone.plan, "spacing": list(spacing)})
    return LabelPlanner(LabelledData(CaseReader(cases, backbone.plan)), backbone, reading, **settings), folder


_SECTIONS = ("training", "unlabeled")


def _features(path: str | os.PathLike[str] | None, folder: Path) -> tuple[OpenBackbone, Reading]:
    """Open the features of a backbone's or a segmenter's file."""
    assert path is not None
    cache = functools.partial(CachedExtractor, folder=folder / "features")
    if read_checkpoint(Path(path)).get("kind") is None:
        backbone = open_backbone(path, cache=cache)
        return backbone, Reading(tuple(backbone.plan.get("crop_size") or (256, 256)))
    model, plan = load_segmenter(path)
    if not isinstance(model, Segmenter):
        raise UserError(f"{path} is a network of its own, which has no features: leave it out, or give a model.pt.")
    task = plan["task"]
    reading = Reading(tuple(task["window"]), bool(task["whole_images"]), float(task["overlap"]))
    innermost = model.extractor.innermost
    return OpenBackbone(plan["backbone"], cache(innermost), plan["backbone_sha256"], str(path)), reading


def _run_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "run.json").read_text(encoding="utf-8"))["config"]
        bundle = config["bundle"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'run.json'} cannot be read: give the folder of a segmentation.") from error
    if bundle != "mdm_segment":
        raise UserError(f"{folder} is a run of {bundle}: give one of mdm_segment, or a data list.")
    if str(config.get("data_list")).startswith("given in the config"):
        raise UserError(f"The data list of {folder} was given in its config, which keeps its hash: give the list.")
    return dict(config)
