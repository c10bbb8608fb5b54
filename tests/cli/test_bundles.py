import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medmdm.cli import bundles, main
from medmdm.cli.bundles import COMMANDS, keys, parser
from medmdm.files import resource_folder
from medmdm.schemas import bundle_schema
from tests.bundle_runs import bundle_command, run_python
from tests.made import refused

SHIPPED = resource_folder("bundles")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The command lines that MONAI would get, in a folder without bundles."""
    found: list[list[str]] = []

    def run_module(name: str, run_name: str, alter_sys: bool) -> None:
        assert (name, run_name, alter_sys) == ("monai.bundle", "__main__", True)
        found.append(sys.argv[1:])

    monkeypatch.setattr(bundles.runpy, "run_module", run_module)
    monkeypatch.setattr(sys, "argv", ["medmdm"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr("medmdm.errors._told", [""])
    monkeypatch.chdir(tmp_path)
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_config_the_shipped_one_is_run(command: str, started: list[list[str]]) -> None:
    assert main([command, "--seed", "1", "--head#training#steps=5"] if command == "segment" else [command]) == 0
    settings = ["--seed", "1", "--head#training#steps=5"] if command == "segment" else []
    assert started == [["run", "--config_file", str([str(SHIPPED / f"mdm_{command}.json")]), *settings]]


@pytest.mark.parametrize(("given", "merged"), [
    (["--config", "mine.json"], ["mine.json"]),
    (["--config=mine.json,over.json"], ["mine.json", "over.json"]),
    (["--config", "mine.json", "--config", "over.json"], ["mine.json", "over.json"]),
    (["--config_file", "['mine.json', 'over.json']"], ["mine.json", "over.json"]),
    (["--config", "a, b.json"], ["a, b.json"]),
    (["--config", "over.json"], ["SHIPPED/mdm_segment.json", "over.json"]),
    (["--config", "overlays/frozen_segment.json"],
     ["SHIPPED/mdm_segment.json", "SHIPPED/overlays/frozen_segment.json"]),
    (["--config", "bundles/mdm_segment.json,over.json"], ["SHIPPED/mdm_segment.json", "over.json"]),
])  # fmt: skip
def test_configs(given: list[str], merged: list[str], started: list[list[str]], tmp_path: Path) -> None:
    for name in ("mine.json", "a, b.json"):
        shutil.copyfile(SHIPPED / "mdm_segment.json", tmp_path / name)
    (tmp_path / "over.json").write_text('{"seed": 3}')
    assert main(["segment", *given]) == 0
    files = [name.replace("SHIPPED", str(SHIPPED)) for name in merged]
    assert started[0][:3] == ["run", "--config_file", str(files)]
    beside = [] if merged[0].startswith("SHIPPED") else [str(SHIPPED / "logging.conf"), str(SHIPPED / "metadata.json")]
    assert started[0][3:][1::2] == beside


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["--config", "nowhere.json"], "the config nowhere.json does not exist in "),
    (["--config", "overlays/frozen_segmnt.json"], "did you mean 'overlays/frozen_segment.json'"),
    (["--config", "mdm_pretrain.json"], "a config of mdm_pretrain, not of mdm_segment: run medmdm pretrain"),
    (["--config", "broken.json"], "the config broken.json cannot be read: "),
    (["--config"], "--config needs a file"),
    (["data/glas"], "'data/glas' follows no setting: give settings as --key value"),
    (["--seed", "1", "2"], "'2' follows no setting"),
    (["--hed#training#steps", "5"], "segment has no part 'hed' (did you mean 'head'?)"),
    (["--hed::training", "5"], "segment has no part 'hed' (did you mean 'head'?)"),
])  # fmt: skip
def test_a_mistake_is_one_sentence(
    arguments: list[str], sentence: str, started: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.json").write_text("{")
    assert main(["segment", *arguments]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not started


def test_values_stay_as_they_were_typed(started: list[list[str]]) -> None:
    values = ["--run_dir", "2024_01,#a", "--seed=1", "--intensity_range", "[-100, 5]", "--dry_run", "--draw", "-1"]
    assert main(["pretrain", *values]) == 0
    assert started[0][3:] == values


def test_an_interrupt_is_left_to_the_end_of_the_interpreter(
    started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundles.runpy, "run_module", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(["infer"])
    assert not started


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_key(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for key, schema in keys(command):
        assert f"--{key} VALUE" in text
        assert " ".join(schema["description"].split())[:30] in text.replace("- ", "-") or "-" in schema["description"]
    assert "threads" in text
    assert "whole number of 1 or more, or null; default: null" in text
    known = {
        key for key in bundle_schema(f"mdm_{command}")["properties"] if key not in ("$schema", "bundle", "imports")
    }
    assert {key.split("#")[0] for key, _ in keys(command)} == known
    assert parser(command).prog == f"medmdm {command}"


def test_completion(capsys: pytest.CaptureFixture[str]) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.endswith(script)
    for typed, expected in {
        ("pre",): "prepare pretrain",
        ("segment", "--sect"): "--section",
        ("segment", "--preprocessing#sp"): "--preprocessing#spacing",
        ("segment", "--section", "t"): "training test",
        ("pretrain", "--dry_run", ""): "true false",
        ("check", "--j"): "--json",
        ("infer", "--config", "some_fi"): "",
    }.items():
        words = " ".join(f"'{word}'" for word in ("medmdm", *typed))
        asked = f'COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _medmdm; echo "${{COMPREPLY[*]}}"'
        done = subprocess.run([bash, "-c", f"{script}\n{asked}"], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected, typed


def test_the_help_of_an_unknown_command_is_argparse_s() -> None:
    with pytest.raises(SystemExit):
        main(["segmnt"])
    refused("needs a file", bundles._names, "")


@pytest.mark.slow
@pytest.mark.bundle
def test_the_same_bits_as_with_monai(image_folder: Path, tmp_path: Path) -> None:
    command = bundle_command(tmp_path / "monai", image_folder)
    run_python("-m", "monai.bundle", *command, cwd=tmp_path)
    given = command[3:]
    given[given.index(str(tmp_path / "monai"))] = "our,s#1"
    run_python("-m", "medmdm", "pretrain", *given, cwd=tmp_path)
    ours = tmp_path / "our,s#1"
    assert (ours / "model.pt").read_bytes() == (tmp_path / "monai" / "model.pt").read_bytes()
    session = json.loads((ours / "run.json").read_text())["sessions"][0]
    assert session["hardware"]["torch_threads"] == 1
    assert "1 of " in (ours / "run.log").read_text()
    again = run_python("-m", "medmdm", "pretrain", "--dataset_dir", str(tmp_path / "no"), cwd=tmp_path, code=1)
    assert again.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in again.stderr
