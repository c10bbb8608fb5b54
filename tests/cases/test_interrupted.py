"""An interrupt ends anything with one sentence and status 130 or 143; the same command then gives the same bits."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from medmdm import cli, errors
from medmdm.errors import Terminated
from medmdm.prepare.journal import Journal
from medmdm.segment.evaluation import Outputs
from tests.bundle_runs import UNET, Run
from tests.prepare import layouts
from tests.segment.conftest import pictures, run  # noqa: F401 - fixtures

WAYS = {
    "alone": "hit()",
    "behind an eval of MONAI's": "eval('hit()')",
    "beside threads": (
        "from multiprocessing.pool import ThreadPool; import time\n"
        "with ThreadPool(2) as pool:\n  for _ in pool.imap(lambda n: time.sleep(0.01), range(1000)): hit()"
    ),
    "beside a child": (
        "import time\nif (child := os.fork()) == 0:\n  time.sleep(0.5); print('went on', flush=True); os._exit(0)\n"
        "os.kill(child, signal.SIGINT)\nos.wait()\nhit()"
    ),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.slow
def test_a_sentence_and_a_status(way: str, number: signal.Signals, tmp_path: Path) -> None:
    program = (
        "import os, signal\nfrom medmdm.errors import show_user_errors_as_sentences, when_interrupted\n"
        "show_user_errors_as_sentences(); when_interrupted('all is kept.')\n"
        f"def hit(): os.kill(os.getpid(), {number.value})\n"
        f"{WAYS[way]}\n"
    )
    # What runs the tests in the background may ignore interrupts, and a child would inherit that.
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, preexec_fn=default, timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}, check=False,
    )  # fmt: skip
    assert (done.stderr, done.returncode) == ("interrupted: all is kept.\n", 128 + number)
    assert done.stdout == ("went on\n" if way == "beside a child" else "")  # a loader's workers leave it to the first


def after(calls: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Let SIGTERM come at the start of a call of a function, after so many."""
    left = [calls]

    def called(*arguments: Any, **named: Any) -> Any:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        left[0] -= 1
        return function(*arguments, **named)

    return called


def contents(folder: Path) -> dict[str, str]:
    """Hashes of what a run leaves, but for what tells its times."""
    timed = ("run.json", "run.log", "summary.json", "index.html")
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in timed]
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes().replace(bytes(folder), b"")).hexdigest()
        for p in found
    }


@pytest.fixture
def few(pictures: Path) -> Path:  # noqa: F811
    """Four labelled images, two without labels, and no test section."""
    content = json.loads((pictures / "dataset.json").read_text())
    content["unlabeled"] = [{"image": entry["image"]} for entry in content.pop("test")]
    (pictures / "dataset.json").write_text(json.dumps(content))
    return pictures


def test_label_a_few_apply_to_the_rest(few: Path, run: Run, tmp_path: Path) -> None:  # noqa: F811
    settings = {"head": UNET, "write_uncertainty": False}
    whole = tmp_path / "whole" / "few"  # the report is named after its folder
    run("mdm_segment", run_dir=str(whole), **settings)
    expected = contents(whole)
    assert {"applied/predictions/4.png", "applied/predictions/5.png", "per_case.csv"} <= set(expected)
    assert "Cross-validated" in (whole / "index.html").read_text()
    for name, moment in {
        "in a fit": patch("torch.optim.AdamW.step", after(5, torch.optim.AdamW.step)),
        "in the scores": patch.object(Outputs, "predict", after(1, Outputs.predict)),
        "in the masks": patch.object(Outputs, "predict", after(5, Outputs.predict)),  # four cases were scored before
    }.items():
        folder = tmp_path / name / "few"
        with moment, pytest.raises(Terminated):
            run("mdm_segment", run_dir=str(folder), **settings)
        assert (folder / "evaluation.json").exists() == (name == "in the masks")
        run("mdm_segment", run_dir=str(folder), **settings)
        assert contents(folder) == expected, name
        lines = (folder / "run.log").read_text()
        assert lines.count("writes to") == 2


def test_masks(few: Path, run: Run, tmp_path: Path) -> None:  # noqa: F811
    run("mdm_segment", head=UNET, report=False)
    settings = {"segmenter": str(tmp_path / "run" / "segmenter.pt"), "output_dir": str(tmp_path / "masks")}
    with patch.object(Outputs, "predict", after(3, Outputs.predict)), pytest.raises(Terminated):
        run("mdm_infer", **settings)
    assert errors._told[0].startswith(f"interrupted: {tmp_path / 'masks' / 'predictions'} keeps the masks that are")
    run("mdm_infer", **settings)
    assert len(list((tmp_path / "masks" / "predictions").glob("*.png"))) == 6
    assert (tmp_path / "masks" / "run.log").read_text().count("writes to") == 2


def test_a_command_that_prepares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = layouts.MAKERS["glas"](tmp_path / "glas")
    command = ["prepare", "glas", str(source), str(tmp_path / "made")]
    with patch.object(Journal, "write", after(1, Journal.write)):
        assert cli.main(command) == 143
    said = f"interrupted: {tmp_path / 'made'} keeps the cases that are prepared; the same command goes on from there.\n"
    assert capsys.readouterr().err.endswith(said)
    assert cli.main(command) == 0
