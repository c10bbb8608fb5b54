"""A module that stands in for timm, whose torchvision has to fit PyTorch: four networks behind the same few calls."""

import itertools
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

FETCHED: list[str] = []  # names whose weights were asked for by name


class FeatureInfo:
    def __init__(self, channels: list[int], reductions: list[int]) -> None:
        self._channels, self._reductions = channels, reductions

    def channels(self) -> list[int]:
        return self._channels

    def reduction(self) -> list[int]:
        return self._reductions


class Pyramid(nn.Module):
    """Convolutions of stride 2; with ``last`` the channels go last, as in timm's Swin transformers."""

    def __init__(self, in_chans: int, out_indices: tuple[int, ...] = (0, 1, 2), last: bool = False) -> None:
        super().__init__()
        widths = [in_chans, 4, 6, 8]
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in itertools.pairwise(widths))
        self.norm = nn.BatchNorm2d(4)
        self.out_indices, self.last = out_indices, last
        self.output_fmt = "NHWC" if last else "NCHW"
        self.feature_info = FeatureInfo([widths[1 + i] for i in out_indices], [2 ** (1 + i) for i in out_indices])
        self.pretrained_cfg: dict[str, Any] = {"mean": (0.2, 0.4, 0.9), "std": (0.5, 0.25, 0.125)}

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for number, stage in enumerate(self.stages):
            x = stage(x) if number else self.norm(stage(x))
            found.append(x.movedim(1, -1) if self.last else x)
        return [found[i] for i in self.out_indices]


class Transformer(nn.Module):
    """Patches of 14 pixels; of one size of images unless told otherwise."""

    def __init__(self, in_chans: int, dynamic_img_size: bool = False, init_values: float = 1.0) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_chans, 5, 14, 14)
        self.scale, self.dynamic = init_values, dynamic_img_size
        self.feature_info = FeatureInfo([5, 5], [14, 14])
        self.pretrained_cfg: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3}

    def forward(self, x: Tensor) -> list[Tensor]:
        assert self.dynamic or x.shape[-1] == 28, f"Input width ({x.shape[-1]}) doesn't match model (28)."
        first = self.patches(x) * self.scale
        return [first, first.sin()]


class Liar(Pyramid):
    """Announces other maps than it gives."""

    def __init__(self, in_chans: int) -> None:
        super().__init__(in_chans)
        self.feature_info = FeatureInfo([4, 6, 9], [2, 4, 8])


MADE: dict[str, Callable[..., nn.Module]] = {
    "pyramid": Pyramid,
    "vit_stand_in_patch14": Transformer,
    "swin_stand_in": lambda in_chans: Pyramid(in_chans, last=True),
    "liar": Liar,
}


def create_model(
    name: str,
    pretrained: bool = False,
    features_only: bool = False,
    in_chans: int = 3,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    **more: Any,
) -> nn.Module:
    if name not in MADE:
        raise RuntimeError(f"Unknown model ({name})")
    assert features_only
    network = MADE[name](in_chans=in_chans, **more)
    if pretrained:
        state = (pretrained_cfg_overlay or {}).get("state_dict")
        if state is None:
            FETCHED.append(name)
            raise OSError("there is no network here")
        network.pretrained_cfg["state_dict"] = state
        network.load_state_dict(state, strict=False)  # as timm does for features
    return network


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("timm")
    module.create_model = create_model  # type: ignore[attr-defined]
    module.list_models = lambda: list(MADE)  # type: ignore[attr-defined]
    module.layers = types.SimpleNamespace(SwiGLUPacked=nn.Identity)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", module)
    FETCHED.clear()
    return module


def state_of(name: str, seed: int = 1, **more: Any) -> dict[str, Tensor]:
    """Weights that somebody trained."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = MADE[name](in_chans=3, **more)
        return {key: value + 0.01 * torch.rand_like(value) if value.is_floating_point() else value
                for key, value in network.state_dict().items()}  # fmt: skip
