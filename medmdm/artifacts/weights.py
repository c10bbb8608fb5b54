"""Weights files: reading what they hold without running anything in it, and making the network that it fits.

Checkpoints of the guided-diffusion family are bare state dicts. Most of the configuration can be read off their names
and shapes; what leaves no trace in a shape (heads, order of q, k and v, dropout) cannot.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medmdm.backbones.adm_unet import ADMUNet
from medmdm.components import find, instantiate
from medmdm.errors import UserError
from medmdm.intact import load_torch

WRAPPERS = ("ema", "state_dict", "model")  # where training programs put the state dict, averaged weights first
#: Arguments of an ADM U-Net that leave no trace in a shape but change the output, as in the paper.
INVISIBLE: dict[str, Any] = {"num_head_channels": 64, "use_new_attention_order": False}
#: What ``DistributedDataParallel``, ``AveragedModel`` and ``torch.compile`` put before every name.
PREFIXES = ("module.", "_orig_mod.")


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the dictionary in ``path``, or say in one sentence why there is none.

    On the device ``"meta"`` its tensors have shapes, but take no memory.
    """
    if not path.is_file():
        what = "this is a folder" if path.is_dir() else "there is no such file"
        raise UserError(f"{path}: {what}; name a weights file.")
    content = load_torch(path, device)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: expected a state dict, found a {type(content).__name__}.")
    return dict(content)


def find_state(content: Any) -> dict[str, Tensor] | None:
    """Return the state dict in ``content`` with the wrappers and prefixes of training programs removed."""
    if not isinstance(content, Mapping):
        return None
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            return find_state(content[wrapper])
    if not content or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        return None
    state = dict(content)
    state.pop("n_averaged", None)  # the counter of AveragedModel
    for prefix in PREFIXES:
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in what is said of its content."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def build(config: Mapping[str, Any], trust: bool = False, device: torch.device | str = "cpu") -> nn.Module:
    """Make the network that a file describes; see :func:`medmdm.components.instantiate`.

    An :class:`ADMUNet` is built without memory, see :func:`fill`: drawing 311 M random weights takes seconds. On the
    device ``"meta"`` every network is.
    """
    config = {key: value for key, value in config.items() if key == "_target_" or key[:1] != "_"}
    without = str(device) == "meta" or find(config.get("_target_"), trust) is ADMUNet
    with torch.device("meta") if without else contextlib.nullcontext():
        network: nn.Module = instantiate(config, trust, nn.Module)
    return network


def fill(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Load a state dict into the network that :func:`build` made for it, in evaluation mode.

    One without memory (``"meta"``) is compared only.

    Raises:
        UserError: names or shapes differ; the first of each kind are named, and the arguments that would fit.
    """
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    changed = [name for name, shape in expected.items() if name in found and found[name] != shape]
    differences = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [f"{name} {found[name]} instead of {expected[name]}" for name in changed],
    }
    told = [f"{len(names)} parameters {kind} ({first_of(names)})" for kind, names in differences.items() if names]
    if told:
        fitting: list[str] = []
        with contextlib.suppress(UserError):  # the names that differ say more
            if isinstance(network, ADMUNet):
                fitting = [f"{k}={v}" for k, v in infer_config(state).items() if network.config[k] != v]
        advice = f"; the weights look like {', '.join(fitting)}" if fitting else ""
        raise UserError(f"the weights do not fit the network: {', '.join(told)}{advice}.")
    if any(value.is_meta for value in state.values()):
        return network.eval()
    if isinstance(network, ADMUNet):
        network.to_empty(device="cpu")  # all it holds is in its state dict
    network.load_state_dict(state)
    return network.eval()


def first_of(names: Iterable[Any], count: int = 3) -> str:
    """Join the first few of ``names``."""
    names = [str(name) for name in names]
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def infer_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer the arguments of :class:`~medmdm.backbones.ADMUNet` from a checkpoint of the guided-diffusion family.

    Returns every argument that can be seen; of parts that the network has not (a single level has no up-sampling) the
    constructor's defaults hold.

    Raises:
        UserError: if a parameter that every such network has is missing.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise UserError(f"it is not an ADM U-Net (guided diffusion): the parameter {name!r} is missing.")
        return tuple(state[name].shape)

    first, embedding, last = shape("input_blocks.0.0.weight"), shape("time_embed.0.weight"), shape("out.2.weight")
    if len(first) not in (4, 5) or len(embedding) != 2 or not last:
        raise UserError(f"it is not an ADM U-Net: 'input_blocks.0.0.weight' has the shape {first}.")
    model_channels = embedding[1]
    config: dict[str, Any] = {
        "spatial_dims": len(first) - 2,
        "in_channels": first[1],
        "out_channels": last[0],
        "model_channels": model_channels,
        "num_classes": shape("label_emb.weight")[0] if "label_emb.weight" in state else None,
    }

    inputs, outputs = _block_numbers(state, "input_blocks"), _block_numbers(state, "output_blocks")
    total = max(outputs, default=-1) + 1
    resizing = {
        "resblock_updown": sum(f"output_blocks.{n}.{i}.in_layers.0.weight" in state for n in outputs for i in (1, 2)),
        "convolution": sum(f"input_blocks.{n}.0.op.weight" in state for n in inputs),
        # down-sampling by averages leaves a hole in the numbering
        "average": sum(n not in inputs for n in range(total)),
    }
    if resizing["resblock_updown"]:
        config["resblock_updown"] = True
    elif resizing["convolution"] or resizing["average"]:
        config |= {"resblock_updown": False, "conv_resample": resizing["convolution"] > 0}
    levels = max(resizing.values()) + 1
    per_level, rest = divmod(total, levels)
    if rest or per_level < 2:
        raise UserError(f"it is not an ADM U-Net: {total} output blocks do not make {levels} levels.")
    config["num_res_blocks"] = per_level - 1

    widths, attention = [], []
    for level in range(levels):
        block = f"input_blocks.{1 + level * per_level}"
        widths.append(shape(f"{block}.0.out_layers.3.weight")[0])
        if f"{block}.1.qkv.weight" in state:
            attention.append(2**level)
    multiples = [width / model_channels for width in widths]
    config["channel_mult"] = [int(multiple) if multiple.is_integer() else multiple for multiple in multiples]
    config["attention_resolutions"] = attention
    config["use_scale_shift_norm"] = shape("input_blocks.1.0.emb_layers.1.weight")[0] == 2 * widths[0]
    return config


def _block_numbers(state: Mapping[str, Tensor], part: str) -> set[int]:
    """Return the numbers of the blocks that have parameters."""
    numbers = [name.split(".")[1] for name in state if name.startswith(f"{part}.")]
    return {int(number) for number in numbers if number.isdigit()}
