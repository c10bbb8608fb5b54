"""Volumes that are read whole: fitted, predicted and scored in three dimensions, masks where the file has them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.inferers import sliding_window_inference

from medmdm.artifacts.segmenter_file import load_segmenter
from medmdm.data.cases import select_cases
from medmdm.data.reading import CaseReader
from medmdm.data.single_image import ReadImaged
from medmdm.data.transforms.spatial import PadToSize
from medmdm.files import file_hash
from medmdm.heads.predictor import Predictor, inside
from medmdm.heads.segmenter import PaddedNetwork
from medmdm.heads.task import Reading, Task, random_crop
from medmdm.heads.training import Training
from medmdm.intact import save_record
from medmdm.runs.config import normalise
from medmdm.runs.doctor import examine
from medmdm.segment import MaskFromLogitsd, Outputs, PostProcess
from medmdm.segment.slides import segment_slide
from medmdm.zoo import pack
from tests.bundle_runs import BUNDLES, OVERLAYS, write_backbone
from tests.made import refused, refused_in_config
from tests.written import boxes, picture, write_nifti
from tests.zoo.test_pack import checked_by_monai, labelled_by_monai_label

# Voxels of 0.8 x 2.5 x 1.1 mm that run to A, I and L: no axis is where an axial slice has it.
AFFINE = np.array([[0, 0, -1.1, 40], [0.8, 0, 0, -7], [0, -2.5, 0, 12], [0, 0, 0, 1.0]])
PLAN: dict[str, Any] = {
    "channels": 1, "crop_size": [8, 16, 16], "slice_axis": "none", "intensity_range": [0, 1000], "spacing": None,
}  # fmt: skip
LINEAR = {"_target_": "medmdm.heads.ClosedFormHead"}


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """A bright box at one corner of dark volumes of different sizes, of which a faint one lies at the other."""
    return boxes(tmp_path / "set", 11, [100, 800, 450], 60, AFFINE, training=3)


@pytest.fixture
def run(tmp_path: Path, volumes: Path) -> Callable[..., Any]:
    def call(bundle: str, **overrides: Any) -> Any:
        settings = {"dataset_dir": str(volumes), "slice_cache": str(tmp_path / "slices"), **overrides}
        if bundle == "mdm_segment":
            settings = {
                "run_dir": str(tmp_path / "run"),
                "head": LINEAR,
                "masking": "none",
                "report": False,
                **settings,
            }
            settings.setdefault("backbone", str(write_backbone(tmp_path / "model.pt", **PLAN)))
        config = str(BUNDLES / f"{bundle}.json")
        workflow = ConfigWorkflow(config_file=config, logging_file=False, meta_file=None, **settings)
        workflow.initialize()
        return workflow.run()[0]

    return call


def dice(mask: np.ndarray, label: np.ndarray) -> float:
    per_class = [2 * ((mask == k) & (label == k)).sum() / ((mask == k).sum() + (label == k).sum()) for k in (1, 2)]
    return float(np.mean(per_class))


def array(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_a_volume_and_its_label_are_read_as_nibabel_turns_them(volumes: Path, tmp_path: Path) -> None:
    cases = select_cases(volumes, None)
    case = CaseReader(cases, PLAN, tmp_path / "slices").read(cases.test[0])
    (example,) = case.examples
    for found, name in ((example.image[0], "3"), (example.label, "3_label")):
        source = nib.as_closest_canonical(nib.load(volumes / f"{name}.nii.gz"))
        turned = np.asarray(source.dataobj).transpose(2, 1, 0)[:, ::-1, ::-1]
        expected = turned if name == "3_label" else (turned / 500 - 1).clip(-1, 1)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert (case.slices, case.shape, case.spacing) == ((), (25, 11, 19), pytest.approx((0.8, 2.5, 1.1)))
    assert np.array_equal(case.truth, array(volumes / "3_label.nii.gz"))
    assert np.array_equal(case.pixels()[0], array(volumes / "3.nii.gz"))


def test_numbered_objects_and_sequences_of_whole_volumes(volumes: Path, tmp_path: Path) -> None:
    objects = np.zeros((22, 11, 19), np.int32)
    objects[2:6, 1:5, 3:9], objects[15:20, 7:10, 12:18] = 7, 300
    write_nifti(volumes / "objects.nii.gz", objects, AFFINE)
    entry = {"image": ["0.nii.gz", "objects.nii.gz"], "label": "objects.nii.gz"}
    content = {"name": "objects", "label_type": "instances", "training": [entry]}
    cases = select_cases(volumes, content, sections=("training",))
    case = CaseReader(cases, {**PLAN, "channels": 2}, tmp_path / "slices").read(cases.training[0])
    (example,) = case.examples
    turned = objects.transpose(1, 0, 2)[::-1, ::-1]  # from I and A to S and P, and L as it is
    assert example.image.shape == (2, 11, 22, 19)
    assert np.array_equal(case.instances, objects)
    assert np.array_equal(case.truth, objects > 0)
    assert np.array_equal(example.objects, turned)
    assert np.array_equal(example.label, turned > 0)


def test_programs_on_transforms_get_the_same_mask(volumes: Path, tmp_path: Path) -> None:
    plan, window = {**PLAN, "spacing": [2.0, 1.2, 1.1]}, (8, 16, 16)
    case = CaseReader(select_cases(volumes, None), plan, tmp_path / "slices").read(select_cases(volumes, None).test[0])
    expected = Predictor(Threshold(), Reading(window)).case(case).probabilities.argmax(0)
    data = ReadImaged("image", plan, window, store=tmp_path / "slices")({"image": str(volumes / "3.nii.gz")})
    data["pred"] = Reading(window).inferer()(data["image"][None].as_tensor(), Threshold())[0]
    processed = MaskFromLogitsd("pred", PostProcess(remove_small_objects=0))(data)["pred"]
    assert np.array_equal(processed[0], expected)
    np.testing.assert_allclose(processed.affine, AFFINE, atol=1e-5)


def test_at_another_spacing_values_come_back_to_their_place(volumes: Path, tmp_path: Path) -> None:
    cases = select_cases(volumes, None)
    case = CaseReader(cases, {**PLAN, "spacing": [1.25, 1.6, 1.1]}, tmp_path / "slices").read(cases.test[1])
    assert case.examples[0].image.shape == (1, 22, 13, 19)  # slices of 2.5 mm, rows of 0.8, columns of 1.1
    assert case.examples[0].label.shape == (22, 13, 19)
    found = Predictor(Threshold(), Reading((8, 16, 16)), device="cpu").case(case).probabilities.argmax(0)
    label = array(volumes / "4_label.nii.gz")
    assert found.shape == label.shape
    assert dice(found, label) > 0.75  # edges are blurred; elsewhere, or mirrored, it would be below 0.3


class Threshold(torch.nn.Module):
    """Knows the intensities of the classes."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits of three classes."""
        return -((image - torch.tensor([-0.8, 0.6, -0.1]).reshape(1, 3, 1, 1, 1)) ** 2) * 100


