from pathlib import Path
from typing import Any

import pytest
import torch

from medmdm.artifacts import load_timm
from tests.made import refused
from tests.timm_stand_in import FETCHED, state_of, timm

__all__ = ["timm"]
pytestmark = pytest.mark.usefixtures("timm")


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "wrapped"])
def test_weights_of_a_file(wrapped: bool, tmp_path: Path) -> None:
    state = state_of("pyramid")
    prefixed = {f"module.{name}": value for name, value in state.items()}
    torch.save({"state_dict": prefixed} if wrapped else state, tmp_path / "weights.pth")
    before = torch.random.get_rng_state()
    backbone: Any = load_timm("pyramid", tmp_path / "weights.pth")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not backbone.training
    loaded = backbone.network.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert "state_dict" not in backbone.network.pretrained_cfg
    assert "weights" not in backbone.config
    assert FETCHED == []
    drawn = load_timm("pyramid").state_dict()  # a file of random weights is one like any other
    torch.save({name.removeprefix("network."): value for name, value in drawn.items()}, tmp_path / "drawn.pth")
    again = load_timm("pyramid", tmp_path / "drawn.pth").state_dict()
    assert all(torch.equal(again[name], value) for name, value in drawn.items())


def test_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state = state_of("pyramid")
    safetensors.save_file(state, tmp_path / "weights.safetensors")
    backbone: Any = load_timm("pyramid", tmp_path / "weights.safetensors")
    assert torch.equal(backbone.network.stages[2].weight, state["stages.2.weight"])
    (tmp_path / "weights.safetensors").write_bytes(b"no such thing")
    refused("no whole .safetensors file", load_timm, "pyramid", tmp_path / "weights.safetensors")


def test_random_weights_follow_their_seed() -> None:
    first, same, other = (load_timm("pyramid", seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["network.stages.0.weight"], other["network.stages.0.weight"])


def test_refuses(tmp_path: Path) -> None:
    state = state_of("pyramid")
    torch.save({k: v for k, v in state.items() if k != "stages.1.weight"}, tmp_path / "part.pth")
    refused(r"part.pth: .*1 parameters of pyramid are not in it \(stages.1.weight\)",
            load_timm, "pyramid", tmp_path / "part.pth")  # fmt: skip
    # Constants as they are made, which a file may hold too: they are told from missing ones.
    for gone in ("norm.bias", "norm.running_var"):
        torch.save({k: v for k, v in state.items() if k != gone}, tmp_path / "part.pth")
        refused(rf"1 parameters of pyramid are not in it \({gone}\)", load_timm, "pyramid", tmp_path / "part.pth")
    assert torch.nn.Module.load_state_dict.__name__ == "load_state_dict"  # put back
    torch.save(state_of("vit_stand_in_patch14"), tmp_path / "other.pth")
    refused("10 parameters of pyramid are not in it", load_timm, "pyramid", tmp_path / "other.pth")
    refused("there is no such file", load_timm, "pyramid", tmp_path / "none.pth")
    torch.save([1], tmp_path / "list.pth")
    refused("expected a state dict", load_timm, "pyramid", tmp_path / "list.pth")
    refused("cannot fetch weights of 'pyramid'.*name a file", load_timm, "pyramid", "pretrained")
    assert FETCHED == ["pyramid"]
