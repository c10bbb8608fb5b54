"""A pre-training from slides, from the folder to model.pt: exact resume, several workers, what is recorded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from medmdm.data import tile_slides
from medmdm.data.selection import select_training_images
from tests.bundle_runs import Workflow, saved_by, trainer_of
from tests.made_slides import tissue_in, write_slide

pytestmark = pytest.mark.slow
SETTINGS: dict[str, Any] = {"max_steps": 3, "checkpoint_every": 1, "preview_every": 3, "spacing": 0.001}


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    root = tmp_path / "slides"
    root.mkdir()
    write_slide(root / "a.ome.tif", (500, 700), tissue_in(500, 700))
    write_slide(root / "b.tif", (640, 420), tissue_in(640, 420), "plain")
    return root


def test_three_steps_on_two_slides(workflow: Workflow, slides: Path, tmp_path: Path) -> None:
    saved = saved_by(workflow(dataset_dir=str(slides), **SETTINGS))
    run = tmp_path / "run"
    assert list((run / "previews").iterdir())
    record = json.loads((run / "run.json").read_text())
    data = record["data"]
    assert (data["images"], data["preview_crops_seen_in_training"]) == (2, False)
    found = tile_slides(select_training_images(slides), (16, 16), (0.001, 0.001), progress=False)
    assert set(saved["plan"]["ledger"]["images"]) >= {entry["slide_hash"] for entry in found.training}
    assert list(saved["plan"]["spacing"]) == [0.001, 0.001]

    # The same bits with two workers; and for a run that was killed after its second step.
    others = workflow(dataset_dir=str(slides), run_dir=str(tmp_path / "two"), num_workers=2, **SETTINGS)
    parallel = saved_by(others)
    resumed = tmp_path / "resumed"
    shutil.copytree(run, resumed)
    (resumed / "model.pt").unlink()
    for path in (resumed / "checkpoints").iterdir():
        if "3" in path.name:
            path.unlink()
    again = workflow(dataset_dir=str(slides), run_dir=str(resumed), **SETTINGS)
    trainer = trainer_of(again)
    trainer.run()
    weights = torch.load(resumed / "model.pt", weights_only=True)
    for name, value in saved["model"].items():
        assert torch.equal(value, parallel["model"][name])
        assert torch.equal(value, weights["model"][name])
