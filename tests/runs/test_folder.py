import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medmdm.artifacts.pretrained import load_pretrained, make_plan, patient_hashes
from medmdm.backbones.adm_unet import ADMUNet
from medmdm.components import to_config
from medmdm.corruption import PatchMasking, UniformTimesteps
from medmdm.data.files.pictures import read_image
from medmdm.files import pixel_hash
from medmdm.objectives import L1Loss, Objective
from medmdm.runs.folder import RunFolder
from tests.bundle_runs import saved_by
from tests.made import refused


def folder(path: Path, data_hash: str = "h", **config: Any) -> RunFolder:
    config = {"bundle": "mdm_pretrain", "a": 1, **config}
    return RunFolder(path, config=config, plan={"format": 1}, data={"hash": data_hash, "images": 2}, seed=7)


def test_record_and_sessions(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    run.open()
    run.finish(5)
    folder(tmp_path / "run").open()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"] == {"bundle": "mdm_pretrain", "a": 1}
    assert record["seed"] == 7
    assert [s["steps"] for s in record["sessions"]] == [5, None]
    assert record["sessions"][0]["wall_seconds"] >= 0
    assert record["sessions"][0]["versions"]["torch"].startswith(torch.__version__.split("+")[0])


def test_what_may_change_and_what_not(tmp_path: Path) -> None:
    folder(tmp_path / "run", num_workers=0, dataset_dir="x").open()
    folder(tmp_path / "run", num_workers=4, dataset_dir="y").open()
    refused(r"differs in b\)", folder(tmp_path / "run", num_workers=0, dataset_dir="x", b=2).open)
    refused("the images or their split", folder(tmp_path / "run", "other", num_workers=0, dataset_dir="x").open)
    (tmp_path / "stranger" / "checkpoints").mkdir(parents=True)
    refused(r"no run\.json", folder(tmp_path / "stranger").open)
    (tmp_path / "file").write_text("")
    refused("cannot be made", folder(tmp_path / "file" / "run").open)


def test_weights_file_has_the_same_bytes_whatever_the_layout(tmp_path: Path) -> None:
    weights = nn.Conv2d(3, 4, 3).state_dict()
    for name, layout in (("a", torch.contiguous_format), ("b", torch.channels_last)):
        laid_out = {k: w.to(memory_format=layout) if w.ndim == 4 else w.clone() for k, w in weights.items()}
        folder(tmp_path / name).save_model(laid_out, 3)
    assert (tmp_path / "a" / "model.pt").read_bytes() == (tmp_path / "b" / "model.pt").read_bytes()
    assert folder(tmp_path / "a").saved_steps() == 3
    assert folder(tmp_path / "none").saved_steps() is None


def test_plan_rebuilds_the_network_and_hides_patients(tmp_path: Path) -> None:
    network = ADMUNet(model_channels=32, channel_mult=(1, 1), num_res_blocks=1, attention_resolutions=(2,),
                      num_head_channels=16, dropout=0.1)  # fmt: skip
    objective = Objective(PatchMasking(500, 4), UniformTimesteps(500), L1Loss())
    patients = ["TCGA-AB-1234", "TCGA-AB-1234", "7"]
    plan = make_plan(to_config(network), objective, 3, (32, 48), ["b", "a", "b"], patients)
    RunFolder(tmp_path, {}, plan, {"hash": "h", "images": 2}, 0).save_model(network.state_dict(), 9)
    rebuilt, read = load_pretrained(tmp_path / "model.pt")
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), rebuilt.parameters(), strict=True))
    assert rebuilt.config == network.config
    assert read == {**plan, "steps": 9}
    assert plan["ledger"]["images"] == ["a", "b"]
    assert len(plan["ledger"]["patients"]) == 2
    expected = hashlib.pbkdf2_hmac("sha256", b"7", plan["ledger"]["salt"].encode(), 20_000).hex()
    assert expected in plan["ledger"]["patients"]
    assert patient_hashes(["7"], "other salt") != [expected]
    assert b"TCGA" not in (tmp_path / "model.pt").read_bytes()
    assert plan["crop_size"] == [32, 48]
    assert plan["corruption"]["patch_size"] == 4


@pytest.mark.parametrize("inline", [False, True])
def test_no_patient_id_and_every_image_in_what_a_run_writes(workflow, image_folder, tmp_path, inline) -> None:
    data_list = {
        "name": "mine",
        "training": [{"image": f"{n}.png", "patient_id": f"PATIENT-{p}"} for n, p in (("a", "0815"), ("b", "4711"))],
        "test": [{"image": "c_x.png", "patient_id": "PATIENT-0042"}],
    }
    if not inline:
        (image_folder / "dataset.json").write_text(json.dumps(data_list))
    plan = saved_by(workflow(max_steps=2, **({"data_list": data_list} if inline else {})))["plan"]
    assert plan["ledger"]["images"] == sorted(pixel_hash(read_image(image_folder / f"{n}.png")) for n in "ab")
    assert len(plan["ledger"]["patients"]) == 2
    for file in (tmp_path / "run").rglob("*"):
        if file.is_file():
            assert b"PATIENT-" not in file.read_bytes(), file
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["patients"] == 2
    assert record["data"]["images"] == 2


@pytest.mark.parametrize(("name", "count"), [("glas", 85), ("monuseg", 30)])
def test_real_sets_train_on_their_training_images_only(workflow, real_data, name, count) -> None:
    made = workflow(name, max_steps=1, dataset_dir=str(real_data(name)), batch_size=2, crop_size=[64, 64])
    ledger = set(saved_by(made)["plan"]["ledger"]["images"])
    assert len(ledger) == count
    files = [p for p in real_data(name).rglob("*") if p.suffix in (".bmp", ".tif", ".png")]
    training, others = set(), set()
    for file in files:
        trains = file.name.startswith("train_") if name == "glas" else "Training" in str(file)
        is_image = "_anno" not in file.stem and file.parent.name != "Instances"
        (training if trains and is_image else others).add(pixel_hash(read_image(file)))
    assert ledger == training
    assert not ledger & others
