"""What MONAI's own tools read of a run: its handlers, its tracking, its check of properties, its export.

Siblings: handlers by their defaults and by ``from_engine``, on a trainer, an inference and an evaluation; bundles of
training and of inference; networks that are scripted and segmenters that are traced; a stock inference config.
"""

import json
import logging
import re
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monai.bundle
import monai.handlers.mlflow_handler as mlflow_handler
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.handlers import StatsHandler, TensorBoardStatsHandler, from_engine
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medmdm.artifacts import load_network, load_segmenter
from medmdm.backbones import ADMUNet
from medmdm.data.files.pictures import read_image
from tests.bundle_runs import BUNDLES, HEAD, Run, Workflow, run_python, write_backbone
from tests.made import SMALL, refused_in_config, with_random_weights
from tests.segment.conftest import pictures, run  # noqa: F401 - fixtures

LOSS = "$monai.handlers.from_engine(['loss'], first=True)"


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What StatsHandler prints."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("monai.handlers.StatsHandler")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def train(workflow: Workflow, *handlers: dict[str, Any], **more: Any) -> list[float]:
    """Run a pre-training of four steps with handlers; return the loss of each step."""
    losses: list[float] = []
    made = workflow(max_steps=4, **{"train#handlers": list(handlers)}, **more)
    made.initialize()
    trainer = made.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(float(e.state.output[0]["loss"])))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "ignoring non-scalar")
        made.run()
    assert len(losses) == 4
    return losses


@pytest.mark.parametrize("transform", [{}, {"output_transform": LOSS}], ids=["default", "from_engine"])
def test_stats_handler(workflow: Workflow, told: list[str], transform: dict[str, str]) -> None:
    losses = train(workflow, {"_target_": "StatsHandler", **transform})
    name = "Loss" if transform else "loss"
    for step, loss in enumerate(losses, start=1):
        (line,) = (text for text in told if f"Iter: {step}/4" in text)
        assert f"{name}: {loss:.4f}" in line


@pytest.mark.parametrize("transform", [{}, {"output_transform": LOSS}], ids=["default", "from_engine"])
def test_tensorboard_stats_handler(workflow: Workflow, tmp_path: Path, transform: dict[str, str]) -> None:
    folder = tmp_path / "events"
    losses = train(workflow, {"_target_": "TensorBoardStatsHandler", "log_dir": str(folder), **transform})
    events = EventAccumulator(str(folder))
    events.Reload()
    found = events.Scalars("Loss" if transform else "loss")
    assert [(one.step, one.value) for one in found] == [(n, pytest.approx(loss)) for n, loss in enumerate(losses, 1)]


class Client:
    """What ``mlflow.MlflowClient`` is to MONAI's handler, which keeps what it is given."""

    logged: list[tuple[str, float, int]]

    def __init__(self, tracking_uri: str | None = None) -> None:
        self.tracking_uri = tracking_uri

    def __getattr__(self, name: str) -> Any:
        """Whatever else is asked for does nothing."""
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *_, **__: types.SimpleNamespace(
            experiment_id="0", lifecycle_stage="active", info=types.SimpleNamespace(run_id="0"),
            data=types.SimpleNamespace(params={}),
        )  # fmt: skip

    def search_runs(self, *_: Any) -> list[Any]:
        return []

    def log_batch(self, run_id: str, metrics: list[Any], params: list[Any], tags: list[Any]) -> None:
        Client.logged += metrics


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, int]]:
    """A stub of mlflow, which is not installed here; the names and values that were logged, with their step."""
    entities = types.SimpleNamespace(
        RunStatus=types.SimpleNamespace(to_string=str, FINISHED="FINISHED"), Param=lambda *_: None,
        LifecycleStage=types.SimpleNamespace(ACTIVE="active"),
        Metric=lambda key, value, timestamp, step: (key, value, step),
    )  # fmt: skip
    Client.logged = []
    stub = types.SimpleNamespace(MlflowClient=Client, entities=entities)
    monkeypatch.setattr(mlflow_handler, "mlflow", stub)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Client.logged


def test_mlflow_tracking_of_a_pre_training(
    workflow: Workflow, mlflow: list[tuple[str, float, int]], tmp_path: Path
) -> None:
    where = {"output_dir": str(tmp_path / "tracked")}
    losses = train(workflow, tracking="mlflow", **where)
    assert [(value, step) for name, value, step in mlflow if name == "train_loss"] == [
        (pytest.approx(loss), step) for step, loss in enumerate(losses, 1)
    ]
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert not {"tracking_uri", "experiment_name", "run_name"} & set(recorded)
    assert recorded["train"]["handlers"] == []
    made = workflow(max_steps=4)  # goes on without tracking, and has nothing left to do
    made.initialize()
    made.run()
    refused_in_config("Unknown key 'experiment_nam'", workflow(tracking="mlflow", experiment_nam=1, **where).initialize)
    refused_in_config("Unknown key 'tracking_uri'", workflow(tracking_uri="x").initialize)  # without tracking


