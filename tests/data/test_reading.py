"""Image and label on one grid with the declared numbers; cases are read as pre-training reads its images."""

import json
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import tifffile
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose

from medmdm.data.cases import select_cases
from medmdm.data.files.pictures import read_image
from medmdm.data.files.volumes import Slicing, read_volume
from medmdm.data.identity import content_hash
from medmdm.data.loading import LabelToClassesd, LoadCased
from medmdm.data.reading import CaseReader, PictureInParts
from medmdm.data.slices import VolumeStore, slice_entries
from medmdm.errors import UserError, find_user_error
from medmdm.files import resource_folder
from medmdm.segment.likeness import appearance
from medmdm.segment.overlays import draw_overlay
from tests.data.chain import chain
from tests.made import refused
from tests.prepare.layouts import aperio, rectangle
from tests.written import picture, write_nifti


@pytest.fixture
def entry(tmp_path) -> Callable[..., dict]:
    """Write an image and a label and return their entry."""

    def write(label: np.ndarray, suffix: str = ".png", shape: tuple[int, int] | None = None) -> dict:
        image = picture(tmp_path / "image.png", shape=(*(shape or label.shape[:2]), 3))
        return {"image": str(image), "label": str(picture(tmp_path / f"label{suffix}", label))}

    return write


@pytest.mark.parametrize(
    ("dtype", "suffix"), [(bool, ".png"), (np.uint8, ".bmp"), (np.uint16, ".png"), (np.float32, ".tif")]
)
@pytest.mark.parametrize("shape", [(5, 9), (1, 1)])
def test_pictures_of_every_type(entry, rng, dtype, suffix, shape):
    values = rng.integers(0, 2 if dtype is bool else 200, shape)
    if dtype is np.uint16:
        values = values * 300
    sample = LoadCased()(entry(values.astype(dtype), suffix))
    assert sample["image"].shape == (3, *shape)
    np.testing.assert_array_equal(sample["label"].numpy()[0], values)
    assert sample["label"].meta["filename_or_obj"].endswith(suffix)


def test_region_cuts_both(entry, rng):
    label = rng.integers(0, 2, (12, 20)).astype(np.uint8)
    item = {**entry(label), "region": {"rows": [3, 8], "columns": [11, 20]}}
    sample = LoadCased()(item)
    np.testing.assert_array_equal(sample["label"][0], label[3:8, 11:20])
    np.testing.assert_array_equal(sample["image"], read_image(item["image"])[:, 3:8, 11:20])
    with pytest.raises(UserError, match=r"image.png has 12 rows, but its region asks for rows 3 to 13"):
        LoadCased()({**item, "region": {"rows": [3, 13]}})


def test_outlines(tmp_path, entry):
    item = entry(np.zeros((20, 30), np.uint8))
    (tmp_path / "a.xml").write_text(aperio([rectangle(2, 3, 6, 8), rectangle(10, 12, 30, 20)]))
    expected = np.zeros((20, 30), int)
    expected[3:8, 2:6], expected[12:20, 10:30] = 1, 2
    item = {**item, "label": str(tmp_path / "a.xml"), "region": {"rows": [5, 20], "columns": [0, 25]}}
    sample = LabelToClassesd(label_type="instances")(LoadCased()(item))
    np.testing.assert_array_equal(sample["label"][0], expected[5:, :25] > 0)
    assert sample["label"].dtype == torch.uint8


