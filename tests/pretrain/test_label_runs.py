"""Labels as the regions that a pre-training hides: where they lie in a crop, what they change, and who is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow

from medmdm.artifacts.backbone import open_backbone
from medmdm.artifacts.pretrained import load_pretrained
from medmdm.data import CaseReader, LoadObjectsd, select_cases
from medmdm.data.files.pictures import read_image
from medmdm.files import pixel_hash
from medmdm.runs.record import find_provenance
from tests.bundle_runs import Workflow, saved_by, trainer_of
from tests.made import refused, refused_in_config
from tests.written import picture, write_nifti

CROP = (12, 16)
SIZES = {"a": (23, 37), "b": (30, 18), "small": (5, 9), "bare": (21, 26)}  # "small" is padded, "bare" has no label
FULL = 65535


def places(shape: tuple[int, int]) -> np.ndarray:
    """Return an image whose every pixel says where it is."""
    return np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)


def objects(name: str, shape: tuple[int, int]) -> np.ndarray:
    """Return rectangles of different sizes, numbered with gaps, some of which touch or reach the edge."""
    rng = np.random.default_rng(list(name.encode()))
    label = np.zeros(shape, np.uint16)
    for number in (1, 2, 5, 300, 9):
        row, column = rng.integers(0, shape[0] - 2), rng.integers(0, shape[1] - 3)
        label[row : row + rng.integers(2, 9), column : column + rng.integers(3, 12)] = number
    return label


def regions_of(name: str) -> np.ndarray:
    """Return the numbers of a picture's objects, -1 elsewhere."""
    label = np.zeros(SIZES[name], int) if name == "bare" else objects(name, SIZES[name]).astype(int)
    return np.where(label > 0, label, -1)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """One-channel 16-bit pictures that are not square, with labels that number objects; one picture has none."""
    folder, training = tmp_path / "labelled", []
    for name, shape in SIZES.items():
        picture(folder / f"{name}.png", places(shape))
        entry = {"image": f"{name}.png"}
        if name != "bare":
            picture(folder / "labels" / f"{name}.png", objects(name, shape))
            entry["label"] = f"labels/{name}.png"
        training.append(entry)
    picture(folder / "new.png", places((20, 24)))
    picture(folder / "labels" / "new.png", objects("new", (20, 24)))
    test = [{"image": "a.png", "label": "labels/a.png"}, {"image": "new.png", "label": "labels/new.png"}]
    labels = {"label_type": "instances", "labels": {"background": 0, "gland": 1}}
    (folder / "dataset.json").write_text(json.dumps({"name": "made", **labels, "training": training}))
    (folder / "tested.json").write_text(json.dumps({"name": "made", **labels, "training": training[1:2], "test": test}))
    return folder


@pytest.fixture
def made(workflow: Workflow, labelled: Path) -> Workflow:
    def make(*overlays: str, **overrides: Any) -> ConfigWorkflow:
        settings = {"dataset_dir": str(labelled), "channels": 1, "crop_size": list(CROP), "patch_size": 4, **overrides}
        return workflow(*(overlays or ("object_masking",)), **settings)

    return make


def samples(made: ConfigWorkflow, count: int = 60) -> tuple[Any, list[dict[str, Any]]]:
    made.initialize()
    dataset = made.parser.get_parsed_content("train#dataset")
    return dataset, [dataset[k] for k in range(count)]


def which(sample: dict[str, Any], names: list[str]) -> tuple[str, np.ndarray, np.ndarray]:
    """Return which picture a crop is of, and the rows and columns of its pixels, by their values."""
    index = np.rint((sample["image"][0].numpy().astype(np.float64) + 1) / 2 * FULL).astype(int)
    fits = []
    for name in names:
        rows, columns = np.divmod(index, SIZES[name][1])
        step = np.abs(np.diff(columns, axis=1))
        aligned = (np.diff(rows, axis=1) == 0).all() and (np.diff(columns, axis=0) == 0).all()
        if index.max() < np.prod(SIZES[name]) and step.max() <= 1 and aligned:
            fits.append((name, rows, columns))
    assert len(fits) == 1
    return fits[0]


