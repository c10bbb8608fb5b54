"""Sizes are millimetres whatever the unit of a header, from spacing to report; what is not understood is refused."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from PIL import Image

from medmdm.data.cases import select_cases
from medmdm.data.files.units import millimetres, picture_spacing
from medmdm.data.files.volumes import read_volume, volume_geometry
from medmdm.data.slices import VolumeStore
from medmdm.data.validity import ImageGrid, grid_problem
from medmdm.prepare import prepare
from medmdm.reports.scoring import choose_ruler
from medmdm.runs.record import EvaluatedCase, Evaluation
from tests.made import refused

VOXELS = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def nifti(path: Path, sides: tuple[float, ...], unit: int | str, kind: type = nib.Nifti1Image) -> Path:
    image = kind(VOXELS, np.diag([*sides, 1.0]))
    if isinstance(unit, str):
        image.header.set_xyzt_units(unit, "sec")
    else:
        image.header["xyzt_units"] = unit
    nib.save(image, path)
    return path


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(
    ("sides", "unit"),
    [((0.5, 0.75, 3.0), "mm"), ((500, 750, 3000), "micron"), ((5e-4, 7.5e-4, 3e-3), "meter"),
     ((0.5, 0.75, 3), "unknown")],
)  # fmt: skip
def test_nifti(kind: type, sides: tuple[float, ...], unit: str, tmp_path: Path) -> None:
    path = nifti(tmp_path / "x.nii.gz", sides, unit, kind)
    assert np.allclose(read_volume(path).affine, np.diag([0.5, 0.75, 3.0, 1]), rtol=1e-6)
    assert np.allclose(volume_geometry(path)[1], np.diag([0.5, 0.75, 3.0, 1]), rtol=1e-6)
    assert np.allclose(VolumeStore(tmp_path / "store").get(str(path)).slicing.spacing, (0.75, 0.5), rtol=1e-6)
    if kind is nib.Nifti1Image:
        assert np.allclose(sitk.ReadImage(str(path)).GetSpacing(), (0.5, 0.75, 3.0), rtol=1e-6)


def test_nifti_that_cannot_be(tmp_path: Path) -> None:
    refused("x.nii gives its size in the unit 5", read_volume, nifti(tmp_path / "x.nii", (1, 1, 1), 5))
    refused("has voxels of 1500x1500x3000 mm by the unit", read_volume,
            nifti(tmp_path / "y.nii", (1.5, 1.5, 3), "meter"))  # fmt: skip


def test_a_label_in_another_unit_lies_on_its_image(tmp_path: Path) -> None:
    image, label = (
        read_volume(nifti(tmp_path / f"{unit}.nii", sides, unit)).grid
        for unit, sides in (("mm", (0.2, 0.2, 0.3)), ("micron", (200, 200, 300)))
    )
    assert grid_problem(label, image, "label", "image") is None
    moved = ImageGrid(label.shape, label.affine + np.eye(4)[:, 3:] * 0 + np.outer([0.021, 0, 0, 0], [0, 0, 0, 1]))
    kind, sentence = grid_problem(moved, image, "label", "image") or ("", "")
    assert kind == "affine"
    assert "0.021 mm" in sentence


META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\n{}ElementSpacing = {}\nDimSize = 3 4 5\n"
    "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
)
NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 3 4 5\n{}endian: little\nencoding: raw\n\n"


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("x.mha", META.format("DistanceUnits = um\n", "500 750 3000")),
        ("x.mha", META.format("DistanceUnits = cm\n", "0.05 0.075 0.3")),
        ("x.mha", META.format("DistanceUnits = ?\n", "0.5 0.75 3")),
        ("x.mha", META.format("", "0.5 0.75 3")),
        ("x.nrrd", NRRD.format('spacings: 500 750 3000\nunits: "um" "um" "um"\n')),
        ("x.nrrd", NRRD.format('space dimension: 3\nspace units: "microns" "microns" "microns"\n'
                               "space directions: (500,0,0) (0,750,0) (0,0,3000)\n")),
        ("x.nrrd", NRRD.format('spacings: 0.0005 0.00075 0.003\nunits: "m" "m" "m"\n')),
        ("x.nrrd", NRRD.format("spacings: 0.5 0.75 3\n")),
    ],
)  # fmt: skip
def test_text_headers(name: str, header: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(header.encode() + VOXELS.astype("<i2").tobytes(order="F"))
    volume = read_volume(tmp_path / name)
    assert np.array_equal(volume.array[0], VOXELS)
    assert np.allclose(np.linalg.norm(volume.affine[:3, :3], axis=0), (0.5, 0.75, 3.0))


def test_text_headers_that_are_not_understood(tmp_path: Path) -> None:
    for number, (units, sentence) in enumerate(
        [
            ('"furlong" "furlong" "furlong"', "'furlong', a unit that is not known"),
            ('"mm" "mm" "um"', "different units"),
        ]
    ):
        path = tmp_path / f"{number}.nrrd"
        path.write_bytes(NRRD.format(f"spacings: 1 1 1\nunits: {units}\n").encode() + VOXELS.tobytes(order="F"))
        refused(sentence, read_volume, path)


@pytest.mark.parametrize(
    ("unit", "mm"),
    [("mm", 1), ("µm", 1e-3), ("μm", 1e-3), ("um", 1e-3), ("Microns", 1e-3), ("micrometre", 1e-3), ("\\u00B5m", 1e-3),
     ("m", 1e3), ("cm", 10), ("nm", 1e-6), ("inches", 25.4), ("in", 25.4), ("dam", 1e4), ("pixel", None), ("", None)],
)  # fmt: skip
def test_words(unit: str, mm: float | None) -> None:
    assert millimetres(unit, "x says") == (None if mm is None else pytest.approx(mm))


@pytest.mark.parametrize("unit", ["furlong", "Mm", "s", "xm"])
def test_words_that_are_not_known(unit: str) -> None:
    refused("x says in .*, a unit that is not known", millimetres, unit, "x says")


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)
OME = '<?xml version="1.0"?><OME><Image><Pixels SizeX="60" SizeY="40" {}><TiffData/></Pixels></Image></OME>'


def tiff(path: Path, description: str = "", **tags: Any) -> Path:
    more = {"description": description.encode(), "metadata": None} if description else {"metadata": None}
    tifffile.imwrite(path, PIXELS, **more, **tags)
    return path


@pytest.mark.parametrize(
    ("made", "rows", "columns"),
    [
        ({"resolution": (40000, 20000), "resolutionunit": "CENTIMETER"}, 0.0005, 0.00025),
        ({"resolution": (101600, 101600), "resolutionunit": "INCH"}, 0.00025, 0.00025),
        ({"resolution": (100, 100), "resolutionunit": "CENTIMETER"}, 0.1, 0.1),
        ({"resolution": (4, 2), "resolutionunit": "NONE", "description": "ImageJ=1.54\nunit=micron\n"}, 5e-4, 2.5e-4),
        ({"resolution": (2, 2), "resolutionunit": "NONE", "description": "ImageJ=1.54\nunit=\\u00B5m\n"}, 5e-4, 5e-4),
        ({"description": OME.format('PhysicalSizeX="0.25" PhysicalSizeY="0.5"')}, 0.0005, 0.00025),
        ({"description": OME.format('PhysicalSizeX="250" PhysicalSizeXUnit="nm"')}, 0.00025, 0.00025),
        ({"description": OME.format('PhysicalSizeX="1" PhysicalSizeXUnit="µm" PhysicalSizeY="0.002" '
                                    'PhysicalSizeYUnit="mm"')}, 0.002, 0.001),
        ({"description": "Aperio Image Library v10\n60x40 Q=70|AppMag = 20|MPP = 0.4990|Left = 1"}, 4.99e-4, 4.99e-4),
    ],
)  # fmt: skip
def test_pictures(made: dict[str, Any], rows: float, columns: float, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    path = tiff(tmp_path / "s" / "x.tif", **made)
    assert picture_spacing(path) == pytest.approx((rows, columns))
    (case,) = select_cases(tmp_path / "s", labelled=False).test
    assert case["spacing"] == pytest.approx([rows, columns])
    # The list has the say, and a preparation keeps what PNG cannot.
    (case,) = select_cases(tmp_path / "s", labelled=False, image_spacing=0.3).test
    assert case["spacing"] == [0.3, 0.3]
    prepare("folder", tmp_path / "s", tmp_path / "out")
    (case,) = select_cases(tmp_path / "out", sections=["training"], labelled=False).training
    assert case["image"].endswith(".png")
    assert case["spacing"] == pytest.approx([rows, columns])


@pytest.mark.parametrize(
    "made",
    [{}, {"resolution": (72, 72), "resolutionunit": "INCH"}, {"resolution": (300, 300), "resolutionunit": "INCH"},
     {"resolution": (118.11, 118.11), "resolutionunit": "CENTIMETER"}, {"resolution": (5, 5), "resolutionunit": "NONE"},
     {"description": OME.format('PhysicalSizeX="1" PhysicalSizeXUnit="pixel"')}],
)  # fmt: skip
def test_pictures_that_do_not_say(made: dict[str, Any], tmp_path: Path) -> None:
    assert picture_spacing(tiff(tmp_path / "x.tif", **made)) is None
    Image.fromarray(PIXELS).save(tmp_path / "x.png", dpi=(25400, 25400))
    assert picture_spacing(tmp_path / "x.png") is None


def test_pictures_that_say_what_cannot_be(tmp_path: Path) -> None:
    for number, (given, sentence) in enumerate(
        [('PhysicalSizeX="1" PhysicalSizeXUnit="li"', "'li', a unit that is not known"),
         ('PhysicalSizeX="0"', "its pixels are 0 x 0 mm"), ('PhysicalSizeX="many"', "its pixels are nan")]
    ):  # fmt: skip
        refused(sentence, picture_spacing, tiff(tmp_path / f"{number}.tif", OME.format(given)))


@pytest.mark.parametrize(
    ("spacing", "unit", "tolerance"), [((0.00025, 0.00025), "µm", None), ((0.5, 0.75, 3.0), "mm", 1.0)]
)
def test_the_ruler_of_a_report(spacing: tuple[float, ...], unit: str, tolerance: float | None, tmp_path: Path) -> None:
    case = EvaluatedCase("a", tmp_path / "a.png", spacing=spacing)
    ruler = choose_ruler(Evaluation(tmp_path, "set", tmp_path, "test", ("background", "lesion"), (case,)))
    assert ruler.unit == unit
    assert tolerance is None or ruler.tolerance == tolerance


@pytest.mark.parametrize(("form", "size", "said"), [
    ((1.5, 1.5, 3), (2, 2, 5), True), ((1.5, 1.5, 3), (1.5, 1.5, 3), False), ((-1.5, -1.5, 3), (1.5, 1.5, 3), False),
    ((1.5, 1.5, 3), (-1.5, 1.5, 3), False), ((1, 1, 3), (1, 1, 3.2), True),
])  # fmt: skip
def test_two_sizes_in_one_header(
    form: tuple[float, ...], size: tuple[float, ...], said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = nib.Nifti1Image(VOXELS, np.diag([*form, 1.0]))
    image.set_sform(image.affine, 1)
    image.header["pixdim"][1:4] = size
    path = tmp_path / f"{form}{size}.nii"
    nib.save(image, path)
    volume = read_volume(path)
    np.testing.assert_allclose(np.linalg.norm(volume.affine[:3, :3], axis=0), np.abs(form))
    assert ("gives two sizes of voxels" in caplog.text) == said