def test_masks_lie_where_the_labels_do_and_the_file_gives_them_again(run, volumes: Path, tmp_path: Path) -> None:
    scores = run("mdm_segment", write_probabilities=True, report=True)
    assert scores["dice"] > 0.95
    folder = tmp_path / "run"
    masks = {name: array(folder / "predictions" / f"{name}.nii.gz") for name in ("3", "4")}
    of_cases = [dice(mask, array(volumes / f"{name}_label.nii.gz")) for name, mask in masks.items()]
    assert scores["dice"] == pytest.approx(np.mean(of_cases))
    written = nib.load(folder / "predictions" / "3.nii.gz")
    np.testing.assert_allclose(written.affine, AFFINE, atol=1e-5)
    assert array(folder / "predictions" / "3_probabilities.nii.gz").shape == (25, 11, 19, 3)
    assert (folder / "index.html").is_file()

    segmenter = folder / "segmenter.pt"
    again = run("mdm_evaluate", run_dir=str(tmp_path / "evaluated"), segmenter=str(segmenter))
    assert again == pytest.approx(scores)
    inferred = tmp_path / "inferred"
    run("mdm_infer", output_dir=str(inferred), segmenter=str(segmenter), write_surprise=True,
        backbone=str(tmp_path / "model.pt"), postprocess={"_target_": "medmdm.segment.PostProcess"})  # fmt: skip
    for name, mask in masks.items():
        assert np.array_equal(array(inferred / "predictions" / f"{name}.nii.gz"), mask)
        assert array(inferred / "predictions" / f"{name}_surprise.nii.gz").shape == mask.shape
        assert (inferred / "overlays" / f"{name}.png").is_file()
    assert load_segmenter(segmenter)[1]["backbone"]["slice_axis"] == "none"

    picture(tmp_path / "pictures" / "a.png", shape=(20, 30))
    settings = {"segmenter": str(segmenter), "data_list": "none", "output_dir": str(tmp_path / "of pictures")}
    refused_in_config("a.png is a picture, but the network reads volumes whole", run, "mdm_infer",
                      dataset_dir=str(tmp_path / "pictures"), **settings)  # fmt: skip
    bundle = pack(folder, tmp_path / "packed")
    checked_by_monai(bundle, tmp_path, volumes)
    for name, mask in masks.items():
        assert np.array_equal(labelled_by_monai_label(bundle, volumes / f"{name}.nii.gz")[0], mask)
    reader = CaseReader(select_cases(volumes, None), {**PLAN, "channels": 3})
    slide = {"case": "a", "image": "a.svs"}
    refused("a.svs is a slide, but", segment_slide, slide, reader, None, PostProcess(), Outputs(tmp_path / "slides"))


