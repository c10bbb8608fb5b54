"""Networks that learn maps of objects beside the classes: what they find, what is saved, and the same bits."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import UNet
from monai.transforms import RandAffined
from torch import Tensor

from medmdm.artifacts.export import export_segmenter
from medmdm.artifacts.segmenter_file import load_segmenter, save_segmenter
from medmdm.components import to_config
from medmdm.data.reading import Example, LoadedCase
from medmdm.data.transforms.augmentation import Augmentation
from medmdm.heads.consistency import Consistency
from medmdm.heads.end_to_end import FineTuning, FromScratch
from medmdm.heads.multi_task import MultiTaskHead
from medmdm.heads.object_maps import targets
from medmdm.heads.pixel_classifier import PixelClassifierHead
from medmdm.heads.predictor import Predictor
from medmdm.heads.task import Reading, Task, random_crop, views
from medmdm.heads.training import Training
from medmdm.labels import IGNORE
from medmdm.metrics.instances import instance_scores
from medmdm.segment.masks import make_masks
from medmdm.segment.postprocessing import PostProcess
from tests.made import made_example, made_extractor, refused, task

SMALL: dict[str, Any] = {"spatial_dims": 2, "in_channels": 3, "channels": [8, 16, 32], "strides": [2, 2]}


def discs(seed: int, shape: tuple[int, int] = (64, 80)) -> Example:
    """Pairs of discs that touch along a short edge, in one colour on dark ground, under noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    objects = np.zeros(shape, np.int32)
    for number, (row, column) in enumerate([(16, 14), (16, 54), (46, 18), (46, 56)]):
        radius = int(rng.integers(6, 9))
        angle = rng.uniform(0, np.pi)
        for part, side in ((1, -1), (2, 1)):
            at = row + side * 0.86 * radius * np.sin(angle), column + 6 + side * 0.86 * radius * np.cos(angle)
            near = (y - at[0]) ** 2 + (x - at[1]) ** 2 <= radius**2
            objects[near & (objects == 0)] = 2 * number + part
    label = (objects > 0).astype(np.int64)
    image = np.where(label > 0, 0.5, -0.5) + 0.1 * rng.standard_normal((3, *shape))
    made = torch.from_numpy(image).float().clamp(-1, 1)
    return Example(made, torch.from_numpy(label), f"discs_{seed}", objects=torch.from_numpy(objects))


def network(channels: int) -> Any:
    return functools.partial(UNet, **SMALL, out_channels=channels, norm="batch")


def training(**arguments: Any) -> Training:
    settings = {"steps": 2, "batch_size": 2, "averaging": 0.5, "augmentation": None}
    return Training(**{**settings, **arguments})


def head(maps: tuple[str, ...] = ("distance", "hv"), channels: int = 5, **arguments: Any) -> MultiTaskHead:
    weights = arguments.pop("weights", "uncertainty")
    return MultiTaskHead(FromScratch(network(channels), 4, training(**arguments)), maps, weights)


def discs_task(count: int = 2, seed: int = 0) -> Task:
    return Task([discs(n) for n in range(count)], 2, Reading((64, 64)), seed)


def loaded(example: Example) -> LoadedCase:
    objects = None if example.objects is None else example.objects.numpy()
    shape = tuple(example.label.shape)
    return LoadedCase(
        {"case": example.case}, [example], (), None, example.label.numpy(), shape, ("", ""), None, None, objects
    )


@pytest.mark.slow
def test_touching_discs_that_the_mask_merges_are_told_apart() -> None:
    fitted = head(steps=60, learning_rate=2e-2, batch_size=4).fit(discs_task(4))
    predictor = Predictor(fitted.model, Reading((64, 64)))
    found: dict[str, list[float]] = {"components": [], "distance": [], "hover": []}
    for seed in (100, 101, 102):
        case = loaded(discs(seed))
        assert case.instances is not None
        for method, scores in found.items():
            made = make_masks(case, predictor, PostProcess(instances=method, remove_small_objects=20))
            assert made.instances is not None
            assert np.array_equal(made.instances > 0, made.mask > 0)  # the mask stays what the classes say
            scores.append(instance_scores(made.instances, case.instances)["aji"])
    means = {method: float(np.mean(scores)) for method, scores in found.items()}
    assert means["components"] < 0.6, means  # a pair counts once
    assert means["distance"] > 0.75, means
    assert means["hover"] > 0.75, means