def test_a_label_is_cut_mirrored_and_padded_as_its_image(made: Workflow) -> None:
    seen: set[tuple[str, bool]] = set()
    for sample in samples(made())[1]:
        assert sample["regions"].shape == (1, *CROP)
        assert sample["regions"].dtype == torch.int64
        name, rows, columns = which(sample, list(SIZES))
        expected = regions_of(name)[rows, columns]
        assert np.array_equal(sample["regions"][0].numpy(), expected), name
        seen.add((name, bool(columns[0, 7] > columns[0, 8])))
    assert seen == {(name, turned) for name in SIZES for turned in (False, True)}


def test_whole_objects_are_hidden_and_the_rest_is_as_without_labels(made: Workflow, tmp_path: Path) -> None:
    trainer = trainer_of(made())
    dataset = trainer.data_loader.dataset
    batch = torch.utils.data.default_collate([dataset[k] for k in range(40)])
    images, label = batch["image"], batch["regions"]
    x_t, t, target, visible = trainer.objective.pose(images, trainer.generators(batch["index"]), regions=label)
    plain = trainer.objective.pose(images, trainer.generators(batch["index"]))
    assert torch.equal(target, images)
    assert torch.equal(t, plain[1])
    superpixels = trainer.objective.corruption.superpixels(images)
    parts = 0
    for n in range(40):
        hidden = visible[n, 0].numpy() == 0
        assert np.array_equal(x_t[n, 0].numpy() == 0, hidden)
        numbers, pieces = label[n, 0].numpy(), superpixels[n, 0].numpy()
        if (numbers < 0).all():  # with the bits of a run without labels
            assert torch.equal(visible[n], plain[3][n])
        wholes = [numbers == number for number in np.unique(numbers[numbers > 0])]
        wholes += [(numbers < 0) & (pieces == piece) for piece in np.unique(pieces[numbers < 0])]
        assert all(
            len(np.unique(hidden[whole])) == 1 for whole in wholes
        )  # whole objects, and superpixels between them
        assert sum(whole.sum() for whole in wholes) == hidden.size
        parts += sum(hidden[numbers == number].all() for number in np.unique(numbers[numbers > 0]))
        largest = max(whole.sum() for whole in wholes)
        assert abs(hidden.sum() - int(t[n]) / 1000 * hidden.size) <= largest / 2 + 1e-6
    assert parts > 20


def test_a_run_with_labels_is_repeated_and_resumed_to_the_same_bits(made: Workflow, tmp_path: Path) -> None:
    settings = {"max_steps": 4, "preview_crops": 2}
    whole = saved_by(made(**settings, run_dir=str(tmp_path / "whole"), num_workers=1))
    cut = trainer_of(made(**settings, run_dir=str(tmp_path / "cut")))

    def stop() -> None:
        raise RuntimeError("cut")

    cut.add_event_handler(Events.ITERATION_COMPLETED(once=3), stop)
    with pytest.raises(RuntimeError, match="cut"):
        cut.run()
    resumed = saved_by(made(**settings, run_dir=str(tmp_path / "cut")))
    assert all(torch.equal(whole["model"][name], resumed["model"][name]) for name in whole["model"])
    without = saved_by(made("region_masking", **settings, run_dir=str(tmp_path / "without")))
    assert any(not torch.equal(whole["model"][name], without["model"][name]) for name in whole["model"])
    assert "labelled" not in without["plan"]["ledger"]
    assert "label_as" not in without["plan"]
    assert "labelled" not in json.loads((tmp_path / "without" / "run.json").read_text())["data"]


def test_a_run_whose_labels_have_changed_does_not_go_on(made: Workflow, labelled: Path) -> None:
    train = lambda **settings: saved_by(made(max_steps=1, preview_crops=1, **settings))  # noqa: E731
    train()
    path = labelled / "labels" / "b.png"
    label = read_image(path)[0]
    picture(path, np.roll(label, 2, axis=0))
    refused_in_config("order or labels", train)
    picture(path, label)
    train()


def test_labels_that_were_seen_are_in_the_ledger_and_in_what_is_said_of_scores(
    made: Workflow, labelled: Path, tmp_path: Path
) -> None:
    plan = saved_by(made(max_steps=1, preview_crops=1))["plan"]
    digests = {name: pixel_hash(read_image(labelled / f"{name}.png")) for name in SIZES}
    assert plan["label_as"] == "regions"
    assert plan["ledger"]["labelled"] == {digests[name]: digests[name] for name in ("a", "b", "small")}
    assert set(plan["ledger"]["images"]) == set(digests.values())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["labelled"] == 3
    _, kept = load_pretrained(tmp_path / "run" / "model.pt")
    tested = select_cases(labelled, labelled / "tested.json")
    cases = [CaseReader(tested, {**kept, "intensity_range": [0, FULL]}).read(entry) for entry in tested.test]
    both, new = find_provenance(cases, kept["ledger"]), find_provenance(cases[1:], kept["ledger"])
    assert both.kind == "transductive"
    assert both.sentence.startswith("THE LABELS OF 1 OF 2 TEST IMAGES WERE SEEN in the encoder's pre-training")
    assert new.kind == "inductive"
    assert "pre-training saw the labels of 3 images" in new.sentence
    assert (both.labels_seen, new.labels_seen) == (3, 3)


