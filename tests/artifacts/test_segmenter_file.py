import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.networks.nets import BasicUNetPlusPlus, UNet
from torch import Tensor, nn

from medmdm.artifacts.backbone import make_extractor
from medmdm.artifacts.pretrained import load_pretrained
from medmdm.artifacts.segmenter_file import load_segmenter, save_segmenter
from medmdm.backbones.adapters import RawPixels
from medmdm.backbones.cache import CachedExtractor
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.components import to_config
from medmdm.corruption import GaussianNoise, PatchMasking
from medmdm.errors import UserError
from medmdm.files import save_torch
from medmdm.heads.classifier_network import LinearClassifier, PixelClassifier
from medmdm.heads.segmenter import PaddedNetwork, Segmenter
from tests.heads.test_classifier_network import varied
from tests.made import Make, refused

pytestmark = pytest.mark.usefixtures("no_grad")
UNET: dict[str, Any] = {"spatial_dims": 2, "in_channels": 3, "out_channels": 2, "channels": [4, 8], "strides": [2]}


def frozen(head: nn.Module) -> nn.Module:
    """As a loaded head is: torch.matmul rounds otherwise where gradients are asked for."""
    return varied(head).requires_grad_(False)  # type: ignore[arg-type]


@pytest.fixture
def image() -> Tensor:
    return torch.rand(1, 3, 13, 22, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def fit(make: Make, tmp_path: Path) -> Any:
    """A backbone's file, and a segmenter with a plan as a run makes them."""
    network = make(channel_mult=(1, 2), attention_resolutions=(2,))
    plan = {
        "format": 1, "network": {"_target_": "medmdm.backbones.ADMUNet", **network.config},
        "corruption": to_config(PatchMasking(1000, 4)), "num_timesteps": 1000, "channels": 3, "crop_size": [16, 16],
        "spacing": [0.5, 0.5], "ledger": {"images": ["ab"], "patients": [], "salt": "s"},
    }  # fmt: skip
    save_torch({"model": network.state_dict(), "plan": plan}, tmp_path / "model.pt")
    extractor, plan, identity = make_extractor(tmp_path / "model.pt", blocks=[0, 2], timesteps=[300])
    head = frozen(PixelClassifier(extractor.num_features, 2, (16, 8), members=3))
    given = {"backbone": plan, "backbone_sha256": identity, "task": {"class_names": ["tissue", "gland"]}}
    paths = {"model": tmp_path / "model.pt", "folder": tmp_path}
    return SimpleNamespace(network=network, extractor=extractor, head=head, plan=given, **paths)


def test_a_file_that_stands_alone(fit: Any, image: Tensor) -> None:
    segmenter = Segmenter(fit.extractor, fit.head, "vote")
    path = fit.folder / "new" / "segmenter.pt"
    written = save_segmenter(path, segmenter, fit.plan)
    fit.model.unlink()
    loaded, plan = load_segmenter(path)
    assert segmenter(image).std() > 0.01
    assert torch.equal(loaded(image), segmenter(image))
    assert plan == written
    assert plan == json.loads(json.dumps(plan))
    assert plan["backbone"] == fit.plan["backbone"]
    assert plan["task"] == {"class_names": ["tissue", "gland"]}
    assert plan["fine_tuned"] is False
    assert plan["extractor"] == fit.extractor.config
    assert plan["corruption"] == to_config(PatchMasking(1000, 4))
    assert plan["head"] == {"_target_": "medmdm.heads.PixelClassifier", **fit.head.config}
    assert plan["ensemble"] == "vote"
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    # What follows the last used block is not in the file.
    content = torch.load(path, weights_only=True)
    assert (content["kind"], content["format"]) == ("segmenter", 1)
    dropped = set(fit.network.state_dict()) - set(content["state"]["backbone"])
    assert dropped
    assert all(name.startswith(("out.", "output_blocks.3")) for name in dropped)


def test_context_is_in_the_file(fit: Any, image: Tensor) -> None:
    extractor = FeatureExtractor(
        fit.network, (0, 2), (300,), PatchMasking(patch_size=4), context=[4, 9], context_deviation=True
    )
    segmenter = Segmenter(extractor, frozen(PixelClassifier(extractor.num_features, 2, (8,), 2)))
    for include in (True, False):
        save_segmenter(fit.folder / "s.pt", segmenter, fit.plan, include)
        loaded, plan = load_segmenter(fit.folder / "s.pt", None if include else fit.model)
        assert torch.equal(loaded(image), segmenter(image))
        assert plan["extractor"] == extractor.config
        assert plan["extractor"]["context"] == [4, 9]


@pytest.mark.slow
def test_a_head_alone_with_its_backbone(fit: Any, image: Tensor) -> None:
    segmenter = Segmenter(fit.extractor, fit.head)
    save_segmenter(fit.folder / "head.pt", segmenter, fit.plan, include_backbone=False)
    save_segmenter(fit.folder / "segmenter.pt", segmenter, fit.plan)
    assert (fit.folder / "head.pt").stat().st_size < 0.1 * (fit.folder / "segmenter.pt").stat().st_size
    for backbone in (fit.model, str(fit.model), load_pretrained(fit.model)):
        for name in ("head.pt", "segmenter.pt"):
            assert torch.equal(load_segmenter(fit.folder / name, backbone)[0](image), segmenter(image))
    with pytest.raises(UserError, match=r"head\.pt: this file holds a head without its backbone: give the model\.pt"):
        load_segmenter(fit.folder / "head.pt")


@pytest.mark.parametrize("include", [False, True])
def test_another_backbone_is_refused(fit: Any, make: Make, include: bool) -> None:
    path = fit.folder / "file.pt"
    save_segmenter(path, Segmenter(fit.extractor, fit.head), fit.plan, include)
    other = make(seed=1, channel_mult=(1, 2), attention_resolutions=(2,))
    save_torch({"model": other.state_dict(), "plan": fit.plan["backbone"]}, fit.folder / "other.pt")
    with pytest.raises(UserError, match=r"file\.pt: the head was trained with another backbone than .*other\.pt"):
        load_segmenter(path, fit.folder / "other.pt")
    # A weight that no used block depends on counts, too: it is another file.
    state = {name: value.clone() for name, value in fit.network.state_dict().items()}
    state["out.2.bias"] += 1
    save_torch({"model": state, "plan": fit.plan["backbone"]}, fit.folder / "other.pt")
    refused("another backbone", load_segmenter, path, fit.folder / "other.pt")


def test_a_cache_is_taken_off(fit: Any, image: Tensor) -> None:
    cached = CachedExtractor(fit.extractor, fit.folder / "cache")
    save_segmenter(fit.folder / "a.pt", Segmenter(cached, fit.head), fit.plan)  # type: ignore[arg-type]
    save_segmenter(fit.folder / "b.pt", Segmenter(fit.extractor, fit.head), fit.plan)
    assert (fit.folder / "a.pt").read_bytes() == (fit.folder / "b.pt").read_bytes()
    assert isinstance(load_segmenter(fit.folder / "a.pt")[0].extractor, FeatureExtractor)


def test_a_fine_tuned_backbone_goes_with_its_head(fit: Any, image: Tensor) -> None:
    fit.extractor.backbone.input_blocks[0][0].weight.mul_(1.5)
    segmenter = Segmenter(fit.extractor, fit.head)
    with pytest.raises(UserError, match="it was fine-tuned or is another one"):
        save_segmenter(fit.folder / "head.pt", segmenter, fit.plan, include_backbone=False)
    assert not (fit.folder / "head.pt").exists()
    assert save_segmenter(fit.folder / "tuned.pt", segmenter, fit.plan)["fine_tuned"] is True
    loaded, plan = load_segmenter(fit.folder / "tuned.pt")
    assert torch.equal(loaded(image), segmenter(image))
    # Loaded again it is cut, and it is still known that its weights are not the file's.
    assert save_segmenter(fit.folder / "again.pt", loaded, plan)["fine_tuned"] is True
    refused("fine-tuned", save_segmenter, fit.folder / "head.pt", loaded, plan, include_backbone=False)


def test_the_same_content_gives_the_same_bytes(fit: Any) -> None:
    save_segmenter(fit.folder / "a.pt", Segmenter(fit.extractor, fit.head), fit.plan)
    loaded, plan = load_segmenter(fit.folder / "a.pt")
    save_segmenter(fit.folder / "b.pt", loaded, dict(reversed(plan.items())))
    assert (fit.folder / "a.pt").read_bytes() == (fit.folder / "b.pt").read_bytes()
    assert not list(fit.folder.glob(".*"))


def test_a_linear_head_that_is_a_view_of_something_larger(fit: Any, image: Tensor) -> None:
    large = torch.randn(1000, fit.extractor.num_features, generator=torch.Generator().manual_seed(0))
    segmenter = Segmenter(fit.extractor, LinearClassifier(large[:2], torch.tensor([0.5, 0.0])))
    save_segmenter(fit.folder / "head.pt", segmenter, fit.plan, include_backbone=False)
    assert (fit.folder / "head.pt").stat().st_size < 20_000
    assert torch.equal(load_segmenter(fit.folder / "head.pt", fit.model)[0](image), segmenter(image))


def test_noise_and_a_backbone_without_weights(fit: Any, image: Tensor, tmp_path: Path) -> None:
    noisy = FeatureExtractor(fit.network, (1,), (50,), GaussianNoise(schedule="cosine"))
    raw = FeatureExtractor(RawPixels(sigmas=[1.5]), (0,), masking="none", normalize="none")
    for extractor in (noisy, raw):
        segmenter = Segmenter(extractor, frozen(PixelClassifier(extractor.num_features, 2, (4,), 1)))
        save_segmenter(tmp_path / "s.pt", segmenter, {"task": {}})  # the network's own config is taken
        assert torch.equal(load_segmenter(tmp_path / "s.pt")[0](image), segmenter(image))


@pytest.mark.parametrize("kind", [UNet, BasicUNetPlusPlus])
def test_a_network_from_scratch(kind: type[nn.Module], image: Tensor, tmp_path: Path) -> None:
    arguments = UNET if kind is UNet else {"in_channels": 3, "out_channels": 2, "features": [4, 4, 4, 8, 8, 4]}
    if kind is BasicUNetPlusPlus:
        arguments["spatial_dims"] = 2
    network = PaddedNetwork(kind(**arguments), 16, 2, (0,)).eval()
    config = {"_target_": f"monai.networks.nets.{kind.__name__}", "_mode_": "partial", **arguments}
    plan = {"network": config, "backbone": {"crop_size": [16, 16]}, "task": {"num_classes": 2}}
    written = save_segmenter(tmp_path / "network.pt", network, plan)
    loaded, found = load_segmenter(tmp_path / "network.pt")
    assert network(image).shape == (1, 2, 13, 22)
    assert torch.equal(loaded(image), network(image))
    assert found == written
    assert found["network"] == {"_target_": config["_target_"], **arguments}
    assert found["padding"] == {"multiple": 16, "num_classes": 2, "flips": [0], "undeclared": []}
    assert found["backbone"] == {"crop_size": [16, 16]}
    with pytest.raises(UserError, match="a network trained from scratch, which has no backbone"):
        load_segmenter(tmp_path / "network.pt", tmp_path / "model.pt")


def test_an_ensemble_of_networks(image: Tensor, tmp_path: Path) -> None:
    networks = nn.ModuleList(UNet(**UNET) for _ in range(3))
    ensemble = PaddedNetwork(networks, 16, 2, (1,)).eval()
    plan = {"network": {"_target_": "monai.networks.nets.UNet", **UNET}, "task": {"num_classes": 2}}
    assert save_segmenter(tmp_path / "network.pt", ensemble, plan)["members"] == 3
    loaded, _ = load_segmenter(tmp_path / "network.pt")
    assert torch.equal(loaded(image), ensemble(image))
    torch.testing.assert_close(torch.jit.trace(loaded, image)(image), ensemble(image))
    assert ensemble.state_dict().keys() <= torch.load(tmp_path / "network.pt", weights_only=True).keys()
    with pytest.raises(UserError):
        load_segmenter(edited(tmp_path / "network.pt", lambda c: c["plan"].update(members=2)))


def edited(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    content = torch.load(path, weights_only=True)
    change(content)
    save_torch(content, path)
    return path


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda c: c["plan"]["head"].update({"_target_": "os.system"}), "'os.system' is neither medmdm's nor"),
    (lambda c: c["plan"]["backbone"]["network"].update({"_target_": "torch.nn.Linear"}), "'torch.nn.Linear'"),
    (lambda c: c["plan"]["corruption"].update({"_target_": "os.system"}), "file.pt: 'os.system' is neither"),
    (lambda c: c["plan"]["extractor"].update({"blocks": [0]}), "unexpected"),
    (lambda c: c["plan"]["head"].update({"hidden": [16, 9]}), r"of another shape \(weights.1"),
    (lambda c: c["plan"].pop("extractor"), "the file lacks 'extractor'"),
    (lambda c: c["state"].pop("head"), "the file lacks 'head'"),
    (lambda c: c.update(kind="other"), "no segmenter of medmdm's"),
    (lambda c: c.update(format=2), "the file has the format 2"),
])  # fmt: skip
def test_files_that_do_not_fit_get_a_sentence(fit: Any, change: Callable[..., Any], sentence: str) -> None:
    save_segmenter(fit.folder / "file.pt", Segmenter(fit.extractor, fit.head), fit.plan)
    refused(sentence, load_segmenter, edited(fit.folder / "file.pt", change))


