import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow

from medmdm.backbones import ADMUNet
from tests.bundle_runs import OVERLAYS, Workflow, saved_by, trainer_of
from tests.made import refused, refused_in_config
from tests.pretrain.test_methods import METHODS

SGD = {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 1.0}
ONE_STEP: dict[str, Any] = {"max_steps": 1, "network_def#dropout": 0.0, "optimizer": SGD}


def train(made: ConfigWorkflow) -> dict[str, torch.Tensor]:
    return saved_by(made)["model"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_loop_is_what_it_says(workflow: Workflow, tmp_path: Path) -> None:
    """Three steps equal a loop written here, from the same samples: damage, loss, schedule, clipping, EMA.

    With SGD: where gradients are zero but for rounding, Adam would blow the rounding up to whole steps.
    """
    settings: dict[str, Any] = {
        "max_steps": 3, "network_def#dropout": 0.0, "max_grad_norm": 0.05, "warmup_steps": 2, "optimizer": SGD
    }  # fmt: skip
    trained = train(workflow(**settings))
    again = workflow(**settings, run_dir=str(tmp_path / "other"))
    again.initialize()
    parser = again.parser
    network, dataset = parser.get_parsed_content("network_def"), parser.get_parsed_content("train#dataset")
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    average: dict[str, torch.Tensor] = {}
    for step in range(3):
        loss = torch.zeros(())
        for k in range(4 * step, 4 * step + 4):
            generator = torch.Generator().manual_seed(int(np.random.SeedSequence([0, 1, k]).generate_state(1)[0]))
            x0 = dataset[k]["image"][None]
            t = torch.randint(1000, (1,), generator=generator)
            grid = torch.rand(4, generator=generator).argsort().argsort() < 4 * (1000 - int(t)) // 1000
            visible = grid.reshape(1, 1, 2, 2).float().repeat_interleave(8, 2).repeat_interleave(8, 3)
            loss = loss + parser.get_parsed_content("loss_function")(network(x0 * visible, t), x0) / 4
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 0.05)
        assert norm > 0.05
        optimizer.param_groups[0]["lr"] = [0, 0.5, 1][step]
        optimizer.step()
        beta = min(0.9999, (1 + step) / (10 + step))
        for name, weight in network.state_dict().items():
            average[name] = weight.clone() if step == 0 else beta * average[name] + (1 - beta) * weight
    for name, weight in average.items():
        assert torch.allclose(weight, trained[name], atol=1e-6), name


def test_two_runs_are_bit_identical_and_seeds_differ(workflow: Workflow, tmp_path: Path) -> None:
    first = train(workflow(max_steps=2))
    assert same(first, train(workflow(max_steps=2, run_dir=str(tmp_path / "again"))))
    assert not same(first, train(workflow(max_steps=2, run_dir=str(tmp_path / "other"), seed=1)))


def test_micro_batches_give_the_same_step(workflow: Workflow, tmp_path: Path) -> None:
    whole = train(workflow(**ONE_STEP))
    parts = train(workflow(**ONE_STEP, accumulation_steps=4, run_dir=str(tmp_path / "parts")))
    for name in whole:
        assert torch.allclose(whole[name], parts[name], atol=1e-6), name
    uneven = workflow(**ONE_STEP, accumulation_steps=3, run_dir=str(tmp_path / "uneven"))
    refused_in_config("cannot be cut into 3", train, uneven)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_trains_on_the_cpu(workflow: Workflow, dtype: str, tmp_path: Path) -> None:
    seen = set()
    trainer = trainer_of(workflow(max_steps=2, amp_dtype=dtype))
    convolution = trainer.network.input_blocks[1][0].in_layers[2]
    convolution.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    trainer.run()
    assert seen == {getattr(torch, dtype)}
    assert trainer.optimization.scaler.is_enabled() == (dtype == "float16")
    assert all(w.dtype == torch.float32 for w in trainer.network.state_dict().values())
    assert np.isfinite(pd.read_csv(tmp_path / "run" / "metrics.csv")["loss"].iloc[-1])


def test_a_skipped_step_is_not_averaged(workflow: Workflow) -> None:
    trainer = trainer_of(workflow(max_steps=2, amp_dtype="float16"))
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    trainer.network.input_blocks[0][0].weight.register_hook(lambda grad: grad * float("inf"))
    trainer.run()
    assert same(before, trainer.network.state_dict())
    assert int(trainer.optimization.ema.n_averaged) == 0
    assert trainer.optimization.scaler.get_scale() < 2**16


@pytest.mark.parametrize(("what", "where"), [("loss", "loss"), ("gradient", "gradient")])
def test_non_finite_stops_and_keeps_the_last_checkpoint(workflow, what, where, tmp_path) -> None:
    trainer = trainer_of(workflow())

    @trainer.on(Events.ITERATION_STARTED(once=4))
    def break_it(engine: Any) -> None:
        if where == "loss":
            engine.loss_function = lambda pred, target, visible: pred.mean() * float("nan")
        else:
            engine.network.out[2].weight.register_hook(lambda grad: grad * float("nan"))

    refused(rf"The {what} became nan at step 4; the last good checkpoint is .*00000002.pt", trainer.run)
    kept = torch.load(tmp_path / "run" / "checkpoints" / "step_00000002.pt", weights_only=True)
    assert kept["step"] == 2
    assert all(torch.isfinite(w).all() for w in kept["network"].values())


