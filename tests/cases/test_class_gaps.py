"""Classes whose numbers have gaps: what the list declares is learnt, written and scored, and nothing else."""

import csv
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from monai.networks.nets import UNet

from medmdm.artifacts.export import export_segmenter
from medmdm.artifacts.segmenter_file import load_segmenter, save_segmenter
from medmdm.data.files.pictures import read_image
from medmdm.data.reading import Example
from medmdm.errors import UserError, find_user_error
from medmdm.heads import ClosedFormHead, FineTuning, FromScratch, PixelClassifierHead, RandomForestHead
from medmdm.heads.segmenter import Segmenter
from medmdm.heads.task import Fitter, Reading, Task
from medmdm.heads.training import Training
from medmdm.metrics import dice
from tests.bundle_runs import HEAD, UNET, Run
from tests.made import made_example, made_extractor
from tests.segment.conftest import pictures, run  # noqa: F401 - fixtures
from tests.written import picture

GAPS = [(0, 2), (0, 1, 4), (0, 3, 7)]
ARGUMENTS: dict[str, Any] = {
    "spatial_dims": 2, "in_channels": 3, "out_channels": 8, "channels": [8, 16], "strides": [2],
}  # fmt: skip
HEADS: dict[str, Fitter] = {
    "pixels": PixelClassifierHead(members=2, max_epochs=2, min_epochs=1, patience=1, dice_weight=1.0),
    "ridge": ClosedFormHead("ridge"),
    "lda": ClosedFormHead("lda"),
    "forest": RandomForestHead(trees=3),
    "scratch": FromScratch(functools.partial(UNet, **ARGUMENTS), 2, Training(steps=2, batch_size=2)),
    "tuned": FineTuning(Training(steps=1, batch_size=2)),
}


def gapped(numbers: tuple[int, ...]) -> Task:
    """Blobs of as many classes as there are numbers, under these numbers."""
    made = [made_example(seed, classes=len(numbers)) for seed in range(2)]
    examples = [Example(one.image, torch.tensor(numbers)[one.label], one.case) for one in made]
    return Task(examples, 8, Reading((32, 32)), classes=numbers)


@pytest.mark.parametrize(("head", "numbers"), [*((head, (0, 2, 7)) for head in HEADS), ("ridge", (0, 5, 6, 7))])
@pytest.mark.slow
def test_no_head_gives_a_number_that_is_no_class(head: str, numbers: tuple[int, ...], tmp_path: Path) -> None:
    task = gapped(numbers)
    model = HEADS[head].fit(task, made_extractor()).model
    image = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plan: dict[str, Any] = {"backbone": {"channels": 3}, "task": {}}
    plan |= {"network": {"_target_": "monai.networks.nets.UNet", **ARGUMENTS}} if head == "scratch" else {}
    save_segmenter(tmp_path / "segmenter.pt", model, plan)
    loaded = load_segmenter(tmp_path / "segmenter.pt")[0]
    none = [number for number in range(8) if number not in numbers]
    for segmenter in (model, loaded):
        logits = segmenter(image)
        assert logits.shape[1] == 8
        assert set(logits.argmax(1).unique().tolist()) <= set(numbers)
        assert logits.softmax(1)[:, none].max() < 1e-11
        assert segmenter.with_uncertainty(image).isfinite().all()
    torch.testing.assert_close(loaded(image), model(image))
    if isinstance(model, Segmenter) and head == "pixels":
        assert export_segmenter(tmp_path / "segmenter.pt", tmp_path / "segmenter.ts", (48, 64)) < 1e-4


