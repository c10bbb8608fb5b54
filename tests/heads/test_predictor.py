"""Rows of windows give what MONAI's sliding windows give, to the bit, and hold few of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from medmdm.data.reading import Example, LoadedCase
from medmdm.heads.predictor import Prediction, Predictor
from medmdm.heads.segmenter import PaddedNetwork
from medmdm.heads.task import Reading
from medmdm.heads.window_rows import reads_by_rows, window_rows
from medmdm.segment.masks import make_masks
from medmdm.segment.postprocessing import PostProcess


def loaded(image: Tensor, shape: Sequence[int] | None = None) -> LoadedCase:
    label = torch.zeros(image.shape[1:], dtype=torch.long)
    return LoadedCase({"case": "a"}, [Example(image, label)], (), None, None, tuple(shape or image.shape[1:]), ("", ""))


def network(classes: int = 3) -> PaddedNetwork:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, classes, 3, padding=1))
    return PaddedNetwork(layers, multiple=8).eval()


SIZES = [(64, 64), (65, 64), (64, 131), (200, 64), (203, 149), (71, 300)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("window", "overlap", "mode", "batch"),
    [((64, 64), 0.2, "gaussian", 4), ((32, 48), 0.5, "gaussian", 3), ((64, 64), 0.0, "constant", 1),
     ((16, 64), (0.75, 0.1), "gaussian", 5), (32, 0.25, "gaussian", 64)],
)  # fmt: skip
def test_the_bits_of_monai(size: tuple[int, int], window: object, overlap: object, mode: str, batch: int) -> None:
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    inferer, model = SlidingWindowInferer(window, batch, overlap, mode), network()  # type: ignore[arg-type]
    with torch.no_grad():
        expected = inferer(image[None], model)[0]
        rows = [
            part.clone() for _, part in window_rows(lambda *place: image[(slice(None), *place)], size, inferer, model)
        ]
    assert torch.equal(torch.cat(rows, dim=1), expected)


@pytest.mark.parametrize("uncertainty", [False, True])
@pytest.mark.parametrize("flips", [(), (0, 1)])
def test_masks_and_maps_are_those_of_the_whole_image(uncertainty: bool, flips: tuple[int, ...]) -> None:
    case = loaded(torch.rand(3, 150, 97, generator=torch.Generator().manual_seed(2)) * 2 - 1)
    model = network()
    model.flips = flips
    predictor = Predictor(model, Reading((64, 64)), uncertainty)
    values = predictor.values(case)  # by MONAI's inferer
    whole = Prediction(torch.from_numpy(values[:3]).softmax(0).numpy(), values[3:] if uncertainty else None)
    for postprocess in (
        PostProcess(remove_small_objects=20, fill_holes_below=20, instances="watershed"),
        PostProcess(argmax=False, threshold=0.34),
        PostProcess(threshold=0.4),
    ):
        expected, found = postprocess(whole.probabilities), make_masks(case, predictor, postprocess)
        assert len(np.unique(expected["mask"])) > 1
        assert found.probabilities is None
        np.testing.assert_array_equal(found.mask, expected["mask"])
        if expected["instances"] is not None:
            np.testing.assert_array_equal(found.instances, expected["instances"])
        if uncertainty:
            np.testing.assert_array_equal(found.uncertainty, whole.uncertainty)
    kept = make_masks(case, predictor, PostProcess(), keep=True)
    np.testing.assert_allclose(kept.probabilities, whole.probabilities, rtol=0, atol=1e-7)  # softmax, by vector lengths
    for threshold in (0.3, float(np.median(whole.probabilities.max(0)))):  # rows choose what the kept ones say
        cut = PostProcess(threshold=threshold)
        np.testing.assert_array_equal(make_masks(case, predictor, cut).mask, cut(kept.probabilities)["mask"])
    if uncertainty:
        np.testing.assert_array_equal(kept.uncertainty, whole.uncertainty)


def test_few_rows_are_in_memory() -> None:
    read, held = [], []

    def rows(place: slice, columns: slice) -> Tensor:
        read.append(place.stop)
        return torch.zeros(3, place.stop - place.start, columns.stop - columns.start)

    finished = 0
    for first, part in window_rows(rows, (4000, 64), SlidingWindowInferer((32, 32), 4, 0.25, "gaussian"), network()):
        assert first == finished
        finished += part.shape[1]
        held.append(read[-1] - finished)
    assert finished == 4000
    assert max(held) <= 2 * 32


@pytest.mark.parametrize(
    "inferer",
    [SlidingWindowInferer(32, device="cpu"), SlidingWindowInferer(32, buffer_steps=2),
     SlidingWindowInferer((32, 32), cache_roi_weight_map=True), SlidingWindowInferer(32, with_coord=True)],
)  # fmt: skip
def test_other_inferers_read_as_they_are_set(inferer: SlidingWindowInferer) -> None:
    case = loaded(torch.zeros(3, 64, 64))
    assert not reads_by_rows(inferer)
    assert Predictor(network(), Reading((32, 32)), inferer=inferer).choice(case, PostProcess().classes) is None


@pytest.mark.parametrize(
    ("reading", "size", "shape"),
    [(Reading((32, 32), whole=True), (64, 64), None), (Reading((32, 32)), (20, 64), None),
     (Reading((32, 32)), (64, 64), (80, 80))],
)  # fmt: skip
def test_what_needs_the_whole_image(reading: Reading, size: tuple[int, int], shape: tuple[int, int] | None) -> None:
    case = loaded(torch.zeros(3, *size), shape)
    assert Predictor(network(), reading).choice(case, PostProcess().classes) is None
    assert make_masks(case, Predictor(network(), reading), PostProcess()).mask.shape == case.shape