# The others have tests of their own: of volumes, of several processes, of the real sets' studies, of the methods.
ELSEWHERE = {
    "ct_slices",
    "mr_slices",
    "volumes",
    "shards",
    "multi_gpu",
    "glas_study",
    "monuseg_study",
    "hippocampus_study",
    "frozen_segment",
    "instances_segment",
    "three_axes_segment",
    *METHODS,
}


@pytest.mark.parametrize(("overlay", "expected"), [("mae", 750), ("amp", 50)])
def test_previews_show_features_at_the_t_that_heads_read(
    overlay: str, expected: int, workflow: Workflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, read, features = trainer_of(workflow(overlay)), [], ADMUNet.features

    def recorded(self: ADMUNet, x: torch.Tensor, t: torch.Tensor, blocks: Any) -> list[torch.Tensor]:
        read.append(t.tolist())
        return features(self, x, t, blocks)

    monkeypatch.setattr(ADMUNet, "features", recorded)
    trainer.features(torch.zeros(2, 3, 16, 16))
    assert read == [[expected] * 2]


@pytest.mark.parametrize("overlay", sorted({p.stem for p in OVERLAYS.glob("*.json")} - ELSEWHERE))
def test_overlays_run(workflow: Workflow, overlay: str, tmp_path: Path) -> None:
    # The tiny sizes win over an overlay's; a data set's overlay is given the test's folder and no list.
    settings = {"preview_timesteps": [250, 999], "data_list": "none", "spacing": "null", "num_workers": 0}
    made = workflow(overlay, max_steps=2, accumulation_steps=2, **settings)
    train(made)
    assert made.parser["network_def"]["channel_mult"] == [1, 1]
    log = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert np.isfinite(log[["loss", "ssim_t999", "psnr_t250"]].iloc[-1]).all()


def test_layout_and_compile_switches(workflow: Workflow, tmp_path: Path) -> None:
    plain = train(workflow(**ONE_STEP))
    other = train(workflow(**ONE_STEP, channels_last=True, run_dir=str(tmp_path / "b")))
    for name in plain:
        assert torch.allclose(plain[name], other[name], atol=1e-6), name
        assert other[name].is_contiguous()
    network = trainer_of(workflow(compile=True, run_dir=str(tmp_path / "c"))).network
    assert network._compiled_call_impl is not None
    assert not any("_orig_mod" in name for name in network.state_dict())


def test_any_network_goes_in_and_its_plan_rebuilds_it(workflow: Workflow, tmp_path: Path) -> None:
    from medmdm.artifacts.pretrained import load_pretrained

    network = {
        "_target_": "monai.networks.nets.DiffusionModelUNet", "spatial_dims": 2, "in_channels": "@channels",
        "out_channels": "@channels", "channels": [8, 16], "attention_levels": [False, True], "num_res_blocks": 1,
        "num_head_channels": 8, "norm_num_groups": 4,
    }  # fmt: skip
    trained = train(workflow(max_steps=2, network_def=network))
    rebuilt, plan = load_pretrained(tmp_path / "run" / "model.pt")
    assert same(trained, rebuilt.state_dict())
    assert plan["network"]["in_channels"] == 3
    assert plan["steps"] == 2


def test_check_properties_is_empty(workflow: Workflow) -> None:
    made = workflow()
    made.initialize()
    assert made.check_properties() == []


def test_another_configuration_or_other_images_are_refused(workflow, image_folder, tmp_path) -> None:
    train(workflow(max_steps=2))
    written = (tmp_path / "run" / "model.pt").stat()
    refused_in_config(r"differs in max_steps, optimizer#lr\)", train, workflow(max_steps=3, **{"optimizer#lr": 0.5}))
    train(workflow(max_steps=2, num_workers=1))  # finished: nothing to do, and workers may change
    (image_folder / "a.png").unlink()
    refused_in_config("the images or their split", train, workflow(max_steps=2))
    left = (tmp_path / "run" / "model.pt").stat()
    assert (left.st_ino, left.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)  # nobody wrote it again


def test_dry_run_prints_the_plan_and_writes_nothing(workflow, tmp_path, capsys) -> None:
    made = workflow(dry_run=True)
    made.initialize()
    made.run()
    plan = capsys.readouterr().out
    parameters = sum(p.numel() for p in made.parser.get_parsed_content("network_def").parameters())
    for word in ("3 to train on", f"{parameters / 1e6:.2f} M parameters", "6,", "s each", "GiB of memory", "disk"):
        assert word in plan
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("override", "sentence"), [
    ({"max_epochs": 2}, "max_steps"),
    ({"amp_dtype": "half"}, "amp_dtype must be"),
    ({"accumulation_steps": 0}, "1 or more"),
    ({"target": "noise"}, "adds none"),
    ({"target": "imag"}, "did you mean 'image'"),
    ({"preview_timesteps": [1000]}, "preview_timesteps"),
    ({"channels": 1}, "channel"),
])  # fmt: skip
def test_bad_settings_get_a_sentence_before_the_first_step(workflow, override, sentence, tmp_path) -> None:
    override = {"train#trainer#max_epochs" if k == "max_epochs" else k: v for k, v in override.items()}
    refused_in_config(re.escape(sentence), train, workflow(**override))
    assert not (tmp_path / "run").exists()
