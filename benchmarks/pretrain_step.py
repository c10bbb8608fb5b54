"""Pre-training speed: medmdm's training step against a straightforward one, in one run on one machine.

Both sides train the same network from the same weights with the same batches, timesteps, masks, loss, gradient
clipping, AdamW and moving average. They differ in how the step is computed:

========================  ==========================================  ===============================================
what                      medmdm (``MDMTrainer``, as it is shipped)   straightforward (written out below)
========================  ==========================================  ===============================================
corruption                whole batch at once                         a loop over images and their hidden patches
batch                     one forward and backward pass               micro-batches of one image, gradients summed
attention                 ``scaled_dot_product_attention``            softmax of the explicit matrix of products
layout                    contiguous, or ``--channels_last``          contiguous
========================  ==========================================  ===============================================

A timed step holds corruption, forward, loss, backward, clipping, AdamW and moving average; loading images is on neither
side. On CPUs the trainer keeps freed memory in the process; that setting holds for both sides, unless
``--system_memory`` leaves it out. After warm-up the sides take turns; the ratio is the median over the pairs, so that a
slow moment of the machine falls on both. After each pair the losses and the gradients of both sides are compared, and
the straightforward side takes over the weights of the other: Adam would let two runs that differ by rounding drift
apart.

Usage::

    python benchmarks/pretrain_step.py                      # demo size and the paper's width (16 GB), on the CPU
    python benchmarks/pretrain_step.py --quick --json       # one line, demo size, under a minute
    python benchmarks/pretrain_step.py --device cuda --sizes paper --batch_size 16   # 256 x 256 crops in bfloat16
    python benchmarks/pretrain_step.py --terms              # each corruption and term against plain masked diffusion

With ``--terms`` both sides are medmdm's: a step of an overlay that changes what is learnt against a step of the bundle
as it is, in turn. Peak memory is that of a process that does nothing else.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from monai.bundle import ConfigParser
from skimage.data import immunohistochemistry
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medmdm.backbones.layers import AttentionBlock
from medmdm.corruption import PatchMasking, UniformTimesteps
from medmdm.files import resource_folder
from medmdm.pretrain.optimization import EMA, Optimization
from medmdm.pretrain.trainer import MDMTrainer
from medmdm.runs.memory import keep_freed_memory, peak_memory

SEED = 0


@dataclass(frozen=True)
class Setting:
    """What both sides share."""

    name: str
    config: dict[str, Any]
    crop_size: int
    batch_size: int
    device: torch.device
    amp_dtype: str | None

    def component(self, key: str) -> Any:
        """Build a component of the shipped bundle."""
        return ConfigParser(self.config).get_parsed_content(key)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return random crops of the demo's image for ``step``, in [-1, 1], and their sample numbers."""
        image = torch.from_numpy(immunohistochemistry()).permute(2, 0, 1) / 127.5 - 1
        generator = torch.Generator().manual_seed(step)
        free = [size - self.crop_size + 1 for size in image.shape[1:]]
        corners = [[int(torch.randint(n, (), generator=generator)) for n in free] for _ in range(self.batch_size)]
        crops = [image[:, top : top + self.crop_size, left : left + self.crop_size] for top, left in corners]
        numbers = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        places = torch.rand(self.batch_size, generator=generator)  # as if they were slices of volumes
        return {"image": torch.stack(crops)[:, : self.config["channels"]], "index": numbers, "position": places}

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Build the bundle's AdamW, fused if it says so."""
        arguments = {
            k: v for k, v in self.config["optimizer"].items() if k in ("weight_decay", "betas", "eps", "fused")
        }
        return torch.optim.AdamW(network.parameters(), lr=self.config["learning_rate"], **arguments)


