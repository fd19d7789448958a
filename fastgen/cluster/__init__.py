"""Clustering over the ops of fastgen."""

from fastgen.cluster.kmeans import KMeans

__all__ = ["KMeans"]
