"""Does a change leave every number as it was? Run two revisions on the same machine and compare what comes out.

    python benchmarks/same_numbers.py run CHECKOUT DESTINATION [--data DIR] [--threads N]
    python benchmarks/same_numbers.py compare A B

``run`` works through the demo (pre-training, segmentation, evaluation, inference), 20 steps of each pre-training
overlay and studies of two cells and more, with the code of a checkout; what is finished is not run again. ``compare``
holds two destinations against each other: tensors, tables, masks and pictures bit for bit. Left out are times, paths,
versions and the names that a version of medmdm gives to its own classes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

TIMES = {"images_per_second", "seconds"}
PRETRAIN = {"max_steps": 20, "checkpoint_every": 20, "preview_every": 10, "log_every": 10, "preview_crops": 4}
CLASSIFIER = {
    "_target_": "medmdm.segment.PixelClassifierHead", "members": 2, "max_epochs": 8, "min_epochs": 8,
    "batch_size": 4, "pixels": 128,
}  # fmt: skip
HEADS = {
    "ridge": {"_target_": "medmdm.segment.ClosedFormHead", "method": "ridge"},
    "classifier": CLASSIFIER,
    "fresh": {**CLASSIFIER, "fresh": True},
}


def overlays(data: Path | None) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return name -> (overlay, overrides) of each short pre-training; the real sets only where there are some."""
    made: dict[str, tuple[str, dict[str, Any]]] = {
        name: (name, {}) for name in ("amp", "dae", "ddpm_image", "ddpm_noise", "mae", "mask_and_noise", "multi_gpu")
    }
    made["plain"] = ("", {})
    small = {"network_def#model_channels": 32, "batch_size": 2, "accumulation_steps": 2, "num_workers": 0}
    made["paper"] = ("paper", {**small, "amp_dtype": None, "crop_size": [64, 64], "optimizer#fused": False})
    if data is not None:
        glas, monuseg, volumes = data / "glas", data / "monuseg", data / "radiology" / "hippocampus" / "images"
        made |= {
            "glas": ("glas", {"dataset_dir": glas}),
            "glas_laptop": ("glas_laptop", {"dataset_dir": glas}),
            "monuseg": ("monuseg", {"dataset_dir": monuseg}),
            "monuseg_laptop": ("monuseg_laptop", {"dataset_dir": monuseg}),
            "mr_slices": ("mr_slices", {"dataset_dir": volumes}),
            "ct_slices": ("ct_slices", {"dataset_dir": data / "radiology" / "ct_nifti"}),
        }
    return made


def command(bundle: str, files: list[str], settings: dict[str, Any]) -> list[str]:
    """Return the bundle command with its config files and overrides."""
    listed = repr([f"bundles/{bundle}.json", *files]) if files else f"bundles/{bundle}.json"
    words = [f"--{k}={'null' if v is None else v}" for k, v in settings.items()]
    return [sys.executable, "-m", "monai.bundle", "run", "--config_file", listed, *words]


