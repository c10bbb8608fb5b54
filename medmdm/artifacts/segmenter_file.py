"""Files of segmenters: weights, and a plan that says how to rebuild and use them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medmdm.artifacts.backbone import Backbone
from medmdm.artifacts.pretrained import load_pretrained
from medmdm.artifacts.weights import build, fill, naming, read_checkpoint
from medmdm.backbones.adm_unet import ADMUNet
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.components import instantiate, to_config
from medmdm.corruption import Corruption
from medmdm.errors import UserError
from medmdm.files import save_torch, weights_hash
from medmdm.heads.segmenter import PaddedNetwork, Segmenter

SEGMENTER_FORMAT = 1
KINDS = ("segmenter", "head", "network")
#: Where the parts of a file are in the module.
_PLACES = {"backbone": "extractor.backbone.", "head": "head.", "network": "network."}


def save_segmenter(
    path: str | os.PathLike[str], segmenter: nn.Module, plan: Mapping[str, Any], include_backbone: bool = True
) -> dict[str, Any]:
    """Write a segmenter to one file that :func:`load_segmenter` and ``torch.load(weights_only=True)`` read.

    The file holds ``{"format", "kind", "state", "plan"}``, and each parameter by its name in the module too, for
    MONAI's loaders (:func:`medmdm.artifacts.pretrained.save_weights`). Its kind is ``"segmenter"``: the backbone up to
    its last used block, and the head; ``"head"``: the head alone, small, for use with the backbone's own file; or
    ``"network"``: a network trained from scratch. Written atomically; the same content gives the same bytes.

    Args:
        path: the file.
        segmenter: a :class:`medmdm.heads.Segmenter`, whose extractor may be wrapped in a cache, or a
            :class:`medmdm.heads.PaddedNetwork`.
        plan: JSON-able. ``"backbone"``: the plan of the backbone's file, as it says how images are read and which ones
            were seen; ``"backbone_sha256"``: hash of the weights in that file
            (:func:`medmdm.files.weights_hash`), needed where they are not at hand whole;
            ``"network"``: for a PaddedNetwork the ``_target_`` and arguments of what is padded; ``"task"``: classes,
            windows, post-processing and whatever else prediction needs. Other keys are kept, but ``"members"``, which
            says how many networks of that kind a PaddedNetwork has.
        include_backbone: False for a file of kind ``"head"``.

    Returns:
        The plan as written: what was given, completed by ``"backbone_sha256"``, ``"fine_tuned"`` (whether the
        backbone's weights differ from those of its file), ``"extractor"``, ``"corruption"``, ``"head"`` and
        ``"ensemble"``, or by ``"padding"`` for a network.

    Raises:
        UserError: the plan is not JSON-able or lacks what rebuilding needs, or the backbone is to be left out although
            it was fine-tuned.
    """
    with naming(path):
        if isinstance(segmenter, PaddedNetwork):
            record = dict(plan)
            if not isinstance(record.get("network"), Mapping) or "_target_" not in record["network"]:
                raise UserError("the plan of a network must hold its _target_ and arguments under 'network'.")
            # Pre-trained weights were fetched for the training; those that it made of them are in this file.
            record["network"] = {
                k: v
                for k, v in record["network"].items()
                if k == "_target_" or (k[:1] != "_" and not k.startswith("pretrained"))
            }
            record["padding"] = {"multiple": segmenter.multiple, "num_classes": segmenter.num_classes}
            record["padding"] |= {"flips": list(segmenter.flips), "undeclared": list(segmenter.undeclared)}
            record["padding"] |= _maps(segmenter) | ({"axes": list(segmenter.axes)} if segmenter.axes else {})
            record |= {"members": segmenter.members} if segmenter.members > 1 else {}
            kind, state = "network", {"network": segmenter.network.state_dict()}
        elif isinstance(segmenter, Segmenter):
            record = _record(segmenter, plan)
            if record["fine_tuned"] and not include_backbone:
                why = "the backbone differs from the one of its file, because it was fine-tuned or is another one"
                raise UserError(f"{why}, so the head alone would be of no use: save with include_backbone.")
            kind, state = "head", {"head": segmenter.head.state_dict()}
            if include_backbone:
                kind, state["backbone"] = "segmenter", _cut(_inner(segmenter).backbone, record).state_dict()
        else:
            raise UserError(f"a Segmenter or a PaddedNetwork can be saved, not a {type(segmenter).__name__}.")
        written = _json(record)
    # On the CPU, in storages that hold nothing else, for torch saves storages whole.
    tensors = {
        part: {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in values.items()}
        for part, values in state.items()
    }
    # By the names that the module has once it is loaded, too: see save_weights.
    named = {f"{_PLACES[part]}{k}": v for part, values in tensors.items() for k, v in values.items()}
    save_torch({**named, "format": SEGMENTER_FORMAT, "kind": kind, "state": tensors, "plan": written}, path)
    return written


def load_segmenter(
    path: str | os.PathLike[str], backbone: Backbone | None = None, trust: bool = False, device: str = "cpu"
) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild a segmenter from its file.

    Args:
        path: a file of :func:`save_segmenter`.
        backbone: the backbone's weights file, or (network, plan); needed for a file of kind ``"head"``. Where it is
            given it must be the one that the head was trained with.
        trust: also build networks, heads and corruptions that are neither ours nor MONAI's if the file names them.
            This imports and calls whatever the file says; use it for files of your own.
        device: ``"cpu"``; ``"meta"`` compares names and shapes and takes no memory for weights.

    Returns:
        The module, image ``[B, C, *spatial]`` in [-1, 1] → logits ``[B, K, *spatial]``, in evaluation mode and frozen,
        and the plan, see :func:`save_segmenter`.

    Raises:
        UserError: the file cannot be read, is no segmenter, names what is not trusted, does not fit, or belongs to
            another backbone.

    Example:
        >>> segmenter, plan = load_segmenter("runs/demo/segmenter.pt")  # doctest: +SKIP
    """
    content = read_checkpoint(Path(path), device)
    kind, state, plan = content.get("kind"), content.get("state"), content.get("plan")
    with naming(path):
        if kind not in KINDS or not isinstance(state, Mapping) or not isinstance(plan, dict):
            is_backbone = "model" in content
            what = "the weights of a backbone: fit a head to it first" if is_backbone else "no segmenter of medmdm's"
            raise UserError(f"this file holds {what}.")
        if content.get("format") != SEGMENTER_FORMAT:
            found = f"the format {content.get('format')!r}, this version of medmdm reads {SEGMENTER_FORMAT}"
            raise UserError(f"the file has {found}; install the version that wrote it.")
        try:
            if kind == "network":
                if backbone is not None:
                    raise UserError("this is a network trained from scratch, which has no backbone: give none.")
                built = [build(plan["network"], trust, device) for _ in range(plan.get("members", 1))]
                network = fill(nn.ModuleList(built) if "members" in plan else built[0], state["network"])
                module: nn.Module = PaddedNetwork(network, **plan["padding"])
            else:
                network = _backbone(kind, state, plan, backbone, trust, device)
                damage = None if plan["corruption"] is None else instantiate(plan["corruption"], trust, Corruption)
                extractor = FeatureExtractor(network, corruption=damage, **plan["extractor"])
                head = fill(build(plan["head"], trust, device), state["head"])
                how = {name: plan.get(name, ()) for name in ("flips", "undeclared", "maps")}
                module = Segmenter(extractor, head, plan["ensemble"], **how)
        except KeyError as error:
            raise UserError(f"the file lacks {error}, it is damaged or was not written by medmdm.") from error
    return module.requires_grad_(False).eval(), plan


def _record(segmenter: Segmenter, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the plan of a backbone with a head."""
    record, extractor = dict(plan), _inner(segmenter)
    network = extractor.backbone
    record["backbone"] = dict(record.get("backbone") or {})
    if not isinstance(record["backbone"].get("network"), Mapping):
        record["backbone"]["network"] = to_config(network)
    if isinstance(network, ADMUNet) and network.out is None:
        if not record.get("backbone_sha256"):
            raise UserError("the backbone is cut, so the plan must say the backbone_sha256 of the whole.")
        record.setdefault("fine_tuned", False)
    else:
        actual = weights_hash(network.state_dict())
        record["backbone_sha256"] = record.get("backbone_sha256") or actual
        record["fine_tuned"] = actual != record["backbone_sha256"]
    described = {"corruption": to_config(extractor.corruption), "head": to_config(segmenter.head)}
    return {
        **record,
        "extractor": extractor.config,
        **described,
        "ensemble": segmenter.ensemble,
        "flips": list(segmenter.flips),
        "undeclared": list(segmenter.undeclared),
        **_maps(segmenter),
    }


def _maps(segmenter: Segmenter | PaddedNetwork) -> dict[str, list[str]]:
    """Name the maps beside the classes; nothing where there are none, as earlier versions wrote it."""
    return {"maps": list(segmenter.maps)} if segmenter.maps else {}


def _inner(segmenter: Segmenter) -> FeatureExtractor:
    extractor = getattr(segmenter.extractor, "innermost", segmenter.extractor)
    if not isinstance(extractor, FeatureExtractor):
        raise UserError(f"a segmenter with a {type(extractor).__name__} cannot be saved, only with a FeatureExtractor.")
    return extractor


def _cut(network: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
    """Return the network up to the last block that is used, if it knows how to be cut."""
    return network.truncated(max(plan["extractor"]["blocks"])) if isinstance(network, ADMUNet) else network


def _backbone(
    kind: str, state: Mapping[str, Any], plan: dict[str, Any], given: Backbone | None, trust: bool, device: str
) -> nn.Module:
    """Return the backbone that is in the file, or the one given if it is the right one."""
    if kind == "head" and given is None:
        need = f"give the model.pt that it was trained with (weights {plan['backbone_sha256'][:12]})"
        raise UserError(f"this file holds a head without its backbone: {need}.")
    if given is not None:
        wanted = plan["backbone_sha256"]
        network = given[0] if isinstance(given, tuple) else load_pretrained(given, trust=trust, device=device)[0]
        found = weights_hash(network.state_dict())
        if found not in ("", wanted):
            name = "the backbone given" if isinstance(given, tuple) else str(given)
            other = f"another backbone than {name}: its weights are {wanted[:12]}, not {found[:12]}"
            raise UserError(f"the head was trained with {other}; give the one it was trained with.")
        if kind == "head":
            return _cut(network, plan)
    return fill(_cut(build(plan["backbone"]["network"], trust, device), plan), state["backbone"])


def _json(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan as JSON gives it back, keys sorted: equal plans become equal bytes."""
    for key, value in plan.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise UserError(f"{key!r} in the plan cannot be written as JSON: {error}.") from error
    return json.loads(json.dumps(plan, sort_keys=True))
