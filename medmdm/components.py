"""Components know their config: from an object to ``{"_target_": ..., arguments}`` and back, in one place.

What a JSON can build is made of declared fields: a dataclass, or an object with a ``config`` dictionary of its
constructor's arguments (as the networks have). :func:`to_config` reads them, :func:`instantiate` makes it again.
Weights files are not trusted: on their word only what :data:`BUILDABLE` names is made.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import sys
import types
from collections.abc import Mapping
from typing import Any

from medmdm.errors import UserError, nearest

__all__ = ["BUILDABLE", "find", "instantiate", "moved", "public_name", "to_config"]

#: What may be built on the word of a weights file: these packages' own public classes.
BUILDABLE = ("medmdm.corruption", "medmdm.backbones", "medmdm.heads", "medmdm.segment", "monai.networks.nets")

_MOVED: dict[str, dict[str, tuple[str, ...]]] = {
    "medmdm.engines": {
        "medmdm.pretrain": ("Checkpoints", "EMA", "MDMTrainer", "Preview", "StepLog"),
        "medmdm.runs": ("RunFolder",),
        "medmdm.artifacts": ("make_plan",),
    },
    "medmdm.losses": {
        "medmdm.objectives": (
            "CrossEntropyDiceLoss", "L1Loss", "MSELoss", "PaperSSIMLoss", "SSIMLoss", "WeightedSumLoss",
        ),
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


def public_name(kind: Any) -> str:
    """Return the shortest name to import a class or function by: ``medmdm.heads.PixelClassifier``."""
    parts, name = kind.__module__.split("."), kind.__qualname__
    for n in range(1, len(parts) + 1):
        package = ".".join(parts[:n])
        if getattr(sys.modules.get(package), name, None) is kind:
            return f"{package}.{name}"
    return f"{kind.__module__}.{name}"


def to_config(value: Any) -> Any:
    """Return what a component is made of, JSON-able: ``{"_target_": public name, arguments}``.

    Args:
        value: a dataclass, an object with a ``config`` dictionary or one that keeps all its constructor's arguments
            under their names, a class or function or a ``functools.partial`` of one (what MONAI makes of ``"_mode_":
            "callable"``), or numbers, texts, lists and dictionaries of them.

    Raises:
        UserError: an object that does not know what it was made of.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(k): to_config(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_config(v) for v in value]
    part = functools.partial(value) if isinstance(value, (type, types.FunctionType)) else value
    if isinstance(part, functools.partial) and "<" not in getattr(part.func, "__qualname__", "<") and not part.args:
        return {"_target_": public_name(part.func), "_mode_": "callable", **to_config(part.keywords)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_config(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"_target_": public_name(type(value)), **fields}
    config = getattr(value, "config", None)
    if not isinstance(config, Mapping):
        config = _read_back(value)
    if config is not None:
        return {"_target_": public_name(type(value)), **to_config(config)}
    raise UserError(
        f"{public_name(type(value))} does not say what it was made of, so that it could be made again: write its part "
        'of the config with "_mode_": "callable".'
    )


def _read_back(value: Any) -> dict[str, Any] | None:
    """Return the constructor's arguments that an object of another library keeps; None if one is not to be found."""
    try:
        parameters = inspect.signature(type(value)).parameters.values()
    except (TypeError, ValueError):  # of what is written in C
        return None
    if "<" in type(value).__qualname__ or any(
        p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or not hasattr(value, p.name) for p in parameters
    ):
        return None
    return {p.name: to_config(getattr(value, p.name)) for p in parameters}


def find(name: str, trust: bool = False) -> Any:
    """Return what a ``_target_`` names, under its old name or its new one.

    Args:
        name: dotted name.
        trust: also what :data:`BUILDABLE` does not hold; this imports and runs whatever the name says.

    Raises:
        UserError: it is not to be built on a file's word, or there is no such thing.
    """
    target = moved(str(name))
    package, _, own = target.rpartition(".")
    found = None
    if trust or package in BUILDABLE:
        try:
            found = getattr(importlib.import_module(package), own, None)
        except (ImportError, ValueError):
            found = None
        known = found is not None and found.__module__.startswith(BUILDABLE) if isinstance(found, type) else False
        if found is not None and not (trust or known):  # packages also hold what they import
            found = None
    if found is None:
        names = [public for k in BUILDABLE for public in _public(k)]
        raise UserError(
            f"{name!r} is not one of the components that medmdm builds on the word of a file"
            f"{nearest(target, names)}; if the file is your own, pass trust=True."
        )
    return found


def _public(package: str) -> list[str]:
    module = sys.modules.get(package)
    return [f"{package}.{name}" for name in getattr(module, "__all__", ())]


def instantiate(config: Mapping[str, Any], trust: bool = False) -> Any:
    """Make again what :func:`to_config` described, its parts first.

    Args:
        config: ``{"_target_": ..., arguments}``; other keys that begin with ``_`` are notes.
        trust: as in :func:`find`.

    Raises:
        UserError: as :func:`find`, or the arguments do not fit.

    Example:
        >>> instantiate({"_target_": "medmdm.corruption.PatchMasking", "patch_size": 4}).patch_size
        4
    """
    make = find(str(config.get("_target_")), trust)
    arguments = {k: _part(v, trust) for k, v in config.items() if not k.startswith("_")}
    if config.get("_mode_") == "callable":
        return functools.partial(make, **arguments)
    try:
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        raise UserError(f"{config['_target_']} cannot be built: {error}.") from error
    return make(**arguments)


def _part(value: Any, trust: bool) -> Any:
    if isinstance(value, Mapping):
        return instantiate(value, trust) if "_target_" in value else {k: _part(v, trust) for k, v in value.items()}
    return [_part(v, trust) for v in value] if isinstance(value, list) else value
