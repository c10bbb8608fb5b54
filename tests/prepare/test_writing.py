"""What holds for every kind: nothing is lost, nothing is done twice, a killed run is continued, mistakes are named."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from medmdm.cli.prepare import add_arguments, run
from medmdm.data.files.pictures import read_image
from medmdm.data.folders import find_data_list
from medmdm.data.lists import load_data_list
from medmdm.data.mask_names import is_mask
from medmdm.data.selection import select_training_images
from medmdm.errors import UserError
from medmdm.files import pixel_hash
from medmdm.prepare import KINDS, journal, prepare
from tests.prepare.layouts import LATER, MAKERS, contents, dsb2018, folder, glas, mask, monuseg, stamps, zipped
from tests.written import picture

pytestmark = pytest.mark.filterwarnings("error::ResourceWarning")

IMAGES = {
    "glas": "train_10.bmp",
    "monuseg": "MoNuSegTrainingData/Tissue Images/TCGA-18-5592-01Z-00-DX1.tif",
    "dsb2018": "stage1_train/aa11/images/aa11.png",
    "folder": "images/b/x.tif",
}


@pytest.fixture(params=MAKERS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def source(kind: str, tmp_path: Path) -> Path:
    return MAKERS[kind](tmp_path / kind)


def test_what_is_written_is_what_the_source_holds(kind: str, source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    prepare(kind, source, dest)
    found, warnings = find_data_list(dest)
    assert found is not None
    assert not warnings
    assert found.path == dest / "dataset.json"
    entries = [*found.training, *found.test]
    originals = {
        pixel_hash(read_image(path))
        for path in source.rglob("*")
        if path.is_file() and not is_mask(path.relative_to(source)) and path.suffix not in (".csv", ".xml")
        if path.stem != LATER  # which dataset.json does not list
    }
    written = {pixel_hash(read_image(dest / entry["image"])) for entry in entries}
    assert written == originals
    assert len(written) == len(entries)
    for entry in entries:
        if "label" in entry:
            with Image.open(dest / entry["label"]) as label:
                assert label.mode.startswith("I;16")
            assert read_image(dest / entry["label"]).shape[1:] == read_image(dest / entry["image"]).shape[1:]
    assert len(select_training_images(dest).training) == len(found.training)
    assert not list(dest.rglob(".*"))


def test_a_second_run_changes_nothing(kind: str, source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    first = prepare(kind, source, dest)
    before = stamps(dest)
    second = prepare(kind, source, dest)
    assert stamps(dest) == before
    assert " 0 kept" in first
    assert ": 0 prepared" in second
    assert first.splitlines()[1:] == second.splitlines()[1:]


def test_folder_and_zip_give_the_same_bytes(kind: str, source: Path, tmp_path: Path) -> None:
    prepare(kind, source, tmp_path / "out")
    archive = zipped(source, tmp_path / f"{kind}.zip", top="Release (2016_07_08)/")
    prepare(kind, archive, tmp_path / "unzipped")
    assert contents(tmp_path / "unzipped") == contents(tmp_path / "out")
    before = stamps(tmp_path / "out")
    prepare(kind, archive, tmp_path / "out")  # the same content from elsewhere is no change either
    assert stamps(tmp_path / "out") == before


def test_a_changed_source_and_a_changed_output_are_noticed(kind: str, source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    prepare(kind, source, dest)
    before = contents(dest)
    (dest / load_data_list(dest / "dataset.json").training[0]["image"]).write_bytes(b"scribble")
    assert ": 1 prepared" in prepare(kind, source, dest)
    assert contents(dest) == before

    changed = source / IMAGES[kind]
    array = np.array(Image.open(changed))
    array[0, 0] ^= 1
    times = changed.stat()
    Image.fromarray(array).save(changed)
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert ": 1 prepared" in prepare(kind, source, dest)
    assert pixel_hash(read_image(changed)) in {pixel_hash(read_image(path)) for path in dest.rglob("images/**/*.png")}


@pytest.mark.slow
def test_a_run_that_fails_anywhere_is_continued_to_the_same_bytes(kind, source, tmp_path, monkeypatch) -> None:
    prepare(kind, source, tmp_path / "whole")
    write = journal.atomic_write
    for fail_at in range(1, 20):
        dest = tmp_path / f"broken_{fail_at}"
        calls = 0

        def failing(path: Path, content: bytes, fail_at: int = fail_at) -> None:
            nonlocal calls
            calls += 1
            if calls == fail_at:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).with_name(f".{Path(path).name}.1.part").write_bytes(content[:7])
                raise KeyboardInterrupt
            write(path, content)

        monkeypatch.setattr(journal, "atomic_write", failing)
        try:
            prepare(kind, source, dest)
        except KeyboardInterrupt:
            assert not (dest / "dataset.json").exists()
        monkeypatch.setattr(journal, "atomic_write", write)
        prepare(kind, source, dest)
        assert contents(dest) == contents(tmp_path / "whole")
        if calls < fail_at:
            return
    pytest.fail("the last write was never reached")


@pytest.mark.slow
def test_a_killed_process_is_continued(tmp_path: Path) -> None:
    source, dest = glas(tmp_path / "glas"), tmp_path / "out"
    program = (
        "import os, signal, sys\n"
        "from medmdm.prepare import journal, prepare\n"
        "write = journal.Journal.write\n"
        "def killed(self, case, *rest):\n"
        "    write(self, case, *rest)\n"
        "    if case.name == 'train_10':\n"
        "        open(self.dest / 'prepared.jsonl', 'ab').write(b'{\"case\": \"te')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "journal.Journal.write = killed\n"
        "prepare('glas', *sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, source, dest], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (dest / "dataset.json").exists()
    assert ": 1 prepared, 2 kept" in prepare("glas", source, dest)
    prepare("glas", source, tmp_path / "whole")
    assert contents(dest) == contents(tmp_path / "whole")


def test_a_journal_cut_short_in_its_first_line(tmp_path: Path) -> None:
    source, dest = glas(tmp_path / "glas"), tmp_path / "out"
    prepare("glas", source, dest)
    before = contents(dest)
    (dest / "prepared.jsonl").write_bytes((dest / "prepared.jsonl").read_bytes()[:9])
    prepare("glas", source, dest)
    assert contents(dest) == before


def sentence(*arguments: object, **options: str) -> str:
    with pytest.raises(UserError) as error:
        prepare(*arguments, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_mistakes_about_source_and_destination(tmp_path: Path) -> None:
    source = glas(tmp_path / "glas")
    assert "did you mean 'glas'" in sentence("gals", source, tmp_path / "out")
    assert "nowhere does not exist" in sentence("glas", tmp_path / "nowhere", tmp_path / "out")
    assert "is inside SOURCE" in sentence("glas", source, source / "out")
    assert "is inside SOURCE" in sentence("glas", source, source)
    assert "is a file" in sentence("glas", source, source / "Grade.csv")
    assert "neither a folder nor a sound zip file" in sentence("glas", source / "Grade.csv", tmp_path / "out")
    for name in ("glas", "monuseg", "dsb2018", "folder"):
        empty = tmp_path / f"no_{name}"
        empty.mkdir()
        (empty / "notes.txt").write_text("x")
        assert str(empty) in sentence(name, empty, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_destination_that_holds_something_else(tmp_path: Path) -> None:
    source, dest = glas(tmp_path / "glas"), tmp_path / "out"
    picture(dest / "images" / "mine.png")
    before = contents(dest)
    assert "prepare has not written" in sentence("glas", source, dest)
    assert contents(dest) == before
    shutil.rmtree(dest)
    prepare("glas", source, dest)
    assert "holds glas prepared before" in sentence("folder", source, dest)
    for path in source.glob("train_10*"):
        path.unlink()
    assert "holds 1 cases prepared before" in sentence("glas", source, dest)
    (dest / "prepared.jsonl").write_text("[1]\n[2]\n")
    assert "prepared.jsonl is damaged" in sentence("glas", source, dest)


def test_a_damaged_image_leaves_no_list_and_nothing_half_written(kind: str, source: Path, tmp_path: Path) -> None:
    broken = source / IMAGES[kind]
    broken.write_bytes(broken.read_bytes()[:90])
    dest = tmp_path / "out"
    assert broken.name in sentence(kind, source, dest)
    assert not (dest / "dataset.json").exists()
    assert not list(dest.rglob("*.part"))
    assert not list(dest.rglob(".*"))
    picture(broken)
    prepare(kind, source, dest)


def test_names_that_differ_in_case_only(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "a.png")
    picture(tmp_path / "set" / "A.tif")
    assert "rename one" in sentence("folder", tmp_path / "set", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    source = folder(tmp_path / "set")
    arguments = ["folder", str(source), str(tmp_path / "out"), "--label-type", "instances"]
    run(parser.parse_args(arguments))
    output = capsys.readouterr().out
    assert "set: 3 prepared" in output
    assert "object" in output
    for name in KINDS:
        with pytest.raises(SystemExit):
            parser.parse_args([name, "--help"])
        assert "SOURCE" in capsys.readouterr().out


def test_patients_are_neither_printed_nor_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = glas(tmp_path / "glas")
    grades = source / "Grade.csv"
    grades.write_bytes(grades.read_bytes().replace(b",21,", b",SECRET,"))
    assert "SECRET" not in prepare("glas", source, tmp_path / "out") + caplog.text
    assert "SECRET" in (tmp_path / "out" / "dataset.json").read_text()


def test_lists_are_plain_json_in_one_order(tmp_path: Path) -> None:
    for name, maker in {"glas": glas, "monuseg": monuseg, "dsb2018": dsb2018}.items():
        prepare(name, maker(tmp_path / name), tmp_path / "out" / name)
        content = json.loads((tmp_path / "out" / name / "dataset.json").read_text())
        keys = {"name", "description", "licence", "citation", "labels", "label_type", "training", "test"}
        assert keys <= set(content)


def test_16_bit_and_float_pictures_keep_every_bit(tmp_path: Path) -> None:
    rng, source = np.random.default_rng(0), tmp_path / "set"
    picture(source / "rgb.png")
    deep = rng.integers(0, 65536, (12, 17, 3), dtype=np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(deep, isVector=True), str(source / "deep.tif"))
    picture(source / "grey16.png", rng.integers(0, 65536, (12, 17), dtype=np.uint16))
    picture(source / "float.tif", rng.random((12, 17), dtype=np.float32))
    picture(source / "bilevel.png", rng.random((12, 17)) > 0.5)
    prepare("folder", source, tmp_path / "out")
    for entry in load_data_list(tmp_path / "out" / "dataset.json").training:
        image = tmp_path / "out" / entry["image"]
        assert pixel_hash(read_image(image)) == pixel_hash(read_image(next(source.glob(f"{image.stem}.*"))))
    assert (tmp_path / "out" / "images" / "deep.png").exists()
    assert (tmp_path / "out" / "images" / "float.tif").exists()


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    source = glas(tmp_path / "glas")
    mask(source / "train_1_anno.bmp", [], rows=30, columns=20)
    message = sentence("glas", source, tmp_path / "out")
    assert "train_1_anno.bmp is 30x20 but its image" in message
    assert "train_1.bmp is 20x30" in message


def test_a_list_with_added_labels_is_not_written_over(tmp_path: Path) -> None:
    source, dest = folder(tmp_path / "set"), tmp_path / "out"
    prepare("folder", source, dest)
    listed = json.loads((dest / "dataset.json").read_text())
    kept = json.dumps({**listed, "labels_added": [{"added": ["images/a.png"], "replaced": []}]}, indent=2)
    (dest / "dataset.json").write_text(kept)
    with pytest.raises(UserError, match=r"has labels that add-labels put there, .* another folder"):
        prepare("folder", source, dest)
    assert (dest / "dataset.json").read_text() == kept
