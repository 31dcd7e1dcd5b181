"""Codes beside the tail: searches over them give what exact comparison gives."""

from __future__ import annotations

import numpy as np
import pytest

from tests.index.test_kernel import arena_of, largest_norm, vectors_of
from vecmem.index import _kernel, kernel
from vecmem.index.metric import Metric
from vecmem.index.parameters import HnswParameters, Storage, VectorParameters
from vecmem.index.rows import RowTable

ROWS, DIMENSION = 1_500, 40
METRICS = pytest.mark.parametrize("metric", list(Metric), ids=lambda metric: metric.name.lower())


def graph_of(metric: Metric, vectors: np.ndarray) -> _kernel.Graph:
    graph = _kernel.Graph("int8", int(metric), DIMENSION, 8, 50, 0.03)
    graph.add(vectors, np.arange(len(vectors)))
    return graph


def same(found: tuple, expected: tuple) -> bool:
    return all(np.array_equal(mine, other) for mine, other in zip(found[:3], expected[:3], strict=True))


@METRICS
def test_a_scan_over_graph_codes_and_rest_is_exact(metric):
    """For every set of instructions: under filters, snapshots and ties, and where a row stands in two of the three parts."""
    vectors, queries = vectors_of(ROWS, DIMENSION, 21), vectors_of(25, DIMENSION, 22)
    vectors[600:700] = vectors[500:600]
    vectors[900:1_000] *= 100
    if metric is not Metric.COSINE:
        vectors[1_000:1_010] = 0
    norm = largest_norm(vectors)
    bits = np.packbits(np.arange(ROWS) % 3 > 0, bitorder="little")
    born, died = np.arange(ROWS) % 7, np.full(ROWS, 9)
    died[::5] = 4
    views = [None, (4, 0, ROWS - 20, born, died, None)]
    for name in _kernel.instruction_sets():
        _kernel.use_instruction_set(name)
        arena, graph = arena_of(vectors, metric), graph_of(metric, vectors[:500])
        coded = tuple(_kernel.Codes(arena, np.arange(begin, begin + 300)) for begin in (450, 750, 1_050))
        rest = np.arange(1_340, ROWS)[::-1].copy()
        for allowed in (None, bits):
            for view in views:
                for k in (1, 10, ROWS):
                    expected = arena.scan(queries, k, ROWS, allowed, view=view, largest_norm=norm)
                    # Row 450 to 499 stand in the graph as well, 1,340 to 1,349 in both the codes and the rest.
                    found = graph.scan(queries, k, arena, allowed, rest, coded=coded, view=view, largest_norm=norm)
                    assert same(found, expected), (name, k)
    _kernel.use_instruction_set("")


@METRICS
@pytest.mark.parametrize("factor", [1e-18, 1e-6, 1e6, 1e14])
def test_very_short_and_very_long_vectors_are_found_too(metric, factor):
    vectors = vectors_of(400, DIMENSION, 23) * np.float32(factor)
    arena, queries = arena_of(vectors, metric), vectors[:10] + vectors[10:20]
    graph = graph_of(metric, vectors[:1])
    codes = _kernel.Codes(arena, np.arange(1, 400))
    norm = largest_norm(vectors)
    found = graph.search(queries, 5, 10, arena, 10, coded=(codes,), largest_norm=norm)
    assert same(found, arena.scan(queries, 5, 400, largest_norm=norm))


def test_what_is_discarded_is_found_no_more():
    vectors = vectors_of(300, DIMENSION, 24)
    arena, graph = arena_of(vectors, Metric.COSINE), graph_of(Metric.COSINE, vectors[:1])
    codes = _kernel.Codes(arena, np.arange(100, 200))
    assert len(codes) == 100
    assert codes.memory_bytes > 100 * DIMENSION
    assert codes.discard(np.array([250, 3, 130, 101, 199])) == 3
    assert codes.discard(np.array([130])) == 0
    rows = graph.scan(vectors[:1], 1_000, arena, coded=(codes,), largest_norm=10)[0]
    assert sorted(rows.tolist()) == [0, *sorted({*range(100, 200)} - {101, 130, 199})]
    again = _kernel.Codes(arena, np.array([101, 130]))
    rows = graph.scan(vectors[:1], 1_000, arena, coded=(codes, again), largest_norm=10)[0]
    assert sorted(rows.tolist()) == [0, *sorted({*range(100, 200)} - {199})]
    assert len(_kernel.Codes(arena, np.zeros(0, np.int64))) == 0


