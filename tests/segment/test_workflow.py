"""The bundles from a backbone to a report, on made data sets; each run takes seconds."""

import collections
import importlib
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from torch import nn

from medmdm.artifacts.backbone import open_backbone
from medmdm.artifacts.segmenter_file import load_segmenter
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.data.files.pictures import read_image
from medmdm.files import pixel_hash
from medmdm.reports import write_report
from medmdm.segment.postprocessing import boxes
from tests.bundle_runs import BUNDLES, HEAD, UNET, Run, write_backbone
from tests.segment.conftest import on_one_grid
from tests.written import picture, write_nifti


def test_segment_evaluate_and_infer(run: Run, tmp_path: Path, pictures: Path) -> None:
    scores = run("mdm_segment")
    assert scores["dice"] > 0.9
    folder = tmp_path / "run"
    files = {"segmenter.pt", "plan.json", "run.json", "evaluation.json", "index.html", "per_case.csv"}
    assert files <= {path.name for path in folder.iterdir()}
    mask = read_image(folder / "predictions" / "4.png")[0]
    assert mask.shape == read_image(pictures / "4.png").shape[1:]
    assert json.loads((folder / "evaluation.json").read_text())["stamp"]["kind"] == "inductive"
    assert "patient 4" not in (folder / "index.html").read_text()

    again = run("mdm_evaluate", run_dir=str(tmp_path / "evaluated"), segmenter=str(folder / "segmenter.pt"))
    assert again == scores

    inferred = tmp_path / "inferred"
    masks = run("mdm_infer", output_dir=str(inferred), segmenter=str(folder / "segmenter.pt"), write_probabilities=True)
    by_name = {path.name: path for path in masks}
    assert len(masks) == 6
    assert np.array_equal(read_image(by_name["4.png"])[0], mask)
    run("mdm_segment", run_dir=str(tmp_path / "again"), write_probabilities=True)
    both = [read_image(at / "predictions" / "4_probabilities.tif") for at in (inferred, tmp_path / "again")]
    assert np.array_equal(*both)  # of all bits, which features of 16 bits would not have


@pytest.mark.parametrize(
    ("modality", "how", "norm"),
    [
        (None, {"whole_images": True}, nn.InstanceNorm2d), (None, {"window": [128, 160]}, nn.InstanceNorm2d),
        (None, {"window": [160, 96]}, nn.GroupNorm), ("ultrasound", {"whole_images": True}, nn.GroupNorm),
    ],
)  # fmt: skip
def test_the_default_normalises_by_the_modality_and_by_how_much_is_seen_at_once(
    tmp_path: Path, pictures: Path, modality: str | None, how: dict[str, Any], norm: type[nn.Module]
) -> None:
    content = json.loads((pictures / "dataset.json").read_text())
    settings = {**how, "data_list": {**content, **({} if modality is None else {"modality": modality})}}
    parser = ConfigParser(ConfigParser.load_config_file(BUNDLES / "mdm_segment.json"))
    parser.update({"dataset_dir": str(pictures), "backbone": str(write_backbone(tmp_path / "model.pt")), **settings})
    modules = list(parser.get_parsed_content("head").network().modules())
    assert {type(one) for one in modules if "Norm" in type(one).__name__} == {norm}
    assert all(getattr(one, "affine", True) for one in modules)


