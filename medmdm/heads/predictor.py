"""Predictions for whole cases: in windows, whole, slice by slice, or row by row."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from monai.inferers import Inferer, SlidingWindowInferer
from monai.utils import fall_back_tuple
from torch import Tensor, nn
from torch.nn import functional as F

from medmdm.data.reading import LoadedCase, PictureInParts
from medmdm.data.transforms.spatial import PadToSize, resample_to_shape
from medmdm.data.writers import SliceAssembler
from medmdm.errors import UserError
from medmdm.heads.object_maps import activated, by_name, channels
from medmdm.heads.task import Reading
from medmdm.heads.window_rows import reads_by_rows, window_rows
from medmdm.progress import followed

_ROWS = 64  # whose probabilities are in memory, of a large picture
_WIDE = 2048  # columns that are worked on together; windows across their ends are read twice


@dataclass(frozen=True)
class Prediction:
    """What a model says of a case, on the grid of its file.

    Args:
        probabilities: ``[K, *spatial]`` float32.
        uncertainty: ``[2, *spatial]``: entropy and disagreement between members, in nats; None if not asked for.
        maps: of objects, by name, ``[channels, *spatial]``, see :mod:`medmdm.heads.object_maps`; of a model that gives
            them beside the classes.
    """

    probabilities: np.ndarray
    uncertainty: np.ndarray | None = None
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """Which class each pixel of a picture is of, its probabilities not being kept.

    Args:
        classes: ``[*spatial]``, on the grid of the file.
        uncertainty: as of :class:`Prediction`.
    """

    classes: np.ndarray
    uncertainty: np.ndarray | None = None


def on_file_grid(case: LoadedCase, read: Callable[[int, Tensor], Tensor]) -> np.ndarray:
    """Return values of a picture or of a volume's slices on the grid of its file, ``[N, *spatial]`` float32.

    Args:
        case: as it was read; slices of a volume that were left out stay 0.
        read: number of an example of the case and its image ``[C, *spatial]`` -> ``[N, *spatial]``.
    """

    def resampled(number: int, image: Tensor, shape: Sequence[int]) -> np.ndarray:
        values = read(number, image)
        return (values if tuple(values.shape[1:]) == tuple(shape) else resample_to_shape(values, shape)).numpy()

    if case.slicing is None:
        return resampled(0, case.examples[0].image, case.shape)
    if not case.slices:  # read whole
        shape = case.slicing.num_slices, *case.slicing.slice_shape
        return case.slicing.assembled([resampled(0, case.examples[0].image, shape)])
    assembler: SliceAssembler | None = None
    pairs = enumerate(zip(case.slices, case.examples, strict=True))
    for number, (place, example) in followed(pairs, f"slices of {case.name}", len(case.slices)):
        values = resampled(number, example.image, case.slicing.slice_shape)
        assembler = assembler or SliceAssembler(case.slicing, len(values), "float32")
        assembler.add(place, values)
    assert assembler is not None  # volumes have slices
    return assembler.volume()


def inside(shape: Sequence[int], padded: Sequence[int]) -> tuple[slice, ...]:
    """Return where an image of ``shape`` lies in what :class:`medmdm.data.PadToSize` made of it, channels first."""
    starts = [(new - old) // 2 for new, old in zip(padded, shape, strict=True)]
    return (slice(None), *(slice(a, a + n) for a, n in zip(starts, shape, strict=True)))


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

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the maps of objects that the model gives beside the classes."""
        return tuple(getattr(self.model, "maps", ()))

    def image(self, image: Tensor) -> Tensor:
        """Return logits, with two maps of uncertainty behind them where asked for, of ``[C, *spatial]`` in [-1, 1]."""
        function: Any = self.model.with_uncertainty if self.uncertainty else self.model
        return self._read(image, function)

    @torch.no_grad()
    def _read(self, image: Tensor, function: Callable[..., Any]) -> Tensor:
        padded = image if self.reading.whole else torch.as_tensor(PadToSize(self.reading.window)(image))
        assert self.inferer is not None
        out = self.inferer(padded[None].to(self.device), function)
        assert isinstance(out, Tensor)
        return out[0][inside(image.shape[1:], padded.shape[1:])].float().cpu()

    def case(self, case: LoadedCase) -> Prediction:
        """Return what the model says of a picture or a volume, resampled to the grid of its file."""
        further: dict[str, np.ndarray] = {}
        if not self.maps:
            values = self._gathered(case) if self._by_rows(case) else self.values(case, self._probabilities)
        else:
            count, model = channels(self.maps), cast(Any, self.model)
            function = functools.partial(model.with_maps, uncertainty=self.uncertainty)

            def read(_: int, image: Tensor) -> Tensor:
                out = self._read(image, function)
                return torch.cat([self._probabilities(out[:-count]), activated(out[-count:], self.maps)])

            values = on_file_grid(case, read)
            values, further = values[:-count], by_name(values[-count:], self.maps)
        return Prediction(values[:-2], values[-2:], further) if self.uncertainty else Prediction(values, None, further)

    def values(self, case: LoadedCase, function: Callable[[Tensor], Tensor] | None = None) -> np.ndarray:
        """Return what the model gives for a picture or a volume, ``[N, *spatial]`` float32 on the grid of its file.

        Slices of a volume that were left out stay 0. ``function`` is applied to what :meth:`image` gives, before it is
        resampled.
        """
        return on_file_grid(
            case, lambda _, image: self.image(image) if function is None else function(self.image(image))
        )

    def choice(self, case: LoadedCase, choose: Callable[[np.ndarray], np.ndarray]) -> Choice | None:
        """Choose the class of each pixel of a picture while it is read in windows, a few rows at a time.

        Args:
            case: as it was read.
            choose: probabilities ``[K, rows, W]`` -> classes ``[rows, W]``, each pixel by itself.

        Returns:
            What ``choose`` would have made of :meth:`case`, to the bit; None where only :meth:`case` can read it:
            volumes, pictures read whole, resampled or below the window's size, and inferers of other kinds.
        """
        if not self._by_rows(case):
            return None
        size = case.image_size
        classes: np.ndarray | None = None
        maps = np.empty((2, *size), np.float32) if self.uncertainty else None
        done = 0
        for values in self._rows(case):
            chosen = choose(values[:-2] if self.uncertainty else values)
            classes = np.empty(size, chosen.dtype) if classes is None else classes
            rows = slice(done, done + len(chosen))
            classes[rows], done = chosen, rows.stop
            if maps is not None:
                maps[:, rows] = values[-2:]
        assert classes is not None  # pictures have rows
        return Choice(classes, maps)

    def _by_rows(self, case: LoadedCase) -> bool:
        if case.slicing is not None or self.reading.whole or not reads_by_rows(self.inferer):
            return False
        pairs = zip(case.image_size, case.shape, self.reading.window, strict=False)
        return all(window <= n == own for n, own, window in pairs)

    def _gathered(self, case: LoadedCase) -> np.ndarray:
        """Return what :meth:`_rows` yields, in one array: sums and weights of the windows are never there for all."""
        found: np.ndarray | None = None
        done = 0
        for values in self._rows(case):
            found = np.empty((len(values), *case.image_size), np.float32) if found is None else found
            found[:, done : done + values.shape[1]] = values
            done += values.shape[1]
        assert found is not None  # pictures have rows
        return found

    def _rows(self, case: LoadedCase) -> Iterator[np.ndarray]:
        """Yield probabilities, and the maps behind them, of finished rows."""
        function: Any = self.model.with_uncertainty if self.uncertainty else self.model

        parts = case.examples if isinstance(case.examples, PictureInParts) else None

        def read(rows: slice, columns: slice) -> Tensor:
            if parts is None:
                return case.rows(rows.start, rows.stop)[:, :, columns].to(self.device)
            return torch.from_numpy(parts.pixels[:, rows, columns])  # scaled when a window is read

        def scaled(windows: Tensor) -> Any:
            if parts is not None:
                windows = torch.stack([parts.scale(window.numpy()) for window in windows]).to(self.device)
            return function(windows)

        assert isinstance(self.inferer, SlidingWindowInferer)
        for _, logits in window_rows(read, case.image_size, self.inferer, scaled, in_memory=parts is not None):
            for part in logits.float().cpu().split(_ROWS, dim=1):
                yield self._probabilities(part).numpy()
            del logits, part  # before the next ones are made

    def parts(
        self,
        read: Callable[[slice, slice], Tensor],
        size: tuple[int, int],
        wanted: Callable[[slice, slice], bool],
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """Read a picture of any size, such as a slide, part by part; memory does not grow with it.

        Args:
            read: gives rows and columns of the picture, ``[C, h, w]`` in [-1, 1].
            size: its rows and columns.
            wanted: whether a window at these rows and columns is to be read.

        Yields:
            First row, first column, and probabilities ``[K, h, w]``, NaN where no window was read; as :meth:`case`
            has them where all are.

        Raises:
            UserError: the model reads pictures whole, or by an inferer of another kind, or the picture is smaller than
                a window.
        """
        if self.reading.whole or not reads_by_rows(self.inferer):
            how = "reads pictures whole" if self.reading.whole else "has an inferer of another kind"
            raise UserError(f"slides are read in sliding windows, and the segmenter {how}: fit one that reads windows.")
        assert isinstance(self.inferer, SlidingWindowInferer)
        window = fall_back_tuple(self.inferer.roi_size, size)
        if any(n < least for n, least in zip(size, window, strict=True)):
            raise UserError(
                f"a slide has {size[0]} x {size[1]} pixels at the segmenter's resolution, less than its window of "
                f"{window[0]} x {window[1]}: save that level as PNG, which is read as a picture."
            )

        def there(rows: slice, columns: slice) -> Tensor:
            return read(rows, columns).to(self.device)

        for column in range(0, size[1], _WIDE):
            columns = column, min(column + _WIDE, size[1])
            for row, logits in window_rows(there, size, self.inferer, self.model, columns, wanted):
                yield row, column, F.softmax(logits.float().cpu(), dim=0).numpy()

    def _probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits into probabilities and leave the maps of uncertainty behind them as they are."""
        count = len(logits) - 2 if self.uncertainty else len(logits)
        return torch.cat([F.softmax(logits[:count], dim=0), logits[count:]])
