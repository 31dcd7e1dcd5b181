"""Chooses between an exact scan of the rows that pass a filter and a search of the graph whose results are filtered.

Costs are in vectors compared: a scan compares every matching row once, streaming through memory; a graph search compares about
`GRAPH_COMPARISONS_PER_EF` vectors for each candidate it considers, at random places. The graph has to fetch enough
candidates that `limit` of them pass, so its cost grows with 1 / selectivity, and the scan's with selectivity.
"""

from __future__ import annotations

from dataclasses import dataclass

GRAPH_COMPARISONS_PER_EF = 24
"""Measured on 62,436 MiniLM vectors, M 16: 64 candidates cost 0.17-0.24 ms, as much as scanning about 1,500 gathered rows."""
FETCH_MARGIN = 1.5
"""Candidates fetched beyond the expected number, since matches are never spread evenly."""

EFFORT_MARGIN = 1.5
"""Effort at least, per candidate fetched: the last ones of a graph search with as much effort as results are often not the best.
Measured on 5,000 MiniLM vectors, results filtered to 20 % far from the query: recall@10 0.96-0.97 without it, 0.985-0.99 with it."""


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
    effort = max(ef, int(fetch * EFFORT_MARGIN))
    if matching_count <= effort * GRAPH_COMPARISONS_PER_EF or fetch > graph_count:
        return Plan(0, 0)
    return Plan(fetch, effort)


def widen(plan: Plan, *, found: int, limit: int, matching_count: int, graph_count: int) -> Plan:
    """Plan the next attempt after only `found` of `limit` hits passed."""
    fetch = plan.fetch * 4 if not found else min(plan.fetch * 4, int(plan.fetch * 2 * limit / found) + 1)
    effort = int(fetch * EFFORT_MARGIN)
    if matching_count <= effort * GRAPH_COMPARISONS_PER_EF or fetch > graph_count:
        return Plan(0, 0)
    return Plan(fetch, effort)
