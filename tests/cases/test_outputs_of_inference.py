"""What an inference's folder was made from is written down and compared; images unlike the training ones are named.

Siblings: another segmenter under the same name, other post-processing, another spacing, masks of nobody's, another
image of the same name, a part of the images; pictures that are darker, brighter, of other colours, of one colour.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from medmdm.data.files.pictures import read_image
from medmdm.data.reading import Example, LoadedCase
from medmdm.files import OUTPUTS_MARK, file_hash, pixel_hash
from medmdm.segment.formats.base import COLOURS
from medmdm.segment.likeness import appearance, seen, unlike
from medmdm.segment.overlays import draw_overlay
from tests.bundle_runs import Run
from tests.segment.conftest import pictures, refused, run  # noqa: F401 - fixtures
from tests.written import picture

FOUND = {"_target_": "medmdm.segment.PostProcess", "instances": "components"}


def record_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}


def test_the_record_and_what_is_refused(run: Run, refused: Run, tmp_path: Path, caplog: Any) -> None:  # noqa: F811
    run("mdm_segment", postprocess=FOUND, report=False)
    segmenter, out = tmp_path / "run" / "segmenter.pt", tmp_path / "out"
    settings = {"segmenter": str(segmenter), "output_dir": str(out)}
    caplog.set_level(logging.WARNING, "medmdm")
    run("mdm_infer", write_overlays=2, **settings)
    assert not [text for text in caplog.messages if " unlike " in text]
    record = record_of(out)
    assert record["config"]["segmenter_sha256"] == file_hash(segmenter)
    assert record["config"]["dataset_dir"] == str(tmp_path / "pictures")
    assert {"torch", "monai"} <= set(record["sessions"][0]["versions"])
    assert record["data"] == {"segmented": 6, "unlike_training": 0}
    assert "patient 4" not in (out / "run.json").read_text()
    image = read_image(tmp_path / "pictures" / "1.png")
    kept = {k: v for k, v in record["images"][1].items() if k != "files"}
    assert kept == {
        "case": "1", "patient": "P2", "pixels_sha256": pixel_hash(image), "spacing": None, "unlike_training": [],
    }  # fmt: skip
    assert set(record["images"][1]["files"]) == {"predictions/*.png", "predictions/*_instances.png", "overlays/*.png"}
    assert {name for name in names(out) if "overlays" in name} == {"overlays/0.png", "overlays/1.png"}
    assert (out / "overlays" / OUTPUTS_MARK).exists()
    written, table = names(out), pd.read_csv(out / "boxes.csv")

    # The same again, from elsewhere and with other maps, is the same folder.
    (tmp_path / "moved.pt").write_bytes(segmenter.read_bytes())
    run("mdm_infer", **{**settings, "segmenter": str(tmp_path / "moved.pt")}, write_overlays=0, write_uncertainty=True)
    assert names(out) >= written
    pd.testing.assert_frame_equal(pd.read_csv(out / "boxes.csv"), table)

    # A part of the images, one of them changed: only its files are replaced.
    part = tmp_path / "part"
    picture(part / "0.png", np.full((28, 40, 3), 60))
    run("mdm_infer", dataset_dir=str(part), **settings)
    assert not (out / "predictions" / "0_uncertainty.tif").exists()
    assert (out / "predictions" / "1_uncertainty.tif").exists()
    boxes = pd.read_csv(out / "boxes.csv")
    others = [found[found["case"] != 0].reset_index(drop=True) for found in (boxes, table)]
    pd.testing.assert_frame_equal(*others)
    after = record_of(out)
    assert [image["case"] for image in after["images"]] == ["0", "1", "2", "3", "4", "5"]
    assert after["images"][0]["pixels_sha256"] != record["images"][0]["pixels_sha256"]

    # Others are refused, before anything is written.
    before = {name: (out / name).read_bytes() for name in names(out)}
    other = {"_target_": "medmdm.segment.PostProcess"}
    refused(
        "differs in postprocess, postprocess#_target_): choose another output_dir",
        "mdm_infer",
        postprocess=other,
        **settings,
    )
    refused("differs in image_spacing", "mdm_infer", image_spacing=0.5, **settings)
    run("mdm_evaluate", run_dir=str(tmp_path / "evaluated"), segmenter=str(segmenter), report=False)
    run("mdm_segment", run_dir=str(tmp_path / "again"), seed=5, report=False)
    segmenter.write_bytes((tmp_path / "again" / "segmenter.pt").read_bytes())
    refused("differs in segmenter_sha256): choose another output_dir", "mdm_infer", **settings)
    evaluated = {"run_dir": str(tmp_path / "evaluated"), "segmenter": str(segmenter), "report": False}
    refused("differs in segmenter_sha256): choose another run_dir", "mdm_evaluate", **evaluated)
    settings["output_dir"] = str(tmp_path / "again")
    refused("it differs in the bundle, mdm_segment", "mdm_infer", **settings)
    assert {name: (out / name).read_bytes() for name in names(out)} == before


def test_outputs_without_a_record_are_refused(run: Run, refused: Run, tmp_path: Path) -> None:  # noqa: F811
    run("mdm_segment", report=False)
    settings = {"segmenter": str(tmp_path / "run" / "segmenter.pt")}
    for number, name in enumerate(("predictions/4.png", "predictions/4_instances.nii.gz", "boxes.csv")):
        folder = tmp_path / f"out{number}"
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"of an earlier version")
        refused("holds masks, but no run.json", "mdm_infer", output_dir=str(folder), **settings)
        assert names(folder) == {name}


def test_an_image_unlike_the_training_ones_is_named_once(run: Run, tmp_path: Path, caplog: Any) -> None:  # noqa: F811
    run("mdm_segment", report=False)
    new = tmp_path / "new"
    picture(new / "white.png", np.full((30, 40, 3), 255))
    picture(new / "red.png", np.full((30, 40, 3), (200, 30, 30)))
    picture(new / "like.png", read_image(tmp_path / "pictures" / "0.png").transpose(1, 2, 0))
    settings = {"segmenter": str(tmp_path / "run" / "segmenter.pt"), "output_dir": str(tmp_path / "out")}
    caplog.set_level(logging.WARNING, "medmdm")
    run("mdm_infer", dataset_dir=str(new), **settings)
    told = [text for text in caplog.messages if " unlike " in text]
    assert [text.split()[0] for text in told] == ["red", "white"]
    assert "colourfulness" in told[0]
    assert "its dark end (1 % of the pixels are below) is 1.00" in told[1]
    record = record_of(tmp_path / "out")
    assert record["data"]["unlike_training"] == 2
    assert {image["case"] for image in record["images"] if image["unlike_training"]} == {"red", "white"}

    # A file of an earlier version, which does not say what it learnt from, works and warns of nothing.
    content = torch.load(settings["segmenter"], weights_only=True)
    del content["plan"]["task"]["images"]
    torch.save(content, tmp_path / "old.pt")
    caplog.clear()
    run("mdm_infer", dataset_dir=str(new), segmenter=str(tmp_path / "old.pt"), output_dir=str(tmp_path / "old"))
    assert not [text for text in caplog.messages if " unlike " in text]
    assert record_of(tmp_path / "old")["data"] == {"segmented": 3, "unlike_training": 0}


def case(values: np.ndarray, spacing: tuple[float, ...] | None = (0.5, 0.5)) -> LoadedCase:
    """A picture ``[C, H, W]`` in [-1, 1]."""
    example = Example(torch.as_tensor(values).float(), torch.zeros(values.shape[1:], dtype=torch.long), "x")
    return LoadedCase({"case": "x"}, [example], (), None, None, values.shape[1:], ("", ""), spacing)


def noise(channels: int, low: float, high: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, (channels, 40, 50))


Change = Callable[[np.ndarray], np.ndarray]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x, []),
        (lambda x: x * 0.9, []),
        (lambda x: x - 0.5, ["dark end", "bright end", "mean in channel 1", "mean in channel 2", "mean in channel 3"]),
        (lambda x: x * 3, ["dark end", "bright end", "colourfulness"]),
        (lambda x: x[:1].repeat(3, 0), ["colourfulness"]),
        (lambda x: x + np.array([0.4, 0, 0])[:, None, None], ["bright end", "mean in channel 1"]),
    ],
)
def test_intensities_and_colours(change: Change, said: list[str]) -> None:
    known = seen(case(noise(3, -0.5, 0.5, seed)) for seed in range(4))
    json.dumps(known)
    found = unlike(appearance(case(change(noise(3, -0.5, 0.5, 9)))), known)
    assert len(found) == len(said), found
    for part, text in zip(said, found, strict=True):
        assert part in text


@pytest.mark.parametrize(
    ("trained", "new", "said"),
    [
        ([(0.5, 0.5)], (0.7, 0.7), ""),
        ([(0.5, 0.5)], (0.8, 0.8), "its pixels are 0.8 x 0.8 mm (learnt from: 0.5 mm)"),
        ([(0.5, 0.5), (1.0, 1.0)], (0.3, 0.3), "its pixels are 0.3 x 0.3 mm (learnt from: 0.5 to 1 mm)"),
        ([(0.5, 0.5, 2.0)], (5.0, 0.5, 0.5), "its pixels are 0.5 x 0.5 x 5 mm (learnt from: 0.5 and 2 mm)"),
        ([(0.5, 0.5)], None, "the size of its pixels is not known (learnt from: 0.5 mm)"),
        ([(0.5, 0.5), None], (9.0, 9.0), ""),  # of some not known: nothing to compare with
    ],
)
def test_spacing(trained: list[tuple[float, ...] | None], new: tuple[float, ...] | None, said: str) -> None:
    values = noise(1, -0.5, 0.5)
    known = seen(case(values, spacing) for spacing in trained)
    assert unlike(appearance(case(values, new)), known) == ([said] if said else [])


def test_an_overlay_outlines_the_mask_on_the_image(tmp_path: Path) -> None:
    values = np.full((1, 40, 60), -1.0)
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 10:30] = 1
    mask[10:20, 30:40] = 2
    drawn = read_image(tmp_path / draw_overlay(tmp_path, case(values), mask))
    assert drawn.shape == (3, 40, 60)
    assert tuple(drawn[:, 10, 12]) == COLOURS[0]
    assert tuple(drawn[:, 15, 30]) == COLOURS[1]
    assert not drawn[:, 15, 20].any()  # inside, the image is seen
    assert not drawn[:, 5, 5].any()
    large = np.zeros((1, 300, 4000))
    assert read_image(tmp_path / draw_overlay(tmp_path, case(large), large[0].astype(int))).shape == (3, 77, 1024)
