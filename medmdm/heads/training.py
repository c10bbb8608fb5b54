"""How whole networks are trained on a handful of labelled images, and on unlabelled ones beside them."""

from __future__ import annotations

import copy
import functools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from medmdm.averaging import EMA
from medmdm.data.reading import Example
from medmdm.data.transforms.augmentation import Augmentation, preset
from medmdm.errors import UserError, counted
from medmdm.heads.consistency import Consistency, Teacher, Views
from medmdm.heads.map_losses import MapLosses
from medmdm.heads.pixel_classifier import CrossEntropyDiceLoss
from medmdm.heads.task import Task, random_crop
from medmdm.progress import Progress

logger = logging.getLogger(__name__)

PRECISIONS = ("float32", "bfloat16", "auto")
_WARMUP = 20  # steps in which the learning rate rises
_TIMED = 10  # steps after which a time becomes a number of steps; within the warm-up, which is the same for any number


@dataclass(kw_only=True)
class Training:
    """How a whole network is trained: random crops, strongly augmented, and the average of the weights is what is used.

    A supervised training of fixed length, as in nnU-Net: with a handful of labelled images there is none to spare for
    a stopping rule. The learning rate rises over 20 steps and falls by half a cosine to 0.

    Args:
        steps: optimiser steps.
        minutes: how long it may take instead; the steps are counted from the time of the first ten, and noted, for a
            run with as many ``steps`` gives the same bits.
        batch_size: labelled crops a step.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        averaging: decay of the moving average of the weights, in [0, 1); 0 uses the last weights.
        crop_size: of the crops; None for the window that images are read in. No larger than images that are read whole.
        foreground: see :func:`medmdm.heads.random_crop`.
        flips: spatial axes along which crops are mirrored, and the images that the network segments; ``"auto"``: rows
            and columns, and none in radiology, where classes may differ in nothing but the side on which they lie.
        augmentation: ``"auto"``, what suits the data's modality, and nothing for whole volumes; ``"histology"``,
            ``"radiology"`` (both of pictures and slices), an :class:`medmdm.data.Augmentation`, or None for none.
        loss_function: called as ``loss(logits, label)``; default cross-entropy plus soft Dice. In JSON it may have
            ``"_mode_": "callable"``, and must if it does not keep its arguments.
        precision: ``"float32"``, ``"bfloat16"`` (autocast; the weights stay float32), or ``"auto"``: bfloat16 on
            processors that have instructions for it.

    Raises:
        UserError: an argument is out of range.
    """

    steps: int = 1200
    minutes: float | None = None
    batch_size: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    averaging: float = 0.99
    crop_size: Sequence[int] | None = None
    foreground: float = 1 / 3
    flips: Sequence[int] | str = "auto"
    augmentation: str | Augmentation | None = "auto"
    loss_function: Callable[..., Any] | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size) < 1:
            raise UserError(f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}.")
        if self.minutes is not None and self.minutes <= 0:
            raise UserError(f"minutes must be above 0, got {self.minutes}.")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            rates = f"{self.learning_rate} and {self.weight_decay}"
            raise UserError(f"learning_rate must be above 0 and weight_decay at least 0, got {rates}.")
        if not 0 <= self.averaging < 1:
            raise UserError(f"averaging must lie in [0, 1), got {self.averaging}.")
        if not 0 <= self.foreground <= 1:
            raise UserError(f"foreground must lie in [0, 1], got {self.foreground}.")
        if self.precision not in PRECISIONS:
            raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}.")
        if isinstance(self.augmentation, str) and self.augmentation != "auto":
            preset(self.augmentation)
        if isinstance(self.flips, str):
            if self.flips != "auto":
                raise UserError(f"flips must be numbers of axes, such as [0, 1], or 'auto', got {self.flips!r}.")
        else:
            self.flips = tuple(self.flips)

    def flips_for(self, task: Task) -> tuple[int, ...]:
        """Return the axes along which a task's images are mirrored."""
        if self.flips != "auto":
            return tuple(int(axis) for axis in self.flips)
        axes = len(task.reading.window)
        return () if task.modality == "radiology" else (axes - 2, axes - 1)

    def augmentation_for(self, task: Task) -> Augmentation | None:
        """Return what is done to crops of a task's images."""
        if isinstance(self.augmentation, Augmentation):
            spatial, intensity = _made(self.augmentation.spatial), _made(self.augmentation.intensity)
            return replace(self.augmentation, spatial=spatial, intensity=intensity)
        is_flat = len(task.reading.window) == 2
        if self.augmentation not in ("auto", None) and not is_flat:
            need = 'set it to "auto", null, or an Augmentation of your own'
            raise UserError(f"augmentation {self.augmentation!r} is for pictures, but volumes are read whole: {need}.")
        name = task.modality if self.augmentation == "auto" else self.augmentation
        return None if name is None or not is_flat else preset(name, len(task.examples[0].image))

    def crops_of(self, task: Task) -> tuple[int, ...]:
        """Return the size of crops of a task's images.

        Images that are read whole are not padded, so that crops must not be: they are no larger than the smallest
        image. (Crops that were padded to 48² taught nothing of slices of 50 x 33: Dice 0.38 on those very slices.)
        """
        window = tuple(self.crop_size or task.reading.window)
        if len(window) != len(task.reading.window):
            need = f"{len(task.reading.window)} whole numbers, for images of as many dimensions"
            raise UserError(f"crop_size must be {need}, got {list(window)}.")
        if not task.reading.whole:
            return window
        shapes = {tuple(image.shape[1:]) for image in [*(e.image for e in task.examples), *task.unlabelled]}
        return tuple(map(min, window, *shapes, *(_turned(shape) for shape in shapes if self._turns(task))))

    def _turns(self, task: Task) -> bool:
        augmentation = self.augmentation_for(task)
        return augmentation is not None and augmentation.turns

    def _large_enough(self, task: Task) -> Task:
        """Return a task without unlabelled images that would make the crops less than half as large, or wide."""
        if not task.reading.whole or not task.unlabelled:
            return task
        crop, turns = self.crops_of(replace(task, unlabelled=())), self._turns(task)

        def fits(shape: tuple[int, ...]) -> bool:
            shapes = (shape, _turned(shape)) if turns else (shape,)
            return all(2 * side >= wanted for one in shapes for side, wanted in zip(one, crop, strict=True))

        kept = [image for image in task.unlabelled if fits(tuple(image.shape[1:]))]
        if len(kept) < len(task.unlabelled):
            left = counted(len(task.unlabelled) - len(kept), "unlabelled image")
            logger.warning("%s less than half as large as crops of %s: not learnt from.", left, list(crop))
        return replace(task, unlabelled=kept)

    def run(
        self,
        network: nn.Module,
        groups: Sequence[Mapping[str, Any]],
        task: Task,
        train_mode: Callable[[], Any],
        consistency: Consistency | None = None,
        maps: MapLosses | None = None,
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Train groups of a network's parameters, each with its ``lr``.

        ``train_mode`` puts what trains into training mode; ``maps`` are learnt beside the classes, by a network that
        has ``with_maps``.

        Returns:
            The averaged network, in evaluation mode, and evidence: ``steps``, mean ``losses`` of up to 20 equal
            stretches, with unlabelled images what they did, and the ``weights`` of maps.
        """
        task = self._large_enough(task)
        if consistency is None or not task.unlabelled:
            return self._run(network, groups, task, train_mode, None, maps)
        start = copy.deepcopy(network.state_dict())
        averaged, evidence = self._run(network, groups, task, train_mode, consistency, maps)
        before, after = evidence["unlabelled"]["support_loss"]
        evidence["unlabelled"]["kept"] = after <= before + consistency.tolerance
        if evidence["unlabelled"]["kept"]:
            return averaged, evidence
        logger.warning(
            "The unlabelled images hurt: the loss of the labelled ones rose from %.3f to %.3f, so it is trained "
            "anew without them.",
            before,
            after,
        )
        network.load_state_dict(start)
        averaged, alone = self._run(network, groups, task, train_mode, None, maps)
        return averaged, {**alone, "unlabelled": evidence["unlabelled"]}

    def _run(
        self,
        network: nn.Module,
        groups: Sequence[Mapping[str, Any]],
        task: Task,
        train_mode: Callable[[], Any],
        consistency: Consistency | None,
        maps: MapLosses | None,
    ) -> tuple[nn.Module, dict[str, Any]]:
        maps = copy.deepcopy(maps)  # its weights start anew
        forward: Callable[..., Any] = network if maps is None else network.with_maps  # type: ignore[assignment]
        groups = [*groups, *_groups(maps, self.learning_rate, task.device)]
        optimizer = torch.optim.AdamW([dict(group) for group in groups], weight_decay=self.weight_decay)
        rates = [group["lr"] for group in optimizer.param_groups]
        trained = [p for group in groups for p in group["params"]]
        average = EMA(network, self.averaging)
        loss_function = _made(self.loss_function) or CrossEntropyDiceLoss()
        # Copied, for a random transform keeps what it drew last, and a record says what was given.
        augmentation, window = copy.deepcopy(self.augmentation_for(task)), self.crops_of(task)
        cut = functools.partial(random_crop, window=window, flips=self.flips_for(task))
        labelled = functools.partial(cut, augmentation=augmentation, foreground=self.foreground)
        crops = _Crops(task.examples, labelled, task.seed, maps)
        teacher = None
        if consistency is not None:
            views = Views(task.unlabelled, cut, augmentation, task.seed)
            support_loss = functools.partial(_support_loss, average.module, crops, loss_function, task)
            teacher = Teacher(consistency, average.module, views, support_loss, self._autocast, task)
        loader = iter(DataLoader(crops, batch_size=self.batch_size))
        losses: list[float] = []
        clock = _Clock(self.steps, self.minutes)
        torch.manual_seed(task.seed)  # dropout
        while len(losses) < clock.total:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * _share_of_rate(len(losses), clock.total)
            images, labels, *targets = (part.to(task.device) for part in next(loader))
            taught = None if teacher is None else teacher.crops(len(losses), len(losses) / clock.total)
            if taught is not None:
                images = torch.cat([images, taught.images])
            train_mode()
            optimizer.zero_grad(set_to_none=True)
            with self._autocast(task.device):
                values = forward(images)
            loss = _supervised_loss(values[: len(labels)].float(), labels, targets, loss_function, task, maps)
            if taught is not None:
                loss = loss + taught.loss(values[len(labels) :, : task.num_classes].float())
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 12.0)
            optimizer.step()
            average.update(network)
            losses.append(float(loss.detach()))
            if not np.isfinite(losses[-1]):
                raise UserError(f"The loss became {losses[-1]} at step {len(losses)}: lower the learning rate.")
            clock.step(losses)
        network.eval()
        means = [float(np.mean(part)) for part in np.array_split(losses, min(20, len(losses)))]
        evidence = {"steps": clock.total, "losses": means}
        if teacher is not None:
            evidence["unlabelled"] = teacher.evidence()
        evidence |= {} if maps is None else {"weights": maps.weights_now()}
        return average.module.eval(), evidence

    def _autocast(self, device: torch.device) -> torch.autocast:
        is_half = self.precision == "bfloat16" or (self.precision == "auto" and _has_bfloat16(device))
        return torch.autocast(device.type, torch.bfloat16, enabled=is_half)


def _has_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are faster than those of float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    tests = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return device.type == "cpu" and any(test is not None and test() for test in tests)


def _share_of_rate(step: int, total: int) -> float:
    warmup = min(_WARMUP, total // 2)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


class _Clock(Progress):
    """Count the steps, turn minutes into steps, and say how long it will take."""

    def __init__(self, steps: int, minutes: float | None) -> None:
        super().__init__("fitting steps", steps)
        self.minutes = minutes

    def step(self, losses: Sequence[float]) -> None:
        """Count a step."""
        if (done := len(losses)) == _TIMED:
            now = time.perf_counter()
            if self.minutes is not None:
                self.total = max(done, round(self.minutes * 60 / (now - self.started) * done))
            self.next_line = now
        self.tick(f"loss {np.mean(losses[-20:]):.3f}")


@dataclass
class _Crops(Dataset):
    """Crop ``k`` of the labelled images is a function of the seed and ``k`` alone."""

    examples: Sequence[Example]
    cut: Callable[..., Example]
    seed: int
    maps: MapLosses | None = None

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, k: int) -> tuple[Tensor, ...]:
        rng = np.random.default_rng([self.seed, 7, k])
        example = self.examples[int(rng.integers(len(self.examples)))]
        crop = self.cut(example, seed=int(rng.integers(2**31)))
        return (crop.image, crop.label.long(), *([] if self.maps is None else [self.maps.targets(crop.objects)]))


def _supervised_loss(
    values: Tensor,
    labels: Tensor,
    targets: Sequence[Tensor],
    loss_function: Callable[..., Any],
    task: Task,
    maps: MapLosses | None,
) -> Tensor:
    """Return the loss of what a network gives for labelled crops, ``[B, K + M, *spatial]``."""
    loss: Tensor = loss_function(*task.without_gaps(values[:, : task.num_classes], labels))
    return loss if maps is None else maps(loss, values[:, task.num_classes :], labels, *targets)


def _groups(maps: MapLosses | None, rate: float, device: torch.device) -> list[dict[str, Any]]:
    """Return a group of the optimiser of the weights that are learnt with maps."""
    own = [] if maps is None else list(maps.to(device).parameters())
    return [{"params": own, "lr": rate, "weight_decay": 0.0}] if own else []


@torch.no_grad()
def _support_loss(network: nn.Module, crops: _Crops, loss_function: Callable[..., Any], task: Task) -> float:
    """Return the mean loss of crops of the labelled images that no step has seen."""
    network.eval()
    drawn = [crops[len(crops) - 1 - n][:2] for n in range(16)]
    placed = [(network(x[None].to(task.device)).float(), y[None].to(task.device)) for x, y in drawn]
    losses = [loss_function(*task.without_gaps(*pair)) for pair in placed]
    return float(torch.stack(losses).mean())


def _turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-2], shape[-1], shape[-2])


def _made(part: Any) -> Any:
    """Make a part that was given as its class and arguments (``"_mode_": "callable"``); return others as they are."""
    kind = part.func if isinstance(part, functools.partial) else part
    return part() if isinstance(kind, type) else part
