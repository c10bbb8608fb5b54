"""Fit the paper's pixel classifier, all members of the ensemble at once, on cached features."""

from __future__ import annotations

import functools
import inspect
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from medmdm.backbones.extractor import Extractor, FeatureExtractor
from medmdm.backbones.feature_maps import cut, gather
from medmdm.components import declared
from medmdm.data.reading import Example
from medmdm.errors import UserError, counted
from medmdm.heads.classifier_network import PixelClassifier
from medmdm.heads.segmenter import Segmenter
from medmdm.heads.task import VIEWS, Fitted, Task, check_normalize, labelled, random_crop, views
from medmdm.labels import IGNORE
from medmdm.progress import Progress

logger = logging.getLogger(__name__)

_Head = TypeVar("_Head", bound=type)


def _with_old_names(kind: _Head) -> _Head:
    """Let a class also take the arguments of earlier versions, with a sentence that names the new one."""
    init = kind.__init__  # type: ignore[misc]

    @functools.wraps(init)
    def renamed(self: Any, *args: Any, per_image: int | None = None, fresh: bool | None = None, **kwargs: Any) -> None:
        if per_image is not None:
            kwargs |= {"views": per_image} if kwargs.get("views") == "crops" else {}
            logger.warning("The head's per_image is now its views: set views to the number of crops of each image.")
        if fresh is not None:
            kwargs |= {"views": "fresh"} if fresh else {}
            logger.warning("The head's fresh is now a kind of its views: set views to 'fresh'.")
        init(self, *args, **kwargs)

    known = inspect.signature(init)
    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in ("per_image", "fresh")]
    renamed.__signature__ = known.replace(parameters=[*known.parameters.values(), *more])  # type: ignore[attr-defined]
    kind.__init__ = renamed  # type: ignore[misc]
    return kind


