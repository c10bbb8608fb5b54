"""Instances of a watershed on the mask against those by maps that are learnt beside it, on the same test images.

Two networks of the same size are fitted to the same few labelled images of a data list whose labels number objects, for
as many steps on the same crops: ``FromScratch``, and ``MultiTaskHead`` with the maps ``distance`` and ``hv``. The first
gives connected parts and the watershed on its mask; the second gives these too, and instances by its maps. Differences
are to the watershed on the first network's mask, on the same draws and images, both drawn anew for the intervals. The
average precision is of the boxes around the instances, image by image, each as sure as its mean probability. Where the
list has no test images, a third of the others is set aside for it. Each draw is kept in ``--out``: the same command
goes on.

Usage::

    python -m medmdm prepare dsb2018 stage1_train.zip dsb2018
    python benchmarks/instances.py dsb2018 --shots 8 --draws 3 --steps 1200 --out runs/instances_dsb2018
"""

from __future__ import annotations

import argparse
import functools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets import BasicUNet

from medmdm.data.cases import select_cases
from medmdm.data.reading import CaseReader, LoadedCase
from medmdm.files import save_json
from medmdm.heads import FromScratch, MultiTaskHead, Predictor, Reading, Training
from medmdm.metrics.detection import average_precision, match_boxes, object_boxes
from medmdm.metrics.instances import instance_scores
from medmdm.metrics.pixels import mean_scores
from medmdm.segment.formats.measurements import object_scores
from medmdm.segment.label_defaults import follow_labels
from medmdm.segment.labelled_data import LabelledData
from medmdm.segment.postprocessing import PostProcess
from medmdm.stats.intervals import crossed_interval

METRICS = ("dice", "aji", "pq", "object_dice", "ap", "ap50")
BASE = ("plain", "watershed")
WAYS = (("plain", "components"), BASE, ("maps", "watershed"), ("maps", "distance"), ("maps", "hover"))


def fits(shots: int, draw: int, arguments: argparse.Namespace, data: LabelledData, pool: list[Any]) -> dict[str, Any]:
    """Return a predictor of both networks, and the sizes below which there is no object."""
    drawn = random.Random(f"shots {draw}").sample(pool, shots)
    support = [data.reader.read(entry) for entry in drawn]
    reading = Reading((arguments.window, arguments.window), whole=arguments.whole)
    task = data.task(support, (), reading, draw, torch.device(arguments.device))
    training = Training(steps=arguments.steps, precision="auto")

    def learner(channels: int) -> FromScratch:
        features, norm = (16, 32, 64, 128, 256, 16), ("group", {"num_groups": 8})
        return FromScratch(functools.partial(BasicUNet, 2, 3, channels, features, norm=norm), 16, training)

    heads: dict[str, FromScratch | MultiTaskHead] = {
        "plain": learner(task.num_classes),
        "maps": MultiTaskHead(learner(task.num_classes + 3), ("distance", "hv")),
    }
    settings = PostProcess(remove_small_objects="auto", instances="components")
    models: dict[str, torch.nn.Module] = {name: head.fit(task, None).model for name, head in heads.items()}
    return {
        "postprocess": follow_labels(settings, "instances", support)[0],
        **{name: Predictor(model, reading, device=task.device) for name, model in models.items()},
    }


def scores_of(case: LoadedCase, fitted: dict[str, Any]) -> dict[str, list[float]]:
    """Return the METRICS of a test image, by network and kind of instances."""
    said = {name: fitted[name].case(case) for name in ("plain", "maps")}
    assert case.truth is not None
    assert case.instances is not None
    true_boxes, found = object_boxes(case.instances), {}
    for name, method in WAYS:
        postprocess = replace(fitted["postprocess"], instances=method)
        made = postprocess(said[name].probabilities, case.spacing, said[name].maps)
        objects, mask = made["instances"], made["mask"]
        sure = object_scores(objects, mask, said[name].probabilities)
        matches = match_boxes(object_boxes(objects), sure, true_boxes)
        each = {
            **mean_scores(mask, case.truth, 2, None),
            **instance_scores(objects, case.instances, hausdorff=False),
            **average_precision([matches]),
        }
        found[f"{name}, {method}"] = [float(each[metric]) for metric in METRICS]
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fit and score every draw that is not there yet."""
    plan = {"channels": 3, "crop_size": [arguments.window] * 2}
    if arguments.spacing is not None:
        plan |= {"spacing": [arguments.spacing] * 2}
    if arguments.percentiles is not None:
        lower, upper = arguments.percentiles
        plan |= {"percentiles": {"lower": lower, "upper": upper, "nonzero": False}}
    cases = select_cases(arguments.dataset_dir, arguments.data_list, ["training", "test"])
    data = LabelledData(CaseReader(cases, plan))
    pool, tested = list(cases.training), list(cases.test)
    if not tested:
        random.Random("test").shuffle(pool)
        tested, pool = pool[: len(pool) // 3], pool[len(pool) // 3 :]
    draws = []
    for draw in range(arguments.draws):
        path = Path(arguments.out) / f"draw{draw}.json"
        if not path.is_file():
            fitted = fits(arguments.shots, draw, arguments, data, pool)
            read = map(data.reader.read, tested)
            save_json({case.name: scores_of(case, fitted) for case in read}, path)
        draws.append(json.loads(path.read_text(encoding="utf-8")))
    names = list(draws[0])
    values = {  # [draws, cases, metrics]
        way: np.array([[of_draw[name][way] for name in names] for of_draw in draws], np.float64)
        for way in draws[0][names[0]]
    }
    base, rows = values[", ".join(BASE)], []
    for way, own in values.items():
        row: dict[str, Any] = {"way": way}
        for number, metric in enumerate(METRICS):
            row[metric] = round(float(np.nanmean(own[..., number])), 4)
            if own is not base:
                difference = own[..., number] - base[..., number]
                bounds = crossed_interval(difference)
                row[f"{metric} difference"] = [round(float(n), 4) for n in (np.nanmean(difference), *bounds)]
        rows.append(row)
    settings = {key: value for key, value in vars(arguments).items() if key not in ("out", "device", "dataset_dir")}
    return {**settings, "tested": len(tested), "rows": rows}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_dir")
    parser.add_argument("--data_list")
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--window", type=int, default=96)
    parser.add_argument("--whole", action="store_true", help="read images whole instead of by windows")
    parser.add_argument("--spacing", type=float, help="mm a pixel that the networks see")
    parser.add_argument("--percentiles", type=float, nargs=2, help="that channels are scaled by")
    parser.add_argument("--out", required=True, help="folder for the scores of each draw")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    print(json.dumps(measure(parser.parse_args()), indent=1))
