"""Several segmenters as one, against the mean of what each writes alone."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from scipy.stats import entropy

from medmdm.artifacts.segmenter_file import load_segmenter, save_segmenter
from medmdm.files import file_hash
from tests.bundle_runs import BUNDLES, write_backbone
from tests.made import refused_in_config
from tests.made_slides import tissue_everywhere, write_slide
from tests.written import boxes, picture

# Voxels of 0.8 x 2.5 x 1.1 mm that run to A, I and L: no axis is where an axial slice has it.
AFFINE = np.array([[0, 0, -1.1, 40], [0.8, 0, 0, -7], [0, -2.5, 0, 12], [0, 0, 0, 1.0]])
PLAIN = "medmdm.segment.PostProcess"
RIDGE = {"_target_": "medmdm.heads.ClosedFormHead"}
AXES = ("axial", "sagittal", "coronal")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bright box in dark volumes of different sizes, of which a faint one lies at the other corner."""
    return boxes(tmp_path_factory.mktemp("volumes"), 13, [100, 500, 300], 90, AFFINE, training=2)


@pytest.fixture(scope="module")
def run(volumes: Path) -> Callable[..., Any]:
    def call(bundle: str, **overrides: Any) -> Any:
        settings = {"dataset_dir": str(volumes), "slice_cache": str(volumes / "slices"), **overrides}
        config = str(BUNDLES / f"{bundle}.json")
        workflow = ConfigWorkflow(config_file=config, logging_file=False, meta_file=None, **settings)
        workflow.initialize()
        return workflow.run()[0]

    return call


