"""The one place that says whether files can be used: grids of labels, their numbers, finite values, values in range.

Training, the check, the preparation and the reports ask here, so that none of them takes what another refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from medmdm.errors import UserError, counted

_TOLERANCE = 0.1  # of the smallest side of a voxel: headers store some numbers as text or in 32 bits
_RIGHT_ANGLE = 1e-3  # cosine of two axes up to which they are at right angles
_MOST = 100  # by which pixels may differ in size from those that are asked for: µm taken for mm are 1000
_MARGIN = 1e-4  # by which values may leave [-1, 1]: rounding in float32
# By which a number of a label may differ from a whole one, and the same as a share of it: headers store the slope that
# voxels are scaled by in 32 bits, which makes 1.00000006 of 1, and floats that are stored in 8 bits make 1.004 of it.
_ROUNDING, _ROUNDING_SHARE = 0.01, 1e-6
MOST_OBJECTS = 2**31 - 1  # what the 32 bits with a sign can number that objects are kept in
LEAST_WHITE = 100  # smaller numbers are those of classes, not the white of masks
_SHOWN = 8  # unknown numbers named in a sentence
#: Why a label is not turned: programs of ITK, such as 3D Slicer, and nibabel's may each believe another of the two.
_TWO_PLACES = (
    "the axes of a label and of its image run in other directions, and one of the two lies in two places, since qform "
    "and sform of its header differ, so that nobody knows which voxels belong together: write both anew with one of "
    "the two (nibabel: image.set_qform(image.get_sform(), 1))."
)
_LABEL_ADVICE = {
    "kind": "give a label of its image's kind",
    "size": "a label must have the size of its image",
    "affine": "resample the label onto the image",
}


@dataclass(frozen=True)
class ImageGrid:
    """Where the pixels of a picture, or the voxels of a volume, lie.

    Args:
        shape: of the spatial axes.
        affine: ``[4, 4]``, voxel index → mm; ``None`` for pictures.
        certain: False where the header gives two places that differ, of which the affine is one.
    """

    shape: tuple[int, ...]
    affine: np.ndarray | None = None
    certain: bool = True


def size_text(shape: Iterable[int]) -> str:
    """Return a size as people write it: ``522x775``."""
    return "x".join(map(str, shape))


def at_right_angles(affine: np.ndarray) -> bool:
    """Whether the axes of a volume are at right angles, which a tilted gantry's are not."""
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(unit.T @ unit - np.eye(3)).max() < _RIGHT_ANGLE)


def voxel_sides(affine: np.ndarray) -> tuple[float, float, float]:
    """Return the sides of a voxel in mm, by the order of the array's axes.

    Where the axes are not at right angles that of the axis which leans is the distance between its layers, so that the
    product is the volume of a voxel in any case.
    """
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if not at_right_angles(affine):
        unit = affine[:3, :3] / sides
        others = min(((0, 1), (0, 2), (1, 2)), key=lambda pair: abs(float(unit[:, pair[0]] @ unit[:, pair[1]])))
        leaning = 3 - sum(others)
        sides[leaning] = abs(np.linalg.det(affine[:3, :3])) / sides[list(others)].prod()
    first, second, third = sides.tolist()
    return first, second, third


def grid_distance(grid: ImageGrid, other: ImageGrid) -> float:
    """Return how far apart, in mm, voxels of the same index lie at most.

    Two affines differ by a linear function of the index, so its length is largest at one of the eight corner voxels:
    the value is exact. (The sum of the absolute differences of the two matrices only bounds it: a shear of 0.0003 that
    leaves the far end of 200 voxels in place moves none by more than 0.060 mm, and sums up to 0.120.)
    """
    if grid.affine is None or other.affine is None:
        return 0.0
    corners = np.stack(np.meshgrid(*[(0, size - 1) for size in grid.shape], [1], indexing="ij"), -1).reshape(-1, 4)
    return float(np.linalg.norm((corners @ (grid.affine - other.affine).T)[:, :3], axis=1).max())


