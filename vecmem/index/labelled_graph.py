"""A graph with one node for each distinct vector, and the rows that its labels stand for.

Equal vectors share a node: many nodes at one place would have nothing but one another for neighbours, and a search that comes
upon them would not get away. And a search that finds the node finds all rows with this vector, so that ties break by id.
Vectors are equal where their float32 values are (0.0 and -0.0 are); under cosine two of one direction and different lengths are not.

Who may call what: `insert`, `attach`, `keep`, `mark_deleted` and `load` belong to one maintaining thread, `forget` to the event loop,
and `attach`, `keep` and `forget` exclude one another by a lock of the caller. `search` runs in any thread.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vecmem import errors
from vecmem.index.arena import Arena, Rows
from vecmem.index.graph import Graph, Labels
from vecmem.index.metric import Float32Array
from vecmem.index.parameters import VectorParameters

NO_ROW = -1
"""Stands for the row of a label whose rows are all forgotten."""
SEVERAL = -2
"""Stands for the row of a label that has its rows in `groups`."""
LOAD_ROWS = 4_096
"""Rows whose vectors are looked at together while a graph is loaded."""


class LabelledGraph:
    """A graph and what its labels stand for: `rows[label]` is a row, or SEVERAL, or NO_ROW."""

    def __init__(self, parameters: VectorParameters) -> None:
        assert parameters.hnsw is not None
        self.graph = Graph(parameters.dimension, parameters.metric, parameters.hnsw)
        self.rows: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.groups: dict[int, set[int]] = {}
        """Rows of each label that stands, or stood, for several; never empty."""
        self.label_of: dict[int, int] = {}
        self.unlabelled: set[int] = set()
        """Labels without a row whose nodes are not marked deleted yet."""
        self._label_of_hash: dict[int, int] = {}
        """Where a vector may be in the graph already. Labels without rows stay until a rebuild or until they are replaced."""

    @property
    def live_count(self) -> int:
        """Rows in the graph that are not forgotten."""
        return len(self.label_of)

    @property
    def dead_node_count(self) -> int:
        """Nodes that stand for no row, marked deleted or not yet."""
        return self.graph.deleted_count + len(self.unlabelled)

    def insert(self, rows: Rows, vectors: Float32Array, arena: Arena, threads: int) -> Labels:
        """Make nodes for those of the vectors that have none; returns the label of each row, shape (n,).

        `attach` and `keep` complete it. `arena` holds all rows of the graph; the caller is inside a reading block. What hnswlib raises
        passes through; the graph is then as it was, but for some nodes that count as deleted.
        """
        labels = np.empty(len(rows), dtype=np.int64)
        start = next_label = self.graph.label_count
        fresh: list[int] = []
        index_of_hash: dict[int, int] = {}
        for index, (vector, key) in enumerate(zip(vectors, _hashes(vectors), strict=True)):
            twin = index_of_hash.get(key)
            if twin is not None and np.array_equal(vectors[twin], vector):
                labels[index] = labels[twin]
                continue
            index_of_hash[key] = index
            label = self._label_of_hash.get(key)
            if label is not None and self._has_vector(label, vector, arena):
                labels[index] = label
                continue
            labels[index] = next_label
            next_label += 1
            fresh.append(index)
        if fresh:
            self._make_room(next_label)
            # Before they are in the graph, so that no search finds a node without a row.
            self.rows[start:next_label] = rows[fresh]
            try:
                self.graph.add(vectors[fresh], threads)
            except BaseException:
                self.rows[start:next_label] = NO_ROW
                raise
            self._label_of_hash.update((key, int(labels[index])) for key, index in index_of_hash.items())
        return labels

    def attach(self, rows: Rows, labels: Labels) -> None:
        """Let labels that `insert` returned stand for their rows, also those that lost their last row since."""
        for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
            present = int(self.rows[label])
            if present == row:
                continue
            if present == SEVERAL:
                self.groups[label].add(row)
            elif present == NO_ROW:
                self.unlabelled.discard(label)
                self.rows[label] = row
            else:
                # In this order, for searches under way.
                self.groups[label] = {present, row}
                self.rows[label] = SEVERAL

    def keep(self, rows: Rows, labels: Labels, known: Container[int]) -> None:
        """Note the labels of rows just attached; those that are not in `known` were forgotten meanwhile."""
        for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
            if row in known:
                self.label_of[row] = label
            else:
                self._detach(row, label)

    def forget(self, rows: Rows) -> None:
        """Take dead rows from their labels; nodes that stand for no row any more are marked deleted later."""
        for row in rows.tolist():
            label = self.label_of.pop(row, None)
            if label is not None:
                self._detach(row, label)

    def mark_deleted(self, count_max: int) -> bool:
        """Mark up to `count_max` nodes that stand for no row; False when there are none."""
        labels = [self.unlabelled.pop() for _ in range(min(count_max, len(self.unlabelled)))]
        if labels:
            self.graph.delete(np.array(labels))
        return bool(labels)

    def search(self, query: Float32Array, count: int, ef: int) -> tuple[Rows, list[Rows]]:
        """Rows near `query` that are alone with their vector, and the groups of those that are not; forgotten ones left out."""
        labels = self.graph.search(query, count, ef)
        rows: Rows = self.rows[labels]
        groups: list[Rows] = []
        if self.groups:
            # Copied by one call that runs no Python code, since the event loop and maintenance change the sets.
            members = [list(self.groups.get(label, ())) for label in labels[rows == SEVERAL].tolist()]
            groups = [np.array(group, dtype=np.int64) for group in members if group]
        return np.asarray(rows[rows >= 0]), groups

    def save(self, directory: Path, name: str) -> None:
        """Write a graph that is not empty: hnswlib's file, pairs of row and label, and labels to be marked deleted."""
        self.graph.save(directory / f"{name}.graph")
        alone = np.flatnonzero(self.rows[: self.graph.label_count] >= 0)
        pairs = [np.stack([self.rows[alone], alone], axis=1)]
        pairs += [np.array([(row, label) for row in sorted(group)]) for label, group in self.groups.items()]
        np.save(directory / f"{name}.labels.npy", np.concatenate(pairs))
        np.save(directory / f"{name}.unlabelled.npy", np.array(sorted(self.unlabelled), dtype=np.int64))

    def load(
        self, directory: Path, name: str, metadata: Mapping[str, int | float], live: NDArray[np.bool_], arena: Arena
    ) -> None:
        """Replace an empty graph by what `save` wrote, without the rows that are not `live`. Raises CorruptionError."""
        file = directory / f"{name}.graph"
        label_count = int(metadata["label_count"])
        try:
            self.graph.load(
                file,
                label_count=label_count,
                deleted_count=int(metadata["deleted_count"]),
                scale_exponent=int(metadata["scale_exponent"]),
            )
        except RuntimeError as error:
            raise errors.CorruptionError(f"hnswlib does not take it: {error}", path=str(file)) from error
        pairs = np.load(directory / f"{name}.labels.npy").reshape(-1, 2)
        self.unlabelled = set(np.load(directory / f"{name}.unlabelled.npy").tolist())
        labelled = np.unique(pairs[:, 1])
        if labelled.size + self.dead_node_count != label_count or (labelled.size and labelled[-1] >= label_count):
            raise errors.CorruptionError(
                f"{labelled.size} labels for {label_count - self.dead_node_count} nodes",
                path=str(file),
            )
        self._make_room(label_count)
        # The others had died, and were not forgotten yet when the checkpoint was taken.
        pairs = pairs[live[pairs[:, 0]]]
        self.unlabelled.update(np.setdiff1d(labelled, pairs[:, 1]).tolist())
        self.attach(pairs[:, 0], pairs[:, 1])
        self.label_of = dict(pairs.tolist())
        for start in range(0, len(pairs), LOAD_ROWS):
            part = pairs[start : start + LOAD_ROWS]
            self._label_of_hash.update(zip(_hashes(arena.gather(part[:, 0])), part[:, 1].tolist(), strict=True))

    def _detach(self, row: int, label: int) -> None:
        group = self.groups.get(label)
        if group is not None:
            group.discard(row)
            if group:
                return
            del self.groups[label]
        self.rows[label] = NO_ROW
        self.unlabelled.add(label)

    def _has_vector(self, label: int, vector: Float32Array, arena: Arena) -> bool:
        """Whether a label stands for rows with this very vector; their vectors stay in the arena in the caller's reading block."""
        row = int(self.rows[label])
        if row == SEVERAL:
            row = next(iter(list(self.groups.get(label, ()))), NO_ROW)
        return row != NO_ROW and np.array_equal(arena.gather(np.array([row]))[0], vector)

    def _make_room(self, label_count: int) -> None:
        if self.rows.size < label_count:
            # A new array, not a resize: searches under way keep the one they have.
            grown = np.full(max(label_count, 2 * self.rows.size, 1024), NO_ROW, dtype=np.int64)
            grown[: self.rows.size] = self.rows
            self.rows = grown


def _hashes(vectors: Float32Array) -> list[int]:
    """Equal for equal rows of an (n, dimension) array, in this process; others differ but for 1 pair in 2 to the 64th."""
    # -0.0 + 0.0 is 0.0.
    return [hash(vector.tobytes()) for vector in vectors + np.float32(0)]