@_with_old_names
@dataclass
class PixelClassifierHead:
    """Train :class:`medmdm.heads.PixelClassifier` as section 3.2 of arXiv 2308.05695 does.

    All members see the same images and pixels in the same order and differ in their initial weights; nothing of one
    member enters another, so an ensemble equals its members trained one by one. The features are read once for all.

    Args:
        members: size of the ensemble; the paper trains ten.
        hidden: hidden widths; None for the paper's.
        learning_rate: of Adam.
        max_epochs: the training ends here at the latest.
        min_epochs: the stopping rule counts after this epoch (the paper: 40 for GlaS, 30 for MoNuSeg).
        patience: a member stops when the loss of an epoch's last batch has not improved for so many epochs.
        batch_size: views per step (the paper: 1 for GlaS, 16 for MoNuSeg).
        pixels: train on so many random labelled pixels of each view and step; None for all of them.
        views: what the backbone reads, once: ``"windows"`` that cover the images, ``"whole"`` images, ``"crops"``, one
            per image, or a number, so many crops per image; or ``"fresh"``: a new crop of each image and a new mask
            (one for the images of a step) at every step, as published. None for what predictions will be made from.
        class_weights: of the cross-entropy, one per class of the data list, or None.
        dice_weight: adds so much soft Dice to the cross-entropy; 0 is the paper's loss.
        ensemble: how members are joined, see :class:`medmdm.heads.Segmenter`.

    Raises:
        UserError: an argument is out of range.
    """

    members: int = 10
    hidden: Sequence[int] | None = None
    learning_rate: float = 1e-3
    max_epochs: int = 200
    min_epochs: int = 40
    patience: int = 20
    batch_size: int = 1
    pixels: int | None = None
    views: str | int | None = None
    class_weights: Sequence[float] | None = None
    dice_weight: float = 0.0
    ensemble: str = "mean"

    needs_backbone = True

    def __post_init__(self) -> None:
        crops = self.views if isinstance(self.views, int) else 1
        if min(self.members, self.max_epochs, self.patience, self.batch_size, crops) < 1:
            raise UserError("members, max_epochs, patience, batch_size and a number of views must be at least 1.")
        if self.pixels is not None and self.pixels < 2:
            raise UserError(f"pixels must be at least 2 (the batch normalisation needs several), got {self.pixels}.")
        if isinstance(self.views, str) and self.views not in (*VIEWS, "fresh"):
            raise UserError(f"views must be one of {', '.join(VIEWS)}, fresh or a number of crops, got {self.views!r}.")
        self.hidden = None if self.hidden is None else tuple(self.hidden)
        self.class_weights = None if self.class_weights is None else tuple(self.class_weights)
        self.loss_function = CrossEntropyDiceLoss(self.dice_weight, self.class_weights)

    def fit(self, task: Task, extractor: Extractor | None) -> Fitted:
        """Train on the labelled images; see :class:`medmdm.heads.task.Fitter`."""
        assert extractor is not None
        reading = task.reading
        head = PixelClassifier(extractor.num_features, task.num_classes, self.hidden, self.members, task.seed)
        head.to(task.device)
        kind, crops = ("crops", self.views) if isinstance(self.views, int) else (self.views or reading.kind, 1)
        other = any(tuple(e.image.shape[1:]) != reading.window for e in task.examples)
        check_normalize(extractor, kind == "whole" and other)
        if kind == "fresh":  # crops are drawn from the images themselves, at every step
            kind = "whole"
        how: Any = (kind, reading.window, reading.overlap, crops, task.seed)
        samples = labelled(view for example in task.examples for view in views(example, *how))
        losses, stopped = self._train(head, samples, task, extractor)
        model = Segmenter(extractor, head, self.ensemble, undeclared=task.undeclared)
        return Fitted(model, {"epochs": stopped, "final_losses": losses, "views": len(samples)})

    def _train(
        self, head: PixelClassifier, samples: Sequence[Example], task: Task, extractor: Extractor
    ) -> tuple[list[float], list[int]]:
        """Return the last loss and the number of epochs of each member."""
        head.train()
        members = [head.shared_member(number) for number in range(self.members)]
        optimizer = torch.optim.Adam(head.parameters(), lr=self.learning_rate)
        order = torch.Generator().manual_seed(task.seed)
        numbers: Any = range(len(samples))
        loader: DataLoader = DataLoader(numbers, batch_size=self.batch_size, shuffle=True, generator=order)
        rule = StoppingRule(self.members, self.min_epochs, self.patience)
        losses = torch.zeros(self.members)
        finished: dict[int, dict[str, Tensor]] = {}
        # As if no member stopped early: at most so many.
        fitting = Progress("fitting steps, at most", self.max_epochs * len(loader))

        def step(engine: Engine, batch: Tensor) -> None:
            optimizer.zero_grad(set_to_none=False)
            chosen = [samples[int(i)] for i in batch]
            rng = np.random.default_rng([task.seed, 6, engine.state.iteration])
            if self.views == "fresh":
                chosen = [random_crop(view, task.reading.window, int(rng.integers(2**31))) for view in chosen]
                chosen = [view for view in chosen if bool(view.known.any())]
                if not chosen:  # scribbles: nothing labelled in this crop
                    return
            classify, label = self._batch(chosen, task, extractor, rng)
            running = sorted(rule.running)
            found = []
            for number in running:  # they share nothing but the features: one at a time takes the least memory
                loss = self.loss_function(*task.without_gaps(classify(members[number]), label))
                loss.backward()
                found.append(loss.detach())
            losses[running] = torch.stack(found).cpu()
            optimizer.step()
            fitting.tick(f"loss {float(losses[running].mean()):.3f}")

        marks = [time.perf_counter()]

        def end_of_epoch(engine: Engine) -> None:
            epoch, found = engine.state.epoch, losses.tolist()
            marks.append(time.perf_counter())
            self._say_how_long(marks)
            if not bool(losses.isfinite().all()):
                raise UserError(f"The head's loss became {found} in epoch {epoch}: lower its learning_rate.")
            for member in rule.update(epoch, found):
                finished[member] = head.member(member)
            if len(finished) == self.members:
                engine.terminate()

        trainer = Engine(step)
        trainer.logger.setLevel(logging.CRITICAL)  # what ends it is raised as well
        trainer.add_event_handler(Events.EPOCH_COMPLETED, end_of_epoch)
        trainer.run(loader, self.max_epochs)
        for member, state in finished.items():
            head.set_member(member, state)
        head.eval()
        return rule.last, rule.epochs

    def _say_how_long(self, marks: Sequence[float]) -> None:
        """Say it once, by the second epoch, as the first one computed the features; ``marks`` are times in seconds."""
        if len(marks) == 3 <= self.max_epochs:
            least, most = ((marks[2] - marks[1]) * epochs / 60 for epochs in (self.min_epochs, self.max_epochs))
            ensemble = counted(self.members, "member")
            span = f"at least {self.min_epochs}, at most {self.max_epochs} epochs"
            logger.info("fitting %s takes about %.2g to %.2g min (%s)", ensemble, least, most, span)

    def _batch(
        self, chosen: Sequence[Example], task: Task, extractor: Extractor, rng: np.random.Generator
    ) -> tuple[Callable[[PixelClassifier], Tensor], Tensor]:
        """Return what gives a member's logits ``[B, K, ...]`` for a batch, and the batch's labels ``[B, ...]``."""
        if self.views == "fresh":
            extractor = _with_new_mask(extractor, int(rng.integers(2**31)))
        if self.pixels is not None:
            sampled = [_sample(view, self.pixels, task, extractor, rng) for view in chosen]
            x, y = (torch.cat(same) for same in zip(*sampled, strict=True))
            return lambda member: member.forward_pixels(x).transpose(1, 2), y[None]
        if len({view.label.shape for view in chosen}) > 1:
            raise UserError(
                "Images of different sizes cannot be read whole in one batch: set batch_size to 1, or train on sampled "
                "pixels or windows."
            )
        images = torch.stack([view.image for view in chosen]).to(task.device)
        label = torch.stack([view.label for view in chosen]).long().to(task.device)
        maps, size = extractor(images), extractor.padded_size(images.shape[2:])
        return lambda member: cut(member(maps, size)[0], label.shape[1:]), label