def test_unlabelled_images_that_were_looked_at_count_as_seen(run: Run, pictures: Path, tmp_path: Path) -> None:
    content = json.loads((pictures / "dataset.json").read_text())
    for number in (4, 5):
        shutil.copy(pictures / f"{number}.png", pictures / f"copy_{number}.png")
    both = {**content, "unlabeled": [{"image": "copy_4.png"}, {"image": "copy_5.png"}]}
    taught = {"_target_": "medmdm.heads.SelfTraining"}
    head = {"_target_": "medmdm.heads.ClosedFormHead", "method": "ridge", "unlabelled": taught}
    run("mdm_segment", head=head, data_list=both, report=False)
    segmenter = str(tmp_path / "run" / "segmenter.pt")
    run("mdm_evaluate", segmenter=segmenter, run_dir=str(tmp_path / "evaluated"), report=False)
    for folder in ("run", "evaluated"):
        stamp = json.loads((tmp_path / folder / "evaluation.json").read_text())["stamp"]
        assert (stamp["kind"], stamp["overlapping"]) == ("transductive", ["4", "5"])
    run("mdm_segment", head={**head, "unlabelled": None}, data_list=both, report=False, run_dir=str(tmp_path / "other"))
    assert json.loads((tmp_path / "other" / "evaluation.json").read_text())["stamp"]["kind"] == "inductive"


def test_another_number_of_channels_is_named(run: Run, refused: Run, pictures: Path, tmp_path: Path) -> None:
    scratch = {"head": UNET, "backbone": None, "preprocessing#crop_size": [16, 16], "report": False}
    run("mdm_segment", **scratch)
    grey = tmp_path / "new" / "grey.png"
    picture(grey, np.full((20, 30), 90))
    segmenter = str(tmp_path / "run" / "segmenter.pt")
    refused("grey.png has 1 channel, but the backbone takes 3", "mdm_infer", segmenter=segmenter,
            dataset_dir=str(grey.parent), output_dir=str(tmp_path / "masks"))  # fmt: skip
    picture(pictures / "1.png", read_image(pictures / "1.png")[0])
    refused("1.png has 1 channel, but ", "mdm_segment", **scratch, run_dir=str(tmp_path / "mixed"))


def test_inference_says_what_it_leaves_out(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run("mdm_segment", report=False)
    for name in ("a.png", "a_label.png"):
        picture(tmp_path / "new" / name, shape=(20, 30, 3))
    segmenter = str(tmp_path / "run" / "segmenter.pt")
    with caplog.at_level(logging.WARNING):
        masks = run("mdm_infer", segmenter=segmenter, dataset_dir=str(tmp_path / "new"), output_dir=str(tmp_path / "o"))
    assert [path.name for path in masks] == ["a.png"]
    assert "1 mask left out (first: a_label.png): rename what is an image" in caplog.text


def test_a_forest_on_filters_is_fitted_found_again_and_used(run: Run, tmp_path: Path) -> None:
    forest = {"_target_": "medmdm.heads.RandomForestHead", "trees": 10, "depth": 6, "pixels": 200}
    settings = {"opened#initialise": "filters", "head": forest}
    scores = run("mdm_segment", **settings)
    assert scores["dice"] > 0.9
    assert run("mdm_segment", **settings) == scores
    segmenter = str(tmp_path / "run" / "segmenter.pt")
    again = run("mdm_evaluate", run_dir=str(tmp_path / "evaluated"), segmenter=segmenter)
    assert again == scores


def test_a_second_run_reads_test_images_alone(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[torch.Size] = []
    extract = FeatureExtractor.raw

    def counted(self: FeatureExtractor, x: torch.Tensor) -> list[torch.Tensor]:
        read.extend([x.shape[1:]] * len(x))
        return extract(self, x)

    monkeypatch.setattr(FeatureExtractor, "raw", counted)
    first = run("mdm_segment")
    # Windows of 16 x 16 that overlap by a fifth: the two test images have 36 x 40 and 38 x 40 pixels.
    # (The pictures of features read an image whole.)
    tested = [shape for shape in read if shape[-2:] == (16, 16)][-18:]
    assert len(read) > len(tested)
    read.clear()
    model = tmp_path / "run" / "segmenter.pt"
    features = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "features").rglob("*.pt")}
    written = model.stat().st_mtime_ns
    assert features
    assert run("mdm_segment") == first
    assert [shape for shape in read if shape[-2:] == (16, 16)] == tested
    assert model.stat().st_mtime_ns == written
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "features").rglob("*.pt")} == features


