"""Parameters of vector indexes, with defaults and ranges from `vecmem.limits`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from vecmem import limits
from vecmem.index.metric import Metric


class Storage(IntEnum):
    """How raw vectors are kept. The values are those of vecmem.v1.Storage and are stored on disk."""

    FLOAT32 = 1
    FLOAT16 = 2


class GraphCode(IntEnum):
    """What a graph holds of each vector. The values are those of vecmem.v1.GraphCode and are stored on disk."""

    AUTOMATIC = 0
    """int8, or float32 where calibration predicts a loss of recall."""
    INT8 = 1
    FLOAT16 = 2
    FLOAT32 = 3
    BINARY = 4


@dataclass(frozen=True, slots=True)
class HnswParameters:
    """HNSW parameters (Malkov and Yashunin, arXiv:1603.09320, section 4), and what the graph holds of each vector.

    `ef` 0: as many candidates as `target_recall`, 0.5 to 1, takes.
    """

    m: int = limits.M_DEFAULT
    ef_construction: int = limits.EF_CONSTRUCTION_DEFAULT
    ef: int = 0
    graph: GraphCode = GraphCode.AUTOMATIC
    target_recall: float = limits.TARGET_RECALL_DEFAULT

    def aim(self, ef: int, target_recall: float) -> tuple[int, float]:
        """What a search that names these (0: it does not) goes by: an effort and 0, or 0 and a target recall."""
        if ef or (self.ef and not target_recall):
            return ef or self.ef, 0.0
        return 0, target_recall or self.target_recall


@dataclass(frozen=True, slots=True)
class VectorParameters:
    """One vector of a collection. `hnsw` None: a flat index, searched by exact scan."""

    dimension: int
    metric: Metric
    hnsw: HnswParameters | None
    storage: Storage = Storage.FLOAT32
