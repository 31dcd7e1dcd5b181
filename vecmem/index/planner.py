"""Chooses how to search: an exact scan of the rows that pass, a scan of their codes, or the graph.

By cost, in microseconds of one thread. A scan compares every row that passes, in order of memory. A code scan compares the codes of
those that pass and again, exactly, the few that rounding leaves open. A graph search compares codes at random places, and walks over nodes
that do not pass as well: at a share of 0.1, eight times as many to meet as many that do. The tail is compared exactly beside the last two.

What a filter has to do with the vectors nobody knows beforehand. Where all that passes is far from the query, a graph search wanders about;
so it gives up (`SearchPlan.compared_max`) when it has cost as much as a scan, which is then made: twice the best at the worst.

The constants were fitted on 2 cores with 1 MiB of second-level and 32 MiB of shared cache, over 60,000 vectors of 128, 384 (MiniLM) and
768 elements; the ratios matter, not the machine. The two-hop search of ACORN-1 (Patel et al., arXiv:2403.04871) was measured beside. At
equal recall it took 1.6 times less than the graph search here where a tenth passes, and more where a fifth does or half; a tenth is where
the code scan, which misses nothing, costs no more than either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vecmem.index.parameters import GraphCode, Storage
from vecmem.index.vector_index import SearchPlan

QUICK_US = 300.0
"""A search expected to take less is run where it is: handing it to a thread and back costs about as much."""

COMPARED_BEFORE = 150
"""Codes that a graph search compares to come near the query."""
COMPARED_PER_EF = 13.5
"""Codes compared for each candidate. Measured, M 16: 11 of MiniLM vectors, 17 of synthetic ones."""
SELECTIVITY_EXPONENT = 0.9
"""How many more codes are compared as fewer pass: share ** -0.9."""
CERTAINTY = 0.8
"""A scan misses nothing and costs what it is expected to: a graph search must be expected to take no more than this share of it."""
RANDOM_US = 0.03
"""Beyond the elements, for a code at a random place."""
ROW_US = 0.003
"""Beyond the elements, for a row of a scan."""
CODE_ROW_US = 0.009
"""The same of a code scan."""
SEARCH_US = 8.0
"""Of any search, and of each of its elements."""
SEARCH_ELEMENT_US = 0.02
RESCORED_PER_HIT = 12
"""Rows of a code scan compared again, for each hit wanted. About."""
CODED_COMPARED_SHARE = 0.02
"""Of the coded rows of the tail, so many are compared again."""
CACHE_BYTES = 6 * 1024 * 1024
MEMORY_BYTES = 16 * 1024 * 1024
MEMORY_FACTOR = 3.0
"""A scan of so many bytes finds its rows in the cache, or in memory, where each costs so many times as much."""
_ELEMENT_BYTES = {Storage.FLOAT32: 4, Storage.FLOAT16: 2}
_ELEMENT_US = {Storage.FLOAT32: 0.00019, Storage.FLOAT16: 0.00012}
_CODE_ELEMENT_US = 0.000075
"""Of int8 in order of memory."""
_RANDOM_ELEMENT_US = {
    GraphCode.INT8: 0.00022,
    GraphCode.FLOAT16: 0.0003,
    GraphCode.FLOAT32: 0.0004,
    GraphCode.BINARY: 0.00003,
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
    kind, cheapest_us = "scan", scan_cost_us(here.matching_count, here.dimension, here.storage)
    graph_us = 0.0
    compared_max = 0
    if here.code is not None and here.matching_count > limit:
        tail_us = _tail_cost_us(here)
        if here.code is GraphCode.INT8:
            code_scan_us = tail_us + _code_scan_cost_us(here, limit)
            if code_scan_us < cheapest_us:
                kind, cheapest_us = "code_scan", code_scan_us
        if not exact:
            graph_us = tail_us + _graph_cost_us(here, limit, ef)
            if graph_us < CERTAINTY * cheapest_us:
                kind = "graph"
                if here.matching_count < here.row_count:
                    compared_max = max(1, int((cheapest_us - tail_us) / _random_us(here.code, here.dimension)))
    return SearchPlan(
        kind,
        row_count=here.row_count,
        matching_count=here.matching_count,
        ef=ef if kind == "graph" else 0,
        compared_max=compared_max,
        tail_count=0 if kind == "scan" else here.tail_count,
        target_recall=target_recall,
        graph_cost_us=graph_us,
        scan_cost_us=cheapest_us,
    )


def scan_cost_us(matching_count: int, dimension: int, storage: Storage) -> float:
    """Of an exact scan of so many rows."""
    size_bytes = matching_count * dimension * _ELEMENT_BYTES[storage]
    return _search_us(dimension) + matching_count * row_cost_us(dimension, storage) * _memory_factor(size_bytes)


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
    coded_us = CODE_ROW_US + here.dimension * _CODE_ELEMENT_US + CODED_COMPARED_SHARE * (RANDOM_US + row_us)
    return here.uncoded_count * row_us + (here.tail_count - here.uncoded_count) * coded_us


def _search_us(dimension: int) -> float:
    return SEARCH_US + dimension * SEARCH_ELEMENT_US


def _memory_factor(size_bytes: int) -> float:
    share = (size_bytes - CACHE_BYTES) / (MEMORY_BYTES - CACHE_BYTES)
    return 1.0 + (MEMORY_FACTOR - 1.0) * min(1.0, max(0.0, share))


def _code_scan_cost_us(here: Circumstances, limit: int) -> float:
    code_us = CODE_ROW_US + here.dimension * _CODE_ELEMENT_US
    return (
        _search_us(here.dimension)
        + here.matching_count * code_us * _memory_factor(here.matching_count * here.dimension)
        + limit * RESCORED_PER_HIT * (RANDOM_US + row_cost_us(here.dimension, here.storage))
    )


def _random_us(code: GraphCode, dimension: int) -> float:
    return RANDOM_US + dimension * _RANDOM_ELEMENT_US[code]


def _graph_cost_us(here: Circumstances, limit: int, ef: int) -> float:
    assert here.code is not None
    selectivity = min(1.0, here.matching_count / max(here.row_count, 1))
    compared = COMPARED_BEFORE + COMPARED_PER_EF * ef / math.pow(selectivity, SELECTIVITY_EXPONENT)
    again = rescored(here.code, limit, ef)
    return (
        _search_us(here.dimension)
        + min(compared, float(here.node_count)) * _random_us(here.code, here.dimension)
        + again * (RANDOM_US + row_cost_us(here.dimension, here.storage))
    )
