import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from monai.bundle import ConfigParser

from medmdm.components import MOVED
from medmdm.errors import UserError
from medmdm.runs.config import check, current_parser, described, normalise, resolved
from medmdm.runs.doctor import check_device
from medmdm.runs.keys import differing_keys, faults
from medmdm.schemas import bundle_schema, may_change, settings
from tests.bundle_runs import BUNDLE, BUNDLES, OVERLAYS, Workflow, saved_by
from tests.made import refused, refused_in_config

SCHEMAS = sorted((BUNDLES / "schemas").glob("mdm_*.json"))
KNOWN = json.loads(BUNDLE.read_text())


def merged(overlay: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the bundle of an overlay, and both merged as ``monai.bundle run`` does."""
    kind = overlay.stem.rpartition("_")[2]
    bundle = BUNDLES / f"mdm_{kind if kind in ('study', 'segment') else 'pretrain'}.json"
    parser = ConfigParser(ConfigParser.load_config_files([str(bundle), str(overlay)]))
    parser.parse()
    return json.loads(bundle.read_text()), parser.get()


def keys(schema: dict[str, Any], path: str = "") -> dict[str, dict[str, Any]]:
    found = {}
    for key, part in schema.get("properties", {}).items():
        found |= {f"{path}{key}": part, **keys(part, f"{path}{key}#")}
    return found


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda p: p.stem)
def test_every_key_of_a_bundle_is_described_with_its_default(path: Path) -> None:
    Draft202012Validator.check_schema(json.loads(path.read_text()))
    bundle, schema = json.loads((BUNDLES / path.name).read_text()), bundle_schema(path.stem)
    assert bundle["$schema"] == f"schemas/{path.name}"
    assert set(bundle) == set(schema["properties"])
    for key, part in keys(schema).items():
        assert part["description"].endswith("."), key
        assert part["title"], key
        if "default" in part:
            assert ConfigParser(bundle)[key] == part["default"], key
        assert not key.endswith("_config")
    assert all("default" in part or "properties" in part for part in settings(path.stem).values())
    check(bundle)


@pytest.mark.parametrize("path", sorted(OVERLAYS.glob("*.json")), ids=lambda p: p.stem)
def test_every_overlay_changes_what_it_says(path: Path) -> None:
    bundle, config = merged(path)
    check(config)
    before = ConfigParser(bundle)
    for key in json.loads(path.read_text()):
        assert key not in before or before[key] != ConfigParser(config)[key], key


def said(change: dict[str, Any], **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        check({**KNOWN, **change, **more})
    return str(caught.value)


@pytest.mark.parametrize(("change", "sentence"), [
    ({"max_step": 2}, "Unknown key 'max_step' in the config (did you mean 'max_steps'?); a constant"),
    ({"lr": 2}, "'lr' in the config (did you mean 'optimizer#lr'"),
    ({"train": {"datset": 1}}, "'train#datset' in the config (did you mean 'dataset'?)."),
    ({"train": {"dataset": {"_target_": "monai.data.Dataset", "dat": 1}}}, "'train#dataset#dat' in the config: "),
    ({"optimizer": {"_target_": "torch.optim.AdamW", "weight_decy": 1}}, "did you mean 'weight_decay'"),
    ({"optimizer": {"_target_": "torch.optim.SGD", "betas": 1}}, "torch.optim.SGD has no such argument"),
    ({"optimizer": {"_target_": "torch.optim.AdamX"}}, "'torch.optim.AdamX' cannot be"),
    ({"train": {"handlers": [{"_target_": "medmdm.objectives.L1Loss", "weight": 1}]}}, "'train#handlers#0#weight'"),
    ({"bundle": "mdm_pretrian"}, "one of medmdm's bundles (mdm_evaluate, mdm_infer, mdm_pretrain,"),
])  # fmt: skip
def test_unknown_keys_are_named_with_the_nearest(change: dict[str, Any], sentence: str) -> None:
    assert sentence in said(change)


def test_all_faults_are_named_at_once() -> None:
    corruption = {"_target_": "medmdm.corruption.PatchMasking", "patch": 1}
    found = said({"max_step": 2, "batch_size": "two", "corruption": corruption}).splitlines()
    assert [line.split(" in the config")[0] for line in found] == [
        "Unknown key 'max_step'",
        "batch_size must be a whole number of 1 or more, got 'two'.",
        "Unknown key 'corruption#patch'",
    ]


def test_known_keys_pass() -> None:
    check({**KNOWN, "mine": 3, "_meta_": {}, "extra_keys": ["mine"]})
    check({**KNOWN, "optimizer": {"_target_": "torch.optim.SGD", "momentum": 0.9, "_disabled_": True}})


@pytest.mark.parametrize(("bundle", "key", "value", "sentence"), [
    ("mdm_pretrain", "transductive", "no", "transductive must be true or false, got 'no'."),
    ("mdm_pretrain", "transductive", 1, "transductive must be true or false, got 1."),
    ("mdm_pretrain", "max_steps", 2.5, "max_steps must be a whole number of 1 or more, got 2.5."),
    ("mdm_pretrain", "max_steps", float("nan"), "max_steps must be a whole number of 1 or more, got nan."),
    ("mdm_pretrain", "max_steps", True, "max_steps must be a whole number of 1 or more, got True."),
    ("mdm_pretrain", "max_steps", None, "max_steps must be a whole number of 1 or more, got null."),
    ("mdm_pretrain", "learning_rate", -1, "learning_rate must be a number of 0 or more, got -1."),
    ("mdm_pretrain", "learning_rate", float("nan"), "learning_rate must be a number of 0 or more, got nan."),
    ("mdm_pretrain", "learning_rate", [0.1], "learning_rate must be a number of 0 or more, got [0.1]."),
    ("mdm_pretrain", "crop_size", 64, "crop_size must be a list of whole numbers such as [64, 64], got 64."),
    ("mdm_pretrain", "crop_size", ["a", 64], "crop_size#0 must be a whole number of 1 or more, got 'a'."),
    ("mdm_pretrain", "percentiles", [1], "percentiles must be a list of two numbers, or null, got [1]."),
    ("mdm_pretrain", "seed", 2**32, "seed must be a whole number from 0 to below 4294967296, got 4294967296."),
    ("mdm_pretrain", "target", "imag",
     "target must be \"image\", \"noise\" or \"image and noise\", got 'imag' (did you mean 'image'?)."),
    ("mdm_pretrain", "optimizer", 3, "optimizer must be a part such as"),
    ("mdm_segment", "shots", "two", "shots must be a whole number of 1 or more, or null, got 'two'."),
    ("mdm_segment", "window", "big", "window must be a list of whole numbers such as [64, 64], or null, got 'big'."),
    ("mdm_segment", "preprocessing", {"channels": "x"}, "preprocessing#channels must be a whole number"),
    ("mdm_study", "shots", 2, "such as [2, null], got 2."),
    ("mdm_study", "only", {"ridge": "MDM"}, "only#ridge must be a list of backbones, got 'MDM'."),
])  # fmt: skip
def test_wrong_values_get_a_sentence(bundle: str, key: str, value: Any, sentence: str) -> None:
    assert sentence in "\n".join(fault.sentence for fault in faults({key: value}, bundle_schema(bundle)))


@pytest.mark.parametrize("change", [
    {"transductive": True, "crop_size": [32, 48], "max_steps": 1e3, "learning_rate": 1, "warmup_steps": 0},
    {"max_steps": "$2 * @warmup_steps", "crop_size": ["@patch_size", 64], "channels_last": "@compile"},
    {"max_grad_norm": None, "min_foreground": None, "probe_shots": None, "spacing": [0.5, 1]},
    {"dataset_dir": Path("x"), "device": torch.device("cpu"), "data_list": {"training": []}},
], ids=str)  # fmt: skip
def test_right_values_and_expressions_pass(change: dict[str, Any]) -> None:
    assert list(faults({**KNOWN, **change}, bundle_schema("mdm_pretrain"))) == []


def test_a_device_that_is_not_there_gets_a_sentence() -> None:
    for device in ("cpu", torch.device("cpu"), "$torch.device('cpu')", None):
        check_device(device)
    for device in ("cuda:77", "gpu"):
        refused(f"device '{device}' cannot be used here: [^\n]+$", check_device, device)


@pytest.mark.parametrize(("override", "sentence"), [
    ({"max_step": 3}, "'max_step'"),
    ({"optimizer#lrr": 3}, "'optimizer#lrr'"),
    ({"corruption#patch": 4}, "'corruption#patch'"),
    ({"batch_size": "two"}, "batch_size must be a whole number of 1 or more, got 'two'."),
    ({"batch_size": "$2.5 * 1"}, "batch_size must be a whole number of 1 or more, got 2.5."),
    ({"probe_every": "@run_dir"}, "probe_every must be a whole number of 1 or more, got "),
])  # fmt: skip
def test_a_wrong_override_ends_a_bundle(workflow: Workflow, override: dict[str, Any], sentence: str) -> None:
    refused_in_config(re.escape(sentence), workflow(**override).initialize)


def test_words_of_json_in_overrides_mean_what_they_mean_in_json() -> None:
    config = {
        "bundle": "mdm_segment", "report": "false", "shots": ["null", 8],
        "head": {"_target_": "builtins.dict", "fresh": "true"},
        "name": "none", "text": "True", "data_list": {"labels": {"1": "null"}},
        "outcome": "$(@report, @shots, @head['fresh'])",
    }  # fmt: skip
    parser = ConfigParser(config)
    assert parser.get_parsed_content("outcome") == ("false", ["null", 8], "true")  # MONAI by itself
    normalise(parser)
    assert parser.get_parsed_content("outcome") == (False, [None, 8], True)
    unchanged = {key: parser[key] for key in ("name", "text", "data_list")}
    assert unchanged == {"name": "none", "text": "True", "data_list": {"labels": {"1": "null"}}}


def test_bundle_reads_words_of_json_in_overrides(workflow: Workflow) -> None:
    bundle = workflow(dry_run="false", channels_last="true", max_grad_norm="null")
    bundle.initialize()
    values = {key: bundle.parser.get_parsed_content(key) for key in ("dry_run", "channels_last", "max_grad_norm")}
    assert values == {"dry_run": False, "channels_last": True, "max_grad_norm": None}
    assert bundle.parser.get_parsed_content("train#trainer").optimization.max_grad_norm is None


@pytest.mark.parametrize("wanted", [False, True, "$1 < 2"])
def test_freed_memory_is_kept_only_where_the_config_says_so(workflow, wanted, monkeypatch) -> None:
    called = []
    monkeypatch.setattr("medmdm.runs.config.keep_freed_memory", lambda: called.append(1))
    workflow(keep_freed_memory=wanted).initialize()
    assert len(called) == bool(wanted)


def test_an_overlay_of_0_1_goes_on_working(workflow: Workflow, tmp_path: Path) -> None:
    old = {
        "corruption": {"_target_": "medmdm.corruption.GaussianNoise", "num_timesteps": "@num_timesteps"},
        "loss_function": {"_target_": "medmdm.losses.MSELoss"},
        "network_def": {
            "_target_": "medmdm.networks.ADMUNet", "model_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1,
            "attention_resolutions": [2], "num_head_channels": 16, "in_channels": "@channels",
            "out_channels": "@channels",
        },
        "ema": {"_target_": "medmdm.engines.EMA", "model": "@network", "decay": "@ema_decay"},
    }  # fmt: skip
    assert saved_by(workflow(max_steps=1, **old))["plan"]["network"]["_target_"] == MOVED["medmdm.networks.ADMUNet"]
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert config["loss_function"] == {"_target_": "medmdm.objectives.MSELoss"}


def test_a_full_copy_of_a_0_1_bundle_is_told_what_to_do() -> None:
    parser = ConfigParser({"imports": ["$import medmdm.engines as engines"], "run": "$engines.config.start()"})
    refused_in_config("python -m medmdm init", parser.get_parsed_content, "run")


def test_resolved_evaluates_references_but_makes_nothing() -> None:
    part = {"_target_": "torch.nn.Conv2d", "in_channels": "@channels", "out_channels": "$2 * @channels"}
    mask = {"_target_": "medmdm.backbones.RawPixels", "in_channels": "@channels"}
    config = {"import": "$import medmdm.runs.config as config", "channels": 3, "net": {**part, "kernel_size": [1]}}
    outcome = "$[config.resolved('net'), config.described('net'), config.described('raw')]"
    parser = ConfigParser({**config, "raw": mask, "outcome": outcome})
    expected = {"_target_": "torch.nn.Conv2d", "in_channels": 3, "out_channels": 6, "kernel_size": [1]}
    plain, stranger, own = parser.get_parsed_content("outcome")
    assert plain == stranger == expected
    assert own["_target_"] == "medmdm.backbones.RawPixels"
    assert set(own) > {"in_channels"}
    for call in (current_parser, lambda: resolved("net"), lambda: described("net")):
        with pytest.raises(RuntimeError, match="inside an expression"):
            call()


def test_differing_keys() -> None:
    a = {"x": 1, "y": {"z": [1, 2]}, "w": {}, "free": 1}
    assert differing_keys(a, json.loads(json.dumps(a))) == []
    assert differing_keys(a, {**a, "y": {"z": [1, 3]}, "free": 2}, ignored=("free",)) == ["y#z#1"]
    assert differing_keys(a, {"x": 1, "y": {"z": [1, 2]}, "new": None}) == ["w", "free", "new"]


def test_what_may_change_on_resume() -> None:
    assert {"num_workers", "device", "dataset_dir", "run_dir"} <= may_change("mdm_pretrain")
    assert not {"max_steps", "seed", "network_def", "data_list"} & may_change("mdm_pretrain")
    assert {"write_uncertainty", "report", "study", "feature_cache"} <= may_change("mdm_segment")


def test_arguments_of_the_former_default_head_choose_it(caplog: pytest.LogCaptureFixture) -> None:
    def head(**given: object) -> dict[str, object]:
        parser = ConfigParser(json.loads((BUNDLES / "mdm_segment.json").read_text()))
        for key, value in given.items():
            parser[key.replace("__", "#")] = value
        normalise(parser)
        return parser["head"]

    shipped = head()
    assert shipped["_target_"] == "medmdm.heads.FromScratch"
    chosen = head(head__members=2, head__max_epochs=4, head__min_epochs=2)
    frozen = json.loads((BUNDLES / "overlays" / "frozen_segment.json").read_text())["head"]
    assert chosen == {**frozen, "members": 2, "max_epochs": 4, "min_epochs": 2}
    assert "head#members, head#max_epochs, head#min_epochs: arguments of the pixel classifier" in caplog.text
    # What could be meant for either head, or for none, is left to the check.
    assert head(head__members=2, head__training__steps=5)["_target_"] == "medmdm.heads.FromScratch"
    assert head(head__member=2)["_target_"] == "medmdm.heads.FromScratch"
    assert head(head__training__steps=5)["_target_"] == "medmdm.heads.FromScratch"


def test_whole_numbers_may_be_typed_as_1e3() -> None:
    parser = ConfigParser({"bundle": "mdm_pretrain", "max_steps": 1e3, "crop_size": [32.0, 48], "learning_rate": 1.0})
    normalise(parser)
    found = parser.get()
    assert [repr(found[key]) for key in ("max_steps", "crop_size", "learning_rate")] == ["1000", "[32, 48]", "1.0"]
