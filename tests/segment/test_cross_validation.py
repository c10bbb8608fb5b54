import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medmdm.artifacts.segmenter_file import load_segmenter
from medmdm.data.reading import LoadedCase
from medmdm.segment.cross_validation import divide
from tests.bundle_runs import UNET, Run
from tests.made import refused as refused_call
from tests.written import picture


def without_test(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "dataset.json").read_text())
    del content["test"]
    (folder / "dataset.json").write_text(json.dumps(content))
    return content


def case(name: str, patient: str | None) -> LoadedCase:
    entry = {"case": name, "image": f"{name}.png", **({} if patient is None else {"patient_id": patient})}
    return LoadedCase(entry, (), (), None, None, (1, 1), ("", ""))


def region(image: str, top: int) -> LoadedCase:
    made = case(f"{image}_r{top}-{top + 32}", None)
    rows = {"image": f"{image}.png", "region": {"rows": [top, top + 32]}}
    return dataclasses.replace(made, entry={**made.entry, **rows})


def test_parts_share_no_patient() -> None:
    support = [case(str(n), f"p{n // 2}") for n in range(14)]
    parts = divide(support)
    assert len(parts) == 5
    assert sorted(c.name for part in parts for c in part) == sorted(c.name for c in support)
    patients = [{c.entry["patient_id"] for c in part} for part in parts]
    assert sum(map(len, patients)) == 7
    assert [len(part) for part in divide([case("a", None), case("b", None), case("c", None)])] == [1, 1, 1]
    refused_call("of one patient", divide, [case("a", "x"), case("b", "x")])


def test_regions_of_an_image_are_left_out_together() -> None:
    support = [region(image, top) for image in "ba" for top in (32, 0)]
    parts = [sorted(c.name for c in part) for part in divide(support)]
    assert sorted(parts) == [["a_r0-32", "a_r32-64"], ["b_r0-32", "b_r32-64"]]
    refused_call("of one patient", divide, support[:2])


def test_labelled_cases_are_left_out_in_turn(run: Run, pictures: Path, tmp_path: Path) -> None:
    without_test(pictures)
    scores = run("mdm_segment")
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert record["section"] == "training"
    assert record["stamp"]["kind"] == "cross-validated"
    assert "each of 4 labelled cases" in record["stamp"]["sentence"]
    assert "4 parts that share no patient" in record["stamp"]["sentence"]
    for number in range(4):
        plan = json.loads((tmp_path / "run" / "folds" / str(number) / "plan.json").read_text())
        assert len(plan["protocol"]["training_cases"]) == 3
    fitted = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert len(fitted["protocol"]["training_cases"]) == 4
    table = pd.read_csv(tmp_path / "run" / "per_case.csv")
    assert len(table) == 4
    assert scores["dice"] == pytest.approx(np.mean(table["dice"]))
    assert "Cross-validated" in (tmp_path / "run" / "index.html").read_text()
    # What is left out is segmented by the model that has not seen it: as a run of that model alone segments it.
    held = next(n for n in range(4) if "0" not in _cases(tmp_path / "run" / "folds" / str(n)))
    content = json.loads((pictures / "dataset.json").read_text())
    alone = {**content, "test": [e for e in content["training"] if e["image"] == "0.png"], "training": []}
    alone["training"] = [e for e in content["training"] if e["image"] != "0.png"]
    segmenter = str(tmp_path / "run" / "folds" / str(held) / "segmenter.pt")
    run("mdm_evaluate", run_dir=str(tmp_path / "alone"), segmenter=segmenter, data_list=alone)
    again = pd.read_csv(tmp_path / "alone" / "per_case.csv")
    first = table[table["case"] == 0]
    # Features that were kept are rounded to 16 bits.
    assert float(again["uncertainty"].iloc[0]) == pytest.approx(float(first["uncertainty"].iloc[0]), rel=1e-4)


def _cases(folder: Path) -> list[str]:
    found: list[str] = json.loads((folder / "plan.json").read_text())["protocol"]["training_cases"]
    return found


def test_a_killed_cross_validation_goes_on(run: Run, pictures: Path, tmp_path: Path) -> None:
    without_test(pictures)
    first = run("mdm_segment", report=False)
    kept = (tmp_path / "run" / "folds" / "2" / "segmenter.pt").read_bytes()
    (tmp_path / "run" / "folds" / "2" / "segmenter.pt").unlink()
    (tmp_path / "run" / "evaluation.json").unlink()
    assert run("mdm_segment", report=False) == first
    assert (tmp_path / "run" / "folds" / "2" / "segmenter.pt").read_bytes() == kept


