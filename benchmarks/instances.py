"""Instances of a watershed on the mask against those by maps that are learnt beside it, on the same test images.

Two networks of the same size are fitted to the same few labelled images of a data list whose labels number objects, for
as many steps on the same crops: ``FromScratch``, and ``MultiTaskHead`` with the maps ``distance`` and ``hv``. The first
gives connected parts and the watershed on its mask; the second gives these too, and instances by its maps. Differences
are of each case to the watershed on the first network's mask, the mean of the draws, with the interval of ``paired``.
Where the list has no test images, a third of the others is set aside for it.

Usage::

    python -m medmdm prepare dsb2018 stage1_train.zip dsb2018
    python benchmarks/instances.py dsb2018 --shots 8 --draws 3 --steps 1200
"""

from __future__ import annotations

import argparse
import functools
import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.networks.nets import BasicUNet

from medmdm.data.cases import select_cases
from medmdm.data.reading import CaseReader
from medmdm.heads import FromScratch, MultiTaskHead, Predictor, Reading, Training
from medmdm.metrics.instances import instance_scores
from medmdm.segment.label_defaults import follow_labels
from medmdm.segment.labelled_data import LabelledData
from medmdm.segment.postprocessing import PostProcess
from medmdm.stats.comparison import paired

METRICS = ("aji", "pq", "object_dice")
BASE = ("plain", "watershed")
WAYS = (("plain", "components"), BASE, ("maps", "watershed"), ("maps", "distance"), ("maps", "hover"))


def fits(shots: int, draw: int, arguments: argparse.Namespace, data: LabelledData, pool: list[Any]) -> dict[str, Any]:
    """Return a predictor of both networks, and the sizes below which there is no object."""
    drawn = random.Random(f"shots {draw}").sample(pool, shots)
    support = [data.reader.read(entry) for entry in drawn]
    reading = Reading((arguments.window, arguments.window))
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


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fit and score every draw."""
    cases = select_cases(arguments.dataset_dir, arguments.data_list)
    data = LabelledData(CaseReader(cases, {"channels": 3, "crop_size": [arguments.window] * 2}))
    pool, tested = list(cases.training), list(cases.test)
    if not tested:
        random.Random("test").shuffle(pool)
        tested, pool = pool[: len(pool) // 3], pool[len(pool) // 3 :]
    scores: dict[Any, list[list[list[float]]]] = {way: [] for way in WAYS}
    for draw in range(arguments.draws):
        fitted = fits(arguments.shots, draw, arguments, data, pool)
        found: dict[Any, list[list[float]]] = {way: [] for way in WAYS}
        for entry in tested:
            case = data.reader.read(entry)
            said = {name: fitted[name].case(case) for name in ("plain", "maps")}
            for name, method in WAYS:
                postprocess = replace(fitted["postprocess"], instances=method)
                objects = postprocess(said[name].probabilities, case.spacing, said[name].maps)["instances"]
                assert objects is not None
                assert case.instances is not None
                each = instance_scores(objects, case.instances, hausdorff=False)
                found[name, method].append([each[metric] for metric in METRICS])
        for way, values in found.items():
            scores[way].append(values)
    means = {way: np.nanmean(np.array(values), axis=0) for way, values in scores.items()}  # [cases, metrics]
    rows = []
    for way in WAYS:
        row: dict[str, Any] = {"network": way[0], "instances": way[1]}
        for number, metric in enumerate(METRICS):
            own, base = means[way][:, number], means[BASE][:, number]
            row[metric] = round(float(np.nanmean(own)), 4)
            if way != BASE:
                found_difference = paired(own, base)
                bounds = found_difference.intervals.t_interval
                row[f"{metric} difference"] = [round(float(n), 4) for n in (found_difference.difference, *bounds)]
        rows.append(row)
    return {
        "tested": len(tested),
        "shots": arguments.shots,
        "draws": arguments.draws,
        "steps": arguments.steps,
        "rows": rows,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_dir")
    parser.add_argument("--data_list")
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--window", type=int, default=96)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    print(json.dumps(measure(parser.parse_args()), indent=1))
