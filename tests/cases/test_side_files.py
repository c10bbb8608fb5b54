"""Bit rot in files beside the weights: a journal, a log and a mask are told, made again, or cost their rows."""

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medmdm.errors import UserError
from medmdm.prepare import prepare
from medmdm.pretrain.log import _rows_up_to
from medmdm.runs.mean_mask import MEAN_MASK_FILE, keep_mean_mask, read_mean_mask
from medmdm.segment.formats.tables import BoxTable
from medmdm.segment.journal import Journal
from tests.damage.flips import damages, files_of, flipped
from tests.written import picture

LOG = "step,loss\n2,0.5\n4,nan\n6,-1e-05\n"


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    source, dest = tmp_path / "source", tmp_path / "dest"
    for name in "ab":
        picture(source / f"{name}.png", np.eye(20, 30)[..., None] * [10, 200, ord(name)])
        picture(source / f"{name}_mask.png", np.eye(20, 30))
    prepare("folder", source, dest)
    return source, dest


def test_no_fact_of_a_prepared_set_changes_in_silence(made: tuple[Path, Path]) -> None:
    source, dest = made
    path, expected = dest / "prepared.jsonl", files_of(dest)
    told, whole = 0, path.read_bytes()
    for content in damages(whole, 40):
        path.write_bytes(content)
        sentence = None
        try:
            prepare("folder", source, dest)
        except UserError as error:
            sentence = str(error)
            path.write_bytes(whole)
        assert sentence is None or "prepared" in sentence
        told += sentence is not None
        assert files_of(dest) == expected
    assert told > 20
    for old, new in ((b'"case"', b'"cask"'), (b"sha256", b"sha257"), (b"written", b"writteN"), (b"[", b"[" * 50_000)):
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(UserError, match="prepared"):
            prepare("folder", source, dest)


def test_lines_of_earlier_versions_have_no_digest(made: tuple[Path, Path]) -> None:
    source, dest = made
    path, expected = dest / "prepared.jsonl", files_of(dest)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(len(line.pop("sha256")) == 64 for line in lines)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    stamp = (dest / "images" / "a.png").stat().st_mtime_ns
    prepare("folder", source, dest)
    assert files_of(dest) == expected
    assert (dest / "images" / "a.png").stat().st_mtime_ns == stamp  # not made again


@pytest.mark.parametrize(("old", "new", "kept"), [
    (b"4,nan", b"\xf4,nan", [2, 6]), (b"4,nan", b"x4,nan", [2, 6]), (b"4,nan", b"4;nan", [2, 6]),
    (b"nan\n", b"nan\x00", [2]), (b"6,", b"6,,", [2, 4]), (b"0.5", b"0.5\r", [4, 6]), (b"2,", b",", [4, 6]),
])  # fmt: skip
def test_a_damaged_log_costs_rows(
    old: bytes, new: bytes, kept: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(LOG.encode().replace(old, new))
    rows = _rows_up_to(path, 6, ["step", "loss"]).splitlines()
    assert [int(row.split(",")[0]) for row in rows[1:]] == kept
    assert f"{path} is damaged: 1 row is left out" in caplog.text


def test_an_intact_log_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(LOG + "8,1.")  # cut off by a kill
    assert _rows_up_to(path, 6, ["step", "loss"]) == LOG
    assert not caplog.text


def test_a_mean_mask(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 3, (20, 30), dtype=np.uint8)
    keep_mean_mask(tmp_path, mask)
    path = tmp_path / MEAN_MASK_FILE
    whole, told = path.read_bytes(), 0
    method = whole.index(zipfile.stringCentralDir) + 10  # how it is packed, and whether it is encrypted
    for content in [*damages(whole, 60), flipped(whole, method, 64), flipped(whole, method - 2, 1)]:
        path.write_bytes(content)
        found, sentence = None, MEAN_MASK_FILE
        try:
            found = read_mean_mask(tmp_path)
        except UserError as error:
            sentence = str(error)
        assert MEAN_MASK_FILE in sentence
        assert found is None or np.array_equal(found, mask)
        told += found is None
    assert told > 30


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"cafe,x\n1,2\n", b'case,x\n"1,2\n', b"case\n1\n2,3,4\n"])
def test_boxes_of_an_earlier_inference(content: bytes, tmp_path: Path) -> None:
    run: Any = SimpleNamespace(path=tmp_path, record={})
    (tmp_path / "boxes.csv").write_bytes(content)
    journal = Journal(run, [], None)
    with pytest.raises(UserError, match=r"boxes\.csv is damaged"):
        journal.merged(BoxTable(), {})


def test_a_digit_of_the_boxes_of_an_earlier_inference(tmp_path: Path) -> None:
    run: Any = SimpleNamespace(path=tmp_path, record={})
    text = "case,x\na,11\nb,12\n"
    Journal(run, [], None).announce("boxes.csv", text)
    (tmp_path / "boxes.csv").write_text(text)
    assert list(Journal(run, [], None).merged(BoxTable(), {}) or {}) == ["a", "b"]
    (tmp_path / "boxes.csv").write_text(text.replace("12", "13"))
    with pytest.raises(UserError, match=r"boxes\.csv is damaged"):
        Journal(run, [], None).merged(BoxTable(), {})
    Journal(run, [], None).announce("boxes.csv", "case,x\na,11\n")  # and killed before it was written
    (tmp_path / "boxes.csv").write_text(text)
    assert list(Journal(run, [], None).merged(BoxTable(), {}) or {}) == ["a", "b"]


def test_the_record_of_an_inference_carries_its_digest(tmp_path: Path) -> None:
    run: Any = SimpleNamespace(path=tmp_path, record={"images": []})
    Journal(run, [], None).save()
    assert len(json.loads((tmp_path / "run.json").read_text())["sha256"]) == 64