def test_a_segmenter_of_whole_volumes_without_windows_is_packed(run, volumes: Path, tmp_path: Path) -> None:
    run("mdm_segment", whole_images=True)
    bundle = pack(tmp_path / "run", tmp_path / "packed")
    for name in ("3", "4"):
        mask = array(tmp_path / "run" / "predictions" / f"{name}.nii.gz")
        assert np.array_equal(labelled_by_monai_label(bundle, volumes / f"{name}.nii.gz")[0], mask)


def test_a_pre_training_on_whole_volumes_is_not_packed(tmp_path: Path) -> None:
    path = write_backbone(tmp_path / "model.pt", **PLAN)
    save_record({"config": {"bundle": "mdm_pretrain"}, "weights": {"model.pt": file_hash(path)}}, tmp_path / "run.json")
    refused(
        "restores volumes whole: a pre-training on pictures or slices can be packed", pack, tmp_path, tmp_path / "b"
    )


@pytest.mark.slow
def test_whole_networks_learn_volumes(run, volumes: Path, tmp_path: Path) -> None:
    training = {
        "_target_": "medmdm.heads.Training", "steps": 120, "learning_rate": 0.01, "averaging": 0.9, "batch_size": 2,
    }  # fmt: skip
    unet = {
        "_target_": "medmdm.heads.FromScratch", "multiple": 16, "training": training,
        "network": {
            "_target_": "monai.networks.nets.BasicUNet", "_mode_": "callable", "spatial_dims": 3, "in_channels": 1,
            "out_channels": 3, "features": [8, 8, 8, 8, 8, 8], "norm": ["group", {"num_groups": 1}],
        },
    }  # fmt: skip
    preprocessing = {key: PLAN[key] for key in ("channels", "crop_size", "slice_axis", "intensity_range")}
    assert run("mdm_segment", head=unet, backbone=None, preprocessing=preprocessing)["dice"] > 0.9
    tuned = {"_target_": "medmdm.heads.FineTuning", "training": {**training, "steps": 40, "learning_rate": 0.003}}
    assert run("mdm_segment", head=tuned, run_dir=str(tmp_path / "tuned"))["dice"] > 0.9


AXES = ["axial", "coronal", "sagittal"]
OF_SLICES = {**PLAN, "slice_axis": "axial", "crop_size": [16, 16]}