def test_another_split_and_other_weights_are_noticed(run: Run, refused: Run, tmp_path: Path) -> None:
    run("mdm_segment", report=False)
    content = json.loads((tmp_path / "pictures" / "dataset.json").read_text())
    train, test = content["training"], content["test"]
    moved = {**content, "training": [*test, *train[2:]], "test": train[:2]}
    refused("their split", "mdm_segment", data_list=moved, report=False)
    write_backbone(tmp_path / "model.pt", seed=1)  # under the same name
    refused("backbone_sha256", "mdm_segment", report=False)


class Nothing:
    """Post-processing of somebody's own."""

    def __call__(self, probabilities: np.ndarray, spacing: Any = None) -> dict[str, Any]:
        """Find nothing."""
        return {"mask": np.zeros(probabilities.shape[1:], np.uint8), "instances": None}


def test_the_segmenters_post_processing_is_kept(run: Run, refused: Run, tmp_path: Path) -> None:
    large = {"_target_": "medmdm.segment.PostProcess", "remove_small_objects": "$100 * 100"}
    assert run("mdm_segment", postprocess=large, report=False)["dice"] == 0
    settings = {"segmenter": str(tmp_path / "run" / "segmenter.pt"), "report": False}
    assert run("mdm_evaluate", run_dir=str(tmp_path / "a"), **settings)["dice"] == 0

    own = {"_target_": f"{__name__}.Nothing"}
    assert run("mdm_segment", run_dir=str(tmp_path / "own"), postprocess=own, report=False)["dice"] == 0
    settings = {"segmenter": str(tmp_path / "own" / "segmenter.pt"), "report": False}
    refused("test_workflow.Nothing", "mdm_evaluate", run_dir=str(tmp_path / "b"), **settings)
    assert run("mdm_evaluate", run_dir=str(tmp_path / "c"), postprocess=own, **settings)["dice"] == 0