def test_a_loss_sees_the_declared_classes_alone() -> None:
    """With gaps or without, the same images give the same loss and the same gradients."""
    closed, gaps = gapped((0, 2, 7)), gapped((0, 2, 7)).examples[0].label
    logits = torch.randn(1, 8, *gaps.shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    head = PixelClassifierHead(dice_weight=1.0, class_weights=(1.0, 2.0, 3.0))
    chosen, label = closed.without_gaps(logits, gaps[None])
    assert label.unique().tolist() == [0, 1, 2]
    head.loss_function(chosen, label).backward()
    plain = logits.detach()[:, [0, 2, 7]].requires_grad_()
    head.loss_function(plain, torch.bucketize(gaps[None], torch.tensor([0, 2, 7]))).backward()
    torch.testing.assert_close(logits.grad[:, [0, 2, 7]], plain.grad)
    assert logits.grad[:, [1, 3, 4, 5, 6]].abs().max() == 0


def relabelled(folder: Path, numbers: tuple[int, ...]) -> dict[int, str]:
    """Give the blobs of made pictures the numbers, one of them to each half; return the names of the classes."""
    for path in folder.glob("*_mask.png"):
        label = read_image(path)[0].astype(np.uint8)
        label[:12] *= numbers[1]
        label[12:] *= numbers[-1]
        picture(path, label)
    names = {number: f"kind {number}" if number else "background" for number in numbers}
    content = json.loads((folder / "dataset.json").read_text())
    labels = {name: number for number, name in names.items()}
    (folder / "dataset.json").write_text(json.dumps({**content, "labels": labels}))
    return names


def score_again(folder: Path, rows: list[dict[str, str]], run_dir: Path, numbers: tuple[int, ...]) -> None:
    for row in rows:
        mask = read_image(run_dir / "predictions" / row["prediction_file"])[0]
        truth = read_image(folder / row["reference_file"])[0]
        assert set(np.unique(mask)) <= set(numbers)
        each = [dice(mask == k, truth == k) for k in numbers[1:]]
        assert float(row["dice"]) == pytest.approx(np.nanmean(each))


@pytest.mark.bundle
@pytest.mark.parametrize("numbers", GAPS)
def test_segment_evaluate_infer_and_report(
    numbers: tuple[int, ...],
    run: Run,  # noqa: F811
    pictures: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    names = relabelled(pictures, numbers)
    network = {**UNET["network"], "out_channels": numbers[-1] + 1}
    run("mdm_segment", head={**UNET, "network": network})
    segmenter = str(tmp_path / "run" / "segmenter.pt")
    run("mdm_evaluate", segmenter=segmenter, run_dir=str(tmp_path / "again"))
    split = {"instances": "watershed"} if len(numbers) == 2 else {}
    post = {"_target_": "medmdm.segment.PostProcess", **split}
    run(
        "mdm_infer", segmenter=segmenter, output_dir=str(tmp_path / "masks"), write_probabilities=True, postprocess=post
    )
    for name in ("run", "again"):
        rows = list(csv.DictReader((tmp_path / name / "per_case.csv").read_text().splitlines()))
        score_again(pictures, rows, tmp_path / name, numbers)
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["classes"] == list(names.values())
        assert {k: row["name"] for k, row in summary["class_scores"].items()} == {str(k): names[k] for k in numbers[1:]}
        page = (tmp_path / name / "summary.md").read_text()
        assert ("is the mean over 2 classes" in page) == (len(numbers) == 3)
        assert "class 1" not in page
        (tmp_path / name / "per_case.csv").unlink()
    for path in (tmp_path / "masks" / "predictions").glob("?.png"):
        assert set(np.unique(read_image(path)[0])) <= set(numbers)
    boxes = tmp_path / "masks" / "boxes.csv"
    assert boxes.is_file() == bool(split)
    if split:
        assert set(pd.read_csv(boxes)["class"]) <= set(numbers[1:])


@pytest.mark.bundle
def test_study(run: Run, pictures: Path, tmp_path: Path) -> None:  # noqa: F811
    relabelled(pictures, (0, 2, 5))
    backbones = {"MDM": {"path": str(tmp_path / "model.pt")}}
    grid = {"shots": [4], "draws": 1, "reference": None, "heads": {"pixels": {**HEAD, "max_epochs": 1}}}
    run("mdm_study", run_dir=str(tmp_path / "study"), backbones=backbones, **grid)
    study = pd.read_csv(tmp_path / "study" / "study.csv")
    run("mdm_segment", head={**HEAD, "max_epochs": 1})
    alone = pd.read_csv(tmp_path / "run" / "per_case.csv")
    np.testing.assert_allclose(study["dice"], alone["dice"])


@pytest.mark.bundle
def test_a_segmenter_of_other_numbers_is_refused(
    run: Run,  # noqa: F811
    pictures: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    relabelled(pictures, (0, 1, 4))
    run("mdm_segment", head={"_target_": "medmdm.heads.ClosedFormHead"})
    content = json.loads((pictures / "dataset.json").read_text())
    labels = {"background": 0, "kind 2": 2, "kind 4": 4}
    (pictures / "dataset.json").write_text(json.dumps({**content, "labels": labels}))
    with pytest.raises((UserError, RuntimeError)) as caught:
        run("mdm_evaluate", segmenter=str(tmp_path / "run" / "segmenter.pt"), run_dir=str(tmp_path / "again"))
    assert "tells 3 classes apart (0 background, 1 kind 1, 4 kind 4)" in str(find_user_error(caught.value))
    assert "has 3 (0 background, 2 kind 2, 4 kind 4)" in str(find_user_error(caught.value))
