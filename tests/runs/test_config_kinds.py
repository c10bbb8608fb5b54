from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from medmdm.errors import UserError, find_user_error
from medmdm.runs.config_kinds import check_device, check_kinds
from tests.bundle_runs import BUNDLE, OVERLAYS, Workflow

KNOWN = {"report": True, "steps": 8, "rate": 0.1, "size": [64, 64], "shots": [2, None], "name": "runs", "draw": None}


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("report", "no", "report must be true or false, got 'no'"),
        ("report", 1, "report must be true or false, got 1"),
        ("steps", "two", "steps must be a whole number of 0 or more, got 'two'"),
        ("steps", 2.5, "steps must be a whole number of 0 or more, got 2.5"),
        ("steps", float("nan"), "steps must be a whole number of 0 or more, got nan"),
        ("steps", True, "steps must be a whole number of 0 or more, got True"),
        ("steps", None, "steps must be a whole number of 0 or more, got null"),
        ("rate", -1, "rate must be a number of 0 or more, got -1"),
        ("rate", float("nan"), "rate must be a number of 0 or more, got nan"),
        ("rate", "fast", "rate must be a number of 0 or more, got 'fast'"),
        ("rate", [0.1], "rate must be a number"),
        ("size", 64, r"size must be a list of numbers such as \[64, 64\], got 64"),
        ("size", ["a", 64], "size must be a list of numbers"),
        ("shots", 2, r"such as \[2, null\], got 2"),
        ("seed", 2**32, "seed must be less than 4294967296"),
    ],
)
def test_wrong_kinds_get_a_sentence(key: str, value: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_kinds({**KNOWN, key: value}, KNOWN)


@pytest.mark.parametrize(
    "change",
    [
        {"report": False, "steps": 1e3, "rate": 1, "size": [32, 48], "shots": [None]},
        {"report": "@other", "steps": "$2 * @draw", "steps_": "x"},
        {"draw": "anything", "name": ["anything"], "seed": 0},
    ],
    ids=str,
)
def test_right_kinds_and_expressions_pass(change: dict[str, Any]) -> None:
    check_kinds({**KNOWN, **change}, KNOWN)


@pytest.mark.parametrize("path", sorted(OVERLAYS.glob("*.json")), ids=lambda p: p.stem)
def test_every_overlay_has_the_right_kinds(path: Any) -> None:
    bundle = BUNDLE.with_name("mdm_study.json") if path.stem.endswith("_study") else BUNDLE
    check_kinds(ConfigParser.load_config_files([str(bundle), str(path)]), json.loads(bundle.read_text()))


def test_null_switches_some_numbers_off() -> None:
    known = json.loads(BUNDLE.read_text())
    null = dict.fromkeys(("max_grad_norm", "min_foreground", "probe_shots"))
    check_kinds({**known, **null}, known)
    assert all(isinstance(known[key], (int, float)) for key in null)


def test_a_device_that_is_not_there_gets_a_sentence() -> None:
    for device in ("cpu", torch.device("cpu"), "$torch.device('cpu')", None):
        check_device(device)
    for device in ("cuda:77", "gpu"):
        with pytest.raises(UserError, match=f"device '{device}' cannot be used here: [^\n]+$"):
            check_device(device)


def test_a_bundle_refuses_a_wrong_kind(workflow: Workflow) -> None:
    with pytest.raises(RuntimeError) as caught:
        workflow(batch_size="two").initialize()
    assert str(find_user_error(caught.value)) == "batch_size must be a whole number of 0 or more, got 'two'."
