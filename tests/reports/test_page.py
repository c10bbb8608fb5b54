from __future__ import annotations

import base64
import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmdm.reports import write_comparison, write_report
from medmdm.reports.pictures import CasePicture
from medmdm.reports.rendering import environment
from medmdm.reports.report import Album, chosen, make_page
from medmdm.reports.scoring import ScoredCase, score_cases
from medmdm.reports.summary import Pseudonyms, make_summary
from medmdm.runs.record import Evaluation
from tests.reports.runs import change, change_case, picture_run, study, volume_run

VOID = {"meta", "img", "br", "hr", "input", "link", "wbr"}


class Reader(HTMLParser):
    """Collects tags, ids, references and text; refuses tags that are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("pages")
    pictures = picture_run(root / "pictures", cases=16)
    study(pictures / "study.csv", ["case_0", "case_1", "case_2"])
    change(pictures, study="study.csv")
    volumes = volume_run(root / "volumes")
    return {run.parent.name: write_report(run).read_text(encoding="utf-8") for run in (pictures, volumes)}


@pytest.mark.parametrize(("name", "cases"), [("pictures", 16), ("volumes", 3)])
def test_the_page_is_whole_and_needs_nothing_else(pages: dict[str, str], name: str, cases: int) -> None:
    page = Reader(pages[name])
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "img")
        assert "src" not in attributes
        assert not [key for key in attributes if key.startswith("on")]  # no script outside the one
        target = attributes.get("href", "#")
        assert target in ("#", *(f"#{name}" for name in ids)) or target.startswith("data:image/"), target
    assert not re.findall(r"url\((?!#)|@import", pages[name])
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    (script,) = re.findall(r"<script>(.*?)</script>", pages[name], re.DOTALL)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert policy.startswith("default-src 'none'")
    # Every case can be opened from the table.
    openers = [b["data-case"] for b in page.all("button") if b.get("class") == "open"]
    assert openers == [str(i) for i in range(cases)]
    assert {t["id"] for t in page.all("template")} == {f"case-{i}" for i in range(cases)}
    assert all(b.get("type") == "button" for b in page.all("button"))


def test_sections_are_there_where_there_is_something_to_show(pages: dict[str, str]) -> None:
    heading = re.compile(r'<h2 id="[a-z-]+">([^<]*)</h2>')
    headings = {name: heading.findall(page.partition("<dialog")[0]) for name, page in pages.items()}
    always, only = ["Scores", "Distribution", "Pictures", "All cases"], ["Subgroups", "Uncertainty", "Learning curve"]
    assert headings["pictures"] == [*always, *only, "Record", "Definitions"]
    assert headings["volumes"] == [*always, "Record", "Definitions"]


def test_pictures_are_in_the_page_once_and_as_they_are(pages: dict[str, str], tmp_path: Path) -> None:
    symbols = r'<symbol id="pic-(\d+)"[^>]*><g class="layer-image"><image href="data:image/png;base64,([^"]*)"'
    uris = dict(re.findall(symbols, pages["pictures"]))
    assert set(uris) == {str(i) for i in range(16)}
    assert all(pages["pictures"].count(uri) == 1 for uri in uris.values())
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uris["3"]))))
    run = picture_run(tmp_path, cases=4)
    original = np.asarray(Image.open(run.parent / "data" / "case_3.png"))
    assert np.array_equal(shown, original)  # small ones are kept without loss


def test_text_from_files_is_text(tmp_path: Path) -> None:
    run = picture_run(tmp_path, cases=3)
    bad = "</title><script>alert(1)</script>\"'<img src=x onerror=alert(2)>"
    change(run, dataset=bad, protocol={bad: bad}, class_names=["background", bad])
    change_case(run, 0, case=bad, columns={bad: bad})
    change_case(run, 1, columns={bad: "other"})
    (run / "run.json").write_text('{"x": "</pre><script>alert(3)</script>"}')
    other = picture_run(tmp_path, cases=3, name="<img src=x onerror=alert(4)>")
    change_case(other, 0, case=bad)
    change(other, protocol={"head": bad})
    for path in (write_report(run), write_comparison([run, other], tmp_path / "comparison")):
        page = Reader(path.read_text())
        assert len(page.all("script")) == 1
        assert not page.all("img")
        assert bad in "".join(page.text)


def scored(dices: list[float]) -> list[ScoredCase]:
    return [ScoredCase(f"c{i}", i, None, {}, False, {"dice": dice}) for i, dice in enumerate(dices)]


def test_worst_median_and_best_do_not_overlap() -> None:
    rows = chosen(scored([i / 20 for i in range(20)]))
    expected = [[0, 1, 2, 3, 4], [7, 8, 9, 10, 11], [19, 18, 17, 16, 15]]
    assert [[case.number for case in row] for _, row in rows] == expected
    for number in (6, 8, 13):
        names = [case.number for _, row in chosen(scored([0.1 * i for i in range(number)])) for case in row]
        assert len(names) == len(set(names))
    assert [[case.number for case in row] for _, row in chosen(scored([0.3, float("nan"), 0.1]))] == [[2, 0]]
    assert chosen(scored([float("nan")])) == []


def test_the_pictures_of_a_page_are_bounded_and_the_galleries_served_first(tmp_path: Path) -> None:
    evaluation = Evaluation.load(picture_run(tmp_path, cases=18))
    cases = score_cases(evaluation, surface=False).cases
    sizes = [case.picture.size for case in cases if case.picture is not None]
    budget = int(sum(sizes) * 15.5 / 18)
    album = Album(cases, budget)
    store = environment().get_template("cases.html.j2").module.store(album)  # type: ignore[attr-defined]
    assert len(store) < 1.2 * budget + 10_000
    assert 0 < album.missing <= 4
    shown = {case.number for _, row in chosen(cases) for case in row}
    assert shown <= set(album.pictures)
    assert Album(cases).missing == 0


def test_a_page_without_pictures_or_patients_is_still_one(tmp_path: Path) -> None:
    evaluation = Evaluation.load(volume_run(tmp_path))
    scores = score_cases(evaluation)
    summary = make_summary(evaluation, scores, Pseudonyms([]))
    page = Reader(make_page(summary, [replace(case, picture=None) for case in scores.cases]))
    assert not page.all("symbol")
    assert "Patient" not in "".join(page.text)


@pytest.mark.parametrize("count", [401, 2000, 6000])
@pytest.mark.slow
def test_pictures_of_many_cases_are_the_extremes_and_a_sample(count: int) -> None:
    cases = scored([(i * 7919 % count) / count for i in range(count)])
    for case in cases:
        case.picture = CasePicture(100, 100, bytes(9000), {1: "M0 0h9z"}, {})
    album = Album(cases)
    extremes = {case.number for _, row in chosen(cases) for case in row}
    assert extremes <= set(album.pictures)
    assert sum(picture.size for picture in album.pictures.values()) <= 5_000_000
    assert album.missing == count - len(album.pictures) > 0
    others = sorted(set(album.pictures) - extremes)
    assert max(others) > 0.9 * count  # from the whole list, not from its start
    assert len([number for number in others if number < count / 2]) < 0.6 * len(others)
    assert [case.number for case in cases if album.opens(case.number)] == sorted(album.pictures)


@pytest.mark.slow
def test_of_many_cases_those_without_a_picture_say_so_and_stay_in_the_table(tmp_path: Path) -> None:
    evaluation = Evaluation.load(picture_run(tmp_path, cases=6))
    scores = score_cases(evaluation, surface=False)
    summary = make_summary(evaluation, scores, Pseudonyms([]))
    few, one = make_page(summary, scores.cases), scores.cases[0]
    many = [replace(scores.cases[i % 6], number=i, name=f"case_{i}", picture=None) for i in range(450)]
    many[7] = replace(many[7], picture=replace(one.picture, image=bytes(3_000_000)))
    many[8] = replace(many[8], picture=replace(one.picture, image=bytes(3_000_000)))
    page = make_page(summary, many)
    reader = Reader(page)
    assert "has no picture here and cannot be opened" in page
    assert "cannot be opened" not in few
    assert len(reader.all("template")) == 1
    assert all(f">{case.name}<" in page for case in many)