def test_the_boundary_refuses_what_cannot_be():
    vectors = vectors_of(300, DIMENSION, 25)
    arena, graph = arena_of(vectors, Metric.COSINE), graph_of(Metric.COSINE, vectors[:1])
    for rows in ([3, 3], [4, 2]):
        with pytest.raises(ValueError, match="do not rise"):
            _kernel.Codes(arena, np.array(rows))
    for rows in ([-1, 2], [5, 100_000]):
        with pytest.raises(IndexError, match="not in the arena"):
            _kernel.Codes(arena, np.array(rows))
    codes = _kernel.Codes(arena, np.arange(300))
    for wrong in (None, [codes], (codes, None), codes, ("codes",)):
        with pytest.raises(TypeError, match=r"tuple of Codes|incompatible"):
            graph.search(vectors[:1], 1, 1, arena, 1, coded=wrong, largest_norm=10)
    for metric, dimension in ((Metric.DOT, DIMENSION), (Metric.COSINE, 8)):
        other = _kernel.Codes(arena_of(vectors_of(20, dimension, 26), metric), np.arange(20))
        with pytest.raises(ValueError, match="differ in dimension or metric"):
            graph.scan(vectors[:1], 1, arena, coded=(other,), largest_norm=10)
    small = arena_of(vectors[:30], Metric.COSINE)
    with pytest.raises(IndexError, match="not in the arena"):
        graph.scan(vectors[200:201], 1, small, coded=(codes,), largest_norm=10)


def test_a_long_tail_is_coded_and_its_codes_go_with_it(monkeypatch):
    """Beside a graph of int8 codes alone; another storage makes them anew."""
    monkeypatch.setattr(kernel, "CODED_ROWS_MIN", 50)
    monkeypatch.setattr(kernel, "CODED_ROWS_MAX", 100)
    vectors = vectors_of(1_000, DIMENSION, 27)
    parameters = VectorParameters(dimension=DIMENSION, metric=Metric.COSINE, hnsw=HnswParameters())
    table = RowTable()
    index = kernel.KernelIndex(parameters, table)

    def coded() -> list[int]:
        return [len(codes) for codes in index._tail.view().coded]

    index.add(table.allocate(200), vectors[:200])
    index.maintain(threads=1, slice_rows=200)
    assert coded() == []
    index.add(table.allocate(780), vectors[200:980])
    graph_bytes = index.statistics().graph_bytes
    index.maintain(threads=1, slice_rows=10)
    assert coded() == [100] * 7 + [80]
    assert index.statistics().graph_bytes > graph_bytes + 780 * DIMENSION
    assert index._tail.view().rest.size == 0
    index.add(table.allocate(20), vectors[980:])
    index.maintain(threads=1, slice_rows=95)
    assert index._tail.view().rest.size == 20
    index.forget(np.arange(250, 310))
    index.maintain(threads=1, slice_rows=10)
    assert coded() == [100] * 6 + [80]
    narrow = kernel.Arena(DIMENSION, Metric.COSINE, Storage.FLOAT16)
    narrow.write(np.arange(1_000), vectors)
    index.configure(parameters, narrow)
    assert coded() == []
    index.maintain(threads=1, slice_rows=10)
    assert sum(coded()) > 600
    while index.has_work():
        index.maintain(threads=1, slice_rows=100)
    index.maintain(threads=1, slice_rows=100)
    assert coded() == []
