"""Backbones as a workflow opens them: from their file alone, and the two that every claim is compared with."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medmdm.artifacts.pretrained import join_ledgers, load_pretrained, make_ledger
from medmdm.backbones.adapters import RawPixels, randomise
from medmdm.backbones.cache import CachedExtractor
from medmdm.backbones.concatenation import Concatenation
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.backbones.filter_bank import FilterBank
from medmdm.backbones.layers import BlockNetwork, paper_blocks
from medmdm.components import instantiate, to_config
from medmdm.corruption import Corruption
from medmdm.corruption.base import usual_timestep
from medmdm.data.files.volumes import WHOLE
from medmdm.data.transforms.intensity import percentiles_record
from medmdm.data.transforms.spatial import as_spacing
from medmdm.errors import UserError, nearest
from medmdm.files import weights_hash

INITIALISATIONS = ("pretrained", "random", "raw", "filters")
#: What a plan says of preprocessing; without a backbone the config says it.
PREPROCESSING = ("channels", "spacing", "intensity_range", "percentiles", "slice_axis", "context_slices", "crop_size")
_TAKEN_AWAY = "none"
Backbone = str | os.PathLike[str] | tuple[nn.Module, Mapping[str, Any]]


@dataclass(frozen=True)
class OpenBackbone:
    """A backbone ready to give features.

    Args:
        plan: of its weights file, or what the config says where there is none.
        extractor: its features, cached; None without weights.
        identity: hash of its weights, "" without.
        path: of its file.
        device: where it runs, and whatever is fitted to its features.
        name: what a report calls it, without folders.
    """

    plan: Mapping[str, Any] = field(repr=False)
    extractor: CachedExtractor | None = field(default=None, repr=False)
    identity: str = ""
    path: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    name: str = ""


def open_backbone(
    path: str | os.PathLike[str] | None,
    features: Callable[..., tuple[FeatureExtractor, dict[str, Any], str]] | None = None,
    cache: Callable[..., CachedExtractor] = CachedExtractor,
    preprocessing: Mapping[str, Any] | None = None,
    initialise: str = "pretrained",
    sigmas: Sequence[float] = (),
    seed: int = 0,
    device: torch.device | str = "cpu",
    network: BlockNetwork | None = None,
) -> OpenBackbone:
    """Open the weights file of a backbone; its own plan says how images are read.

    Args:
        path: weights file; None for methods that need no backbone, and for a ``network`` alone.
        features: which: :func:`make_extractor` with other arguments than its defaults (``functools.partial``; in a
            bundle ``"_mode_": "callable"``).
        cache: how they are kept: :class:`medmdm.backbones.CachedExtractor` with other arguments than its defaults.
        preprocessing: replaces what the plan says of :data:`PREPROCESSING`; without a backbone nothing else does. None
            leaves the plan's; ``"none"`` takes it away: a spacing of ``"none"`` reads images in their own pixels, a
            ``slice_axis`` of ``"none"`` volumes whole.
        initialise: ``"pretrained"``; ``"random"``, the same network with new random weights; ``"raw"``, the pixels
            themselves; ``"filters"``, a :class:`medmdm.backbones.FilterBank`: baselines, read as the file's plan says.
        sigmas: for ``"raw"``, of Gaussian filters whose results are features besides the pixels.
        seed: of random weights.
        device: where the backbone runs; ``"meta"`` opens it without taking memory for its weights, to see whether
            everything fits.
        network: one that no weights file of ours holds, such as :func:`medmdm.artifacts.load_timm` makes. With a file
            as well, the features of both are read side by side (:class:`medmdm.backbones.Concatenation`), of images as
            the file's plan has them; without one, ``preprocessing`` says it all.

    Raises:
        UserError: the file cannot be used, or nothing says how images are to be read.
    """
    given = _given(preprocessing or {})
    device = torch.device(device)
    if path is None and given.get("crop_size") is None:
        what = "Without a backbone" if network is None else "Without a weights file"
        raise UserError(f"{what} nothing says how images are read: set preprocessing#crop_size.")
    if path is None and network is None:
        return OpenBackbone(_replaced({"ledger": make_ledger()}, given), device=device)
    if initialise not in INITIALISATIONS:
        raise UserError(f"initialise is {initialise!r}{nearest(initialise, INITIALISATIONS)}.")
    net, plan, name = _found(path, network, given, "meta" if device.type == "meta" else "cpu")
    read, forced = features or make_extractor, dict[str, Any]()
    if initialise != "pretrained":
        net, plan = _baseline(net, plan, initialise, sigmas, None if device.type == "meta" else seed)
    if initialise in ("raw", "filters"):
        forced["blocks"] = [0]
    if not getattr(net, "restores", True):  # hidden patches would be hidden from it
        forced["masking"] = "none"
    extractor, plan, identity = read((net, plan), **forced)
    cached = cache(extractor.to(device), backbone_hash=identity)
    return OpenBackbone(_replaced(plan, given), cached, identity, str(path or ""), device, name)


def _given(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Return what replaces a plan's preprocessing, in the forms that plans have."""
    given = {key: value for key, value in preprocessing.items() if value is not None}
    for key in given:
        if key not in PREPROCESSING:
            raise UserError(f"preprocessing has no {key!r}: it takes {', '.join(PREPROCESSING)}.")
    if isinstance(given.get("percentiles"), list):  # as the pre-training config has them
        given["percentiles"] = percentiles_record(given["percentiles"])
    # No slice axis is one way of reading: volumes whole.
    return {key: None if value == _TAKEN_AWAY and key != "slice_axis" else value for key, value in given.items()}


