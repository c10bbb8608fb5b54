"""Post-processing that is left to the labels, and what of it is recorded and compared."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmdm.artifacts.segmenter_file import load_segmenter
from medmdm.data.files.pictures import read_image
from medmdm.data.reading import LoadedCase
from medmdm.data.splits import default_rule
from medmdm.labels import IGNORE
from medmdm.reports.comparison import compare, load_runs
from medmdm.segment import label_defaults
from medmdm.segment.label_defaults import follow_labels, follow_saved
from medmdm.segment.postprocessing import PostProcess
from tests.bundle_runs import Run
from tests.made import refused
from tests.segment.conftest import pictures, run  # noqa: F401 - fixtures
from tests.written import picture

RIDGE = {"_target_": "medmdm.heads.ClosedFormHead"}
AUTO = PostProcess(remove_small_objects="auto", instances="auto")


def labelled(*sizes: int, at: int = 4, spacing: tuple[float, ...] | None = None) -> LoadedCase:
    """A case of objects of one row each, that many pixels wide, from column ``at``."""
    numbers = np.zeros((2 * len(sizes) + 2, 60), np.int32)
    for i, size in enumerate(sizes):
        numbers[2 * i + 1, at : at + size] = i + 1
    return LoadedCase({"case": "a"}, (), (), None, numbers > 0, numbers.shape, ("", ""), spacing, None, numbers)


def test_instances_and_least_size() -> None:
    found, sentences = follow_labels(AUTO, "instances", [labelled(10, 20), labelled(30, 40)])
    assert isinstance(found, PostProcess)
    assert found.remove_small_objects == pytest.approx(0.5 * np.percentile([10, 20, 30, 40], 5), rel=1e-2)
    assert found.instances == PostProcess(instances="watershed").instances
    assert len(sentences) == 2
    assert "half of what 95 % of 4 labelled ones have" in sentences[1]


def numbered(numbers: np.ndarray) -> LoadedCase:
    """A case of these objects; whether its last row is one is not known."""
    truth = (numbers > 0).astype(np.uint8)
    truth[-1] = IGNORE
    return LoadedCase({"case": "a"}, (), (), None, truth, numbers.shape, ("", ""), None, None, numbers)


def dumbbells(touching: bool) -> LoadedCase:
    """Two pairs of discs, each pair one object with a neck, or two that touch."""
    numbers, (rows, columns) = np.zeros((60, 70), np.int32), np.mgrid[:60, :70]
    for i, (row, column) in enumerate([(15, 20), (15, 44), (44, 20), (44, 44)]):
        disc = (rows - row) ** 2 + (columns - column) ** 2 <= 12**2
        numbers[disc & (numbers == 0)] = i + 1 if touching else i // 2 + 1
    return numbered(numbers)


def test_objects_are_found_as_their_own_masks_give_them_back() -> None:
    empty, unlabelled = numbered(np.zeros((9, 9), np.int32)), replace(labelled(10), instances=None)
    for touching, method, said in ((True, "watershed", "watershed 0.999"), (False, "components", "components 1.000")):
        found, sentences = follow_labels(AUTO, "instances", [empty, dumbbells(touching), unlabelled])
        assert isinstance(found, PostProcess)
        assert found.instances == PostProcess(instances=method).instances
        assert f"postprocess#instances: {method}" in sentences[0]
        assert said in sentences[0]
    assert follow_labels(AUTO, "instances", [empty])[0].instances == PostProcess(instances="watershed").instances  # type: ignore[union-attr]


@pytest.mark.parametrize(("pixels", "method"), [(2**24, "components"), (60 * 70, "watershed")])
def test_so_many_pixels_are_tried(pixels: int, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_defaults, "_TRIED", pixels)
    _, sentences = follow_labels(AUTO, "instances", [dumbbells(True), dumbbells(False), dumbbells(False)])
    assert f"postprocess#instances: {method}" in sentences[0]


def test_objects_at_the_edge_are_cut_off() -> None:
    found, _ = follow_labels(AUTO, "instances", [labelled(2, 3, at=0), labelled(10)])
    assert found.remove_small_objects == 5  # type: ignore[union-attr]


def test_sizes_in_mm() -> None:
    in_mm = PostProcess(remove_small_objects="auto", in_mm=True)
    found, _ = follow_labels(in_mm, "instances", [labelled(10, spacing=(0.5, 0.5)), labelled(1)])
    assert found.remove_small_objects == 1.25  # type: ignore[union-attr]
    assert found.instances is None  # type: ignore[union-attr]


@pytest.mark.parametrize("given", [AUTO, PostProcess(), lambda scores, spacing: {}])
def test_labels_of_classes_change_nothing(given: Any) -> None:
    assert follow_labels(given, "classes", [labelled(10)]) == (given, [])


def volume(*places: tuple[int, int, slice], shape: tuple[int, ...] = (9, 12, 30)) -> LoadedCase:
    """A volume with class ``number`` on columns of row 5 of a slice."""
    truth = np.zeros(shape, np.uint8)
    for number, at, columns in places:
        truth[at, 5, columns] = number
    return LoadedCase({"case": "a"}, (), (), None, truth, shape, ("", ""), None, None, None)


WHOLE, TORN = (1, 3, slice(2, 28)), (1, 7, slice(2, 20))


@pytest.mark.parametrize(("support", "expected"), [
    ([volume(WHOLE), volume(WHOLE, (2, 6, slice(1, 4)))], True),
    ([volume(WHOLE), volume()], "auto"),  # nothing is in it
    ([volume(WHOLE)], "auto"),  # one alone
    ([volume(WHOLE), volume(WHOLE, TORN)], "auto"),
    ([volume((1, slice(0, 2), slice(0, 28)), (1, 6, slice(29, 30)))] * 2, "auto"),  # 1 of 57 voxels elsewhere
    ([volume((1, slice(0, 90), slice(0, 28)), (1, 97, slice(29, 30)), shape=(99, 12, 30))] * 2, True),  # a speck
])  # fmt: skip
def test_single_parts(support: list[LoadedCase], expected: bool | str) -> None:
    given = PostProcess(keep_largest="auto")
    found, sentences = follow_labels(given, "classes", support)
    assert found.keep_largest == expected  # type: ignore[union-attr]
    assert len(sentences) == (expected is True)
    assert follow_labels(given, "instances", support)[0] == given
    assert follow_labels(PostProcess(), "classes", support) == (PostProcess(), [])


def test_what_was_set_stays() -> None:
    given = PostProcess(remove_small_objects=3, instances="components")
    assert follow_labels(given, "instances", [labelled(10)]) == (given, [])
    assert follow_labels(AUTO, "instances", [])[0] == PostProcess(remove_small_objects="auto", instances="watershed")


def test_auto_alone_is_off() -> None:
    scores = np.random.default_rng(0).random((2, 9, 9))
    plain, auto = PostProcess()(scores), AUTO(scores)
    assert auto["instances"] is None
    np.testing.assert_array_equal(auto["mask"], plain["mask"])
    refused("remove_small_objects is 'big'", PostProcess, remove_small_objects="big")
    refused("fill_holes_below is 'auto'", PostProcess, fill_holes_below="auto")
    refused("keep_largest is 1", PostProcess, keep_largest=1)
    assert PostProcess(keep_largest="auto")(scores)["mask"].tolist() == plain["mask"].tolist()


def test_a_saved_segmenter_says_what_is_left() -> None:
    saved = PostProcess(remove_small_objects=7, instances="components")
    assert follow_saved(AUTO, lambda: saved) == saved
    own = PostProcess(remove_small_objects=3, instances="auto")
    assert follow_saved(own, lambda: saved) == PostProcess(remove_small_objects=3, instances="components")
    given = PostProcess(threshold=0.4)
    assert follow_saved(given, pytest.fail) is given  # not even looked at
    assert follow_saved(AUTO, lambda: AUTO) == AUTO
    in_mm = PostProcess(remove_small_objects="auto", in_mm=True)
    refused("in another unit", follow_saved, in_mm, lambda: saved)


@pytest.mark.parametrize(("name", "rule"), [
    ("glas", "paper"), ("monuseg", "paper"), ("dsb2018", "seeded"), ("mine", "seeded"), (None, "seeded"),
])  # fmt: skip
def test_the_papers_rule_is_for_the_papers_sets(name: str | None, rule: str) -> None:
    assert default_rule(name) == rule


@pytest.mark.bundle
def test_a_run_on_objects(run: Run, pictures: Path, tmp_path: Path) -> None:  # noqa: F811
    """Two objects are numbered in each picture: instances are on, the record says so, a comparison shows it."""
    for path in pictures.glob("*_mask.png"):
        label = read_image(path)[0].astype(np.uint8)
        label[13:] *= 2
        label[12] = 0
        picture(path, label)
    content = json.loads((pictures / "dataset.json").read_text())
    (pictures / "dataset.json").write_text(json.dumps({**content, "label_type": "instances"}))
    run("mdm_segment", head=RIDGE, shots=3)
    run("mdm_segment", head=RIDGE, shots=3, run_dir=str(tmp_path / "plain"), **{"postprocess#instances": "components"})
    protocol = json.loads((tmp_path / "run" / "evaluation.json").read_text())["protocol"]
    assert protocol["subset"] == {"rule": "seeded", "draw": 0}
    kept = load_segmenter(tmp_path / "run" / "segmenter.pt")[1]["task"]["postprocess"]
    assert protocol["postprocess"] == kept
    assert kept["instances"]["method"] == "watershed"
    assert kept["remove_small_objects"] > 0
    assert (tmp_path / "run" / "predictions" / "4_instances.png").is_file()
    assert "No map of objects" not in (tmp_path / "run" / "summary.md").read_text()
    differing = compare(load_runs([tmp_path / "run", tmp_path / "plain"]))["protocols"]
    assert {row["what"]: (row["A"], row["B"]) for row in differing}["postprocess.instances.method"] == (
        "watershed", "components",
    )  # fmt: skip
    segmenter = str(tmp_path / "run" / "segmenter.pt")
    run("mdm_evaluate", segmenter=segmenter, run_dir=str(tmp_path / "again"))
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())["protocol"]
    assert again["postprocess"] == kept
    run("mdm_infer", segmenter=segmenter, output_dir=str(tmp_path / "masks"))
    assert (tmp_path / "masks" / "boxes.csv").is_file()