def jobs(out: Path, data: Path | None) -> Iterator[tuple[str, list[str]]]:
    """Yield (name, command) in the order in which they need each other."""
    model, segmenter = out / "pretrain" / "model.pt", out / "segment" / "segmenter.pt"
    cache = {"slice_cache": out / "slices"}
    yield "pretrain", command("mdm_pretrain", [], {"run_dir": out / "pretrain"})
    segment = {"backbone": model, "run_dir": out / "segment", "write_probabilities": "true"}
    head = {
        "_target_": "medmdm.segment.PixelClassifierHead", "members": 10, "max_epochs": 60, "min_epochs": 20,
        "patience": 20, "batch_size": 8, "pixels": 256,
    }  # fmt: skip
    yield "segment", command("mdm_segment", [config(out, "segment", {"head": head})], segment)  # the default of 0.1
    extra = {"write_surprise": "true", "backbone": model}
    yield "evaluate", command("mdm_evaluate", [], {"segmenter": segmenter, "run_dir": out / "evaluate", **extra})
    yield "infer", command("mdm_infer", [], {"segmenter": segmenter, "output_dir": out / "infer"})
    for name, (overlay, settings) in overlays(data).items():
        folder = out / f"overlay_{name}"
        files = [f"bundles/overlays/{overlay}.json"] if overlay else []
        made = command("mdm_pretrain", files, {"run_dir": folder, **PRETRAIN, **cache, **settings})
        if overlay == "multi_gpu":
            made = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *made[1:]]
        yield folder.name, made
    probe = {"probe_data_list": "demo_labelled", "probe_dataset_dir": "demo", "probe_every": 10}
    yield "probe", command("mdm_pretrain", [], {"run_dir": out / "probe", **PRETRAIN, **probe})
    study = {
        "run_dir": str(out / "study"), "shots": [2], "draws": 1, "heads": HEADS,
        "backbones": {
            "MDM": {"path": str(model)},
            "random": {"path": str(model), "initialise": "random", "normalize": "standardize"},
            "raw pixels": {"path": str(model), "initialise": "raw", "masking": "none"},
        },
        "only": {"fresh": ["MDM"]}, "reference": ["MDM", "ridge"],
    }  # fmt: skip
    yield "study", command("mdm_study", [config(out, "study", study)], {})
    if data is not None:
        backbone = {"path": str(out / "overlay_glas_laptop" / "model.pt"), "blocks": [3, 4, 5, 6], "masking": "none"}
        small = {k: HEADS[k] for k in ("ridge", "classifier")}
        glas = {
            **study, "run_dir": str(out / "glas_study"), "heads": small, "backbones": {"MDM": backbone}, "only": {},
            "dataset_dir": str(data / "glas"),
        }  # fmt: skip
        yield "glas_study", command("mdm_study", ["bundles/overlays/glas_study.json", config(out, "glas", glas)], {})
        volumes = {
            "backbone": str(out / "overlay_mr_slices" / "model.pt"), "dataset_dir": str(listed_volumes(out, data)),
            "run_dir": str(out / "volumes"), "head": HEADS["ridge"], "window": [32, 32], **cache,
        }  # fmt: skip
        volumes["slice_cache"] = str(out / "slices")
        yield "volumes", command("mdm_segment", [config(out, "volumes", volumes)], {})


def config(out: Path, name: str, content: dict[str, Any]) -> str:
    """Write an overlay of one's own and return its path."""
    path = out / f"{name}_overlay.json"
    path.write_text(json.dumps(content, indent=2))
    return str(path)


def listed_volumes(out: Path, data: Path) -> Path:
    """Write a data list of a few hippocampus volumes and return its folder."""
    folder = out / "hippocampus"
    folder.mkdir(exist_ok=True)
    source = data / "radiology" / "hippocampus"
    images = sorted((source / "images").glob("*.nii.gz"))[:6]
    entries = [{"image": str(i), "label": str(source / "labels" / i.name), "patient_id": i.name} for i in images]
    for entry in entries:
        for key in ("image", "label"):
            link = folder / key / Path(entry[key]).name
            link.parent.mkdir(exist_ok=True)
            if not link.exists():
                link.symlink_to(entry[key])
            entry[key] = f"{key}/{link.name}"
    labels = {"0": "background", "1": "anterior", "2": "posterior"}
    content = {"name": "six volumes", "labels": labels, "training": entries[:4], "test": entries[4:]}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def run(checkout: Path, out: Path, data: Path | None, threads: int) -> int:
    """Run what is not finished yet; return how many commands failed."""
    out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(threads)}
    failed = 0
    grouped = "num_groups" in (checkout / "bundles" / "mdm_pretrain.json").read_text()
    for name, words in jobs(out, data):
        done, log = out / f"{name}.done", out / f"{name}.log"
        if grouped and any("mdm_pretrain.json" in word for word in words) and name != "overlay_paper":
            words = [*words, "--network_def#num_groups", "32"]  # what 0.1 has
        if done.exists():
            continue
        with open(log, "w") as file:
            code = subprocess.run(words, cwd=checkout, env=environment, stdout=file, stderr=file).returncode
        print(f"{name}: {'done' if code == 0 else f'FAILED with status {code}, see {log}'}", flush=True)
        failed += code != 0
        if code == 0:
            done.touch()
    return failed


