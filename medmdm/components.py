"""Components know their config: from an object to ``{"_target_": ..., arguments}`` and back, in one place.

:func:`to_config` reads what it is made of, :func:`instantiate` makes it again. Weights files are not trusted: on their
word only classes marked :func:`buildable` are made, and those of :data:`MONAI_NETWORKS`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import itertools
import re
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from medmdm.errors import UserError, cannot_be_built, nearest

#: Where there are classes that may be built on the word of a weights file; nothing else is imported for it.
ROOMS = ("medmdm.corruption", "medmdm.backbones", "medmdm.heads", "medmdm.segment", "monai.networks.nets")
_BUILDABLE: list[type] = []
_PLACE = re.compile(r"[/\\]|^~|^file:")  # what addresses and paths have, and names of layers have not
_Kind = TypeVar("_Kind", bound=type)

_UNET = "spatial_dims in_channels out_channels channels strides kernel_size up_kernel_size"
_BASIC = "spatial_dims in_channels out_channels features act norm bias dropout upsample"
_ENCODED = "spatial_dims in_channels out_channels channels num_res_blocks attention_levels norm_num_groups norm_eps"
_SEGRES = "spatial_dims init_filters in_channels out_channels act norm blocks_down blocks_up upsample_mode"
#: MONAI's networks that may be built on the word of a weights file, and the arguments that it may give them: numbers,
#: names of layers and the like. Some of MONAI's fetch an address, or copy a file, that an argument names: none is here.
MONAI_NETWORKS = {
    "AHNet": "layers spatial_dims in_channels out_channels psp_block_num upsample_mode",
    "AttentionUnet": f"{_UNET} dropout",
    "AutoEncoder": f"{_UNET} num_res_units inter_channels inter_dilations num_inter_units act norm dropout bias"
    " padding",
    "AutoencoderKL": f"{_ENCODED} latent_channels with_encoder_nonlocal_attn with_decoder_nonlocal_attn"
    " use_checkpoint use_convtranspose include_fc use_combined_linear use_flash_attention",
    "BasicUNet": _BASIC,
    "BasicUNetPlusPlus": f"{_BASIC} deep_supervision",
    "DAF3D": "in_channels out_channels visual_output",
    "DiffusionModelUNet": f"{_ENCODED} resblock_updown num_head_channels with_conditioning transformer_num_layers"
    " cross_attention_dim num_class_embeds upcast_attention dropout_cattn include_fc use_combined_linear"
    " use_flash_attention",
    "DynUNet": "spatial_dims in_channels out_channels kernel_size strides upsample_kernel_size filters dropout"
    " norm_name act_name deep_supervision deep_supr_num res_block trans_bias",
    "FlexibleUNet": "in_channels out_channels backbone decoder_channels spatial_dims norm act dropout decoder_bias"
    " upsample pre_conv interp_mode is_pad",
    "HighResNet": "spatial_dims in_channels out_channels norm_type acti_type dropout_prob bias layer_params"
    " channel_matching",
    "MedNeXt": "spatial_dims init_filters in_channels out_channels encoder_expansion_ratio decoder_expansion_ratio"
    " bottleneck_expansion_ratio kernel_size deep_supervision use_residual_connection blocks_down blocks_bottleneck"
    " blocks_up norm_type global_resp_norm",
    "Quicknat": "num_classes num_channels num_filters kernel_size kernel_c stride_conv pool stride_pool se_block"
    " drop_out act norm adn_ordering",
    "SegResNet": f"{_SEGRES} dropout_prob norm_name num_groups use_conv_final",
    "SegResNetDS": f"{_SEGRES} dsdepth resolution",
    "SegResNetDS2": f"{_SEGRES} dsdepth resolution",
    "SwinUNETR": "img_size in_channels out_channels patch_size depths num_heads window_size qkv_bias mlp_ratio"
    " feature_size norm_name drop_rate attn_drop_rate dropout_path_rate normalize patch_norm use_checkpoint"
    " spatial_dims downsample use_v2 use_flash_attention",
    "UNETR": "in_channels out_channels img_size feature_size hidden_size mlp_dim num_heads norm_name dropout_rate"
    " spatial_dims pos_embed proj_type conv_block res_block qkv_bias save_attn",
    "UNet": f"{_UNET} num_res_units act norm dropout bias adn_ordering",
    "VNet": "spatial_dims in_channels out_channels act dropout_prob dropout_prob_down dropout_prob_up dropout_dim bias",
}  # fmt: skip

_MOVED: dict[str, dict[str, tuple[str, ...]]] = {
    "medmdm.engines": {
        "medmdm.pretrain": ("Checkpoints", "EMA", "MDMTrainer", "Preview", "StepLog"),
        "medmdm.runs": ("RunFolder",),
        "medmdm.artifacts": ("make_plan",),
    },
    "medmdm.losses": {
        "medmdm.heads": ("CrossEntropyDiceLoss",),
        "medmdm.objectives": ("L1Loss", "MSELoss", "PaperSSIMLoss", "SSIMLoss", "WeightedSumLoss"),
    },
    "medmdm.networks": {
        "medmdm.artifacts": ("load_network", "load_pretrained"),
        "medmdm.backbones": ("ADMUNet", "FeatureExtractor", "MONAIDiffusionBackbone", "RawPixels"),
        "medmdm.heads": ("LinearClassifier", "PaddedNetwork", "PixelClassifier", "Segmenter"),
    },
    "medmdm.postprocess": {"medmdm.segment": ("PostProcess",)},
    "medmdm.segment": {
        "medmdm.artifacts": ("open_backbone",),
        "medmdm.heads": ("ClosedFormHead", "FineTuning", "FromScratch", "PixelClassifierHead"),
        "medmdm.pretrain": ("Probe",),
    },
}  # fmt: skip
#: Old name -> new name: configs, plans and weights of earlier versions go on working.
MOVED = {f"{old}.{n}": f"{new}.{n}" for old, homes in _MOVED.items() for new, names in homes.items() for n in names}


def moved(name: str) -> str:
    """Return where what an earlier version called ``name`` is now; other names as they are."""
    return MOVED.get(name, name)


def public_name(kind: type | types.FunctionType) -> str:
    """Return the shortest dotted name under which a class can be imported: ``medmdm.heads.PixelClassifier``."""
    for package in itertools.accumulate(kind.__module__.split("."), "{}.{}".format):
        if getattr(sys.modules.get(package), kind.__qualname__, None) is kind:
            break
    return f"{package}.{kind.__qualname__}"


def buildable(kind: _Kind) -> _Kind:
    """Mark a class as one that may be built on the word of a weights file: making it must do nothing but make it."""
    _BUILDABLE.append(kind)
    return kind


def declared(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``config`` of an object that is no dataclass: call it with ``locals()`` where its constructor begins.

    Example:
        >>> class Scale:
        ...     def __init__(self, factor=1.0, axes=(0, 1)):
        ...         self.config = declared(locals())
        >>> Scale(2.0).config
        {'factor': 2.0, 'axes': [0, 1]}
    """
    found = {k: v for k, v in arguments.items() if k not in ("self", "__class__")}
    return {k: list(v) if isinstance(v, (tuple, list, range)) else v for k, v in found.items()}


