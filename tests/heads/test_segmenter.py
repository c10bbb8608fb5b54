import numpy as np
import pytest
import scipy.stats
import torch
from monai.networks.nets import BasicUNet, BasicUNetPlusPlus, UNet
from monai.networks.nets.basic_unet import UpCat
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from medmdm.backbones.cache import CachedExtractor
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.backbones.feature_maps import stack
from medmdm.corruption import PatchMasking
from medmdm.errors import UserError
from medmdm.heads.classifier_network import LinearClassifier, PixelClassifier
from medmdm.heads.segmenter import PaddedNetwork, Segmenter, entropy
from tests.heads.test_classifier_network import published, varied
from tests.made import Make, made_example, made_extractor, refused

pytestmark = pytest.mark.usefixtures("no_grad")
SIZE = (13, 22)


@pytest.fixture(scope="module")
def extractor(make: Make) -> FeatureExtractor:
    network = make(channel_mult=(1, 2), attention_resolutions=(2,))
    return FeatureExtractor(network, (0, 2), (300,), PatchMasking(patch_size=4), normalize="rms")


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def head_of(extractor: FeatureExtractor, members: int, classes: int = 3) -> PixelClassifier:
    head = varied(PixelClassifier(extractor.num_features, classes, (16, 8), members))
    with torch.no_grad():
        head.weights[-1].mul_(8)  # members that agree on everything would show nothing
    return head


def probabilities(extractor: FeatureExtractor, head: PixelClassifier, image: Tensor) -> NDArray:
    """``[M, B, K, *spatial]`` of each member, by the plain way."""
    with torch.no_grad():
        x = stack(extractor(image), extractor.padded_size(SIZE))[..., : SIZE[0], : SIZE[1]]
        rows = x.movedim(1, -1).flatten(0, -2)
        out = [published(head, m).eval()(rows).softmax(1) for m in range(head.members)]
    return torch.stack(out).unflatten(1, (2, *SIZE)).movedim(-1, 2).double().numpy()


def test_mean_of_the_members_probabilities(extractor: FeatureExtractor, image: Tensor) -> None:
    head = head_of(extractor, 3)
    segmenter = Segmenter(extractor, head)
    each = probabilities(extractor, head, image)
    assert len(np.unique(each.mean(0).argmax(1))) > 1
    out = segmenter(image)
    assert out.shape == (2, 3, *SIZE)
    np.testing.assert_allclose(out.exp().numpy(), each.mean(0), atol=2e-5)
    np.testing.assert_allclose(segmenter.mean_probabilities(image).numpy(), each.mean(0), atol=2e-5)
    np.testing.assert_allclose(segmenter.member_logits(image).softmax(2).numpy(), each, atol=2e-5)
    second = segmenter.member_logits(image, slice(1, 2))
    assert torch.equal(second[0], segmenter.member_logits(image)[1])
    assert (segmenter.members, segmenter.num_classes) == (3, 3)


def test_vote_of_the_members(extractor: FeatureExtractor, image: Tensor) -> None:
    head = head_of(extractor, 5)
    each = probabilities(extractor, head, image)
    votes = np.stack([(each.argmax(2) == k).mean(0) for k in range(3)], axis=1)
    assert len(np.unique(votes.round(3))) > 2  # members disagree, and not in one way only
    segmenter = Segmenter(extractor, head, "vote")
    np.testing.assert_allclose(segmenter.mean_probabilities(image).numpy(), votes, atol=1e-6)
    np.testing.assert_allclose(segmenter(image).exp().numpy(), votes, atol=1e-6)
    assert bool(segmenter(image).isfinite().all())


@pytest.mark.parametrize("ensemble", ["mean", "vote"])
def test_uncertainties_are_entropy_and_jensen_shannon(extractor, image, ensemble) -> None:
    head = head_of(extractor, 4)
    segmenter = Segmenter(extractor, head, ensemble)
    each = probabilities(extractor, head, image)
    total = scipy.stats.entropy(each.mean(0), axis=1)
    disagreement = total - scipy.stats.entropy(each, axis=2).mean(0)
    out = segmenter.with_uncertainty(image)
    assert out.shape == (2, 5, *SIZE)
    np.testing.assert_allclose(out[:, 3].numpy(), total, atol=2e-5)
    np.testing.assert_allclose(out[:, 4].numpy(), disagreement, atol=2e-5)
    assert disagreement.max() > 0.05
    assert torch.equal(out[:, :3], segmenter(image))


