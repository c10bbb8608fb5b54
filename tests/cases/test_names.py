"""A folder has the name that was typed, or there is a sentence; it is never another folder."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from medmdm.runs.command_line import restore, typed
from medmdm.schemas import settings
from tests.bundle_runs import BUNDLES, TINY, run_python
from tests.made import refused

PROGRAM = "/usr/lib/python3/site-packages/monai/bundle/__main__.py"
NAMES = ["exp #1", "runs/e#4", "x::y", "a,b", "a = b", "2024", "2024_01", "1e5", "001_2", "true", "False", "[x]", "{a}",
         "(1)", "0x10", "it's", "#", "1,", "-1"]  # fmt: skip


def read(monkeypatch: pytest.MonkeyPatch, bundle: str, *arguments: str, **merged: Any) -> ConfigParser:
    """The config of a bundle as it is once what was typed is put back; ``merged`` is what fire and MONAI made of it."""
    monkeypatch.setattr(sys, "argv", [PROGRAM, "run", *arguments])
    parser = ConfigParser({**json.loads((BUNDLES / f"{bundle}.json").read_text()), **merged})
    restore(parser, settings(bundle))
    parser.parse()
    return parser


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["--run_dir {}", "--run_dir={}", "--run-dir={}"])
def test_the_name_that_was_typed_comes_through(name: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flag, _, _ = form.partition("{")
    typed_name = [f"{flag}{name}"] if flag.endswith("=") else [flag.strip(), name]
    parser = read(monkeypatch, "mdm_pretrain", *typed_name, run_dir=("whatever", "fire", "made"))
    assert str(parser.get_parsed_content("run_dir")) == name
    if name != "-1":
        assert Path(parser.get_parsed_content("checkpoints").folder) == Path(name, "checkpoints")


def test_every_setting_that_is_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--dataset_dir", "set#3", "--backbone=1_0", "--data_list", "l#1.json", "--slice_cache", "7", "--draw", "3"]
    parser = read(monkeypatch, "mdm_segment", *given, draw=3)
    assert [str(parser.get_parsed_content(key)) for key in ("dataset_dir", "backbone", "data_list", "slice_cache")] == [
        "set#3", "1_0", "l#1.json", "7",
    ]  # fmt: skip
    assert parser["draw"] == 3
    parser = read(monkeypatch, "mdm_study", "--backbones#MDM#path", "runs/e#1/model.pt")
    assert str(parser["backbones#MDM#path"]) == "runs/e#1/model.pt"


def test_expressions_lists_and_null_mean_more_than_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    merged = {"run_dir": "@dataset_dir", "data_list": {"training": []}, "slice_cache": "null", "section": "null"}
    arguments = [f"--{key}={value}" for key, value in merged.items()]
    parser = read(monkeypatch, "mdm_segment", *arguments, **merged)
    assert {key: parser[key] for key in merged} == merged
    parser = read(
        monkeypatch, "mdm_segment", "--shots", "None", "--run_dir", "'2024'", "--feature_cache", "None", shots=4
    )
    assert [parser[key] for key in ("shots", "run_dir", "feature_cache")] == [None, "2024", None]


def test_none_within_a_part_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--head#unlabelled", "None", "--head#training#augmentation=None", "--tracking", "None"]
    parser = read(monkeypatch, "mdm_segment", *given)
    assert parser["head"]["unlabelled"] is None
    assert parser["head"]["training"]["augmentation"] is None  # not there before: the class's default is another
    assert "tracking" not in parser.get()
    refused(
        "Unknown key 'hed#unlabelled': .*no part 'hed'", read, monkeypatch, "mdm_segment", "--hed#unlabelled", "None"
    )


def test_only_the_command_line_of_a_bundle_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest", "--run_dir", "x"])
    assert typed() == {}
    monkeypatch.setattr(sys, "argv", [PROGRAM, "run", "--a-b", "1", "--dry_run", "--x::y=2", "--a-b=3", "--", "--z=1"])
    assert typed() == {"a_b": "3", "x#y": "2"}


@pytest.mark.parametrize("where", [{"run_dir": "e::4"}, {"backbones": {"MDM": {"path": "r/e::1/model.pt"}}},
                                   {"data_list": {"training": [{"image": "a::1.png"}]}}], ids=str)  # fmt: skip
def test_a_file_of_settings_cannot_hold_a_number_sign(where: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    refused("MONAI makes '::' of a '#'", read, monkeypatch, "mdm_study", **where)


@pytest.mark.slow
@pytest.mark.bundle
def test_two_experiments_with_number_signs_are_two(tmp_path: Path, image_folder: Path) -> None:
    image_folder.rename(tmp_path / "set #3")
    overlay = tmp_path / "tiny.json"
    overlay.write_text(json.dumps({**TINY, "max_steps": 1}))
    files = str([str(BUNDLES / "mdm_pretrain.json"), str(overlay)])
    command = ["-m", "monai.bundle", "run", "--config_file", files, "--dataset_dir", "set #3", "--run_dir"]
    for name in ("exp #1", "2024_01"):
        run_python(*command, name, cwd=tmp_path)
        assert json.loads((tmp_path / name / "run.json").read_text())["config"]["run_dir"] == name
    done = run_python(*command, "null", cwd=tmp_path, code=1)
    assert done.stderr.endswith("error: run_dir must be a text, got null.\n")
    assert {path.name for path in tmp_path.iterdir()} == {"set #3", "tiny.json", "exp #1", "2024_01"}
