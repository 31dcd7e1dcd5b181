"""Chooses between an exact scan of the rows that pass a filter and a search of the graph.

`choose` and `widen` are for a graph whose results are filtered, `choose_native` for the kernel, whose search takes the filter along.

Costs of the former are in vectors compared: a scan compares every matching row once, streaming through memory; a graph search compares
about `GRAPH_COMPARISONS_PER_EF` vectors for each candidate it considers, at random places. The graph has to fetch enough
candidates that `limit` of them pass, so its cost grows with 1 / selectivity, and the scan's with selectivity.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

GRAPH_COMPARISONS_PER_EF = 24
"""Measured on 62,436 MiniLM vectors, M 16: 64 candidates cost 0.17-0.24 ms, as much as scanning about 1,500 gathered rows."""
FETCH_MARGIN = 1.5
"""Candidates fetched beyond the expected number, since matches are never spread evenly."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`fetch` 0: scan exactly. Otherwise ask the graph for `fetch` candidates with effort `ef`."""

    fetch: int
    ef: int


def choose(*, limit: int, ef: int, matching_count: int, row_count: int, graph_count: int) -> Plan:
    """Plan a search for `limit` of `matching_count` rows among `row_count` live ones, `graph_count` of them in the graph."""
    if graph_count == 0 or matching_count <= limit:
        return Plan(0, 0)
    expected = limit * row_count / matching_count
    fetch = limit if matching_count == row_count else int(expected * FETCH_MARGIN) + limit
    effort = max(ef, fetch)
    if matching_count <= effort * GRAPH_COMPARISONS_PER_EF or fetch > graph_count:
        return Plan(0, 0)
    return Plan(fetch, effort)


def widen(plan: Plan, *, found: int, limit: int, matching_count: int, graph_count: int) -> Plan:
    """Plan the next attempt after only `found` of `limit` hits passed."""
    fetch = plan.fetch * 4 if not found else min(plan.fetch * 4, int(plan.fetch * 2 * limit / found) + 1)
    if matching_count <= fetch * GRAPH_COMPARISONS_PER_EF or fetch > graph_count:
        return Plan(0, 0)
    return Plan(fetch, fetch)


class NativePlan(StrEnum):
    """How the kernel answers a query; `CODES` and `ARENA` are exact."""

    GRAPH = "graph"
    CODES = "codes"
    ARENA = "arena"


# Costs of the kernel in nanoseconds, measured on 62,436 MiniLM vectors of 384 dimensions with AVX-512 VNNI; only their ratios matter.
_GRAPH_NS_PER_EF = 1_100
_GRAPH_SELECTIVITY_POWER = 0.85
"""A filtered search visits about ef / selectivity nodes; those near together share neighbours, so a little less."""
_CODES_NS_PER_ROW = 1.8
_CODES_NS_PER_MATCH = 16.0
_ARENA_NS_PER_ROW = 0.2
_ARENA_NS_PER_MATCH = 45.0


def choose_native(
    *, limit: int, ef: int, matching_count: int, row_count: int, graph_count: int, has_codes: bool
) -> NativePlan:
    """Plan a search for `limit` of `matching_count` rows among `row_count`, `graph_count` of them in the graph.

    `has_codes`: the graph's codes bound the error of a scan.
    """
    arena = row_count * _ARENA_NS_PER_ROW + matching_count * _ARENA_NS_PER_MATCH
    codes = graph_count * _CODES_NS_PER_ROW + matching_count * _CODES_NS_PER_MATCH
    if graph_count == 0 or matching_count <= limit:
        return NativePlan.ARENA
    selectivity = min(1.0, matching_count / max(row_count, 1))
    graph = max(ef, limit) * _GRAPH_NS_PER_EF / selectivity**_GRAPH_SELECTIVITY_POWER
    exact, plan = (codes, NativePlan.CODES) if has_codes and codes < arena else (arena, NativePlan.ARENA)
    return NativePlan.GRAPH if graph < exact else plan
