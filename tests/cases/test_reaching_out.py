"""A weights file makes the program fetch nothing, and read no file that it names."""

import socket
from pathlib import Path
from typing import Any

import monai.networks.nets as nets
import pytest
import torch
from torch import nn

from medmdm.artifacts.pretrained import load_pretrained
from medmdm.artifacts.segmenter_file import load_segmenter, save_segmenter
from medmdm.components import MONAI_NETWORKS, instantiate
from medmdm.files import save_torch
from medmdm.heads.segmenter import PaddedNetwork
from tests.made import refused

FLEXIBLE = {"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0", "spatial_dims": 2}
UNET: dict[str, Any] = {"spatial_dims": 2, "in_channels": 3, "out_channels": 2, "channels": [4, 8], "strides": [2]}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("an address was fetched")

    monkeypatch.setattr(socket.socket, "connect", fail)
    for name in ("load_state_dict_from_url", "download_url_to_file"):
        monkeypatch.setattr(torch.hub, name, fail)


@pytest.mark.parametrize(("network", "arguments"), [
    ("HoVerNet", {"pretrained_url": "http://example.org/a.pt"}),
    ("HoVerNet", {"pretrained_url": "file:///etc/passwd"}),
    ("HoVerNet", {}),
    ("DenseNet121", {"spatial_dims": 2, "in_channels": 3, "out_channels": 2, "pretrained": True}),
    ("SENet154", {"spatial_dims": 2, "in_channels": 3, "num_classes": 2, "pretrained": True}),
    ("resnet18", {"pretrained": True}),
    ("EfficientNetBN", {"model_name": "efficientnet-b0"}),
    ("TorchVisionFCModel", {"weights": "IMAGENET1K_V1"}),
    ("MILModel", {"num_classes": 2, "pretrained": True}),
    ("Transchex", {"path_or_repo_id": "example/model"}),
    ("CellSamWrapper", {"checkpoint": "/etc/passwd"}),
    ("FlexibleUNet", {**FLEXIBLE, "pretrained": True}),
    ("AHNet", {"spatial_dims": 2, "pretrained": True}),
    ("SwinUNETR", {"in_channels": 1, "out_channels": 2, "norm_name": "http://example.org"}),
    ("SwinUNETR", {"in_channels": 1, "out_channels": 2, "norm_layer": "torch.hub.load"}),
    ("SegResNetDS", {"spatial_dims": 2, "preprocess": "os.system"}),
    ("UNet", {**UNET, "act": ["relu", {"path": "../secret"}]}),
    ("UNet", {**UNET, "norm": "C:\\secret"}),
])  # fmt: skip
def test_addresses_paths_and_pretrained_weights_are_refused(tmp_path: Path, network: str, arguments: Any) -> None:
    config = {"_target_": f"monai.networks.nets.{network}", **arguments}
    refused("pass trust=True", instantiate, config)
    save_torch({"model": {"a": torch.zeros(1)}, "plan": {"format": 1, "network": config}}, tmp_path / "model.pt")
    refused(r"model\.pt: .*pass trust=True", load_pretrained, tmp_path / "model.pt")
    parts = {"format": 1, "kind": "network", "state": {"network": {}}}
    save_torch({**parts, "plan": {"network": config, "padding": {}}}, tmp_path / "segmenter.pt")
    refused(r"segmenter\.pt: .*pass trust=True", load_segmenter, tmp_path / "segmenter.pt")


@pytest.mark.parametrize("name", sorted(MONAI_NETWORKS))
def test_the_list_names_networks_and_nothing_that_reaches_out(name: str) -> None:
    assert issubclass(getattr(nets, name), nn.Module)
    told = {"pretrained", "url", "path", "file", "filename", "weights", "repo", "progress", "dir"}
    words = {word for one in MONAI_NETWORKS[name].split() if one != "dropout_path_rate" for word in one.split("_")}
    assert not told & words


def test_listed_networks_are_built_and_come_back(tmp_path: Path) -> None:
    swin = {"in_channels": 1, "out_channels": 2, "spatial_dims": 2, "feature_size": 12}
    for name, arguments in (("UNet", UNET), ("SwinUNETR", swin), ("FlexibleUNet", {**FLEXIBLE, "pretrained": False})):
        assert type(instantiate({"_target_": f"monai.networks.nets.{name}", **arguments})).__name__ == name
    # Trained from weights that a config had fetched: the file holds what became of them, and asks for none.
    network = nets.FlexibleUNet(**FLEXIBLE)
    plan = {"network": {"_target_": "monai.networks.nets.FlexibleUNet", **FLEXIBLE, "pretrained": True}, "task": {}}
    save_segmenter(tmp_path / "segmenter.pt", PaddedNetwork(network, 32, 2), plan)
    loaded, plan = load_segmenter(tmp_path / "segmenter.pt")
    assert "pretrained" not in plan["network"]
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), loaded.parameters(), strict=True))