def test_a_fit_has_the_same_bits_again() -> None:
    augmented = training(augmentation="histology")
    learner = FromScratch(network(5), 4, augmented)
    fits = []
    for _ in range(2):
        fits.append(MultiTaskHead(learner, ("distance", "hv")).fit(discs_task()))
        torch.rand(3)  # what else draws random numbers does not matter
    one, two = (fit.model.state_dict() for fit in fits)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert fits[0].evidence == fits[1].evidence
    assert set(fits[0].evidence["weights"]) == {"classes", "distance", "hv"}


def test_maps_of_no_weight_teach_nothing() -> None:
    """Other objects in the same classes change the network by as much as their maps weigh."""
    merged = Task([dataclasses.replace(discs(0), objects=discs(0).label.int())], 2, Reading((64, 64)))
    for weight in (0, 1):
        made = head(("distance",), 3, weights={"distance": weight}, precision="float32")
        one, two = (made.fit(one).model.state_dict() for one in (discs_task(1), merged))
        assert all(torch.equal(one[name], two[name]) for name in one) == (weight == 0)


def test_numbered_objects_change_no_crop() -> None:
    example = discs(0)
    plain = dataclasses.replace(example, objects=None)
    augmentation = training(augmentation="histology").augmentation_for(discs_task())
    cut = functools.partial(random_crop, window=(64, 64), seed=3, flips=(0, 1))
    one, two = (cut(e, augmentation=augmentation, foreground=0.5) for e in (example, plain))
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.label, two.label)
    assert two.objects is None


def test_a_network_of_too_few_channels_is_refused() -> None:
    refused(
        "gives 2 channels, but 2 classes and distance are 3: set its out_channels",
        head(("distance",), 2).fit,
        discs_task(),
    )


@pytest.mark.parametrize("seed", range(4))
def test_crops_carry_their_objects(seed: int) -> None:
    example = discs(seed, (50, 80))  # padded
    bent = RandAffined(["image", "label"], prob=1, rotate_range=0.5, mode=("bilinear", "nearest"))
    crop = random_crop(example, (64, 48), seed, (0, 1), Augmentation(bent, turns=True), 0.5)
    assert crop.objects is not None
    known = crop.label != IGNORE
    assert torch.equal(crop.objects[known] > 0, crop.label[known] > 0)
    assert not crop.objects[~known].any()
    assert set(crop.objects.unique().tolist()) <= set(range(9))
    for view in views(example, "windows", (32, 32)):
        assert view.objects is not None
        assert torch.equal(view.objects > 0, view.label == 1)


def test_a_mirrored_crop_has_maps_of_the_mirrored_objects() -> None:
    example = discs(0)
    mirrored = [random_crop(example, (64, 80), seed, (1,)) for seed in range(20)]
    turned = [one.objects for one in mirrored if not torch.equal(one.image, example.image)]
    assert example.objects is not None
    assert turned
    own, other = targets(example.objects, ["hv"]), targets(turned[0], ["hv"])  # type: ignore[arg-type]
    torch.testing.assert_close(other[0], -own[0].flip(1))
    torch.testing.assert_close(other[1], own[1].flip(1))


def outputs(model: Any, image: Tensor) -> list[Tensor]:
    return [model(image), model.with_uncertainty(image), model.with_maps(image), model.with_maps(image, True)]


