from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from medmdm.backbones.cache import CachedExtractor
from medmdm.backbones.feature_maps import stack
from medmdm.data.reading import Example, LoadedCase
from medmdm.heads.closed_form import ClosedFormHead
from medmdm.heads.label_plan import (
    case_sums,
    curve_scores,
    draw_cases,
    image_sums,
    next_to_label,
)
from medmdm.heads.pixel_sums import PixelSums
from medmdm.heads.predictor import Predictor
from medmdm.labels import IGNORE
from medmdm.metrics.pixels import mean_scores
from tests.made import WINDOW, made_example, made_extractor, refused, task

HEAD = ClosedFormHead("ridge", ridges=[1e-3, 1e-1])


def made_case(seed: int, patient: str | None = None, **made: Any) -> LoadedCase:
    example = made_example(seed, WINDOW, **made)
    entry = {
        "case": example.case,
        "image": f"{example.case}.png",
        **({} if patient is None else {"patient_id": patient}),
    }
    return LoadedCase(entry, [example], (), None, example.label.numpy(), WINDOW, ("", ""))


@pytest.mark.parametrize("patients", [
    ["a", "a", "a", "b", "c", "c"], list("abcdefghijklmnopq"), ["a"] * 10 + ["b"], list("aabbccddeeffgg"),
])  # fmt: skip
def test_patients_never_straddle(patients: list[str]) -> None:
    draws = draw_cases(patients, 30)
    assert draws == draw_cases(patients, 30)
    assert draws != draw_cases(patients, 30, seed=1)
    never: set[str] = set()
    for draw in draws:
        assert draw.counts == draws[0].counts
        for count, left_out in zip(draw.counts, draw.left_out, strict=True):
            taken = {patients[i] for i in draw.order[:count]}
            assert len(set(draw.order[:count])) == count
            assert left_out
            assert taken.isdisjoint(patients[i] for i in left_out)
        never |= {patients[i] for i in draw.left_out[-1]}
    assert never == set(patients)


def test_counts_and_refusals() -> None:
    assert draw_cases(list("abcdefgh"))[0].counts == (1, 2, 4, 7)
    assert draw_cases(["a", "b"])[0].counts == (1,)
    assert draw_cases(["a", "a", "a", "b"])[0].counts == (1,)
    refused("of one patient", draw_cases, ["a", "a"])
    refused("1 labelled image are of one patient", draw_cases, ["a"])
    refused("1 draw or more", draw_cases, ["a", "b"], 0)


@pytest.mark.parametrize(("classes", "reading"), [(2, {}), (3, {"whole": True})])
def test_fits_to_sums_score_as_fits_to_the_images_do(classes: int, reading: dict[str, Any]) -> None:
    cases = [made_case(seed, "same" if seed < 2 else str(seed), classes=classes) for seed in range(5)]
    cases[3].examples[0].label[:, :9] = IGNORE
    cached = CachedExtractor(made_extractor())
    support = task([c.examples[0] for c in cases], classes, **reading)
    names = [c.entry["patient_id"] for c in cases]
    draws = draw_cases(names, 4)
    scores = curve_scores(cases, names, draws, support, HEAD, cached)
    assert scores.shape == (4, len(draws[0].counts), 5)
    assert cached.extracted == 5
    for d, draw in enumerate(draws):
        for k, count in enumerate(draw.counts):
            chosen = [cases[i].examples[0] for i in sorted(draw.order[:count])]
            patients = [cases[i].entry["patient_id"] for i in sorted(draw.order[:count])]
            chosen = [replace(e, group=p) for e, p in zip(chosen, patients, strict=True)]
            model = HEAD.fit(task(chosen, classes, **reading), cached).model
            predictor = Predictor(model, support.reading)
            for i, case in enumerate(cases):
                example = case.examples[0]
                if i not in draw.left_out[k]:
                    assert np.isnan(scores[d, k, i])
                    continue
                mask = predictor.image(example.image).argmax(0).numpy()
                expected = mean_scores(mask, example.label.numpy(), classes, IGNORE)["dice"]
                assert scores[d, k, i] == pytest.approx(expected, abs=2e-3)


