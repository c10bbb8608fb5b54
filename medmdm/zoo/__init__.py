"""A finished run -> a bundle in the layout of MONAI's model zoo."""

from medmdm.zoo.metadata import About
from medmdm.zoo.packing import pack

__all__ = ["About", "pack"]