@pytest.mark.parametrize("tuned", [False, True], ids=["scratch", "fine-tuned"])
@pytest.mark.slow
def test_a_saved_segmenter_loads_again(tuned: bool, tmp_path: Path) -> None:
    made: MultiTaskHead = head(("hv", "boundary"))
    if tuned:
        made = MultiTaskHead(FineTuning(training(), backbone_rate=0.0), ("hv", "boundary"))
    assert (made.needs_backbone, made.uses_unlabelled) == (tuned, False)
    extractor = made_extractor() if tuned else None
    fitted = made.fit(discs_task(), extractor)
    image = discs(9).image[None]
    plan: dict[str, Any] = {"task": {}, "backbone": {"channels": 3}}
    if not tuned:
        plan["network"] = to_config(made.learner.network)  # type: ignore[union-attr]
    save_segmenter(tmp_path / "segmenter.pt", fitted.model, plan)
    model, kept = load_segmenter(tmp_path / "segmenter.pt")
    assert (kept["padding"] if not tuned else kept)["maps"] == ["hv", "boundary"]
    assert model.maps == ("hv", "boundary")
    shapes = [out.shape[1] for out in outputs(model, image)]
    assert shapes == [2, 4, 5, 7]
    for one, two in zip(outputs(fitted.model, image), outputs(model, image), strict=True):
        assert torch.equal(one, two)
    logits, uncertain, maps, both = outputs(model, image)
    assert torch.equal(maps[:, :2], logits)
    assert torch.equal(both, torch.cat([uncertain, maps[:, 2:]], 1))
    assert export_segmenter(tmp_path / "segmenter.pt", tmp_path / "segmenter.ts", (64, 80)) <= 1e-4
    assert torch.jit.load(tmp_path / "segmenter.ts")(image).shape == (1, 2, 64, 80)


def test_predictions_of_a_model_that_is_right() -> None:
    """Maps travel through windows and mirrored images as they are."""
    example = discs(5)

    class Right(torch.nn.Module):
        maps = ("hv", "boundary")

        def forward(self, image: Tensor) -> Tensor:
            return image[:, :2]

        def with_maps(self, image: Tensor, uncertainty: bool = False) -> Tensor:
            return image

    assert example.objects is not None
    maps = targets(example.objects, ("hv", "boundary"))
    maps[2] = torch.logit(maps[2].clamp(1e-3, 1 - 1e-3))
    image = torch.cat([torch.stack([-example.label, example.label]).float(), maps])
    case = loaded(dataclasses.replace(example, image=image))
    predictor = Predictor(Right(), Reading((32, 40)))
    found = predictor.case(case)
    np.testing.assert_allclose(found.maps["hv"], maps[:2].numpy(), atol=1e-5)
    np.testing.assert_allclose(found.maps["boundary"], maps[2:].sigmoid().numpy(), atol=1e-5)
    np.testing.assert_allclose(found.probabilities, image[:2].softmax(0).numpy(), atol=1e-5)
    made = make_masks(case, predictor, PostProcess(instances="hover"))
    assert made.instances is not None
    assert made.instances.max() == 8
    assert make_masks(case, predictor, PostProcess()).instances is None


def test_with_unlabelled_images() -> None:
    images = [discs(7).image]
    learner = FromScratch(network(3), 4, training(steps=3), Consistency(batch_size=1, tolerance=100))
    made = MultiTaskHead(learner, ["centres"])
    assert made.uses_unlabelled
    fitted = made.fit(dataclasses.replace(discs_task(), unlabelled=images))
    assert fitted.evidence["unlabelled"]["images"] == 1


def test_from_json() -> None:
    parts = {"_target_": "UNet", "_mode_": "callable", **SMALL, "out_channels": 4}
    recipe = {"_target_": "medmdm.heads.Training", "steps": 1}
    learner = {"_target_": "medmdm.heads.FromScratch", "network": parts, "multiple": 4, "training": recipe}
    config = {"_target_": "medmdm.heads.MultiTaskHead", "learner": learner, "maps": ["hv"], "weights": {"hv": 2}}
    made = ConfigParser({"head": json.loads(json.dumps(config))}).get_parsed_content("head")
    assert made.fit(discs_task()).evidence["weights"] == {"classes": 1, "hv": 2}


def test_mistakes_get_a_sentence() -> None:
    refused("labels that number objects", head().fit, task([made_example()]))
    refused("did you mean 'distance'", head, ("distanc",))
    refused("learner is a PixelClassifierHead", MultiTaskHead, PixelClassifierHead())
    volume = made_example(0, (8, 16, 12))
    volume = dataclasses.replace(volume, objects=volume.label.int())
    refused("not for volumes", head(("hv",)).fit, task([volume], window=(4, 8, 8)))
    refused("which needs the map 'hv'", PostProcess(instances="hover"), np.zeros((2, 4, 5)))
    maps = {"distance": np.zeros((1, 4, 6))}
    refused("the map has the shape", PostProcess(instances="distance"), np.eye(2)[:, :, None], maps=maps)
