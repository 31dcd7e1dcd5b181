"""Chooses how to search: an exact scan of the rows that pass, a scan of their codes, or the graph.

By cost, in microseconds of one thread. A scan compares every row that passes, streaming through memory. A code scan looks at every
node, compares the codes of those that pass and again, exactly, the few that rounding leaves open. A graph search compares about
`COMPARISONS_PER_EF` codes for each candidate, at random places, and walks over nodes that do not pass as well: 1 / selectivity times
as many to meet as many that do. The tail is compared exactly beside the last two.

The constants are measured (`python -m bench kernel`); their ratios matter, not the machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from vecmem.index.parameters import GraphCode, Storage
from vecmem.index.vector_index import SearchPlan

QUICK_US = 300.0
"""A search expected to take less is run where it is: handing it to a thread and back costs about as much."""

COMPARISONS_PER_EF = 24
"""Measured on 62,436 MiniLM vectors, M 16."""
RANDOM_US = 0.04
"""Beyond the arithmetic, for a code at a random place."""
NODE_US = 0.002
"""To see whether a node passes."""
ROW_US = 0.01
"""Beyond the arithmetic, for a row of a scan."""
SEARCH_US = 5.0
"""Of any search."""
CODE_ROW_US = 0.01
"""Beyond the arithmetic, for a coded row of the tail."""
RESCORED_SHARE = 0.02
"""Of the rows of a code scan, so many are compared again."""
_ELEMENT_US = {Storage.FLOAT32: 0.00012, Storage.FLOAT16: 0.00014}
_CODE_ELEMENT_US = {
    GraphCode.INT8: 0.00004,
    GraphCode.FLOAT16: 0.00014,
    GraphCode.FLOAT32: 0.00012,
    GraphCode.BINARY: 0.000004,
}


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a search of one index meets. `code` None: there is no graph. Counts are of rows, but for `node_count`.

    `uncoded_count` of the `tail_count` rows have no codes beside them.
    """

    dimension: int
    storage: Storage
    code: GraphCode | None
    node_count: int
    row_count: int
    tail_count: int
    uncoded_count: int
    matching_count: int


def choose(here: Circumstances, *, limit: int, ef: int, target_recall: float, exact: bool) -> SearchPlan:
    """Plan a search for `limit` hits with effort `ef`, at least `limit`. `exact`: whatever it costs, miss none."""
    scan_us = scan_cost_us(here.matching_count, here.dimension, here.storage)
    kind, cheapest_us = "scan", scan_us
    graph_us = 0.0
    if here.code is not None and here.matching_count > limit:
        tail_us = _tail_cost_us(here)
        if here.code is GraphCode.INT8:
            code_scan_us = tail_us + _code_scan_cost_us(here, limit)
            if code_scan_us < cheapest_us:
                kind, cheapest_us = "code_scan", code_scan_us
        if not exact:
            graph_us = tail_us + _graph_cost_us(here, limit, ef)
            if graph_us < cheapest_us:
                kind = "graph"
    return SearchPlan(
        kind,
        row_count=here.row_count,
        matching_count=here.matching_count,
        ef=ef if kind == "graph" else 0,
        tail_count=0 if kind == "scan" else here.tail_count,
        target_recall=target_recall,
        graph_cost_us=graph_us,
        scan_cost_us=cheapest_us,
    )


def scan_cost_us(matching_count: int, dimension: int, storage: Storage) -> float:
    """Of an exact scan of so many rows."""
    return SEARCH_US + matching_count * row_cost_us(dimension, storage)


def row_cost_us(dimension: int, storage: Storage) -> float:
    """Of one row, compared exactly."""
    return ROW_US + dimension * _ELEMENT_US[storage]


def rescored(code: GraphCode, limit: int, ef: int) -> int:
    """How many of the `ef` nearest by code are compared again, at most, for `limit` hits.

    Of int8 codes twice the hits: of 62,436 MiniLM vectors all of the 10 nearest are among the 20 nearest by code. Signs say less.
    """
    if code is GraphCode.BINARY:
        return ef
    return limit + 2 if code is GraphCode.FLOAT32 else min(max(2 * limit, limit + 10), max(ef, limit))


def _tail_cost_us(here: Circumstances) -> float:
    row_us = row_cost_us(here.dimension, here.storage)
    code_us = CODE_ROW_US + here.dimension * _CODE_ELEMENT_US[GraphCode.INT8]
    coded_us = code_us + RESCORED_SHARE * (RANDOM_US + row_us)
    return here.uncoded_count * row_us + (here.tail_count - here.uncoded_count) * coded_us


def _code_scan_cost_us(here: Circumstances, limit: int) -> float:
    again = limit + RESCORED_SHARE * here.matching_count
    return (
        SEARCH_US
        + here.node_count * NODE_US
        + here.matching_count * (ROW_US + here.dimension * _CODE_ELEMENT_US[GraphCode.INT8])
        + again * (RANDOM_US + row_cost_us(here.dimension, here.storage))
    )


def _graph_cost_us(here: Circumstances, limit: int, ef: int) -> float:
    assert here.code is not None
    selectivity = here.matching_count / max(here.row_count, 1)
    compared = min(COMPARISONS_PER_EF * ef / max(selectivity, 1e-9), float(here.node_count))
    again = rescored(here.code, limit, ef)
    return (
        SEARCH_US
        + compared * (RANDOM_US + here.dimension * _CODE_ELEMENT_US[here.code])
        + again * (RANDOM_US + row_cost_us(here.dimension, here.storage))
    )