def content(path: Path, root: Path) -> Any:
    """Return what of a file must be the same."""
    if path.suffix == ".pt":
        return tensors(torch.load(path, weights_only=True, map_location="cpu"))
    if path.name in ("summary.json", "boxes.csv") or path.parent.name == "cells":
        text = path.read_text().replace(str(root), "ROOT")
        found = json.loads(text) if path.suffix == ".json" else text
        return strip(found)
    if path.suffix == ".csv":
        with open(path) as file:
            return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    if path.suffix in (".png", ".gz", ".npy", ".tif", ".nii"):
        return path.read_bytes()
    return None


def tensors(value: Any) -> Any:
    """Return the tensors of a weights file by their path in it; the plan's names may change, its numbers may not."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, dict):
        return {str(k): tensors(v) for k, v in value.items() if k not in ("plan",)}
    return None


#: Of a summary or cell: what says when and with what it was made, not what came out.
ASIDE = {"seconds", "key", "version", "medmdm", "medmdm_version", "versions", "sessions", "_target_", "git_revision",
         "created", "run", "source", "config", "started", "finished", "provenance", "protocol"}  # fmt: skip


def strip(value: Any) -> Any:
    """Return JSON without what :data:`ASIDE` names."""
    if isinstance(value, dict):
        return {k: strip(v) for k, v in value.items() if k not in ASIDE}
    if isinstance(value, list):
        return [strip(v) for v in value]
    return re.sub(r"\S*/\S*", "PATH", value) if isinstance(value, str) else value


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Return where two contents differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        names = [*a, *(k for k in b if k not in a)]
        return [d for k in names for d in differences(a.get(k), b.get(k), f"{path}/{k}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}/{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all() | (a.isnan() == b.isnan()).all())
        same = same and np.array_equal(a.numpy(), b.numpy(), equal_nan=True) if a.is_floating_point() else same
        return [] if same else [path]
    same = a == b or (a != a and b != b)
    return [] if same else [f"{path}: {str(a)[:60]!r} and {str(b)[:60]!r}"]


def compare(a: Path, b: Path) -> int:
    """Print what differs; return how many files do."""
    wanted = (".pt", ".csv", ".png", ".gz", ".npy", ".tif", ".nii", ".json")
    files = {p.relative_to(a) for p in a.rglob("*") if p.suffix in wanted and p.is_file()}
    files = {p for p in files if not {"features", "slices", "checkpoints", "hippocampus"} & set(p.parts)}
    compared = wrong = 0
    for relative in sorted(files):
        first = content(a / relative, a)
        if first is None:
            continue
        if not (b / relative).is_file():
            print(f"{relative}: is missing in {b}")
            wrong += 1
            continue
        compared += 1
        found = differences(first, content(b / relative, b))
        if found:
            wrong += 1
            print(f"{relative}: {len(found)} differences: {'; '.join(found[:4])}")
    print(f"{compared} files compared, {wrong} differ")
    return wrong


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    one = commands.add_parser("run", help="run everything with the code of one checkout")
    one.add_argument("checkout", type=Path)
    one.add_argument("destination", type=Path)
    one.add_argument("--data", type=Path, help="folder of restored public data sets")
    one.add_argument("--threads", type=int, default=1)
    two = commands.add_parser("compare", help="compare what two of them left")
    two.add_argument("a", type=Path)
    two.add_argument("b", type=Path)
    given = parser.parse_args()
    if given.command == "compare":
        sys.exit(compare(given.a.resolve(), given.b.resolve()) > 0)
    data = given.data.resolve() if given.data else None
    sys.exit(run(given.checkout.resolve(), given.destination.resolve(), data, given.threads) > 0)


if __name__ == "__main__":
    main()
