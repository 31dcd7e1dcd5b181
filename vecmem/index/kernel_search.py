"""Runs searches of a kernel index: plans them (vecmem.index.planner), and makes one native call of all that have the same kind of plan.

Any thread; what an index is at the moment of a search is a `Looked`, so that nothing here sees it change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecmem.index import _kernel, hits, planner
from vecmem.index.arena import Arena
from vecmem.index.effort import LIMIT_MARGIN, Asked, Effort
from vecmem.index.hits import Found
from vecmem.index.parameters import GraphCode, HnswParameters, VectorParameters
from vecmem.index.rows import RowView
from vecmem.index.tail import TailView
from vecmem.index.vector_index import SearchPlan, SearchRequest, SearchResult

_NEVER = int(np.iinfo(np.int64).max)


@dataclass(slots=True)
class CodedGraph:
    """A graph, what it was made with, and the size of the sample that its code was chosen by."""

    native: _kernel.Graph
    code: GraphCode
    parameters: HnswParameters
    sample_count: int


@dataclass(slots=True, eq=False)
class Looked:
    """What a search goes by, whatever is exchanged meanwhile."""

    parameters: VectorParameters
    effort: Effort
    arena: Arena
    tail: TailView
    graph: CodedGraph | None


def run(
    requests: Sequence[SearchRequest],
    looked: Looked,
    plans: list[SearchPlan],
    view: RowView,
    threads: int,
) -> list[SearchResult]:
    """Carry out the plans of requests; `plans` changes where one led nowhere."""
    results: list[SearchResult | None] = [None] * len(requests)
    for kind in ("graph", "code_scan", "scan"):
        chosen = [index for index, plan in enumerate(plans) if plan.kind == kind]
        if not chosen:
            continue
        wanted = [(requests[index], plans[index]) for index in chosen]
        found = _call(kind, wanted, looked, view, threads)
        best = found.hits([requests[index].limit for index in chosen], view.ids)
        for index, (rows, scores), compared in zip(chosen, best, found.compared.tolist(), strict=True):
            request, plan = requests[index], plans[index]
            if kind == "graph" and len(rows) < min(request.limit, plan.matching_count):
                # A graph may not lead to every node. Whoever asks for nearly all rows gets them, by a scan.
                plans[index] = replace(plan, kind="scan")
                continue
            results[index] = SearchResult(rows, scores, plan, compared)
            if kind == "graph":
                looked.effort.note(Asked(request.query, request.limit, plan.ef, plan.target_recall, request.allowed))
    return [result for result in results if result is not None]


def plans(requests: Sequence[SearchRequest], looked: Looked) -> list[SearchPlan]:
    """How to search, for each request."""
    plans: list[SearchPlan] = []
    # Most queries of a batch want the same.
    known: dict[tuple[int, int, float, bool], SearchPlan] = {}
    for request in requests:
        if request.allowed is not None:
            plans.append(_plan(request, looked))
            continue
        wanted = (request.limit, request.ef, request.target_recall, request.exact)
        plan = known.get(wanted)
        if plan is None:
            plan = known[wanted] = _plan(request, looked)
        plans.append(plan)
    return plans


def _plan(request: SearchRequest, looked: Looked) -> SearchPlan:
    hnsw, graph, tail = looked.parameters.hnsw, looked.graph, looked.tail
    assert hnsw is not None
    ef, target_recall = hnsw.aim(request.ef, request.target_recall)
    live_count = 0 if graph is None else graph.native.live_count
    row_count = live_count + tail.count
    matching_count = row_count if request.allowed is None else request.allowed.count
    if not ef and target_recall < 1:
        selectivity = min(1.0, matching_count / max(row_count, 1))
        ef = looked.effort.ef(target_recall, limit=request.limit, selectivity=selectivity)
    return planner.choose(
        planner.Circumstances(
            dimension=looked.parameters.dimension,
            storage=looked.arena.storage,
            code=None if graph is None else graph.code,
            node_count=0 if graph is None else graph.native.node_count,
            row_count=row_count,
            tail_count=tail.count,
            uncoded_count=len(tail.rest),
            matching_count=matching_count,
        ),
        limit=request.limit,
        # The last candidates of a search with as much effort as hits are often not the best.
        ef=ef if ef >= request.limit else int(request.limit * LIMIT_MARGIN),
        target_recall=target_recall,
        exact=request.exact or target_recall >= 1,
    )


def _call(
    kind: str,
    wanted: Sequence[tuple[SearchRequest, SearchPlan]],
    looked: Looked,
    view: RowView,
    threads: int,
) -> Found:
    """One native call."""
    arena, tail, graph = looked.arena, looked.tail, looked.graph
    if kind == "scan" or graph is None:
        return hits.scan([request for request, _ in wanted], arena, view, threads)
    queries = hits.stacked([request.query for request, _ in wanted])
    limits = _numbers([request.limit for request, _ in wanted])
    allowed = None
    if any(request.allowed is not None for request, _ in wanted):
        allowed = [None if request.allowed is None else request.allowed.bits for request, _ in wanted]
    extra = tail.rest if tail.rest.size else None
    options: dict[str, Any] = {
        "coded": tail.coded,
        "view": view.native(),
        "largest_norm": arena.largest_norm,
        "threads": threads,
    }
    if kind == "code_scan":
        return Found(*graph.native.scan(queries, limits, arena.native, allowed, extra, **options))
    efs = _numbers([plan.ef for _, plan in wanted])
    rescored = _numbers([planner.rescored(graph.code, request.limit, plan.ef) for request, plan in wanted])
    if allowed is not None:
        options["compared_max"] = _numbers([plan.compared_max or _NEVER for _, plan in wanted])
    return Found(*graph.native.search(queries, limits, efs, arena.native, rescored, allowed, extra, **options))


def _numbers(values: list[int]) -> int | NDArray[np.int64]:
    """One for each query as the kernel takes them: where all are the same, that is enough."""
    first = values[0]
    return first if values.count(first) == len(values) else np.array(values, dtype=np.int64)
