"""Masks are not written over what they are made from, nor taken for images later."""

import hashlib
import shutil
from pathlib import Path

import pytest

from medmdm.data import find_images
from medmdm.errors import find_user_error
from medmdm.files import OUTPUTS_MARK, mark_outputs
from medmdm.segment import Outputs
from tests.bundle_runs import Run
from tests.made import refused
from tests.segment.conftest import pictures, run  # noqa: F401 - fixtures


def hashes(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("source", [
    "predictions/a.png", "predictions/a.tif", "predictions/deep/a.png", "predictions", "link/a.png",
    "x/../predictions/a.png",
])  # fmt: skip
def test_a_source_in_the_folder_of_masks(source: str, tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "predictions")
    outputs = Outputs(tmp_path)
    for entry in ({"image": str(tmp_path / source)}, {"image": ["elsewhere.png", str(tmp_path / source)]},
                  {"image": "elsewhere.png", "label": str(tmp_path / source)}):  # fmt: skip
        refused("where the masks are written", outputs.refuse_sources, [entry])
    outputs.refuse_sources([{"image": str(tmp_path / "a.png"), "label": str(tmp_path / "predictions2" / "a.png")}])


def test_marked_folders_are_not_searched(image_folder: Path) -> None:
    before = find_images(image_folder)
    for name in ("predictions", "runs/one/predictions"):
        mark_outputs(image_folder / name)
        shutil.copy(image_folder / "a.png", image_folder / name / "a.png")
    assert find_images(image_folder) == before
    assert len(find_images(image_folder / "predictions").images) == 1  # where it is asked for by name


@pytest.mark.bundle
def test_infer(run: Run, pictures: Path, tmp_path: Path) -> None:  # noqa: F811
    run("mdm_segment", report=False)
    segmenter = str(tmp_path / "run" / "segmenter.pt")
    data = tmp_path / "data"
    (data / "predictions").mkdir(parents=True)
    for number in range(2):
        shutil.copy(pictures / f"{number}.png", data / "predictions")
    before = hashes(data)
    common = {"segmenter": segmenter, "dataset_dir": str(data), "data_list": "none"}
    with pytest.raises(RuntimeError) as caught:
        run("mdm_infer", **common, output_dir=str(data))
    assert "where the masks are written" in str(find_user_error(caught.value))
    assert hashes(data) == before
    assert {path.name for path in data.iterdir()} == {"predictions"}
    (data / "predictions").rename(data / "slides")
    for folder in ("", "", "run1", "run2", "slides/out", ""):
        masks = run("mdm_infer", **common, output_dir=str(data / folder))
        assert sorted(path.name for path in masks) == ["0.png", "1.png"], folder
    assert (data / "predictions" / OUTPUTS_MARK).exists()
    assert {name: value for name, value in hashes(data).items() if Path(name).parent.name == "slides"} == {
        name.replace("predictions", "slides"): value for name, value in before.items()
    }
