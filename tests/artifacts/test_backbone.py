from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.networks.nets import UNet

from medmdm.artifacts.backbone import make_extractor, paper_blocks
from medmdm.artifacts.pretrained import load_pretrained
from medmdm.backbones.adm_unet import ADMUNet
from medmdm.components import to_config
from medmdm.corruption import FixedTimesteps, GaussianNoise, PatchMasking, UniformTimesteps
from medmdm.files import save_torch, weights_hash
from tests.made import Make, refused


def plan_of(network: ADMUNet, **more: Any) -> dict[str, Any]:
    return {
        "network": {"_target_": "medmdm.backbones.ADMUNet", **network.config},
        "corruption": to_config(PatchMasking(500, 4)), "timesteps": to_config(UniformTimesteps(500)),
        "num_timesteps": 500, **more,
    }  # fmt: skip


def test_the_file_says_it_all(make: Make, tmp_path: Path) -> None:
    network = make()
    save_torch({"model": network.state_dict(), "plan": plan_of(network)}, tmp_path / "model.pt")
    extractor, plan, identity = make_extractor(tmp_path / "model.pt")
    assert extractor.config == {
        "blocks": [3, 4], "timesteps": [25],  # of 6, and 50 of 1000
        "masking": "seeded", "partitions": None, "normalize": "rms", "seed": 0,
    }  # fmt: skip
    assert isinstance(extractor.corruption, PatchMasking)
    assert (extractor.corruption.num_timesteps, extractor.corruption.patch_size) == (500, 4)
    assert plan == plan_of(network)
    assert identity == weights_hash(network.state_dict())
    x = torch.rand(1, 3, 16, 24)
    from_memory = make_extractor((network, plan_of(network)))[0]
    assert all(torch.equal(a, b) for a, b in zip(extractor(x), from_memory(x), strict=True))


def test_arguments_go_through(make: Make) -> None:
    given = {"blocks": [0, 5], "timesteps": [7, 100], "masking": "partition", "partitions": 3, "normalize": "global_l2"}
    extractor, _, _ = make_extractor((make(), plan_of(make())), seed=4, **given)  # type: ignore[arg-type]
    assert extractor.config == {**given, "seed": 4}


def test_an_autoencoder_is_read_at_its_own_t(make: Make) -> None:
    plan = plan_of(make(), timesteps=to_config(FixedTimesteps(300, 500)))
    assert make_extractor((make(), plan))[0].config["timesteps"] == [300]
    assert make_extractor((make(), plan), timesteps=[20])[0].config["timesteps"] == [20]


@pytest.mark.parametrize(
    ("count", "expected"), [(18, [8, 9, 10, 11, 12]), (10, [4, 5, 6, 7]), (6, [3, 4]), (2, [1]), (1, [0])]
)
def test_blocks_at_the_papers_relative_position(count: int, expected: list[int]) -> None:
    network: Any = SimpleNamespace(feature_info=[{"block": i} for i in range(count)])
    assert paper_blocks(network) == expected


def test_a_published_file_needs_its_corruption(make: Make, tmp_path: Path) -> None:
    torch.save(make(num_head_channels=16).state_dict(), tmp_path / "ema.pt")
    published = load_pretrained(tmp_path / "ema.pt", num_head_channels=16)
    refused("the plan does not say what the backbone was trained on", make_extractor, published)
    assert make_extractor(published, masking="none")[0].corruption is None
    for given in (GaussianNoise(), to_config(GaussianNoise())):
        extractor = make_extractor(published, corruption=given)[0]
        assert isinstance(extractor.corruption, GaussianNoise)
        assert extractor.config["timesteps"] == [50]


@pytest.mark.parametrize(("change", "arguments", "sentence"), [
    ({"corruption": {"_target_": "os.system", "command": "true"}}, {}, "'os.system' is neither"),
    ({"corruption": {"_target_": "medmdm.corruption.PatchMasking", "path_size": 4}}, {}, "path_size"),
    ({"timesteps": {"_target_": "builtins.exit"}}, {}, "'builtins.exit' is neither"),
    ({}, {"blocks": "best"}, "a list of numbers of decoder blocks, got 'best'"),
    ({}, {"blocks": [9]}, "the backbone has 0 to 5"),
    ({}, {"timesteps": [500]}, "from 0 to 499"),
])  # fmt: skip
def test_what_does_not_fit_gets_a_sentence(make: Make, change: dict, arguments: dict, sentence: str) -> None:
    refused(sentence, make_extractor, (make(), plan_of(make(), **change)), **arguments)


def test_a_network_without_features_is_refused() -> None:
    network = UNet(2, 3, 3, (4, 8), (2,))
    refused("UNet has no features", make_extractor, (network, {"corruption": to_config(PatchMasking())}))
