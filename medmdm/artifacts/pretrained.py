"""Weights files: our own, which describe their network, and published ones, whose network is inferred."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from medmdm.artifacts.weights import INVISIBLE, build, fill, find_state, first_of, infer_config, naming, read_checkpoint
from medmdm.backbones.layers import BlockNetwork
from medmdm.components import to_config
from medmdm.errors import UserError
from medmdm.files import file_hash, save_torch, text_hash
from medmdm.objectives.objective import Objective
from medmdm.patients import patient_id
from medmdm.progress import followed

logger = logging.getLogger(__name__)

PLAN_FORMAT = 1


def make_plan(
    network: Mapping[str, Any],
    objective: Objective,
    channels: int,
    crop_size: Sequence[int],
    image_hashes: Iterable[str],
    patient_ids: Iterable[str] = (),
    intensity_range: Sequence[float] | None = None,
    percentiles: Mapping[str, Any] | None = None,
    spacing: Sequence[float] | None = None,
    slice_axis: str | None = None,
    context_slices: int = 0,
    labelled: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Collect the plan of a pre-training run.

    Args:
        network: ``_target_`` and arguments from which it is made again.
        objective: what it learnt: corruption, timesteps and target are recorded.
        channels: channels of the images.
        crop_size: size of the training crops in pixels.
        image_hashes: SHA-256 of the decoded pixels of each training image.
        patient_ids: whose images they are, where known; only salted hashes go into the plan.
        intensity_range: stored values that became -1 and 1; None for the full range of the files' type.
        percentiles: ``{"lower": %, "upper": %, "nonzero": bool}`` of each volume (or picture) that became -1 and 1.
        spacing: mm between the pixels (rows, columns) to which images were resampled; None for their own.
        slice_axis: along which volumes were cut; ``"none"`` where they were read whole, ``"time"`` where
            neighbours are frames.
        context_slices: neighbours on each side of a slice that became channels.
        labelled: whose labels the corruption was given, see :func:`make_ledger`.

    Returns:
        A JSON-able dictionary.

    Raises:
        UserError: the objective is to give labels to the corruption, and no image has any.
    """
    if objective.label_as is not None and not labelled:
        raise UserError(f"label_as is {objective.label_as!r}, but no image that trains has a label: set it null.")
    given = {} if objective.label_as is None else {"label_as": objective.label_as}
    return {
        "format": PLAN_FORMAT,
        "network": dict(network),
        "corruption": to_config(objective.corruption),
        "timesteps": to_config(objective.timesteps),
        "num_timesteps": objective.corruption.num_timesteps,
        "target": objective.target,
        **given,
        "channels": channels,
        "crop_size": list(crop_size),
        "intensity_range": None if intensity_range is None else list(intensity_range),
        "percentiles": percentiles,
        "spacing": None if spacing is None else list(spacing),
        "slice_axis": slice_axis,
        "context_slices": context_slices,
        "ledger": make_ledger(image_hashes, patient_ids, labelled),
    }


