"""The script for a lent GPU, in miniature."""

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medmdm.data.files.pictures import read_image
from tests.bundle_runs import REPOSITORY

SCRIPT = str(REPOSITORY / "benchmarks" / "gpu_evidence.py")


@pytest.mark.slow
def test_the_miniature_goes_on_from_call_to_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main: Any = runpy.run_path(SCRIPT)["main"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["--miniature", "--out", str(first), "--minutes", "0"]) == 0  # nothing fits into no time
    assert "not complete" in capsys.readouterr().out
    assert json.loads((first / "evidence.json").read_text())["rows"] == []
    assert main(["--miniature", "--out", str(first)]) == 0
    assert "\ncomplete" in capsys.readouterr().out
    found = json.loads((first / "evidence.json").read_text())
    assert len(found["rows"]) == 2 * 4 * 2
    assert {row["backbone"] for row in found["rows"]} == {"random weights", "MDM", "DDPM", "MAE"}
    assert set(found["curves"]) == set(found["pretrained"]) == {"MDM", "DDPM", "MAE"}
    assert all(0 <= score <= 1 for row in found["rows"] for score in row["dice"].values())
    assert found["throughput"]["share_of_rate"] > 0
    assert found["throughput"]["flop_per_image"] > 1e6
    page = (first / "evidence.md").read_text()
    assert page.count("| fine-tuned |") == 4
    # What comes back: few, small, flat files.
    travels = [path for path in first.iterdir() if path.is_file()]
    assert sorted(path.name for path in travels) == ["DDPM.pt", "MAE.pt", "MDM.pt", "evidence.json", "evidence.md"]
    assert not (first / "pretrain").exists()

    carried = tmp_path / "carried"
    carried.mkdir()
    for path in travels:
        shutil.copy(path, carried / path.name)
    del found["rows"][-1]
    (carried / "evidence.json").write_text(json.dumps(found))
    assert main(["--miniature", "--out", str(second), "--resume", str(carried)]) == 0
    again = json.loads((second / "evidence.json").read_text())
    assert again["rows"][:-1] == found["rows"]
    last = json.loads((first / "evidence.json").read_text())["rows"][-1]
    assert {**again["rows"][-1], "seconds": 0} == {**last, "seconds": 0}
    weights = torch.load(second / "MDM.pt", weights_only=True)["model"]
    assert {value.dtype for value in weights.values()} == {torch.float16}


def test_what_is_packed_is_read_at_its_resolution(tmp_path: Path) -> None:
    script = runpy.run_path(SCRIPT)
    script["make_data"](tmp_path / "made")
    content = json.loads((tmp_path / "made" / "dataset.json").read_text())
    assert content["spacing"] == [script["SPACING"]] * 2
    assert [len(content[section]) for section in ("training", "test")] == [5, 3]
    assert set(read_image(tmp_path / "made" / "0_mask.png").ravel()) == {0, 1}
    with pytest.raises(SystemExit):
        script["main"](["--data", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")])


@pytest.mark.bundle
def test_glas_is_packed_small_enough(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    runpy.run_path(SCRIPT)["pack"](real_data("glas"), tmp_path / "data")
    assert sum(path.stat().st_size for path in (tmp_path / "data").iterdir()) < 40e6
    content = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert len(content["training"]) == 85
    assert read_image(tmp_path / "data" / content["training"][0]["image"]).shape[1] in (216, 258, 261)
