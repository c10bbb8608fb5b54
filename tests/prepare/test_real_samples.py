"""The published sets themselves, where ``MEDMDM_TEST_DATA`` has them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medmdm.data.files.aperio import Region, draw_regions, read_aperio
from medmdm.data.files.pictures import read_image
from medmdm.data.lists import load_data_list
from medmdm.files import pixel_hash
from medmdm.prepare import prepare
from medmdm.prepare.glas import _grades
from medmdm.prepare.release import open_release


def facts(dest: Path) -> list[dict]:
    return [json.loads(line)["facts"] for line in (dest / "prepared.jsonl").read_text().splitlines()[1:]]


def subset(source: Path, target: Path, pattern: str) -> Path:
    """Link some files of a release, for the whole takes long."""
    for path in source.rglob(pattern):
        link = target / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return target


def test_glas(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    source, dest = real_data("glas"), tmp_path / "out"
    masks = list(source.glob("train_*_anno.bmp"))
    assert sum(len(np.unique(read_image(path))) - 1 for path in masks) == 769
    part = subset(source, tmp_path / "part", "train_1*")
    shutil.copy(source / "Grade.csv", part)
    assert "training: 74 of 85 images are not in the source" in prepare("glas", part, dest)
    for entry in load_data_list(dest / "dataset.json").training:
        name = Path(entry["image"]).stem
        assert pixel_hash(read_image(dest / entry["image"])) == pixel_hash(read_image(source / f"{name}.bmp"))
        np.testing.assert_array_equal(read_image(dest / entry["label"]), read_image(source / f"{name}_anno.bmp"))


def test_grades_of_the_release_are_those_of_the_list_that_comes_with_medmdm(real_data: Callable[[str], Path]) -> None:
    with open_release(real_data("glas")) as release:
        grades, notices = _grades(release)
    assert not notices
    published = load_data_list("glas")
    for entry in (*published.training, *published.test):
        own = {key: value for key, value in entry.items() if key not in ("image", "label")}
        assert grades[Path(entry["image"]).stem] == own
    assert len(grades) == 165


def test_monuseg_counts(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    """Two images with a two-vertex region, one whose file has no resolution, one with an instance mask only."""
    source, dest = real_data("monuseg"), tmp_path / "out"
    for name in ("TCGA-50-5931", "TCGA-E2-A1B5", "TCGA-NH-A8F7", "TCGA-18-5592"):
        part = subset(source, tmp_path / "part", f"{name}*")
    summary = prepare("monuseg", part, dest)
    assert "outlines: 1137 regions in 3 files became 1135 objects" in summary
    for name, region in (("TCGA-50-5931", 180), ("TCGA-E2-A1B5", 460)):
        assert f"{name}-01Z-00-DX1.xml: 1 region(s) of fewer than three vertices not filled (Id {region})" in summary
    assert "1 image has no XML: instance masks are used" in summary
    for entry in load_data_list(dest / "dataset.json").training:
        original = next(source.rglob(f"{Path(entry['image']).stem}.tif"))
        assert pixel_hash(read_image(dest / entry["image"])) == pixel_hash(read_image(original))
        assert ("spacing" in entry) == (entry["patient_id"] not in ("TCGA-NH-A8F7", "TCGA-18-5592"))


def test_monuseg_areas_agree_with_the_outlines(real_data: Callable[[str], Path]) -> None:
    """The stated areas are met on average only when pixel centres lie half a pixel from the corner."""
    for name in ("TCGA-2Z-A9J9-01A-01-TS1", "TCGA-E2-A1B5-01Z-00-DX1"):
        regions = read_aperio(next(real_data("monuseg").rglob(f"{name}.xml"))).regions
        filled = np.count_nonzero(draw_regions(regions, (1000, 1000)).mask)
        assert abs(filled / sum(region.area or 0 for region in regions) - 1) < 0.015


@pytest.mark.slow
def test_all_of_monuseg(real_data: Callable[[str], Path]) -> None:
    regions: list[Region] = []
    instances = 0
    for path in real_data("monuseg").rglob("*.xml"):
        annotation = read_aperio(path)
        regions += annotation.regions
        instances += draw_regions(annotation.regions, (1000, 1000)).instances
    assert len(regions) == 8488
    assert instances == 8486


def test_dsb2018(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    source, dest = real_data("dsb2018"), tmp_path / "out"
    summary = prepare("dsb2018", source, dest)
    entries = load_data_list(dest / "dataset.json").training
    assert len(entries) == 40
    assert [fact["objects"] for fact in facts(dest)] == [
        len(list((source / "stage1_train" / Path(entry["image"]).stem / "masks").iterdir())) for entry in entries
    ]
    assert "several masks" not in summary
