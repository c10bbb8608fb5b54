import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import DiffusionModelUNet

from medmdm.artifacts.pretrained import convert, load_network, load_pretrained
from medmdm.backbones.adm_unet import ADMUNet
from medmdm.errors import UserError
from medmdm.files import save_torch
from tests.made import refused, with_random_weights

TARGET = "medmdm.backbones.ADMUNet"


@pytest.fixture
def published(make, tmp_path: Path) -> tuple[ADMUNet, Path]:
    network = make(num_head_channels=32, out_channels=6)
    path = tmp_path / "ema_0.9999_100000.pt"
    torch.save(network.state_dict(), path)
    return network, path


def save_ours(network: torch.nn.Module, path: Path, target: str = TARGET, **arguments: Any) -> Path:
    plan = {"format": 1, "network": {"_target_": target, **arguments}, "num_timesteps": 500, "ledger": ["ab"]}
    save_torch({"model": network.state_dict(), "plan": plan}, path)
    return path


@pytest.fixture
def ours(make, tmp_path: Path) -> tuple[ADMUNet, Path]:
    network = make()
    return network, save_ours(network, tmp_path / "model.pt", **network.config)


def assert_same_network(loaded: torch.nn.Module, network: torch.nn.Module) -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 900])
    assert not loaded.training
    with torch.no_grad():
        expected = network(x, t)
        assert expected.std() > 0.1
        assert torch.equal(loaded(x, t), expected)


def test_our_own_file_rebuilds_its_network(ours) -> None:
    network, path = ours
    loaded, plan = load_pretrained(path)
    assert_same_network(loaded, network)
    assert isinstance(loaded, ADMUNet)
    assert loaded.config == network.config
    assert plan["num_timesteps"] == 500
    assert plan["ledger"] == ["ab"]
    json.dumps(plan)


def test_overrides_change_network_and_plan(ours) -> None:
    network, path = ours
    loaded, plan = load_pretrained(str(path), use_checkpoint=True, dropout=0.2)
    assert_same_network(loaded, network)
    assert loaded.config == {**network.config, "use_checkpoint": True, "dropout": 0.2}
    assert plan["network"] == {"_target_": TARGET, **loaded.config}


