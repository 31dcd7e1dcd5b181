"""What the metrics mean, in one place.

A *score* is what clients see: cosine similarity, dot product or Euclidean distance. A *rank* orders candidates, higher is
nearer for every metric; scans compute ranks in float32 with BLAS, whose rounding depends on where a row lies. Final
scores are therefore computed again, row by row in float64, so that equal vectors get equal scores and ties break by id.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

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
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)))


def norm(vector: Float32Array) -> float:
    """Euclidean norm of one vector, in float64; NaN or infinite if an element is."""
    wide = vector.astype(np.float64)
    return math.sqrt(float(wide @ wide))


def is_valid_norm(metric: Metric, length: float) -> bool:
    """Whether a vector of this norm may be stored and searched for; False for NaN and infinity."""
    return (NORM_MIN_COSINE if metric is Metric.COSINE else 0.0) <= length <= NORM_MAX


def row_terms(metric: Metric, vectors: Float32Array) -> Float32Array:
    """What a scan needs to know of each row beside the vector: inverse norm (cosine), norm (dot) or squared norm; shape (n,)."""
    if metric is Metric.COSINE:
        lengths = norms(vectors)
        return np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0).astype(np.float32)
    if metric is Metric.DOT:
        return norms(vectors).astype(np.float32)
    return np.square(norms(vectors)).astype(np.float32)


def norm_bound(metric: Metric, terms: Float32Array) -> float:
    """A bound of the Euclidean norms of rows, from their `row_terms`, shape (n,); under cosine, where norms do not matter, 1."""
    if metric is Metric.COSINE or not terms.size:
        return 1.0
    largest = float(terms.max())
    return (largest if metric is Metric.DOT else math.sqrt(largest)) * (1 + 1e-6)


def scan_query(metric: Metric, query: Float32Array) -> Float32Array:
    """The query as scans and graphs want it: of unit length under cosine. Shape (dimension,)."""
    if metric is not Metric.COSINE:
        return query
    return np.asarray((query / np.float64(norm(query))).astype(np.float32))


def ranks(metric: Metric, products: Float32Array, terms: Float32Array) -> Float32Array:
    """Ranks of rows from their dot products with `scan_query` and their `row_terms`; all of shape (n,)."""
    if metric is Metric.COSINE:
        return np.asarray(products * terms)
    if metric is Metric.DOT:
        return products
    return np.asarray(2.0 * products - terms)


def rank_errors(metric: Metric, query: Float32Array, terms: Float32Array) -> Float32Array:
    """How far the float32 rank of each row may lie from that of its score, generously; from their `row_terms`, shape (n,).

    Each row's own: one long vector does not make the ranks of the others doubtful.
    """
    share = np.float32(5e-7 + 1.25e-7 * float(np.sqrt(query.size)))
    # Products below the least normal number may vanish.
    tiny = np.finfo(np.float32).tiny
    least = np.float32(query.size) * tiny
    if metric is Metric.COSINE:
        return np.full(len(terms), share, dtype=np.float32)
    query_norm = np.float32(norms(query[None, :])[0])
    if metric is Metric.DOT:
        return np.asarray(terms * (query_norm * share) + least)
    lengths = np.sqrt(terms + tiny)
    # The square of the query's length is not part of a rank, but of the score, whose rounding makes ties.
    return np.asarray(np.square(query_norm + lengths) * share + least)


def scores(metric: Metric, query: Float32Array, vectors: Float32Array) -> Float32Array:
    """Exact scores of the rows of an (n, dimension) array, rounded once from float64 to float32; shape (n,).

    The result of a row depends on the query and that row alone.
    """
    wide_query = query.astype(np.float64)
    if metric is Metric.EUCLIDEAN:
        difference = vectors - wide_query
        return np.asarray(np.sqrt(np.einsum("ij,ij->i", difference, difference)).astype(np.float32))
    wide = vectors.astype(np.float64)
    products = np.einsum("ij,j->i", wide, wide_query)
    if metric is Metric.DOT:
        return np.asarray(products.astype(np.float32))
    lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide)) * np.sqrt(wide_query @ wide_query)
    return np.asarray(np.minimum(np.maximum(products / lengths, -1.0), 1.0).astype(np.float32))
