"""Predictions for whole images and volumes, on the grid of their files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.inferers import Inferer
from torch import Tensor, nn
from torch.nn import functional as F

from medmdm.data.reading import LoadedCase
from medmdm.data.transforms.spatial import PadToSize, resample_to_shape
from medmdm.data.writers import SliceAssembler
from medmdm.heads.task import Reading

__all__ = ["Prediction", "Predictor"]


@dataclass(frozen=True)
class Prediction:
    """What a model says of a case, on the grid of its file.

    Args:
        probabilities: ``[K, *spatial]`` float32.
        uncertainty: ``[2, *spatial]``: entropy and disagreement between members, in nats; None if not asked for.
    """

    probabilities: np.ndarray
    uncertainty: np.ndarray | None = None


@dataclass
class Predictor:
    """Run a model over images of any size: whole, or in sliding windows whose logits are blended by Gaussian weights.

    Args:
        model: image ``[B, C, *spatial]`` → logits ``[B, K, *spatial]``; uncertainty needs its ``with_uncertainty``. Of
            other maps, such as :class:`medmdm.segment.ReconstructionError`, read :meth:`values`.
        reading: windows or whole images.
        uncertainty: also give the maps of uncertainty, where the model has them.
        batch_size: windows at once.
        device: where to compute.
        inferer: of MONAI's, where images are read otherwise than ``reading`` says.
    """

    model: nn.Module
    reading: Reading
    uncertainty: bool = False
    batch_size: int = 4
    device: torch.device | str = "cpu"
    inferer: Inferer | None = None

    def __post_init__(self) -> None:
        self.uncertainty = self.uncertainty and hasattr(self.model, "with_uncertainty")
        self.device = torch.device(self.device)
        self.inferer = self.inferer or self.reading.inferer(self.batch_size)

    @torch.no_grad()
    def image(self, image: Tensor) -> Tensor:
        """Return logits, with two maps of uncertainty behind them where asked for, of ``[C, H, W]`` in [-1, 1]."""
        padded = image if self.reading.whole else torch.as_tensor(PadToSize(self.reading.window)(image))
        function = self.model.with_uncertainty if self.uncertainty else self.model
        assert self.inferer is not None
        out = self.inferer(padded[None].to(self.device), function)
        assert isinstance(out, Tensor)
        first = [(new - old) // 2 for new, old in zip(padded.shape[1:], image.shape[1:], strict=True)]
        places = (slice(None), *(slice(a, a + n) for a, n in zip(first, image.shape[1:], strict=True)))
        return out[0][places].float().cpu()

    def case(self, case: LoadedCase) -> Prediction:
        """Return what the model says of a picture or a volume, resampled to the grid of its file."""
        values = self.values(case, self._probabilities)
        if self.uncertainty:
            return Prediction(values[:-2], values[-2:])
        return Prediction(values)

    def values(self, case: LoadedCase, function: Callable[[Tensor], Tensor] | None = None) -> np.ndarray:
        """Return what the model gives for a picture or a volume, ``[N, *spatial]`` float32 on the grid of its file.

        Args:
            case: the picture or volume; of a volume slices that were left out stay 0.
            function: of what :meth:`image` gives, before it is resampled; None: nothing is done to it.
        """

        def read(image: Tensor, shape: Sequence[int]) -> Tensor:
            values = self.image(image) if function is None else function(self.image(image))
            return values if tuple(values.shape[1:]) == tuple(shape) else resample_to_shape(values, shape)

        if case.slicing is None:
            return read(case.examples[0].image, case.shape).numpy()
        assembler: SliceAssembler | None = None
        for number, example in zip(case.slices, case.examples, strict=True):
            values = read(example.image, case.slicing.slice_shape).numpy()
            if assembler is None:
                assembler = SliceAssembler(case.slicing, len(values), "float32")
            assembler.add(number, values)
        assert assembler is not None  # volumes have slices
        return assembler.volume()

    def _probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits into probabilities and leave the maps of uncertainty behind them as they are."""
        count = len(logits) - 2 if self.uncertainty else len(logits)
        return torch.cat([F.softmax(logits[:count], dim=0), logits[count:]])
