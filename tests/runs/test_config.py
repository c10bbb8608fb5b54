from __future__ import annotations

import json
from typing import Any

import pytest
from monai.bundle import ConfigParser

from medmdm.errors import UserError, find_user_error
from medmdm.runs.config import check_keys, current_parser, differing_keys, read_json_words, resolved
from tests.bundle_runs import BUNDLE, OVERLAYS, Workflow

KNOWN = {
    "max_steps": 1,
    "train": {"dataset": {"_target_": "monai.data.Dataset", "data": []}, "handlers": []},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.1},
}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"max_step": 2}, "Unknown key 'max_step' in the config \\(did you mean 'max_steps'"),
        ({"lr": 2}, "'lr' in the config \\(did you mean 'optimizer#lr'"),
        ({"train": {"datset": 1}}, "'train#datset' in the config \\(did you mean 'dataset'"),
        ({"train": {"dataset": {"_target_": "monai.data.Dataset", "dat": 1}}}, "'train#dataset#dat'.*no such argument"),
        ({"optimizer": {"_target_": "torch.optim.AdamW", "weight_decy": 1}}, "did you mean 'weight_decay'"),
        ({"optimizer": {"_target_": "torch.optim.SGD", "betas": 1}}, "torch.optim.SGD has no such argument"),
        ({"optimizer": {"_target_": "torch.optim.AdamX"}}, "'torch.optim.AdamX' cannot be"),
        ({"train": {"handlers": [{"_target_": "medmdm.objectives.L1Loss", "weight": 1}]}}, "'train#handlers#0#weight'"),
    ],
)
def test_unknown_keys_are_named_with_the_nearest(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_keys({**KNOWN, **change}, KNOWN)


def test_known_keys_pass() -> None:
    check_keys(KNOWN, KNOWN)
    check_keys({**KNOWN, "mine": 3, "_meta_": {}}, KNOWN, extra=["mine"])
    check_keys({**KNOWN, "optimizer": {"_target_": "torch.optim.SGD", "momentum": 0.9}}, KNOWN)
    check_keys({**KNOWN, "optimizer": {"_target_": "torch.optim.SGD", "_disabled_": True}}, KNOWN)


@pytest.mark.parametrize("path", sorted(OVERLAYS.glob("*.json")), ids=lambda p: p.stem)
def test_every_overlay_has_known_keys_only(path: Any) -> None:
    bundle = BUNDLE.with_name("mdm_study.json") if path.stem.endswith("_study") else BUNDLE
    config = ConfigParser.load_config_files([str(bundle), str(path)])
    check_keys(config, json.loads(bundle.read_text()))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ({"max_step": 3}, "max_step"),
        ({"optimizer#lrr": 3}, "optimizer#lrr"),
        ({"corruption#patch": 4}, "corruption#patch"),
    ],
)
def test_mistyped_override_ends_a_bundle(workflow: Workflow, override: dict[str, Any], key: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        workflow(**override).initialize()
    assert repr(key) in str(find_user_error(caught.value))


def test_words_of_json_in_overrides_mean_what_they_mean_in_json() -> None:
    config = {
        "report": "false",
        "shots": ["null", 8],
        "head": {"_target_": "builtins.dict", "fresh": "true"},
        "name": "none",
        "text": "True",
        "data_list": {"labels": {"1": "null"}},
        "outcome": "$(@report, @shots, @head['fresh'])",
    }
    parser = ConfigParser(config)
    assert parser.get_parsed_content("outcome") == ("false", ["null", 8], "true")  # MONAI by itself
    read_json_words(parser)
    assert parser.get_parsed_content("outcome") == (False, [None, 8], True)
    unchanged = {key: parser[key] for key in ("name", "text", "data_list")}
    assert unchanged == {"name": "none", "text": "True", "data_list": {"labels": {"1": "null"}}}


def test_bundle_reads_words_of_json_in_overrides(workflow: Workflow) -> None:
    bundle = workflow(dry_run="false", channels_last="true", max_grad_norm="null")
    bundle.initialize()
    values = {key: bundle.parser.get_parsed_content(key) for key in ("dry_run", "channels_last", "max_grad_norm")}
    assert values == {"dry_run": False, "channels_last": True, "max_grad_norm": None}
    assert bundle.parser.get_parsed_content("train#trainer").max_grad_norm is None


def test_resolved_evaluates_references_but_makes_nothing() -> None:
    parser = ConfigParser(
        {
            "import": "$import medmdm.runs.config as config",
            "channels": 3,
            "net": {
                "_target_": "torch.nn.Conv2d",
                "in_channels": "@channels",
                "out_channels": "$2 * @channels",
                "k": [1],
            },
            "outcome": "$config.resolved('net')",
        }
    )
    expected = {"_target_": "torch.nn.Conv2d", "in_channels": 3, "out_channels": 6, "k": [1]}
    assert parser.get_parsed_content("outcome") == expected
    with pytest.raises(RuntimeError, match="inside an expression"):
        current_parser()
    with pytest.raises(RuntimeError, match="inside an expression"):
        resolved("net")


def test_differing_keys() -> None:
    a = {"x": 1, "y": {"z": [1, 2]}, "w": {}, "free": 1}
    assert differing_keys(a, json.loads(json.dumps(a))) == []
    assert differing_keys(a, {**a, "y": {"z": [1, 3]}, "free": 2}, ignored=("free",)) == ["y#z#1"]
    assert differing_keys(a, {"x": 1, "y": {"z": [1, 2]}, "new": None}) == ["w", "free", "new"]
