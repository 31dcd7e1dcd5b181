"""Streams with both clients over a real server."""

from __future__ import annotations

import asyncio

import pytest

from vecmem_client import (
    InvalidArgumentError,
    KeyNotFoundError,
    StreamGroupExistsError,
    StreamGroupNotFoundError,
    StreamIdTooSmallError,
    WrongTypeError,
    keys,
    streams,
    strings,
)
from vecmem_client.streams import StreamId


@pytest.fixture
def key(collection_name: str) -> str:
    """A key that no other test uses; others with the same tag share its slot."""
    return f"{{{collection_name}}}"


def ids(found) -> list[str]:
    return [str(entry.id) for entry in found.entries]


def test_ids_come_in_several_forms() -> None:
    assert streams.as_id("17-3") == streams.as_id((17, 3)) == StreamId(17, 3)
    assert streams.as_id("17") == StreamId(17, 0)
    assert str(StreamId(17, 3)) == "17-3"
    assert StreamId(9, 1) < StreamId(10, 0)
    for wrong in ("", "a", "1-", "-1", "1-2-3", "1-b", "\u0661-0"):
        with pytest.raises(ValueError, match="is no id"):
            streams.as_id(wrong)


def test_contradictions_are_seen_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match="one of entry_id"):
        streams.append("k", {"f": "v"}, entry_id="1-0", id_time_unix_ms=1)
    with pytest.raises(ValueError, match="one of max_length"):
        streams.append("k", {"f": "v"}, max_length=1, min_id="1-0")
    with pytest.raises(ValueError, match="one of max_length"):
        streams.trim("k")
    with pytest.raises(ValueError, match="one of after"):
        streams.create_group("k", "g", after="1-0", at_end=True)


async def test_entries(client, key):
    first = await client.run(streams.append(key, {"a": "1", "b": b"\xff"}))
    second = await client.run(streams.append(key, [("a", "1"), ("a", "2")]))
    assert second > first
    page = await client.run(streams.get_range(key))
    assert [entry.id for entry in page.entries] == [first, second]
    assert not page.more
    assert page.entries[0].pairs == [(b"a", b"1"), (b"b", b"\xff")]
    assert (page.entries[1].pairs, page.entries[1].fields) == ([(b"a", b"1"), (b"a", b"2")], {b"a": b"2"})
    assert await client.run(streams.length(key)) == 2
    assert await client.run(streams.delete(key, [first, "1-1"])) == 1
    info = await client.run(streams.describe(key))
    assert (info.entry_count, info.appended_count, info.group_count) == (1, 2, 0)
    assert (info.first_entry_id, info.last_entry_id, info.last_id) == (second, second, second)
    assert info.max_deleted_id == first
    assert (await client.run(keys.describe(key))).type == "stream"
    assert await client.run(streams.describe(key + "none")) is None
    assert await client.run(streams.length(key + "none")) == 0
    assert await client.run(streams.append(key + "none", {"f": "v"}, only_if_exists=True)) is None


async def test_ids_ranges_and_trimming(client, key):
    for time in (1, 2, 3, 4):
        assert await client.run(streams.append(key, {"f": "v"}, entry_id=f"{time}-0")) == (time, 0)
    assert await client.run(streams.append(key, {"f": "v"}, id_time_unix_ms=4)) == (4, 1)
    assert ids(await client.run(streams.get_range(key, "2", (3, 0)))) == ["2-0", "3-0"]
    within = streams.get_range(key, "1-0", "4-1", above_minimum=True, below_maximum=True, reverse=True, limit=2)
    page = await client.run(within)
    assert (ids(page), page.more) == (["4-0", "3-0"], True)
    with pytest.raises(StreamIdTooSmallError) as refused:
        await client.run(streams.append(key, {"f": "v"}, entry_id="4-1"))
    assert refused.value.metadata["last_id"] == "4-1"
    assert await client.run(streams.append(key, {"f": "v"}, entry_id="5-0", max_length=3)) == (5, 0)
    assert ids(await client.run(streams.get_range(key))) == ["4-0", "4-1", "5-0"]
    assert await client.run(streams.append(key, {"f": "v"}, entry_id="6-0", min_id="4-1")) == (6, 0)
    assert await client.run(streams.trim(key, min_id="5-0")) == 1
    assert await client.run(streams.trim(key, max_length=1)) == 1
    other = key + "2"
    await client.run(streams.append(other, {"f": "v"}, entry_id="9-0"))
    found = await client.run(streams.read({key: None, other: "9-0", key + "none": "3-0"}, count=5))
    assert [ids(found[name.encode()]) for name in (key, other, key + "none")] == [["6-0"], [], []]
    assert [str(one.after) for one in found.values()] == ["6-0", "9-0", "3-0"]
    assert not any(one.more for one in found.values())
    await client.run(streams.trim(key, max_length=0))
    assert (await client.run(streams.describe(key))).first_entry_id is None