def test_loading_draws_no_random_numbers(ours) -> None:
    before = torch.get_rng_state()
    load_pretrained(ours[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_monai_network_rebuilds_itself(tmp_path: Path) -> None:
    arguments = {
        "spatial_dims": 2, "in_channels": 3, "out_channels": 3, "channels": [32, 64], "attention_levels": [False, True],
        "num_head_channels": 32, "num_res_blocks": 1,
    }  # fmt: skip
    network = with_random_weights(DiffusionModelUNet(**arguments))
    path = save_ours(network, tmp_path / "model.pt", "monai.networks.nets.DiffusionModelUNet", **arguments)
    loaded, plan = load_pretrained(path)
    assert type(loaded) is DiffusionModelUNet
    assert_same_network(loaded, network)
    assert plan["network"]["channels"] == [32, 64]
    refused(r"parameters .*instead of", load_pretrained, path, channels=[32, 96])


def test_network_from_a_config_entry(ours) -> None:
    network, path = ours
    parser = ConfigParser({"network_def": {"_target_": "medmdm.artifacts.load_network", "path": str(path)}})
    assert_same_network(parser.get_parsed_content("network_def"), network)


@pytest.mark.parametrize("target", [
    None, 7, "os.system", "torch.nn.Identity", "medmdm.artifacts.pretrained.importlib.import_module",
    "medmdm.artifacts.load_network",  # ours, but no network class
    "medmdm.backbones.CachedExtractor",  # a network class, but none that a file describes
    "medmdm.segment.PostProcess",  # may be built, but is no network
    "medmdm.backbones.layers.nn", "medmdm.heads.FromScratch", "monai.networks.nets.unet.export",
    "medmdm.backbones.adm_unet.Sequence", "medmdm.networks_of_mine.Net",
])  # fmt: skip
def test_other_targets_are_refused(make, tmp_path: Path, target: Any) -> None:
    path = save_ours(make(), tmp_path / "model.pt", target)
    refused(r"model\.pt: .* (is neither .*trust=True|is no Module)", load_pretrained, path)


def test_expressions_in_a_plan_stay_strings(make, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    arguments = {**make().config, "dropout": f"$__import__('pathlib').Path({str(marker)!r}).touch()"}
    refused("cannot be built", load_pretrained, save_ours(make(), tmp_path / "model.pt", **arguments))
    assert not marker.exists()


def test_arguments_are_no_way_around(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    harm = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "args": str(marker)}}
    arguments = {"spatial_dims": 2, "in_channels": 3, "out_channels": 2, "channels": [4, 8], "strides": [2]}
    path = save_ours(torch.nn.Linear(1, 1), tmp_path / "model.pt", "monai.networks.nets.UNet", **arguments, act=[harm])
    refused(r"model\.pt: 'pathlib\.Path\.touch' is neither", load_pretrained, path)
    assert not marker.exists()


def test_trust_builds_a_network_of_ones_own(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 3)
    path = save_ours(network, tmp_path / "model.pt", "torch.nn.Linear", in_features=2, out_features=3)
    refused(r"'torch\.nn\.Linear'.*trust=True", load_pretrained, path)
    assert torch.equal(load_network(path, trust=True).weight, network.weight)


def test_bare_state_dict(published, caplog: pytest.LogCaptureFixture) -> None:
    network, path = published
    loaded, plan = load_pretrained(path, num_head_channels=32)
    assert_same_network(loaded, network)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert plan == {
        "format": 1, "network": {"_target_": TARGET, **network.config}, "num_timesteps": 1000, "intensity_range": None,
        "ledger": None, "source": {"file": path.name, "sha256": sha256, "assumed": {"use_new_attention_order": False}},
    }  # fmt: skip
    assert "use_new_attention_order=False" in caplog.text
    assert "num_head_channels" not in caplog.text


def test_what_weights_do_not_show_is_as_in_the_paper(make, tmp_path: Path) -> None:
    network = make(num_head_channels=64)
    torch.save(network.state_dict(), tmp_path / "published.pt")
    loaded, plan = load_pretrained(tmp_path / "published.pt")
    assert_same_network(loaded, network)
    assert plan["source"]["assumed"] == {"num_head_channels": 64, "use_new_attention_order": False}


@pytest.mark.parametrize(
    "arguments", [{"num_heads": 4, "num_head_channels": -1}, {"num_head_channels": 32, "use_new_attention_order": True}]
)
def test_heads_and_order_by_override(make, tmp_path: Path, arguments: dict[str, Any]) -> None:
    network = make(**arguments)
    torch.save(network.state_dict(), tmp_path / "published.pt")
    overrides = {key: value for key, value in arguments.items() if value != -1}
    assert_same_network(load_network(tmp_path / "published.pt", **overrides), network)


WRAPPINGS = {
    "state_dict": lambda state: {"state_dict": state, "step": 100},
    "model": lambda state: {"model": state, "optimizer": {"lr": 1e-4}},
    "average before raw": lambda state: {"model": {k: v + 1 for k, v in state.items()}, "ema": state},
    "nested": lambda state: {"model": {"state_dict": state}},
    "data parallel": lambda state: {f"module.{k}": v for k, v in state.items()},
    "averaged": lambda state: {"n_averaged": torch.tensor(7), **{f"module.{k}": v for k, v in state.items()}},
    "compiled": lambda state: {"model": {f"module._orig_mod.{k}": v for k, v in state.items()}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrapped_and_prefixed_state_dicts(published, tmp_path: Path, wrapping: str) -> None:
    network, _ = published
    torch.save(WRAPPINGS[wrapping](network.state_dict()), tmp_path / "wrapped.pt")
    assert_same_network(load_network(tmp_path / "wrapped.pt", num_head_channels=32), network)


def test_half_precision_weights_become_float32(published, tmp_path: Path) -> None:
    network, _ = published
    torch.save({k: v.half() for k, v in network.state_dict().items()}, tmp_path / "half.pt")
    loaded = load_network(tmp_path / "half.pt", num_head_channels=32)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_convert_settles_the_configuration(published, tmp_path: Path) -> None:
    network, path = published
    ours = tmp_path / "deep" / "model.pt"
    plan = convert(path, ours, num_head_channels=32)
    loaded, loaded_plan = load_pretrained(ours)
    assert_same_network(loaded, network)
    assert loaded_plan == plan
    assert set(torch.load(ours, weights_only=True)) == {"model", "plan", *loaded.state_dict()}
    refused("exists already", convert, path, ours, num_head_channels=32)


def error_of(path: Path, **overrides: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_pretrained(path, **overrides)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_contradicting_override_names_keys_and_what_fits(published) -> None:
    _, path = published
    message = error_of(path, num_head_channels=32, channel_mult=(1, 2, 3), num_classes=4)
    assert "3 parameters missing (label_emb.weight, input_blocks.5.0.skip_connection.weight, " in message
    assert "input_blocks.5.0.emb_layers.1.weight (128, 128) instead of (192, 128)" in message
    assert message.endswith("the weights look like num_classes=None, channel_mult=[1, 2, 2].")


def test_missing_and_unexpected_keys_are_named(published, tmp_path: Path) -> None:
    network, _ = published
    state = network.state_dict()
    del state["middle_block.1.norm.bias"]
    state["extra.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "odd.pt")
    message = error_of(tmp_path / "odd.pt", num_head_channels=32)
    assert "1 parameters missing (middle_block.1.norm.bias), 1 parameters unexpected (extra.weight)" in message
    assert "look like" not in message


def test_plan_that_contradicts_its_weights(make, tmp_path: Path) -> None:
    message = error_of(save_ours(make(), tmp_path / "model.pt", **make(num_res_blocks=2).config))
    assert "missing (input_blocks." in message
    assert message.endswith("the weights look like num_res_blocks=1.")


@pytest.mark.parametrize(("overrides", "words"), [
    ({"num_head_chanels": 32}, "has no argument 'num_head_chanels' (did you mean 'num_head_channels'?)"),
    ({"num_head_channels": 48}, "num_head_channels 48 does not divide the 64 channels"),
    ({"attention_resolutions": [16]}, "holds 16"),
])  # fmt: skip
def test_overrides_that_cannot_be(published, overrides: dict[str, Any], words: str) -> None:
    assert words in error_of(published[1], **overrides)


def test_assumed_heads_that_do_not_divide(make, tmp_path: Path) -> None:
    torch.save(make(channel_mult=(1, 3, 3), num_head_channels=32).state_dict(), tmp_path / "published.pt")
    message = error_of(tmp_path / "published.pt")
    assert "num_head_channels 64 does not divide the 96 channels" in message
    assert "pass num_head_channels or num_heads" in message


@pytest.mark.parametrize(("content", "words"), [
    ({"epoch": 3, "lr": 0.1}, "no state dict in this file; its keys are epoch, lr"),
    ({}, "no state dict"),
    (torch.nn.Linear(2, 2).state_dict(), "not an ADM U-Net"),
    ([torch.zeros(2)], "expected a state dict, found a list"),
    ({"model": {}, "plan": {"network": {}}}, "plan but no weights"),
    ({"model": {"a": torch.zeros(1)}, "plan": "x"}, "plan but no weights or no network description"),
])  # fmt: skip
def test_other_content(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    assert words in error_of(tmp_path / "other.pt")


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "there is no such file" in error_of(tmp_path / "nowhere.pt")
    assert "this is a folder" in error_of(tmp_path)
    for content in (b"", b"<html>404</html>", b"\x80\x02", b"PK\x05\x06" + bytes(18)):
        (tmp_path / "text.pt").write_bytes(content)
        assert "not a PyTorch checkpoint, or it is damaged" in error_of(tmp_path / "text.pt")


@pytest.mark.parametrize(("damage", "words"), [
    (lambda whole: whole[: int(0.01 * len(whole))], "cut off"),
    (lambda whole: whole[: int(0.5 * len(whole))], "cut off"),
    (lambda whole: whole[: int(0.999 * len(whole))], "cut off"),
    (lambda whole: whole[:100] + bytes(40) + whole[140:], "damaged"),  # in the pickled names
])  # fmt: skip
def test_damaged_file(published, damage: Any, words: str) -> None:
    path = published[1]
    path.write_bytes(damage(path.read_bytes()))
    assert words in error_of(path)


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_pickled_objects_are_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"state_dict": Payload(marker)}, tmp_path / "code.pt")
    assert "Python objects besides tensors" in error_of(tmp_path / "code.pt")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pt")
    assert "Python objects besides tensors" in error_of(tmp_path / "module.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload(marker), protocol=2))
    assert "not a PyTorch checkpoint" in error_of(tmp_path / "plain.pt")
    assert not marker.exists()
