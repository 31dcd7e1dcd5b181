"""What effort a recall takes: order, and what is chosen before anything is measured."""

from __future__ import annotations

import itertools

import pytest

from vecmem import limits
from vecmem.index.effort import Effort
from vecmem.index.parameters import HnswParameters

TARGETS = (0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.999, 1.0)
LIMITS = (1, 5, 10, 30, 100, 1_000, 10_000)
SHARES = (1.0, 0.5, 0.2, 0.1, 0.03, 0.01, 0.001)


def test_a_common_query_takes_the_default() -> None:
    assert Effort().ef(limits.TARGET_RECALL_DEFAULT, limit=10, selectivity=1.0) == limits.EF_DEFAULT
    # As it comes from a float of the API.
    assert Effort().ef(0.9700000286102295, limit=10, selectivity=1.0) == limits.EF_DEFAULT


@pytest.mark.parametrize("share", SHARES)
def test_more_is_never_had_for_less(share: float) -> None:
    effort = Effort()
    for limit in LIMITS:
        found = [effort.ef(target, limit=limit, selectivity=share) for target in TARGETS]
        assert found == sorted(found)
        assert limit <= found[0]
        assert found[-1] <= limits.EF_MAX
    for target in TARGETS:
        found = [effort.ef(target, limit=limit, selectivity=share) for limit in LIMITS]
        assert found == sorted(found)


def test_nodes_walked_do_not_fall_as_fewer_rows_pass() -> None:
    effort = Effort()
    for target, limit in itertools.product(TARGETS, LIMITS):
        walked = [effort.ef(target, limit=limit, selectivity=share) / share for share in SHARES]
        assert walked == sorted(walked)


@pytest.mark.parametrize(
    ("hnsw", "named", "aimed"),
    [
        (HnswParameters(), (0, 0.0), (0, limits.TARGET_RECALL_DEFAULT)),
        (HnswParameters(target_recall=0.9), (0, 0.0), (0, 0.9)),
        (HnswParameters(), (0, 0.99), (0, 0.99)),
        (HnswParameters(), (50, 0.99), (50, 0.0)),
        (HnswParameters(ef=80), (0, 0.0), (80, 0.0)),
        (HnswParameters(ef=80), (0, 0.99), (0, 0.99)),
        (HnswParameters(ef=80), (50, 0.0), (50, 0.0)),
    ],
)
def test_a_query_comes_before_the_collection_and_ef_before_a_target(
    hnsw: HnswParameters, named: tuple[int, float], aimed: tuple[int, float]
) -> None:
    assert hnsw.aim(*named) == aimed