class Ours:
    """One iteration of the trainer that the bundle runs."""

    def __init__(self, setting: Setting, network: nn.Module, channels_last: bool) -> None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(device=setting.device, memory_format=layout)  # type: ignore[call-overload]
        self.trainer = MDMTrainer(
            device=setting.device,
            max_epochs=1,
            epoch_length=10,
            train_data_loader=DataLoader([]),  # type: ignore[arg-type]
            network=self.network,
            objective=setting.component("objective"),
            optimization=Optimization(
                optimizer=setting.optimizer(self.network),
                ema=EMA(self.network, decay=setting.config["ema_decay"]),
                amp_dtype=setting.amp_dtype,
                max_grad_norm=setting.config["max_grad_norm"],
            ),
            seed=SEED,
        )

        self.trainer.state.iteration = 6  # half of the run: all weights have risen

    def step(self, batch: dict[str, Tensor]) -> float:
        return float(self.trainer._iteration(self.trainer, batch)[0]["loss"])


def explicit_softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as its equation: the whole matrix of products, its softmax, the weighted sum."""
    weights = torch.einsum("bhld,bhmd->bhlm", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhlm,bhmd->bhld", weights.float().softmax(dim=-1).to(v.dtype), v)


class Straightforward:
    """One image after the other, everything written out."""

    def __init__(self, setting: Setting, network: nn.Module) -> None:
        self.network = network.to(setting.device)
        for module in self.network.modules():
            if isinstance(module, AttentionBlock):
                module.attend = explicit_softmax_attention
        self.network.train()
        self.average = copy.deepcopy(self.network)
        self.updates = 0
        self.setting = setting
        self.optimizer = setting.optimizer(self.network)
        self.loss_function = setting.component("loss_function").to(setting.device)
        corruption, timesteps = setting.component("corruption"), setting.component("timesteps")
        assert isinstance(corruption, PatchMasking)
        assert isinstance(corruption.patch_size, int)
        assert isinstance(timesteps, UniformTimesteps)
        self.patch_size, self.num_timesteps = corruption.patch_size, timesteps.num_timesteps

    def corrupt(self, image: Tensor, t: int, generator: torch.Generator) -> Tensor:
        """Hide patches of one image; the generator is used as the trainer does, for the same masks."""
        size = self.patch_size
        rows, columns = image.shape[1] // size, image.shape[2] // size
        order = torch.rand(rows * columns, generator=generator).argsort(stable=True)
        kept = rows * columns * (self.num_timesteps - t) // self.num_timesteps
        corrupted = image.clone()
        for patch in order[kept:].tolist():
            top, left = patch // columns * size, patch % columns * size
            corrupted[:, top : top + size, left : left + size] = 0
        return corrupted

    def step(self, batch: dict[str, Tensor]) -> float:
        device, config = self.setting.device, self.setting.config
        images = batch["image"].to(device)
        # only the draws come from the trainer's own seeding: both sides must see the same t and the same masks
        generators = MDMTrainer.generators(_Seeded(), batch["index"])  # type: ignore[arg-type]
        dtype = None if self.setting.amp_dtype is None else getattr(torch, self.setting.amp_dtype)
        self.optimizer.zero_grad()
        total = 0.0
        for image, generator in zip(images, generators, strict=True):
            t = int(torch.randint(self.num_timesteps, (), generator=generator))
            x_t = self.corrupt(image, t, generator)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                pred = self.network(x_t[None], torch.tensor([t], device=device))
            loss = self.loss_function(pred.float(), image[None]) / len(images)
            loss.backward()
            total += float(loss.detach())
        if config["max_grad_norm"] is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), config["max_grad_norm"])
        self.optimizer.step()
        self.update_average()
        return total

    @torch.no_grad()
    def update_average(self) -> None:
        decay = min(self.setting.config["ema_decay"], (1 + self.updates) / (10 + self.updates))
        for averaged, weight in zip(self.average.parameters(), self.network.parameters(), strict=True):
            averaged.mul_(decay).add_(weight, alpha=1 - decay)
        self.updates += 1


class _Seeded:
    seed = SEED


def new_network(setting: Setting) -> nn.Module:
    """Build the network; layers that start at zero get small weights, so that all of them count from the first step."""
    torch.manual_seed(SEED)
    network: nn.Module = setting.component("network_def")
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.01)
    return network


def measure(setting: Setting, repeats: int, warmups: int, budget: float, channels_last: bool) -> dict[str, Any]:
    """Time both sides in turn.

    Args:
        setting: what both sides share.
        repeats: pairs of steps that are timed.
        warmups: pairs of steps before them.
        budget: seconds after which no new pair starts, once three are timed.
        channels_last: the layout of our side.

    Returns:
        ``ratio`` (median over pairs of straightforward / ours), ``ours`` and ``straightforward`` (median images/s),
        ``loss_difference`` (the largest over all steps) and ``gradient_difference`` (relative, in L2; the median,
        because the loss has a kink: where rounding puts a pixel on its other side, the gradient jumps).
    """
    network = new_network(setting)
    ours = Ours(setting, copy.deepcopy(network), channels_last)
    straightforward = Straightforward(setting, network)
    sides: dict[str, Ours | Straightforward] = {"ours": ours, "straightforward": straightforward}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses, gradients = [], []
    end = time.perf_counter() + budget
    for step in range(warmups + repeats):
        if step >= warmups + 3 and time.perf_counter() > end:
            break
        batch = setting.batch(step)
        loss = {}
        for name in sorted(sides, reverse=step % 2 == 1):
            synchronise(setting.device)
            start = time.perf_counter()
            loss[name] = sides[name].step(batch)
            synchronise(setting.device)
            if step >= warmups:
                seconds[name].append(time.perf_counter() - start)
        losses.append(abs(loss["ours"] - loss["straightforward"]))
        gradients.append(gradient_difference(ours.network, straightforward.network))
        straightforward.network.load_state_dict(ours.network.state_dict())
    pairs = zip(seconds["straightforward"], seconds["ours"], strict=True)
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        **{name: setting.batch_size / statistics.median(values) for name, values in seconds.items()},
        "ratio": statistics.median(theirs / mine for theirs, mine in pairs),
        "loss_difference": max(losses),
        "gradient_difference": statistics.median(gradients),
    }


def gradient_difference(network: nn.Module, other: nn.Module) -> float:
    """Return the L2 distance of the gradients over the norm of the first."""
    pairs = [(a.grad, b.grad) for a, b in zip(network.parameters(), other.parameters(), strict=True)]
    apart = sum(float((a - b).square().sum()) for a, b in pairs if a is not None and b is not None)
    return math.sqrt(apart / sum(float(a.square().sum()) for a, _ in pairs if a is not None))


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_setting(size: str, device: torch.device, batch_size: int | None) -> Setting:
    """Read a size's components from the shipped bundle: the demo's, or the paper's with a crop that fits the device."""
    bundles = resource_folder("bundles")
    overlays = [bundles / "overlays" / "paper.json"] if size == "paper" else []
    config = ConfigParser.load_config_files([bundles / "mdm_pretrain.json", *overlays])
    on_gpu = device.type == "cuda"
    crop = config["crop_size"][0] if size == "demo" else 256 if on_gpu else 64
    return Setting(size, config, crop, batch_size or 8, device, "bfloat16" if on_gpu else None)


