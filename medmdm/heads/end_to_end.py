"""Fit whole networks to the labelled images: the backbone fine-tuned, and networks from random weights."""

from __future__ import annotations

import copy
import functools
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from medmdm.backbones.extractor import Extractor, FeatureExtractor
from medmdm.data.files.volumes import axis_number
from medmdm.errors import UserError, cannot_be_built
from medmdm.heads.classifier_network import PixelClassifier
from medmdm.heads.consistency import Consistency
from medmdm.heads.map_losses import MapLosses
from medmdm.heads.object_maps import channels
from medmdm.heads.segmenter import PaddedNetwork, Segmenter
from medmdm.heads.slice_by_slice import task_of_slices
from medmdm.heads.task import Fitted, Task
from medmdm.heads.training import Training

logger = logging.getLogger(__name__)

PARTS = ("all", "decoder")
_APART = 7919  # between the seeds of members: not another seed that anybody chooses
_DECODER = re.compile(r"(^|\.)(output_blocks|up_blocks|upcat_\d)\.")  # of ADM and of MONAI's two U-Nets


@dataclass
class FineTuning:
    """Train the whole backbone from the pre-trained weights, with a linear layer on its last decoder block.

    The image is shown as it is, nothing hidden, and the block is at full resolution: the backbone becomes an ordinary
    segmentation network, trained as :class:`FromScratch` trains one, so that only the weights it starts from differ.

    Args:
        training: the recipe.
        unlabelled: how unlabelled images are used; None leaves them alone.
        parts: ``"all"`` of the backbone, or its ``"decoder"``.
        backbone_rate: the backbone's learning rate, as a share of that of the linear layer.
        timestep: t that the backbone is told; 0, nothing is hidden. For one pre-trained at a fixed t, that t.

    Raises:
        UserError: an argument is out of range.
    """

    training: Training = field(default_factory=Training)
    unlabelled: Consistency | None = None
    parts: str = "all"
    backbone_rate: float = 1.0
    timestep: int = 0

    needs_backbone = True
    changes_backbone = True

    def __post_init__(self) -> None:
        if self.parts not in PARTS:
            raise UserError(f"parts must be 'all' or 'decoder', got {self.parts!r}.")

    @property
    def uses_unlabelled(self) -> bool:
        """Whether a fit looks at unlabelled images."""
        return self.unlabelled is not None

    def fit(self, task: Task, extractor: Extractor | None, maps: MapLosses | None = None) -> Fitted:
        """Train on the labelled images, ``maps`` too; see :class:`medmdm.heads.task.Fitter`."""
        assert extractor is not None
        inner = extractor.innermost
        last = max(info["block"] for info in inner.backbone.feature_info)  # type: ignore[union-attr]
        how = {"blocks": [last], "timesteps": [self.timestep], "masking": "none", "normalize": "none"}
        own = FeatureExtractor(copy.deepcopy(inner.backbone), corruption=inner.corruption, **how)  # type: ignore[arg-type]
        # Those that the used features do not depend on get no gradient and stay.
        named = own.backbone.named_parameters()
        trained = [p.requires_grad_(True) for n, p in named if self.parts == "all" or _DECODER.search(n)]
        if not trained:
            raise UserError("parts 'decoder': this backbone has no decoder of a known name; use parts 'all'.")
        names = () if maps is None else maps.names
        outputs = task.num_classes + channels(names)
        head = PixelClassifier(own.num_features, outputs, (), 1, task.seed).to(task.device)
        rate = self.training.learning_rate
        groups = [{"params": trained, "lr": rate * self.backbone_rate}, {"params": list(head.parameters()), "lr": rate}]
        segmenter = Segmenter(own, head, undeclared=task.undeclared, maps=names)
        averaged, evidence = self.training.run(segmenter, groups, task, head.train, self.unlabelled, maps)
        assert isinstance(averaged, Segmenter)
        further: dict[str, Any] = {"flips": self.training.flips_for(task), "undeclared": task.undeclared, "maps": names}
        fitted = Segmenter(averaged.extractor, averaged.head, **further)
        return Fitted(fitted.requires_grad_(False), evidence)