@pytest.mark.parametrize(
    ("members", "timesteps", "cached"), [(3, (250,), False), (1, (250, 500), False), (2, (250,), True)]
)
def test_disagreement_of_a_partition_is_between_members_and_masks(make, image, members, timesteps, cached) -> None:
    network = make(channel_mult=(1, 2), attention_resolutions=(2,))
    extractor = FeatureExtractor(network, (0, 2), timesteps, PatchMasking(patch_size=4), "partition", normalize="rms")
    head = head_of(extractor, members)
    segmenter = Segmenter(CachedExtractor(extractor) if cached else extractor, head)  # type: ignore[arg-type]
    # The plain way: repeat the last rows and columns, hide patches by hand, stack, normalise, classify.
    size = extractor.padded_size(SIZE)
    assert size != SIZE
    more = [(0, new - old) for new, old in zip(size, SIZE, strict=True)]
    padded = np.pad(image.numpy(), [(0, 0), (0, 0), *more], "edge")
    pairs = []
    for k in range(4):
        maps = []
        for t in timesteps:
            masks = [damage.visible.numpy() for damage in extractor.corruptions(torch.from_numpy(padded), t)]
            assert len(masks) == round(1000 / t)
            x_t = torch.from_numpy(padded * masks[k % len(masks)])
            maps += network.features(x_t, torch.tensor([t, t]), [0, 2])
        flat = stack(maps, size)
        flat = flat / flat.double().square().mean((1, 2, 3), keepdim=True).sqrt()
        rows = flat[..., : SIZE[0], : SIZE[1]].movedim(1, -1).flatten(0, -2).float()
        for m in range(members):
            pairs.append(published(head, m).eval()(rows).softmax(1).double().numpy())
    each = np.stack(pairs)
    expected = scipy.stats.entropy(each.mean(0), axis=1) - scipy.stats.entropy(each, axis=2).mean(0)
    out = segmenter.with_uncertainty(image)
    assert out.shape == (2, 5, *SIZE)
    np.testing.assert_allclose(out[:, 4].flatten().numpy(), expected, atol=3e-5)
    assert expected.max() > 0.01
    # Logits and entropy are those of the averaged features.
    assert torch.equal(out[:, :3], segmenter(image))
    mean = segmenter.member_logits(image).softmax(2).double().numpy().mean(0)
    np.testing.assert_allclose(out[:, 3].numpy(), scipy.stats.entropy(mean, axis=1), atol=2e-5)


@pytest.mark.parametrize("masking", ["seeded", "none"])
def test_without_a_partition_the_members_alone_disagree(make: Make, image: Tensor, masking: str) -> None:
    network = make(channel_mult=(1, 2), attention_resolutions=(2,))
    extractor = FeatureExtractor(network, (0, 2), (250,), PatchMasking(patch_size=4), masking, normalize="rms")
    for members in (1, 3):
        segmenter = Segmenter(extractor, head_of(extractor, members))
        each = segmenter.member_logits(image).softmax(2).double().numpy()
        expected = scipy.stats.entropy(each.mean(0), axis=1) - scipy.stats.entropy(each, axis=2).mean(0)
        np.testing.assert_allclose(segmenter.with_uncertainty(image)[:, 4].numpy(), expected, atol=2e-6)


def test_one_member_gives_its_own_logits(extractor: FeatureExtractor, image: Tensor) -> None:
    head = head_of(extractor, 1)
    segmenter = Segmenter(extractor, head)
    assert torch.equal(segmenter(image), segmenter.member_logits(image)[0])
    assert float(segmenter(image).max()) > 0  # logits, no logarithms
    out = segmenter.with_uncertainty(image)
    assert torch.equal(out[:, :3], segmenter(image))
    assert float(out[:, 4].abs().max()) < 1e-6
    entropy = scipy.stats.entropy(probabilities(extractor, head, image)[0], axis=1)
    np.testing.assert_allclose(out[:, 3].numpy(), entropy, atol=2e-5)


def test_linear_head(extractor: FeatureExtractor, image: Tensor) -> None:
    generator = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(2, extractor.num_features, generator=generator), torch.tensor([0.5, -0.5])
    segmenter = Segmenter(extractor, LinearClassifier(weight, bias))
    x = stack(extractor(image), extractor.padded_size(SIZE))[..., : SIZE[0], : SIZE[1]]
    expected = torch.einsum("kc,bchw->bkhw", weight, x) + bias[:, None, None]
    torch.testing.assert_close(segmenter(image), expected, rtol=1e-4, atol=1e-4)


def test_deterministic_and_always_in_evaluation_mode(extractor: FeatureExtractor, image: Tensor) -> None:
    segmenter = Segmenter(extractor, head_of(extractor, 2))
    first = segmenter(image)
    torch.manual_seed(3)
    segmenter.train()
    assert not any(module.training for module in segmenter.modules())
    assert torch.equal(segmenter(image), first)
    torch.testing.assert_close(segmenter(image.flip(0)).flip(0), first)
    tiny = segmenter(image[:1, :, :1, :1])
    assert tiny.shape == (1, 3, 1, 1)


def test_an_unknown_ensemble_is_refused(extractor: FeatureExtractor) -> None:
    refused("mean, vote, got 'median'", Segmenter, extractor, head_of(extractor, 2), "median")


class Strict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> list[Tensor]:
        assert all(n % 4 == 0 for n in x.shape[2:])
        self.seen.append(x)
        return [x * 0, x[:, :2] * 2]


