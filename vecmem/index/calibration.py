"""Chooses the code of a graph from a sample of its vectors: int8 where that keeps recall, else float32.

int8 codes have one scale for all dimensions, the largest element of the sample over 127. Vectors whose information lies in small
differences beside a few large elements lose it in rounding; so the choice is tried out on the sample: for some of its vectors, how
many of the 10 nearest others, by exact comparison, are among the 20 nearest by codes, which is what rescoring looks at?
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vecmem.index import metric as metrics
from vecmem.index.metric import Float32Array, Metric
from vecmem.index.parameters import GraphCode

SAMPLE_ROWS = 2_048
"""Rows that a sample has, where there are so many."""
QUERIES = 64
NEAREST = 10
CANDIDATES = 20
RECALL_MIN = 0.995
"""A sample has few near neighbours, so that the whole collection fares a little worse than it."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """`code` and `scale` as vecmem.index._kernel.Graph has them; `recall` is what int8 codes reached on `sample_count` rows."""

    code: str
    scale: float
    recall: float
    sample_count: int


def choose(wanted: GraphCode, metric: Metric, sample: Float32Array) -> tuple[GraphCode, float]:
    """The code of a graph and its scale, by the code that its owner wants and a sample, shape (n, dimension), n at least 1, finite."""
    if wanted is GraphCode.AUTOMATIC:
        calibrated = calibrate(metric, sample)
        return GraphCode[calibrated.code.upper()], calibrated.scale
    if wanted is GraphCode.INT8:
        return wanted, calibrate(metric, sample).scale
    if wanted is GraphCode.FLOAT16 and metric is not Metric.COSINE:
        # A power of two, so that it rounds nothing; the largest element becomes about 1,024, far from both ends of the range.
        largest = float(np.abs(sample).max())
        return wanted, 2.0 ** round(math.log2(largest / 1_024)) if largest > 0 else 1.0
    return wanted, 1.0


def calibrate(metric: Metric, sample: Float32Array) -> Calibration:
    """Choose by a sample, shape (n, dimension), n at least 1, finite."""
    vectors = sample / metrics.norms(sample)[:, None] if metric is Metric.COSINE else sample.astype(np.float64)
    largest = float(np.abs(vectors).max())
    scale = largest / 127 if largest > 0 else 1.0
    recall = _recall(metric, vectors, scale)
    # Squares of int8 steps have to stay numbers of float32.
    usable = 1e-15 < scale < 1e15
    return Calibration("int8" if recall >= RECALL_MIN and usable else "float32", scale, recall, len(sample))


def _recall(metric: Metric, vectors: np.ndarray[tuple[int, ...], np.dtype[np.float64]], scale: float) -> float:
    """Share of the nearest others that codes find; 1 where there are too few others to miss one."""
    if len(vectors) <= CANDIDATES + 1:
        return 1.0
    codes = np.rint(vectors / scale)
    queries = np.linspace(0, len(vectors) - 1, min(QUERIES, len(vectors)), dtype=np.int64)
    true = _ranks(metric, vectors, queries)
    coded = _ranks(metric, codes, queries)
    found = np.argpartition(-coded, CANDIDATES, axis=1)[:, :CANDIDATES]
    # By rank and not by row: of rows that lie equally near, any will do.
    worst = -np.partition(-true, NEAREST - 1, axis=1)[:, NEAREST - 1 : NEAREST]
    slack = 1e-9 * np.abs(worst)
    hits = (np.take_along_axis(true, found, axis=1) >= worst - slack).sum(axis=1)
    return float(np.minimum(hits, NEAREST).mean() / NEAREST)


def _ranks(
    metric: Metric,
    vectors: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    queries: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """How near each vector is to each query, higher is nearer; the query itself is out. Shape (queries, n)."""
    ranks = vectors[queries] @ vectors.T
    if metric is Metric.EUCLIDEAN:
        ranks = 2 * ranks - np.einsum("ij,ij->i", vectors, vectors)
    ranks[np.arange(len(queries)), queries] = -np.inf
    return np.asarray(ranks)