def test_labels_of_test_images_are_never_given(made: Workflow, labelled: Path) -> None:
    dataset, _ = samples(made(data_list=str(labelled / "tested.json"), transductive=True), 1)
    assert len(dataset.ledger) == 3
    assert list(dataset.labelled) == [pixel_hash(read_image(labelled / "b.png"))]


def test_a_strip_held_out_for_previews_changes_no_labelled_case(made: Workflow, labelled: Path) -> None:
    """The case is what the data list names: its label was seen although a strip of it did not train."""
    made_one = made(preview_crops=2, crop_size=[8, 8])
    dataset, _ = samples(made_one, 1)
    assert any("case_region" in entry for entry in dataset.data)
    digest = pixel_hash(read_image(labelled / "a.png"))
    assert dataset.labelled[digest] == digest
    given = made_one.parser.get_parsed_content("preview").given["regions"]
    crops = made_one.parser.get_parsed_content("preview").crops
    for crop, label in zip(crops, given, strict=True):
        name, rows, columns = which({"image": crop}, list(SIZES))
        expected = regions_of(name)[rows, columns]
        assert np.array_equal(label[0].numpy(), expected)


def test_where_images_are_resampled_labels_take_the_nearest_pixel(made: Workflow, labelled: Path) -> None:
    """Images whose grey is the number of the object: away from outlines both agree after resampling."""
    content = json.loads((labelled / "dataset.json").read_text())
    content["training"] = content["training"][:1]
    (labelled / "dataset.json").write_text(json.dumps({**content, "spacing": [0.5, 0.25]}))
    picture(labelled / "a.png", objects("a", SIZES["a"]) * 100)
    _, crops = samples(made(spacing=[0.2, 0.2]), 20)
    inside = 0
    for sample in crops:
        grey = np.rint((sample["image"][0].numpy().astype(np.float64) + 1) / 2 * FULL / 100)
        exact = np.isin(grey, [0, 1, 2, 5, 300, 9]) & (np.abs(np.gradient(grey)).sum(0) == 0)
        assert np.array_equal(grey[exact], sample["regions"][0].numpy().clip(0)[exact])
        inside += int((grey[exact] > 0).sum())
    assert inside > 100


def test_slices_carry_the_label_of_their_volume(made: Workflow, tmp_path: Path) -> None:
    folder, shape = tmp_path / "volumes", (14, 17, 15)
    label = np.zeros(shape, np.uint8)
    label[2:9, 3:14, 1:9], label[9:13, 1:8, 4:14] = 3, 8
    entries = []
    for n in range(6):
        write_nifti(folder / f"{n}.nii.gz", np.arange(label.size, dtype=np.int32).reshape(shape) + n, np.eye(4))
        turned = np.diag([-1.0, 1.0, 1.0, 1.0])  # the label's first axis runs the other way
        turned[0, 3] = shape[0] - 1
        write_nifti(folder / "labels" / f"{n}.nii.gz", np.ascontiguousarray(label[::-1]), turned)
        entries.append({"image": f"{n}.nii.gz", "label": f"labels/{n}.nii.gz"})
    (folder / "dataset.json").write_text(json.dumps({"label_type": "instances", "training": entries}))
    most = label.size + 5
    dataset, crops = samples(
        made(dataset_dir=str(folder), intensity_range=[0, most], slice_axis="coronal", min_foreground=None,
             slice_cache=str(tmp_path / "cache")), 30,
    )  # fmt: skip
    found = 0
    for sample in crops:
        value = (sample["image"][0].numpy().astype(np.float64) + 1) / 2 * most
        # Which volume it is shifts all values by less than the distance of two voxels of a coronal slice's rows.
        fits = [
            np.array_equal(label.reshape(-1)[np.clip(np.rint(value).astype(int) - n, 0, label.size - 1)],
                           sample["regions"][0].numpy().clip(0))
            for n in range(6)
        ]  # fmt: skip
        assert any(fits)
        found += int(sample["regions"].max() > 0)
    assert found > 5
    assert set(dataset.labelled) == set(dataset.ledger)  # of a volume its own hash


