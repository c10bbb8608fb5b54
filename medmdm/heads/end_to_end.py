"""Fit whole networks to the labelled images: the backbone fine-tuned with its head, and baselines from scratch."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from medmdm.backbones.extractor import Extractor, FeatureExtractor
from medmdm.errors import UserError, cannot_be_built
from medmdm.heads.classifier_network import PixelClassifier
from medmdm.heads.pixel_classifier import CrossEntropyDiceLoss, PixelClassifierHead
from medmdm.heads.segmenter import PaddedNetwork, Segmenter
from medmdm.heads.task import Fitted, Task, random_crop

PARTS = ("all", "decoder")
_DECODER = re.compile(r"(^|\.)(output_blocks|up_blocks)\.")  # of ADM and of MONAI's DiffusionModelUNet


def _made(part: Any) -> Any:
    """Make a part that was given as its class and arguments (``"_mode_": "callable"``); return others as they are."""
    kind = part.func if isinstance(part, functools.partial) else part
    return part() if isinstance(kind, type) else part


@dataclass
class _Crops(Dataset):
    """Crop ``k`` is a function of the seed and ``k`` alone."""

    task: Task
    count: int
    flips: Sequence[int]
    transform: Any

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.task.seed, 7, k])
        example = self.task.examples[int(rng.integers(len(self.task.examples)))]
        seed = int(rng.integers(2**31))
        crop = random_crop(example, self.task.reading.window, seed, self.flips, copy.deepcopy(self.transform))
        return crop.image, crop.label.long()


@dataclass(kw_only=True)
class _EndToEnd:
    """A supervised training of fixed length, as in nnU-Net, with a learning rate that falls to 0 (power 0.9).

    With a handful of labelled images there is none to spare for a stopping rule. Arguments: see the classes below.
    """

    learning_rate: float = 1e-3
    steps: int = 1000
    batch_size: int = 8
    weight_decay: float = 0.0
    loss_function: Callable[..., Any] | None = None
    flips: Sequence[int] = (1,)
    transform: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size) < 1:
            raise UserError(f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}.")
        self.flips = tuple(self.flips)

    def train(
        self, network: nn.Module, groups: Sequence[Mapping[str, Any]], task: Task, train_mode: Callable[[], Any]
    ) -> list[float]:
        """Train groups of a network's parameters, each with its ``lr``, on random crops of the labelled images.

        ``train_mode`` puts what trains into training mode. Returns mean losses of up to 20 equal stretches of the run.
        """
        optimizer = torch.optim.AdamW([dict(group) for group in groups], weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=self.steps, power=0.9)
        crops = _Crops(task, self.steps * self.batch_size, self.flips, _made(self.transform))
        loss_function = _made(self.loss_function) or CrossEntropyDiceLoss()
        losses: list[float] = []
        torch.manual_seed(task.seed)  # dropout
        for batch in DataLoader(crops, batch_size=self.batch_size):
            train_mode()
            images, labels = (part.to(task.device) for part in batch)
            optimizer.zero_grad(set_to_none=True)
            loss = loss_function(network(images), labels)
            loss.backward()
            nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 12.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            if not np.isfinite(losses[-1]):
                raise UserError(f"The loss became {losses[-1]} at step {len(losses)}: lower the learning rate.")
        network.eval()
        return [float(np.mean(part)) for part in np.array_split(losses, min(20, len(losses)))]


@dataclass
class FineTuning(_EndToEnd):
    """Train the backbone together with its head, from the pre-trained weights.

    The head is first trained on the frozen features: gradients of a random head would spoil the backbone.

    Args:
        head: how the head is trained first; one member.
        parts: ``"all"`` of the backbone up to the last used block, or its ``"decoder"``.
        backbone_learning_rate: of AdamW, for the backbone.
        learning_rate: for the head.
        steps: optimiser steps.
        batch_size: crops per step.
        weight_decay: of AdamW.
        loss_function: called as ``loss(logits, label)``; default cross-entropy plus soft Dice. In JSON it and the
            transform may have ``"_mode_": "callable"``, and those must that do not keep their arguments.
        flips: axes along which crops are mirrored; 1, the paper's, is left-right.
        transform: further augmentation, a MONAI dictionary transform of ``image`` and ``label``.

    Raises:
        UserError: an argument is out of range.
    """

    head: PixelClassifierHead | None = None
    parts: str = "all"
    backbone_learning_rate: float = 1e-4

    needs_backbone = True
    changes_backbone = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parts not in PARTS:
            raise UserError(f"parts must be 'all' or 'decoder', got {self.parts!r}.")
        self.head = self.head or PixelClassifierHead(members=1, max_epochs=40, pixels=4096)
        if self.head.members != 1:
            raise UserError(f"Fine-tuning trains one head, but head#members is {self.head.members}: set it to 1.")

    def fit(self, task: Task, extractor: Extractor | None) -> Fitted:
        """Train on the labelled images; see :class:`medmdm.heads.task.Fitter`."""
        assert extractor is not None
        assert self.head is not None
        first = self.head.fit(task, extractor)
        head: PixelClassifier = first.model.head  # type: ignore[assignment]
        inner = extractor.innermost
        own = FeatureExtractor(copy.deepcopy(inner.backbone), corruption=inner.corruption, **inner.config)
        # Those that the used features do not depend on get no gradient and stay.
        named = own.backbone.named_parameters()
        trained = [p.requires_grad_(True) for n, p in named if self.parts == "all" or _DECODER.search(n)]
        if not trained:
            raise UserError("parts 'decoder': this backbone has no decoder of a known name; use parts 'all'.")
        segmenter = Segmenter(own, head, self.head.ensemble)
        groups = [
            {"params": trained, "lr": self.backbone_learning_rate},
            {"params": list(head.parameters()), "lr": self.learning_rate},
        ]
        losses = self.train(segmenter, groups, task, head.train)
        segmenter.requires_grad_(False)
        return Fitted(segmenter, {"head": first.evidence, "losses": losses, "steps": self.steps})


@dataclass
class FromScratch(_EndToEnd):
    """Train a network from random weights on the labelled images alone: the baselines of the paper's table.

    Args:
        network: makes the network, image ``[B, C, *spatial]`` → logits ``[B, K, *spatial]`` (or a list of them, the
            last being read); in JSON a component with ``"_mode_": "callable"``.
        multiple: what the network needs the sides of its input to be multiples of.
        learning_rate: of AdamW; this and the other settings of the training are those of :class:`FineTuning`.
        weight_decay: of AdamW.

    Raises:
        UserError: an argument is out of range.
    """

    network: Callable[[], nn.Module]
    multiple: int = 32
    weight_decay: float = field(default=1e-5, kw_only=True)

    needs_backbone = False

    def fit(self, task: Task, extractor: Extractor | None = None) -> Fitted:
        """Train on the labelled images; see :class:`medmdm.heads.task.Fitter`."""
        torch.manual_seed(task.seed)
        try:
            made = self.network()
        except (TypeError, ValueError) as error:
            kind = self.network.func if isinstance(self.network, functools.partial) else self.network
            raise cannot_be_built(getattr(kind, "__name__", str(kind)), error) from error
        network = PaddedNetwork(made, self.multiple, task.num_classes).to(task.device)
        groups = [{"params": list(network.parameters()), "lr": self.learning_rate}]
        losses = self.train(network, groups, task, functools.partial(network.train, True))
        network.requires_grad_(False)
        parameters = sum(p.numel() for p in network.parameters())
        return Fitted(network, {"losses": losses, "steps": self.steps, "parameters": parameters})
