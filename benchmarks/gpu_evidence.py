"""What pre-training adds on GlaS at half resolution, on one GPU in 25 minutes: one script, a few calls.

For a machine that is lent for minutes, has PyTorch and nothing of ours, and forgets all but a few small files between
calls (10 minutes each). Pre-trains a network of 3.9 M parameters as MDM, DDPM and MAE (the same steps for each, by a
throughput that is measured first), and takes random weights; then fits a frozen closed-form head and fine-tunes, with
8 labelled images, draw by draw, and scores GlaS's test A. It writes ``evidence.json`` (rows, loss curves, throughput
and its share of the rate that the card reaches in one large bfloat16 matrix product), ``evidence.md`` and the weights
in 16 bits (8 MB a method).

Work is done in units, each only begun if it is expected to end within ``--minutes``; every finished one is written at
once. A further call with what came back (``--resume``) goes on. Where the output folder stays, a pre-training that was
killed goes on from its own checkpoint too (60 MB, which need not travel).

Usage::

    python benchmarks/gpu_evidence.py --pack GLAS --data .gpu/data       # once, at home: half resolution, 25 MB
    python benchmarks/gpu_evidence.py --data .gpu/data --out "$OUT"      # the first call
    cp FETCHED/* .gpu/state/                                             # what came back travels again
    python benchmarks/gpu_evidence.py --data .gpu/data --out "$OUT" --resume .gpu/state   # until it says "complete"
    python benchmarks/gpu_evidence.py --miniature --out /tmp/miniature   # all of it, tiny, in a minute on a CPU

With Python 3.12, torch, NumPy, SciPy, pandas, scikit-image, Pillow, einops, Jinja2, tqdm and TensorBoard there, these
wheels are what is missing (6 MB; beside the 4 MB of the tree and the data), SimpleITK and fire not being needed::

    python -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d .gpu/wheels \
        monai==1.6.1 pytorch-ignite nibabel jsonschema jsonschema-specifications referencing rpds-py
    python3 -m pip install -q --no-index --no-deps --target /tmp/site .gpu/wheels/*.whl   # there
    export PYTHONPATH=/tmp/site:$PWD
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.bundle import ConfigWorkflow
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from medmdm.artifacts.backbone import OpenBackbone, make_extractor, open_backbone
from medmdm.data import CaseReader, LoadedCase, select_cases
from medmdm.data.files.pictures import read_image
from medmdm.data.writers import encode_picture
from medmdm.errors import UserError
from medmdm.files import atomic_write, resource_folder, save_json, save_torch
from medmdm.heads import ClosedFormHead, FineTuning, Predictor, Reading, Training
from medmdm.metrics.pixels import mean_scores
from medmdm.segment import LabelledData
from medmdm.stats import bca_interval

SPACING = 0.00124  # mm: half of GlaS's resolution
METHODS: dict[str, list[str]] = {"MDM": [], "DDPM": ["ddpm_image"], "MAE": ["mae"]}
RANDOM = "random weights"


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    network: dict[str, Any]
    crop: int
    batch: int
    pretrain_seconds: float
    most_steps: int
    fine_tuning_steps: int
    shots: int
    draws: int
    workers: int
    product: int  # side of the matrices
    precision: str = "bfloat16"


NETWORK = {"model_channels": 32, "channel_mult": [1, 1, 2, 2, 4], "num_head_channels": 32}
FULL = Size(NETWORK, 128, 64, 200.0, 100_000, 600, 8, 5, 12, 8192)
TINY = {"model_channels": 32, "channel_mult": [1, 1], "attention_resolutions": [2], "num_head_channels": 16}
MINIATURE = Size(TINY, 16, 2, 1.0, 3, 2, 2, 2, 0, 256, "float32")


def pack(source: Path, folder: Path) -> None:
    """Write GlaS at half resolution: pictures, masks and a data list, with patients and spacing."""
    cases = select_cases(source, "glas", ["training", "test"])
    reader = CaseReader(cases, {"spacing": [SPACING, SPACING]})
    lists: dict[str, list[dict[str, Any]]] = {}
    for section in ("training", "test"):
        for case in reader.read_all(getattr(cases, section)):
            (example,) = case.examples
            pixels = ((example.image + 1) * 127.5).round().clamp(0, 255).byte().numpy()
            names = {"image": f"{case.name}.png", "label": f"{case.name}_mask.png"}
            _save_pair(folder, names, pixels, example.label.numpy().astype(np.uint8))
            known = {"patient_id": case.entry["patient_id"]} if "patient_id" in case.entry else {}
            lists.setdefault(section, []).append({**names, **known})
    _save_list(folder, lists)
    print(f"{sum(map(len, lists.values()))} images at {SPACING} mm in {folder}")


def make_data(folder: Path) -> None:
    """Write a few pictures of bright blobs, for the miniature."""
    rng = np.random.default_rng(0)
    lists: dict[str, list[dict[str, Any]]] = {}
    for number in range(8):
        label = np.zeros((40, 48), np.uint8)
        label[8 : 24 + number, 6 + number : 30] = 1
        pixels = np.where(label > 0, 190, 70)[None] + rng.integers(-30, 30, (3, 40, 48))
        names = {"image": f"{number}.png", "label": f"{number}_mask.png"}
        _save_pair(folder, names, pixels.astype(np.uint8), label)
        lists.setdefault("training" if number < 5 else "test", []).append(names)
    _save_list(folder, lists)


def _save_pair(folder: Path, names: dict[str, str], pixels: np.ndarray, label: np.ndarray) -> None:
    atomic_write(folder / names["image"], encode_picture(pixels, ".png"))
    atomic_write(folder / names["label"], encode_picture(label[None], ".png"))
    assert (read_image(folder / names["label"])[0] == label).all()


def _save_list(folder: Path, lists: dict[str, Any]) -> None:
    labels = {"background": 0, "gland": 1}
    content = {"name": folder.name, "labels": labels, "spacing": [SPACING, SPACING], **lists}
    save_json(content, folder / "dataset.json")


@dataclass
class Evidence:
    """What is known so far, and the units that remain."""

    size: Size
    data: Path
    out: Path
    deadline: float
    device: torch.device
    found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = self.out / "evidence.json"
        if path.is_file():
            self.found = json.loads(path.read_text(encoding="utf-8"))
        device = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        settings = {"network": self.size.network, "crop": self.size.crop, "batch": self.size.batch}
        settings |= {"shots": self.size.shots, "fine_tuning_steps": self.size.fine_tuning_steps}
        if self.found.setdefault("settings", settings) != settings:
            raise UserError(f"{path} is of other settings ({self.found['settings']}): choose another folder.")
        self.found.setdefault("devices", [])
        if device not in self.found["devices"]:
            self.found["devices"].append(device)
        for name in ("curves", "pretrained"):
            self.found.setdefault(name, {})
        self.found.setdefault("rows", [])

    def run(self) -> bool:
        """Do the units that fit into the time; return whether none is left."""
        for name, seconds, unit in self.units():
            if time.monotonic() + seconds > self.deadline:
                print(f"{name} would take {seconds:.0f} s: call again to go on")
                return False
            started = time.monotonic()
            unit()
            print(f"{name}: {time.monotonic() - started:.1f} s", flush=True)
            self.save()
        return True

    def save(self) -> None:
        """Write what is known."""
        save_json(self.found, self.out / "evidence.json")
        atomic_write(self.out / "evidence.md", markdown(self.found))

    def units(self) -> Iterator[tuple[str, float, Callable[[], None]]]:
        """Yield what is not done yet: its name, the seconds that it takes at most, and what does it."""
        if "throughput" not in self.found:
            yield "throughput", 60.0, self.throughput
        for method in METHODS:
            if not (self.out / f"{method}.pt").is_file():
                yield f"pre-training {method}", 1.2 * self.size.pretrain_seconds + 20, partial(self.pretrain, method)
        done = {(row["backbone"], row["head"], row["draw"]) for row in self.found["rows"]}
        {name: max([30.0, *(r["seconds"] for r in self.found["rows"] if r["head"] == name)]) for name in HEADS}
        for draw in range(self.size.draws):
            for backbone in (RANDOM, *METHODS):
                for head in HEADS:
                    if (backbone, head, draw) not in done:
                        known = [row["seconds"] for row in self.found["rows"] if row["head"] == head]
                        seconds = 1.5 * max(known) + 5 if known else 60.0
                        yield f"{backbone}, {head}, draw {draw}", seconds, partial(self.fit, backbone, head, draw)

    # -- units ---------------------------------------------------------------------------------------------------

    def throughput(self) -> None:
        """Time training steps, and the card's largest product; choose the number of steps by it."""
        rate = self._product_rate()
        metrics = self._bundle("MDM", 30, self.out / "timing")
        per_second = float(pd.read_csv(metrics)["images_per_second"].dropna().iloc[-10:].median())
        shutil.rmtree(self.out / "timing")
        flops = self._flops()
        steps = max(2, min(self.size.most_steps, int(self.size.pretrain_seconds * per_second / self.size.batch)))
        self.found["throughput"] = {
            "images_per_second": per_second,
            "flop_per_image": flops,
            "matrix_product_flop_per_second": rate,
            "share_of_rate": per_second * flops / rate,
            "steps": steps,
        }

    def _product_rate(self) -> float:
        n, dtype = self.size.product, getattr(torch, self.size.precision)
        a, b = torch.randn(2, n, n, device=self.device).to(dtype)
        times = []
        for _ in range(8):
            self._wait()
            started = time.perf_counter()
            a @ b
            self._wait()
            times.append(time.perf_counter() - started)
        return 2 * n**3 / float(np.median(times[3:]))

    def _flops(self) -> float:
        """Count forward and backward of an image."""
        from medmdm.backbones import ADMUNet

        defaults = {"num_res_blocks": 1, "attention_resolutions": [8, 16]}
        network = ADMUNet(**{**defaults, **self.size.network})
        self.found["parameters"] = sum(p.numel() for p in network.parameters())
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, self.size.crop, self.size.crop), torch.tensor([0])).sum().backward()
        return float(counter.get_total_flops())

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _bundle(self, method: str, steps: int, folder: Path) -> Path:
        """Pre-train by the shipped bundle; return its table of the training."""
        bundles = resource_folder("bundles")
        files = [str(bundles / "mdm_pretrain.json"), *(str(bundles / f"overlays/{o}.json") for o in METHODS[method])]
        steps = min(steps, self.size.most_steps)
        settings: dict[str, Any] = {
            "run_dir": str(folder), "dataset_dir": str(self.data), "crop_size": [self.size.crop] * 2,
            "batch_size": self.size.batch, "max_steps": steps, "warmup_steps": max(1, steps // 20),
            "learning_rate": 5e-4, "ema_decay": 0.999, "num_workers": self.size.workers,
            "log_every": max(1, steps // 50), "checkpoint_every": max(1, steps // 10), "keep_checkpoints": 1,
            "preview_every": steps, "preview_crops": 2,
            "amp_dtype": None if self.size.precision == "float32" else self.size.precision,
            "channels_last": self.device.type == "cuda", "device": f"$torch.device({str(self.device)!r})",
            **{f"network_def#{key}": value for key, value in self.size.network.items()},
        }  # fmt: skip
        workflow = ConfigWorkflow(config_file=files, logging_file=False, meta_file=None, **settings)
        workflow.initialize()
        workflow.run()
        return folder / "metrics.csv"

    def pretrain(self, method: str) -> None:
        """Pre-train, and keep the weights in 16 bits and the curve."""
        folder = self.out / "pretrain" / method
        started = time.monotonic()
        table = pd.read_csv(self._bundle(method, self.found["throughput"]["steps"], folder))
        content = torch.load(folder / "model.pt", weights_only=True)
        content["model"] = {k: v.half() if v.is_floating_point() else v for k, v in content["model"].items()}
        save_torch(content, self.out / f"{method}.pt")
        seconds = round(time.monotonic() - started, 1)
        self.found["pretrained"][method] = {"seconds": seconds, "steps": self.found["throughput"]["steps"]}
        self.found["curves"][method] = table[["step", "loss"]].dropna().to_dict("list")
        shutil.rmtree(self.out / "pretrain")

    def fit(self, backbone: str, head: str, draw: int) -> None:
        """Fit a head to a draw of labelled images, and score the test images."""
        opened = self._open(backbone, head)
        cases = select_cases(self.data, None, ["training", "test"])
        data = LabelledData(CaseReader(cases, opened.plan), shots=self.size.shots, rule="seeded", draw=draw)
        reading = Reading((self.size.crop, self.size.crop), whole=True)
        task = data.task(data.support(), [], reading, draw, self.device)
        started = time.monotonic()
        fitted = HEADS[head](self.size).fit(task, opened.extractor)
        predictor = Predictor(fitted.model, reading, device=self.device)
        dice = {case.name: self._dice(predictor, case) for case in data.tested()}
        row = {"backbone": backbone, "head": head, "draw": draw, "seconds": round(time.monotonic() - started, 1)}
        self.found["rows"].append({**row, "dice": dice})

    def _dice(self, predictor: Predictor, case: LoadedCase) -> float:
        mask = predictor.case(case).probabilities.argmax(0)
        assert case.truth is not None
        return float(mean_scores(mask, case.truth, 2, None)["dice"])

    def _open(self, backbone: str, head: str) -> OpenBackbone:
        """Open the weights: of the first method with new ones for random weights."""
        name = next(iter(METHODS)) if backbone == RANDOM else backbone
        content = torch.load(self.out / f"{name}.pt", weights_only=True)
        content["model"] = {k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v
                            for k, v in content["model"].items()}  # fmt: skip
        path = self.out / "opened.pt"
        save_torch(content, path)
        features = partial(make_extractor, masking="none", normalize="standardize", context=[24, 48])
        how = {"initialise": "random"} if backbone == RANDOM else {}
        opened = open_backbone(path, features, device=self.device, **how)  # type: ignore[arg-type]
        path.unlink()
        return opened


HEADS: dict[str, Callable[[Size], Any]] = {
    "frozen, ridge": lambda size: ClosedFormHead("ridge", choose_threshold=True),
    "fine-tuned": lambda size: FineTuning(
        Training(steps=size.fine_tuning_steps, crop_size=[size.crop] * 2, precision=size.precision)
    ),
}


def markdown(found: dict[str, Any]) -> str:
    """Return the tables: throughput, and Dice of each backbone and head with the difference to random weights."""
    lines = [f"# GPU evidence: {', '.join(found['devices'])}", ""]
    if "throughput" in found:
        known, steps = found["throughput"], found["throughput"]["steps"]
        lines += [
            f"{found['parameters'] / 1e6:.1f} M parameters, crops of {found['settings']['crop']}², batches of "
            f"{found['settings']['batch']}: {known['images_per_second']:.0f} images/s in training, "
            f"{known['share_of_rate']:.1%} of the {known['matrix_product_flop_per_second'] / 1e12:.1f} TFLOP/s of a "
            f"large matrix product. {steps} steps a pre-training.",
            "",
        ]
    table = pd.DataFrame([{**row, "dice": float(np.mean(list(row["dice"].values())))} for row in found["rows"]])
    lines += ["| backbone | head | draws | Dice | minus random weights, same draws | 95 % interval | seconds a fit |"]
    lines += ["| --- | --- | ---: | ---: | ---: | --- | ---: |"]
    for (head, backbone), part in table.groupby(["head", "backbone"], sort=False) if len(table) else ():
        base = table[(table["head"] == head) & (table["backbone"] == RANDOM)].set_index("draw")["dice"]
        differences = (part.set_index("draw")["dice"] - base).dropna().to_numpy()
        gain = f"{differences.mean():+.3f}" if backbone != RANDOM and len(differences) else ""
        interval = ""
        if gain and len(differences) > 1:
            low, high = bca_interval(differences)
            interval = f"{low:+.3f} to {high:+.3f}"
        means = f"{part['dice'].mean():.3f} | {gain} | {interval} | {part['seconds'].mean():.1f}"
        lines.append(f"| {backbone} | {head} | {len(part)} | {means} |")
    return "\n".join([*lines, ""])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", metavar="GLAS", type=Path, help="write this release at half resolution into --data")
    parser.add_argument("--data", metavar="DIR", type=Path, default=Path(".gpu/data"), help="what --pack wrote")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/gpu_evidence"), help="output folder")
    parser.add_argument("--resume", metavar="DIR", type=Path, help="files of an earlier call, copied into --out first")
    parser.add_argument("--minutes", type=float, default=9.0, help="no unit begins that would end later; default 9")
    parser.add_argument("--miniature", action="store_true", help="made pictures and a tiny network, on the CPU")
    args = parser.parse_args(arguments)
    if args.pack is not None:
        pack(args.pack, args.data)
        return 0
    deadline = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    for path in sorted(args.resume.iterdir()) if args.resume is not None else ():
        if path.is_file() and not (args.out / path.name).exists():
            shutil.copy2(path, args.out / path.name)
    if args.miniature:
        args.data = args.out / "made"
        make_data(args.data)
    if not (args.data / "dataset.json").is_file():
        parser.error(f"{args.data} holds no dataset.json: make it with --pack")
    cuda = torch.cuda.is_available() and not args.miniature
    size = MINIATURE if args.miniature else FULL
    evidence = Evidence(size, args.data, args.out, deadline, torch.device("cuda" if cuda else "cpu"))
    complete = evidence.run()
    evidence.save()
    print((args.out / "evidence.md").read_text(encoding="utf-8"))
    print("complete" if complete else "not complete")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
