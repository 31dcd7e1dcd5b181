"""The HNSW index over the native kernel: arena, tail and a graph of codes.

- The *arena* holds every vector and answers for exact scores.
- The *tail* lists rows that are not in the graph yet; every search compares them exactly, so a point is found the moment it is published.
- The *graph* holds codes of the rest, int8 where that keeps recall. Its best candidates are compared again with the arena, so that scores
  and order do not depend on codes. `maintain` moves the tail into it in short slices, beside searches.

A search is one native call for all its requests that have the same plan (vecmem.index.planner).

Dead rows leave the graph at once (`forget`); their nodes stay as stepping stones until their share passes `REBUILD_SHARE`, when a
second graph is built beside the first, slice by slice, and takes its place. So it is when parameters change, or when the codes turn out
not to fit the vectors. Meanwhile new rows go into both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vecmem import errors
from vecmem.index import _kernel, calibration, kernel_search, measuring, planner
from vecmem.index.arena import Arena, Rows
from vecmem.index.effort import KEPT_QUERIES_ENOUGH, LIMIT_COMMON, Curves, Effort
from vecmem.index.kernel_search import CodedGraph, Looked
from vecmem.index.measuring import Measured
from vecmem.index.metric import Float32Array
from vecmem.index.parameters import GraphCode, HnswParameters, VectorParameters
from vecmem.index.rows import RowTable, RowView
from vecmem.index.tail import Tail
from vecmem.index.vector_index import IndexStatistics, SavedValue, SearchRequest, SearchResult

REBUILD_SHARE = 0.2
"""Share of dead nodes that triggers a rebuild."""
REBUILD_ROWS_MIN = 1_000
"""Graphs with fewer dead nodes than this are left alone: they cost next to nothing."""
RECALIBRATE_GROWTH = 4
"""Codes that were chosen by a small sample are chosen again when the graph has grown so many times over."""
SCALE_CHANGE_MAX = 1.5
"""A scale that is larger by no more than this still fits well enough: codes lose half a bit."""
CLIPPED_SHARE_MAX = 0.01
"""Share of vectors with elements beyond the scale of their codes that triggers a rebuild."""
SWEEP_NODES = 4_096
CHANGED_SHARE = 0.2
"""Share of rows come or gone after which effort is calibrated again."""
CALIBRATED_TAIL_SHARE = 0.05
"""Not while so much of the rows waits to go into the graph."""
CODED_ROWS_MIN = 1_024
"""Fewer rows of the tail are compared as they are: 0.14 ms a search, for 384 dimensions."""
CODED_ROWS_MAX = 4_096
"""In one piece, which goes as a whole when the last of its rows is in the graph."""


class KernelIndex:
    """A VectorIndex with a native graph. `table` is the row table of the collection."""

    def __init__(self, parameters: VectorParameters, table: RowTable) -> None:
        self.parameters = parameters
        self.arena = Arena(parameters.dimension, parameters.metric, parameters.storage)
        self.effort = Effort()
        self._table = table
        self._tail = Tail()
        self._current: CodedGraph | None = None
        self._rebuilt: CodedGraph | None = None
        self._to_rebuild: Rows = np.zeros(0, dtype=np.int64)
        self._parameters_changed = False
        self._calibrating: Generator[None, None, Curves] | None = None
        self._calibrating_by_queries = False
        self._changed_count = 0
        """Rows that came into the graph or left it since its effort was calibrated."""
        # `forget` runs beside `maintain`: this keeps a row from being forgotten in one place while it moves to the next.
        self._forgetting = threading.Lock()

    def add(self, rows: Rows, vectors: Float32Array) -> None:
        """See VectorIndex."""
        self.arena.write(rows, vectors)
        self._tail.append(rows)

    def forget(self, rows: Rows) -> None:
        """See VectorIndex."""
        self.arena.clear(rows)
        with self._forgetting:
            self._changed_count += len(rows)
            self._tail.forget(rows)
            for graph in (self._current, self._rebuilt):
                if graph is not None:
                    graph.native.remove(rows)

    # -- search: any thread ---------------------------------------------------------------------------------------------

    def search(self, requests: Sequence[SearchRequest], view: RowView, *, threads: int = 1) -> list[SearchResult]:
        """See VectorIndex."""
        looked = self._look()
        return kernel_search.run(requests, looked, kernel_search.plans(requests, looked), view, threads)

    def search_if_quick(
        self, requests: Sequence[SearchRequest], view: RowView, *, threads: int = 1
    ) -> list[SearchResult] | None:
        """See VectorIndex."""
        looked = self._look()
        plans = kernel_search.plans(requests, looked)
        if sum(plan.cost_us for plan in plans) > planner.QUICK_US * min(threads, len(plans)):
            return None
        return kernel_search.run(requests, looked, plans, view, threads)

    def _look(self) -> Looked:
        # The tail first: a row that moves to the graph meanwhile is then in both, never in neither.
        arena, tail = self.arena, self._tail.view()
        while arena is not self.arena:
            # Changed in between: the tail may have rows and codes of the other.
            arena, tail = self.arena, self._tail.view()
        return Looked(self.parameters, self.effort, arena, tail, self._current)

    # -- maintenance: one thread -----------------------------------------------------------------------------------------

    def has_work(self, *, tail_rows_min: int = 1) -> bool:
        """See VectorIndex."""
        current = self._current
        if current is None and tail_rows_min > 1:
            # There is more to come: codes are chosen by a sample worth the name.
            tail_rows_min = max(tail_rows_min, calibration.SAMPLE_ROWS)
        return bool(
            self._rebuilt is not None
            or len(self._tail) >= tail_rows_min
            or (current is not None and current.native.unswept_count)
            or self._has_outgrown_sample()
            or self._wants_rebuild()
        )

    def maintain(self, *, threads: int, slice_rows: int) -> bool:
        """See VectorIndex."""
        if self._rebuilt is None:
            if self._has_outgrown_sample():
                self._recalibrate()
            if self._wants_rebuild():
                self._begin_rebuild()
        current = self._current
        worked = bool(current is not None and current.native.unswept_count and current.native.sweep(SWEEP_NODES))
        worked |= self._code_tail()
        worked |= self._drain(threads, slice_rows)
        if self._rebuilt is not None:
            self._continue_rebuild(self._rebuilt, threads, slice_rows)
            return True
        return worked

    def _code_tail(self) -> bool:
        """Put codes beside what is long in the tail and has none."""
        current, worked = self._current, False
        self._tail.drop_codes(drained=True)
        while current is not None and current.code is GraphCode.INT8:
            arena = self.arena
            with self._table.readers.reading():
                # Rows whose numbers are given out again in the middle would have the codes of others.
                rows = self._tail.uncoded_first(CODED_ROWS_MAX)
                if len(rows) < CODED_ROWS_MIN:
                    break
                rows.sort()
                codes = _kernel.Codes(arena.native, rows)
                with self._forgetting:
                    if self.arena is arena:
                        self._tail.code(codes, rows)
            worked = True
        return worked

    def _drain(self, threads: int, slice_rows: int) -> bool:
        with self._table.readers.reading():
            # Inside the block no row is reused. Dead rows move like the living: an earlier snapshot may still see them. And a
            # record that is being applied may have put rows here that are not published yet: their vectors are written.
            rows = self._tail.first(slice_rows)
            if rows.size:
                if self._current is None:
                    self._current = self._new_graph(self._tail.rows())
                self._current.native.add(self.arena.gather(rows), rows, threads)
                with self._forgetting:
                    # Findable by the graph before they leave the tail. Those no longer in it were forgotten meanwhile.
                    self._changed_count += len(rows)
                    kept = self._tail.discard(rows)
                    self._current.native.remove(rows[~kept])
                    if self._rebuilt is not None:
                        self._to_rebuild = np.concatenate([self._to_rebuild, rows[kept]])
        return bool(rows.size)

    def _new_graph(self, rows: Rows) -> CodedGraph:
        """An empty graph whose code fits rows, at least one; the caller is inside a reading block."""
        hnsw = self._hnsw()
        sample = rows[np.linspace(0, len(rows) - 1, min(len(rows), calibration.SAMPLE_ROWS), dtype=np.int64)]
        code, scale = calibration.choose(hnsw.graph, self.parameters.metric, self.arena.gather(sample))
        return CodedGraph(self._new_native(code, scale, hnsw), code, hnsw, len(sample))

    def _new_native(self, code: GraphCode, scale: float, hnsw: HnswParameters) -> _kernel.Graph:
        parameters = self.parameters
        return _kernel.Graph(
            code.name.lower(), parameters.metric, parameters.dimension, hnsw.m, hnsw.ef_construction, scale
        )

    def _wants_rebuild(self) -> bool:
        current = self._current
        if current is None:
            return False
        native = current.native
        return (
            self._parameters_changed
            or native.dead_count >= max(REBUILD_ROWS_MIN, REBUILD_SHARE * native.node_count)
            or native.clipped_count > max(1, CLIPPED_SHARE_MAX * native.live_count)
        )

    def _has_outgrown_sample(self) -> bool:
        current = self._current
        return (
            current is not None
            and current.sample_count < calibration.SAMPLE_ROWS
            and current.native.live_count >= RECALIBRATE_GROWTH * current.sample_count
        )

    def _recalibrate(self) -> None:
        """Choose codes by a larger sample; a rebuild follows where they differ from those that there are."""
        current = self._current
        assert current is not None, "there is a graph that has outgrown its sample"
        with self._table.readers.reading():
            rows = current.native.labels()
            better = self._new_graph(rows[current.native.holding(rows)])
        change = better.native.scale / current.native.scale
        fits = better.code is current.code and 1 / SCALE_CHANGE_MAX <= change <= SCALE_CHANGE_MAX
        with self._forgetting:
            current.sample_count = better.sample_count
            self._parameters_changed |= not fits

    def _begin_rebuild(self) -> None:
        current = self._current
        assert current is not None, "there is a graph to rebuild"
        with self._table.readers.reading():
            rows = current.native.labels()
            with self._forgetting:
                self._parameters_changed = False
                self._to_rebuild = rows
                # Without rows there is nothing to calibrate by, and no graph is needed.
                self._rebuilt = self._new_graph(rows) if rows.size else None
                if not rows.size:
                    self._current = None

    def _continue_rebuild(self, rebuilt: CodedGraph, threads: int, slice_rows: int) -> None:
        # Each once: a row that was given out again meanwhile may stand there for what it was as well.
        rows, self._to_rebuild = np.unique(self._to_rebuild[:slice_rows]), self._to_rebuild[slice_rows:]
        current = self._current
        assert current is not None, "a rebuild has a graph to take the place of"
        with self._table.readers.reading():
            # A row that has left the graph is forgotten, and may be another's by now: that one is in the tail, or comes again.
            rows = rows[current.native.holding(rows) & ~rebuilt.native.holding(rows)]
            if rows.size:
                rebuilt.native.add(self.arena.gather(rows), rows, threads)
                with self._forgetting:
                    rebuilt.native.remove(rows[~current.native.holding(rows)])
        with self._forgetting:
            if not self._to_rebuild.size and self._rebuilt is rebuilt:
                self._current, self._rebuilt = rebuilt, None
                self._calibrating = None
                self.effort.forget()

    # -- measuring: the same thread -------------------------------------------------------------------------------------

    def wants_measuring(self) -> bool:
        """See VectorIndex."""
        return self._calibrating is not None or self.effort.has_live or self._wants_calibration()

    def measure(self) -> None:
        """See VectorIndex."""
        current = self._current
        if current is None:
            return
        measured = Measured(current.native, current.code, self.arena)
        with self._table.readers.reading():
            if self.effort.has_live:
                self._measure_live(measured)
            elif self._calibrating is not None or self._wants_calibration():
                self._calibrate(measured)

    def _wants_calibration(self) -> bool:
        current = self._current
        if current is None or self._rebuilt is not None:
            return False
        count = current.native.live_count
        # While a load goes on, what is measured of the graph is soon of the past.
        if count < measuring.ROWS_MIN or len(self._tail) > CALIBRATED_TAIL_SHARE * count:
            return False
        effort = self.effort
        return not effort.is_calibrated or effort.knows_better or self._changed_count > CHANGED_SHARE * count

    def _calibrate(self, measured: Measured) -> None:
        if self._calibrating is None:
            self._changed_count = 0
            plain, filtered = self.effort.kept()
            self._calibrating_by_queries = len(plain) >= KEPT_QUERIES_ENOUGH
            self._calibrating = measuring.calibrate(measured, plain, filtered)
        try:
            next(self._calibrating)
        except StopIteration as done:
            self._calibrating = None
            self.effort.calibrated(done.value, by_queries=self._calibrating_by_queries)

    def _measure_live(self, measured: Measured) -> None:
        asked = self.effort.take_live()
        began = time.perf_counter()
        recall = measuring.live_recall(measured, asked)
        if recall is not None:
            self.effort.observe(asked, recall, time.perf_counter() - began)

    # -- the rest: event loop -------------------------------------------------------------------------------------------

    def configure(self, parameters: VectorParameters, arena: Arena | None = None) -> None:
        """See VectorIndex. Changed build parameters take effect by a rebuild."""
        new, old = parameters.hnsw, self._hnsw()
        assert new is not None
        with self._forgetting:
            self.parameters = parameters
            if arena is not None:
                self._tail.drop_codes(drained=False)
                self.arena = arena
            if (new.m, new.ef_construction, new.graph) != (old.m, old.ef_construction, old.graph):
                # A rebuild under way has the old parameters: begin again.
                self._rebuilt = None
                self._parameters_changed = True

    def statistics(self) -> IndexStatistics:
        """See VectorIndex."""
        current, tail_count = self._current, len(self._tail)
        statistics = IndexStatistics(
            vector_count=self.arena.present_count,
            tail_row_count=tail_count,
            rebuilding=self._rebuilt is not None or self._wants_rebuild(),
            arena_bytes=self.arena.allocated_bytes,
        )
        if current is not None:
            statistics.graph_row_count = current.native.live_count
            statistics.graph_deleted_row_count = current.native.dead_count
            statistics.graph_bytes = current.native.memory_bytes + sum(c.memory_bytes for c in self._tail.view().coded)
            statistics.graph = current.code
            if self.effort.is_calibrated:
                ef, target_recall = self._hnsw().aim(0, 0)
                statistics.calibrated_ef = ef or self.effort.ef(target_recall, limit=LIMIT_COMMON)
        statistics.measured_recall = self.effort.measured_recall
        statistics.measured_query_count = self.effort.measured_query_count
        return statistics

    def save(self, directory: Path, name: str) -> dict[str, SavedValue]:
        """See VectorIndex: the graph. A rebuild under way is not saved: it begins again."""
        current = self._current
        if current is None:
            return {}
        current.native.save(str(directory / f"{name}.graph"))
        return {
            "code": int(current.code),
            "scale": current.native.scale,
            "m": current.parameters.m,
            "ef_construction": current.parameters.ef_construction,
            "graph": int(current.parameters.graph),
            "sample_count": current.sample_count,
            "effort": self.effort.saved(),
            "changed_count": self._changed_count,
        }

    def load(self, directory: Path, name: str, metadata: dict[str, SavedValue], live: NDArray[np.bool_]) -> None:
        """See VectorIndex."""
        in_graph = np.zeros(live.size, dtype=np.bool_)
        hnsw = self._hnsw()
        if "code" in metadata:
            file = directory / f"{name}.graph"
            code = GraphCode(int(metadata["code"]))
            saved = replace(
                hnsw,
                m=int(metadata["m"]),
                ef_construction=int(metadata["ef_construction"]),
                graph=GraphCode(int(metadata["graph"])),
            )
            native = self._new_native(code, float(metadata["scale"]), saved)
            try:
                native.load(str(file))
            except RuntimeError as error:
                raise errors.CorruptionError(f"the kernel does not take it: {error}", path=str(file)) from error
            labels = native.labels()
            if labels.size and int(labels.max()) >= live.size:
                raise errors.CorruptionError(f"it has row {labels.max()} of {live.size}", path=str(file))
            # The others had died, and were not forgotten yet when the checkpoint was taken.
            native.remove(labels[~live[labels]])
            in_graph[labels[live[labels]]] = True
            self._current = CodedGraph(native, code, saved, int(metadata["sample_count"]))
            if "effort" in metadata:
                self.effort.restore(metadata["effort"])
                self._changed_count = int(metadata["changed_count"])
            built = (saved.m, saved.ef_construction, saved.graph)
            self._parameters_changed = built != (hnsw.m, hnsw.ef_construction, hnsw.graph)
        self._tail.append(np.flatnonzero(self.arena.present(live.size) & live & ~in_graph))

    def _hnsw(self) -> HnswParameters:
        assert self.parameters.hnsw is not None
        return self.parameters.hnsw
