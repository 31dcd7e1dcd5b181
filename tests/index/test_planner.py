"""Which plan is taken where, and what a graph search does that leads nowhere."""

from __future__ import annotations

import numpy as np
import pytest

from tests.index.support import check
from vecmem.index import _kernel, planner
from vecmem.index.arena import Arena
from vecmem.index.metric import Metric
from vecmem.index.parameters import GraphCode, Storage

ROWS = 62_436


def plan(matching_count, *, limit=10, ef=32, exact=False, code=GraphCode.INT8, storage=Storage.FLOAT32, tail_count=0):
    here = planner.Circumstances(
        dimension=384,
        storage=storage,
        code=code,
        node_count=ROWS,
        row_count=ROWS + tail_count,
        tail_count=tail_count,
        uncoded_count=tail_count,
        matching_count=matching_count,
    )
    return planner.choose(here, limit=limit, ef=ef, target_recall=0.97, exact=exact)


def test_few_rows_are_scanned_many_are_searched_and_those_between_by_their_codes():
    kinds = [plan(int(ROWS * share)).kind for share in (0.0005, 0.01, 0.05, 0.2, 0.5, 1.0)]
    assert kinds == ["scan", "code_scan", "code_scan", "graph", "graph", "graph"]
    assert plan(ROWS, exact=True).kind == "code_scan"
    assert plan(5).kind == "scan", "all that pass are hits"
    assert plan(ROWS, code=None).kind == "scan"
    assert plan(ROWS, exact=True, code=GraphCode.FLOAT32).kind == "scan"


def test_costs_grow_with_all_that_costs():
    costs = [plan(count, exact=True).scan_cost_us for count in (100, 1_000, 10_000, 60_000)]
    assert costs == sorted(costs)
    assert plan(ROWS, ef=64).graph_cost_us > plan(ROWS).graph_cost_us
    assert plan(ROWS // 2).graph_cost_us > plan(ROWS).graph_cost_us
    assert plan(ROWS, tail_count=5_000).graph_cost_us > plan(ROWS).graph_cost_us
    assert (
        plan(1_000, exact=True, code=None, storage=Storage.FLOAT16).cost_us < plan(1_000, exact=True, code=None).cost_us
    )


def test_only_a_filtered_search_of_the_graph_gives_up():
    assert plan(ROWS).compared_max == 0
    assert plan(ROWS // 100).compared_max == 0
    filtered = plan(ROWS // 2)
    assert filtered.kind == "graph"
    assert 1_000 < filtered.compared_max < ROWS


@pytest.mark.parametrize("code", ["int8", "float32"])
@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN, Metric.DOT])
def test_a_search_that_gives_up_finds_the_true_nearest_of_all_that_pass(code, metric):
    """The rows that pass lie on the other side: the graph would have to be walked through to reach them."""
    rng = np.random.default_rng(5)
    near = rng.normal(size=(1_500, 16)) + 6
    far = rng.normal(size=(300, 16)) - 6
    vectors = np.concatenate([near, far]).astype(np.float32)
    arena = Arena(16, metric)
    arena.write(np.arange(1_800), vectors)
    graph = _kernel.Graph(code, metric, 16, 8, 60, 0.05)
    graph.add(vectors[:1_790], np.arange(1_790), 1)
    mask = np.arange(1_800) >= 1_500
    bits = np.packbits(mask, bitorder="little")
    queries = (rng.normal(size=(20, 16)) + 6).astype(np.float32)
    tail = np.arange(1_790, 1_800)
    search = lambda **more: graph.search(  # noqa: E731
        queries, 5, 16, arena.native, 10, bits, tail, largest_norm=arena.largest_norm, **more
    )
    rows, scores, ends, compared = search(compared_max=50)
    assert (compared >= 50 + 290).all(), "the search, and then all that pass"
    points = {f"{row:04d}": vectors[row] for row in np.flatnonzero(mask)}
    for query, start, end in zip(queries, [0, *ends[:-1]], ends, strict=True):
        hits = [(f"{row:04d}", float(score)) for row, score in zip(rows[start:end], scores[start:end], strict=True)][:5]
        check(metric, points, query, 5, hits, exact=True)
    *_, patient = search()
    assert (patient != compared).any(), "without a bound it goes on"


def test_a_bound_changes_nothing_where_it_is_not_reached():
    rng = np.random.default_rng(6)
    vectors = rng.normal(size=(2_000, 16)).astype(np.float32)
    arena = Arena(16, Metric.COSINE)
    arena.write(np.arange(2_000), vectors)
    graph = _kernel.Graph("int8", Metric.COSINE, 16, 8, 60, 0.02)
    graph.add(vectors, np.arange(2_000), 1)
    bits = np.packbits(rng.random(2_000) < 0.5, bitorder="little")
    options = {"largest_norm": arena.largest_norm}
    free = graph.search(vectors[:30], 5, 16, arena.native, 10, bits, **options)
    bounded = graph.search(vectors[:30], 5, 16, arena.native, 10, bits, compared_max=2_000, **options)
    each = graph.search(
        vectors[:30], 5, 16, arena.native, 10, bits, compared_max=np.full(30, 2_000, dtype=np.int64), **options
    )
    for one, other, third in zip(free, bounded, each, strict=True):
        assert one.tolist() == other.tolist() == third.tolist()
    unfiltered = graph.search(vectors[:30], 5, 16, arena.native, 10, compared_max=1, **options)
    assert unfiltered[3].max() > 1, "without a filter there is nothing to give up for"
    with pytest.raises(ValueError, match="compared_max"):
        graph.search(vectors[:30], 5, 16, arena.native, 10, bits, compared_max=0, **options)