def test_tracking_and_handlers_of_evaluation_and_inference(
    run: Run,  # noqa: F811
    mlflow: list[tuple[str, float, int]],
    told: list[str],
    tmp_path: Path,
) -> None:
    run("mdm_segment", report=False)
    settings = {"segmenter": str(tmp_path / "run" / "segmenter.pt"), "tracking": "mlflow", "handlers": []}
    evaluated = {"run_dir": str(tmp_path / "e"), "report": False, "output_dir": str(tmp_path / "tracked")}
    scores = run("mdm_evaluate", **{**settings, **evaluated, "handlers": [{"_target_": "StatsHandler"}]})
    assert {name: value for name, value, _ in mlflow} == pytest.approx(scores)
    assert f"dice: {scores['dice']:.4f}" in told[-1]
    printing = {**settings, "handlers": [{"_target_": "StatsHandler"}]}
    assert len(run("mdm_infer", output_dir=str(tmp_path / "i"), **printing)) == 6
    assert re.search(r"Iter: 6/6 -- foreground: 0\.\d+", told[-1])
    seen: list[str] = []
    counting = {"_target_": "StatsHandler", "iteration_print_logger": lambda e: seen.append(e.state.batch["case"])}
    run("mdm_infer", output_dir=str(tmp_path / "j"), **{**settings, "tracking": None, "handlers": [counting]})
    assert seen == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.slow