@dataclass
class FromScratch:
    """Train a network from random weights on the labelled images, and on unlabelled ones where they are used.

    Args:
        network: makes the network, image ``[B, C, *spatial]`` → logits ``[B, K, *spatial]`` (or a list of them, the
            last being read); in JSON a component with ``"_mode_": "callable"``.
        multiple: what the network needs the sides of its input to be multiples of.
        training: the recipe.
        unlabelled: how unlabelled images are used; None leaves them alone.
        steps: of the recipe, as earlier versions had it; None for what ``training`` says.
        members: networks of an ensemble, each trained by the whole recipe from weights and on crops of its own; their
            probabilities are averaged.
        axes: of volumes that are read whole: a network of two dimensions (or ``members``) for the slices along each of
            these axes, ``"axial"``, ``"coronal"``, ``"sagittal"``, all averaged. Crops are of ``window``'s two other
            numbers. None: the network reads images as they are.

    Raises:
        UserError: an unknown axis, or one that is there twice, or less than one member.
    """

    network: Callable[[], nn.Module]
    multiple: int = 32
    training: Training = field(default_factory=Training)
    unlabelled: Consistency | None = None
    steps: InitVar[int | None] = None
    members: int = 1
    axes: Sequence[str] | None = None

    needs_backbone = False

    def __post_init__(self, steps: int | None) -> None:
        if steps is not None:
            self.training = replace(self.training, steps=steps)
        if self.members < 1:
            raise UserError(f"members must be at least 1, got {self.members}.")
        if isinstance(self.axes, str):
            raise UserError(f"axes must be a list of axes, such as ['axial', 'coronal'], got {self.axes!r}.")
        if self.axes is not None and not self.axes:
            raise UserError("axes names none: give one or more, such as ['axial', 'coronal'], or null.")
        for axis in self.axes or ():
            axis_number(axis)
        if len(set(self.axes or ())) < len(self.axes or ()):
            raise UserError(f"axes names one twice: {', '.join(self.axes or ())}.")

    @property
    def uses_unlabelled(self) -> bool:
        """Whether a fit looks at unlabelled images."""
        return self.unlabelled is not None

    def fit(self, task: Task, extractor: Extractor | None = None, maps: MapLosses | None = None) -> Fitted:
        """Train on the labelled images, ``maps`` too; see :class:`medmdm.heads.task.Fitter`."""
        if self.axes and maps is not None:
            raise UserError("axes are for classes alone: maps of objects are of pictures and of slices along one axis.")
        tasks = {axis: task_of_slices(task, axis) for axis in self.axes} if self.axes else {"": task}
        every = [(axis, member) for axis in tasks for member in range(self.members)]
        fits = []
        for number, (axis, member) in enumerate(every):
            if len(every) > 1:
                logger.info("network %d of %d%s", number + 1, len(every), f", of {axis} slices" if axis else "")
            fits.append(self._fit(replace(tasks[axis], seed=task.seed + _APART * member), maps))
        networks, evidence = [network for network, _ in fits], [found for _, found in fits]
        whole = networks[0] if len(every) == 1 else nn.ModuleList(networks)
        flips = self.training.flips_for(next(iter(tasks.values())))
        fitted = PaddedNetwork(whole, flips=flips, axes=self.axes or (), **self._padding(task, maps)).eval()
        parameters = sum(p.numel() for p in fitted.parameters())
        others = {"members": evidence[1:]} if len(every) > 1 else {}
        return Fitted(fitted.requires_grad_(False), {**evidence[0], "parameters": parameters, **others})

    def _padding(self, task: Task, maps: MapLosses | None) -> dict[str, Any]:
        names = () if maps is None else maps.names
        padding = {"multiple": self.multiple, "num_classes": task.num_classes}
        return {**padding, "undeclared": task.undeclared, "maps": names}

    def _fit(self, task: Task, maps: MapLosses | None) -> tuple[nn.Module, dict[str, Any]]:
        """Train one network; return it and the evidence."""
        torch.manual_seed(task.seed)
        try:
            made = self.network()
        except (TypeError, ValueError) as error:
            kind = self.network.func if isinstance(self.network, functools.partial) else self.network
            raise cannot_be_built(getattr(kind, "__name__", str(kind)), error) from error
        network = PaddedNetwork(made, **self._padding(task, maps)).to(task.device)
        _try(network, task, self.training)
        groups = [{"params": list(network.parameters()), "lr": self.training.learning_rate}]
        train_mode = functools.partial(network.train, True)
        averaged, evidence = self.training.run(network, groups, task, train_mode, self.unlabelled, maps)
        assert isinstance(averaged, PaddedNetwork)
        return averaged.network, evidence


@torch.no_grad()
def _try(network: nn.Module, task: Task, training: Training) -> None:
    """Refuse a network that cannot read a batch of crops, before it is trained."""
    channels_first = len(task.examples[0].image), *training.crops_of(task)
    try:
        network.eval()(torch.zeros(training.batch_size, *channels_first, device=task.device))
    except (UserError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        said = str(error).strip().splitlines()[:1] or [type(error).__name__]
        hint = "its spatial_dims and in_channels must be those of the images"
        raise UserError(f"The network cannot read a crop of {list(channels_first)} ({said[0]}): {hint}.") from error
