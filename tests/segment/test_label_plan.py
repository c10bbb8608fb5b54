import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medmdm.cli import main
from medmdm.data.files.pictures import read_image
from medmdm.data.writers import encode_picture
from medmdm.metrics.baselines import all_foreground_by
from medmdm.metrics.pixels import mean_scores
from medmdm.reports import write_report
from medmdm.segment.label_plan import planner_of
from tests.bundle_runs import Run
from tests.made import refused as refused_call
from tests.written import picture

CLOSED = {"_target_": "medmdm.heads.ClosedFormHead", "method": "ridge"}


def unlabelled(folder: Path, count: int = 3) -> None:
    """Two images as the labelled ones and one whose colours no labelled image has."""
    rng = np.random.default_rng(1)
    names = []
    for number in range(count):
        image = 60 + rng.integers(-30, 30, (30, 40, 3))
        if number == 1:
            image[:, :20] = 250
        picture(folder / f"new_{number}.png", image)
        names.append({"image": f"new_{number}.png"})
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "unlabeled": names}))


def read(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "label_plan.csv")


def test_a_run_writes_the_plan_and_the_page_shows_it(run: Run, pictures: Path, tmp_path: Path) -> None:
    unlabelled(pictures)
    run("mdm_segment", head=CLOSED, label_plan=True)
    folder = tmp_path / "run"
    table = read(folder)
    assert list(table["kind"].unique()) == ["measured", "next"]  # 4 labelled images: 1, 2, 3
    assert table["images"].dropna().tolist() == [1, 2, 3]
    assert table["image"].dropna().tolist()[0] == "new_1"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["label_plan"]["note"].startswith("a curve of 3 points")
    listed = json.loads((pictures / "dataset.json").read_text())["training"]
    truths = [(read_image(pictures / entry["label"])[0] > 0).astype(int) for entry in listed]
    everything = [all_foreground_by(mean_scores, truth, 2, 255)["dice"] for truth in truths]
    plan = json.loads((folder / "label_plan.json").read_text())
    assert plan["all_foreground"] == pytest.approx(np.mean(everything))
    page = (folder / "index.html").read_text()
    assert "How many labels?" in page
    assert "new_1" in page
    assert "cannot be continued" in (folder / "summary.md").read_text()
    write_report(folder)
    assert "How many labels?" in (folder / "index.html").read_text()
    # The same by the command, from the run's own settings and its cached features.
    first = (folder / "label_plan.csv").read_bytes()
    (folder / "label_plan.csv").unlink()
    assert main(["plan-labels", str(folder)]) == 0
    assert (folder / "label_plan.csv").read_bytes() == first


def test_one_patient_ends_no_run(run: Run, pictures: Path, tmp_path: Path) -> None:
    content = json.loads((pictures / "dataset.json").read_text())
    for entry in content["training"]:
        entry["patient_id"] = "one"
    run("mdm_segment", data_list=content, label_plan=True)  # whose head is no closed-form one
    assert not (tmp_path / "run" / "label_plan.csv").exists()
    assert "How many labels?" not in (tmp_path / "run" / "index.html").read_text()
    refused_call("was given in its config", planner_of, tmp_path / "run")


def test_a_list_needs_no_weights_and_features_may_be_given(
    run: Run, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unlabelled(pictures)
    test = json.loads((pictures / "dataset.json").read_text())["test"]
    for entry in test:
        (pictures / entry["image"]).unlink()  # nothing of the test section is read
    out = tmp_path / "plan"
    assert main(["plan-labels", str(pictures), "--out", str(out), "--count", "1", "--draws", "4"]) == 0
    said = capsys.readouterr().out
    assert "ridge on scikit-image's filters" in said
    assert len(said.splitlines()) <= 10
    assert read(out)["image"].dropna().tolist() == ["new_1"]
    planner, folder = planner_of(pictures / "dataset.json", features=tmp_path / "model.pt", out=tmp_path / "0", draws=4)
    planner.run(folder)
    scores = read(folder)["dice"].dropna().tolist()
    again, folder = planner_of(pictures / "dataset.json", features=tmp_path / "model.pt", out=tmp_path / "0", draws=4)
    again.run(folder)
    assert read(folder)["dice"].dropna().tolist() == scores
    assert again.backbone.extractor is not None
    assert again.backbone.extractor.extracted == 0  # they are cached


def test_features_of_a_segmenter(run: Run, pictures: Path, tmp_path: Path) -> None:
    run("mdm_segment", head=CLOSED, report=False)
    segmenter = tmp_path / "run" / "segmenter.pt"
    for number, source in enumerate((tmp_path / "run", pictures)):
        planner, folder = planner_of(source, features=segmenter, out=tmp_path / str(number), draws=3)
        planner.run(folder)
    assert read(tmp_path / "0")["dice"].tolist() == read(tmp_path / "1")["dice"].tolist()


def test_what_cannot_be_planned_gets_a_sentence(pictures: Path, tmp_path: Path, capsys: Any) -> None:
    refused_call("neither a run folder", planner_of, tmp_path / "nothing")
    planner, folder = planner_of(pictures, out=tmp_path / "out", at=[100], draws=2)
    refused_call("a curve of 3 points", planner.run, folder)
    planner, folder = planner_of(pictures, out=tmp_path / "out", count=-1)
    refused_call("count is -1", planner.run, folder)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "run.json").write_text(json.dumps({"config": {"bundle": "mdm_pretrain"}}))
    refused_call("a run of mdm_pretrain", planner_of, tmp_path / "old")
    (tmp_path / "old" / "run.json").write_text("{")
    refused_call("run.json cannot be read", planner_of, tmp_path / "old")
    refused_call("leave out --dataset_dir", planner_of, tmp_path / "old", pictures)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.png").write_bytes(encode_picture(np.zeros((3, 8, 8), np.uint8), ".png"))
    assert main(["plan-labels", str(tmp_path / "plain")]) == 1
    assert "no data list" in capsys.readouterr().err


def test_parts_of_one_image_are_left_out_of_each_other_and_it_is_said(tmp_path: Path) -> None:
    planner, folder = planner_of("demo", out=tmp_path / "out", draws=2)
    said = planner.run(folder)
    assert said.startswith("6 labelled images of one image, whose parts are more alike than new images will be")
    assert read(folder)["images"].dropna().tolist()[:3] == [1, 2, 4]
