"""The overlay `instances_segment.json` on a made data set: fitted, killed, found again, evaluated, used on images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from medmdm.artifacts.segmenter_file import load_segmenter
from medmdm.data.files.pictures import read_image
from tests.bundle_runs import BUNDLES, OVERLAYS, Run
from tests.made import refused_in_config
from tests.written import picture

TINY = {
    "head#learner#network#features": [8, 8, 8, 8, 8, 8],
    "head#learner#network#norm": "batch",
    "head#learner#training#steps": 3,
    "preprocessing#crop_size": [32, 32],
    "preprocessing#channels": 3,
}


@pytest.fixture
def numbered(pictures: Path) -> Path:
    """Two touching objects in each picture, numbered."""
    for path in pictures.glob("*_mask.png"):
        label = read_image(path)[0].astype(np.uint8)
        label[13:] *= 2
        picture(path, label)
    content = json.loads((pictures / "dataset.json").read_text())
    (pictures / "dataset.json").write_text(json.dumps({**content, "label_type": "instances"}))
    return pictures


def segment(folder: Path, run_dir: Path, **overrides: Any) -> Any:
    files = [str(BUNDLES / "mdm_segment.json"), str(OVERLAYS / "instances_segment.json")]
    settings = {"backbone": None, "dataset_dir": str(folder), "run_dir": str(run_dir), "report": False, **TINY}
    made = ConfigWorkflow(config_file=files, logging_file=False, meta_file=None, **{**settings, **overrides})
    made.initialize()
    return made.run()[0]


@pytest.mark.bundle
def test_the_overlay(run: Run, numbered: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "run", tmp_path / "second"
    scores = segment(numbered, first, report=True)
    model, plan = load_segmenter(first / "segmenter.pt")
    assert model.maps == ("distance", "hv")
    assert plan["task"]["postprocess"]["instances"]["method"] == "distance"
    assert set(json.loads((first / "plan.json").read_text())["weights"]) == {"classes", "distance", "hv"}
    assert (first / "predictions" / "4_instances.png").is_file()
    assert "aji" in (first / "per_case.csv").read_text().splitlines()[0]
    assert segment(numbered, first, report=True) == scores  # not fitted again
    segment(numbered, second)  # as after a kill: nothing of a fit is kept before its end
    assert (first / "segmenter.pt").read_bytes() == (second / "segmenter.pt").read_bytes()

    given = {"segmenter": str(first / "segmenter.pt"), "postprocess": None}
    assert run("mdm_evaluate", run_dir=str(tmp_path / "again"), **given) == pytest.approx(scores)
    run("mdm_infer", output_dir=str(tmp_path / "masks"), **given)
    for name in ("4.png", "4_instances.png"):
        parts = [read_image(folder / "predictions" / name) for folder in (first, tmp_path / "masks")]
        assert np.array_equal(*parts), name
    hover = {"_target_": "medmdm.segment.PostProcess", "instances": "hover"}
    run("mdm_infer", output_dir=str(tmp_path / "hover"), **{**given, "postprocess": hover})
    assert (tmp_path / "hover" / "predictions" / "4_instances.png").is_file()


@pytest.mark.bundle
def test_what_cannot_be_done_is_told_before_the_fit(run: Run, numbered: Path, tmp_path: Path) -> None:
    def refused(sentence: str, name: str, **overrides: Any) -> None:
        refused_in_config(sentence, segment, numbered, tmp_path / name, **overrides)
        assert not (tmp_path / name / "segmenter.pt").exists()

    refused("needs the map 'hv'", "one", **{"head#maps": ["distance"], "postprocess#instances": "hover"})
    refused("did you mean 'distance'", "two", **{"head#maps": ["distanc"]})
    refused("gives 5 channels, but 2 classes and distance are 3", "three", **{"head#maps": ["distance"]})
    segment(numbered, tmp_path / "plain", **{"head": {
        "_target_": "medmdm.heads.FromScratch", "multiple": 4,
        "training": {"_target_": "medmdm.heads.Training", "steps": 1},
        "network": {
            "_target_": "UNet", "_mode_": "callable", "spatial_dims": 2, "in_channels": 3, "out_channels": 2,
            "channels": [4, 8], "strides": [2],
        },
    }, "postprocess#instances": "watershed"})  # fmt: skip
    own = {"_target_": "medmdm.segment.PostProcess", "instances": "distance"}
    plain = {"segmenter": str(tmp_path / "plain" / "segmenter.pt"), "postprocess": own}
    refused_in_config("needs the map 'distance'", run, "mdm_infer", output_dir=str(tmp_path / "none"), **plain)
    content = json.loads((numbered / "dataset.json").read_text())
    (numbered / "dataset.json").write_text(json.dumps({**content, "label_type": "classes", "labels": {
        "background": 0, "one": 1, "other": 2}}))  # fmt: skip
    refused("labels that number objects", "four", **{"head#learner#network#out_channels": 6})
