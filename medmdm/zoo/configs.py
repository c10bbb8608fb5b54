"""The configs of a packed bundle: how it was trained, how it is used and evaluated, with paths below its own folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medmdm.artifacts.backbone import default_timestep
from medmdm.data.folders import DEMO
from medmdm.data.lists import shipped_data_lists
from medmdm.files import local_path_name, resource_folder
from medmdm.runs.keys import shipped
from medmdm.zoo.finished_run import FinishedRun

MODEL = "$@bundle_root + '/models/model.pt'"
DATA = "$@bundle_root + '/data'"
BACKBONE = "backbone.pt"
#: What a run found on its computer only.
_ELSEWHERE = ("slice_cache", "apply_to", "probe_data_list", "study")


def configs(run: FinishedRun, with_backbone: bool) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the configs by the names of their files, and a sentence for each path that had to be replaced.

    Args:
        run: that is packed.
        with_backbone: whether the backbone of a segmenting run comes with the bundle.
    """
    train, sentences = _train(run, with_backbone)
    if run.segments:
        return {"train.json": train, "inference.json": _inference(run), "evaluate.json": _evaluation()}, sentences
    return {"train.json": train, "inference.json": _restoring(run)}, sentences


def _train(run: FinishedRun, with_backbone: bool) -> tuple[dict[str, Any], list[str]]:
    config: dict[str, Any] = json.loads(json.dumps(run.record["config"]))
    known = {one.name for one in shipped_data_lists()} | {
        path.stem for path in resource_folder("data_lists").glob("*.json")
    }
    config.pop("backbone_sha256", None)
    config |= {key: None for key in _ELSEWHERE if key in config}
    config["bundle_root"] = "."
    config["run_dir"] = "$@bundle_root + '/runs/train'"
    if config.get("dataset_dir") != DEMO:
        config["dataset_dir"] = DATA
    if config.get("data_list") not in (None, "none", *known):
        config["data_list"] = None
    if "probe_dataset_dir" in config:
        config["probe_dataset_dir"] = "@dataset_dir"
    if run.segments and config.get("backbone") is not None:
        config["backbone"] = f"$@bundle_root + '/models/{BACKBONE}'"
    sentences: list[str] = []
    portable: dict[str, Any] = _without_paths(config, "", sentences)
    if run.segments and config.get("backbone") is not None and not with_backbone:
        sentences.append(
            f"configs/train.json starts from models/{BACKBONE}, which does not come with the bundle: give --backbone, "
            "or put it there to train again"
        )
    return portable, sentences


def _without_paths(part: Any, place: str, sentences: list[str]) -> Any:
    """Replace paths of this computer by the same name in the bundle's ``files/``."""
    if isinstance(part, Mapping):
        return {
            key: _without_paths(value, f"{place}#{key}" if place else key, sentences) for key, value in part.items()
        }
    if isinstance(part, list):
        return [_without_paths(value, f"{place}#{number}", sentences) for number, value in enumerate(part)]
    if isinstance(part, str) and (name := local_path_name(part)) is not None:
        sentences.append(
            f"{place} in configs/train.json named a path of this computer; it is now files/{name} in the bundle: put "
            "it there to train again"
        )
        return f"$@bundle_root + '/files/{name}'"
    return part


def _shipped(name: str) -> dict[str, Any]:
    content = shipped(name)
    del content["$schema"]  # a path in the repository
    return content


def _evaluation() -> dict[str, Any]:
    own = {"segmenter": MODEL, "run_dir": "$@bundle_root + '/eval/evaluation'", "dataset_dir": DATA}
    return {**_shipped("mdm_evaluate"), **own}


def _inference(run: FinishedRun) -> dict[str, Any]:
    """Return the inference of a segmenter, with the parts that MONAI Label asks for."""
    config = _shipped("mdm_infer")
    if not run.reads_whole_volumes:
        # Programs on MONAI's transforms give whole volumes; medmdm's own workflow gives the network one slice.
        config["inferer"] = {"_target_": "medmdm.heads.SliceBySlice", "inferer": config["inferer"]}
        config["inference"]["inferer"] = "@inferer#inferer"
    elif run.task["whole_images"]:  # the windows' inferer is then none, and these programs need one
        config["inferer"] = {"_target_": "SimpleInferer"}
    parts = {
        "preprocessing": {
            "_target_": "monai.transforms.Compose",
            "transforms": [
                {
                    "_target_": "medmdm.data.ReadImaged",
                    "keys": "image",
                    "plan": "$@opened.plan['backbone']",
                    "window": "$None if @opened.reading.whole else @opened.reading.window",
                    "image_spacing": "@image_spacing",
                    "store": "@slice_cache",
                }
            ],
        },
        "postprocessing": {
            "_target_": "monai.transforms.Compose",
            "transforms": [
                {
                    "_target_": "medmdm.segment.MaskFromLogitsd",
                    "keys": "pred",
                    "postprocess": "$@opened.settled(@postprocess or @opened.postprocess)",
                }
            ],
        },
    }
    own = {"segmenter": MODEL, "output_dir": "$@bundle_root + '/eval/inference'", "dataset_dir": DATA}
    return {**config, **own, "extra_keys": list(parts), **parts}


def _restoring(run: FinishedRun) -> dict[str, Any]:
    """Return the inference of a pre-trained network: images are damaged as in training, and restored."""
    timestep = default_timestep(run.plan, share=0.5)
    return {
        "imports": ["$import torch", "$import monai"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": DATA,
        "data_list": None,
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "timestep": timestep,
        "corruption": run.plan["corruption"],
        "cases": {
            "_target_": "medmdm.data.select_cases",
            "dataset_dir": "@dataset_dir",
            "data_list": "@data_list",
            "labelled": False,
        },
        "network_def": {"_target_": "medmdm.artifacts.Restoration", "path": MODEL, "timestep": "@timestep"},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "medmdm.data.ReadImaged",
                    "keys": "image",
                    "plan": "$@network_def.plan",
                    "window": run.window,
                },
                {"_target_": "SelectItemsd", "keys": "image"},
                {
                    "_target_": "medmdm.data.Corruptd",
                    "keys": "image",
                    "corruption": "@corruption",
                    "timestep": "@timestep",
                },
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[*@cases.training, *@cases.validation, *@cases.test, *@cases.unlabeled]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "medmdm.heads.SliceBySlice",
            "inferer": {
                "_target_": "SlidingWindowInferer",
                "roi_size": run.window,
                "sw_batch_size": 4,
                "overlap": 0.25,
                "mode": "gaussian",
            },
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_ext": ".nii.gz",
                    "output_postfix": "restored",
                    "separate_folder": False,
                }
            ],
        },
        "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "initialize": ["$monai.utils.set_determinism(seed=0)"],
        "run": ["$@evaluator.run()"],
        "finalize": [],
    }


def backbone_of(run: FinishedRun, given: str | os.PathLike[str] | None) -> Path | None:
    """Return the weights file that a segmenting run started from: the one given, or where the run found it."""
    if given is not None:
        return Path(given)
    named = run.record["config"].get("backbone")
    if not isinstance(named, str) or named.startswith(("$", "@")) or not Path(named).is_file():
        return None
    return Path(named)