def test_boxes_lie_on_the_whole_picture(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "pictures" / "dataset.json"
    content = json.loads(path.read_text())
    content["test"][0]["region"] = {"rows": [4, 34], "columns": [8, 40]}
    path.write_text(json.dumps(content))
    found = {"_target_": "medmdm.segment.PostProcess", "instances": "components", "remove_small_objects": 40}
    run("mdm_segment", postprocess=found, report=False)
    run("mdm_infer", output_dir=str(tmp_path / "inferred"), segmenter=str(tmp_path / "run" / "segmenter.pt"))
    table = pd.read_csv(tmp_path / "inferred" / "boxes.csv")
    for case in ("4", "5"):
        instances = read_image(tmp_path / "inferred" / "predictions" / f"{case}_instances.png")[0]
        rows = table[table["case"] == int(case)].drop(columns="case").reset_index(drop=True)
        assert rows.pop("score").between(0.5, 1).all()
        assert len(rows)
        pd.testing.assert_frame_equal(rows, boxes(instances, instances > 0), check_dtype=False)


def test_fine_tuning_without_its_backbone_is_refused_before_it_starts(refused: Run, tmp_path: Path) -> None:
    head = {"_target_": "medmdm.heads.FineTuning"}
    refused("include_backbone", "mdm_segment", head=head, include_backbone=False)
    assert not (tmp_path / "run").exists()


def test_the_same_seed_gives_the_same_file(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run("mdm_segment", run_dir=str(tmp_path / name), feature_cache=str(tmp_path / "cache"), report=False)
    assert (tmp_path / "a" / "segmenter.pt").read_bytes() == (tmp_path / "b" / "segmenter.pt").read_bytes()


def test_a_later_evaluation_knows_the_labelled_images_and_patients(run: Run, tmp_path: Path) -> None:
    run("mdm_segment", report=False)
    content = json.loads((tmp_path / "pictures" / "dataset.json").read_text())
    swapped = {**content, "test": content["training"][:2], "training": content["test"]}
    of_patient = {**content, "test": [{**content["test"][0], "patient_id": "patient 1"}, content["test"][1]]}
    settings = {"segmenter": str(tmp_path / "run" / "segmenter.pt"), "report": False}
    for kind, seen, changed in (("transductive", ["0", "1"], swapped), ("patients shared", ["4"], of_patient)):
        run("mdm_evaluate", run_dir=str(tmp_path / kind), data_list=changed, **settings)
        record = json.loads((tmp_path / kind / "evaluation.json").read_text())
        assert (record["stamp"]["kind"], record["stamp"]["overlapping"]) == (kind, seen)
        assert "ledger" not in record["protocol"]


def test_a_network_from_scratch_has_not_seen_what_the_backbone_saw(run: Run, tmp_path: Path) -> None:
    digest = pixel_hash(read_image(tmp_path / "pictures" / "4.png"))
    seen = write_backbone(tmp_path / "seen.pt", ledger={"images": [digest], "patients": [], "salt": ""})
    kinds = []
    for name, head in (("frozen", HEAD), ("scratch", UNET)):
        run("mdm_segment", run_dir=str(tmp_path / name), backbone=str(seen), head=head, report=False)
        kinds.append(json.loads((tmp_path / name / "evaluation.json").read_text())["stamp"]["kind"])
    assert kinds == ["transductive", "inductive"]


def test_every_report_says_that_the_backbone_saw_labels(run: Run, tmp_path: Path) -> None:
    digests = [pixel_hash(read_image(tmp_path / "pictures" / f"{number}.png")) for number in (0, 4)]
    ledger = {"images": digests, "patients": [], "salt": "", "labelled": {digest: digest for digest in digests}}
    backbone = write_backbone(tmp_path / "seen.pt", ledger=ledger)
    folder, said = tmp_path / "run", "THE LABELS OF 1 OF 2 TEST IMAGES WERE SEEN in the encoder"
    run("mdm_segment", backbone=str(backbone))
    for text in ((folder / "summary.md").read_text(), (folder / "index.html").read_text()):
        assert said in text
    record = json.loads((folder / "evaluation.json").read_text())
    assert (record["stamp"]["kind"], record["stamp"]["labels_seen"]) == ("transductive", 2)
    run("mdm_evaluate", run_dir=str(tmp_path / "again"), segmenter=str(folder / "segmenter.pt"), report=False)
    assert json.loads((tmp_path / "again" / "evaluation.json").read_text())["stamp"] == record["stamp"]
    content = json.loads((tmp_path / "pictures" / "dataset.json").read_text())
    run("mdm_segment", backbone=str(backbone), run_dir=str(tmp_path / "left out"), report=False,
        data_list={key: value for key, value in content.items() if key != "test"})  # fmt: skip
    stamp = json.loads((tmp_path / "left out" / "evaluation.json").read_text())["stamp"]
    assert stamp["kind"] == "cross-validated"
    assert stamp["sentence"].startswith("THE LABELS OF 1 OF 4 TEST IMAGES WERE SEEN")
    assert "There is no test section" in stamp["sentence"]


def test_a_head_of_another_backbone_is_refused(run: Run, refused: Run, tmp_path: Path) -> None:
    run("mdm_segment", include_backbone=False, report=False)
    head = str(tmp_path / "run" / "segmenter.pt")
    right = run("mdm_evaluate", run_dir=str(tmp_path / "e"), segmenter=head, backbone=str(tmp_path / "model.pt"))
    assert right["dice"] > 0.9
    other = write_backbone(tmp_path / "other.pt", seed=1)
    refused("other.pt", "mdm_evaluate", run_dir=str(tmp_path / "f"), segmenter=head, backbone=str(other))


def test_the_papers_norm_is_for_windows_of_one_size(run: Run, refused: Run, tmp_path: Path) -> None:
    refused("whole_images", "mdm_segment", whole_images=True, normalize="global_l2")
    head = {**HEAD, "views": "whole"}
    refused("views", "mdm_segment", run_dir=str(tmp_path / "views"), head=head, normalize="global_l2")
    assert run("mdm_segment", normalize="global_l2", report=False)["dice"] > 0.9


def test_features_with_context_go_into_the_file(run: Run, tmp_path: Path) -> None:
    scores = run("mdm_segment", context=[4, 8], context_deviation=True, report=False)
    assert scores["dice"] > 0.9
    path = tmp_path / "run" / "segmenter.pt"
    assert load_segmenter(path)[1]["extractor"]["context"] == [4, 8]
    again = run("mdm_evaluate", run_dir=str(tmp_path / "evaluated"), segmenter=str(path), report=False)
    assert again == pytest.approx(scores)


def test_from_scratch_needs_no_backbone(run: Run, tmp_path: Path) -> None:
    unet = {**UNET, "training": {**UNET["training"], "steps": 120, "learning_rate": 0.01}}
    # MONAI drops overrides that are None: an overlay file says it.
    overlay = tmp_path / "scratch.json"
    overlay.write_text(json.dumps({"backbone": None, "head": unet, "preprocessing": {"crop_size": [16, 16]}}))
    files = [str(BUNDLES / "mdm_segment.json"), str(overlay)]
    settings = {"dataset_dir": str(tmp_path / "pictures"), "run_dir": str(tmp_path / "run")}
    workflow = ConfigWorkflow(config_file=files, logging_file=False, meta_file=None, **settings)
    workflow.initialize()
    assert workflow.run()[0]["dice"] > 0.8
    segmenter = str(tmp_path / "run" / "segmenter.pt")
    assert run("mdm_evaluate", run_dir=str(tmp_path / "e"), segmenter=segmenter)["dice"] > 0.8
    # A backbone says how images are read, and gives the map of surprise.
    settings = {"head": UNET, "run_dir": str(tmp_path / "beside"), "write_surprise": True}
    first = run("mdm_segment", **settings)
    assert run("mdm_segment", **settings) == first
    files = {"segmenter": str(tmp_path / "beside" / "segmenter.pt"), "backbone": str(tmp_path / "model.pt")}
    again = run("mdm_evaluate", run_dir=str(tmp_path / "s"), write_surprise=True, **files)
    assert again == pytest.approx(first)
    assert (tmp_path / "s" / "predictions" / "4_surprise.tif").is_file()


def test_percentiles_may_be_given_as_pre_training_has_them() -> None:
    plan = open_backbone(None, preprocessing={"crop_size": [16, 16], "percentiles": [1, 99]}).plan
    assert plan["percentiles"] == {"lower": 1.0, "upper": 99.0, "nonzero": False}


@pytest.fixture
def volumes(tmp_path: Path) -> dict[str, Any]:
    """Settings of a run on bright boxes in three small volumes, one of them to test on."""
    folder = tmp_path / "volumes"
    rng = np.random.default_rng(1)
    sections: dict[str, list[dict[str, str]]] = {"training": [], "test": []}
    for number in range(3):
        label = np.zeros((20, 24, 7), np.uint8)
        label[5:14, 6 + number : 18, 2:5] = 1
        image = label * 500.0 + rng.normal(100, 40, label.shape)
        write_nifti(folder / f"{number}.nii.gz", image.astype(np.float32), np.diag([1.0, 2.0, 3.0, 1.0]))
        write_nifti(folder / f"{number}_label.nii.gz", label, np.diag([1.0, 2.0, 3.0, 1.0]))
        entry = {"image": f"{number}.nii.gz", "label": f"{number}_label.nii.gz"}
        sections["training" if number < 2 else "test"].append(entry)
    (folder / "dataset.json").write_text(json.dumps({"name": "boxes", "labels": {"rest": 0, "box": 1}, **sections}))
    percentiles = {"lower": 1, "upper": 99, "nonzero": False}
    plan = {"channels": 1, "percentiles": percentiles, "slice_axis": "coronal", "context_slices": 0}
    backbone = str(write_backbone(tmp_path / "gray.pt", **plan))
    return {"dataset_dir": str(folder), "backbone": backbone, "head": {"_target_": "medmdm.heads.ClosedFormHead"}}


def test_volumes_are_segmented_slice_by_slice_and_scored_whole(run, tmp_path, volumes) -> None:
    assert run("mdm_segment", **volumes)["dice"] > 0.9
    mask = nib.load(tmp_path / "run" / "predictions" / "2.nii.gz")
    assert mask.shape == (20, 24, 7)
    assert np.allclose(mask.affine, np.diag([1.0, 2.0, 3.0, 1.0]))
    rows = pd.read_csv(tmp_path / "run" / "per_case.csv")
    assert len(rows) == 1  # the volume, not its slices


def test_the_mean_of_the_labelled_masks_is_recorded_where_all_cases_are_of_one_grid(
    run: Run, tmp_path: Path, pictures: Path
) -> None:
    run("mdm_segment", run_dir=str(tmp_path / "sizes"), report=False)
    assert not (tmp_path / "sizes" / "mean_mask.npz").exists()

    labels = on_one_grid(pictures)
    run("mdm_segment", shots=3)
    drawn = json.loads((tmp_path / "run" / "evaluation.json").read_text())["protocol"]["training_cases"]
    expected = sum(labels[int(name)].astype(int) for name in drawn) >= 2
    assert np.array_equal(np.load(tmp_path / "run" / "mean_mask.npz")["mask"], expected)
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["baselines"]["mean_mask"]["scores"]
    dices = [2 * (expected & (label > 0)).sum() / (expected.sum() + label.sum()) for label in labels[4:]]
    assert found["dice"]["mean"] == pytest.approx(np.mean(dices))
    page = (tmp_path / "run" / "index.html").read_bytes()
    write_report(tmp_path / "run")  # from the files
    assert (tmp_path / "run" / "index.html").read_bytes() == page

    segmenter = str(tmp_path / "run" / "segmenter.pt")  # which does not hold its labels
    run("mdm_evaluate", run_dir=str(tmp_path / "evaluated"), segmenter=segmenter)
    assert set(json.loads((tmp_path / "evaluated" / "summary.json").read_text())["baselines"]) == {"all_foreground"}


def test_volumes_are_of_one_grid_if_their_spacing_is_the_same(
    run: Run, tmp_path: Path, volumes: dict[str, Any]
) -> None:
    run("mdm_segment", **volumes, report=False)
    assert np.load(tmp_path / "run" / "mean_mask.npz")["mask"].shape == (20, 24, 7)
    for name in ("2.nii.gz", "2_label.nii.gz"):
        path = Path(volumes["dataset_dir"]) / name
        nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), np.diag([1.0, 2.0, 3.5, 1.0])), path)
    run("mdm_segment", **volumes, report=False, run_dir=str(tmp_path / "other"))
    assert not (tmp_path / "other" / "mean_mask.npz").exists()