def test_slices_of_a_volume_are_one_case_and_unlabelled_images_are_harmless() -> None:
    volume = LoadedCase(
        {"case": "v", "image": "v.nii"},
        [made_example(s, WINDOW) for s in range(3)],
        (0, 1, 2),
        None,
        None,
        (),
        ("", ""),
    )
    nothing = made_case(7)
    nothing.examples[0].label[:] = IGNORE
    cases = [volume, made_case(5), made_case(6), nothing]
    examples = [e for case in cases for e in case.examples]
    names = list("vxyz")
    cached = CachedExtractor(made_extractor())
    scores = curve_scores(cases, names, draw_cases(names, 8), task(examples), HEAD, cached)
    assert np.isnan(scores[:, :, 3]).all()
    assert np.nanmax(scores[:, :, 0]) > 0.9


def pixels(case: LoadedCase, extractor: Any) -> np.ndarray:
    (example,) = case.examples
    maps = stack(extractor(example.image[None]), WINDOW)[0]
    return maps[:, example.known].T.double().numpy()


def test_the_leverage_is_that_of_the_pixels_and_the_choice_is_greedy() -> None:
    extractor, support = made_extractor(blocks=[1]), task([made_example(0, WINDOW)])
    labelled = [made_case(0), made_case(1)]
    others = {f"image {s}": made_case(s, noise=0.1 * s) for s in range(2, 8)}
    sums = {name: image_sums(case, support, HEAD, extractor) for name, case in others.items()}
    ridge = 1e-2
    chosen = next_to_label([case_sums(c, support, HEAD, extractor) for c in labelled], sums, ridge, 4)

    x = np.concatenate([pixels(c, extractor) for c in labelled])
    mean, scale, n = x.mean(0), x.std(0), len(x)
    rows = {name: np.c_[np.ones(1024), (pixels(c, extractor) - mean) / scale] for name, c in others.items()}
    known, penalty = np.c_[np.ones(n), (x - mean) / scale], ridge * n * np.eye(x.shape[1] + 1)
    penalty[0, 0] = 0
    left = dict(rows)
    for name, leverage in chosen:
        inverse = np.linalg.inv(known.T @ known + penalty)
        direct = {key: np.trace(one @ inverse @ one.T) for key, one in left.items()}
        assert name == max(direct, key=lambda key: direct[key])
        assert leverage == pytest.approx(direct[name], rel=1e-3)
        known = np.concatenate([known, left.pop(name)])


def test_equal_images_are_chosen_once_and_by_name() -> None:
    extractor, support = made_extractor(blocks=[1]), task([made_example(0, WINDOW)])
    first = made_case(0)
    odd = made_case(9, noise=0.9)
    (example,) = odd.examples
    again = replace(example, image=(example.image + 1e-3 * torch.randn(3, *WINDOW)).clamp(-1, 1))
    mirrored = Example(first.examples[0].image.clone(), first.examples[0].label)  # labelled already, under another name
    copies = {"z": odd, "a": odd, "noisy": replace(odd, examples=[again]), "known": replace(first, examples=[mirrored])}
    others = {**copies, "other": made_case(3), "another": made_case(4)}
    sums = {name: image_sums(case, support, HEAD, extractor) for name, case in others.items()}
    known = [case_sums(first, support, HEAD, extractor)]
    chosen = [name for name, _ in next_to_label(known, sums, 1e-2)]
    assert sorted(set(chosen) & {"z", "a", "noisy"}) in (["a"], ["noisy"])
    assert {"other", "another"} < set(chosen)
    assert "known" not in chosen
    del sums["noisy"]
    assert next_to_label(known, sums, 1e-2)[0][0] == "a"
    backwards = dict(reversed(list(sums.items())))
    assert next_to_label(known, backwards, 1e-2) == next_to_label(known, sums, 1e-2)
    assert next_to_label(known, {}, 1e-2) == []


def test_labels_of_the_unlabelled_are_not_looked_at() -> None:
    extractor, support = made_extractor(), task([made_example(0, WINDOW)])
    case = made_case(3)
    (example,) = case.examples
    scribbles = torch.full(WINDOW, IGNORE)
    for label in (scribbles, 1 - example.label):
        other = replace(case, examples=[replace(example, label=label)])
        mine, its = (image_sums(c, support, HEAD, extractor) for c in (case, other))
        assert torch.equal(mine.gram, its.gram)
        assert torch.equal(mine.products, its.products)
    whole = PixelSums.total([mine])
    assert float(whole.counts.sum()) == 1024
