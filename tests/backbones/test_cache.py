import os
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from medmdm.backbones.adm_unet import ADMUNet
from medmdm.backbones.cache import CachedExtractor
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.corruption import GaussianNoise, PatchMasking
from tests.made import made_extractor, refused


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


class Scaled(nn.Module):
    reduction = 1
    feature_info = [{"block": 0, "channels": 3, "reduction": 1}]  # noqa: RUF012

    def __init__(self, factors: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("factors", torch.tensor(factors, dtype=torch.float64).reshape(1, 3, 1, 1))

    def features(self, x: Tensor, timesteps: Tensor, blocks: list[int]) -> list[Tensor]:
        return [(x * self.factors).float()]


def test_second_run_extracts_nothing_and_reads_the_same_bits(tmp_path: Path) -> None:
    x = images(3, 3, 20, 24)
    first = CachedExtractor(made_extractor(), tmp_path)
    maps = first(x)
    assert first.extracted == 3
    assert same(first(x), maps)  # from memory
    assert first.extracted == 3
    second = CachedExtractor(made_extractor(), tmp_path)
    assert same(second(x.flip(0)), [f.flip(0) for f in maps])  # image by image, whatever the batch
    assert second.extracted == 0
    assert second(images(1, 3, 20, 24, seed=1))[0].shape == maps[0][:1].shape
    assert second.extracted == 1


@pytest.mark.parametrize("around", [{}, {"context": [4, 12], "context_deviation": True}], ids=["maps", "context"])
@pytest.mark.parametrize("kind", ["global_l2", "rms", "standardize", "none"])
def test_differs_from_the_extractor_by_half_precision_only(kind: str, around: dict[str, Any]) -> None:
    extractor = made_extractor(normalize=kind, **around)
    x = images(2, 3, 18, 30)
    for mine, exact in zip(CachedExtractor(extractor)(x), extractor(x), strict=True):
        assert mine.dtype == torch.float32
        assert (mine - exact).norm() < 3e-4 * exact.norm()


@pytest.mark.parametrize("factors", [(1e6, 1e6, 1e6), (1e-20, 1e-20, 1e-20), (1e6, 1.0, 1e-2), (0, 0, 0)], ids=str)
def test_huge_tiny_and_blank_maps_survive_16_bits(factors: tuple[float, float, float]) -> None:
    extractor = FeatureExtractor(Scaled(factors), [0], [0], masking="none", normalize="none")
    x = images(1, 3, 8, 12) + 2
    (mine,), (exact,) = CachedExtractor(extractor)(x), extractor(x)
    assert torch.allclose(mine, exact, rtol=2**-11, atol=0)


def test_features_that_are_not_finite_are_refused() -> None:
    extractor = FeatureExtractor(Scaled((1, 1, float("nan"))), [0], [0], masking="none")
    refused("not finite", CachedExtractor(extractor), images(1, 3, 8, 8))


def test_other_weights_and_settings_have_other_files() -> None:
    variants: list[dict[str, Any]] = [
        {}, {"seed": 1}, {"blocks": [0, 1]}, {"blocks": [0, 2, 1]}, {"timesteps": [51]}, {"masking": "none"},
        {"masking": "partition"}, {"masking": "partition", "partitions": 3},
        {"corruption": PatchMasking(patch_size=8)}, {"corruption": GaussianNoise()},
        {"network": {"num_head_channels": 16}},  # not seen in the names and shapes of the weights
        {"network": {"num_groups": 8}}, {"context": [8]}, {"context": [8, 16]},
        {"context": [8], "context_deviation": True},
    ]  # fmt: skip
    cached = [CachedExtractor(made_extractor(**variant)) for variant in variants]
    masks = FeatureExtractor(made_extractor().backbone, [0, 1, 2], [50], PatchMasking(patch_size=4), seed=3)
    keys = [c.key for c in [*cached, CachedExtractor(masks)]]
    assert len(set(keys)) == len(keys)
    assert CachedExtractor(made_extractor()).key == keys[0]
    # As before these two were arguments: features that have not changed are not computed again.
    assert CachedExtractor(made_extractor(), backbone_hash="w").key == "cc3769154e00c8e503c4f60581480212"


def test_small_differences_of_wide_means_survive_16_bits() -> None:
    settings: dict[str, Any] = {"masking": "none", "normalize": "standardize", "context": [25]}
    extractor = FeatureExtractor(Scaled((1, 1, 1)), [0], [0], **settings)
    x = images(1, 3, 40, 56) + 10  # the means differ by 0.03 or so
    mine, exact = CachedExtractor(extractor)(x)[1], extractor(x)[1]
    assert (mine - exact).norm() < 3e-4 * exact.norm()


def test_the_size_of_features_with_context_is_known() -> None:
    plain, cached = (CachedExtractor(made_extractor(**around)) for around in ({}, {"context": [4, 12]}))
    assert cached.bytes_per_window((16, 24)) == 3 * plain.bytes_per_window((16, 24))
    cached(images(1, 3, 16, 24))
    assert cached.in_memory == cached.bytes_per_window((16, 24)) + 2 * 4 * plain.num_features  # and a mean a channel


def test_another_normalisation_reads_the_same_files(tmp_path: Path) -> None:
    x = images(1, 3, 16, 16)
    CachedExtractor(made_extractor(normalize="global_l2"), tmp_path)(x)
    for kind in ("rms", "none"):
        extractor = made_extractor(normalize=kind)
        cached = CachedExtractor(extractor, tmp_path)
        for mine, exact in zip(cached(x), extractor(x), strict=True):
            assert (mine - exact).norm() < 3e-4 * exact.norm()
        assert cached.extracted == 0


def test_beyond_the_bound_features_are_streamed(tmp_path: Path) -> None:
    x = images(4, 3, 16, 16)
    expected = CachedExtractor(made_extractor())(x)
    one = CachedExtractor(made_extractor()).bytes_per_window((16, 16))
    for _ in range(2):  # the second run finds what the first has kept, and streams the rest
        cached = CachedExtractor(made_extractor(), tmp_path, max_gib=2.5 * one / 2**30, memory_gib=0)
        before = len(list(tmp_path.rglob("*.pt")))
        for _ in range(2):
            assert same(cached(x), expected)
        assert len(list(tmp_path.rglob("*.pt"))) == 2
        assert cached.extracted == 2 * (4 - 2) + (2 - before)
        assert not cached.memory


def test_memory_drops_what_was_not_used_for_longest() -> None:
    one = CachedExtractor(made_extractor()).bytes_per_window((16, 16))
    cached = CachedExtractor(made_extractor(), memory_gib=2.5 * one / 2**30)
    a, b, c = (images(1, 3, 16, 16, seed=seed) for seed in range(3))
    for x in (a, b, a, c):  # c replaces b
        cached(x)
    assert cached.extracted == 3
    assert cached.in_memory == 2 * one
    cached(a), cached(c)
    assert cached.extracted == 3
    cached(b)
    assert cached.extracted == 4


@pytest.mark.parametrize("damage", ["half", "empty", "other"])
def test_a_damaged_file_is_computed_again(tmp_path: Path, damage: str, caplog: Any) -> None:
    x = images(1, 3, 16, 16)
    expected = CachedExtractor(made_extractor(), tmp_path)(x)
    (path,) = tmp_path.rglob("*.pt")
    whole = path.read_bytes()
    path.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "other": b"something else"}[damage])
    cached = CachedExtractor(made_extractor(), tmp_path)
    assert same(cached(x), expected)
    assert cached.extracted == 1
    assert "damaged" in caplog.text
    assert path.read_bytes() == whole  # written again, byte for byte
    assert cached.on_disk == cached.bytes_per_window((16, 16))
    assert CachedExtractor(made_extractor(), tmp_path).on_disk == len(whole)


