"""How one step changes the weights: precision, micro-batches, clipping, optimiser, schedule, average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from medmdm.averaging import EMA, unwrap
from medmdm.errors import UserError

AMP_DTYPES = {None: None, "float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Optimization:
    """The step of an optimiser and what belongs to it.

    Args:
        optimizer: over the network's parameters.
        lr_scheduler: stepped after each optimiser step, or None.
        ema: moving average of the network's weights, or None.
        amp_dtype: ``"bfloat16"`` or ``"float16"`` for mixed precision on any device; "float32" or None for none.
        accumulation_steps: micro-batches into which each batch is cut, at least 1.
        max_grad_norm: clip the gradient's global L2 norm to this, or None.
    """

    optimizer: torch.optim.Optimizer
    lr_scheduler: Any | None = None
    ema: EMA | None = None
    amp_dtype: str | None = None
    accumulation_steps: int = 1
    max_grad_norm: float | None = None
    scaler: torch.amp.GradScaler = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.amp_dtype not in AMP_DTYPES:
            raise UserError(f"amp_dtype must be 'bfloat16', 'float16', 'float32' or null, got {self.amp_dtype!r}.")
        if self.accumulation_steps < 1:
            raise UserError(f"accumulation_steps must be at least 1, got {self.accumulation_steps}.")
        device = self.optimizer.param_groups[0]["params"][0].device.type
        self.scaler = torch.amp.GradScaler(device, enabled=self.amp_dtype == "float16")

    @property
    def dtype(self) -> torch.dtype | None:
        """What mixed precision computes in; None without."""
        return AMP_DTYPES[self.amp_dtype]

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context of mixed precision, which changes nothing without an ``amp_dtype``."""
        return torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def step(self, network: nn.Module, require_finite: Callable[[str, Tensor], None]) -> Tensor:
        """Take one step along the gradients that lie on the network.

        Args:
            network: whose gradients are clipped and whose weights are averaged.
            require_finite: called with ``"gradient"`` and its norm before the weights change.

        Returns:
            The gradient's norm before clipping.
        """
        self.scaler.unscale_(self.optimizer)
        bound = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        grad_norm = nn.utils.clip_grad_norm_(network.parameters(), bound)
        if not self.scaler.is_enabled():  # the scaler skips such a step by itself
            require_finite("gradient", grad_norm)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # else the step was skipped
            if self.ema is not None:
                self.ema.update(network)
            if self.lr_scheduler is not None:
                self.lr_scheduler.step()
        return grad_norm

    def averaged(self, network: nn.Module) -> nn.Module:
        """Return the network with the averaged weights; without an average the network itself."""
        return unwrap(network) if self.ema is None else self.ema.module

    def state_dict(self) -> dict[str, Any]:
        """Return the state of optimiser, schedule, average and scaler."""
        return {name: None if part is None else part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned; further keys are left alone."""
        for name, part in self._parts().items():
            if part is not None:
                part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("ema", "optimizer", "lr_scheduler", "scaler")}