@pytest.mark.parametrize("kind", ["pictures", "regions", "volumes"])
def test_images_and_labels_are_decoded_once_and_scored_once(run, tmp_path, monkeypatch, request, kind) -> None:
    decoded: collections.Counter[str] = collections.Counter()

    def counted(where: str) -> None:
        module, _, name = where.rpartition(".")
        function = getattr(importlib.import_module(module), name)

        def count(path: Any, *arguments: Any, **more: Any) -> Any:
            decoded.update([Path(path).name])
            return function(path, *arguments, **more)

        for other in [m for n, m in sys.modules.items() if n.startswith("medmdm.") and n != "medmdm.engines"]:
            if getattr(other, name, None) is function:
                monkeypatch.setattr(other, name, count)

    settings = request.getfixturevalue("volumes") if kind == "volumes" else {}
    if kind == "regions":
        path = tmp_path / "pictures" / "dataset.json"
        content = json.loads(path.read_text())
        content["test"][0]["region"] = {"rows": [4, 34], "columns": [8, 40]}
        path.write_text(json.dumps(content))
    counted("medmdm.data.files.pictures.read_image")
    counted("medmdm.data.files.pictures.read_mask")
    counted("medmdm.data.files.volumes.read_volume")
    scores = run("mdm_segment", **settings)
    data = Path(settings.get("dataset_dir", tmp_path / "pictures"))
    assert decoded == dict.fromkeys({path.name for path in data.iterdir() if path.suffix != ".json"}, 1)
    written = json.loads((tmp_path / "run" / "summary.json").read_text())["scores"]
    assert scores == {"dice": written["dice"]["mean"], "iou": written["iou"]["mean"]}
    numbers = (tmp_path / "run" / "per_case.csv").read_bytes()
    page = (tmp_path / "run" / "index.html").read_bytes()
    write_report(tmp_path / "run")  # from the files, as `medmdm report` does
    assert (tmp_path / "run" / "per_case.csv").read_bytes() == numbers
    assert (tmp_path / "run" / "index.html").read_bytes() == page