@pytest.fixture(scope="module")
def segmenters(run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One for each axis; the last one's slices are of other pixels, too."""
    tmp_path = tmp_path_factory.mktemp("segmenters")
    plan = {"channels": 1, "crop_size": [8, 8], "intensity_range": [0, 1000], "slice_axis": "axial"}
    backbone = write_backbone(tmp_path / "model.pt", **plan)
    for axis in AXES:
        settings = {"preprocessing#spacing": [1.5, 1.2]} if axis == "coronal" else {}
        settings |= {"preprocessing#slice_axis": axis, "run_dir": str(tmp_path / axis), "report": False}
        run("mdm_segment", backbone=str(backbone), head=RIDGE, masking="none", **settings)
    return [str(tmp_path / axis / "segmenter.pt") for axis in AXES]


def array(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.slow
def test_probabilities_are_the_mean_over_axes_and_spacings(
    run: Callable[..., Any], segmenters: list[str], tmp_path: Path
) -> None:
    maps = {"write_probabilities": True, "write_uncertainty": True, "postprocess": {"_target_": PLAIN}}
    alone = []
    for axis, segmenter in zip(AXES, segmenters, strict=True):
        run("mdm_infer", segmenter=segmenter, output_dir=str(tmp_path / f"of_{axis}"), **maps)
        alone.append(array(tmp_path / f"of_{axis}" / "predictions" / "3_probabilities.nii.gz"))
    assert min(np.abs(one - two).max() for one, two in itertools.pairwise(alone)) > 0.01
    run("mdm_infer", segmenter=segmenters, output_dir=str(tmp_path / "all"), **maps)
    written = tmp_path / "all" / "predictions"
    mean = np.mean(alone, axis=0)
    np.testing.assert_allclose(array(written / "3_probabilities.nii.gz"), mean, atol=1e-6)
    clear = np.sort(mean, axis=-1)
    clear = clear[..., -1] - clear[..., -2] > 1e-5
    assert np.array_equal(array(written / "3.nii.gz")[clear], mean.argmax(-1)[clear])
    np.testing.assert_allclose(array(written / "3_uncertainty.nii.gz"), entropy(mean, axis=-1), atol=1e-5)
    apart = entropy(mean, axis=-1) - np.mean([entropy(one, axis=-1) for one in alone], axis=0)
    np.testing.assert_allclose(array(written / "3_disagreement.nii.gz"), apart, atol=1e-5)
    np.testing.assert_allclose(nib.load(written / "3.nii.gz").affine, AFFINE, atol=1e-5)

    for order in (segmenters[::-1], segmenters[:2], segmenters[0]):
        refused_in_config(
            "another configuration .it differs in segmenter_sha256",
            run,
            "mdm_infer",
            segmenter=order,
            output_dir=str(tmp_path / "all"),
            **maps,
        )


@pytest.mark.slow
def test_evaluation_says_which_they_are_and_what_any_of_them_has_seen(
    run: Callable[..., Any], segmenters: list[str], tmp_path: Path, volumes: Path
) -> None:
    content = json.loads((volumes / "dataset.json").read_text())
    swapped = {**content, "training": content["test"], "test": content["training"]}
    (volumes / "swapped.json").write_text(json.dumps(swapped))
    run(
        "mdm_segment", data_list=str(volumes / "swapped.json"), head=RIDGE,
        backbone=str(Path(segmenters[0]).parents[1] / "model.pt"),
        masking="none", report=False, run_dir=str(tmp_path / "swapped"),
    )  # fmt: skip
    last = str(tmp_path / "swapped" / "segmenter.pt")
    means = run("mdm_evaluate", segmenter=segmenters[:2], run_dir=str(tmp_path / "good"))
    assert means["dice"] > 0.5
    record = json.loads((tmp_path / "good" / "evaluation.json").read_text())
    assert record["stamp"]["kind"] != "transductive"
    assert record["protocol"]["segmenter"] == "segmenter.pt, segmenter.pt"
    hashes = {file_hash(Path(one)) for one in segmenters[:2]}
    assert record["protocol"]["segmenter_sha256"] not in hashes
    run("mdm_evaluate", segmenter=[segmenters[0], last], run_dir=str(tmp_path / "seen"), report=False)
    assert json.loads((tmp_path / "seen" / "evaluation.json").read_text())["stamp"]["kind"] == "transductive"


@pytest.mark.slow
def test_what_does_not_fit_together_is_refused(run: Callable[..., Any], segmenters: list[str], tmp_path: Path) -> None:
    def refuse(sentence: str, segmenter: list[str], **settings: Any) -> None:
        out = tmp_path / "out"
        refused_in_config(sentence, run, "mdm_infer", segmenter=segmenter, output_dir=str(out), **settings)
        assert not list(out.rglob("*.nii.gz"))

    refuse("segmenter is an empty list", [])
    refuse(r"does_not_exist\.pt", [segmenters[0], str(tmp_path / "does_not_exist.pt")])
    model, plan = load_segmenter(segmenters[0])
    plan["task"] |= {"class_names": ["background", "faint", "bright"]}
    save_segmenter(tmp_path / "other.pt", model, plan)
    refuse("an ensemble is of segmenters of the same classes", [segmenters[0], str(tmp_path / "other.pt")])


@pytest.mark.slow
def test_slides_are_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    backbone = write_backbone(tmp_path / "model.pt", spacing=0.0005)
    entries = []
    for number in range(2):
        image = np.random.default_rng(number).integers(0, 255, (20, 33, 3)).astype(np.uint8)
        picture(tmp_path / "set" / f"{number}.png", image)
        picture(tmp_path / "set" / f"{number}_mask.png", (image[..., 0] > 120).astype(np.uint8))
        entries.append([{"image": f"{number}.png", "label": f"{number}_mask.png", "spacing": [0.0005, 0.0005]}])
    content = {"name": "noise", "labels": {"background": 0, "bright": 1}, "training": entries[0], "test": entries[1]}
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(content))
    run("mdm_segment", backbone=str(backbone), dataset_dir=str(tmp_path / "set"), head=RIDGE, masking="none",
        run_dir=str(tmp_path / "run"), report=False)  # fmt: skip
    (tmp_path / "slides").mkdir()
    write_slide(tmp_path / "slides" / "s.ome.tif", (64, 64), tissue_everywhere, mpp=0.5)
    one = str(tmp_path / "run" / "segmenter.pt")
    settings = {"dataset_dir": str(tmp_path / "slides"), "output_dir": str(tmp_path / "out")}
    refused_in_config("slides are read by one segmenter", run, "mdm_infer", segmenter=[one, one], **settings)
