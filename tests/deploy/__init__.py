"""Ray is imported first: it brings the psutil with which processes are found."""

import ray

__all__ = ["ray"]
