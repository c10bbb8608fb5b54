"""A pre-trained network that takes an image alone: what the network says at that t, traced for any number of images."""

from pathlib import Path

import pytest
import torch

from medmdm.artifacts import Restoration, load_pretrained
from medmdm.artifacts.pretrained import save_weights
from medmdm.backbones import ADMUNet, BasicUNetBackbone
from medmdm.components import to_config
from medmdm.corruption import PatchMasking
from tests.made import SMALL, with_random_weights


@pytest.mark.parametrize("kind", ["ADMUNet", "BasicUNetBackbone"])
@pytest.mark.slow
def test_the_network_at_one_t(tmp_path: Path, kind: str, no_grad: None) -> None:
    path = tmp_path / "model.pt"
    made_of = {"spatial_dims": 2, "in_channels": 3, "out_channels": 3}
    network = with_random_weights(ADMUNet(**SMALL) if kind == "ADMUNet" else BasicUNetBackbone(**made_of))
    config = {"network": to_config(network), "corruption": to_config(PatchMasking()), "num_timesteps": 1000}
    save_weights(network.state_dict(), {**config, "channels": 3, "crop_size": [32, 32]}, path)
    network, plan = load_pretrained(path)
    size = plan["crop_size"]
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = Restoration(path, timestep=700)
    expected = network(image, torch.tensor([700, 700]))
    torch.testing.assert_close(made(image), expected, rtol=0, atol=0)
    assert Restoration(path).timestep == 50  # where features are read
    assert not torch.equal(Restoration(path)(image), expected) or kind == "BasicUNetBackbone"  # which knows no t
    for compiled in (torch.jit.script(made), torch.jit.trace(made, image[:1], check_trace=False)):
        torch.testing.assert_close(compiled(image), expected, rtol=0, atol=1e-5)

    for parameter in made.parameters():
        parameter.zero_()
    made.load_state_dict(torch.load(path, weights_only=True))
    torch.testing.assert_close(made(image), expected, rtol=0, atol=0)
    made.load_state_dict(made.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        made.load_state_dict({"unknown": torch.zeros(1)})
