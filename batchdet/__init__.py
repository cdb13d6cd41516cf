"""Label a whole bucket of images with a trained detector, as a Ray job."""

__version__ = "0.1.0"
