"""What stands beside the reconstruction in an objective: what a term is given, its weight, its own parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn

from medmdm.averaging import unwrap
from medmdm.errors import UserError


@dataclass(frozen=True)
class Restored:
    """What a term sees of a micro-batch.

    Args:
        images: clean images, ``[B, C, *spatial]`` in [-1, 1].
        x_t: what the network was shown.
        t: ``[B]`` timesteps.
        visible: ``[B, 1, *spatial]`` in {0, 1}.
        pred: what the network made of it, ``[B, C, *spatial]``, float32.
        features: the network's decoder blocks on ``x_t`` by number, with gradients.
        student: the network.
        teacher: the network with the averaged weights, in evaluation mode.
        batch: what the data set knows of the images, such as ``position`` ``[B]``.
        generators: one for each image.
        progress: how much of the run is done, in [0, 1).
    """

    images: Tensor
    x_t: Tensor
    t: Tensor
    visible: Tensor
    pred: Tensor
    features: Mapping[int, Tensor]
    student: nn.Module
    teacher: nn.Module
    batch: Mapping[str, Tensor] = field(default_factory=dict)
    generators: Sequence[torch.Generator] = ()
    progress: float = 0.0

    def taught(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Return what the teacher's decoder blocks make of clean images: t is 0, nothing is hidden."""
        clean = torch.zeros(len(images), dtype=torch.long, device=images.device)
        features: list[Tensor] = self.teacher.features(images, clean, list(blocks))  # type: ignore[operator]
        return features


class Term(nn.Module):
    """Base of all terms: called with :class:`Restored`, returns a scalar, a mean over images.

    Its value is multiplied by :meth:`strength` and added to the reconstruction loss. A term with parameters (a
    projector, a discriminator) trains them with an AdamW of its own; they, its optimiser and its buffers are part of
    the checkpoint, not of ``model.pt``.

    Args:
        weight: beside the reconstruction loss, at least 0.
        warmup: share of the run over which the weight rises from 0, in [0, 1].
        learning_rate: of the term's own parameters.

    Raises:
        UserError: a number is out of range.
    """

    config: dict[str, Any]
    blocks: Sequence[int] = ()  # decoder blocks of the network that it reads

    def __init__(self, weight: float = 1.0, warmup: float = 0.0, learning_rate: float = 1e-3) -> None:
        super().__init__()
        if weight < 0 or not 0 <= warmup <= 1 or learning_rate <= 0:
            found = f"{weight}, {warmup} and {learning_rate}"
            name = type(self).__name__
            raise UserError(
                f"{name}: weight must be at least 0, warmup a share and learning_rate positive, got {found}."
            )
        self.weight, self.warmup, self.learning_rate = weight, warmup, learning_rate
        self.optimizer: torch.optim.Optimizer | None = None

    def make(self, layers: Callable[[], None], seed: int) -> None:
        """Make the term's layers from a seed of their own, and their optimiser.

        So a network beside a term starts from the weights that it has without.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers()
        parameters = [p for p in self.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=0.0)

    def strength(self, progress: float) -> float:
        """Return the weight when ``progress`` of the run is done."""
        return self.weight * (min(1.0, progress / self.warmup) if self.warmup else 1.0)

    def own_loss(self, seen: Restored) -> Tensor | None:
        """Return a loss for the term's own parameters alone, which :meth:`strength` does not change; None for none."""
        return None

    def after_step(self) -> None:
        """Do what is due once after each step of the optimisers."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "module": self.state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` returned."""
        self.load_state_dict(state["module"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])


def step_terms(terms: Sequence[Term], scaler: torch.amp.GradScaler) -> None:
    """Let each term take its own step along the gradients that lie on it."""
    for term in terms:
        # Without gradients, as before its warm-up, an optimiser does not step, in one process or in many.
        if term.optimizer is not None and any(p.grad is not None for p in term.parameters()):
            _average_gradients(term)
            scaler.step(term.optimizer)
        term.after_step()


def _average_gradients(term: Term) -> None:
    """Make a term's gradients the mean over all processes, as DistributedDataParallel does for the network."""
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        for parameter in term.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                distributed.all_reduce(parameter.grad)
                parameter.grad /= distributed.get_world_size()


def gathered(values: Tensor) -> Tensor:
    """Return ``[B * processes, ...]``: those of all processes, with gradients for one's own."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return values
    everyone = [torch.empty_like(values) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everyone, values.detach().contiguous())
    everyone[distributed.get_rank()] = values
    return torch.cat(everyone)


def pooled(features: Tensor) -> Tensor:
    """Return the mean over the spatial axes, ``[B, C]``, in float32."""
    return features.float().flatten(2).mean(2)


@contextlib.contextmanager
def keep_features(network: nn.Module, blocks: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """While open, each pass of the network leaves the outputs of decoder ``blocks`` in the mapping.

    Raises:
        UserError: the network has no such block, or does not say which modules its blocks are.
    """
    kept: dict[int, Tensor] = {}
    if not blocks:
        yield kept
        return
    inner = unwrap(network)
    if not hasattr(inner, "block_modules"):
        raise UserError(f"terms read decoder blocks, which {type(inner).__name__} does not have.")
    modules = inner.block_modules()  # type: ignore[operator]
    inner.check_blocks(blocks)  # type: ignore[operator]

    def keep(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            kept[number] = output

        return hook

    handles = [modules[number].register_forward_hook(keep(number)) for number in blocks]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