#: Key of a dataclass field's metadata: its default is left out of configs.
LATER = "later"


def to_config(value: Any, strict: bool = True) -> Any:
    """Return what a component is made of, JSON-able: ``{"_target_": public name, arguments}``.

    Args:
        value: a dataclass, an object with a ``config`` dictionary of its constructor's arguments, one whose attributes
            of their names make it again (as in scikit-learn), a ``functools.partial`` of a class (what MONAI makes of
            ``"_mode_": "callable"``), or numbers, texts, lists and dictionaries of them.
        strict: refuse what could not be made again; False for a record: its class and what it holds tell it apart.

    Raises:
        UserError: an object that does not know what it was made of.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(k): to_config(v, strict) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_config(v, strict) for v in value]
    if isinstance(value, (type, types.FunctionType)) and "<" not in value.__qualname__:
        return {"_target_": public_name(value), "_mode_": "callable"}
    if isinstance(value, functools.partial) and isinstance(value.func, (type, types.FunctionType)) and not value.args:
        return {**to_config(value.func), **to_config(value.keywords, strict)}
    if dataclasses.is_dataclass(value):
        fields = {f.name: to_config(getattr(value, f.name), strict) for f in dataclasses.fields(value) if f.init}
        # What came later is not said where it is not used, so that records and keys from before stay as they are.
        later = {f.name: f.default for f in dataclasses.fields(value) if f.metadata.get(LATER)}
        fields = {name: v for name, v in fields.items() if name not in later or getattr(value, name) != later[name]}
        return {"_target_": public_name(type(value)), **fields}
    config = getattr(value, "config", None)
    if isinstance(config, Mapping):
        return {"_target_": public_name(type(value)), **to_config(config, strict)}
    return _read_back(value, strict)


def _read_back(value: Any, strict: bool) -> Any:
    """Return the config of an object that does not keep one, from its attributes."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value.tolist()
    arguments = _arguments(type(value))
    is_held = arguments is not None and all(hasattr(value, name) for name in arguments)
    held: Mapping[str, Any] = (
        {name: getattr(value, name) for name in arguments or ()} if is_held else getattr(value, "__dict__", {})
    )
    if strict and not (is_held and _makes_again(value, held)):
        raise UserError(
            f"{public_name(type(value))} does not say what it was made of, so that it could be made again: write its "
            'part of the config with "_mode_": "callable".'
        )
    if isinstance(value, nn.Module) and not strict:  # the weights of a loss are kept as buffers
        held = {**held, **dict(value.named_buffers())}
    return {"_target_": public_name(type(value)), **{k: to_config(v, strict) for k, v in held.items() if k[:1] != "_"}}


