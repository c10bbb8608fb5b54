"""Names of 0.1 that other programs import: see :mod:`medmdm.objectives`."""

from medmdm.objectives import *  # noqa: F403
from medmdm.objectives import __all__ as __all__
