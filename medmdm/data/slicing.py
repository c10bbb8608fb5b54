"""Cutting a volume into slices that are always the same way up, and putting them back exactly."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np

from medmdm.errors import UserError, nearest

__all__ = ["SLICE_AXES", "Slicing"]

# Directions in which the number of the slice, of the row and of the column grow (R, A, S as in nibabel): pictures as
# radiologists look at them, the patient's right at the left of axial and coronal slices, anterior or head at the top.
SLICE_AXES = {"axial": ("S", "P", "L"), "coronal": ("P", "I", "L"), "sagittal": ("L", "I", "P")}


class Slicing:
    """The slices of one volume along an anatomical axis.

    ========  ================  ===================  =========================
    axis      slices go to the  rows go to the       columns go to the
    ========  ================  ===================  =========================
    axial     head (S)          back (P)             patient's left (L)
    coronal   back (P)          feet (I)             patient's left (L)
    sagittal  left (L)          feet (I)             back (P)
    ========  ================  ===================  =========================

    Axes of the array are swapped and flipped, never interpolated: a volume stored obliquely is cut along the axes of
    the array that lie nearest to the anatomical ones, so that slices are the source's own pixels.

    Args:
        shape: (i, j, k) of the source array.
        affine: ``[4, 4]``, array index → mm in RAS.
        axis: a key of :data:`SLICE_AXES`.

    Raises:
        UserError: the axis is unknown or the affine says nothing of an axis.
    """

    def __init__(self, shape: Sequence[int], affine: np.ndarray, axis: str = "axial") -> None:
        if axis not in SLICE_AXES:
            raise UserError(f"the slice axis is {axis!r}{nearest(str(axis), SLICE_AXES)}: use {', '.join(SLICE_AXES)}.")
        self.axis = axis
        self.shape = tuple(int(n) for n in shape)
        self.affine = np.asarray(affine, dtype=np.float64)
        source = nib.io_orientation(self.affine)
        if np.isnan(source).any():
            raise UserError("an affine maps two axes of its volume onto one, so that it cannot be cut into slices.")
        target = nib.orientations.axcodes2ornt(SLICE_AXES[axis])
        self._forward = nib.orientations.ornt_transform(source, target)
        self._backward = nib.orientations.ornt_transform(target, source)
        # Row t of a transform says to which axis of the target the source's axis t goes.
        order = np.argsort(self._forward[:, 0])
        sizes = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))[order]
        self.num_slices = self.shape[order[0]]
        self.slice_shape = (self.shape[order[1]], self.shape[order[2]])
        self.slice_step = float(sizes[0])
        self.spacing = (float(sizes[1]), float(sizes[2]))

    def to_slices(self, volume: np.ndarray) -> np.ndarray:
        """Cut ``[C, i, j, k]`` into ``[slices, C, rows, columns]`` (a view)."""
        if volume.shape[1:] != self.shape:
            raise ValueError(f"The volume is {volume.shape[1:]}, not {self.shape}.")
        turned = nib.orientations.apply_orientation(np.moveaxis(volume, 0, -1), self._forward)
        return np.moveaxis(turned, -1, 1)

    def to_volume(self, slices: np.ndarray) -> np.ndarray:
        """Put ``[slices, C, rows, columns]`` together to ``[C, i, j, k]``: the exact inverse of :meth:`to_slices`."""
        if (slices.shape[0], *slices.shape[2:]) != (self.num_slices, *self.slice_shape):
            raise ValueError(f"The slices are {slices.shape}, not {(self.num_slices, 'C', *self.slice_shape)}.")
        turned = nib.orientations.apply_orientation(np.moveaxis(slices, 1, -1), self._backward)
        return np.moveaxis(turned, -1, 0)