def _makes_again(value: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether arguments read from an object's attributes make an equal one: an attribute may hold something else."""
    if isinstance(value, nn.Module) and any(True for _ in value.parameters()):
        return False  # weights are never equal, and making them is not free
    try:
        return vars(type(value)(**arguments)) == vars(value)
    except Exception:  # no attributes, arrays that are not compared, whatever a stranger's constructor raises
        return False


def _arguments(make: Any) -> list[str] | None:
    """Return the names of the arguments, None where any go or nobody knows."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (ValueError, TypeError):  # of what is written in C
        return None
    named = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return named if len(named) == len(parameters) else None


def find(name: Any, trust: bool = False) -> Any:
    """Return what a ``_target_`` names, under its old name or its new one.

    Args:
        name: dotted name.
        trust: also what is not :func:`buildable`; this imports and runs whatever the name says.

    Raises:
        UserError: it is not to be built on a file's word, or there is no such thing.
    """
    target = moved(str(name))
    package, _, own = target.rpartition(".")
    found = None
    if trust or f"{package}.".startswith(tuple(f"{room}." for room in ROOMS)):
        with contextlib.suppress(ImportError, ValueError):
            found = getattr(importlib.import_module(package), own, None)
    if trust and found is None:
        raise UserError(f"{name!r} cannot be imported: check its spelling, and that its package is installed.")
    # The name alone is not enough: modules also hold what they import.
    if not (trust or _is_listed(found) or any(found is kind for kind in _BUILDABLE)):
        raise UserError(
            f"{name!r} is neither medmdm's nor MONAI's to build{nearest(target, map(public_name, _BUILDABLE))}, so it "
            "is not run on the word of a file; if the file is your own, pass trust=True."
        )
    return found


def instantiate(config: Mapping[str, Any], trust: bool = False, kind: type = object) -> Any:
    """Make again what :func:`to_config` described, its parts first.

    Args:
        config: ``{"_target_": ..., arguments}``; other keys that begin with ``_`` are notes.
        trust: as in :func:`find`.
        kind: what it must be, where that matters.

    Raises:
        UserError: as :func:`find`, or the arguments do not fit.

    Example:
        >>> instantiate({"_target_": "medmdm.corruption.PatchMasking", "patch_size": 4}).patch_size
        4
    """
    make = find(config.get("_target_"), trust)
    if isinstance(make, type) and not issubclass(make, kind):
        raise UserError(f"{config['_target_']} is no {kind.__name__}, which is needed here.")
    given = {k: v for k, v in config.items() if not k.startswith("_")}
    if not trust and _is_listed(make):  # ours open nothing
        _refuse_reaching_out(make, given)
    arguments = {k: _part(v, trust) for k, v in given.items()}
    if config.get("_mode_") == "callable":
        return functools.partial(make, **arguments)
    known = _arguments(make)
    for key in arguments:
        if known is not None and key not in known:
            raise UserError(f"{getattr(make, '__name__', make)} has no argument {key!r}{nearest(key, known)}.")
    try:
        return make(**arguments)
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise cannot_be_built(str(config["_target_"]), error) from error


def _is_listed(found: Any) -> bool:
    """Whether a class is one of :data:`MONAI_NETWORKS`."""
    is_network = isinstance(found, type) and issubclass(found, nn.Module)
    return is_network and found.__module__.startswith("monai.networks.nets.") and found.__name__ in MONAI_NETWORKS


def _refuse_reaching_out(make: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse, on the word of a file, arguments of a network of MONAI's that could name something outside of it.

    Raises:
        UserError: naming the first.
    """
    name = make.__name__
    left_out = set(_arguments(make) or ()) - set(MONAI_NETWORKS[name].split())
    end = "is not taken on the word of a file; if the file is your own, pass trust=True."
    for key, value in arguments.items():
        if key.startswith("pretrained") and value not in (None, False):
            raise UserError(f"{name} would fetch weights ({key}), which {end}")
        if key in left_out and not key.startswith("pretrained"):
            raise UserError(f"{name} gets {key!r}, which {end}")
        for text in _texts(value):
            if _PLACE.search(text):
                raise UserError(f"{name} gets an address or a path as {key}, which {end}")


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in the value of an argument; parts are looked at as they are made."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        if "_target_" not in value:
            yield from (text for one in [*value.keys(), *value.values()] for text in _texts(one))
    elif isinstance(value, (list, tuple)):
        yield from (text for one in value for text in _texts(one))


def _part(value: Any, trust: bool) -> Any:
    if isinstance(value, Mapping):
        return instantiate(value, trust) if "_target_" in value else {k: _part(v, trust) for k, v in value.items()}
    return [_part(v, trust) for v in value] if isinstance(value, list) else value