def test_content_follows_the_label(made: Workflow, tmp_path: Path) -> None:
    corruption = {
        "_target_": "medmdm.corruption.ContentMasking", "num_timesteps": "@num_timesteps", "patch_size": 4,
        "content": "map", "temperature": 0.01,
    }  # fmt: skip
    trainer = trainer_of(made("content_masking", label_as="content", corruption=corruption))
    batch = torch.utils.data.default_collate([trainer.data_loader.dataset[k] for k in range(40)])
    label = batch["content"]
    assert set(label.unique().tolist()) == {-1.0, 0.0, 1.0}
    visible = trainer.objective.pose(batch["image"], trainer.generators(batch["index"]), content=label)[3]
    uniform = trainer.objective.corruption.blank(batch["image"])
    plain = trainer.objective.pose(batch["image"], trainer.generators(batch["index"]), **uniform)[3]
    shares = torch.nn.functional.avg_pool2d(label, 4).flatten(1)
    hidden = 1 - torch.nn.functional.avg_pool2d(visible, 4).flatten(1)
    assert set(hidden.unique().tolist()) == {0, 1}
    for share, gone, seen, same in zip(shares, hidden, visible, plain, strict=True):
        if (share < 0).all():  # no label: as PatchMasking
            assert torch.equal(seen, same)
        elif gone.any() and not gone.all():
            assert share[gone == 1].min() >= share[gone == 0].max()
    saved = saved_by(made("content_masking", label_as="content", corruption=corruption, max_steps=1, preview_crops=1))
    assert saved["plan"]["ledger"]["labelled"]
    extractor = open_backbone(tmp_path / "run" / "model.pt").extractor  # without a label its masks are drawn uniformly
    assert extractor is not None
    assert torch.isfinite(extractor(torch.zeros(1, 1, *CROP))[0]).all()


MOVED = [{"_target_": "monai.transforms.RandSpatialCropd", "keys": "image", "roi_size": [12, 16], "random_size": False}]
FLIPPED = [
    {**MOVED[0], "keys": ["image", "label"], "allow_missing_keys": True},
    {"_target_": "monai.transforms.RandFlipd", "keys": "image", "prob": 1.0, "spatial_axis": 0},
]


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"data_list": "none"}, "label_as 'regions' needs a data list"),
    ({"data_list": {"label_type": "instances", "training": [{"image": "a.png"}]}}, "no image that trains has a"),
    (
        {"data_list": {"label_type": "instances", "training": [{"image": "a.png", "label": "lost.png"}]}},
        "1 of 1 training labels are not in .*lost.png",
    ),
    (
        {"data_list": {"label_type": "instances", "training": [{"image": "a.png", "label": "labels/b.png"}]}},
        "labels/b.png is 30x18 but its image .*a.png is 23x37",
    ),
    ({"data_list": {"training": [{"image": "a.png", "label": "labels/a.png"}]}}, "does not declare 'labels'"),
    (
        {"data_list": {"labels": {"none": 0, "gland": 2}, "training": [{"image": "a.png", "label": "labels/a.png"}]}},
        "labels/a.png holds 1, 5, 9, 300, but the classes are 0, 2",
    ),
    ({"augment": MOVED}, "not moved as its image is: give 'label' to the keys"),
    ({"augment": FLIPPED}, "not moved as its image is: give 'label' to the keys"),
    ({"corruption": {"_target_": "medmdm.corruption.PatchMasking", "patch_size": 4}}, "PatchMasking takes no regions"),
    ({"label_as": "content"}, "RegionMasking takes no content"),
    ({"train#dataset#label_as": None}, "no image that trains has a label"),
])  # fmt: skip
def test_what_cannot_be_given_is_refused_before_training(
    made: Workflow, tmp_path: Path, settings: dict[str, Any], sentence: str
) -> None:
    refused_in_config(sentence, trainer_of, made(**settings))
    assert not (tmp_path / "run").exists()


def test_a_slides_labels_are_refused() -> None:
    sample = {"image": torch.zeros(3, 4, 4), "label": "outlines.xml", "slide": None}
    refused("is a slide, whose labels cannot be given: leave label_as null", LoadObjectsd(), sample)