def test_what_a_killed_run_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMDM_WORKER", "1")
    cached = CachedExtractor(made_extractor(), tmp_path)
    cached(images(1, 3, 16, 16))
    assert cached.folder is not None
    leftover = cached.folder / ".abc.pt.123.part"
    leftover.write_bytes(b"half a file")
    (path,) = tmp_path.rglob("*.pt")
    CachedExtractor(made_extractor(), tmp_path)
    assert leftover.exists()  # another worker may be writing it
    monkeypatch.delenv("MEDMDM_WORKER")  # whoever owns the run's folder writes alone
    again = CachedExtractor(made_extractor(), tmp_path)
    assert not leftover.exists()
    assert again.on_disk == path.stat().st_size


def test_a_disk_that_cannot_be_written_ends_the_caching_only(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "file").write_text("not a folder")
    cached = CachedExtractor(made_extractor(), tmp_path / "file", memory_gib=0)
    x = images(2, 3, 16, 16)
    assert same(cached(x), CachedExtractor(made_extractor())(x))
    assert cached.extracted == 2
    assert caplog.text.count("cannot be written") == 1


@pytest.mark.slow
def test_the_size_said_beforehand_is_that_of_the_files(tmp_path: Path) -> None:
    cached = CachedExtractor(made_extractor(), tmp_path)
    cached(images(1, 3, 250, 140))
    (path,) = tmp_path.rglob("*.pt")
    size = cached.bytes_per_window((250, 140))
    assert size == sum(2 * f.numel() for f in torch.load(path)["maps"])
    assert size < os.path.getsize(path) < 1.01 * size
    assert f"{2 * size / 1e6:.0f} MB" in cached.announce([(250, 140)] * 2)
    assert "not kept" not in cached.announce([(250, 140)] * 2)
    small = CachedExtractor(made_extractor(), memory_gib=1e-3)
    assert "more than 0.001 GiB is not kept" in small.announce([(250, 140)])


