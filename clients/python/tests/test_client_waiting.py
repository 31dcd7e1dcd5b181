"""Operations that wait, with both clients over a real server."""

from __future__ import annotations

import asyncio

import pytest

from vecmem_client import InvalidArgumentError, LimitExceededError, lists, sorted_sets
from vecmem_client._operations import method_of


@pytest.fixture
def key(collection_name: str) -> str:
    """A key that no other test uses; others with the same tag share its slot."""
    return f"{{{collection_name}}}"


async def test_what_is_pushed_goes_to_who_waits(client, key):
    waiting = asyncio.create_task(client.run(lists.pop(key, wait_seconds=60)))
    await client.run(lists.push(key, ["x"]))
    assert await waiting == [b"x"]
    moving = asyncio.create_task(client.run(lists.move(key, key + "2", wait_seconds=60)))
    several = asyncio.create_task(client.run(lists.pop_first([key + "3", key + "2"], wait_seconds=60)))
    await client.run(lists.push(key, ["y"]))
    assert await moving == b"y"
    assert await several == ((key + "2").encode(), [b"y"])
    scored = asyncio.create_task(client.run(sorted_sets.pop(key + "z", wait_seconds=60)))
    first = asyncio.create_task(client.run(sorted_sets.pop_first([key + "w"], 2, end="highest", wait_seconds=60)))
    await client.run(sorted_sets.add(key + "z", {"m": 1.5}))
    await client.run(sorted_sets.add(key + "w", {"a": 1, "b": 2}))
    assert [(one.member, one.score) for one in await scored] == [(b"m", 1.5)]
    found_key, members = await first
    assert (found_key, [one.member for one in members]) == ((key + "w").encode(), [b"b", b"a"])


async def test_nothing_came(client, key):
    assert await client.run(lists.pop(key, wait_seconds=0.01)) == []
    assert await client.run(lists.pop_first([key, key + "2"], wait_seconds=0.01)) is None
    assert await client.run(lists.pop_first([key, key + "2"])) is None
    assert await client.run(lists.move(key, key + "2", wait_seconds=0.01)) is None
    assert await client.run(sorted_sets.pop_first([key], wait_seconds=0.01)) is None


async def test_a_wait_outlasts_the_default_timeout(make_client, server, key):
    impatient = make_client(server.address, timeout_seconds=0.5)
    waiting = asyncio.create_task(impatient.run(lists.pop(key, wait_seconds=60)))
    await asyncio.sleep(0.7)
    assert not waiting.done()
    await impatient.run(lists.push(key, ["late"]))
    assert await waiting == [b"late"]


async def test_a_repeat_takes_nothing_more(client, key):
    await client.run(lists.push(key, ["a", "b"]))
    assert await client.run(lists.pop(key, wait_seconds=5), request_id=key) == [b"a"]
    assert await client.run(lists.pop(key, wait_seconds=5), request_id=key) == [b"a"]
    assert await client.run(lists.get_range(key)) == [b"b"]


async def test_waits_that_are_refused(client, key):
    with pytest.raises(LimitExceededError):
        await client.run(lists.pop(key, wait_seconds=3601))
    with pytest.raises(ValueError, match="wait_seconds"):
        lists.pop(key, wait_seconds=-1)
    [refused] = await client.pipeline([lists.pop(key, wait_seconds=1)])
    assert isinstance(refused, InvalidArgumentError)
    assert refused.metadata["field"] == "wait_ms"
    with pytest.raises(InvalidArgumentError):
        await client.commit(then=[lists.pop(key, wait_seconds=1)])


def test_methods_are_found_by_the_kind_of_an_operation():
    assert method_of("pop_list_items").path == "/vecmem.v1.ListService/PopListItems"
    assert method_of("get_sorted_set_range").path == "/vecmem.v1.SortedSetService/GetSortedSetRange"