def make_ledger(
    image_hashes: Iterable[str] = (), patient_ids: Iterable[str] = (), labelled: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return ``{"images": hashes, "patients": salted hashes, "salt": ...}`` of what training saw, as in make_plan.

    Where a pre-training saw labels too, ``"labelled"`` has the hash of each such case, and that of the whole image.
    """
    images = sorted(set(image_hashes))
    salt = text_hash("".join(images))[:32]
    ledger = {"images": images, "patients": patient_hashes(patient_ids, salt), "salt": salt}
    return {**ledger, "labelled": dict(sorted(labelled.items()))} if labelled else ledger


def join_ledgers(ledgers: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Return what several trainings saw as one ledger; None where nothing is known of any.

    ``"complete"`` is False where one is not known, or patients would need more than one salt.
    """
    known = [ledger for ledger in ledgers if ledger is not None]
    if not known:
        return None
    named = [ledger for ledger in known if ledger["patients"]]
    first = (named or known)[0]
    complete = len(known) == len(ledgers) and len(named) <= 1 and all(one.get("complete", True) for one in known)
    images = sorted({digest for ledger in known for digest in ledger["images"]})
    joined = {"images": images, "patients": first["patients"], "salt": first["salt"]}
    labelled = {case: whole for ledger in known for case, whole in ledger.get("labelled", {}).items()}
    joined |= {"labelled": labelled} if labelled else {}
    return joined if complete else {**joined, "complete": False}


def patient_hashes(patient_ids: Iterable[str], salt: str) -> list[str]:
    """Return the sorted salted hashes of patient ids (PBKDF2, so that short ids are slow to guess).

    Whoever wants to know if a patient of theirs is in a ledger hashes the id with the ledger's salt.
    """
    distinct = sorted({patient for one in patient_ids if (patient := patient_id(one)) is not None})

    def slow_hash(patient: str) -> str:
        return hashlib.pbkdf2_hmac("sha256", patient.encode(), salt.encode(), 20_000).hex()

    with ThreadPool(os.cpu_count() or 1) as pool:  # the interpreter's lock is free while it hashes
        return sorted(followed(pool.imap_unordered(slow_hash, distinct), "hashing ids of patients", len(distinct)))


def load_pretrained(
    path: str | os.PathLike[str], *, trust: bool = False, device: str = "cpu", **overrides: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild a pre-trained network from its weights file alone.

    A ``model.pt`` of ours carries a plan that names the network and its arguments. Published checkpoints of the
    guided-diffusion family (ADM, MDM) are bare state dicts: their configuration is inferred from names and shapes, and
    what these cannot show is taken as in the paper unless overridden: ``num_head_channels=64``,
    ``use_new_attention_order=False``, ``num_groups=32``, ``dropout=0``. Wrapped state dicts (``ema``, ``state_dict``,
    ``model``) and the prefix ``module.`` are understood. Files are read with ``weights_only=True``.

    Args:
        path: the weights file.
        trust: also build a network that is neither ours nor MONAI's if the file names one. This imports and calls
            whatever the file says; use it for files of your own.
        device: ``"cpu"``; ``"meta"`` compares names and shapes and takes no memory for weights.
        **overrides: arguments of the network to set by hand, for instance ``num_head_channels=32`` or
            ``use_checkpoint=True``. ``num_heads`` alone implies ``num_head_channels=-1``.

    Returns:
        The network, in evaluation mode on that device, and the plan. The plan of a published file has the keys
        ``format``, ``network``, ``num_timesteps`` (1000), ``intensity_range`` (``None``: the files' full range),
        ``ledger`` (``None``: the training images are not known) and ``source`` (file name, SHA-256 and the arguments
        that were assumed).

    Raises:
        UserError: if the file cannot be read, names a network that is not trusted, or does not fit the network; the
            message names the first parameters that differ and, if it is known, the configuration that would fit.

    Example:
        >>> network, plan = load_pretrained("runs/demo/model.pt")  # doctest: +SKIP
    """
    path = Path(path)
    content = read_checkpoint(path, device)
    plan = content.get("plan")
    if "kind" in content and "state" in content:
        raise UserError(f"{path}: this is a segmenter, not a backbone: name the model.pt that it was made from.")
    with naming(path):
        if plan is None:
            state = find_state(content)
            if state is None:
                raise UserError(f"there is no state dict in this file; its keys are {first_of(content)}.")
            network, plan = _from_published(path, state, overrides, device)
        else:
            state = find_state(content.get("model"))
            if state is None or not isinstance(plan, dict) or not isinstance(plan.get("network"), dict):
                raise UserError("the file has a plan but no weights or no network description; write it again.")
            plan["network"].update(overrides)
            network = build(plan["network"], trust, device)
        return fill(network, state), plan


def load_network(path: str | os.PathLike[str], *, trust: bool = False, **overrides: Any) -> nn.Module:
    """Return only the network of :func:`load_pretrained`.

    It makes a weights file a config entry::

        "network_def": {"_target_": "medmdm.artifacts.load_network", "path": "runs/demo/model.pt"}
    """
    network, plan = load_pretrained(path, trust=trust, **overrides)
    if isinstance(network, BlockNetwork):
        network.plan = plan
    return network


def convert(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], *, trust: bool = False, **overrides: Any
) -> dict[str, Any]:
    """Write a published checkpoint as a ``model.pt`` of ours, so that its configuration is never to be guessed again.

    Args:
        source: a file that :func:`load_pretrained` reads.
        destination: the file to write, atomically; it must not exist yet.
        trust: as in :func:`load_pretrained`.
        **overrides: as in :func:`load_pretrained`.

    Returns:
        The plan that was written.

    Raises:
        UserError: as in :func:`load_pretrained`, or if ``destination`` exists.
    """
    if Path(destination).exists():
        raise UserError(f"{destination}: the file exists already; move it away or choose another name.")
    network, plan = load_pretrained(source, trust=trust, **overrides)
    save_weights(network.state_dict(), plan, destination)
    return plan


def save_weights(weights: Mapping[str, Tensor], plan: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a ``model.pt``, atomically: ``{"model": state dict, "plan": plan}``, and each parameter by its name too.

    ``monai.bundle.load`` copies what it finds by name and is silent about the rest, so that the names must stand at the
    top; the tensors are in the file once.

    Args:
        weights: state dict of the network.
        plan: see :func:`make_plan`.
        path: the file.
    """
    # Plain contiguous CPU tensors: the file does not depend on the device or the memory layout of training.
    model = {name: w.detach().cpu().contiguous().clone() for name, w in weights.items()}
    save_torch({**model, "model": model, "plan": dict(plan)}, path)


def _from_published(
    path: Path, state: dict[str, Tensor], overrides: Mapping[str, Any], device: str = "cpu"
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the network that a bare state dict fits."""
    given = ({"num_head_channels": -1} if "num_heads" in overrides else {}) | dict(overrides)
    assumed = {key: value for key, value in INVISIBLE.items() if key not in given}
    arguments = infer_config(state) | assumed | given
    try:
        network = build({"_target_": "medmdm.backbones.ADMUNet", **arguments}, device=device)
    except UserError as error:
        guess = f"num_head_channels {INVISIBLE['num_head_channels']}"
        if "num_head_channels" in given or guess not in str(error):
            raise
        assumption = f"the paper's {guess} was assumed, pass num_head_channels or num_heads"
        raise UserError(f"{error} Weights do not show it; {assumption}.") from error
    if assumed:
        told = ", ".join(f"{key}={value}" for key, value in assumed.items())
        logger.warning(f"{path}: weights do not show {told}; this is assumed, pass other values if it is wrong.")
    plan = {
        "format": PLAN_FORMAT,
        "network": to_config(network),
        "num_timesteps": 1000,
        "intensity_range": None,  # files of 8 or 16 bits: their full range becomes -1 and 1
        "ledger": None,
        "source": {"file": path.name, "sha256": file_hash(path), "assumed": assumed},
    }
    return network, plan
