import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Engine
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medmdm.pretrain.log import COLUMNS, StepLog, duration


def engine(
    start: int,
    last: int,
    every: int,
    folder: Path,
    scores: tuple[str, ...] = (),
    progress: bool = False,
    digest: str | None = None,
) -> Engine:
    """An engine whose loss at step n is n, from ``start`` on."""

    def step(trainer: Engine, batch: int) -> dict:
        trainer.loss_sum += trainer.state.iteration
        trainer.loss_count += 1
        if scores and trainer.state.iteration % 3 == 0:
            trainer.state.heldout = dict.fromkeys(scores, trainer.state.iteration / 10)
            trainer.state.picture = np.full((4, 6, 3), (10 * trainer.state.iteration, 0, 255), np.uint8)
        loss = torch.tensor(float(trainer.state.iteration))
        return [{"loss": loss, "grad_norm": torch.tensor(0.5), "batch_size": 2}]

    trainer = Engine(step)
    trainer.loss_sum, trainer.loss_count = torch.zeros((), dtype=torch.float64), 0
    trainer.optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.25)
    StepLog(folder, every, scores, progress).attach(trainer)
    trainer.state.log_digest = digest
    trainer.state.iteration, trainer.state.epoch_length, trainer.state.max_epochs = start, last, 1
    trainer.run(range(start, last), max_epochs=1, epoch_length=last)
    return trainer


def test_rows_are_means_over_their_interval(tmp_path: Path) -> None:
    engine(0, 7, 2, tmp_path, ("ssim_t5",))
    log = pd.read_csv(tmp_path / "metrics.csv")
    assert list(log.columns) == [*COLUMNS, "ssim_t5"]
    assert log["step"].tolist() == [2, 3, 4, 6, 7]
    assert log["loss"].tolist() == [1.5, 3, 4, 5.5, 7]
    assert log["ssim_t5"].dropna().tolist() == [0.3, 0.6]
    assert set(log["learning_rate"]) == {0.25}
    assert (log["images_per_second"] > 0).all()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("loss")] == log["step"].tolist()
    assert [round(e.value, 4) for e in events.Scalars("loss")] == log["loss"].tolist()
    shown = events.Images("preview")
    assert [one.step for one in shown] == [3, 6]
    for one in shown:
        pixels = np.asarray(Image.open(io.BytesIO(one.encoded_image_string)))
        assert pixels.shape == (4, 6, 3)
        assert (pixels == (10 * one.step, 0, 255)).all()


def test_progress_bar_shows_loss_speed_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine(4, 8, 2, tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert re.search(r"8/8 \[00:00<00:00, .*loss 8\.0000, \d+\.\d images/s", shown.replace("\r", "\n"))


def test_resuming_cuts_later_rows_off(tmp_path: Path) -> None:
    engine(0, 6, 2, tmp_path)
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("8,9,9,9,9,9\n9,1")  # the second row was cut off by a kill
    engine(4, 8, 2, tmp_path)
    log = pd.read_csv(tmp_path / "metrics.csv")
    assert log["step"].tolist() == [2, 4, 6, 8]
    assert log["loss"].tolist() == [1.5, 3.5, 5.5, 7.5]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("loss")] == [2, 4, 6, 8]


@pytest.mark.parametrize(("old", "new", "told"), [("2,1.5,", "2,1.6,", True), ("", "", False)])
def test_a_changed_number_is_noticed_when_the_run_goes_on(
    old: str, new: str, told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digest = engine(0, 4, 2, tmp_path).state.log_digest
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text().replace(old, new))
    resumed = engine(4, 8, 2, tmp_path, digest=digest)
    assert (f"{path} has changed since it was written" in caplog.text) == told
    assert (resumed.state.log_digest != engine(0, 8, 2, tmp_path / "whole").state.log_digest) == told


def test_an_exception_passes_through(tmp_path: Path) -> None:
    trainer = Engine(lambda engine, batch: 1 / 0)
    trainer.loss_sum, trainer.loss_count = torch.zeros(()), 0
    StepLog(tmp_path, 1, progress=False).attach(trainer)
    with pytest.raises(ZeroDivisionError):
        trainer.run([0], max_epochs=1)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 min 00 s"), (61.4, "1 min 01 s"), (7260, "2 h 01 min")])
def testduration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
