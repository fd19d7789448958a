"""Images as integer codes: small ones that scikit-learn ships, and the user's own files."""

from fastgen.data.dataset import Dataset, Split
from fastgen.data.loading import load

__all__ = ["Dataset", "Split", "load"]
