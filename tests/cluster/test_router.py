"""Decisions of the router that no timing of real nodes shows for sure."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest

from vecmem.cluster import topology as layout
from vecmem.cluster.peers import Peers
from vecmem.cluster.topology import SLOT_BYTES_MIN
from vecmem.cluster.view import ClusterView
from vecmem.errors import UnavailableError
from vecmem.server.routing import CALL_SECONDS_MAX, Call, Router, call_with
from vecmem.slots import SLOTS
from vecmem.store.shard import Shard
from vecmem.v1 import lists_pb2, points_pb2


def router() -> Router:
    return Router(cast("Shard", None), cast("ClusterView", None), Peers())


@pytest.mark.parametrize("failing", ["first", "second"])
async def test_of_two_members_the_one_that_answers_is_heard(failing: str) -> None:
    """Also where the other one fails in the same turn of the event loop."""
    both = asyncio.Event()
    asked: list[str] = []

    async def ask(address: str) -> str:
        asked.append(address)
        if len(asked) == 2:
            both.set()
        await both.wait()
        if address == failing:
            raise UnavailableError("gone")
        return address

    assert await router()._hedged(ask, ["first", "second"]) in {"first", "second"} - {failing}


async def test_what_both_members_fail_with_is_raised() -> None:
    async def ask(address: str) -> str:
        raise UnavailableError(address)

    with pytest.raises(UnavailableError):
        await router()._hedged(ask, ["first", "second"])


def test_without_a_deadline_each_request_has_time_of_its_own() -> None:
    begun_long_ago = Call(None, time.monotonic() - 100.0, {}, is_bounded=False)
    batch = call_with(begun_long_ago, points_pb2.UpsertRequest())
    assert 0.0 < batch.seconds_left() <= CALL_SECONDS_MAX
    waits = call_with(begun_long_ago, lists_pb2.PopListItemsRequest(wait_ms=3_600_000))
    assert waits.seconds_left() > 3_600.0
    bounded = call_with(Call(None, begun_long_ago.deadline, {}), points_pb2.UpsertRequest())
    assert bounded.deadline == begun_long_ago.deadline


def plan(held: dict[int, dict[int, float]], leaving: tuple[int, ...] = ()) -> tuple[dict[Any, int], dict[int, float]]:
    """How many slots go from where to where among two shards, and what each then holds, bytes."""
    slot_bytes = {number: [slots.get(slot, 0.0) for slot in range(SLOTS)] for number, slots in held.items()}
    migrations, after = layout.plan_rebalance(layout.initial("c", len(held)), slot_bytes, leaving)
    return {(move.source, move.target): move.total_slot_count for move in migrations}, after


def test_a_few_keys_move_no_slots() -> None:
    moves, after = plan({0: {1: 2_000.0, 7: 900.0}, 1: {}})
    assert moves == {}
    assert after == {0: 2_900.0, 1: 0.0}


def test_what_is_large_moves_until_shards_hold_about_as_much() -> None:
    size_bytes = 100.0 * SLOT_BYTES_MIN
    moves, after = plan({0: dict.fromkeys(range(2_000), size_bytes), 1: {}})
    assert after[0] + after[1] == pytest.approx(2_000 * size_bytes)
    assert after[1] > 0.4 * after[0]
    assert set(moves) == {(0, 1)}
    moves, after = plan({0: {1: 2_000.0}, 1: {}}, leaving=(0,))
    assert moves == {(0, 1): SLOTS // 2}
    assert after == {0: 0.0, 1: 2_000.0}
