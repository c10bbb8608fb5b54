"""Label-efficient segmentation of medical images with masked diffusion pre-training, on MONAI."""

__version__ = "0.2.0"
