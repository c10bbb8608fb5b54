"""How images look in a few numbers, and where new ones lie outside what a segmenter learnt from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from medmdm.data.reading import LoadedCase, PictureInParts

#: A pixel or slice may be so many times larger, or smaller, than any that was learnt from.
SPACING_FACTOR = 1.5
#: What intensities and colours may lie outside: this, on the scale of −1 to 1, or half of what they spread in training.
MARGIN = 0.2
_SLICES = 16  # of a volume that are looked at
_PIXELS = 100_000  # of an image
_NAMES = {
    "dark": "its dark end (1 % of the pixels are below)",
    "bright": "its bright end (1 % of the pixels are above)",
    "colour": "its colourfulness (the mean difference between its channels)",
}


def appearance(case: LoadedCase) -> dict[str, Any]:
    """Describe a case as a network reads it, intensities on the plan's scale of −1 to 1.

    Args:
        case: as :class:`medmdm.data.CaseReader` reads it.

    Returns:
        ``"spacing"``: mm of the file's own grid, finest first, None where it is not known; ``"dark"`` and ``"bright"``:
        percentiles 1 and 99; ``"mean"`` of each channel; ``"colour"``: mean difference between the largest and the
        smallest channel, of pictures with three.
    """
    if isinstance(case.examples, PictureInParts):
        flat = case.examples.pixels.reshape(len(case.examples.pixels), -1)
        pixels = case.examples.scale(flat[:, :: max(1, flat.shape[1] // _PIXELS)])
    else:
        step = max(1, len(case.examples) // _SLICES)
        images = [example.image.flatten(1) for example in case.examples[::step]]
        pixels = images[0] if len(images) == 1 else torch.cat(images, dim=1)  # a large picture is not copied
        pixels = pixels[:, :: max(1, pixels.shape[1] // _PIXELS)]
    pixels = pixels.double()
    ends = torch.quantile(pixels.flatten(), torch.tensor([0.01, 0.99], dtype=torch.float64))
    found: dict[str, Any] = {"spacing": None if case.spacing is None else sorted(float(n) for n in case.spacing)}
    found |= {"dark": float(ends[0]), "bright": float(ends[1]), "mean": pixels.mean(1).tolist()}
    if case.slicing is None and len(pixels) == 3:  # of a volume, channels are neighbouring slices
        found["colour"] = float((pixels.amax(0) - pixels.amin(0)).mean())
    return found


def seen(cases: Iterable[LoadedCase]) -> dict[str, Any]:
    """Return what the images looked like that a segmenter learns from; of no single one, and JSON-able.

    Args:
        cases: one at least.

    Returns:
        The least and the largest of each number of :func:`appearance`, to four places; ``"spacing"`` of the finest and
        of the coarsest axis, None where it is not known of some.
    """
    looks = [appearance(case) for case in cases]
    known = [look["spacing"] for look in looks if look["spacing"]]
    complete = len(known) == len(looks)
    found: dict[str, Any] = {"spacing": [_span(n[k] for n in known) for k in (0, -1)] if complete else None}
    found |= {key: _span(look[key] for look in looks) for key in ("dark", "bright")}
    found["mean"] = [_span(values) for values in zip(*(look["mean"] for look in looks), strict=True)]
    if all("colour" in look for look in looks):
        found["colour"] = _span(look["colour"] for look in looks)
    return found


def unlike(look: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Say where an image lies outside what was learnt from.

    Pixels (or the distance of slices) count as outside where they are :data:`SPACING_FACTOR` times as large as the
    largest that was learnt from, or as small as the smallest, or where they are not known but those learnt from are;
    intensities and colours where they lie further outside than :data:`MARGIN`, or than half of what they spread in
    training if that is more. Another number of channels is refused before, by :class:`medmdm.data.CaseReader`.

    Args:
        look: of :func:`appearance`.
        known: of :func:`seen`.

    Returns:
        Parts of a sentence, none where it is like them.
    """
    return [*_spacing(look["spacing"], known.get("spacing")), *_values(look, known)]


def _spacing(found: Sequence[float] | None, known: Sequence[Sequence[float]] | None) -> list[str]:
    if known is None:
        return []
    shown = " and ".join(dict.fromkeys(_range(span) for span in known))
    if found is None:
        return [f"the size of its pixels is not known (learnt from: {shown} mm)"]
    ends = zip((found[0], found[-1]), known, strict=True)
    if all(low / SPACING_FACTOR <= n <= high * SPACING_FACTOR for n, (low, high) in ends):
        return []
    return [f"its pixels are {' x '.join(f'{n:.3g}' for n in found)} mm (learnt from: {shown} mm)"]


def _values(look: Mapping[str, Any], known: Mapping[str, Any]) -> Iterable[str]:
    several = len(look["mean"]) > 1
    means = {f"its mean{f' in channel {k + 1}' if several else ''}": k for k in range(len(look["mean"]))}
    told = {text: (look[key], known.get(key)) for key, text in _NAMES.items() if key in look}
    if len(known.get("mean", ())) == len(look["mean"]):
        told |= {text: (look["mean"][k], known["mean"][k]) for text, k in means.items()}
    for text, (value, span) in told.items():
        if span is None:
            continue
        margin = max(MARGIN, (span[1] - span[0]) / 2)
        if not span[0] - margin <= value <= span[1] + margin:
            yield f"{text} is {value:.2f} (learnt from: {_range(span)})"


def _span(values: Iterable[float]) -> list[float]:
    listed = list(values)
    return [round(min(listed), 4), round(max(listed), 4)]


def _range(span: Sequence[float]) -> str:
    low, high = (f"{n:.3g}" for n in span)
    return low if low == high else f"{low} to {high}"
