"""Weights of timm's networks: from a file, or by name where there is a network."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from medmdm.artifacts.pretrained import make_ledger
from medmdm.artifacts.weights import find_state, first_of, naming, read_checkpoint
from medmdm.backbones.timm import TimmBackbone, create
from medmdm.errors import UserError

PRETRAINED = "pretrained"


def load_timm(
    model: str,
    weights: str | os.PathLike[str] | None = None,
    in_channels: int = 3,
    out_indices: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    arguments: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> TimmBackbone:
    """Make a network of timm with weights.

    It makes such a network a config entry::

        "network": {"_target_": "medmdm.artifacts.load_timm", "model": "resnet18", "weights": "resnet18.safetensors"}

    What it makes is saved in ``segmenter.pt`` whole, and made again from there without this function: a weights file
    never makes anything fetch or open something.

    Args:
        model: as the next five, see :class:`medmdm.backbones.TimmBackbone`.
        weights: a file of a state dict (``.safetensors``, or of ``torch.save``, read with ``weights_only=True``), which
            timm converts as it does its own; ``"pretrained"``: those that timm downloads for this name (its cache is
            asked first); None for random ones.
        in_channels: channels of the images; timm adapts weights for colours.
        out_indices: which stages.
        mean: of each channel.
        std: of each channel.
        arguments: of the network.
        seed: of random weights.

    Raises:
        UserError: the file cannot be read, does not hold all that the network has, or as
            :class:`medmdm.backbones.TimmBackbone`.

    Example:
        >>> load_timm("resnet18", "resnet18.safetensors")  # doctest: +SKIP
    """
    with _drawing_from(seed):
        backbone = TimmBackbone(model, in_channels, out_indices, mean, std, arguments).eval()
    if weights is None:
        backbone.plan = {"ledger": make_ledger()}  # it has seen nothing
        return backbone
    how: dict[str, Any] = {"pretrained": True}
    if weights != PRETRAINED:
        how["pretrained_cfg_overlay"] = {"state_dict": _read(Path(weights))}
    try:
        with _drawing_from(seed), _noting_missing() as missing:
            loaded = create(model, in_channels, out_indices, arguments, **how)
    except OSError as error:
        raise UserError(f"timm cannot fetch weights of {model!r} ({error}): name a file of them.") from error
    for module in loaded.modules():  # timm keeps the whole file there
        module.__dict__.get("pretrained_cfg", {}).pop("state_dict", None)
    # By identity: the network for features gives some of them other names, and leaves others out.
    named = loaded.state_dict(keep_vars=True).items()
    names = [name for name, value in named if any(value is one for one in missing)]
    if names:
        fault = f"{len(names)} parameters of {model} are not in it ({first_of(names)})"
        raise UserError(f"{weights}: the weights do not fit the network: {fault}.")
    backbone.network = loaded
    return backbone.eval()


@contextlib.contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """Draw weights from a seed; the generators of the program are left as they are."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield


@contextlib.contextmanager
def _noting_missing() -> Iterator[list[Tensor]]:
    """Note the weights, running means included, that a state dict lacks: of networks for features timm logs it only."""
    missing: list[Tensor] = []
    load = nn.Module.load_state_dict

    def noting(network: nn.Module, *arguments: Any, **options: Any) -> Any:
        found = load(network, *arguments, **options)
        own = network.state_dict(keep_vars=True)
        missing.extend(own[name] for name in found.missing_keys if name in own and own[name].is_floating_point())
        return found

    with mock.patch.object(nn.Module, "load_state_dict", noting):
        yield missing


def _read(path: Path) -> dict[str, Tensor]:
    """Read a state dict and run nothing."""
    if path.suffix == ".safetensors" and path.is_file():
        try:
            return dict(importlib.import_module("safetensors.torch").load_file(path))  # comes with timm
        except Exception as error:  # SafetensorError derives from nothing else
            raise UserError(f"{path}: this is no whole .safetensors file ({error}).") from error
    with naming(path):
        state = find_state(read_checkpoint(path))
    if state is None:
        raise UserError(f"{path}: there is no state dict in this file.")
    return state
