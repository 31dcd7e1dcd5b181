"""The protocol between an index and its graph: rows in, rows near a query out.

A graph gives each inserted row a node. A forgotten row's node is no result any more from that moment; it stays as a stepping stone,
and costs time and memory until the graph is rebuilt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vecmem.index.arena import Rows
from vecmem.index.metric import Float32Array
from vecmem.index.parameters import HnswParameters


class RowGraph(Protocol):
    """Rows of one arena, linked. `forget` runs on the event loop; searches in any thread; the rest in one maintenance thread at a time."""

    @property
    def parameters(self) -> HnswParameters:
        """What the graph is built with."""
        ...

    @property
    def node_count(self) -> int:
        """Nodes, those of forgotten rows included."""
        ...

    @property
    def live_count(self) -> int:
        """Rows in the graph that are not forgotten."""
        ...

    @property
    def unmarked_count(self) -> int:
        """Nodes of forgotten rows that `mark_deleted` has not seen yet."""
        ...

    @property
    def size_bytes(self) -> int:
        """Memory that the graph takes, estimated."""
        ...

    def add(self, rows: Rows, vectors: Float32Array, threads: int) -> None:
        """Insert rows that are not in the graph, shape (n,), with their vectors, shape (n, dimension)."""
        ...

    def forget(self, rows: Rows) -> None:
        """Take dead rows out of the results; those that are not in the graph are passed over."""
        ...

    def mark_deleted(self, count_max: int) -> bool:
        """Mark up to `count_max` nodes of forgotten rows, so that insertions do not link to them; False when there are none."""
        ...

    def rows(self) -> Rows:
        """The rows in the graph that are not forgotten, in no order."""
        ...

    def holding(self, rows: Rows) -> NDArray[np.bool_]:
        """Which of `rows` are in the graph and not forgotten; shape (n,)."""
        ...

    def wants_rebuild(self) -> bool:
        """Whether a graph made now would serve its rows better than this one."""
        ...

    def save(self, directory: Path, name: str) -> dict[str, int]:
        """Write the graph below `directory`; nothing inserts meanwhile. Returns what `load` needs to know."""
        ...

    def load(self, directory: Path, name: str, metadata: dict[str, int], live: NDArray[np.bool_]) -> None:
        """Take back what `save` wrote, into an empty graph; rows that are not alive, by `live` of shape (row_count,), are forgotten.

        Raises CorruptionError.
        """
        ...
