"""Predictions for whole images and volumes, on the grid of their files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn
from torch.nn import functional as F

from medmdm.data.reading import LoadedCase
from medmdm.data.transforms.spatial import PadToSize, resample_to_shape
from medmdm.data.writers import SliceAssembler

__all__ = ["Prediction", "Predictor"]


class Prediction:
    """What a model says of a case, on the grid of its file.

    Args:
        probabilities: ``[K, *spatial]`` float32.
        uncertainty: ``[2, *spatial]``: entropy and disagreement between members, in nats; None if not asked for.
    """

    def __init__(self, probabilities: np.ndarray, uncertainty: np.ndarray | None = None) -> None:
        self.probabilities = probabilities
        self.uncertainty = uncertainty


class Predictor:
    """Run a model over images of any size: whole, or in sliding windows whose logits are blended by Gaussian weights.

    Args:
        model: image ``[B, C, *spatial]`` → logits ``[B, K, *spatial]``; uncertainty needs its ``with_uncertainty``. Of
            other maps, such as :class:`medmdm.segment.Surprise`, read :meth:`values`.
        window: size of the windows (the paper: 256 x 256).
        whole: read images whole instead.
        overlap: of neighbouring windows (the paper: 0.2).
        uncertainty: also give the maps of uncertainty.
        batch_size: windows at once.
        device: where to compute.
    """

    def __init__(
        self,
        model: nn.Module,
        window: Sequence[int],
        whole: bool = False,
        overlap: float = 0.2,
        uncertainty: bool = False,
        batch_size: int = 4,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model = model
        self.window = list(window)
        self.whole = whole
        self.overlap = overlap
        self.uncertainty = uncertainty and hasattr(model, "with_uncertainty")
        self.device = torch.device(device)
        self.inferer = SlidingWindowInferer(self.window, batch_size, overlap, mode="gaussian")

    @torch.no_grad()
    def image(self, image: Tensor) -> Tensor:
        """Return logits, with two maps of uncertainty behind them where asked for, of ``[C, H, W]`` in [-1, 1]."""
        function = self.model.with_uncertainty if self.uncertainty else self.model
        x = image[None].to(self.device)
        if self.whole:
            return function(x)[0].float().cpu()  # type: ignore[operator]
        padded = torch.as_tensor(PadToSize(self.window)(image))[None].to(self.device)
        out = self.inferer(padded, function)
        assert isinstance(out, Tensor)
        first = [(new - old) // 2 for new, old in zip(padded.shape[2:], x.shape[2:], strict=True)]
        places = (slice(None), *(slice(a, a + n) for a, n in zip(first, x.shape[2:], strict=True)))
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