def _with_new_mask(extractor: Extractor, seed: int) -> FeatureExtractor:
    inner = extractor.innermost
    return FeatureExtractor(inner.backbone, corruption=inner.corruption, **{**inner.config, "seed": seed})


class StoppingRule:
    """Stop each member when its loss has not improved for ``patience`` epochs, counted after ``min_epochs``."""

    def __init__(self, members: int, min_epochs: int, patience: int) -> None:
        self.min_epochs, self.patience = min_epochs, patience
        self.best, self.last = [float("inf")] * members, [float("nan")] * members
        self.best_epoch, self.epochs = [min_epochs] * members, [0] * members
        self.running = set(range(members))

    def update(self, epoch: int, losses: Sequence[float]) -> list[int]:
        """Take in the losses at the end of an epoch; return the members that stop now."""
        for member in self.running:
            self.epochs[member], self.last[member] = epoch, losses[member]
            if epoch > self.min_epochs and losses[member] < self.best[member]:
                self.best[member], self.best_epoch[member] = losses[member], epoch
        stopping = [member for member in sorted(self.running) if epoch - self.best_epoch[member] >= self.patience]
        self.running -= set(stopping)
        return stopping


def _sample(
    view: Example, count: int, task: Task, extractor: Extractor, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return features ``[count, C]`` and classes ``[count]`` of labelled pixels of a view, drawn with replacement."""
    known = view.known.nonzero()
    return read_pixels(view, known[torch.from_numpy(rng.integers(len(known), size=count))], task, extractor)


def read_pixels(view: Example, picked: Tensor, task: Task, extractor: Extractor) -> tuple[Tensor, Tensor]:
    """Return features ``[N, C]`` and classes ``[N]`` of some pixels of a view: their places ``[N, spatial]``."""
    size = extractor.padded_size(view.label.shape)
    strides = torch.tensor([math.prod(size[axis + 1 :]) for axis in range(len(size))])
    maps = extractor(view.image[None].to(task.device))
    features = gather(maps, (picked * strides).sum(1).to(task.device), size)
    return features, view.label[tuple(picked.T)].long().to(task.device)


class CrossEntropyDiceLoss(nn.Module):
    """Cross-entropy plus MONAI's soft Dice (Isensee et al., nnU-Net, 2021), both on labelled pixels only.

    Args:
        dice_weight: of the Dice term; 0 leaves cross-entropy alone.
        class_weights: of the cross-entropy, one per class; None for equal ones.
        include_background: count the background in the Dice term.
        ignore: label of pixels that are not known.

    Raises:
        UserError: a class weight is not positive.
    """

    def __init__(
        self,
        dice_weight: float = 1.0,
        class_weights: Sequence[float] | None = None,
        include_background: bool = False,
        ignore: int = IGNORE,
    ) -> None:
        super().__init__()
        self.config = declared(locals())
        if class_weights is not None and min(class_weights) <= 0:
            raise UserError(f"class_weights must be positive, got {list(class_weights)}.")
        self.dice_weight = dice_weight
        self.class_weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.ignore = ignore
        self.dice = DiceLoss(include_background=include_background, batch=True)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Compare logits ``[B, K, *spatial]`` with class numbers ``[B, *spatial]``.

        Returns a scalar; 0 with gradients of 0 where nothing is labelled.
        """
        if self.class_weights is not None and len(self.class_weights) != logits.shape[1]:
            raise UserError(f"class_weights has {len(self.class_weights)} numbers for {logits.shape[1]} classes.")
        known = label != self.ignore
        if not bool(known.any()):
            return logits.sum() * 0
        weight = None if self.class_weights is None else self.class_weights.to(logits)
        loss = F.cross_entropy(logits, label, weight, ignore_index=self.ignore)
        if self.dice_weight:
            one_hot = F.one_hot(torch.where(known, label, 0), logits.shape[1]).movedim(-1, 1)
            mask = known[:, None]
            loss = loss + self.dice_weight * self.dice(logits.softmax(1) * mask, one_hot * mask)
        return loss
