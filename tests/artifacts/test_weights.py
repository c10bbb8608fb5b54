import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmdm.artifacts.weights import INVISIBLE, infer_config
from medmdm.backbones.adm_unet import ADMUNet
from tests.made import refused

NOT_IN_SHAPES = {*INVISIBLE, "num_heads", "dropout", "use_checkpoint", "num_groups"}


@st.composite
def configurations(draw: Any) -> dict[str, Any]:
    channel_mult = draw(st.lists(st.sampled_from([0.5, 1, 1.5, 2, 4]), min_size=1, max_size=4))
    rates = [2**level for level in range(len(channel_mult))]
    return {
        "spatial_dims": draw(st.sampled_from([2, 3])), "in_channels": draw(st.integers(1, 6)),
        "out_channels": draw(st.integers(1, 6)), "model_channels": 64, "channel_mult": channel_mult,
        "num_res_blocks": draw(st.integers(1, 3)),
        "attention_resolutions": sorted(draw(st.sets(st.sampled_from(rates)))), "num_head_channels": 32,
        "use_scale_shift_norm": draw(st.booleans()), "resblock_updown": draw(st.booleans()),
        "conv_resample": draw(st.booleans()), "num_classes": draw(st.sampled_from([None, 1, 7])),
    }  # fmt: skip


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(configurations())
def test_whatever_shows_in_shapes_is_inferred(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        network = ADMUNet(**config)
    inferred = infer_config(network.state_dict())
    hidden = set(NOT_IN_SHAPES)
    if config["resblock_updown"]:
        hidden.add("conv_resample")
    if len(config["channel_mult"]) == 1:
        hidden |= {"resblock_updown", "conv_resample"}
    assert inferred == {key: value for key, value in network.config.items() if key not in hidden}
    with torch.device("meta"):
        again = ADMUNet(**inferred, num_head_channels=32)
    shapes, expected = ([(k, v.shape) for k, v in n.state_dict().items()] for n in (again, network))
    assert shapes == expected


@pytest.mark.parametrize("kind", ["film", "plain"])
def test_golden_configurations_are_inferred(golden: Path, kind: str) -> None:
    meta = json.loads(str(np.load(golden / f"golden_unet_{kind}.npz")["meta"]))
    state = {name: torch.empty(shape, device="meta") for name, shape in meta["state_shapes"].items()}
    inferred = infer_config(state)
    for key, value in meta["config"].items():
        if key not in {"image_size", *NOT_IN_SHAPES}:
            assert inferred[key] == value


def test_the_papers_configuration_is_inferred() -> None:
    with torch.device("meta"):
        network = ADMUNet()
    assert network.config == {**network.config, **infer_config(network.state_dict()), **INVISIBLE}


@pytest.mark.parametrize("name", ["time_embed.0.weight", "out.2.weight", "input_blocks.0.0.weight"])
def test_what_every_such_network_has(make, name: str) -> None:
    state = make().state_dict()
    del state[name]
    refused(f"the parameter '{name}' is missing", infer_config, state)


def test_blocks_that_do_not_add_up(make) -> None:
    state = {name: value for name, value in make().state_dict().items() if not name.startswith("output_blocks.5")}
    refused("5 output blocks do not make 3 levels", infer_config, state)
