"""Names of 0.1 that other programs import: see :mod:`medmdm.backbones`, ``heads`` and ``artifacts``."""

from medmdm.artifacts import *  # noqa: F403
from medmdm.backbones import *  # noqa: F403
from medmdm.heads import *  # noqa: F403
