"""What is wrong with a config, before anything is allocated: what start, ``--dry_run`` and ``doctor`` share."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
from monai.bundle import ConfigParser

from medmdm.artifacts.backbone import PREPROCESSING
from medmdm.check.findings import Finding
from medmdm.data.transforms.intensity import check_percentiles
from medmdm.errors import UserError, counted, nearest
from medmdm.heads.object_maps import channels as map_channels
from medmdm.heads.segmenter import padded_size
from medmdm.heads.slice_by_slice import window_along
from medmdm.heads.task import NO_BACKBONE
from medmdm.intact import load_record
from medmdm.objectives.term import keep_features
from medmdm.runs.command_line import written_folder
from medmdm.runs.examination import Examination
from medmdm.runs.images_examined import look_at_cases, look_at_probe, look_at_training_images
from medmdm.runs.keys import arguments, children, differing_keys, recorded
from medmdm.runs.machine_examined import in_gib, look_at_machine, look_at_memory
from medmdm.runs.needs import GIB, forward_cost, free_disk, nearest_folder
from medmdm.runs.threads import cpus
from medmdm.schemas import may_change


def examine(parser: ConfigParser, thorough: bool = True) -> tuple[Finding, ...]:
    """Look at a config without running it, and return all that is found at once.

    Nothing is written, networks get no memory (PyTorch's device ``"meta"``), and of the images a few are read.

    Args:
        parser: of the merged config; it stays as it is.
        thorough: False leaves out what a run finds by itself as soon as it begins: parts, files and the machine.

    Returns:
        Errors first, then warnings, then what is worth a word.

    Raises:
        UserError: the config names no bundle of medmdm's.
    """
    x = Examination(parser)
    usable = False
    with x.noting("device"):
        check_device(x.part("device", default="cpu"))
        usable = True
    if not usable:
        x.parser["device"] = "cpu"  # what can be said without it
        x.parser.parse(reset=True)
    threads = x.given("threads")
    if isinstance(threads, int) and threads > cpus():
        x.warning("threads", f"threads is {threads}, but this process may use {counted(cpus(), 'CPU')}")
    if x.bundle == "mdm_pretrain":
        _settings_of_a_pretraining(x)
    if thorough:
        with x.noting("config", "the rest could not be looked at"):
            _LOOKS[x.bundle](x)
        _folder(x, parser.get())
    levels = ("error", "warning", "info")
    return tuple(sorted(x.findings, key=lambda finding: levels.index(finding.level)))


def check_device(device: Any) -> None:
    """Refuse a device, or its name, that PyTorch cannot use here.

    Raises:
        UserError: with PyTorch's first sentence on why.
    """
    if isinstance(device, (str, torch.device)) and not str(device).startswith(("$", "@", "%")):
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from None


# -- pre-training ----------------------------------------------------------------------------------------------------


def _settings_of_a_pretraining(x: Examination) -> None:
    """Compare settings with each other."""
    batch, parts, processes = (x.given(key) for key in ("batch_size", "accumulation_steps", "world_size"))
    if batch % (parts * processes):
        cut = f"{counted(parts, 'micro-batch') if parts == 1 else f'{parts} micro-batches'} of {processes} process(es)"
        x.error(
            "divisibility", f"batch_size {batch} cannot be cut into {cut}: choose one that {parts * processes} divides"
        )
    steps, warmup, total = x.given("max_steps"), x.given("warmup_steps"), x.given("num_timesteps")
    if warmup >= steps and not x.forget("lr_scheduler"):
        x.warning("schedule", f"warmup_steps {warmup} is not below max_steps {steps}: the learning rate never falls")
    for t in x.given("preview_timesteps"):
        if t >= total:
            x.error("timesteps", f"preview_timesteps holds {t}, but timesteps go from 0 to {total - 1} (num_timesteps)")
    if x.given("learning_rate") == 0:
        x.warning("schedule", "learning_rate is 0: nothing is learnt")
    if (workers := x.given("num_workers")) > cpus():
        x.warning("workers", f"num_workers is {workers}, but this process may use {counted(cpus(), 'CPU')}")
    stored, percentiles = x.given("intensity_range"), x.given("percentiles")
    if stored is not None and not stored[0] < stored[1]:
        x.error("range", f"intensity_range is {stored}: give [low, high] with low below high")
    if percentiles is not None:
        with x.noting("range"):
            check_percentiles(percentiles)
        if stored is not None or x.given("window") is not None:
            x.error("range", "both percentiles and an intensity range (or window) are given: keep one")


def _pretraining(x: Examination) -> None:
    for key in ("scaled_range", "scaled_spacing", "corruption", "timesteps", "load", "augment", "scale", "stain"):
        x.part(key)
    crop, channels = x.given("crop_size"), x.given("channels")
    terms = _objective(x, channels, crop)
    _loss_range(x, x.parser.get("loss_function"))
    network, cost = x.part("network_def", meta=True), None
    if network is not None and not isinstance(network, torch.nn.Module):
        x.error("network", f"network_def is a {type(network).__name__}: give a network, a torch.nn.Module")
        network = None
    if network is not None:
        micro = max(1, x.given("batch_size") // (x.given("accumulation_steps") * x.given("world_size")))
        images, t = (
            torch.empty(micro, channels, *crop, device="meta"),
            torch.zeros(micro, dtype=torch.long, device="meta"),
        )
        what = f"network_def cannot read crops of crop_size {crop} with {counted(channels, 'channel')}"
        with x.noting("network", what, meta=True):
            cost, shape = forward_cost(network, images, t)
            if shape[2:] != tuple(crop) or shape[1] < channels * (1 + (x.given("target") == "image and noise")):
                x.error(
                    "network", f"network_def makes {list(shape[1:])} of images of {[channels, *crop]}: they must agree"
                )
        with x.noting("terms"), keep_features(network, terms):
            pass  # there are such blocks
        x.hold("network", network)
        for key in ("ema", "optimizer", "lr_scheduler", "optimization"):
            x.part(key, meta=True)
    stored = look_at_training_images(x)
    look_at_probe(x)
    if network is not None:
        look_at_machine(x, network, cost, stored)


def _objective(x: Examination, channels: int, crop: list[int]) -> list[int]:
    """Damage one crop of noise and judge it: what is refused here is refused at the first step.

    Returns:
        The network's blocks that the terms read.
    """
    objective = x.part("objective")
    if objective is None:
        return []
    blocks = list[int]()
    seeds = [torch.Generator().manual_seed(0)]
    image = torch.rand(1, channels, *crop, generator=seeds[0]) * 2 - 1
    with x.noting("objective", f"the objective cannot be computed on crops of crop_size {crop} in [-1, 1]"):
        _, _, target, visible = objective.pose(image, seeds, **objective.corruption.blank(image))
        loss = objective.loss(torch.zeros_like(target), target, visible)
        if not torch.isfinite(loss).all():
            x.error("range", f"loss_function gives {float(loss)} for images in [-1, 1]: choose one for that range")
        blocks = objective.blocks
    return blocks


def _loss_range(x: Examination, part: Any) -> None:
    """Say where a loss takes images for another range than [-1, 1], be it by its default."""
    for _, value in children(part):
        _loss_range(x, value)
    if isinstance(part, Mapping) and "_target_" in part:
        known = arguments(locate(str(part["_target_"])))
        default = getattr(known.get("data_range"), "default", None) if isinstance(known, Mapping) else None
        given = part.get("data_range", default)
        if isinstance(given, (int, float)) and given != 2:
            name = str(part["_target_"]).rpartition(".")[2]
            x.warning("range", f"loss_function: {name} has data_range {given}, but images lie in [-1, 1] and span 2")


# -- the others ------------------------------------------------------------------------------------------------------


def _opened(x: Examination) -> Any:
    """Return what the bundle opens (backbone, backbones or segmenter), its weights without memory."""
    x.parser["opened#device"] = "meta"
    x.parser.parse(reset=True)
    return x.part("opened")


def _segmentation(x: Examination) -> None:
    opened, cases = _opened(x), x.part("cases")
    given = x.parser.get("preprocessing") or {}
    data, head = x.part("data"), x.part("head")
    # What a network from scratch is given may differ: of the backbone it only has how images are read.
    if opened is not None and opened.extractor is not None and getattr(head, "needs_backbone", True):
        plan = _own_plan(x) if any(value is not None for value in given.values()) else opened.plan
        for key in PREPROCESSING:
            if given.get(key) is not None and plan.get(key) is not None and given[key] != plan[key]:
                said = f"preprocessing#{key} is {given[key]}, but the backbone was trained with {plan[key]}"
                x.warning("plan", f"{said}: its features may not fit")
        window, size = x.given("window"), plan.get("crop_size")
        if window and size and list(window) != list(size):
            x.info("plan", f"window is {window}, the backbone was trained on crops of {list(size)}")
    for key in ("reading", "postprocess", "inferer", "applied", "write_formats", "outputs", "scoring"):
        x.part(key)
    if cases is not None:
        look_at_cases(x, cases, getattr(data, "reader", None))
    if head is not None and opened is not None and cases is not None:
        _network_of(x, "head", head, opened.plan, cases.num_classes)
        _feature_cache(x, [head])
    if data is not None and head is not None:
        x.part("segmentation")


def _own_plan(x: Examination) -> Mapping[str, Any]:
    """Return what the backbone's file says, without what the config puts in its place."""
    own = x.parser.get("opened")
    plain = Examination(x.parser)
    plain.parser["opened"] = {**own, "preprocessing": None}
    opened = _opened(plain)
    return {} if opened is None else opened.plan


def _network_of(x: Examination, key: str, head: Any, plan: Mapping[str, Any], classes: int) -> None:
    """See whether the network of a head reads what it will get."""
    make, training = getattr(head, "network", None), getattr(head, "training", None)
    if make is None or training is None:
        return
    network = None
    with x.noting("network", f"{key}#network", meta=True), torch.device("meta"):
        network = make()
    reading, channels = x.part("reading"), plan.get("channels") or 3
    if network is None or reading is None:
        return
    multiple, axes = head.multiple, getattr(head, "axes", None) or ()
    windows = [window_along(reading.window, axis) for axis in axes] or [reading.window]
    size = padded_size(network, training.crop_size or max(windows, key=math.prod), multiple)
    images = torch.empty(training.batch_size, channels, *size, device="meta")
    cost = None
    what = f"{key}#network cannot read crops of {size} (multiples of {multiple}) with {counted(channels, 'channel')}"
    with x.noting("network", what, meta=True):
        cost, shape = forward_cost(network, images)
        needed = classes + map_channels(getattr(head, "maps", ()))
        if shape[1] != needed or list(shape[2:]) != size:
            x.error(
                "network",
                f"{key}#network makes {list(shape[1:])} of {[channels, *size]}, but needed are {[needed, *size]}",
            )
    if cost is not None:
        need = 5 * cost.weights + cost.activations
        device = torch.device(x.given("device"))
        look_at_memory(x, need, device, f"smaller {key}#training#batch_size or {key}#training#crop_size")


def _feature_cache(x: Examination, heads: list[Any]) -> None:
    folder, most = x.given("feature_cache"), x.given("cache_gib")
    if folder is None or not any(getattr(head, "needs_backbone", False) for head in heads):
        return
    free = free_disk(folder)
    if most * GIB > free:
        said = f"disk: cached features may take {most:g} GiB (cache_gib), and {in_gib(free)} are free at {folder}"
        x.warning("disk", f"{said}: lower cache_gib")


def _study(x: Examination) -> None:
    reference = x.given("reference")
    x.parser["reference"] = None  # needs to know which cells there are, and cells need features
    opened, cases = _opened(x), x.part("cases")
    heads, grid = x.part("heads"), x.part("grid")
    known = {"backbones": x.parser.get("backbones"), "heads": x.parser.get("heads")}
    for (part, names), name in zip(known.items(), reference or (), strict=False):
        if isinstance(names, Mapping) and name not in names and not (part == "backbones" and name == NO_BACKBONE):
            x.error("names", f"reference names {name!r}, but {part} has {', '.join(names)}{nearest(name, names)}")
    data = x.part("data")
    if grid is not None and cases is not None:
        with x.noting("shots"):
            list(grid.samples(len(cases.training)))
    for key in ("reading", "postprocess", "inferer", "metrics"):
        x.part(key)
    if cases is not None:
        look_at_cases(x, cases, getattr(data, "reader", None))
    if isinstance(heads, Mapping) and opened is not None and cases is not None:
        for name, head in heads.items():
            _network_of(x, f"heads#{name}", head, next(iter(opened.values())).plan, cases.num_classes)
        _feature_cache(x, list(heads.values()))
    if data is not None and heads is not None and grid is not None:
        x.part("study")


def _evaluation(x: Examination) -> None:
    _with_segmenter(x, "data", "evaluation", ("outputs", "scoring", "surprise"))


def _inference(x: Examination) -> None:
    _with_segmenter(x, "inference#reader", "inference", ("write_formats", "outputs", "surprise"))


def _with_segmenter(x: Examination, reading: str, workflow: str, parts: tuple[str, ...]) -> None:
    opened, cases = _opened(x), x.part("cases")
    for key in (*parts, "postprocess", "handlers", "inferer"):
        x.part(key)
    made = x.part(reading)
    if cases is not None:
        look_at_cases(x, cases, getattr(made, "reader", made))
    if made is not None and opened is not None and cases is not None:
        entries = [*cases.training, *cases.validation, *cases.test, *cases.unlabeled]
        finished = x.part(workflow)
        if finished is not None:
            with x.noting("outputs"):
                finished.outputs.refuse_sources(entries)
            if workflow == "inference":  # formats are for images whose labels are not looked at
                for form in finished.outputs.formats:
                    with x.noting("outputs"):
                        form.check(entries, opened.task["class_names"])


_LOOKS: dict[str, Callable[[Examination], None]] = {
    "mdm_pretrain": _pretraining,
    "mdm_segment": _segmentation,
    "mdm_evaluate": _evaluation,
    "mdm_infer": _inference,
    "mdm_study": _study,
}


def _folder(x: Examination, config: Mapping[str, Any]) -> None:
    """See whether the run folder can be written, and is not another run's."""
    folder = written_folder({**x.parser.get(), "dry_run": False})
    if folder is None:
        return
    key = "run_dir" if "run_dir" in x.parser else "output_dir"
    existing = nearest_folder(folder)
    if not existing.is_dir():
        x.error("folder", f"{key} {folder} cannot be made: {existing} is a file")
    elif not os.access(existing, os.W_OK):
        x.error("folder", f"{key} {folder} cannot be written ({existing}): choose a folder in which you may write")
    record = Path(folder) / "run.json"
    if x.bundle == "mdm_pretrain" and record.is_file():
        with x.noting("folder"):
            earlier = load_record(record).get("config", {})
            now = recorded(config)
            differing = differing_keys(earlier, now, may_change(x.bundle))
            if differing:
                other = f"a run of another configuration (it differs in {', '.join(differing)})"
                x.error("folder", f"{folder} holds {other}: choose another {key}, or delete that folder")
