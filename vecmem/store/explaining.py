"""What a query tells of how it was answered (Query.explain)."""

from __future__ import annotations

from vecmem.index.filter import CompiledFilter
from vecmem.index.vector_index import SearchResult
from vecmem.v1 import points_pb2

_PLANS = {
    "scan": points_pb2.QUERY_PLAN_SCAN,
    "code_scan": points_pb2.QUERY_PLAN_CODE_SCAN,
    "graph": points_pb2.QUERY_PLAN_GRAPH,
}


def explanation(result: SearchResult, compiled: CompiledFilter | None) -> points_pb2.Explanation:
    """The message for the plan of a result; `compiled` None: there was no filter."""
    plan = result.plan
    return points_pb2.Explanation(
        plan=_PLANS[plan.kind],
        point_count=plan.row_count,
        matching_count=plan.matching_count,
        ef=plan.ef,
        target_recall=plan.target_recall,
        compared_count=result.compared_count,
        tail_count=plan.tail_count,
        graph_cost_us=plan.graph_cost_us,
        scan_cost_us=plan.scan_cost_us,
        filter_paths=[] if compiled is None else sorted(path.text for path in compiled.paths),
    )
