"""What the metrics mean, in one place.

A *score* is what clients see: cosine similarity, dot product or Euclidean distance. A *rank* orders candidates, higher is
nearer for every metric; scans compute ranks in float32 with BLAS, whose rounding depends on where a row lies. Final
scores are therefore computed again, row by row in float64, so that equal vectors get equal scores and ties break by id.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from vecmem.index import _kernel

Float32Array = NDArray[np.float32]

NORM_MAX = 1e18
"""Largest Euclidean norm of a vector: squares and dot products stay finite in float32."""
NORM_MIN_COSINE = 1e-30
"""Vectors shorter than this count as zero under cosine."""


class Metric(IntEnum):
    """How two vectors are compared. The values are those of vecmem.v1.Metric and are stored on disk."""

    COSINE = 1
    DOT = 2
    EUCLIDEAN = 3

    @property
    def higher_is_nearer(self) -> bool:
        """Whether a larger score means a nearer vector."""
        return self is not Metric.EUCLIDEAN


def norms(vectors: Float32Array) -> NDArray[np.float64]:
    """Euclidean norms of the rows of an (n, dimension) array, in float64."""
    with np.errstate(over="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return np.asarray(np.sqrt(squares))


def row_terms(metric: Metric, vectors: Float32Array) -> Float32Array:
    """What a scan needs to know of each row beside the vector: inverse norm, nothing (ones) or squared norm; shape (n,)."""
    if metric is Metric.COSINE:
        lengths = norms(vectors)
        return np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0).astype(np.float32)
    if metric is Metric.DOT:
        return np.ones(len(vectors), dtype=np.float32)
    return np.square(norms(vectors)).astype(np.float32)


def scan_query(metric: Metric, query: Float32Array) -> Float32Array:
    """The query as scans and graphs want it: of unit length under cosine. Shape (dimension,)."""
    if metric is not Metric.COSINE:
        return query
    return np.asarray((query / norms(query[None, :])[0]).astype(np.float32))


def ranks(metric: Metric, products: Float32Array, terms: Float32Array) -> Float32Array:
    """Ranks of rows from their dot products with `scan_query` and their `row_terms`; all of shape (n,)."""
    if metric is Metric.COSINE:
        return np.asarray(products * terms)
    if metric is Metric.DOT:
        return products
    return np.asarray(2.0 * products - terms)


def rank_slack(metric: Metric, query: Float32Array, largest_norm: float) -> float:
    """How far two float32 ranks of equal vectors may lie apart, generously; `largest_norm` of the rows ranked."""
    query_norm = float(norms(query[None, :])[0])
    scale = {
        Metric.COSINE: 1.0,
        Metric.DOT: query_norm * largest_norm,
        Metric.EUCLIDEAN: 2.0 * query_norm * largest_norm + largest_norm * largest_norm,
    }[metric]
    return scale * 4e-6


def scores(metric: Metric, query: Float32Array, vectors: Float32Array) -> Float32Array:
    """Exact scores of the rows of an (n, dimension) array, computed in float64 and rounded once to float32; shape (n,).

    The result of a row depends on the query and that row alone, on every machine. A vector of length zero scores 0 under cosine.
    """
    return _kernel.scores(np.ascontiguousarray(query), np.ascontiguousarray(vectors), int(metric))