def grid_problem(
    grid: ImageGrid, other: ImageGrid, name: str, other_name: str, advice: str | None = None
) -> tuple[str, str] | None:
    """Return why two grids are not the same.

    They are where both are of one kind and shape and no voxel lies further from its counterpart than a tenth of the
    smallest side of the other's voxels. Relative to the voxel, so that voxels of 0.01 mm (micro-CT, OCT) are held to
    the same as those of 1 mm (where it is 0.1 mm): up to there each label stays with the voxel it was drawn on.

    Args:
        grid: of what is judged, such as a label.
        other: the one it must lie on.
        name: of the first in the sentence.
        other_name: of the second ("its image x.png").
        advice: what to do; ``None``: what is to be done about a label.

    Returns:
        ("kind", "size" or "affine", sentence without a full stop); ``None`` where the grids are the same.
    """
    if (grid.affine is None) != (other.affine is None):
        kind, sentence = "kind", f"of {name} and {other_name}, one is a volume and one a picture"
    elif grid.shape != other.shape:
        kind, sentence = "size", f"{name} is {size_text(grid.shape)} but {other_name} is {size_text(other.shape)}"
        if sorted(grid.shape) == sorted(other.shape):
            sentence += ", its axes are swapped"
    else:
        distance = grid_distance(grid, other)
        if other.affine is None or distance <= _TOLERANCE * np.linalg.norm(other.affine[:3, :3], axis=0).min():
            return None
        kind = "affine"
        sentence = f"{name} lies up to {distance:.3g} mm beside {other_name}, for their affines differ"
    return kind, f"{sentence}: {advice or _LABEL_ADVICE[kind]}"


def turned_onto(grid: ImageGrid, other: ImageGrid, name: str = "a label") -> tuple[ImageGrid, np.ndarray | None]:
    """Return the grid of a label as it lies on its image's, where its axes only run in another order or direction.

    Args:
        grid: of the label.
        other: of the image.
        name: of the label, for a sentence.

    Returns:
        (the grid with swapped and flipped axes, how: an orientation of nibabel's, ``[3, 2]``); (``grid``, ``None``)
        where nothing needs to be turned, and where turning does not make the grids the same.

    Raises:
        UserError: it would be turned by a place that its header, or its image's, contradicts.
    """
    if grid.affine is None or other.affine is None:
        return grid, None
    turn = nib.io_orientation(np.linalg.solve(other.affine, grid.affine))
    if np.isnan(turn).any() or np.array_equal(turn, [[0, 1], [1, 1], [2, 1]]):
        return grid, None
    shape = tuple(grid.shape[axis] for axis in np.argsort(turn[:, 0]))
    turned = ImageGrid(shape, grid.affine @ nib.orientations.inv_ornt_aff(turn, grid.shape))
    if grid_problem(turned, other, "", "") is not None:
        return grid, None
    if not (grid.certain and other.certain):
        raise UserError(f"{name}: {_TWO_PLACES}")
    return turned, turn


def check_same_grid(grid: ImageGrid, other: ImageGrid, name: str, other_name: str, advice: str | None = None) -> None:
    """Refuse what does not lie on the other's grid; arguments as in :func:`grid_problem`.

    Raises:
        UserError: the grids differ.
    """
    problem = grid_problem(grid, other, name, other_name, advice)
    if problem is not None:
        raise UserError(f"{problem[1]}.")


def label_numbers(label: np.ndarray, name: str, most: int | None = None) -> np.ndarray:
    """Return the numbers of a label in a type of whole numbers; floats that are whole but for rounding are fine.

    Args:
        label: ``[1, *spatial]``.
        name: of its file.
        most: largest number that is supported; ``None``: any.

    Raises:
        UserError: it has several channels, or values that are not finite, not whole, negative or above ``most``.
    """
    if len(label) != 1:
        raise UserError(
            f"{name} has {counted(len(label), 'channel')}, but a label has one number per pixel: save the numbers "
            "of its classes as grey."
        )
    if label.dtype.kind == "f":
        if not is_finite(label):
            raise UserError(f"{name} holds values that are not finite: labels are whole numbers.")
        whole = np.round(label)
        broken = label[np.abs(label - whole) > np.maximum(_ROUNDING, _ROUNDING_SHARE * np.abs(whole))]
        if len(broken):
            raise UserError(
                f"{name} holds values that are not whole numbers (such as {broken[0]:g}): it may have been resampled "
                "with interpolation; make it again with nearest neighbours."
            )
        label = whole
    numbers = label.astype({"f": np.int64, "b": np.uint8}.get(label.dtype.kind, label.dtype), copy=False)
    if numbers.size and numbers.min() < 0:
        raise UserError(f"{name} holds negative values ({numbers.min()}): labels start at 0.")
    if most is not None and numbers.size and numbers.max() > most:
        raise UserError(f"{name} holds the number {numbers.max()}: numbers up to {most} are supported.")
    return numbers