def test_volumes_slice_by_slice(tmp_path, rng):
    image, label = rng.integers(0, 900, (6, 9, 5)).astype(np.int16), rng.integers(0, 3, (6, 9, 5)).astype(np.uint8)
    for name, array in (("image", image), ("label", label)):
        write_nifti(tmp_path / f"{name}.nii.gz", array)
    content = {
        "labels": {"background": 0, "a": 1, "b": 2},
        "spacing": 0.5,
        "training": [{"image": "image.nii.gz", "label": "label.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    cases = select_cases(tmp_path)
    (volume,) = cases.training
    assert volume["case"] == "image"
    assert "spacing" not in volume  # the file knows
    entries = slice_entries(volume, VolumeStore(tmp_path / "store"), axis="coronal")
    transform = chain(cases, intensity_range=[0, 900], context_slices=1)
    read = read_volume(str(tmp_path / "image.nii.gz"))
    slicing = Slicing(read.array.shape[1:], read.affine, "coronal")
    images, labels = slicing.to_slices(image[None].astype(float)), slicing.to_slices(label[None])
    assert len(entries) == len(labels)
    for number, one in enumerate(entries):
        sample = transform(one)
        np.testing.assert_array_equal(sample["label"][0], labels[number, 0])
        neighbours = np.clip([number - 1, number, number + 1], 0, len(images) - 1)
        np.testing.assert_allclose(sample["image"], images[neighbours, 0] / 450 - 1, atol=1e-6)


def test_label_of_another_size(entry):
    item = entry(np.zeros((6, 9), np.uint8), shape=(9, 6))
    refused(r"label.png is 6x9 but its image .*image.png is 9x6, its axes are swapped", LoadCased(), item)


def test_missing_label(entry):
    item = entry(np.zeros((6, 9), np.uint8))
    del item["label"]
    refused(r"image\.png has no label", LoadCased(), item)
    assert "label" not in LoadCased(allow_missing_keys=True)(item)
    assert LoadCased("image")(item)["image"].shape == (3, 6, 9)
    refused("LoadCased: keys", LoadCased, ("a", "b", "c"))


def test_damaged_label(entry, tmp_path):
    item = entry(np.zeros((6, 9), np.uint8))
    Path(item["label"]).write_bytes(b"no image")
    refused(r"label\.png is not a readable", LoadCased(), item)


def tensor(values, name: str = "x.png") -> MetaTensor:
    return MetaTensor(torch.as_tensor(values), meta={"filename_or_obj": name})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64])
def test_class_numbers_pass(dtype):
    values = torch.tensor([[[0, 2, 255], [3, 0, 2]]])
    result = LabelToClassesd(classes=[0, 2, 3])({"label": tensor(values.to(dtype))})["label"]
    assert result.dtype == torch.uint8
    assert result.meta["filename_or_obj"] == "x.png"
    np.testing.assert_array_equal(result, values)


def test_instances_become_one_class_even_number_255():
    values = torch.tensor([[[0, 1, 255, 40000]]], dtype=torch.int32)
    result = LabelToClassesd(label_type="instances")({"label": tensor(values)})
    np.testing.assert_array_equal(result["label"], [[[0, 1, 1, 1]]])


@pytest.mark.parametrize(("values", "arguments", "sentence"), [
    (torch.zeros(3, 2, 2), {}, "x.png has 3 channels, but a label has one number per pixel"),
    (torch.tensor([[[0.0, 0.5]]]), {}, r"x.png holds values that are not whole numbers \(such as 0.5\)"),
    (torch.tensor([[[0.0, float("nan")]]]), {}, "x.png holds values that are not finite"),
    (torch.tensor([[[0, -2]]]), {}, r"x.png holds negative values \(-2\)"),
    (torch.tensor([[[0, 4, 7]]]), {"classes": [0, 1, 4]}, r"x.png holds 7, but the classes are 0, 1, 4"),
    (torch.tensor([[[0, 300]]]), {}, "x.png holds 300, but numbers must be below 256"),
    (torch.tensor([[[0, 255]]]), {"classes": [0, 1], "ignore": 9}, "x.png holds 255, but the classes"),
    (torch.arange(20)[None, None], {"classes": [0]}, r"holds 1, 2, 3, 4, 5, 6, 7, 8, …, but"),
])  # fmt: skip
def test_refused_labels(values, arguments, sentence):
    refused(sentence, LabelToClassesd(**arguments), {"label": tensor(values)})


def test_refused_arguments():
    refused(r"label_type is 'class' \(did you mean 'classes'\?\)", LabelToClassesd, label_type="class")
    with pytest.raises(KeyError):
        LabelToClassesd()({})


@pytest.fixture
def data_set(tmp_path) -> Path:
    label = np.zeros((40, 60), np.uint16)
    label[4:20, 8:32], label[24:36, 40:56] = 7, 300
    picture(tmp_path / "a_label.png", label)
    picture(tmp_path / "a.png", shape=(40, 60, 3))
    content = {
        "label_type": "instances",
        "spacing": [0.001, 0.001],
        "training": [{"image": "a.png", "label": "a_label.png", "region": {"rows": [0, 40], "columns": [4, 60]}}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path


def test_the_chain_resamples_image_and_label_alike(data_set):
    cases = select_cases(data_set)
    sample = chain(cases, spacing=0.002)(cases.training[0])
    label = read_image(data_set / "a_label.png")[0][:, 4:]
    image = read_image(data_set / "a.png")[:, :, 4:] / 127.5 - 1
    assert sample["image"].shape == (3, 20, 28)
    assert sample["image"].dtype == torch.float32
    # Objects begin and end on even pixels, so halving them is exact.
    np.testing.assert_array_equal(sample["label"][0], label[::2, ::2] > 0)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None].float(), (20, 28), mode="bilinear", antialias=True
    )[0]
    np.testing.assert_allclose(sample["image"], expected, atol=1e-5)


def test_examples_hold_the_numbers_of_objects_on_the_grid_of_the_image(data_set):
    cases = select_cases(data_set)
    own = read_image(data_set / "a_label.png")[0][:, 4:].astype(int)
    for plan, expected in (({}, own), ({"spacing": 0.002}, own[::2, ::2])):
        reader = CaseReader(cases, plan)
        (example,) = reader.read(cases.training[0]).examples
        assert example.objects is not None
        assert example.objects.dtype == torch.int32
        np.testing.assert_array_equal(example.objects, expected)
        np.testing.assert_array_equal(example.label, expected > 0)
    content = json.loads((data_set / "dataset.json").read_text())
    named = {"labels": {"background": 0, "object": 1}}
    label = read_image(data_set / "a_label.png")[0]
    picture(data_set / "a_label.png", (label > 0).astype(np.uint8))
    (data_set / "dataset.json").write_text(json.dumps({**content, "label_type": "classes", **named}))
    cases = select_cases(data_set)
    assert CaseReader(cases, {}).read(cases.training[0]).examples[0].objects is None


def test_slices_hold_the_numbers_of_objects(tmp_path):
    numbers = np.zeros((7, 6, 3), np.int16)
    numbers[1:3, 2:5, 0:2], numbers[4:6, 1:3, 1:3] = 5, 900
    write_nifti(tmp_path / "v.nii.gz", np.arange(126, dtype=np.int16).reshape(7, 6, 3))
    write_nifti(tmp_path / "l.nii.gz", numbers)
    content = {"label_type": "instances", "training": [{"image": "v.nii.gz", "label": "l.nii.gz"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    cases = select_cases(tmp_path)
    case = CaseReader(cases, {"intensity_range": [0, 126], "channels": 1}, tmp_path / "store").read(cases.training[0])
    assert case.slicing is not None
    objects = np.stack([example.objects.numpy() for example in case.examples])
    np.testing.assert_array_equal(case.slicing.to_volume(objects[:, None])[0], numbers)
    np.testing.assert_array_equal(case.instances, numbers)
    # Ids of programs that draw them at random: the 32 bits that objects are kept in would make others of them.
    write_nifti(tmp_path / "l.nii.gz", np.where(numbers == 5, 2.0**31, numbers))
    reader = CaseReader(cases, {"intensity_range": [0, 126], "channels": 1}, tmp_path / "store")
    refused(r"l.nii.gz holds the number 2147483648: numbers up to 2147483647", reader.read, cases.training[0])


def test_the_chain_without_resampling_or_labels(data_set):
    cases = select_cases(data_set)
    sample = chain(cases)(cases.training[0])
    assert sample["label"].shape == (1, 40, 56)
    assert float(sample["image"].min()) >= -1
    unlabelled = {key: value for key, value in cases.training[0].items() if key != "label"}
    torch.testing.assert_close(chain(cases)(unlabelled)["image"], sample["image"])


def test_unknown_spacing_is_a_sentence(data_set):
    cases = select_cases(data_set)
    without = {key: value for key, value in cases.training[0].items() if key != "spacing"}
    with pytest.raises(Exception, match="transform") as error:
        chain(cases, spacing=0.002)(without)
    assert "the pixel spacing of" in str(find_user_error(error.value))


def test_real_labels(real_data):
    cases = select_cases(real_data("glas"))
    sample = chain(cases)(cases.training[0])
    np.testing.assert_array_equal(sample["label"][0], read_image(real_data("glas") / "train_1_anno.bmp")[0] > 0)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, low, high in (("dark", 10, 90), ("bright", 120, 250)):
        iio.imwrite(tmp_path / f"{name}.png", rng.integers(low, high, (24, 38, 3), np.uint8))
        iio.imwrite(tmp_path / f"{name}_label.png", rng.integers(0, 2, (24, 38), np.uint8))
    content = {
        "name": "made",
        "labels": {"rest": 0, "bright": 1},
        "spacing": [0.001, 0.001],
        "training": [
            {"image": "dark.png", "label": "dark_label.png"},
            {"image": "bright.png", "label": "bright_label.png", "region": {"rows": [4, 20], "columns": [0, 30]}},
        ],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize("percentiles", [None, [1, 99], [20, 70]], ids=str)
@pytest.mark.parametrize("spacing", [None, 0.002], ids=str)
def test_pictures_have_the_pixels_that_pre_training_sees(pictures, percentiles, spacing) -> None:
    config = ConfigParser(ConfigParser.load_config_file(resource_folder("bundles") / "mdm_pretrain.json"))
    config.update({"dataset_dir": str(pictures), "percentiles": percentiles, "spacing": spacing, "crop_size": [4, 4]})
    load = Compose(config.get_parsed_content("load") + config.get_parsed_content("scale"))
    entries = config.get_parsed_content("slices").training
    plan = {name: config.get_parsed_content(f"plan#{name}") for name in ("percentiles", "spacing", "intensity_range")}
    cases = select_cases(pictures)
    transforms = chain(cases, spacing=spacing, percentiles=percentiles)
    for entry, case in zip(entries, CaseReader(cases, plan).read_all(cases.training), strict=True):
        assert torch.equal(case.examples[0].image, load(dict(entry))["image"].as_tensor())
        alone = transforms(case.entry)
        assert torch.equal(case.examples[0].image, alone["image"].as_tensor())
        assert torch.equal(case.examples[0].label, alone["label"].as_tensor()[0].long())


def test_percentiles_take_out_what_brightness_and_contrast_do_to_channels(pictures: Path) -> None:
    image = iio.imread(pictures / "dark.png")
    iio.imwrite(pictures / "other.png", (image * np.array([1, 2, 2]) + np.array([100, 0, 50])).astype(np.uint8))
    cases = select_cases(pictures)
    reader = CaseReader(cases, {"percentiles": {"lower": 1, "upper": 99, "nonzero": False}})
    one, other = (
        reader.read({**cases.training[0], "image": str(pictures / name)}).examples[0].image
        for name in ("dark.png", "other.png")
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert -1 == one.min() < one.max() == 1


def test_several_sequences_are_the_channels_of_a_labelled_case(tmp_path, rng) -> None:
    sequences = [rng.integers(0, 900, (6, 9, 5)).astype(np.int16) for _ in range(2)]
    label = rng.integers(0, 2, (6, 9, 5)).astype(np.uint8)
    for name, array in (("t1", sequences[0]), ("t2", sequences[1]), ("label", label)):
        write_nifti(tmp_path / f"{name}.nii.gz", array, np.diag([1.0, 1, 2, 1]))
    content = {
        "labels": {"background": 0, "a": 1},
        "training": [{"image": ["t1.nii.gz", "t2.nii.gz"], "label": "label.nii.gz"}],
    }
    cases = select_cases(tmp_path, content)
    reader = CaseReader(cases, {"intensity_range": [0, 900], "channels": 2}, tmp_path / "store")
    case = reader.read(cases.training[0])
    assert case.slicing is not None
    np.testing.assert_array_equal(case.truth, label)
    slices = case.slicing.to_slices(np.stack(sequences).astype(float))
    assert len(case.examples) == len(slices)
    for example, expected in zip(case.examples, slices, strict=True):
        np.testing.assert_allclose(example.image, expected / 450 - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("array", "suffix", "plan", "region"),
    [
        (np.uint8, ".png", {}, None),
        (np.uint8, ".bmp", {"percentiles": {"lower": 2.0, "upper": 98.0, "nonzero": True}}, None),
        (np.uint8, ".png", {"percentiles": {"lower": 0.5, "upper": 99.0, "nonzero": False}}, [[3, 17], [5, 29]]),
        (np.uint16, ".png", {"intensity_range": [100.0, 4095.0]}, None),
        (np.float32, ".tif", {"intensity_range": [0.0, 180.0]}, [[0, 20], [1, 2]]),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_in_parts_is_the_whole_one(tmp_path, rng, array, suffix, plan, region, channels) -> None:
    values = rng.integers(0, 200, (21, 34, channels)).astype(array)
    values = values * 20 if array is np.uint16 else values
    if channels == 3 and array is not np.uint8:
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, values, photometric="rgb")
    else:
        path = picture(tmp_path / f"a{suffix}", values[..., 0] if channels == 1 else values)
    entry = {"image": str(path), "case": "a", "name": path.name}
    if region is not None:
        entry["region"] = {"rows": region[0], "columns": region[1]}
    reader = CaseReader(select_cases(tmp_path, "none", labelled=False), {"channels": channels, **plan})
    whole, parts = reader.read(entry), reader.read(entry, in_parts=True)
    image = whole.examples[0].image
    assert isinstance(parts.examples, PictureInParts)
    assert torch.equal(parts.examples[0].image, image)
    assert torch.equal(parts.examples[0].label, whole.examples[0].label)
    assert parts.image_size == whole.image_size == tuple(image.shape[1:])
    for first, end in ((0, 1), (5, 13), (len(image[0]) - 1, len(image[0]))):
        for case in (whole, parts):
            assert torch.equal(case.rows(first, end), image[:, first:end])
    assert (parts.hashes, parts.window) == (whole.hashes, whole.window)
    assert appearance(parts) == appearance(whole)
    drawn = [(tmp_path / draw_overlay(tmp_path / name, case, np.ones(whole.shape, np.uint8)))
             for name, case in (("whole", whole), ("parts", parts))]  # fmt: skip
    one, other = (read_image(tmp_path / name / "overlays" / drawn[0].name) for name in ("whole", "parts"))
    np.testing.assert_array_equal(one, other)


def test_a_labelled_picture_in_parts(pictures: Path) -> None:
    cases = select_cases(pictures)
    reader = CaseReader(cases, {})
    for entry in cases.training:
        whole, parts = reader.read(entry), reader.read(entry, in_parts=True)
        np.testing.assert_array_equal(parts.truth, whole.truth)
        assert content_hash(parts) == content_hash(whole)
        for name in ("image", "label"):
            assert torch.equal(getattr(parts.examples[0], name), getattr(whole.examples[0], name))


def test_in_parts_where_it_cannot_be(tmp_path, rng, caplog) -> None:
    values = rng.integers(0, 200, (12, 16, 3)).astype(np.uint8)
    path = picture(tmp_path / "a.png", values)
    entry = {"image": str(path), "case": "a", "name": "a.png", "spacing": [0.5, 0.5]}
    cases = select_cases(tmp_path, "none", labelled=False)
    resampled = CaseReader(cases, {"spacing": [1.0, 1.0]}).read(entry, in_parts=True)
    assert not isinstance(resampled.examples, PictureInParts)
    assert resampled.image_size == (6, 8)
    refused("has 3 channels, but the backbone takes 1", CaseReader(cases, {"channels": 1}).read, entry, in_parts=True)
    floats = {**entry, "image": str(picture(tmp_path / "f.tif", values[..., 0].astype(np.float32)))}
    refused("f.tif holds float32 values, whose range is not known", CaseReader(cases, {}).read, floats, in_parts=True)
    CaseReader(cases, {}).read(entry, in_parts=True)
    assert "one value everywhere" not in caplog.text
    picture(tmp_path / "a.png", np.full((12, 16, 3), 7, np.uint8))
    CaseReader(cases, {}).read(entry, in_parts=True)
    assert f"{path} has one value everywhere once it is scaled" in caplog.text