async def test_groups(client, key):
    with pytest.raises(KeyNotFoundError):
        await client.run(streams.create_group(key, "g"))
    assert await client.run(streams.create_group(key, "g", create_stream=True)) == (0, 0)
    with pytest.raises(StreamGroupExistsError):
        await client.run(streams.create_group(key, "g"))
    with pytest.raises(StreamGroupNotFoundError):
        await client.run(streams.read_group(key, "none", "ada"))
    await client.pipeline([streams.append(key, {"n": str(time)}, entry_id=f"{time}-0") for time in range(1, 7)])
    assert await client.run(streams.create_group(key, "late", at_end=True)) == (6, 0)
    assert await client.run(streams.set_group_position(key, "late", after="4-0")) == (4, 0)
    mine = await client.run(streams.read_group(key, "g", "ada", count=3))
    assert (ids(mine), mine.more) == (["1-0", "2-0", "3-0"], True)
    assert [entry.delivery_count for entry in mine.entries] == [1, 1, 1]
    await client.run(streams.read_group(key, "g", "bob", count=1))
    assert ids(await client.run(streams.read_group(key, "g", "cem", acknowledge=True))) == ["5-0", "6-0"]
    assert await client.run(streams.acknowledge(key, "g", ["1-0", "6-0"])) == [True, False]
    await client.run(streams.delete(key, ["2-0"]))
    again = await client.run(streams.read_group(key, "g", "ada", pending_after="0"))
    assert [(str(entry.id), entry.deleted, entry.delivery_count) for entry in again.entries] == [
        ("2-0", True, 1),
        ("3-0", False, 2),
    ]
    page = await client.run(streams.pending(key, "g", count=2))
    assert [(str(entry.id), entry.consumer, entry.delivery_count) for entry in page.entries] == [
        ("2-0", b"ada", 1),
        ("3-0", b"ada", 2),
    ]
    assert page.next_start == (4, 0)
    assert page.entries[0].idle_seconds >= 0
    assert page.entries[0].delivered_at is not None
    page = await client.run(streams.pending(key, "g", page.next_start, consumer="bob"))
    assert (len(page.entries), page.next_start) == (1, None)
    group = await client.run(streams.describe_group(key, "g"))
    assert (group.last_delivered_id, group.lag, group.consumer_count, group.pending_count) == ((6, 0), 0, 3, 3)
    assert (group.first_pending_id, group.last_pending_id) == ((2, 0), (4, 0))
    claimed = await client.run(streams.claim(key, "g", "dan", ["4-0", "2-0"], idle_seconds=3_600, delivery_count=7))
    assert [(str(entry.id), entry.delivery_count) for entry in claimed.entries] == [("4-0", 7)]
    assert claimed.deleted_ids == [(2, 0)]
    old = await client.run(streams.auto_claim(key, "g", "eve", min_idle_seconds=1_800))
    assert (ids(old), old.deleted_ids, old.next_start) == (["4-0"], [], None)
    old = await client.run(streams.auto_claim(key, "g", "eve", count=1, only_ids=True))
    assert (ids(old), old.entries[0].pairs, old.next_start) == (["3-0"], [], (4, 0))
    assert await client.run(streams.create_consumer(key, "g", "fay"))
    assert not await client.run(streams.create_consumer(key, "g", "fay"))
    listed = await client.run(streams.consumers(key, "g", page_size=5))
    rest = await client.run(streams.consumers(key, "g", page_token=listed.next_page_token))
    told = {
        one.consumer: (one.pending_count, one.active_at is not None) for one in (*listed.consumers, *rest.consumers)
    }
    assert told == {
        b"ada": (0, True),
        b"bob": (0, True),
        b"cem": (0, True),
        b"dan": (0, True),
        b"eve": (2, True),
        b"fay": (0, False),
    }
    assert await client.run(streams.delete_consumer(key, "g", "eve")) == 2
    assert await client.run(streams.delete_consumer(key, "g", "eve")) is None
    names = [one.group for one in (await client.run(streams.groups(key))).groups]
    assert names == [b"g", b"late"]
    assert await client.run(streams.delete_group(key, "late")) == 0
    assert await client.run(streams.delete_group(key, "late")) is None


async def test_types_do_not_mix_and_mistakes_are_named(client, key):
    await client.run(strings.set(key, "text"))
    [appended, read, group] = await client.pipeline(
        [streams.append(key, {"f": "v"}), streams.get_range(key), streams.create_group(key, "g")]
    )
    assert all(isinstance(result, WrongTypeError) for result in (appended, read, group))
    with pytest.raises(InvalidArgumentError) as refused:
        await client.run(streams.append(key, {}))
    assert "fields" in refused.value.metadata["field"]


async def test_consumers_wait_for_entries(make_client, server, key):
    """Those who wait are woken by what is appended, and find nothing when the time is up."""
    client, other = make_client(server.address), make_client(server.address)
    await client.run(streams.create_group(key, "g", create_stream=True))
    assert ids(await client.run(streams.read_group(key, "g", "ada", wait_seconds=0.01))) == []
    reading = asyncio.create_task(client.run(streams.read_group(key, "g", "ada", wait_seconds=60)))
    behind = asyncio.create_task(other.run(streams.read({key: "0-0"}, wait_seconds=60)))
    third = make_client(server.address)
    appended = await third.run(streams.append(key, {"f": "v"}))
    assert [entry.id for entry in (await reading).entries] == [appended]
    assert [entry.id for entry in (await behind)[key.encode()].entries] == [appended]
    assert (await client.run(streams.pending(key, "g"))).entries[0].consumer == b"ada"
    with pytest.raises(ValueError, match="wait_seconds"):
        streams.read_group(key, "g", "ada", wait_seconds=-1)