def test_a_few_are_labelled_and_the_rest_gets_masks(run: Run, pictures: Path, tmp_path: Path) -> None:
    content = without_test(pictures)
    content["unlabeled"] = ["4.png", {"image": "5.png"}]
    (pictures / "dataset.json").write_text(json.dumps(content))
    run("mdm_segment", report=False)
    found = sorted(path.name for path in (tmp_path / "run" / "applied" / "predictions").glob("?.png"))
    assert found == ["4.png", "5.png"]
    segmenter = str(tmp_path / "run" / "segmenter.pt")
    run("mdm_infer", output_dir=str(tmp_path / "inferred"), segmenter=segmenter)
    for name in found:
        masks = [tmp_path / folder / "predictions" / name for folder in ("run/applied", "inferred")]
        assert masks[0].read_bytes() == masks[1].read_bytes()
    others = tmp_path / "others"
    others.mkdir()
    (others / "new.png").write_bytes((pictures / "5.png").read_bytes())
    run("mdm_segment", report=False, run_dir=str(tmp_path / "second"), apply_to=str(others))
    mask = tmp_path / "second" / "applied" / "predictions" / "new.png"
    assert mask.read_bytes() == (tmp_path / "run" / "applied" / "predictions" / "5.png").read_bytes()


def test_unlabelled_images_are_looked_at_by_a_head_that_can(run: Run, pictures: Path, tmp_path: Path) -> None:
    content = without_test(pictures)
    content["unlabeled"] = ["4.png", "5.png"]
    (pictures / "dataset.json").write_text(json.dumps(content))
    unlabelled = {"_target_": "medmdm.heads.Consistency", "ramp": [0, 0]}
    run("mdm_segment", report=False, head={**UNET, "unlabelled": unlabelled}, shots=3)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["unlabelled"]["images"] == 3  # one training image beyond the three, and two that nobody labelled
    stamp = json.loads((tmp_path / "run" / "evaluation.json").read_text())["stamp"]
    assert "unlabelled" not in stamp["sentence"]


def test_an_image_that_cannot_be_read_leaves_the_scores(run: Run, refused: Run, pictures: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    whole = (pictures / "5.png").read_bytes()
    (others / "broken.png").write_bytes(whole[: len(whole) // 2])
    refused("broken.png is truncated or damaged", "mdm_segment", apply_to=str(others))
    assert (tmp_path / "run" / "per_case.csv").is_file()


def test_what_was_among_the_unlabelled_images_is_not_said_of_the_encoder(
    run: Run, pictures: Path, tmp_path: Path
) -> None:
    content = without_test(pictures)
    (pictures / "copy.png").write_bytes((pictures / "1.png").read_bytes())
    (pictures / "dataset.json").write_text(json.dumps({**content, "unlabeled": ["copy.png"]}))
    unlabelled = {"_target_": "medmdm.heads.Consistency", "ramp": [0, 0]}
    run("mdm_segment", report=False, head={**UNET, "unlabelled": unlabelled})
    stamp = json.loads((tmp_path / "run" / "evaluation.json").read_text())["stamp"]
    assert "The unlabelled images that every fit looks at: 1 of 4 test images were seen" in stamp["sentence"]
    assert "encoder" not in stamp["sentence"]
    assert stamp["overlapping"] == ["1"]


def test_the_least_size_of_objects_follows_the_cases_that_are_not_left_out(
    run: Run, pictures: Path, tmp_path: Path
) -> None:
    content = without_test(pictures)
    (pictures / "dataset.json").write_text(json.dumps({**content, "label_type": "instances"}))
    small = np.zeros((28, 40), np.uint8)
    small[4:6, 4:6] = 1
    picture(pictures / "0_mask.png", small)  # the others have 12 x 16 pixels
    run("mdm_segment", head={"_target_": "medmdm.heads.ClosedFormHead"}, report=False)
    files = [tmp_path / "run" / "segmenter.pt", *(tmp_path / "run" / "folds").glob("*/segmenter.pt")]
    whole, *folds = [load_segmenter(path)[1]["task"]["postprocess"]["remove_small_objects"] for path in files]
    assert whole == pytest.approx(np.percentile([4, 192, 192, 192], 5) / 2, rel=1e-2)
    assert sorted(folds) == pytest.approx([np.percentile([4, 192, 192], 5) / 2] * 3 + [96], rel=1e-2)
