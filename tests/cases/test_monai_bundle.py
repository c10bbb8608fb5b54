"""MONAI's own loaders get exactly the weights that medmdm wrote, or an error; nothing is half loaded without a word.

Siblings: ``monai.bundle.load`` by the training config, by the inference config and into a network of the caller's;
``ckpt_export``; ignite's and MONAI's checkpoint loaders; networks of MONAI's; files that ``convert`` and a fit wrote.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from ignite.engine import Engine
from monai.handlers import CheckpointLoader
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from medmdm.artifacts import convert, load_network, load_pretrained, load_segmenter
from medmdm.artifacts.pretrained import save_weights
from medmdm.backbones import ADMUNet
from medmdm.components import to_config
from tests.bundle_runs import BUNDLE, BUNDLES, HEAD, TINY, UNET, Run, Workflow, saved_by, write_backbone
from tests.made import SMALL, with_random_weights
from tests.segment.conftest import pictures, run  # noqa: F401 - fixtures

SAME = {"rtol": 0, "atol": 0}


def packed(folder: Path, weights: Path, kind: str, config: dict[str, Any]) -> Path:
    """Lay out a bundle as MONAI's specification says, and return the folder that holds it."""
    for part in ("configs", "models"):
        (folder / "mine" / part).mkdir(parents=True)
    (folder / "mine" / "models" / "model.pt").write_bytes(weights.read_bytes())
    (folder / "mine" / "configs" / "metadata.json").write_bytes((BUNDLES / "metadata.json").read_bytes())
    (folder / "mine" / "configs" / f"{kind}.json").write_text(json.dumps(config))
    return folder


def loaded(folder: Path, **arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns of every config, and of a missing logging.conf
        return monai.bundle.load("mine", bundle_dir=folder, source="github", device="cpu", **arguments)


def equal(found: nn.Module, expected: nn.Module) -> None:
    found_state, state = found.state_dict(), expected.state_dict()
    assert list(found_state) == list(state)
    for name, value in state.items():
        torch.testing.assert_close(found_state[name], value, **SAME)


def test_the_training_config_gives_the_trained_network(workflow: Workflow, tmp_path: Path) -> None:
    saved_by(workflow())
    weights = tmp_path / "run" / "model.pt"
    nowhere = {"dataset_dir": str(tmp_path / "not_here"), "run_dir": str(tmp_path / "unused")}
    config = {**json.loads(BUNDLE.read_text()), **TINY, **nowhere}
    del config["$schema"]
    bundle = packed(tmp_path / "packed", weights, "train", config)
    equal(loaded(bundle), load_network(weights))
    equal(loaded(bundle, key_in_ckpt="model"), load_network(weights))
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("kind", ["segmenter", "network"])
def test_the_inference_config_gives_the_fitted_segmenter(run: Run, tmp_path: Path, kind: str) -> None:  # noqa: F811
    run("mdm_segment", head=HEAD if kind == "segmenter" else UNET, report=False)
    weights = tmp_path / "run" / "segmenter.pt"
    config = json.loads((BUNDLES / "mdm_infer.json").read_text())
    del config["$schema"]
    config |= {"segmenter": "$@bundle_root + '/models/model.pt'", "bundle_root": str(tmp_path / "packed" / "mine")}
    bundle = packed(tmp_path / "packed", weights, "inference", config)
    expected = load_segmenter(weights)[0]
    equal(loaded(bundle, workflow_type="inference"), expected)
    other = load_segmenter(weights)[0]
    for parameter in other.parameters():
        parameter.zero_()
    equal(loaded(bundle, model=other), expected)  # by the names alone
    other.load_state_dict(torch.load(weights, weights_only=True))
    equal(other, expected)


@pytest.mark.parametrize("strict_by", ["torch", "MONAI's handler", "monai.bundle.load"])
def test_a_network_of_the_callers_is_filled(tmp_path: Path, strict_by: str) -> None:
    weights = write_backbone(tmp_path / "model.pt")
    expected = load_network(weights)
    network = with_random_weights(ADMUNet(**expected.config), seed=5)  # type: ignore[operator]
    if strict_by == "torch":
        network.load_state_dict(torch.load(weights, weights_only=True))
        with pytest.raises(RuntimeError, match="size mismatch"):
            ADMUNet(**SMALL).load_state_dict(torch.load(weights, weights_only=True))
    elif strict_by == "monai.bundle.load":
        loaded(packed(tmp_path / "packed", weights, "train", {}), model=network)
    else:
        engine = Engine(lambda *_: None)
        CheckpointLoader(str(weights), {"net": network}, map_location="cpu").attach(engine)
        engine.run([0])
    equal(network, expected)


@pytest.mark.slow
def test_networks_of_monai_and_converted_files(tmp_path: Path) -> None:
    made = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": (8, 16), "num_res_blocks": 1}
    made |= {"attention_levels": (False, False), "norm_num_groups": 4}
    network, blank = (with_random_weights(DiffusionModelUNet(**made), seed) for seed in (0, 1))
    plan = {"format": 1, "network": {"_target_": "monai.networks.nets.DiffusionModelUNet", **made}}
    save_weights(network.state_dict(), plan, tmp_path / "model.pt")
    equal(load_network(tmp_path / "model.pt"), network)
    equal(loaded(packed(tmp_path / "a", tmp_path / "model.pt", "train", {}), model=blank), network)

    published = ADMUNet(**SMALL)
    torch.save(published.state_dict(), tmp_path / "published.pt")
    convert(tmp_path / "published.pt", tmp_path / "converted.pt", num_head_channels=16)
    equal(loaded(packed(tmp_path / "b", tmp_path / "converted.pt", "train", {}), model=ADMUNet(**SMALL)), published)


def test_tensors_are_in_the_file_once(tmp_path: Path) -> None:
    network = ADMUNet(**SMALL)
    save_weights(network.state_dict(), {"network": to_config(network)}, tmp_path / "model.pt")
    size = sum(value.numel() * 4 for value in network.state_dict().values())
    assert size < (tmp_path / "model.pt").stat().st_size < 1.3 * size
    content: dict[str, Any] = torch.load(tmp_path / "model.pt", weights_only=True)
    name, value = next(iter(content["model"].items()))
    assert isinstance(content[name], Tensor)
    assert content[name].data_ptr() == value.data_ptr()
    assert load_pretrained(tmp_path / "model.pt")[1]["network"] == to_config(network)
