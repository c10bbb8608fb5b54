"""The picture of the features in the report's page."""

import base64
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medmdm.backbones import FeatureExtractor, RawPixels
from medmdm.heads import Segmenter
from medmdm.reports.pictures import feature_cases, feature_panel
from medmdm.segment.feature_panel import write_feature_panel
from tests.bundle_runs import Run

RIDGE = {"_target_": "medmdm.heads.ClosedFormHead", "method": "ridge"}


def test_cases_are_spread_evenly() -> None:
    assert feature_cases(0) == []
    assert feature_cases(2) == [0, 1]
    assert feature_cases(6) == [0, 1, 2, 3, 4, 5]
    assert feature_cases(13) == [0, 2, 4, 6, 8, 10]


def test_the_page_shows_it_and_stays_one_file(run: Run, tmp_path: Path) -> None:
    run("mdm_segment", head=RIDGE)
    panel = Image.open(tmp_path / "run" / "features.png")
    tile = 28 * round(128 / 28)  # the second case has 36 rows, the first 36 - 2; both 40 columns
    page = (tmp_path / "run" / "index.html").read_text()
    shown = re.search(r'<img src="data:image/(png|jpeg);base64,([^"]+)" class="features"', page)
    assert shown is not None
    assert Image.open(io.BytesIO(base64.b64decode(shown[2]))).size == panel.size
    assert panel.width >= 2 * tile
    assert "<h2" in page
    assert "1: 4, 2: 5" in re.sub(r"\s+", " ", page)
    assert not re.search(r'(src|href)="(?!data:|#)', page)

    from medmdm.reports import write_report

    write_report(tmp_path / "run")  # made again without the model
    assert 'class="features"' in (tmp_path / "run" / "index.html").read_text()
    (tmp_path / "run" / "features.png").write_bytes(b"\x89PNG no more")
    write_report(tmp_path / "run")
    assert 'class="features"' not in (tmp_path / "run" / "index.html").read_text()


def case(*shape: int, seed: int = 0) -> Any:
    image = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return SimpleNamespace(examples=[SimpleNamespace(image=image)])


def predictor(channels: int = 3) -> Any:
    extractor = FeatureExtractor(RawPixels(channels), [0], masking="none", normalize="none")
    head: Any = torch.nn.Identity()
    return SimpleNamespace(model=Segmenter(extractor, head), device="cpu")


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_shows_the_middle_of_images_of_any_channels(channels: int, tmp_path: Path) -> None:
    path = write_feature_panel([case(channels, 20, 31), case(channels, 24, 18, seed=1)], predictor(channels), tmp_path)
    assert path is not None
    scale = round(128 / 18)  # the smallest side is 18
    picture = np.asarray(Image.open(path))[16 + 4 :, 4:]
    first = picture[: 18 * scale : scale, : 18 * scale : scale]
    image = case(channels, 20, 31).examples[0].image[:, 1:19, 6:24]
    grey = image if channels == 3 else image[channels // 2].expand(3, -1, -1)
    np.testing.assert_allclose(first, ((grey + 1) * 127.5).round().movedim(0, -1), atol=1)
    assert feature_panel(tmp_path) is not None


def test_none_of_a_network_from_scratch(tmp_path: Path) -> None:
    (tmp_path / "features.png").write_bytes(b"of an earlier session")
    scratch: Any = SimpleNamespace(model=torch.nn.Identity(), device="cpu")
    assert write_feature_panel([case(3, 8, 8)], scratch, tmp_path) is None
    assert not (tmp_path / "features.png").exists()
    assert feature_panel(tmp_path) is None
