"""A graph of the native kernel: int8 codes of the arena's rows, or float32 where calibration predicts that int8 would lose recall.

Searches run beside insertion, deletion and growth; the rule is in `_kernel/graph.h`. The code is chosen by a sample of the arena when
the first rows come, and the choice is reviewed as the graph grows: where it would now be another one, the graph wants to be rebuilt.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vecmem import errors
from vecmem.index import _kernel, calibration
from vecmem.index.arena import Arena, Rows
from vecmem.index.calibration import Calibration
from vecmem.index.metric import Float32Array, Metric
from vecmem.index.parameters import HnswParameters, VectorParameters

REVIEW_FACTOR = 4
"""The choice of code is reviewed when the graph has so many times the rows of the sample that it rests on."""
CLIPPED_SHARE_MAX = 0.01
"""Share of vectors with elements beyond the scale that triggers a rebuild with a larger one."""
SCALE_EXCESS_MAX = 4.0
"""A scale so many times larger than a review would choose wastes two bits of every code."""
CODES = ("int8", "float32")


class KernelGraph:
    """A RowGraph over the rows of an arena; labels are row numbers."""

    def __init__(self, parameters: VectorParameters, arena: Arena) -> None:
        assert parameters.hnsw is not None
        self.parameters: HnswParameters = parameters.hnsw
        self._arena = arena
        self._metric: Metric = parameters.metric
        self._dimension = parameters.dimension
        self.native: _kernel.Graph | None = None
        """None until the first rows come."""
        self.code = ""
        self._sample_count = 0
        self._unfit = False

    @property
    def node_count(self) -> int:
        """See RowGraph."""
        return self.native.node_count if self.native else 0

    @property
    def live_count(self) -> int:
        """See RowGraph."""
        return self.native.live_count if self.native else 0

    @property
    def unmarked_count(self) -> int:
        """See RowGraph."""
        return self.native.unswept_count if self.native else 0

    @property
    def size_bytes(self) -> int:
        """See RowGraph."""
        return self.native.memory_bytes if self.native else 0

    def add(self, rows: Rows, vectors: Float32Array, threads: int) -> None:
        """See RowGraph. Rows that an interrupted call inserted are passed over."""
        native = self.native
        if native is None:
            chosen = calibration.calibrate(self._metric, self._sample(vectors))
            native = self._new_native(chosen.code, chosen.scale)
            self._sample_count = chosen.sample_count
            self.native = native
        absent = ~native.holding(rows)
        if not absent.all():
            rows, vectors = rows[absent], np.ascontiguousarray(vectors[absent])
        native.add(vectors, rows, threads)
        self._review(native, vectors)

    def forget(self, rows: Rows) -> None:
        """See RowGraph."""
        if self.native is not None:
            self.native.remove(np.ascontiguousarray(rows))

    def mark_deleted(self, count_max: int) -> bool:
        """See RowGraph."""
        return self.native is not None and self.native.sweep(count_max) > 0

    def rows(self) -> Rows:
        """See RowGraph."""
        return self.native.labels() if self.native else np.zeros(0, dtype=np.int64)

    def holding(self, rows: Rows) -> NDArray[np.bool_]:
        """See RowGraph."""
        if self.native is None:
            return np.zeros(len(rows), dtype=np.bool_)
        return self.native.holding(np.ascontiguousarray(rows))

    def wants_rebuild(self) -> bool:
        """See RowGraph: the vectors have outgrown the code chosen for them."""
        return self._unfit

    def save(self, directory: Path, name: str) -> dict[str, int]:
        """See RowGraph."""
        if self.native is None:
            return {"kernel": 0}
        self.native.save(str(directory / f"{name}.graph"))
        # The scale as an integer: metadata knows no other numbers, and it has to come back bit by bit.
        bits = int(np.float32(self.native.scale).view(np.uint32))
        return {"kernel": 1, "code": CODES.index(self.code), "scale_bits": bits, "sample_count": self._sample_count}

    def load(self, directory: Path, name: str, metadata: dict[str, int], live: NDArray[np.bool_]) -> None:
        """See RowGraph. The graph of another implementation is passed over: its rows are inserted anew."""
        if not metadata.get("kernel"):
            return
        path = directory / f"{name}.graph"
        self.code = CODES[metadata["code"]]
        native = self._new_native(self.code, float(np.uint32(metadata["scale_bits"]).view(np.float32)))
        try:
            native.load(str(path))
        except RuntimeError as error:
            raise errors.CorruptionError(str(error), path=str(path)) from error
        rows = native.labels()
        if rows.size and int(rows.max()) >= live.size:
            raise errors.CorruptionError(f"node of row {int(rows.max())}, of {live.size}", path=str(path))
        native.remove(rows[~live[rows]])
        self._sample_count = metadata["sample_count"]
        self.native = native

    def _new_native(self, code: str, scale: float) -> _kernel.Graph:
        self.code = code
        m, ef_construction = self.parameters.m, self.parameters.ef_construction
        return _kernel.Graph(code, int(self._metric), self._dimension, m, ef_construction, scale)

    def _review(self, native: _kernel.Graph, vectors: Float32Array) -> None:
        """Choose again by a larger sample, while the first was small, or when many vectors do not fit the scale."""
        clipped = native.clipped_count > max(calibration.SAMPLE_ROWS, native.node_count) * CLIPPED_SHARE_MAX
        grown = self._sample_count < calibration.SAMPLE_ROWS and native.node_count >= REVIEW_FACTOR * self._sample_count
        if self._unfit or not (clipped or grown):
            return
        chosen = calibration.calibrate(self._metric, self._sample(vectors))
        self._sample_count = max(chosen.sample_count, self._sample_count)
        self._unfit = clipped or chosen.code != self.code or self._scale_is_unfit(chosen)

    def _scale_is_unfit(self, chosen: Calibration) -> bool:
        assert self.native is not None
        ratio = self.native.scale / chosen.scale
        return self.code == "int8" and not 1 / math.sqrt(SCALE_EXCESS_MAX) < ratio < SCALE_EXCESS_MAX

    def _sample(self, vectors: Float32Array) -> Float32Array:
        """Some of the arena's rows, spread evenly, and some of `vectors`."""
        rows = np.flatnonzero(self._arena.present(self._arena.row_count))
        if rows.size > calibration.SAMPLE_ROWS:
            rows = rows[np.linspace(0, rows.size - 1, calibration.SAMPLE_ROWS, dtype=np.int64)]
        sample = self._arena.gather(rows)
        return np.concatenate([sample, vectors[: calibration.SAMPLE_ROWS // 16]]) if len(sample) else vectors
