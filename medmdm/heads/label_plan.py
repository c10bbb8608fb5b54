"""How many labels are needed, from sums over pixels: fits to any few of the labelled images, and what to label next."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medmdm.backbones.extractor import Extractor
from medmdm.data.reading import LoadedCase
from medmdm.errors import UserError, counted
from medmdm.heads.classifier_network import LinearClassifier
from medmdm.heads.closed_form import ClosedFormHead
from medmdm.heads.pixel_sums import PixelSums
from medmdm.heads.predictor import Predictor
from medmdm.heads.segmenter import Segmenter
from medmdm.heads.task import Task

_SCORES_AT_ONCE = 1 << 26  # of all fits together, in an image: 256 MB
_EQUAL = 0.01  # relative difference of second moments below which two images are taken for the same


@dataclass(frozen=True)
class Draw:
    """Labelled cases in a random order, of which a curve takes the first ones.

    Args:
        order: numbers of the cases that may be taken.
        counts: how many are taken, in turn.
        left_out: for each count the numbers of the cases whose patients are not among those taken.
    """

    order: tuple[int, ...]
    counts: tuple[int, ...]
    left_out: tuple[tuple[int, ...], ...]


def draw_cases(patients: Sequence[Hashable], number: int = 20, seed: int = 0) -> list[Draw]:
    """Return random orders of labelled cases, and which cases each first part of them leaves out.

    In each a fifth of the patients, one at least, is never taken: each patient in turn, so that the largest fits leave
    out each about equally often. No patient is both taken and left out.

    Args:
        patients: of the cases, as :func:`medmdm.data.splits.patient_numbers`.
        number: of draws.
        seed: of the draws.

    Raises:
        UserError: all cases are of one patient, or there is no draw.
    """
    names = list(dict.fromkeys(patients))
    if len(names) < 2:
        raise UserError(
            f"The {counted(len(patients), 'labelled image')} are of one patient, so none can be left out to see what "
            "fewer labels give: label one of another patient."
        )
    if number < 1:
        raise UserError(f"A learning curve needs 1 draw or more, got {number}.")
    rng = np.random.default_rng([seed, 12])
    share = max(1, len(names) // 5)
    held: list[set[Hashable]] = []
    while len(held) < number:
        turn = [names[i] for i in rng.permutation(len(names))]
        held += [set(turn[i : i + share]) for i in range(0, len(names) - share + 1, share)]
    takable = [[i for i, name in enumerate(patients) if name not in out] for out in held[:number]]
    most = min(map(len, takable))
    counts = tuple(sorted({2**i for i in range(most.bit_length())} | {most}))
    draws = []
    for rest in takable:
        order = tuple(int(i) for i in rng.permutation(rest))
        seen = [{patients[i] for i in order[:count]} for count in counts]
        left_out = tuple(tuple(i for i, name in enumerate(patients) if name not in taken) for taken in seen)
        draws.append(Draw(order, counts, left_out))
    return draws


def curve_scores(
    cases: Sequence[LoadedCase],
    patients: Sequence[Hashable],
    draws: Sequence[Draw],
    task: Task,
    head: ClosedFormHead,
    extractor: Extractor,
) -> NDArray[np.float64]:
    """Fit to the first cases of each draw and score those that are left out.

    Every fit is one of sums (:class:`medmdm.heads.pixel_sums.PixelSums`), which are computed once a case; pixels are
    read once more to score all fits. Ridge, blocks and timesteps are chosen within each fit, patients left out in turn.

    Args:
        cases: the labelled ones.
        patients: of the cases, as for :func:`draw_cases`; those of one stay together where the head leaves some out.
        draws: from :func:`draw_cases`.
        task: classes, reading and device; its images are not looked at.
        head: closed-form.
        extractor: of features.

    Returns:
        Dice at the resolution at which images are read, the mean over the classes that label or mask hold:
        ``[draws, counts, cases]``; NaN where a case was not left out or has no such class.
    """
    sums = [case_sums(case, task, head, extractor) for case in cases]
    fits: dict[tuple[int, ...], LinearClassifier] = {}
    for draw in draws:
        for count in draw.counts:
            chosen = tuple(sorted(draw.order[:count]))
            if chosen not in fits:
                fits[chosen] = _fit([(patients[i], sums[i]) for i in chosen], task, head, extractor)
    scores = np.full((len(draws), len(draws[0].counts), len(cases)), np.nan)
    for number, case in enumerate(cases):
        places = [
            (d, k, tuple(sorted(draw.order[:count])))
            for d, draw in enumerate(draws)
            for k, count in enumerate(draw.counts)
            if number in draw.left_out[k]
        ]
        if not places:
            continue
        keys = list(dict.fromkeys(key for _, _, key in places))
        found = dict(zip(keys, _dice(case, [fits[key] for key in keys], task, extractor), strict=True))
        for d, k, key in places:
            scores[d, k, number] = found[key]
    return scores


def _fit(
    parts: Sequence[tuple[Hashable, PixelSums]], task: Task, head: ClosedFormHead, extractor: Extractor
) -> LinearClassifier:
    groups: dict[Hashable, list[PixelSums]] = {}
    for patient, part in parts:
        if float(part.counts.sum()):
            groups.setdefault(patient, []).append(part)
    names = list(groups)
    folds = [
        PixelSums.total(part for name in names[fold :: head.most_folds] for part in groups[name])
        for fold in range(min(head.most_folds, len(names)))
    ]
    if not folds:  # nothing is labelled: everything is background
        return LinearClassifier(in_channels=extractor.num_features, num_classes=task.num_classes).to(task.device)
    model = head.fit_sums(folds, task, extractor).model
    assert isinstance(model, Segmenter)
    assert isinstance(model.head, LinearClassifier)
    return model.head


def _dice(case: LoadedCase, heads: Sequence[LinearClassifier], task: Task, extractor: Extractor) -> NDArray[np.float64]:
    """Return the Dice of a case by each of several heads, whose scores are computed side by side: ``[len(heads)]``."""
    classes = task.num_classes
    hits, sizes = np.zeros((2, len(heads), classes - 1))
    largest = max(example.label.numel() for example in case.examples)
    step = max(1, _SCORES_AT_ONCE // (largest * classes))
    for start in range(0, len(heads), step):
        some = slice(start, start + step)
        weight = torch.cat([head.weight for head in heads[some]])
        bias = torch.cat([head.bias for head in heads[some]])
        model = Segmenter(extractor, LinearClassifier(weight, bias).to(task.device))
        predictor = Predictor(model, task.reading, device=task.device)
        for example in case.examples:
            scores = predictor.image(example.image)
            said = scores.reshape(-1, classes, *scores.shape[1:]).argmax(1)[:, example.known]
            true = example.label[example.known]
            for k in range(1, classes):
                hits[some, k - 1] += 2 * ((said == k) & (true == k)).sum(1).numpy()
                sizes[some, k - 1] += ((said == k).sum(1) + (true == k).sum()).numpy()
    each = np.divide(hits, sizes, out=np.full(sizes.shape, np.nan), where=sizes > 0)
    known = ~np.isnan(each)
    return np.where(known.any(1), np.nansum(each, 1) / np.maximum(known.sum(1), 1), np.nan)


def case_sums(case: LoadedCase, task: Task, head: ClosedFormHead, extractor: Extractor) -> PixelSums:
    """Return the sums of the labelled pixels of a case."""
    return PixelSums.total(head.sums(example, task, extractor) for example in case.examples)


def image_sums(case: LoadedCase, task: Task, head: ClosedFormHead, extractor: Extractor) -> PixelSums:
    """Return the sums of all pixels of a case without looking at its labels."""
    blank = [replace(example, label=torch.zeros_like(example.label)) for example in case.examples]
    return PixelSums.total(head.sums(example, task, extractor) for example in blank)


def next_to_label(
    labelled: Sequence[PixelSums], others: Mapping[str, PixelSums], ridge: float, count: int = 10
) -> list[tuple[str, float]]:
    """Choose the images that a linear fit to the labelled ones knows least of: those of the largest leverage.

    The leverage of an image, with its pixels' features as the rows of X (standardised as the labelled pixels are, and a
    constant), is ``trace(X (L'L + ridge n I)^-1 X')``, L being the n labelled pixels: how much more its pixels' scores
    vary, together, than a label does. After each choice its pixels count among the labelled ones. An image that is the
    same as a labelled or chosen one up to noise (second moments within 1 %) is passed over. Equal leverages go by name.

    Args:
        labelled: sums of the labelled pixels, of each image.
        others: of the unlabelled images, by name; see :func:`image_sums`.
        ridge: penalty per pixel, as of :func:`medmdm.heads.pixel_sums.fit_linear`.
        count: how many are chosen, at most.

    Returns:
        Their names, the best first, and their leverages when they were chosen.
    """
    total = PixelSums.total(labelled)
    moments = _Standardised(total)
    matrix = moments.of(total)
    penalty = torch.full((len(matrix),), max(ridge, 1e-9) * float(total.counts.sum()), dtype=torch.float64)
    penalty[0] = 0.0
    matrix = matrix + torch.diag(penalty)
    left = {name: moments.of(others[name]) for name in sorted(others)}
    for known in labelled:
        left = _unlike(moments.of(known), left)
    chosen: list[tuple[str, float]] = []
    while left and len(chosen) < count:
        inverse = torch.linalg.inv(matrix)
        leverages = {name: float((inverse * part).sum()) for name, part in left.items()}
        best = max(leverages, key=lambda name: leverages[name])  # the first of equal ones: they are sorted by name
        part = left.pop(best)
        chosen.append((best, leverages[best]))
        matrix = matrix + part
        left = _unlike(part, left)
    return chosen


def _unlike(image: Tensor, others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    least = _EQUAL * torch.linalg.norm(image)
    return {name: other for name, other in others.items() if torch.linalg.norm(other - image) > least}


class _Standardised:
    """Second moments ``[1 + C, 1 + C]`` of pixels about the mean of others and in units of their spread."""

    def __init__(self, sums: PixelSums) -> None:
        n = sums.counts.sum()
        self.mean = sums.products.sum(1) / n
        square = torch.diagonal(sums.gram) / n
        variance = square - self.mean.square()
        # Where the labelled pixels do not vary, the unit is their size: what does vary there is what they lack.
        unit = torch.where(variance > 1e-10 * square, variance, square).clamp_min(1e-12)
        self.scale = unit.sqrt()

    def of(self, sums: PixelSums) -> Tensor:
        """Return the sum over pixels of ``x x'``, x being a 1 and the standardised features."""
        n, total = sums.counts.sum(), sums.products.sum(1)
        cross = torch.outer(total, self.mean)
        centred = sums.gram - cross - cross.T + n * torch.outer(self.mean, self.mean)
        out = torch.empty(len(total) + 1, len(total) + 1, dtype=torch.float64)
        out[0, 0] = n
        out[0, 1:] = out[1:, 0] = (total - n * self.mean) / self.scale
        out[1:, 1:] = centred / torch.outer(self.scale, self.scale)
        return out