def _replaced(plan: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan with what replaces its preprocessing."""
    merged = {**plan, **given}
    if given.get("spacing") is not None:
        axes = 3 if merged.get("slice_axis") == WHOLE else 2
        merged["spacing"] = list(as_spacing(given["spacing"], name="preprocessing", axes=axes) or ())
    return merged


def read_by(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return how images are read, whether a plan says the defaults or leaves them out."""
    read = {key: plan.get(key) or None for key in PREPROCESSING if key != "crop_size"}
    return {**read, "slice_axis": read["slice_axis"] or "axial"}


def _found(
    path: str | os.PathLike[str] | None, network: BlockNetwork | None, given: Mapping[str, Any], device: str
) -> tuple[nn.Module, dict[str, Any], str]:
    """Return the network of a file, one without a file, or both as one; the plan; and what a report calls it."""
    own = "" if network is None else str(network.config.get("model") or type(network).__name__)
    if path is None:
        assert network is not None
        plan: dict[str, Any] = {"network": to_config(network), "channels": network.in_channels}
        return network.eval(), {**plan, "ledger": join_ledgers(_ledgers(network))}, own
    first, plan = load_pretrained(path, device=device)
    if network is None:
        return first, plan, Path(path).name
    if not isinstance(first, BlockNetwork):
        raise UserError(f"{path}: a {type(first).__name__} has no features to be read beside those of {own}.")
    for other in _parts(network):
        if other.plan is not None and "channels" in other.plan:
            expected, found = read_by(plan), read_by(other.plan)
            for key in (key for key in expected if expected[key] != found[key] and key not in given):
                both = f"with {key} {expected[key]}, the network beside it with {found[key]}"
                raise UserError(f"{path} was trained {both}, but images are read once: set preprocessing#{key}.")
    both_networks = Concatenation([first, network]).eval()
    plan = {**plan, "network": to_config(both_networks)}
    ledger = join_ledgers([plan.get("ledger"), *_ledgers(network)])
    return both_networks, {**plan, "ledger": ledger}, f"{Path(path).name} + {own}"


def _parts(network: BlockNetwork) -> list[BlockNetwork]:
    """Return the networks that a network is made of, itself if it is no concatenation."""
    return list(network.parts) if isinstance(network, Concatenation) else [network]


def _ledgers(network: BlockNetwork) -> list[Mapping[str, Any] | None]:
    """Return what each part saw in training: nothing without weights, None where it is not known."""
    parts = _parts(network)
    return [(p.plan or {}).get("ledger") if any(True for _ in p.parameters()) else make_ledger() for p in parts]


def _baseline(
    network: nn.Module, plan: dict[str, Any], initialise: str, sigmas: Sequence[float], seed: int | None
) -> tuple[nn.Module, dict[str, Any]]:
    """Return what a backbone is compared with, which has seen no image, and the plan by which it reads them.

    A ``seed`` of None leaves random weights undrawn, for a network that has none.
    """
    plan = {**plan, "ledger": make_ledger()}
    if initialise == "random":
        return network if seed is None else randomise(network, seed), plan
    channels, dims = int(plan.get("channels", 3)), getattr(network, "config", {}).get("spatial_dims", 2)
    network = (RawPixels(channels, sigmas) if initialise == "raw" else FilterBank(channels, dims)).eval()
    return network, {**plan, "network": to_config(network)}


def open_backbones(backbones: Mapping[str, Mapping[str, Any]], **common: Any) -> dict[str, OpenBackbone]:
    """Open several backbones.

    Args:
        backbones: by name, arguments of :func:`open_backbone` and of :func:`make_extractor`, side by side.
        **common: arguments of :func:`open_backbone` that they share.

    Raises:
        UserError: as :func:`open_backbone`, naming the backbone.
    """
    opened = {}
    ways = set(inspect.signature(make_extractor).parameters) - {"backbone", "trust"}
    for name, arguments in backbones.items():
        features = {key: value for key, value in arguments.items() if key in ways}
        others = {key: value for key, value in arguments.items() if key not in ways or key == "seed"}
        try:
            opened[name] = open_backbone(**{"features": partial(make_extractor, **features), **common, **others})
        except (TypeError, UserError) as error:
            raise UserError(f"backbones#{name}: {error}") from error
    if not opened:
        raise UserError("backbones is empty: a study needs one at least, if only for how images are read.")
    return opened


def make_extractor(
    backbone: Backbone,
    blocks: str | Sequence[int] = "paper",
    timesteps: Sequence[int] | None = None,
    masking: str = "seeded",
    partitions: int | None = None,
    normalize: str = "rms",
    seed: int = 0,
    corruption: Corruption | Mapping[str, Any] | None = None,
    trust: bool = False,
    context: Sequence[int] | None = None,
    context_deviation: bool = False,
) -> tuple[FeatureExtractor, dict[str, Any], str]:
    """Make the feature extractor of a pre-trained backbone.

    Args:
        backbone: a weights file that :func:`medmdm.artifacts.load_pretrained` reads, or (network, plan).
        blocks: numbers of decoder blocks, or ``"paper"``: see
            :func:`medmdm.backbones.layers.paper_blocks`; of a network of timm all.
        timesteps: t at which features are read; None for :func:`default_timestep`.
        masking: as the next three, see :class:`medmdm.backbones.FeatureExtractor`.
        partitions: number of complementary masks.
        normalize: of the features.
        seed: of the masks.
        corruption: what the backbone was trained on, as an object or its config, where the plan does not say it
            (published files) or something else is wanted.
        trust: build any network and corruption that the file names, see :func:`medmdm.artifacts.load_pretrained`.
        context: windows around each pixel, see :class:`medmdm.backbones.FeatureExtractor`; in pixels of the images as
            the backbone reads them, at its plan's spacing.
        context_deviation: see there.

    Returns:
        The extractor, the backbone's plan and the hash of its weights (:func:`medmdm.files.weights_hash`).

    Raises:
        UserError: the file cannot be read, the plan does not name the corruption that a masking needs, or blocks,
            timesteps and the others do not go with the backbone.

    Example:
        >>> extractor, plan, identity = make_extractor("runs/demo/model.pt")  # doctest: +SKIP
    """
    network, plan, name = opened(backbone, trust)
    if not hasattr(network, "features") or not hasattr(network, "feature_info"):
        what = f"{type(network).__name__} has no features(x, timesteps, blocks) and feature_info to read"
        raise UserError(f"{name}: {what}; wrap it in an adapter that has.")
    damage: Any = plan.get("corruption") if corruption is None else corruption
    if isinstance(damage, Mapping):
        damage = instantiate(damage, trust, Corruption)
    if damage is None and masking != "none":
        need = 'pass corruption, for the paper\'s {"_target_": "medmdm.corruption.PatchMasking"}, or masking "none"'
        raise UserError(f"{name}: the plan does not say what the backbone was trained on: {need}.")
    if isinstance(blocks, str):
        if blocks != "paper":
            raise UserError(f'blocks must be "paper" or a list of numbers of decoder blocks, got {blocks!r}.')
        blocks = getattr(network, "usual_blocks", None) or paper_blocks(network)
    timesteps = [default_timestep(plan, damage)] if timesteps is None else timesteps
    around = (context, context_deviation)
    extractor = FeatureExtractor(network, blocks, timesteps, damage, masking, partitions, normalize, seed, *around)
    return extractor, plan, weights_hash(network.state_dict())


def opened(backbone: Backbone, trust: bool = False) -> tuple[nn.Module, dict[str, Any], str]:
    """Return the network and the plan of a weights file, or those given, and what sentences call them."""
    if isinstance(backbone, tuple):
        return backbone[0], dict(backbone[1]), "The backbone"
    return *load_pretrained(backbone, trust=trust), str(backbone)


def default_timestep(plan: Mapping[str, Any], corruption: Corruption | None = None, share: float = 50 / 1000) -> int:
    """Return the t to read at: the fixed one of an autoencoder, else a share of T (the paper's is 50 of 1000)."""
    timesteps = instantiate(plan["timesteps"]) if plan.get("timesteps") else None
    total = plan.get("num_timesteps", 1000) if corruption is None else corruption.num_timesteps
    return usual_timestep(timesteps, total, share)