def check_known(
    numbers: np.ndarray | Iterable[int],
    classes: Iterable[int] | None,
    ignore: int | None,
    name: str,
    names: Sequence[str] | Mapping[int, str] | None = None,
) -> None:
    """Refuse numbers that are no class.

    Args:
        numbers: of a label or a prediction, or the different ones in it.
        classes: those that it may have; ``None``: any below 256.
        ignore: the number of pixels to leave out, where there may be such.
        name: of its file.
        names: of the classes by their numbers, for the sentence.

    Raises:
        UserError: it shows the first numbers that are none.
    """
    known = range(256) if classes is None else sorted(classes)
    found = np.unique(numbers).tolist() if isinstance(numbers, np.ndarray) else sorted(numbers)
    unknown = [number for number in found if number not in known and number != ignore]
    if len(unknown) > 1 and max(found) >= LEAST_WHITE and set(known) <= {0, 1}:
        raise UserError(
            f"{name} holds grey levels ({', '.join(map(str, unknown[:_SHOWN]))}, …), as a mask has whose edges were "
            "smoothed or compressed, and no numbers of classes: make it again with nearest neighbours, or threshold it "
            "at half, and save it as PNG."
        )
    if unknown:
        shown = ", ".join(map(str, unknown[:_SHOWN])) + (", …" if len(unknown) > _SHOWN else "")
        declared = "numbers must be below 256"
        if classes is not None:
            named = [f"{number} {names[number]}" if names else str(number) for number in known]
            declared = f"the classes are {', '.join(named)}"
        raise UserError(
            f"{name} holds {shown}, but {declared}: correct the label or 'labels' of the data list "
            '("label_type": "instances" if these number objects).'
        )


def is_finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinite."""
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def check_finite(values: np.ndarray, name: str) -> None:
    """Refuse values that are NaN or infinite.

    Raises:
        UserError: it says how many are.
    """
    if not is_finite(values):
        share = 1 - np.isfinite(values).mean()
        raise UserError(
            f"{name} holds values that are not finite ({share:.2%} NaN or infinite): replace them, by 0 for "
            "background, or leave the file out."
        )


def check_range(values: np.ndarray, name: str) -> None:
    """Refuse network input outside [−1, 1].

    Raises:
        UserError: it says which transform is missing.
    """
    if not -1 - _MARGIN <= float(values.min()) <= float(values.max()) <= 1 + _MARGIN:
        raise UserError(
            f"{name} gives values outside [-1, 1]: end the transforms with ScaleIntensityByDtyped, with an "
            "intensity_range that covers the images."
        )


def check_pixel_sizes(
    name: str, own: tuple[Sequence[int], Sequence[float]], wanted: tuple[Sequence[int], Sequence[float]]
) -> None:
    """Refuse to resample an image to pixels of quite another size, where one of the two is surely not in mm.

    Args:
        name: of the image.
        own: its size, and mm between its pixels.
        wanted: what these would become.

    Raises:
        UserError: along an axis one pixel is more than a hundred times the other.
    """

    def text(numbers: Sequence[float]) -> str:
        return " x ".join(f"{number:g}" for number in numbers)

    if any(max(pair) > _MOST * min(pair) for pair in zip(own[1], wanted[1], strict=True)):
        raise UserError(
            f"{name} has {text(own[0])} pixels of {text(own[1])} mm, and would have {text(wanted[0])} of "
            f"{text(wanted[1])} mm: correct the spacing that is not in mm."
        )
