"""Settings of the post-processing that are left to the labels: instances, how small an object may be, single parts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from medmdm.data.reading import LoadedCase
from medmdm.errors import UserError
from medmdm.labels import IGNORE
from medmdm.metrics.instances import panoptic_quality
from medmdm.segment.postprocessing import AUTO, PostProcess, Postprocessing, largest_parts

_SMALL = 5  # percentile of the labelled objects' sizes
_SHARE = 0.5  # of that size: what is smaller is no object
_LEFT_TO_LABELS = ("remove_small_objects", "instances", "keep_largest")
_VOLUMES = 2  # of which each class is in one piece: a single one may hold one of what others hold several
_TRIED = 2**24  # pixels of labelled cases whose objects are found again, to choose how: some seconds
_SPECKS = 0.01  # of a class: parts that together are smaller are slips of the hand


def follow_labels(
    postprocess: Postprocessing, label_type: str, support: Sequence[LoadedCase] = ()
) -> tuple[Postprocessing, list[str]]:
    """Replace what is ``"auto"`` by what the labels say.

    Where they number objects, instances are connected parts or found by watershed, whichever gives the labelled objects
    back from their own mask with the higher panoptic quality (mean of the first cases, up to 16 million pixels; the
    watershed where there are none), and parts smaller than half of the 5th percentile of the labelled objects (those
    that touch no edge of their image) become background. Where they hold classes, and each class is in one piece in
    each of at least two labelled volumes, only its largest part is kept.

    Args:
        postprocess: as it was set; only a :class:`medmdm.segment.PostProcess` can be left to the labels.
        label_type: of the data list: ``"classes"`` or ``"instances"``.
        support: the labelled cases that a head learns from, never those it is tested on.

    Returns:
        The post-processing, and a sentence for each setting that was chosen.
    """
    if not isinstance(postprocess, PostProcess):
        return postprocess, []
    if label_type != "instances":
        truths = [case.truth for case in support if case.truth is not None]
        truths = [truth for truth in truths if truth.ndim == 3 and min(truth.shape) > 1]
        if postprocess.keep_largest != AUTO or len(truths) < _VOLUMES or not all(map(_in_single_parts, truths)):
            return postprocess, []
        sentence = f"each class is in one piece in {len(truths)} labelled volumes, so its largest part is kept"
        return dataclasses.replace(postprocess, keep_largest=True), [f"{sentence} (postprocess#keep_largest)"]
    sentences = []
    if postprocess.instances == AUTO:
        postprocess, sentence = _with_instances(postprocess, support)
        sentences.append(sentence)
    if postprocess.remove_small_objects == AUTO:
        sizes = [size for case in support for size in _sizes(case, postprocess.in_mm)]
        if sizes:
            least = float(f"{_SHARE * np.percentile(sizes, _SMALL):.3g}")
            postprocess = dataclasses.replace(postprocess, remove_small_objects=least)
            unit = "mm² (mm³)" if postprocess.in_mm else "pixels"
            sentences.append(
                f"parts smaller than {least:g} {unit} are no objects: half of what 95 % of {len(sizes)} labelled ones "
                "have that touch no edge (postprocess#remove_small_objects)"
            )
    return postprocess, sentences


def follow_saved(postprocess: Postprocessing, saved: Callable[[], Postprocessing]) -> Postprocessing:
    """Replace what is ``"auto"`` by what a segmenter was saved with.

    Args:
        postprocess: as it was set.
        saved: gives the segmenter's own.

    Raises:
        UserError: the saved size is in another unit.
    """
    if not isinstance(postprocess, PostProcess):
        return postprocess
    left = [key for key in _LEFT_TO_LABELS if getattr(postprocess, key) == AUTO]
    own = saved() if left else None
    if not isinstance(own, PostProcess):
        return postprocess
    chosen = {key: getattr(own, key) for key in left}
    if chosen.get("remove_small_objects", AUTO) != AUTO and own.in_mm != postprocess.in_mm:
        problem = "postprocess#remove_small_objects is 'auto', and the segmenter's own is in another unit (in_mm)"
        raise UserError(f"{problem}: give a number.")
    return dataclasses.replace(postprocess, **chosen)


def _with_instances(postprocess: PostProcess, support: Sequence[LoadedCase]) -> tuple[PostProcess, str]:
    """Return what gives the labelled objects back best from their own mask, and a sentence."""
    ways = {name: dataclasses.replace(postprocess, instances=name) for name in ("watershed", "components")}
    scores: dict[str, list[float]] = {name: [] for name in ways}
    pixels = 0
    for case in support:
        if case.truth is None or case.instances is None or (postprocess.in_mm and case.spacing is None):
            continue
        if pixels >= _TRIED:
            break
        pixels += case.truth.size
        mask = np.where(case.truth == IGNORE, postprocess.background, case.truth).astype(np.uint8)
        for name, way in ways.items():
            found = way.finished(mask, case.spacing)["instances"]
            assert found is not None
            scores[name].append(panoptic_quality(found, case.instances))
    means = {name: float(np.nanmean(each)) for name, each in scores.items() if np.isfinite(each).any()}
    best = max(means, key=means.__getitem__, default="watershed")  # of equal ones the first
    sentence = f"labels number objects, so instances are found too (postprocess#instances: {best})"
    if means:
        each = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
        sentence += f": it gives the labelled objects back from their masks best, panoptic quality {each}"
    return ways[best], sentence


def _in_single_parts(truth: np.ndarray) -> bool:
    """Return whether each class of a label is one connected part, but for specks; a label without any is not."""
    mask = np.where(truth == IGNORE, 0, truth).astype(np.uint8)
    lost = np.bincount(mask[largest_parts(mask) != mask], minlength=256)
    return bool(mask.any()) and bool((lost <= _SPECKS * np.bincount(mask.ravel(), minlength=256))[1:].all())


def _sizes(case: LoadedCase, in_mm: bool) -> Sequence[float]:
    """Return the sizes of a case's labelled objects that touch no edge: those are cut off."""
    if case.instances is None or (in_mm and case.spacing is None):
        return []
    counts = np.bincount(case.instances.ravel())
    counts[0] = 0
    for axis in range(case.instances.ndim):
        for edge in (0, -1):
            counts[np.unique(case.instances.take(edge, axis))] = 0
    return (counts[counts > 0] * (math.prod(case.spacing or ()) if in_mm else 1.0)).tolist()
