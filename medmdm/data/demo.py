"""Labels of the built-in image, made by colour deconvolution: enough to show segmentation, not to measure it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medmdm.data.files.pictures import read_image
from medmdm.data.folders import demo_folder
from medmdm.data.slices import cache_folder
from medmdm.data.writers import encode_picture
from medmdm.errors import UserError
from medmdm.files import atomic_write

SILVER_STANDARD = (
    "the labels of the demo are a silver standard: the computer made them by colour deconvolution, nobody drew them"
)

_FORMAT = 1  # part of the folder's name: labels made in another way are other files
_NAME = "ihc_epithelium.png"
_SMOOTHING = 3.0  # pixels, the distance between the stained membranes of a cell
_CLOSING = 8  # pixels, the radius of a nucleus, which takes the other stain
_LEAST_AREA = 400  # pixels; smaller spots and holes are noise


def demo_labels() -> Path:
    """Return the folder of the demo's labels, in the user's cache folder, making them where they are missing.

    Raises:
        UserError: the folder cannot be written, or scikit-image came without its pictures.
    """
    folder = cache_folder(f"demo_labels_{_FORMAT}")
    path = folder / _NAME
    if not path.is_file():
        mask = stained_tissue(read_image(demo_folder() / "ihc.png"))
        try:
            atomic_write(path, encode_picture(mask, path.suffix))
        except OSError as error:
            raise UserError(
                f"the demo's labels cannot be written to {folder} ({error.strerror}): set XDG_CACHE_HOME to a folder "
                "that can."
            ) from error
    return folder


def stained_tissue(image: np.ndarray) -> np.ndarray:
    """Return a mask of tissue that is stained brown (DAB), the nuclei among it included.

    The DAB channel of Ruifrok and Johnston's colour deconvolution is smoothed and cut at Otsu's threshold, gaps as
    narrow as a nucleus are closed, small spots and holes removed.

    Args:
        image: ``[3, H, W]``, red, green, blue.

    Returns:
        ``[H, W]`` uint8, 1 where there is stained tissue.
    """
    from scipy.ndimage import binary_closing  # slow to import, as scikit-image is, and only the demo needs them
    from skimage.color import rgb2hed
    from skimage.filters import gaussian, threshold_otsu
    from skimage.morphology import area_closing, area_opening, disk

    dab = gaussian(rgb2hed(np.moveaxis(image, 0, -1))[..., 2], _SMOOTHING)
    mask = np.pad(dab > threshold_otsu(dab), _CLOSING, mode="edge")
    mask = binary_closing(mask, disk(_CLOSING))[_CLOSING:-_CLOSING, _CLOSING:-_CLOSING]
    without_spots = area_opening(mask.astype(np.uint8), _LEAST_AREA, connectivity=2)
    without_holes: np.ndarray = area_closing(without_spots, _LEAST_AREA, connectivity=1)
    return without_holes
