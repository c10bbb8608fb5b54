"""Networks without a weights file of ours, alone and beside one, in segmenting runs and studies."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from medmdm.artifacts import load_network, load_pretrained, load_segmenter, load_timm, open_backbone
from medmdm.backbones import Concatenation, RawPixels, TimmBackbone
from medmdm.runs.record import find_provenance
from tests.bundle_runs import Run, write_backbone
from tests.made import refused as said
from tests.segment.test_study import study_settings
from tests.timm_stand_in import FETCHED, state_of, timm

__all__ = ["timm"]
pytestmark = pytest.mark.usefixtures("timm")
RIDGE = {"_target_": "medmdm.heads.ClosedFormHead", "method": "ridge"}
READ = {"channels": 3, "crop_size": [16, 16]}


@pytest.fixture
def pyramid(tmp_path: Path) -> dict[str, Any]:
    torch.save(state_of("pyramid"), tmp_path / "pyramid.pth")
    return {
        "_target_": "medmdm.artifacts.load_timm",
        "model": "pyramid",
        "weights": str(tmp_path / "pyramid.pth"),
    }


def test_segments_and_is_saved(run: Run, tmp_path: Path, pyramid: dict[str, Any]) -> None:
    run("mdm_segment", backbone=None, network=pyramid, head=RIDGE, preprocessing=READ)
    path = tmp_path / "run" / "segmenter.pt"
    (tmp_path / "pyramid.pth").unlink()  # the segmenter stands alone
    segmenter, plan = load_segmenter(path)
    backbone: Any = segmenter.extractor.backbone  # type: ignore[union-attr]
    assert isinstance(backbone, TimmBackbone)
    assert torch.equal(backbone.network.stages[0].weight, state_of("pyramid")["stages.0.weight"])
    assert plan["extractor"]["masking"] == "none"
    assert [info["channels"] for info in segmenter.extractor.feature_info] == [4, 6, 8]  # type: ignore[union-attr]
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (record["protocol"]["backbone"], record["stamp"]["kind"]) == ("pyramid", "unknown")
    infer = {"output_dir": str(tmp_path / "masks"), "segmenter": str(path)}
    run("mdm_infer", **infer, dataset_dir=str(tmp_path / "pictures"))
    assert list((tmp_path / "masks").rglob("*.png"))
    assert FETCHED == []


def test_beside_a_file_both_are_read(run: Run, tmp_path: Path, pyramid: dict[str, Any]) -> None:
    run("mdm_segment", network=pyramid, head=RIDGE)
    segmenter, plan = load_segmenter(tmp_path / "run" / "segmenter.pt")
    backbone: Any = segmenter.extractor.backbone  # type: ignore[union-attr]
    assert isinstance(backbone, Concatenation)
    assert (plan["extractor"]["masking"], plan["extractor"]["blocks"]) == ("seeded", [2, 3, 4, 5, 6])
    first = load_pretrained(tmp_path / "model.pt")[0].state_dict()
    assert all(torch.equal(value, first[name]) for name, value in backbone.parts[0].state_dict().items())
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (record["protocol"]["backbone"], record["stamp"]["kind"]) == ("model.pt + pyramid", "unknown")


def test_what_the_file_saw_is_not_forgotten(tmp_path: Path, pyramid: dict[str, Any]) -> None:
    write_backbone(tmp_path / "model.pt", ledger={"images": ["a" * 64], "patients": [], "salt": "s"})
    timms = load_timm("pyramid", tmp_path / "pyramid.pth")
    opened = open_backbone(tmp_path / "model.pt", network=timms)
    cases: Any = [SimpleNamespace(name=digest, entry={}, hashes=(digest * 64, digest * 64)) for digest in "ab"]
    assert find_provenance(cases, opened.plan["ledger"]).kind == "transductive"
    assert find_provenance(cases[1:], opened.plan["ledger"]).kind == "unknown"
    write_backbone(tmp_path / "second.pt", ledger={"images": ["b" * 64], "patients": [], "salt": "t"})
    second: Any = load_network(tmp_path / "second.pt")
    for network, kinds in (
        (second, ["transductive", "transductive"]),
        (load_timm("pyramid"), ["transductive", "inductive"]),  # random
        (RawPixels(), ["transductive", "inductive"]),
        (Concatenation([RawPixels(), second]), ["transductive", "transductive"]),
        (Concatenation([RawPixels(), timms]), ["transductive", "unknown"]),
    ):
        ledger = open_backbone(tmp_path / "model.pt", network=network).plan["ledger"]
        assert [find_provenance([case], ledger).kind for case in cases] == kinds
    alone = open_backbone(None, network=RawPixels(), preprocessing={"crop_size": [8, 8]})
    assert find_provenance(cases, alone.plan["ledger"]).kind == "inductive"


def test_a_file_beside_is_read_alike(tmp_path: Path) -> None:
    write_backbone(tmp_path / "model.pt", spacing=[0.5, 0.5])
    write_backbone(tmp_path / "second.pt")
    second: Any = load_network(tmp_path / "second.pt")
    sentence = r"model.pt was trained with spacing \[0.5, 0.5\], the network beside it with None.*preprocessing#spacing"
    said(sentence, open_backbone, tmp_path / "model.pt", network=second)
    said(sentence, open_backbone, tmp_path / "model.pt", network=Concatenation([RawPixels(), second]))
    open_backbone(tmp_path / "model.pt", network=second, preprocessing={"spacing": [1.0, 1.0]})


def test_a_study_compares_them(run: Run, tmp_path: Path, pyramid: dict[str, Any]) -> None:
    vit = {"_target_": "medmdm.artifacts.load_timm", "model": "vit_stand_in_patch14"}
    backbones = {
        "MDM": {"path": str(tmp_path / "model.pt")},
        "ResNet": {"network": pyramid, "path": None, "preprocessing": READ},
        "both": {"network": pyramid, "path": str(tmp_path / "model.pt")},
        "two": {
            "path": None,
            "network": {"_target_": "medmdm.backbones.Concatenation", "backbones": [pyramid, vit]},
            "preprocessing": READ,
        },
        "random": {"network": pyramid, "path": None, "preprocessing": READ, "initialise": "random"},
    }
    settings = study_settings(tmp_path, backbones=backbones, heads={"ridge": RIDGE}, shots=[4], draws=1)
    table = run("mdm_study", **settings)
    assert set(table["backbone"]) == set(backbones)
    assert np.isfinite(table["dice"]).all()
    means = table.groupby("backbone")["dice"].mean()
    assert means["both"] != means["MDM"]
    stamps = json.loads((tmp_path / "study" / "study.json").read_text())["stamps"]
    assert [stamps[name]["kind"] for name in backbones] == ["inductive", "unknown", "unknown", "unknown", "inductive"]
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "study" / "cells").iterdir()}
    run("mdm_study", **settings)
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "study" / "cells").iterdir()}


def test_says_what_is_missing(refused: Run, pyramid: dict[str, Any]) -> None:
    refused("Without a weights file nothing says how images are read", "mdm_segment", backbone=None, network=pyramid,
            head=RIDGE)  # fmt: skip
    grey = {**pyramid, "in_channels": 1, "weights": None}
    refused("the backbones take images of different channels: [3, 1]", "mdm_segment", network=grey, head=RIDGE)


def test_plans_that_differ_are_read_alike_once_it_is_said(run: Run, refused: Run, tmp_path: Path) -> None:
    """Transfer: weights of a set whose pixels have a size, on one whose pixels have none, and the other way round."""
    own, other = str(tmp_path / "model.pt"), str(tmp_path / "spaced.pt")
    write_backbone(Path(other), spacing=[0.5, 0.5])
    there = {"own": {"path": own}, "other": {"path": other}}
    settings = study_settings(tmp_path, backbones=there, heads={"ridge": RIDGE}, shots=[2], draws=1, reference=None)
    sentence = 'leave one out, or set backbones#other#preprocessing#spacing to "none".'
    refused(sentence, "mdm_study", **settings)
    there["other"]["preprocessing"] = {"spacing": "none"}  # type: ignore[assignment]
    table = run("mdm_study", **settings)
    assert set(table["backbone"]) == {"own", "other"}
    back = {"other": {"path": other}, "own": {"path": own}}
    refused("set backbones#own#preprocessing#spacing to [0.5, 0.5].", "mdm_study", **{**settings, "backbones": back})
    scalar = open_backbone(own, preprocessing={"spacing": 0.5})
    assert scalar.plan["spacing"] == [0.5, 0.5]
    assert open_backbone(other, preprocessing={"spacing": None}).plan["spacing"] == [0.5, 0.5]
    assert open_backbone(other, preprocessing={"spacing": "none"}).plan["spacing"] is None
    said("preprocessing gives spacing 0", open_backbone, other, preprocessing={"spacing": 0})
