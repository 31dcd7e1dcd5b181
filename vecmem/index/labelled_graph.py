"""hnswlib's graph as a RowGraph: a label for every inserted row, counting up and never used again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vecmem import errors
from vecmem.index.arena import Rows
from vecmem.index.graph import Graph, Labels
from vecmem.index.metric import Float32Array
from vecmem.index.parameters import HnswParameters, VectorParameters

NO_ROW = -1


class LabelledGraph:
    """A RowGraph: a graph and what its labels stand for: `row_of_label[label]` is a row, or NO_ROW once that row is forgotten."""

    def __init__(self, parameters: VectorParameters) -> None:
        assert parameters.hnsw is not None
        self.graph = Graph(parameters.dimension, parameters.metric, parameters.hnsw)
        self.row_of_label: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.label_of: dict[int, int] = {}
        self.unlabelled: list[int] = []

    @property
    def parameters(self) -> HnswParameters:
        """See RowGraph."""
        return self.graph.parameters

    @property
    def node_count(self) -> int:
        """See RowGraph."""
        return self.graph.label_count

    @property
    def unmarked_count(self) -> int:
        """See RowGraph."""
        return len(self.unlabelled)

    @property
    def size_bytes(self) -> int:
        """See RowGraph."""
        return self.graph.size_bytes

    @property
    def live_count(self) -> int:
        """Rows in the graph that are not forgotten."""
        return len(self.label_of)

    def add(self, rows: Rows, vectors: Float32Array, threads: int) -> None:
        """Insert rows with their vectors."""
        start = self.graph.label_count
        if self.row_of_label.size < start + len(rows):
            # A new array, not a resize: searches under way keep the one they have.
            grown = np.full(max(start + len(rows), 2 * self.row_of_label.size, 1024), NO_ROW, dtype=np.int64)
            grown[: self.row_of_label.size] = self.row_of_label
            self.row_of_label = grown
        self.row_of_label[start : start + len(rows)] = rows
        labels = self.graph.add(vectors, threads)
        self.label_of.update(zip(rows.tolist(), labels.tolist(), strict=True))

    def forget(self, rows: Rows) -> None:
        """Take the labels from dead rows; the nodes are marked deleted later."""
        for row in rows.tolist():
            label = self.label_of.pop(row, None)
            if label is not None:
                self.row_of_label[label] = NO_ROW
                self.unlabelled.append(label)

    def mark_deleted(self, count_max: int) -> bool:
        """Mark up to `count_max` nodes of forgotten rows; False when there are none."""
        labels = self.unlabelled[:count_max]
        del self.unlabelled[: len(labels)]
        if labels:
            self.graph.delete(np.array(labels))
        return bool(labels)

    def search(self, query: Float32Array, count: int, ef: int) -> Rows:
        """Rows near `query`, forgotten ones left out."""
        labels: Labels = self.graph.search(query, count, ef)
        rows: Rows = self.row_of_label[labels]
        return np.asarray(rows[rows != NO_ROW])

    def rows(self) -> Rows:
        """See RowGraph."""
        return np.array(list(self.label_of), dtype=np.int64)

    def holding(self, rows: Rows) -> NDArray[np.bool_]:
        """See RowGraph."""
        return np.array([row in self.label_of for row in rows.tolist()], dtype=np.bool_)

    def wants_rebuild(self) -> bool:
        """See RowGraph: never, since its nodes hold the vectors themselves."""
        return False

    def save(self, directory: Path, name: str) -> dict[str, int]:
        """See RowGraph: the graph, and what its labels stand for."""
        self.graph.save(directory / f"{name}.graph")
        np.save(directory / f"{name}.labels.npy", self.row_of_label[: self.graph.label_count])
        np.save(directory / f"{name}.unlabelled.npy", np.array(self.unlabelled, dtype=np.int64))
        return {"deleted_count": self.graph.deleted_count}

    def load(self, directory: Path, name: str, metadata: dict[str, int], live: NDArray[np.bool_]) -> None:
        """See RowGraph."""
        self.graph.load(directory / f"{name}.graph")
        self.graph.deleted_count = metadata["deleted_count"]
        self.row_of_label = np.load(directory / f"{name}.labels.npy")
        self.unlabelled = np.load(directory / f"{name}.unlabelled.npy").tolist()
        if self.row_of_label.size != self.graph.label_count:
            raise errors.CorruptionError(
                f"{self.row_of_label.size} labels for {self.graph.label_count} nodes",
                path=str(directory / f"{name}.graph"),
            )
        for label, row in enumerate(self.row_of_label.tolist()):
            if row == NO_ROW:
                continue
            if live[row]:
                self.label_of[row] = label
            else:
                # It had died, and its row was not forgotten yet when the checkpoint was taken.
                self.row_of_label[label] = NO_ROW
                self.unlabelled.append(label)
