import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medmdm.backbones.adm_unet import ADMUNet
from medmdm.backbones.layers import ResBlock
from tests.made import refused


def inputs(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = (0.5 * torch.randn(shape, generator=generator)).clamp(-1, 1)
    return x, torch.randint(1000, shape[:1], generator=generator)


def on_meta(**arguments: Any) -> ADMUNet:
    with torch.device("meta"):
        return ADMUNet(**arguments)


def millions(network: ADMUNet) -> float:
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


def assert_same_to_rounding(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= 1e-4 * b.std()


@pytest.fixture(params=["film", "plain"])
def golden_case(request, golden: Path) -> tuple[ADMUNet, Any, dict[str, Any]]:
    values = np.load(golden / f"golden_unet_{request.param}.npz")
    meta = json.loads(str(values["meta"]))
    arguments = {"num_heads": 1, "num_head_channels": -1, **meta["config"]}
    del arguments["image_size"]
    return ADMUNet(**arguments).eval(), values, meta


def test_golden_names_and_shapes(golden_case) -> None:
    network, _, meta = golden_case
    assert {name: list(value.shape) for name, value in network.state_dict().items()} == meta["state_shapes"]


def test_golden_output_and_blocks(golden_case) -> None:
    network, values, meta = golden_case
    state = {}
    for index, (name, shape) in enumerate(sorted(meta["state_shapes"].items())):
        draw = np.random.RandomState(1000 + index).standard_normal(shape)
        is_matrix = len(shape) > 1
        draw = draw / math.sqrt(math.prod(shape[1:])) if is_matrix else draw * 0.1 + name.endswith(".weight")
        state[name] = torch.from_numpy(draw.astype(np.float32))
    network.load_state_dict(state)
    drawn = np.random.RandomState(meta["input"]["seed"]).standard_normal(meta["input"]["shape"])
    x = torch.from_numpy((drawn * meta["input"]["scale"]).clip(*meta["input"]["clamp"]).astype(np.float32))
    t = torch.tensor(meta["timesteps"])

    stats = json.loads(str(values["block_stats"]))
    blocks = [int(block) for block in stats]
    assert len(blocks) >= 3
    with torch.no_grad():
        output, features = network(x, t).numpy(), network.features(x, t, blocks)
    np.testing.assert_allclose(output, values["output"], rtol=0, atol=1e-4 * values["output"].std())
    for block, feature in zip(blocks, features, strict=True):
        expected = stats[str(block)]
        assert list(feature.shape) == expected["shape"]
        corner = values[f"block_{block}_corner"]
        np.testing.assert_allclose(feature[:, :4, :3, :3], corner, rtol=0, atol=1e-4 * expected["std"])
        assert feature.mean().item() == pytest.approx(expected["mean"], abs=1e-4 * expected["std"])
        assert feature.std().item() == pytest.approx(expected["std"], rel=1e-4)
        assert feature.double().abs().sum().item() == pytest.approx(expected["abs_sum"], rel=1e-4)


def test_defaults_are_the_papers_network() -> None:
    network = on_meta()
    assert millions(network) == pytest.approx(311.0, abs=0.05)
    sizes_at_256 = {info["block"]: (info["channels"], 256 // info["reduction"]) for info in network.feature_info}
    assert sizes_at_256 == {
        **dict.fromkeys([0, 1], (768, 8)), **dict.fromkeys([2, 3, 4], (768, 16)), 5: (768, 32),
        **dict.fromkeys([6, 7], (384, 32)), **dict.fromkeys([8, 9, 10], (384, 64)), 11: (384, 128),
        **dict.fromkeys([12, 13], (192, 128)), **dict.fromkeys([14, 15, 16, 17], (192, 256)),
    }  # fmt: skip
    assert sum(sizes_at_256[block][0] for block in range(8, 13)) == 1728
    assert sum(sizes_at_256[block][0] for block in range(5, 13)) == 3264


@pytest.mark.parametrize(("published", "arguments"), [
    # sizes in millions from Dhariwal and Nichol 2021, all with learned variance
    (296, {"channel_mult": (1, 2, 3, 4), "num_res_blocks": 3, "attention_resolutions": (2, 4, 8),
           "num_classes": 1000, "use_new_attention_order": True}),
    (422, {"model_channels": 256, "channel_mult": (1, 1, 2, 3, 4), "attention_resolutions": (4, 8, 16),
           "num_heads": 4, "num_head_channels": -1, "num_classes": 1000}),
    (552, {"model_channels": 256}),
    (554, {"model_channels": 256, "num_classes": 1000}),
    (559, {"model_channels": 256, "channel_mult": (0.5, 1, 1, 2, 2, 4, 4), "attention_resolutions": (16, 32, 64),
           "num_classes": 1000}),
])  # fmt: skip
def test_sizes_of_published_networks(published: int, arguments: dict[str, Any]) -> None:
    assert millions(on_meta(out_channels=6, **arguments)) == pytest.approx(published, abs=1)


@pytest.mark.slow
def test_new_network_predicts_zero_and_trains() -> None:
    torch.manual_seed(0)
    network = ADMUNet(model_channels=32, channel_mult=(1, 2), attention_resolutions=(2,), num_head_channels=32)
    x, t = inputs(2, 3, 8, 8)
    assert not network(x, t).any()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        loss = (network(x, t) - x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_images_do_not_see_each_other_and_timesteps_are_per_image(make) -> None:
    network = make()
    x, _ = inputs(3, 3, 16, 16)
    t = torch.tensor([0, 500, 999])
    with torch.no_grad():
        together = network(x, t)
        for index in range(3):
            assert_same_to_rounding(together[index : index + 1], network(x[index : index + 1], t[index : index + 1]))
        assert (network(x, t.flip(0))[0] - together[0]).abs().max() > 0.01 * together.std()
        assert torch.equal(network(x, t.float()), together)


def test_transposed_image_and_weights_give_transposed_output(make) -> None:
    network, turned = make(), make()
    with torch.no_grad():
        for parameter in turned.parameters():
            if parameter.ndim == 4:
                parameter.copy_(parameter.transpose(2, 3).clone())
        x, t = inputs(1, 3, 8, 20)
        assert_same_to_rounding(turned(x.mT, t).mT, network(x, t))


@pytest.mark.parametrize("resblock_updown", [True, False])
def test_volume_that_is_constant_along_depth_equals_its_slice(make, resblock_updown: bool) -> None:
    arguments = {"channel_mult": (1, 2), "attention_resolutions": (2,), "resblock_updown": resblock_updown}
    flat, deep = make(**arguments), make(spatial_dims=3, **arguments)
    with torch.no_grad():
        for name, kernel in deep.named_parameters():
            source = flat.get_parameter(name)
            if kernel.ndim == 5:  # the 2-D kernel as the middle slice of the 3-D one
                kernel.zero_()
                kernel[:, :, kernel.shape[2] // 2] = source
            else:
                kernel.copy_(source)
        x, t = inputs(1, 3, 8, 12)
        volume = x[:, :, None].expand(-1, -1, 6, -1, -1)
        expected = flat(x, t)
        for depth_slice in deep(volume, t).unbind(2):
            assert_same_to_rounding(depth_slice, expected)
        maps = deep.features(volume, t, range(4))
    for info, feature in zip(deep.feature_info, maps, strict=True):
        assert feature.shape[1] == info["channels"]
        assert feature.shape[2:] == tuple(size // info["reduction"] for size in (6, 8, 12))


def test_class_conditional(make) -> None:
    network = make(num_classes=5)
    x, t = inputs(2, 3, 8, 8)
    with torch.no_grad():
        first, other = (network(x, t, torch.tensor(y)) for y in ([0, 4], [0, 1]))
        assert torch.equal(first[0], other[0])
        assert (first[1] - other[1]).abs().max() > 0.01 * first.std()
        assert network.features(x, t, [0], torch.tensor([0, 4]))[0].shape == (2, 64, 2, 2)
        network.label_emb.weight.zero_()
        unconditional = make()
        unconditional.load_state_dict({k: v for k, v in network.state_dict().items() if k != "label_emb.weight"})
        assert torch.equal(network(x, t, torch.tensor([2, 3])), unconditional(x, t))
    refused("class numbers", network, x, t)
    refused("not class-conditional", unconditional, x, t, torch.tensor([0, 1]))


@pytest.mark.parametrize(("shape", "steps", "words"), [
    ((1, 3, 16, 18), 1, r"\(16, 18\) is not divisible by 4.*3 levels"),
    ((1, 1, 16, 16), 1, r"\(1, 1, 16, 16\), expected \[batch, 3, height, width\]"),
    ((3, 16, 16), 3, r"expected \[batch, 3, height, width\]"),
    ((2, 3, 16, 16), 1, "timesteps have the shape"),
])  # fmt: skip
def test_inputs_that_do_not_fit(make, shape: tuple[int, ...], steps: int, words: str) -> None:
    refused(words, make(), torch.zeros(shape), torch.zeros(steps))


@pytest.mark.parametrize("arguments", [{}, {"resblock_updown": False, "num_res_blocks": 2}])
def test_features_equal_what_the_full_forward_computes(make, arguments: dict[str, Any]) -> None:
    network = make(**arguments)
    seen: dict[int, torch.Tensor] = {}
    handles = [
        block.register_forward_hook(lambda _m, _i, output, number=number: seen.__setitem__(number, output))
        for number, block in enumerate(network.output_blocks)
    ]
    x, t = inputs(2, 3, 8, 16)
    with torch.no_grad():
        network(x, t)
        full = dict(seen)
        assert len(full) == len(network.feature_info)
        for number, expected in full.items():
            assert expected.std() > 0.05
            seen.clear()
            (feature,) = network.features(x, t, [number])
            assert torch.equal(feature, expected)
            assert max(seen) == number, "blocks after the last one asked for were computed"
            assert torch.equal(network.truncated(number).features(x, t, [number])[0], expected)
            info = network.feature_info[number]
            assert info["block"] == number
            assert feature.shape == (2, info["channels"], 8 // info["reduction"], 16 // info["reduction"])
        for handle in handles:
            handle.remove()
        for order in ([3, 0, 2], (1, 1)):
            for number, feature in zip(order, network.features(x, t, order), strict=True):
                assert torch.equal(feature, full[number])


@pytest.mark.parametrize("blocks", [[6], [-1], [0, 17], []])
def test_blocks_that_do_not_exist(make, blocks: list[int]) -> None:
    refused("decoder blocks 0 to 5", make().features, *inputs(1, 3, 8, 8), blocks)


def test_gradient_checkpointing_gives_equal_gradients_for_more_work(make) -> None:
    x, t = inputs(2, 3, 8, 8)
    gradients, passes = [], []
    for use_checkpoint in (False, True):
        network = make(use_checkpoint=use_checkpoint, dropout=0.3).train()
        count = []
        for module in network.modules():
            if isinstance(module, ResBlock):
                module.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        torch.manual_seed(3)  # dropout must fall the same way in the second pass
        (network(x, t) - x).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
        passes.append(len(count))
    assert passes[1] == 2 * passes[0]
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize(("dims", "layout"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_channels_last_gives_the_same_output_and_gradients(make, dims: int, layout: torch.memory_format) -> None:
    results = []
    for memory_format in (torch.contiguous_format, layout):
        network = make(spatial_dims=dims, channel_mult=(1, 2), attention_resolutions=(2,))
        network = network.to(memory_format=memory_format)
        x, t = inputs(2, 3, *(8, 6, 4)[:dims])
        output = network(x.contiguous(memory_format=memory_format), t)
        assert output.is_contiguous(memory_format=memory_format)
        output.square().sum().backward()
        results.append((output.detach(), network.get_parameter("input_blocks.1.0.in_layers.2.weight").grad))
    for contiguous, last in zip(*results, strict=True):
        assert_same_to_rounding(last, contiguous)


def test_bfloat16_autocast_stays_close(make) -> None:
    network = make()
    x, t = inputs(2, 3, 16, 16)
    with torch.no_grad():
        expected = network(x, t)
        with torch.autocast("cpu", torch.bfloat16):
            output = network(x, t)
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).std() < 0.05 * expected.std()


@pytest.mark.slow
def test_trace_export_and_dynamo(make) -> None:
    network = make(channel_mult=(1, 2), attention_resolutions=(2,))
    x, t = inputs(2, 3, 8, 12)
    other_x, other_t = inputs(3, 3, 12, 4, seed=1)
    with torch.no_grad():
        expected, other = network(x, t), network(other_x, other_t)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", module="medmdm")  # such as a shape frozen into the trace
            traced = torch.jit.trace(network, (x, t), check_trace=False)
        dim = torch.export.Dim
        sizes = {0: dim("b", min=1, max=9), 2: 2 * dim("h", min=2, max=32), 3: 2 * dim("w", min=2, max=32)}
        exported = torch.export.export(network, (x, t), dynamic_shapes=(sizes, {0: sizes[0]})).module()
        for program in (traced, exported):
            torch.testing.assert_close(program(x, t), expected)
            torch.testing.assert_close(program(other_x, other_t), other)
        torch.testing.assert_close(torch.compile(network, backend="eager", fullgraph=True)(x, t), expected)


def test_config_rebuilds_the_network_through_json() -> None:
    network = on_meta(
        spatial_dims=3, in_channels=1, channel_mult=(0.5, 1), model_channels=64, attention_resolutions=(1,),
        num_head_channels=-1, num_heads=2, num_classes=4, resblock_updown=False, conv_resample=False, dropout=0.1,
        use_checkpoint=True,
    )  # fmt: skip
    again = on_meta(**json.loads(json.dumps(network.config)))
    assert again.config == network.config
    assert network.config["channel_mult"] == [0.5, 1]
    shapes, expected = ([(k, v.shape) for k, v in n.state_dict().items()] for n in (again, network))
    assert shapes == expected
    network.config["channel_mult"].append(9)
    network.feature_info[0]["channels"] = 9
    assert len(network.config["channel_mult"]) == 2
    assert network.feature_info[0]["channels"] == 64


def test_groups_of_every_normalisation(make) -> None:
    network = make(model_channels=24, num_groups=4, num_head_channels=-1)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {4}
    assert network.config["num_groups"] == 4
    assert network.features(*inputs(1, 3, 8, 12), [0])[0].shape[1] == 48
    old = {key: value for key, value in make().config.items() if key != "num_groups"}  # as files of before say it
    assert ADMUNet(**old).config == make().config
    x, t = inputs(1, 3, 8, 12)
    outputs = [make(num_groups=groups)(x, t) for groups in (4, 32)]  # of the same weights
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("arguments", "words"), [
    ({"spatial_dims": 1}, "spatial_dims is 1, expected 2 or 3"),
    ({"in_channels": 0}, "in_channels is 0"),
    ({"num_res_blocks": 1.5}, "num_res_blocks is 1.5"),
    ({"num_classes": 0}, "num_classes is 0"),
    ({"dropout": 1.0}, "dropout is 1.0"),
    ({"channel_mult": ()}, "channel_mult is empty"),
    ({"model_channels": 48}, "level of 48 channels.*multiples of 32"),
    ({"channel_mult": (0.25, 1)}, "level of 48 channels.*multiples of 32"),
    ({"channel_mult": (0, 1)}, "level of 0 channels"),
    ({"num_groups": 0}, "num_groups is 0"),
    ({"model_channels": 36, "num_groups": 8}, "level of 36 channels; .* with 8 groups needs multiples of 8"),
    ({"attention_resolutions": (8, 16, 64)}, r"holds 64.*rates \[1, 2, 4, 8, 16, 32\] \(rates, not sizes"),
    ({"attention_resolutions": (3,)}, "holds 3"),
    ({"num_head_channels": 0}, "num_head_channels is 0"),
    ({"num_head_channels": 100}, "num_head_channels 100 does not divide the 384 channels.*rate 8"),
    ({"num_head_channels": -1, "num_heads": 7, "attention_resolutions": ()}, "num_heads 7 .* 768 .* rate 32"),
])  # fmt: skip
def test_arguments_that_do_not_go_together(arguments: dict[str, Any], words: str) -> None:
    refused(words, on_meta, **arguments)