@pytest.mark.slow
def test_networks_of_three_axes_are_one_segmenter(run, volumes: Path, tmp_path: Path) -> None:
    overlay = json.loads((OVERLAYS / "three_axes_segment.json").read_text())
    assert overlay["head#axes"] == AXES
    head = ConfigParser.load_config_file(BUNDLES / "mdm_segment.json")["head"]
    training = {**head["training"], "steps": 120, "learning_rate": 0.01, "averaging": 0.9, "precision": "float32"}
    settings = {
        **{key: value for key, value in overlay.items() if key not in ("run_dir", "head#training#steps")},
        "head": {**head, "axes": AXES, "network": {**head["network"], "spatial_dims": 2, "features": [8] * 6},
                 "training": training},
        # A backbone of slices says how they are scaled; that it cuts volumes is what the overlay replaces.
        "backbone": str(write_backbone(tmp_path / "slices.pt", **OF_SLICES)),
    }  # fmt: skip
    scores = run("mdm_segment", **settings, write_probabilities=True)
    assert scores["dice"] > 0.9
    path = tmp_path / "run" / "segmenter.pt"
    written = path.stat().st_mtime_ns
    masks = {name: array(tmp_path / "run" / "predictions" / f"{name}.nii.gz") for name in ("3", "4")}
    shutil.rmtree(tmp_path / "run" / "predictions")
    assert run("mdm_segment", **settings, write_probabilities=True) == scores  # the segmenter is there
    assert path.stat().st_mtime_ns == written
    again = run("mdm_evaluate", run_dir=str(tmp_path / "evaluated"), segmenter=str(path))
    assert again == pytest.approx(scores)
    run("mdm_infer", output_dir=str(tmp_path / "inferred"), segmenter=str(path))
    for name, mask in masks.items():
        assert np.array_equal(array(tmp_path / "run" / "predictions" / f"{name}.nii.gz"), mask)
        assert np.array_equal(array(tmp_path / "inferred" / "predictions" / f"{name}.nii.gz"), mask)
    probabilities = array(tmp_path / "run" / "predictions" / "3_probabilities.nii.gz")
    model, plan = load_segmenter(path)
    case = CaseReader(select_cases(volumes, None), plan["backbone"], tmp_path / "slices").read(
        select_cases(volumes, None).test[0]
    )

    def by_hand(block: torch.Tensor) -> torch.Tensor:
        mean: Any = 0
        for network, place in zip(model.networks, range(3), strict=True):
            read = [PaddedNetwork(network, 16)(one).softmax(1) for one in block.unbind(2 + place)]
            mean = mean + torch.stack(read, 2 + place) / 3
        return mean.log()

    padded = torch.as_tensor(PadToSize((16, 16, 16))(case.examples[0].image))
    logits = sliding_window_inference(padded[None], (16, 16, 16), 4, by_hand, 0.2, mode="gaussian")[0]
    logits = logits[inside(case.examples[0].image.shape[1:], padded.shape[1:])]
    expected = case.slicing.assembled([logits.softmax(0).numpy()])
    np.testing.assert_allclose(np.moveaxis(probabilities, -1, 0), expected, atol=1e-5)
    assert array(tmp_path / "run" / "predictions" / "3_disagreement.nii.gz").max() > 0

    bundle = pack(tmp_path / "run", tmp_path / "packed")
    for name, mask in masks.items():
        assert np.array_equal(labelled_by_monai_label(bundle, volumes / f"{name}.nii.gz")[0], mask)
    assert "16 x 16 x 16 pixels" in (bundle / "docs" / "README.md").read_text()
    refused_in_config("axes are of volumes that are read whole", run, "mdm_segment", run_dir=str(tmp_path / "b"),
            **{**settings, "preprocessing#slice_axis": "axial", "window": [16, 16]})  # fmt: skip


def test_doctor_knows_the_networks_of_three_axes(volumes: Path, tmp_path: Path) -> None:
    def said(level: str, **changes: Any) -> list[str]:
        parser = ConfigParser()
        parser.read_config([str(BUNDLES / "mdm_segment.json"), str(OVERLAYS / "three_axes_segment.json")])
        for key, value in {"dataset_dir": str(volumes), "backbone": backbone, "device": "cpu", **changes}.items():
            parser[key] = value
        normalise(parser)
        parser.parse(reset=True)
        return [found.message for found in examine(parser) if found.level == level]

    backbone = str(write_backbone(tmp_path / "slices.pt", **OF_SLICES))
    assert said("error") == []
    assert not any("trained" in sentence for level in ("warning", "info") for sentence in said(level))
    tuned = {"_target_": "medmdm.heads.FineTuning"}  # which takes the backbone's weights
    assert any("slice_axis is none, but the backbone was trained with axial" in s for s in said("warning", head=tuned))
    (wrong,) = said("error", **{"head#network#spatial_dims": 3})
    assert "head#network cannot read crops of [16, 16]" in wrong


def test_what_is_made_for_pictures_is_refused(run, volumes: Path, tmp_path: Path) -> None:
    head = {"_target_": "medmdm.heads.FineTuning", "training": {
        "_target_": "medmdm.heads.Training", "steps": 2, "augmentation": "radiology"}}  # fmt: skip
    refused_in_config("augmentation 'radiology' is for pictures", run, "mdm_segment", head=head)
    refused_in_config("give as many numbers", run, "mdm_segment", window=[16, 16], run_dir=str(tmp_path / "b"))
    cases = select_cases(volumes, None)
    case = CaseReader(cases, PLAN, tmp_path / "slices").read(cases.test[0])
    task = Task(case.examples, 3, Reading((8, 16, 16)), modality="histology")
    assert Training().flips_for(task) == (1, 2)  # rows and columns
    refused("is for pictures", Training(augmentation="histology").augmentation_for, task)
    crop = random_crop(case.examples[0], (11, 25, 19), seed=1)
    assert torch.equal(crop.image, case.examples[0].image.flip(3)) or torch.equal(crop.image, case.examples[0].image)
