"""Where the configs and data lists that come with medmdm are, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from medmdm.errors import UserError


def resource_folder(name: Literal["bundles", "data_lists"]) -> Path:
    """Return the folder of shipped ``bundles`` or ``data_lists``.

    They live at the top of the repository; the wheel carries a copy inside the package (``medmdm/_resources``).

    Raises:
        UserError: neither place has the folder, that is, the installation is incomplete.
    """
    package = Path(__file__).resolve().parent
    for candidate in (package / "_resources" / name, package.parent / name):
        if candidate.is_dir():
            return candidate
    raise UserError(f"the folder {name!r} that comes with medmdm is missing: install medmdm again")