def methods() -> list[str]:
    """Return the overlays that change what is learnt; not those of volumes, for the benchmark has a picture."""
    found = (resource_folder("bundles") / "overlays").glob("*.json")
    keys = {path.stem: json.loads(path.read_text()) for path in found}
    return sorted(n for n, own in keys.items() if {"corruption", "terms"} & own.keys() and "slice_axis" not in own)


def with_overlay(setting: Setting, method: str) -> Setting:
    """Return a setting with an overlay of the bundle's."""
    bundles = resource_folder("bundles")
    files = [bundles / "mdm_pretrain.json", bundles / "overlays" / f"{method}.json"]
    config = ConfigParser.load_config_files(files)
    parser = ConfigParser(config)
    for key in [key for key in config if "#" in key]:
        parser[key] = config[key]
    return replace(setting, name=method, config={k: v for k, v in parser.get().items() if "#" not in k})


def compare_method(setting: Setting, method: str, repeats: int, warmups: int) -> float:
    """Return by how much longer a step of ``method`` takes than one of plain masking: the median over pairs."""
    other = with_overlay(setting, method)
    plain = replace(setting, config={**setting.config, "channels": other.config["channels"]})
    sides = {"plain": plain, "method": other}
    trainers = {name: Ours(one, new_network(one), False) for name, one in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for step in range(warmups + repeats):
        for name in sorted(sides, reverse=step % 2 == 1):
            batch = plain.batch(step)
            synchronise(setting.device)
            start = time.perf_counter()
            trainers[name].step(batch)
            synchronise(setting.device)
            if step >= warmups:
                seconds[name].append(time.perf_counter() - start)
    return statistics.median(b / a for a, b in zip(seconds["plain"], seconds["method"], strict=True))


def peak_megabytes(setting: Setting, method: str | None) -> float:
    """Return the peak memory of three steps in a process of their own."""
    command = [sys.executable, __file__, "--alone", method or "plain", "--device", str(setting.device)]
    command += ["--batch_size", str(setting.batch_size), "--threads", str(torch.get_num_threads())]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(printed.split()[-1])


def alone(setting: Setting, method: str) -> None:
    """Do three steps and print the peak memory in MB."""
    one = setting if method == "plain" else with_overlay(setting, method)
    trainer = Ours(one, new_network(one), False)
    for step in range(3):
        trainer.step(one.batch(step))
    if setting.device.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 1e6)
    else:
        print((peak_memory() or math.nan) / 1e6)


