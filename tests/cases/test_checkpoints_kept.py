"""Only damage throws a checkpoint away, and weights of more steps are never replaced by fewer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medmdm.data.files.pictures import read_image
from medmdm.errors import UserError
from medmdm.pretrain.checkpoints import Checkpoints
from medmdm.runs.folder import RunFolder
from tests.bundle_runs import Workflow, saved_by, trainer_of
from tests.made import refused
from tests.written import picture


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    made = Checkpoints(tmp_path / "checkpoints", every=1, keep=3)
    for step in (10, 20, 30):
        made.save(step, {"step": step, "x": torch.arange(100.0)})
    return made


def test_the_one_before_is_taken(checkpoints: Checkpoints) -> None:
    newest = checkpoints.paths()[-1]
    content = bytearray(newest.read_bytes())
    content[content.index(torch.arange(100.0).numpy().tobytes()) + 7] ^= 4
    newest.write_bytes(content)
    found = checkpoints.load_newest()
    assert found is not None
    assert found["step"] == 20
    assert [path.name for path in checkpoints.paths()] == ["step_00000010.pt", "step_00000020.pt"]


@pytest.mark.parametrize("error", [
    torch.cuda.OutOfMemoryError("CUDA out of memory"), MemoryError(), PermissionError(13, "Permission denied"),
    OSError(28, "No space left on device"),
])  # fmt: skip
def test_nothing_else_is_damage(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    names = sorted(path.name for path in Path(checkpoints.folder).iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", fail)
        with pytest.raises(UserError, match=r"step_00000030\.pt"):
            checkpoints.load_newest()
    assert sorted(path.name for path in Path(checkpoints.folder).iterdir()) == names


def test_without_a_whole_one_the_run_stops_each_time(checkpoints: Checkpoints) -> None:
    for path in checkpoints.paths():
        path.write_bytes(path.read_bytes()[:100])
    for _ in range(2):
        refused("no checkpoint in .* is whole .* choose another run_dir", checkpoints.load_newest)
    checkpoints.save(1, {"something": "else"})
    refused("is no checkpoint of a run", checkpoints.load_newest)


def test_weights_of_more_steps_stay(tmp_path: Path) -> None:
    def folder() -> RunFolder:
        return RunFolder(tmp_path, {"bundle": "mdm_pretrain"}, {"format": 1}, {"hash": "h"}, 0)

    folder().save_model({"w": torch.ones(3)}, 30)
    whole = (tmp_path / "model.pt").read_bytes()
    for steps in (3, 29):
        folder().save_model({"w": torch.zeros(3)}, steps)
        assert (tmp_path / "model.pt").read_bytes() == whole
    (tmp_path / "model.pt").write_bytes(whole[:-50])  # damaged: there is nothing to keep
    folder().save_model({"w": torch.zeros(3)}, 3)
    assert folder().saved_steps() == 3


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(workflow: Workflow, tmp_path: Path) -> None:
    saved_by(workflow())
    folder = tmp_path / "run"
    whole = (folder / "model.pt").read_bytes()
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    refused("holds weights of 6 steps, but there is no checkpoint", trainer_of(workflow()).run)
    assert (folder / "model.pt").read_bytes() == whole


def test_other_images_are_not_taken_for_the_same(workflow: Workflow, image_folder: Path, tmp_path: Path) -> None:
    """Each of these changed what was sampled or held out, and passed."""
    entries = [{"image": f"{name}.png"} for name in ("a", "b", "c_x")]
    listed = {"name": "mine", "training": entries[:2], "validation": entries[2:]}

    def run(**changes: Any) -> None:
        (image_folder / "dataset.json").write_text(json.dumps({**listed, **changes}))
        trainer_of(workflow(max_steps=2, batch_size=2)).run()

    run()
    run()
    said = "the images or their split, names, order or labels"
    refused(said, run, training=entries[1::-1])  # the order
    refused(said, run, training=entries[1:], validation=entries[:1])  # roles
    refused(said, run, validation=[])  # held out from the training images now
    refused(said, run, training=[*entries[:2], entries[2]], validation=[])
    (image_folder / "a.png").rename(image_folder / "aa.png")
    refused(said, run, training=[{"image": "aa.png"}, entries[1]])  # a name
    (image_folder / "aa.png").rename(image_folder / "a.png")
    picture(image_folder / "c_x.png", 255 - np.moveaxis(read_image(image_folder / "c_x.png"), 0, -1))
    refused(said, run)  # the pixels of what is held out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(record["sessions"]) == 2
    for key in ("arrangement", "hash"):
        assert "a.png" not in record["data"][key]
