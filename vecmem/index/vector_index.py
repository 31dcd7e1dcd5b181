"""The protocol between the store and an index over one vector of a collection.

Who may call what: `add`, `forget` and `statistics` run on the event loop; `search` runs in any thread, many at a time, inside a
reading block of the collection's RowTable (`Readers.reading`); `maintain` runs in one thread at a time.
Whatever else goes on, `search` sees exactly the rows of its view: complete from the moment they are published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vecmem.index.arena import Arena, Rows
from vecmem.index.effort import Effort
from vecmem.index.metric import Float32Array
from vecmem.index.parameters import GraphCode, VectorParameters
from vecmem.index.row_set import RowSet
from vecmem.index.rows import RowView

SavedValue = Any
"""What an index may leave in the manifest of a checkpoint: anything that JSON can hold."""


@dataclass(slots=True, eq=False)
class SearchRequest:
    """One search. Never changed; not `frozen`, which each search would pay for.

    `query`: float32, shape (dimension,), finite, not zero under cosine. `limit`: hits wanted, at least 1. `allowed`: rows that pass
    the filter, whether the view sees them or not; None: all. `ef` 0: by `target_recall`, and where that is 0 as well the index's own.
    `exact`: compare with every row.
    """

    query: Float32Array
    limit: int
    allowed: RowSet | None = None
    ef: int = 0
    exact: bool = False
    target_recall: float = 0.0


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """How a search is answered: as vecmem.v1.Explanation. `kind` is "scan", "code_scan" or "graph"; what does not apply is 0.

    `compared_max`: a graph search under a filter gives up beyond so many comparisons and scans instead; 0: never.
    """

    kind: str
    row_count: int = 0
    matching_count: int = 0
    ef: int = 0
    target_recall: float = 0.0
    compared_max: int = 0
    tail_count: int = 0
    graph_cost_us: float = 0.0
    scan_cost_us: float = 0.0

    @property
    def cost_us(self) -> float:
        """What the search is expected to cost, in microseconds of one thread."""
        return self.graph_cost_us if self.kind == "graph" else self.scan_cost_us


@dataclass(slots=True, eq=False)
class SearchResult:
    """Rows, best first, ties in order of ids, with their scores; `plan` says how they were found.

    `compared_count`: as vecmem.v1.Explanation. Never changed; not `frozen`, which each search would pay for.
    """

    rows: list[int]
    scores: list[float]
    plan: SearchPlan
    compared_count: int = 0


@dataclass(slots=True)
class IndexStatistics:
    """Counts of one index; bytes are estimates.

    `graph`: what the graph holds of each vector now; AUTOMATIC: there is no graph yet. `measured_recall` of `measured_query_count`
    live queries, and `calibrated_ef`: as vecmem.v1.VectorStats.
    """

    vector_count: int = 0
    graph_row_count: int = 0
    tail_row_count: int = 0
    graph_deleted_row_count: int = 0
    rebuilding: bool = False
    arena_bytes: int = 0
    graph_bytes: int = 0
    graph: GraphCode = GraphCode.AUTOMATIC
    measured_recall: float = 0.0
    measured_query_count: int = 0
    calibrated_ef: int = 0


class VectorIndex(Protocol):
    """Rows of one vector, searchable."""

    parameters: VectorParameters
    arena: Arena

    @property
    def effort(self) -> Effort | None:
        """What effort a recall takes here; None: every search is exact."""
        ...

    def add(self, rows: Rows, vectors: Float32Array) -> None:
        """Take vectors, shape (n, dimension), under rows that are not visible yet. Costs a memcpy."""
        ...

    def forget(self, rows: Rows) -> None:
        """Rows are dead and nobody sees them any more; those without a vector here are passed over."""
        ...

    def search(self, requests: Sequence[SearchRequest], view: RowView, *, threads: int = 1) -> list[SearchResult]:
        """For each request the `limit` nearest rows that the view sees, or all of them where there are fewer."""
        ...

    def search_if_quick(
        self, requests: Sequence[SearchRequest], view: RowView, *, threads: int = 1
    ) -> list[SearchResult] | None:
        """As `search`, where that takes a fraction of a millisecond and waits for nobody: a thread would only add to it. Else None."""
        ...

    def maintain(self, *, threads: int, slice_rows: int) -> bool:
        """Do one short slice of background work; False when there is none left."""
        ...

    def has_work(self, *, tail_rows_min: int = 1) -> bool:
        """Whether `maintain` has something to do, a tail of fewer rows than that aside."""
        ...

    def wants_measuring(self) -> bool:
        """Whether `measure` has something to do: nobody waits for it."""
        ...

    def measure(self) -> None:
        """Do one short slice of measuring what recall searches get and what effort it takes; never beside `maintain`."""
        ...

    def configure(self, parameters: VectorParameters, arena: Arena | None = None) -> None:
        """Take new parameters; dimension, metric and kind of index are the same.

        Where the storage is another, `arena` has the rows in it.
        """
        ...

    def statistics(self) -> IndexStatistics:
        """Counts now."""
        ...

    def save(self, directory: Path, name: str) -> dict[str, SavedValue]:
        """Write the index's own structures (not the arena) below `directory`; called while `maintain` does not run.

        Returns what `load` needs to know beside the files.
        """
        ...

    def load(self, directory: Path, name: str, metadata: dict[str, SavedValue], live: NDArray[np.bool_]) -> None:
        """Take back what `save` wrote. The arena is filled; `live` says which rows are alive, shape (row_count,)."""
        ...
