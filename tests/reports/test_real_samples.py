"""Reports on real data sets: the labels, damaged, as predictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medmdm.data.files.pictures import read_image
from medmdm.data.files.volumes import read_volume
from medmdm.data.lists import load_data_list
from medmdm.data.writers import write_mask
from medmdm.reports import write_report
from tests.reports.runs import plain_dice, write_evaluation


def test_glas(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    data, cases, expected = real_data("glas"), [], []
    for entry in load_data_list("glas").test[:3]:
        label = read_image(data / entry["label"])[0]
        moved = np.roll(label, 6, axis=0)
        name = Path(entry["image"]).stem
        for kind, mask in (("masks", moved > 0), ("instances", moved)):
            write_mask(tmp_path / kind / f"{name}.png", mask, data / entry["image"])
        expected.append(plain_dice(moved > 0, label > 0))
        files = {"prediction": f"masks/{name}.png", "instances": f"instances/{name}.png"}
        own = {key: entry[key] for key in ("image", "label", "patient_id")}
        cases.append({"case": name, **own, **files, "spacing": [0.00062, 0.00062]})
    write_evaluation(tmp_path, cases, data, num_classes=2, data_list={"label_type": "instances"})
    write_report(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [case["metrics"]["1"]["Dice"] for case in summary["metric_per_case"]] == pytest.approx(expected)
    assert (summary["distance_unit"], summary["tolerance"]) == ("µm", 1.24)
    assert 0.9 < summary["scores"]["object_f1"]["mean"] <= 1


def test_hippocampus(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    data, cases, expected = real_data("radiology/hippocampus"), [], []
    for image in sorted((data / "images").glob("*.nii.gz"))[:3]:
        label = read_volume(data / "labels" / image.name).array[0].astype(np.uint8)
        moved = np.roll(label, 1, axis=2)
        write_mask(tmp_path / image.name, moved, image)  # its header is the image's, not the label's
        expected.append(np.mean([plain_dice(moved == k, label == k) for k in (1, 2)]))
        files = {"image": f"images/{image.name}", "label": f"labels/{image.name}", "prediction": image.name}
        cases.append({"case": image.name.removesuffix(".nii.gz"), **files})
    write_evaluation(tmp_path, cases, data, num_classes=3, class_names=["background", "anterior", "posterior"])
    page = write_report(tmp_path, strict=True).read_text()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["scores"]["dice"]["case_mean"] == pytest.approx(np.mean(expected))
    assert summary["distance_unit"] == "mm"
    assert summary["scores"]["hausdorff95"]["mean"] == pytest.approx(1.0)
    assert page.count("axial slice") >= 3