@pytest.mark.parametrize(("setting", "sentence"), [
    ({"window": 16}, "window must be a list of whole numbers such as [64, 64], or null, got 16."),
    ({"window": [0, 16]}, "window#0 must be a whole number of 1 or more, got 0."),
    ({"window": [16]}, "window must be two whole numbers above 0, such as [96, 96], got [16]."),
    ({"overlap": 1.5}, "overlap must be a number from 0 to below 1, got 1.5."),
    ({"shots": "two"}, "shots must be a whole number of 1 or more, or null, got 'two'."),
    ({"shots": 5}, "a subset of 5 cases was asked for, but there are 4: give 1 to 4"),
    ({"shots": 2, "draw": -1}, "draw must be a whole number of 0 or more, got -1."),
    ({"blocks": 3}, 'blocks must be "paper" or a list of block numbers, got 3.'),
    ({"timesteps": 50}, "timesteps must be a list of whole numbers such as [50, 200], or null, got 50."),
    ({"timesteps": [1000]}, "timesteps must be a list of numbers from 0 to 999, got [1000]."),
    ({"masking": "partition", "partitions": "many"},
     "partitions must be a whole number of 1 or more, or null, got 'many'."),
    ({"include_backbone": "no"}, "include_backbone must be true or false, got 'no'."),
], ids=str)  # fmt: skip
def test_wrong_settings_get_a_sentence_before_anything_is_done(refused, tmp_path, setting, sentence) -> None:
    refused(sentence, "mdm_segment", **setting)
    assert not (tmp_path / "run").exists()


def test_a_threshold_and_self_training_are_in_the_files(run: Run, tmp_path: Path, pictures: Path) -> None:
    taught = {"_target_": "medmdm.heads.SelfTraining", "threshold": 0.6}
    head = {"_target_": "medmdm.heads.ClosedFormHead", "choose_threshold": True, "unlabelled": taught}
    content = json.loads((pictures / "dataset.json").read_text())
    moved = {**content, "training": content["training"][:3], "unlabeled": [{"image": "3.png"}]}
    scores = run("mdm_segment", data_list=moved, head=head, report=False)
    evidence = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert evidence["unlabelled"]["images"] == 1
    assert evidence["head"]["unlabelled"]["threshold"] == 0.6
    segmenter = str(tmp_path / "run" / "segmenter.pt")
    assert load_segmenter(segmenter)[1]["task"]["threshold"] == evidence["threshold"]
    again = run("mdm_evaluate", run_dir=str(tmp_path / "evaluated"), segmenter=segmenter, report=False)
    assert again["dice"] == pytest.approx(scores["dice"], abs=1e-3)