def test_a_crop_takes_28_megabytes_with_the_papers_network() -> None:
    with torch.device("meta"):
        extractor = FeatureExtractor(ADMUNet(), corruption=PatchMasking())
    cached = CachedExtractor(extractor, backbone_hash="not needed")
    assert cached.num_features == 1728
    assert cached.bytes_per_window((256, 256)) == 28311552
    assert cached.bytes_per_window((250, 255)) == 28311552  # padded to multiples of 32


def test_images_with_metadata_are_cached_as_well(tmp_path: Path) -> None:
    x = MetaTensor(images(1, 3, 16, 16), meta={"filename_or_obj": "x.png"})
    maps = CachedExtractor(made_extractor(), tmp_path)(x)
    assert not any(isinstance(f, MetaTensor) for f in maps)
    again = CachedExtractor(made_extractor(), tmp_path)
    assert same(again(x.as_tensor()), maps)
    assert again.extracted == 0


def test_one_channel_and_volumes(tmp_path: Path) -> None:
    for network, shape in (({"in_channels": 1}, (1, 1, 13, 9)), ({"spatial_dims": 3}, (1, 3, 6, 8, 5))):
        extractor = made_extractor(network=network)
        cached = CachedExtractor(extractor, tmp_path)
        for mine, exact in zip(cached(images(*shape)), extractor(images(*shape)), strict=True):
            assert mine.shape == exact.shape
            assert (mine - exact).norm() < 3e-4 * exact.norm()


def test_what_heads_derive_is_remembered_as_features_are(tmp_path: Path) -> None:
    calls = []

    def compute() -> dict[str, Any]:
        calls.append(1)
        return {"gram": torch.eye(3, dtype=torch.float64), "number": 2.5}

    for _ in range(2):
        cached = CachedExtractor(made_extractor(), tmp_path)
        for _ in range(2):
            content = cached.remembered("sums", compute)
            assert torch.equal(content["gram"], torch.eye(3, dtype=torch.float64))
            assert content["number"] == 2.5
        assert cached.in_memory == 72
    assert len(calls) == 1


def test_what_passes_is_neither_kept_nor_rounded(tmp_path: Path) -> None:
    cached, image = CachedExtractor(made_extractor(), tmp_path), torch.rand(1, 3, 32, 32) * 2 - 1
    with cached.passing():
        passed = cached(image)
        assert not [*tmp_path.rglob("*.pt"), *cached.memory]
    kept = cached(image)
    assert len([*tmp_path.rglob("*.pt")]) == len(cached.memory) == 1
    with cached.passing():
        again = cached(image)
    for one, exact, third, short in zip(passed, cached.extractor(image), again, kept, strict=True):
        torch.testing.assert_close(one, exact, rtol=0, atol=0)
        torch.testing.assert_close(third, exact, rtol=0, atol=0)
        assert not torch.equal(short, exact)  # 16 bits
