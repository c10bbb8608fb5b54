"""Segmentation: medmdm's features and pixel classifiers against the published way, in one run on one machine.

Both sides read the same frozen network at the same decoder blocks, timestep and masks and train the same classifiers
(``Linear, ReLU, BatchNorm`` twice, then ``Linear``; Adam, cross-entropy, one crop a step). They differ in how:

====================  ===========================================  ===================================================
what                  medmdm                                       the published way (``published_way.py``)
====================  ===========================================  ===================================================
forward pass          stops after the last block that is read      the whole network, hooks on all decoder blocks
features              stay at their own resolution                 up-sampled to the crop, concatenated, flattened
normalisation         the norm of what would be up-sampled         the norm of what was up-sampled
first linear layer    at each block's resolution, then up-sampled  on every pixel's stack of features
when features are     once a crop, kept in 16 bits                 at every step of every classifier
computed
classifiers           all in one pass over the crops               one after the other
====================  ===========================================  ===================================================

- *A crop*: from pixels to the classes of one trained classifier, in evaluation mode. The sides take turns; the ratio is
  the median over the pairs. ``max_relative_error`` is the largest difference of our logits, over the largest logit, to
  those of the published way with the norm added up in double precision. In single precision, as PyTorch adds it up on
  CPUs, the published way itself is further away; that is printed, too.
- *Memory*: the peak while one classifier classifies one crop, from the blocks' outputs on (``peak_memory.py``). Also
  for a training step (forward, loss, backward).
- *Training*: ten classifiers on eight crops, a fixed number of epochs. Ours is run in full, extraction and the hash of
  the weights included. Of the published way some steps are run (new mask, forward pass, features, classifier step) and
  their median is multiplied by ``crops x epochs x classifiers``; that is an extrapolation and is said to be one.
- *Sampled pixels*: the same with some random pixels of every crop a step instead of all of one crop, for twice as many
  epochs, each of one step. The Dice of both kinds of heads on held-out crops is compared.

Without ``--dataset_dir`` the crops come from scikit-image's picture of stained tissue, with labels by colour
deconvolution, enlarged where the crop asks for it: held-out crops from its right quarter. With random weights Dice says
how the two kinds of heads agree, not how well the method does.

Usage::

    python benchmarks/segmentation.py                      # demo and paper size; the second takes 16 GB, ten minutes
    python benchmarks/segmentation.py --quick --json       # one line, demo size, under a minute
    python benchmarks/segmentation.py --sizes paper --dataset_dir GlaS   # crops of GlaS
    python benchmarks/segmentation.py --backbone runs/mdm_pretrain/model.pt   # the weights of a run
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from peak_memory import measure_memory
from published_way import CLASSES, copy_member, published_classifier, published_features
from torch import Tensor, nn
from torch.nn import functional as F

from medmdm.artifacts.backbone import make_extractor
from medmdm.backbones.cache import CachedExtractor
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.components import to_config
from medmdm.data.cases import select_cases
from medmdm.data.demo import stained_tissue
from medmdm.data.reading import CaseReader, Example
from medmdm.files import resource_folder
from medmdm.heads.classifier_network import PixelClassifier
from medmdm.heads.pixel_classifier import PixelClassifierHead
from medmdm.heads.task import Reading, Task, random_crop
from medmdm.runs.memory import keep_freed_memory

SEED = 0


@dataclass(frozen=True)
class Setting:
    """What both sides share."""

    name: str
    crop: int
    extractor: FeatureExtractor
    parameters: int
    training: Sequence[Example]
    held_out: Sequence[Example]
    members: int
    epochs: int
    pixels: int

    @property
    def grids(self) -> list[tuple[int, int]]:
        """Channels and edge of each block's output for one crop."""
        return [(info["channels"], self.crop // info["reduction"]) for info in self.extractor.feature_info]


# --- a crop ----------------------------------------------------------------------------------------------------------


def measure_crop(setting: Setting, head: PixelClassifier, repeats: int) -> dict[str, float]:
    """Time one crop, from pixels to logits, on both sides in turns, and compare the logits."""
    extractor, size = setting.extractor, (setting.crop, setting.crop)
    mlp = copy_member(head, 0)
    time_step = extractor.config["timesteps"][0]

    def ours(image: Tensor) -> Tensor:
        return head(extractor(image), size, slice(0, 1))[0, 0].flatten(1).T

    def published(image: Tensor) -> Tensor:
        return mlp(published_features(extractor, extractor.corruptions(image, time_step)[0].x_t))

    sides: dict[str, Callable[[Tensor], Tensor]] = {"ours": ours, "published": published}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    with torch.no_grad():
        image = setting.held_out[0].image[None]
        exact = mlp(published_features(extractor, extractor.corruptions(image, time_step)[0].x_t, exact=True))
        largest = exact.abs().max()
        errors = {name: float((side(image) - exact).abs().max() / largest) for name, side in sides.items()}
        for turn in range(repeats):
            image = setting.held_out[turn % len(setting.held_out)].image[None]
            for name in sorted(sides, reverse=turn % 2 == 1):
                start = time.perf_counter()
                sides[name](image)
                seconds[name].append(time.perf_counter() - start)
    ratios = [theirs / mine for theirs, mine in zip(seconds["published"], seconds["ours"], strict=True)]
    return {
        **{name: statistics.median(values) for name, values in seconds.items()},
        "ratio": statistics.median(ratios),
        "error": errors["ours"],
        "published_error": errors["published"],
    }


# --- training --------------------------------------------------------------------------------------------------------


def train_ours(setting: Setting, sampled: bool) -> tuple[float, PixelClassifier]:
    """Train all classifiers; return the seconds, extraction included, and the head.

    On all pixels a step reads one crop, as published; on sampled ones it reads pixels of every crop, so that an epoch
    is one step, for twice the epochs.
    """
    start = time.perf_counter()
    epochs = 2 * setting.epochs if sampled else setting.epochs
    fitter = PixelClassifierHead(
        members=setting.members,
        max_epochs=epochs,
        min_epochs=epochs,  # the stopping rule would give the sides different lengths
        batch_size=len(setting.training) if sampled else 1,
        pixels=setting.pixels if sampled else None,
        views="whole",
    )
    task = Task(setting.training, CLASSES, Reading((setting.crop, setting.crop)), seed=SEED)
    fitted = fitter.fit(task, CachedExtractor(setting.extractor))
    head: Any = fitted.model.head
    return time.perf_counter() - start, head


def published_step(setting: Setting, steps: int) -> float:
    """Return the median time of a step: new mask, whole forward pass, features, one classifier's update."""
    extractor, corruption = setting.extractor, setting.extractor.corruption
    assert corruption is not None
    mlp = published_classifier(extractor.num_features)
    optimizer = torch.optim.Adam(mlp.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(SEED)
    seconds = []
    for step in range(steps + 1):
        example = setting.training[step % len(setting.training)]
        start = time.perf_counter()
        x_t = corruption(example.image[None], torch.tensor(extractor.config["timesteps"]), generator).x_t
        loss = F.cross_entropy(mlp(published_features(extractor, x_t)), example.label.flatten().long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def dice(setting: Setting, heads: Sequence[PixelClassifier]) -> list[list[float]]:
    """Return for each head the Dice of each member over all held-out crops together."""
    counts = torch.zeros(len(heads), setting.members, 2)
    with torch.no_grad():
        for example in setting.held_out:
            maps = setting.extractor(example.image[None])
            known, true = example.label < CLASSES, example.label == 1
            for number, head in enumerate(heads):
                for member in range(setting.members):
                    logits = head(maps, (setting.crop, setting.crop), slice(member, member + 1))[0, 0]
                    pred = (logits.argmax(0) == 1) & known
                    counts[number, member, 0] += 2 * (pred & true).sum()
                    counts[number, member, 1] += pred.sum() + true.sum()
    return (counts[..., 0] / counts[..., 1].clamp_min(1)).tolist()


# --- what is measured on ---------------------------------------------------------------------------------------------


def make_setting(size: str, arguments: argparse.Namespace) -> Setting:
    """Build a network, of random weights unless there is a file, and cut the crops."""
    if arguments.backbone:
        extractor, plan, _ = make_extractor(arguments.backbone, normalize="global_l2")
        crop = plan["crop_size"][0]
    else:
        extractor, crop = random_network(size)
        plan = {}  # images are read as they are
    training, held_out = real_examples(arguments, plan) if arguments.dataset_dir else made_examples(crop)
    return Setting(
        size,
        crop,
        extractor,
        sum(parameter.numel() for parameter in extractor.parameters()),
        crops(training, crop, arguments.crops, 1),
        crops(held_out, crop, arguments.crops, 2),
        arguments.members,
        arguments.epochs or (10 if arguments.quick else 60),
        arguments.pixels,
    )


def random_network(size: str) -> tuple[FeatureExtractor, int]:
    """Return the extractor of a network that a shipped bundle describes, with random weights, and its crop."""
    bundles = resource_folder("bundles")
    overlays = [bundles / "overlays" / "paper.json"] if size != "demo" else []
    config = ConfigParser.load_config_files([bundles / "mdm_pretrain.json", *overlays])
    if size == "medium":  # the paper's network, narrower, on smaller crops: to try this script
        config["network_def"] |= {"model_channels": 64, "num_head_channels": 32}
        config["crop_size"] = [128, 128]
    parser = ConfigParser(config)
    torch.manual_seed(SEED)
    network = parser.get_parsed_content("network_def").eval()
    for parameter in network.parameters():
        if parameter.ndim > 1 and not bool(parameter.any()):
            nn.init.kaiming_uniform_(parameter, a=5**0.5)  # else whole branches would add nothing
    plan = {key: to_config(parser.get_parsed_content(key)) for key in ("corruption", "timesteps")}
    return make_extractor((network, plan), normalize="global_l2")[0], config["crop_size"][0]


def real_examples(arguments: argparse.Namespace, plan: dict[str, Any]) -> tuple[list[Example], list[Example]]:
    """Read labelled images of a data set: the first by name of its training images, and of its test images."""
    cases = select_cases(arguments.dataset_dir, sections=("training", "test"))
    reader = CaseReader(cases, plan)
    chosen = (cases.subset(min(arguments.crops, len(cases.training))).training, cases.test[: arguments.crops])
    training, held_out = ([example for entry in part for example in reader.read(entry).examples] for part in chosen)
    return training, held_out


def made_examples(crop: int) -> tuple[list[Example], list[Example]]:
    """Cut scikit-image's tissue into three quarters to train on and one to test on, enlarged for large crops."""
    from skimage.data import immunohistochemistry

    picture = np.moveaxis(immunohistochemistry(), -1, 0)
    image = torch.from_numpy(picture / 127.5 - 1).float()
    label = torch.from_numpy(stained_tissue(picture).astype(np.uint8))
    factor = max(1, crop // 128)
    if factor > 1:
        image = F.interpolate(image[None], scale_factor=factor, mode="bilinear")[0]
        label = F.interpolate(label[None, None], scale_factor=factor, mode="nearest")[0, 0]
    edge = image.shape[2] * 3 // 4
    parts = [slice(0, edge), slice(edge, None)]
    training, held_out = ([Example(image[..., part], label[..., part], str(i))] for i, part in enumerate(parts))
    return training, held_out


def crops(examples: Sequence[Example], crop: int, count: int, seed: int) -> list[Example]:
    """Draw one crop after the other from the images in turn."""
    return [random_crop(examples[i % len(examples)], (crop, crop), seed * 1000 + i) for i in range(count)]


# --- the whole -------------------------------------------------------------------------------------------------------


def measure(setting: Setting, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure everything at one size."""
    memory = measure_memory(setting.grids, setting.crop, arguments.threads, arguments.quick)
    if not arguments.system_memory:
        keep_freed_memory()
    steps = setting.members * setting.epochs * len(setting.training)
    step = published_step(setting, arguments.steps)
    # Timed after the published steps, so that neither side pays for what PyTorch loads at a first training step.
    seconds, head = train_ours(setting, sampled=False)
    sampled_seconds, sampled_head = train_ours(setting, sampled=True)
    crop = measure_crop(setting, head, arguments.repeats)
    scores = None if arguments.quick else dice(setting, [head, sampled_head])
    return {
        "crop": crop,
        "memory": memory,
        "published_step": step,
        "published_steps": steps,
        "published": step * steps,
        "all": seconds,
        "sampled": sampled_seconds,
        "dice": scores,
    }


def report(setting: Setting, result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print a table."""
    blocks, crop, memory = setting.extractor.config["blocks"], result["crop"], result["memory"]
    print(
        f"\n{setting.name}: {setting.parameters / 1e6:.1f} M parameters, crops of {setting.crop}², decoder blocks "
        f"{min(blocks)} to {max(blocks)}, {setting.extractor.num_features} channels\n"
    )
    print("| what | ours | published way | ratio |\n| --- | --- | --- | --- |")
    print(
        f"| a crop to its classes, one classifier (s) | {crop['ours']:.3g} | {crop['published']:.3g} | "
        f"{crop['ratio']:.2f} |"
    )
    for key, name in (("classify", "memory to classify a crop (MB)"), ("train", "memory of a training step (MB)")):
        if memory is not None and key in memory:
            mine, theirs = memory[key]["ours"] / 1e6, memory[key]["published"] / 1e6
            print(f"| {name}, one classifier | {mine:.1f} | {theirs:.1f} | {theirs / mine:.1f} |")
    what = f"training {setting.members} classifiers on {len(setting.training)} crops"
    for key, name in (
        ("all", f"all pixels, {setting.epochs} epochs"),
        ("sampled", f"{setting.pixels} sampled pixels of each crop, {2 * setting.epochs} steps"),
    ):
        print(
            f"| {what}, {name} (s) | {result[key]:.3g} | {result['published']:.3g} (extrapolated) | "
            f"{result['published'] / result[key]:.0f} |"
        )
    print(
        f"\nExtrapolated: {result['published_step']:.3g} s a step (median of {arguments.steps}) times "
        f"{result['published_steps']} steps."
    )
    print(
        f"Largest relative error of logits: {crop['error']:.1e} (published way, its norm in single precision: "
        f"{crop['published_error']:.1e})."
    )
    if result["dice"] is not None:
        means = [100 * statistics.mean(values) for values in result["dice"]]
        pairs = [100 * (sampled - full) for full, sampled in zip(*result["dice"], strict=True)]
        error = statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else math.nan
        spreads = [100 * (statistics.stdev(values) if len(values) > 1 else 0.0) for values in result["dice"]]
        print(
            f"Dice on {len(setting.held_out)} held-out crops, mean ± standard deviation over classifiers: all pixels "
            f"{means[0]:.2f} ± {spreads[0]:.2f}, sampled {means[1]:.2f} ± {spreads[1]:.2f}, difference "
            f"{means[1] - means[0]:+.2f} ± {error:.2f} points (standard error over classifiers).",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=["demo", "medium", "paper"], default=["demo", "paper"])
    parser.add_argument("--quick", action="store_true", help="demo size only, 10 epochs, no Dice, under a minute")
    parser.add_argument("--json", action="store_true", help="print one line of JSON for each size and nothing else")
    parser.add_argument("--backbone", help="a model.pt instead of random weights, for a Dice that means something")
    parser.add_argument("--dataset_dir", help="a labelled data set to cut crops from, for example GlaS")
    parser.add_argument("--crops", type=int, default=8, help="training crops, and held-out crops")
    parser.add_argument("--members", type=int, default=10, help="classifiers")
    parser.add_argument("--epochs", type=int, help="default: 60, the fewest at which the paper's rule stops")
    parser.add_argument("--pixels", type=int, default=512, help="sampled pixels of each crop and step")
    parser.add_argument("--steps", type=int, default=4, help="timed training steps of the published way")
    parser.add_argument("--repeats", type=int, default=5, help="timed pairs of crops")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads (default: all CPUs)")
    parser.add_argument("--system_memory", action="store_true", help="let both sides return freed memory to the system")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not arguments.json:
        machine = f"{platform.machine()} CPU, {arguments.threads} threads, torch {torch.__version__}"
        print(f"{machine}, load {os.getloadavg()[0]:.1f}")
    sizes = ["backbone"] if arguments.backbone else ["demo"] if arguments.quick else arguments.sizes
    for size in sizes:
        setting = make_setting(size, arguments)
        result = measure(setting, arguments)
        if not arguments.json:
            report(setting, result, arguments)
            continue
        memory = result["memory"]
        line = {
            "crop_time_ratio": result["crop"]["ratio"],
            "classify_memory_ratio": memory and memory["classify"]["published"] / memory["classify"]["ours"],
            "training_ratio": result["published"] / result["all"],
            "max_relative_error": result["crop"]["error"],
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
