"""MONAI transforms that MONAI does not have."""
