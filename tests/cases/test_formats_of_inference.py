"""What mdm_infer writes for other programs, and what becomes of it when images change.

Siblings: all formats at once, nothing asked for, one image replaced, a format left out later, a volume among pictures,
two of a kind, no format at all, `apply_to` of mdm_segment.
"""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile

from medmdm.data.files.pictures import read_image
from tests.bundle_runs import Run
from tests.cases.test_outputs_of_inference import FOUND, names, record_of
from tests.data.dicom_files import write_series
from tests.data.test_tracing import rasterised
from tests.segment.conftest import pictures, refused, run  # noqa: F401 - fixtures
from tests.segment.test_workflow import volumes  # noqa: F401 - fixture
from tests.written import picture, write_nifti

ALL = [
    {"_target_": f"medmdm.segment.{name}", **arguments}
    for name, arguments in (
        ("GeoJSON", {}), ("OMETiff", {"probabilities": True}), ("COCO", {}), ("ObjectTable", {}),
    )
]  # fmt: skip
OF_A_CASE = ("{}.geojson", "{}.ome.tif", "{}_instances.ome.tif", "{}_probabilities.ome.tif")


def test_all_formats_of_pictures(run: Run, refused: Run, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("pycocotools")
    new = tmp_path / "new"
    picture(new / "white.png", np.full((30, 40, 3), 255))
    run("mdm_segment", postprocess=FOUND, report=False, apply_to=str(new), write_formats=ALL)
    applied = names(tmp_path / "run" / "applied")
    assert {f"predictions/{name.format('white')}" for name in OF_A_CASE} | {"coco.json", "objects.csv"} <= applied
    assert not [name for name in names(tmp_path / "run" / "predictions") if "ome" in name or "json" in name]
    segmenter, out = tmp_path / "run" / "segmenter.pt", tmp_path / "out"
    settings = {"segmenter": str(segmenter), "output_dir": str(out), "image_spacing": 0.0005, "write_overlays": 0}

    # Before anything is written.
    twice = [ALL[0], ALL[0]]
    refused("names GeoJSON twice", "mdm_infer", write_formats=twice, **settings)
    refused("write_formats holds 'geojson'", "mdm_infer", write_formats=["geojson"], **settings)
    refused("is no DICOM series", "mdm_infer", write_formats=[{"_target_": "medmdm.segment.DicomSeg"}], **settings)
    volume = write_nifti(tmp_path / "volumes" / "a.nii.gz").parent
    refused("is a volume", "mdm_infer", write_formats=ALL[:1], **{**settings, "dataset_dir": str(volume)})
    assert not out.exists()

    run("mdm_infer", write_formats=ALL, **settings)
    files = record_of(out)["images"][0]["files"]
    assert {f"predictions/{name.format('*')}" for name in OF_A_CASE} <= set(files)
    assert "predictions/*_probabilities.tif" not in files
    objects = pd.read_csv(out / "objects.csv", dtype={"case": str})
    boxes = pd.read_csv(out / "boxes.csv", dtype={"case": str})
    assert len(boxes) > 0
    keys = ["case", "label", "class"]
    pd.testing.assert_frame_equal(objects[keys], boxes[keys])
    assert (objects["area_px"] == boxes["area"]).all()
    np.testing.assert_allclose(objects["area_um2"], boxes["area"] * 0.25)
    assert objects["mean_probability"].between(0.5, 1).all()
    coco = json.loads((out / "coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == [f"{number}.png" for number in range(6)]
    assert len(coco["annotations"]) == len(boxes)
    assert "patient" not in (out / "coco.json").read_text()
    mask = read_image(out / "predictions" / "3.png")[0]
    np.testing.assert_array_equal(tifffile.imread(out / "predictions" / "3.ome.tif"), mask)
    shares = tifffile.imread(out / "predictions" / "3_probabilities.ome.tif")
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(shares.argmax(axis=0), mask)
    features = json.loads((out / "predictions" / "3.geojson").read_text())["features"]
    shape = shapely.from_geojson(json.dumps(features[0]["geometry"]))
    np.testing.assert_array_equal(rasterised(shape, mask.shape), mask == 1)

    # The same again is the same, bit for bit.
    before = {name: (out / name).read_bytes() for name in names(out) if name.endswith(("json", "csv", ".tif"))}
    run("mdm_infer", write_formats=ALL, **settings)
    after = {name: (out / name).read_bytes() for name in before if name != "run.json"}
    assert after == {name: content for name, content in before.items() if name != "run.json"}

    # One image becomes another, and nothing is asked for: its files and rows go, those of the others stay.
    part = tmp_path / "part"
    picture(part / "0.png", np.full((28, 40, 3), 60))
    run("mdm_infer", **{**settings, "dataset_dir": str(part)})
    assert not list((out / "predictions").glob("0*.geojson"))
    assert not list((out / "predictions").glob("0*.ome.tif"))
    assert (out / "predictions" / "1.geojson").exists()
    left = pd.read_csv(out / "objects.csv", dtype={"case": str})
    pd.testing.assert_frame_equal(left, objects[objects["case"] != "0"].reset_index(drop=True))
    coco = json.loads((out / "coco.json").read_text())
    assert [image["case"] for image in coco["images"]] == ["1", "2", "3", "4", "5"]
    assert {annotation["image_id"] for annotation in coco["annotations"]} <= {1, 2, 3, 4, 5}

    # Asked for again: it is there again.
    run("mdm_infer", write_formats=ALL, **{**settings, "dataset_dir": str(part)})
    coco = json.loads((out / "coco.json").read_text())
    assert {image["case"] for image in coco["images"]} == {"0", "1", "2", "3", "4", "5"}
    (out / "coco.json").write_text("{}")
    refused("coco.json is damaged", "mdm_infer", write_formats=ALL, **{**settings, "dataset_dir": str(part)})


def test_without_formats_nothing_else_is_written(run: Run, tmp_path: Path) -> None:  # noqa: F811
    run("mdm_segment", report=False)
    run("mdm_infer", segmenter=str(tmp_path / "run" / "segmenter.pt"), output_dir=str(tmp_path / "out"))
    assert {Path(name).suffix for name in names(tmp_path / "out" / "predictions")} == {".png"}
    assert not {"objects.csv", "coco.json"} & names(tmp_path / "out")


def test_a_dicom_series_gets_its_seg(run: Run, tmp_path: Path, volumes: dict[str, Any]) -> None:  # noqa: F811
    hd, pydicom = pytest.importorskip("highdicom"), pytest.importorskip("pydicom")
    run("mdm_segment", **volumes, report=False)
    box = np.zeros((7, 24, 20), np.int16)  # slices, rows, columns; asymmetric
    box[1:4, 3:14, 5:17] = 500
    noisy = (box + np.random.default_rng(3).normal(100, 40, box.shape)).astype(np.int16)
    orientation = (0.8, 0.6, 0, -0.6 * 0.28, 0.8 * 0.28, 0.96)
    series = write_series(tmp_path / "dicom" / "p", noisy, orientation=orientation, tags={(0x0020, 0x0052): "1.2.9"})
    settings = {"segmenter": str(tmp_path / "run" / "segmenter.pt"), "output_dir": str(tmp_path / "out")}
    formats = [{"_target_": "medmdm.segment.DicomSeg"}, {"_target_": "medmdm.segment.ObjectTable"}]
    run("mdm_infer", dataset_dir=str(tmp_path / "dicom"), write_formats=formats, **settings)
    (image,) = record_of(tmp_path / "out")["images"]
    assert "predictions/*.seg.dcm" in image["files"]
    (path,) = (tmp_path / "out" / "predictions").glob("*.seg.dcm")
    (nifti,) = (tmp_path / "out" / "predictions").glob("*.nii.gz")
    mask = np.asarray(nib.load(nifti).dataobj)
    found = mask[5:17, 3:14, 1:4]
    assert found.mean() > 0.8
    assert mask.mean() < 0.5
    headers = [pydicom.dcmread(file) for file in series.glob("*.dcm")]
    normal = np.cross(orientation[:3], orientation[3:])
    headers.sort(key=lambda header: float(np.dot(normal, header.ImagePositionPatient)))
    uids = [header.SOPInstanceUID for header in headers]
    frames = hd.seg.segread(path).get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(frames[..., 0], np.swapaxes(mask, 0, 2))
    objects = pd.read_csv(tmp_path / "out" / "objects.csv")
    assert objects["voxels"].sum() == np.count_nonzero(mask)
    np.testing.assert_allclose(objects["volume_mm3"], objects["voxels"] * 0.9 * 0.7 * 3, rtol=1e-4)
