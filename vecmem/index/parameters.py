"""Parameters of vector indexes, with defaults and ranges from `vecmem.limits`."""

from __future__ import annotations

from dataclasses import dataclass

from vecmem import limits
from vecmem.index.metric import Metric


@dataclass(frozen=True, slots=True)
class HnswParameters:
    """HNSW parameters (Malkov and Yashunin, arXiv:1603.09320, section 4): M, efConstruction and the default ef."""

    m: int = limits.M_DEFAULT
    ef_construction: int = limits.EF_CONSTRUCTION_DEFAULT
    ef: int = limits.EF_DEFAULT


@dataclass(frozen=True, slots=True)
class VectorParameters:
    """One vector of a collection. `hnsw` None: a flat index, searched by exact scan."""

    dimension: int
    metric: Metric
    hnsw: HnswParameters | None