class OwnMasking(PatchMasking):
    """A corruption that a user wrote."""


class OwnHead(PixelClassifier):
    """A head that a user wrote."""


@pytest.mark.slow
def test_own_parts_need_trust(fit: Any, image: Tensor) -> None:
    extractor = FeatureExtractor(fit.network, (1,), (300,), OwnMasking(patch_size=2))
    segmenter = Segmenter(extractor, frozen(OwnHead(extractor.num_features, 2, (4,), 1)))
    save_segmenter(fit.folder / "own.pt", segmenter, fit.plan)
    refused("trust=True", load_segmenter, fit.folder / "own.pt")
    loaded, _ = load_segmenter(fit.folder / "own.pt", trust=True)
    assert type(loaded.head) is OwnHead
    assert torch.equal(loaded(image), segmenter(image))


def test_what_cannot_be_saved_gets_a_sentence(fit: Any) -> None:
    path = fit.folder / "s.pt"
    segmenter = Segmenter(fit.extractor, fit.head)
    with pytest.raises(UserError, match="'task' in the plan cannot be written as JSON"):
        save_segmenter(path, segmenter, {**fit.plan, "task": {"path": Path("x")}})
    refused("its _target_ and arguments under 'network'", save_segmenter, path, PaddedNetwork(UNet(**UNET)), fit.plan)
    refused("not a UNet", save_segmenter, path, UNet(**UNET), fit.plan)
    cut = Segmenter(FeatureExtractor(fit.network.truncated(2), (2,), (300,), PatchMasking()), fit.head)
    refused("the plan must say the backbone_sha256 of the whole", save_segmenter, path, cut, {"task": {}})
    assert not path.exists()


def test_backbones_and_segmenters_are_told_apart(fit: Any) -> None:
    save_segmenter(fit.folder / "s.pt", Segmenter(fit.extractor, fit.head), fit.plan)
    refused("this is a segmenter, not a backbone", load_pretrained, fit.folder / "s.pt")
    refused("the weights of a backbone: fit a head to it first", load_segmenter, fit.model)
    refused("there is no such file", load_segmenter, fit.folder / "none.pt")
