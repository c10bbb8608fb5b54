"""nnU-Net v2 on the draws of labelled images that ``mdm_study`` takes, for as long as a fit of the default takes.

nnU-Net is not a dependency: it lives in an environment of its own and is run by its own commands and planner (2-D),
with a trainer that stops after ``--minutes`` (``benchmarks/nnunet_trainer``). Images are given to it at ``--spacing``
as they are; its own normalisation, augmentation and mirroring apply. Foreground probabilities are brought to the size
of the truth as ours are, and scored by the same function. What is finished is kept; the same command goes on.

Usage::

    python -m venv /tmp/nnunet && /tmp/nnunet/bin/pip install nnunetv2
    python benchmarks/nnunet.py data/glas --data_list glas --bin /tmp/nnunet/bin --work /tmp/nnunet/runs \
        --spacing 0.00248 --draws 3 --out nnunet.csv
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from skimage.transform import resize

from medmdm.data import CaseReader, LoadedCase, select_cases
from medmdm.data.writers import encode_picture
from medmdm.files import atomic_write, save_json
from medmdm.metrics.pixels import mean_scores
from medmdm.segment import LabelledData

HERE = Path(__file__).resolve().parent


def write_images(folder: Path, cases: list[LoadedCase], labels: Path | None = None) -> None:
    """Write the pictures of cases under nnU-Net's names, and their labels."""
    for case in cases:
        (example,) = case.examples
        pixels = ((example.image + 1) * 127.5).round().clamp(0, 255).byte().numpy()
        atomic_write(folder / f"{case.name}_0000.png", encode_picture(pixels, ".png"))
        if labels is not None:
            atomic_write(
                labels / f"{case.name}.png", encode_picture(example.label.numpy().astype(np.uint8)[None], ".png")
            )


def run_draw(arguments: argparse.Namespace, draw: int, data: LabelledData, tested: list[LoadedCase]) -> list[Any]:
    """Plan, train and predict by nnU-Net's commands; return a row for each test case."""
    number, root = 100 + draw, Path(arguments.work).resolve()
    name = f"Dataset{number}_draw{draw}"
    raw = root / "raw" / name
    support = [data.reader.read(entry) for entry in data.draw_support(arguments.shots, draw)]
    write_images(raw / "imagesTr", support, raw / "labelsTr")
    write_images(raw / "imagesTs", tested)
    described = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "object": 1}}
    save_json({**described, "numTraining": len(support), "file_ending": ".png"}, raw / "dataset.json")
    given: dict[str, Any] = {
        "nnUNet_raw": root / "raw",
        "nnUNet_preprocessed": root / "preprocessed",
        "nnUNet_results": root / "results",
    }
    given |= {"nnUNet_extTrainer": HERE / "nnunet_trainer", "MINUTES": arguments.minutes, "nnUNet_compile": "f"}
    environment = {**os.environ, **{key: str(value) for key, value in given.items()}}
    trained = ["-tr", "TimedTrainer"]

    def call(command: str, *words: object) -> None:
        run = [str(Path(arguments.bin) / command), *map(str, words)]
        # Training augments in its own process: one core does it all.
        workers = {"nnUNet_n_proc_DA": "0" if command == "nnUNetv2_train" else "1"}
        done = subprocess.run(
            run, env=environment | workers, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        atomic_write(root / f"{name}_{command}.log", done.stdout)
        if done.returncode:
            raise SystemExit(f"{command} ended with {done.returncode}: see {root / f'{name}_{command}.log'}")

    call("nnUNetv2_plan_and_preprocess", "-d", number, "-c", "2d", "-np", 1, "--verify_dataset_integrity")
    call("nnUNetv2_train", number, "2d", "all", *trained, "-device", "cpu")
    predicted = root / "predicted" / name
    call(
        "nnUNetv2_predict", "-d", number, "-c", "2d", "-f", "all", *trained, "-i", raw / "imagesTs", "-o", predicted,
        "-device", "cpu", "--save_probabilities", "-npp", 1, "-nps", 1,
    )  # fmt: skip
    said = re.findall(r"(\d+) iterations of ([\d.]+) s", (root / f"{name}_nnUNetv2_train.log").read_text())
    print(f"draw {draw}: {said}", flush=True)
    rows = []
    for case in tested:
        foreground = np.load(predicted / f"{case.name}.npz")["probabilities"][1].squeeze()
        assert case.truth is not None
        mask = resize(foreground, case.truth.shape, order=1) > 0.5
        scores = mean_scores(mask.astype(np.uint8), case.truth, 2, None)
        rows.append(["nnU-Net", draw, arguments.section, case.name, round(scores["dice"], 4), round(scores["iou"], 4)])
    return rows


def main(arguments: argparse.Namespace) -> None:
    spacing = None if arguments.spacing is None else [arguments.spacing] * 2
    cases = select_cases(arguments.dataset_dir, arguments.data_list, ["training", "test"])
    reader = CaseReader(cases, {"channels": 3, "spacing": spacing})
    data = LabelledData(reader, shots=arguments.shots, rule="seeded")
    tested = list(data.tested())
    out = Path(arguments.out)
    known = (
        pd.read_csv(out)
        if out.is_file()
        else pd.DataFrame(columns=["method", "draw", "section", "case", "dice", "iou"])
    )
    for draw in range(arguments.draws):
        if draw not in set(known["draw"]):
            rows = pd.DataFrame(run_draw(arguments, draw, data, tested), columns=known.columns)
            known = rows if known.empty else pd.concat([known, rows], ignore_index=True)
            atomic_write(out, known.to_csv(index=False))
    print(known.groupby("draw")[["dice", "iou"]].mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_dir")
    parser.add_argument("--data_list")
    parser.add_argument("--section", default="test", help="the name that the rows give to what is tested")
    parser.add_argument("--bin", required=True, help="folder of nnU-Net's commands")
    parser.add_argument("--work", required=True, help="folder for what nnU-Net writes")
    parser.add_argument("--out", required=True, help="CSV of the scores")
    parser.add_argument("--spacing", type=float, help="mm a pixel that nnU-Net sees")
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=4.0)
    main(parser.parse_args())
