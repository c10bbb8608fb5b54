import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medmdm.backbones.layers import AttentionBlock, Float32GroupNorm, ResBlock, double, halve, sinusoidal_embedding
from tests.made import with_random_weights


@pytest.mark.parametrize("width", [32, 33])
def test_sinusoidal_embedding_equals_its_formula(width: int) -> None:
    t = np.array([0, 1, 50.5, 999])
    half = width // 2
    expected = np.zeros((4, width))
    for row, value in enumerate(t):
        for k in range(half):
            expected[row, k] = np.cos(value * 10_000.0 ** (-k / half))
            expected[row, half + k] = np.sin(value * 10_000.0 ** (-k / half))
    embedded = sinusoidal_embedding(torch.tensor(t), width)
    assert embedded.dtype == torch.float32
    np.testing.assert_allclose(embedded.numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("new_order", [False, True])
@pytest.mark.parametrize("num_heads", [1, 4])
def test_attention_equals_softmax_written_out(new_order: bool, num_heads: int) -> None:
    channels, size = 64, 64 // num_heads
    block = with_random_weights(AttentionBlock(channels, num_heads, new_order))
    x = torch.randn(2, channels, 3, 5, generator=torch.Generator().manual_seed(1))

    flat = x.flatten(2)
    qkv = F.conv1d(F.group_norm(flat, 32, block.norm.weight, block.norm.bias), block.qkv.weight, block.qkv.bias)
    heads = []
    for head in range(num_heads):
        if new_order:  # all queries, all keys, all values
            start = [part * channels + head * size for part in range(3)]
        else:  # head after head, each its query, key and value
            start = [(3 * head + part) * size for part in range(3)]
        q, k, v = (qkv[:, s : s + size] for s in start)
        logits = torch.einsum("bcl,bcm->blm", q, k) / size**0.5
        heads.append(torch.einsum("blm,bcm->bcl", logits.softmax(dim=-1), v))
    attended = F.conv1d(torch.cat(heads, dim=1), block.proj_out.weight, block.proj_out.bias)
    torch.testing.assert_close(block(x), (flat + attended).view_as(x), rtol=1e-4, atol=1e-5)


def test_film_is_scale_and_shift_after_normalisation() -> None:
    block = with_random_weights(ResBlock(2, 32, 64, 16))
    generator = torch.Generator().manual_seed(1)
    x, embedding = torch.randn(2, 32, 6, 4, generator=generator), torch.randn(2, 16, generator=generator)
    first, last = block.in_layers[2], block.out_layers[3]
    h = F.conv2d(F.silu(F.group_norm(x, 32, *block.in_layers[0].parameters())), first.weight, first.bias, padding=1)
    line = F.silu(embedding) @ block.emb_layers[1].weight.T + block.emb_layers[1].bias
    h = F.group_norm(h, 32, *block.out_layers[0].parameters())
    h = h * (1 + line[:, :64, None, None]) + line[:, 64:, None, None]
    expected = F.conv2d(F.silu(h), last.weight, last.bias, padding=1)
    expected = expected + F.conv2d(x, block.skip_connection.weight, block.skip_connection.bias)
    torch.testing.assert_close(block(x, embedding), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 2, 4, 6), (1, 2, 4, 6, 2)])
def test_resampling_equals_numpy(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    axes = range(2, len(shape))
    doubled = x.numpy()
    for axis in axes:
        doubled = doubled.repeat(2, axis=axis)
    np.testing.assert_array_equal(double(x).numpy(), doubled)
    torch.testing.assert_close(halve(double(x)), x)
    corner = x[(0, 0) + (slice(2),) * len(axes)].mean()
    torch.testing.assert_close(halve(x)[(0,) * len(shape)], corner)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norm_takes_statistics_in_float32_under_autocast(dtype: torch.dtype) -> None:
    norm = Float32GroupNorm(32)
    x = (50 + torch.randn(2, 32, 16, 16, generator=torch.Generator().manual_seed(0))).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    groups = x.double().flatten(2)
    expected = (groups - groups.mean(-1, keepdim=True)) / groups.std(-1, correction=0, keepdim=True)
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected.view_as(x).to(dtype), rtol=1e-2, atol=1e-3)


def test_group_norm_keeps_small_variation_around_a_large_mean_in_both_layouts() -> None:
    x = 100 + torch.randn(2, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = F.group_norm(x.double(), 32).float()
    for layout in (torch.contiguous_format, torch.channels_last):
        y = Float32GroupNorm(32)(x.contiguous(memory_format=layout))
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-4)


def test_group_norm_of_few_groups() -> None:
    x = torch.randn(2, 12, 5, 3, generator=torch.Generator().manual_seed(0)) + 2
    groups = x.reshape(2, 3, -1)
    expected = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(Float32GroupNorm(12, 3)(x), expected.view_as(x))


def test_double_precision_stays_double() -> None:
    block = with_random_weights(ResBlock(2, 32, 32, 8)).double()
    generator = torch.Generator().manual_seed(0)
    x, embedding = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((1, 32, 4, 4), (1, 8)))
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    block(x, embedding).sin().sum().backward()
    with torch.no_grad():  # the slope by central differences, which float32 would blur to three digits
        up, down = (block(x + step * direction, embedding).sin().sum() for step in (1e-5, -1e-5))
    assert ((up - down) / 2e-5).item() == pytest.approx((x.grad * direction).sum().item(), rel=1e-7)


def test_group_norm_of_half_precision_weights() -> None:
    x = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = Float32GroupNorm(32)(x)
    y = Float32GroupNorm(32).half()(x.half())
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), expected, rtol=5e-3, atol=5e-3)