def test_mlflow_itself_finds_the_metrics_in_the_run_folder(
    run: Run,  # noqa: F811
    workflow: Workflow,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = pytest.importorskip("mlflow").MlflowClient
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def metrics(folder: Path) -> dict[str, list[tuple[int, float]]]:
        found = client(tracking_uri=f"sqlite:///{folder / 'mlruns.db'}")
        (experiment,) = [one for one in found.search_experiments() if one.name == "monai_experiment"]
        (tracked,) = found.search_runs([experiment.experiment_id])
        assert tracked.info.status == "FINISHED"
        return {
            name: [(one.step, one.value) for one in found.get_metric_history(tracked.info.run_id, name)]
            for name in tracked.data.metrics
        }

    losses = train(workflow, tracking="mlflow", run_dir=str(tmp_path / "pre"))
    assert metrics(tmp_path / "pre")["train_loss"] == [(n, pytest.approx(loss)) for n, loss in enumerate(losses, 1)]
    scores = run("mdm_segment", tracking="mlflow", report=False)
    found = metrics(tmp_path / "run")
    assert {name: values[-1][1] for name, values in found.items()} == pytest.approx(scores)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["handlers"] == []
    run("mdm_segment", report=False)  # goes on without


def test_tracking_of_a_study_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = str(BUNDLES / "mdm_study.json")
    made = ConfigWorkflow(config_file=config, logging_file=False, tracking="mlflow")
    assert list(tmp_path.glob("eval/config_*.json"))  # MONAI's, before anything is checked
    refused_in_config("--tracking follows pretrain, segment, evaluate and infer, but not mdm_study", made.initialize)
    assert not list(tmp_path.iterdir())


def test_engines_read_as_those_of_monai() -> None:
    engine = Engine(lambda *_: [{"loss": torch.tensor(0.5), "grad_norm": torch.tensor(2.0), "batch_size": 4}])
    engine.run([0])
    assert from_engine(["loss"], first=True)(engine.state.output) == 0.5
    StatsHandler().attach(engine)
    assert TensorBoardStatsHandler  # imported as users do


@pytest.mark.parametrize("bundle", ["mdm_infer", "mdm_evaluate"])
def test_the_inference_bundles_have_all_properties(run: Run, bundle: str, tmp_path: Path) -> None:  # noqa: F811
    run("mdm_segment", report=False)
    folder = {"mdm_infer": "output_dir", "mdm_evaluate": "run_dir"}[bundle]
    made = ConfigWorkflow(
        config_file=str(BUNDLES / f"{bundle}.json"), logging_file=False, workflow_type="inference",
        segmenter=str(tmp_path / "run" / "segmenter.pt"), dataset_dir=str(tmp_path / "pictures"),
        **{folder: str(tmp_path / "out")},
    )  # fmt: skip
    made.initialize()
    assert made.check_properties() == []
    first = made.dataset[0]
    assert first.name == ("0" if bundle == "mdm_infer" else "4")
    assert made.network_def(first.examples[0].image[None]).shape[:2] == (1, 2)
    assert len(made.evaluator.run()) == (6 if bundle == "mdm_infer" else 2)


def test_the_training_bundle_has_all_properties(workflow: Workflow) -> None:
    made = workflow(tracking=None)
    made.initialize()
    assert made.check_properties() == []
    assert (made.max_epochs, len(made.train_dataset.data)) == (1, 3)


@pytest.mark.parametrize(
    "more",
    [
        {"spatial_dims": 3, "use_checkpoint": True},
        {"resblock_updown": False, "use_scale_shift_norm": False, "use_new_attention_order": True},
        {"resblock_updown": False, "conv_resample": False, "num_classes": 3},
    ],
)
@pytest.mark.slow
def test_a_scripted_network_equals_the_eager_one(more: dict[str, Any]) -> None:
    small = {**SMALL, "channel_mult": (1, 1), "attention_resolutions": (2,)}
    network = with_random_weights(ADMUNet(**{**small, **more}))
    x = torch.randn(2, 3, *[16] * more.get("spatial_dims", 2))
    inputs = (x, torch.tensor([3, 500]), *([torch.tensor([0, 2])] if "num_classes" in more else []))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = network(*inputs)
        assert torch.equal(torch.jit.script(network)(*inputs), expected)
        traced = torch.jit.trace(network, inputs, check_trace=False)
        torch.testing.assert_close(traced(*inputs), expected)


def export(config: dict[str, Any], folder: Path, weights: Path, **how: Any) -> torch.jit.ScriptModule:
    (folder / "config.json").write_text(json.dumps(config))
    target = folder / "exported.ts"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monai.bundle.ckpt_export(
            net_id="network_def", filepath=str(target), ckpt_file=str(weights), config_file=str(folder / "config.json"),
            meta_file=str(BUNDLES / "metadata.json"), **how,
        )  # fmt: skip
        return torch.jit.load(target)


@torch.no_grad()
@pytest.mark.parametrize("key", ["", "model"])
@pytest.mark.slow
def test_ckpt_export_of_a_backbone(tmp_path: Path, key: str) -> None:
    weights = write_backbone(tmp_path / "model.pt")
    expected = load_network(weights)
    config = {"network_def": {"_target_": "medmdm.backbones.ADMUNet", **expected.config}}  # type: ignore[dict-item]
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([50])
    assert torch.equal(export(config, tmp_path, weights, key_in_ckpt=key)(x, t), expected(x, t))


def test_ckpt_export_of_a_segmenter_by_tracing(run: Run, tmp_path: Path) -> None:  # noqa: F811
    run("mdm_segment", head=HEAD, report=False)
    weights = tmp_path / "run" / "segmenter.pt"
    config = json.loads((BUNDLES / "mdm_infer.json").read_text())
    del config["$schema"]
    config |= {"segmenter": str(weights), "device": "cpu"}
    expected = load_segmenter(weights)[0]
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    traced = export(config, tmp_path, weights, use_trace=True, input_shape=[1, 3, 16, 16])
    torch.testing.assert_close(traced(x), expected(x), rtol=1e-4, atol=1e-4)


def test_a_stock_inference_config_runs_our_segmenter(run: Run, tmp_path: Path) -> None:  # noqa: F811
    run("mdm_segment", head=HEAD, report=False)
    weights, folder = tmp_path / "run" / "segmenter.pt", tmp_path / "pictures"
    config = {
        "imports": ["$import glob", "$import medmdm.artifacts as artifacts"],
        "bundle_root": ".", "dataset_dir": str(folder), "output_dir": str(tmp_path / "stock"), "device": "cpu",
        "network_def": "$artifacts.load_segmenter(@weights)[0]", "weights": str(weights),
        "preprocessing": {"_target_": "Compose", "transforms": [
            {"_target_": "medmdm.data.LoadSliced", "keys": "image"},
            {"_target_": "medmdm.data.ScaleIntensityByDtyped", "keys": "image"},
        ]},
        "files": "$sorted(glob.glob(@dataset_dir + '/[0-9].png'))",
        "dataset": {"_target_": "Dataset", "data": "$[{'image': f} for f in @files]", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16], "overlap": 0.5},
        "postprocessing": {"_target_": "Compose", "transforms": [
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        ]},
        "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader",
            "network": "@network_def", "inferer": "@inferer", "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }  # fmt: skip
    (tmp_path / "inference.json").write_text(json.dumps(config))
    made = ConfigWorkflow(
        config_file=str(tmp_path / "inference.json"), meta_file=str(BUNDLES / "metadata.json"), logging_file=False,
        workflow_type="inference",
    )  # fmt: skip
    made.initialize()
    assert made.check_properties() == []
    masks: list[np.ndarray] = []
    made.evaluator.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: masks.append(np.asarray(e.state.output[0]["pred"]))
    )
    made.run()
    made.finalize()
    assert len(masks) == 6
    truth = read_image(folder / "5_mask.png")[0]
    assert masks[-1].shape == (1, *truth.shape)
    assert (masks[-1][0] == truth).mean() > 0.9


@pytest.mark.slow
def test_nothing_of_mlflow_is_needed(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['mlflow'] = None; import medmdm.pretrain, medmdm.segment, medmdm.zoo, medmdm.cli"
    run_python("-c", hidden, cwd=tmp_path)  # MONAI imports it wherever it is installed
