import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medmdm.artifacts.pretrained import load_pretrained
from medmdm.cli import main
from medmdm.errors import UserError, nearest
from medmdm.files import resource_folder
from tests.bundle_runs import run_python


def test_init_lays_out_every_config_and_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "x")]) == 0
    assert "mdm_pretrain.json" in capsys.readouterr().out
    for name in ("bundles", "data_lists"):
        source = resource_folder(name)
        for file in source.rglob("*.json"):
            assert json.loads((tmp_path / "x" / name / file.relative_to(source)).read_text())
    assert (tmp_path / "x" / "bundles" / "logging.conf").exists()
    assert main(["init", str(tmp_path / "x")]) == 0  # nothing changed: fine
    (tmp_path / "x" / "bundles" / "mdm_pretrain.json").write_text("{}")
    assert main(["init", str(tmp_path / "x")]) == 1
    assert "pass --overwrite" in capsys.readouterr().err
    assert (tmp_path / "x" / "bundles" / "mdm_pretrain.json").read_text() == "{}"
    assert main(["init", str(tmp_path / "x"), "--overwrite"]) == 0


def test_convert_a_published_checkpoint(tmp_path: Path, golden: Path) -> None:
    meta = json.loads(str(np.load(golden / "golden_unet_film.npz")["meta"]))
    state = {name: torch.zeros(shape) for name, shape in meta["state_shapes"].items()}
    torch.save(state, tmp_path / "published.pt")
    command = ["convert", str(tmp_path / "published.pt"), str(tmp_path / "model.pt"), "--set", "num_head_channels=16"]
    assert main(command) == 0
    rebuilt, plan = load_pretrained(tmp_path / "model.pt")
    assert set(rebuilt.state_dict()) == set(state)
    assert plan["network"]["num_head_channels"] == 16
    assert plan["ledger"] is None


def test_a_mistake_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "missing.pt"), str(tmp_path / "out.pt")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "missing.pt" in error
    assert error.count("\n") == 1


WRAPPED = (
    "from medmdm.errors import *; show_user_errors_as_sentences(); show_user_errors_as_sentences()\n"
    "try:\n    raise UserError('the file x is empty.')\n"
    "except UserError as e:\n    raise RuntimeError('wrapped') from e"
)
IN_A_LOADER_WORKER = (
    "import torch\nfrom medmdm.errors import *\nshow_user_errors_as_sentences()\n"
    "class Broken(torch.utils.data.Dataset):\n"
    "    def __len__(self): return 1\n"
    "    def __getitem__(self, i): raise UserError('the file x is empty.')\n"
    "next(iter(torch.utils.data.DataLoader(Broken(), num_workers=1)))"
)


@pytest.mark.slow
@pytest.mark.parametrize("program", [WRAPPED, IN_A_LOADER_WORKER], ids=["wrapped", "worker"])
def test_uncaught_user_error_ends_the_interpreter_with_a_sentence(program: str, tmp_path: Path) -> None:
    assert run_python("-c", program, cwd=tmp_path, code=1).stderr == "error: the file x is empty.\n"


@pytest.mark.slow
def test_another_error_ends_it_with_a_traceback(tmp_path: Path) -> None:
    program = WRAPPED.replace("UserError('", "KeyError('")
    assert "Traceback" in run_python("-c", program, cwd=tmp_path, code=1).stderr


def test_nearest() -> None:
    assert nearest("max_step", ["max_steps", "seed"]) == " (did you mean 'max_steps'?)"
    assert nearest("zzz", ["max_steps"]) == ""
    assert issubclass(UserError, ValueError)
