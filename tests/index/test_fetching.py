"""The planner at its edges."""

from __future__ import annotations

import pytest

from vecmem.index.fetching import GRAPH_COMPARISONS_PER_EF, Plan, choose, widen

SCAN = Plan(0, 0)
ROWS = 100_000


def plan(limit: int = 10, ef: int = 64, matching: int = ROWS, rows: int = ROWS, graph: int = ROWS) -> Plan:
    return choose(limit=limit, ef=ef, matching_count=matching, row_count=rows, graph_count=graph)


def test_without_a_filter_the_graph_is_asked_for_what_is_wanted() -> None:
    """And with the effort that was asked for, or as much as so many good results take."""
    assert plan() == Plan(10, 64)
    assert plan(limit=40) == Plan(40, 64)
    assert plan(limit=200) == Plan(200, 300)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param({"graph": 0, "rows": 50_000}, id="empty graph"),
        pytest.param({"matching": 0}, id="nothing passes"),
        pytest.param({"matching": 10}, id="as many pass as are wanted"),
        pytest.param({"matching": 9}, id="fewer pass than are wanted"),
        pytest.param({"limit": ROWS + 1}, id="more wanted than there are"),
        pytest.param({"matching": 64 * GRAPH_COMPARISONS_PER_EF}, id="a scan costs as much"),
        pytest.param({"graph": 15, "matching": 50_000}, id="the graph does not hold enough"),
        pytest.param({"rows": 0, "graph": 0, "matching": 0}, id="empty collection"),
    ],
)
def test_scans(case: dict[str, int]) -> None:
    """Where the graph cannot answer, or not cheaper."""
    assert plan(**case) == SCAN


def test_a_filter_makes_the_graph_fetch_more() -> None:
    """More than 1 / selectivity times the limit; and the less passes the more."""
    fetches = [plan(matching=matching).fetch for matching in (ROWS, 50_000, 20_000, 10_000)]
    assert fetches == sorted(set(fetches))
    for fetch, selectivity in zip(fetches[1:], (0.5, 0.2, 0.1), strict=True):
        assert 10 / selectivity < fetch < 3 * 10 / selectivity
    assert plan(matching=10_000).ef > plan(matching=10_000).fetch


def test_selective_filters_are_scanned() -> None:
    """One percent and less, however large the collection."""
    for matching in (1_000, 100, 11):
        assert plan(matching=matching) == SCAN


def test_widening_ends_with_a_scan() -> None:
    """Whatever is found, each attempt fetches more than the last, and they are few."""
    for found in (0, 1, 9):
        attempt = plan(matching=50_000)
        for _ in range(8):
            wider = widen(attempt, found=found, limit=10, matching_count=50_000, graph_count=ROWS)
            if wider == SCAN:
                break
            assert wider.fetch > attempt.fetch
            assert wider.ef > wider.fetch
            attempt = wider
        assert wider == SCAN


def test_widening_never_asks_for_more_than_the_graph_holds() -> None:
    """It scans instead."""
    assert widen(Plan(300, 300), found=5, limit=10, matching_count=ROWS, graph_count=500) == SCAN
