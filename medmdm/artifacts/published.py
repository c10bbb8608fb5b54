"""What the names and shapes in a published checkpoint say about its network.

Checkpoints of the guided-diffusion family are bare state dicts. Most of the configuration can be read off them; what
leaves no trace in a shape (heads, order of q, k and v, dropout) cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from medmdm.errors import UserError

__all__ = ["INVISIBLE", "infer_config"]

#: Arguments of an ADM U-Net that leave no trace in a shape but change the output, as in the paper.
INVISIBLE: dict[str, Any] = {"num_head_channels": 64, "use_new_attention_order": False}


def infer_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer the arguments of :class:`~medmdm.backbones.ADMUNet` from a state dict.

    Args:
        state: names and tensors of a checkpoint of the guided-diffusion family.

    Returns:
        Every argument that can be seen; where none is seen because the network has no such part (a single level has
        no up-sampling), it is left out and the constructor's default holds. The invisible ones are not included.

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