def compare_methods(setting: Setting, repeats: int, warmups: int) -> None:
    """Print the table of ``--terms``."""
    plain = peak_megabytes(setting, None)
    print(f"| overlay | time of a step, ratio to plain | peak memory, MB (plain: {plain:.0f}) |\n| --- | --- | --- |")
    for method in methods():
        ratio = compare_method(setting, method, repeats, warmups)
        print(f"| {method} | {ratio:.2f} | {peak_megabytes(setting, method):.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=["demo", "paper"], default=["demo", "paper"])
    parser.add_argument("--quick", action="store_true", help="demo size only, under a minute")
    parser.add_argument("--json", action="store_true", help="print one line of JSON for each size and nothing else")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch_size", type=int, help="images a step (default: 8)")
    parser.add_argument("--repeats", type=int, default=7, help="timed pairs of steps")
    parser.add_argument("--warmups", type=int, default=2, help="pairs of steps before the clock counts")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads (default: all CPUs)")
    parser.add_argument("--channels_last", action="store_true", help="our side in channels-last layout")
    parser.add_argument("--terms", action="store_true", help="each corruption and term against plain, at demo size")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--system_memory", action="store_true", help="let both sides return freed memory to the system")
    arguments = parser.parse_args()
    budget, warmups = (20.0, 1) if arguments.quick else (math.inf, arguments.warmups)
    torch.set_num_threads(arguments.threads)
    if not arguments.system_memory:
        keep_freed_memory()
    device = torch.device(arguments.device)
    if arguments.alone:
        alone(make_setting("demo", device, arguments.batch_size), arguments.alone)
        return
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    if not arguments.json:
        print(f"{machine}, {arguments.threads} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    if arguments.terms:
        compare_methods(make_setting("demo", device, arguments.batch_size), arguments.repeats, warmups)
        return
    if not arguments.json:
        columns = "size, parameters, crop, batch, ours (images/s), straightforward (images/s), ratio, loss difference"
        columns += ", gradient difference"
        print(f"| {columns.replace(', ', ' | ')} |")
        print(f"|{' --- |' * (columns.count(', ') + 1)}")
    for size in ["demo"] if arguments.quick else arguments.sizes:
        setting = make_setting(size, device, arguments.batch_size)
        result = measure(setting, arguments.repeats, warmups, budget, arguments.channels_last)
        if arguments.json:
            print(json.dumps({key: result[key] for key in ("ratio", "loss_difference")}))
        else:
            print(
                f"| {size} | {result['parameters'] / 1e6:.1f} M | {setting.crop_size}² | {setting.batch_size} | "
                f"{result['ours']:.3g} | {result['straightforward']:.3g} | {result['ratio']:.2f} | "
                f"{result['loss_difference']:.1e} | {result['gradient_difference']:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