@pytest.mark.parametrize("shape", [(8, 12), (7, 13), (1, 1), (4, 9, 6)], ids=str)
def test_any_size_is_padded_by_its_edge_and_cut_back(shape: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    strict = Strict()
    out = PaddedNetwork(strict, 4, 2)(x)
    assert torch.equal(out, x[:, :2] * 2)
    (seen,) = strict.seen
    for axis, n in enumerate(shape, start=2):
        assert seen.shape[axis] == -(-n // 4) * 4
        for extra in range(n, seen.shape[axis]):
            assert torch.equal(seen.select(axis, extra), seen.select(axis, n - 1))


def test_sizes_that_fit_go_straight_through() -> None:
    network = UNet(2, 1, 3, channels=(4, 8, 8), strides=(2, 2)).eval()
    x = torch.randn(1, 1, 16, 24)
    assert torch.equal(PaddedNetwork(network, 4, 3).eval()(x), network(x))
    padded = network(F.pad(x[..., :14, :21], (0, 3, 0, 2), mode="replicate"))
    assert torch.equal(PaddedNetwork(network, 4).eval()(x[..., :14, :21]), padded[..., :14, :21])


@pytest.mark.parametrize("shape", [(16, 16), (9, 16), (9, 12, 16)])
def test_one_pixel_is_not_left_to_instance_normalisation(shape: tuple[int, ...]) -> None:
    x = torch.randn(1, 3, *shape)
    network = BasicUNet(len(shape), 3, 2, features=(8,) * 6, norm=("instance", {"affine": True})).eval()
    padded = F.pad(x, [part for n in reversed(shape) for part in (0, 16 - n)], mode="replicate")
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        network(padded)
    wide = F.pad(padded, [0, 16, *[0, 0] * (len(shape) - 1)], mode="replicate")
    expected = network(wide)[(..., *map(slice, shape))]
    assert torch.equal(PaddedNetwork(network, 16, 2).eval()(x), expected)
    grouped = BasicUNet(len(shape), 3, 2, features=(8,) * 6, norm=("group", {"num_groups": 2})).eval()
    assert torch.equal(PaddedNetwork(grouped, 16, 2).eval()(x), grouped(padded)[(..., *map(slice, shape))])


def test_the_last_of_several_outputs_is_read() -> None:
    network = BasicUNetPlusPlus(2, 3, 2, features=(8,) * 6, deep_supervision=True).eval()
    x = torch.randn(1, 3, 16, 32)
    outputs = network(x)
    assert len(outputs) > 1
    assert torch.equal(PaddedNetwork(network, 16, 2).eval()(x), outputs[-1])


def test_another_number_of_classes_is_refused() -> None:
    with pytest.raises(UserError, match="gives 2 classes, but the data has 5: set its out_channels"):
        PaddedNetwork(Strict(), 4, 5)(torch.zeros(1, 3, 8, 8))


def test_tracing() -> None:
    network = PaddedNetwork(UNet(2, 3, 2, channels=(4, 8), strides=(2,)), 2, 2).eval()
    x = torch.randn(1, 3, 15, 10)
    traced = torch.jit.trace(network, torch.zeros(1, 3, 15, 10))
    assert torch.allclose(traced(x), network(x), atol=1e-6)


@pytest.mark.parametrize("flips", [(1,), (0, 1)])
def test_mirror_images_are_voices(flips: tuple[int, ...]) -> None:
    image = made_example(3, (24, 40)).image[None]
    axes: list[list[int]] = [[], [3]] if flips == (1,) else [[], [2], [3], [2, 3]]
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 2, 3, padding=1)
    extractor = made_extractor()
    head = PixelClassifier(extractor.num_features, 2, (8,), 2).eval()
    for plain, mirrored in (
        (PaddedNetwork(network, 1), PaddedNetwork(network, 1, flips=flips)),
        (Segmenter(extractor, head), Segmenter(extractor, head, flips=flips)),
    ):
        plain.eval()
        mirrored.eval()
        with torch.no_grad():
            seen = [plain(image.flip(ax)).softmax(1).flip(ax) for ax in axes]
            expected = torch.stack(seen).mean(0)
            torch.testing.assert_close(mirrored(image).exp(), expected)
            maps = mirrored.with_uncertainty(image)
            torch.testing.assert_close(maps[:, :2], mirrored(image))
            torch.testing.assert_close(maps[:, 2:3], entropy(expected))
            assert float(maps[:, 3].min()) >= 0
            assert float(maps[:, 3].max()) > 1e-6
    network.train()
    trained = PaddedNetwork(network, 1, flips=flips).train()
    assert torch.equal(trained(image), network(image))  # in training an image is read once


def test_a_basic_unet_whose_sides_fit_is_not_padded_by_nothing() -> None:
    torch.manual_seed(0)
    network = BasicUNet(2, 3, 2, features=(4, 4, 4, 4, 4, 4)).eval()
    x = torch.rand(1, 3, 32, 48)
    expected = network(x)
    assert torch.equal(PaddedNetwork(network, 16, 2).eval()(x), expected)
    assert not any(part.is_pad for part in network.modules() if isinstance(part, UpCat))
    loose = BasicUNet(2, 3, 2, features=(4, 4, 4, 4, 4, 4)).eval()
    assert PaddedNetwork(loose, 1, 2).eval()(torch.rand(1, 3, 21, 35)).shape == (1, 2, 21, 35)  # it pads itself
