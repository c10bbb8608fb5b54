"""A class that none of the labelled images holds is named in the log and in the report."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.bundle_runs import Run
from tests.segment.conftest import pictures, run  # noqa: F401 - fixtures

RIDGE = {"_target_": "medmdm.heads.ClosedFormHead", "method": "ridge"}


def relabel(folder: Path, values: dict[int, int], classes: dict[str, int], training: range = range(4)) -> None:
    """Replace values in the labels of training images, and declare other classes."""
    for number in training:
        path = folder / f"{number}_mask.png"
        label = np.array(Image.open(path))
        Image.fromarray(np.vectorize(lambda v: values.get(v, v), otypes=[np.uint8])(label)).save(path)
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "labels": classes}))


@pytest.mark.bundle
@pytest.mark.parametrize(("values", "classes", "lacking"), [
    ({1: 0}, {"background": 0, "a": 1}, ["class 1 a"]),
    ({}, {"background": 0, "a": 1, "b": 2, "c": 3}, ["class 2 b", "class 3 c"]),
    ({0: 1}, {"background": 0, "a": 1}, ["class 0 background"]),
    ({0: 255}, {"background": 0, "a": 1, "ignore": 255}, ["class 0 background"]),
    ({}, {"background": 0, "a": 1}, []),
])  # fmt: skip
def test_segment(
    values: dict[int, int],
    classes: dict[str, int],
    lacking: list[str],
    run: Run,  # noqa: F811
    pictures: Path,  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    relabel(pictures, values, classes)
    with caplog.at_level(logging.WARNING):
        run("mdm_segment", head=RIDGE)
    expected = [f"none of the 4 labelled images holds {name} (draw 0)" for name in lacking]
    assert [r.getMessage().partition(":")[0] for r in caplog.records if "labelled images" in r.message] == expected
    notes = json.loads((tmp_path / "run" / "summary.json").read_text())["notes"]
    notes = [note for note in notes if "costs nothing" not in note]
    assert notes[: len(expected)] == expected
    text = (tmp_path / "run" / "summary.md").read_text()
    assert all(f"- {sentence}\n" in text for sentence in expected)
    assert ("labelled images holds" in text) == bool(expected)


@pytest.mark.bundle
def test_a_draw_may_lack_what_the_list_has(run: Run, pictures: Path, tmp_path: Path, caplog: Any) -> None:  # noqa: F811
    relabel(pictures, {1: 0}, {"background": 0, "a": 1}, range(3))
    backbones = {"MDM": {"path": str(tmp_path / "model.pt")}}
    grid = {"shots": [1, 4], "draws": 3, "reference": None, "heads": {"ridge": RIDGE}}
    with caplog.at_level(logging.WARNING):
        run("mdm_study", run_dir=str(tmp_path / "study"), backbones=backbones, **grid)
    notes = json.loads((tmp_path / "study" / "study.json").read_text())["notes"]
    drawn = {}
    for path in (tmp_path / "study" / "cells").glob("*k1*.json"):
        content = json.loads(path.read_text())
        drawn[content["cell"]["draw"]] = content["support"]
    without = [draw for draw, support in sorted(drawn.items()) if support != ["3"]]
    assert without
    assert notes == [f"the labelled image does not hold class 1 a (draw {draw})" for draw in without]
    assert all(f"- {note}\n" in (tmp_path / "study" / "study.md").read_text() for note in notes)
    assert all(note in caplog.text for note in notes)
