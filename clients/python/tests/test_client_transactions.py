"""Transactions with both clients over a real server."""

from __future__ import annotations

import asyncio

import pytest

from vecmem_client import (
    CrossSlotError,
    LimitExceededError,
    Point,
    RequestIdReusedError,
    VersionConflictError,
    WrongTypeError,
    counters,
    hashes,
    keys,
    lists,
    strings,
    transactions,
)


@pytest.fixture
def tag(collection_name: str) -> str:
    """The part in braces that keys and points share."""
    return f"{{{collection_name}}}"


async def test_a_document_its_counter_and_the_session_change_together(client, collection, tag):
    chunk = Point(tag + "chunk", [1.0, 0.0, 0.0, 0.0], payload={"text": "one"})
    steps = [
        transactions.upsert(collection, [chunk]),
        counters.add(tag + "count"),
        hashes.set(tag + "session", {"last": "chunk"}),
    ]
    absent = transactions.point_absent(collection, tag + "chunk")
    otherwise = [transactions.update_payload(collection, [tag + "chunk"], merge={"again": True})]
    first = await client.commit(compare=[absent], then=steps, otherwise=otherwise)
    assert first.succeeded
    [upserted, counted, session] = first.results
    assert (upserted.inserted_count, upserted.version) == (1, first.position.sequence)
    assert counted.value == 1
    assert session.new_count == 1
    assert client.last_position.sequence >= first.position.sequence
    second = await client.commit(compare=[absent], then=steps, otherwise=otherwise)
    assert not second.succeeded
    assert second.results[0].updated_count == 1
    [found] = await client.get(collection, [tag + "chunk"])
    assert found.payload == {"text": "one", "again": True}
    same = transactions.point_version(collection, tag + "chunk", "==", found.version)
    deleted = await client.commit(compare=[same], then=[transactions.delete(collection, [tag + "chunk"])])
    assert deleted.results[0].deleted_count == 1
    assert await client.get(collection, [tag + "chunk"]) == []


async def test_comparisons(client, tag):
    await client.run(strings.set(tag + "s", "12"))
    await client.run(hashes.set(tag + "h", {"f": "v"}))
    version = (await client.run(strings.get_versioned(tag + "s"))).version
    for compare, holds in [
        (transactions.key_exists(tag + "s"), True),
        (transactions.key_absent(tag + "s"), False),
        (transactions.key_version(tag + "s", "==", version), True),
        (transactions.key_version(tag + "s", "<", version), False),
        (transactions.key_type(tag + "h", "hash"), True),
        (transactions.key_type(tag + "h", "sorted_set"), False),
        (transactions.string_value(tag + "s", ">=", "12"), True),
        (transactions.integer_value(tag + "s", ">", 11), True),
        (transactions.integer_value(tag + "s", "!=", 12), False),
        (transactions.hash_field(tag + "h", "f", "==", "v"), True),
        (transactions.hash_field(tag + "h", "f", "<=", "u"), False),
    ]:
        result = await client.commit(
            compare=[compare], then=[strings.get(tag + "s")], otherwise=[strings.get(tag + "no")]
        )
        assert (result.succeeded, result.results) == (holds, [b"12" if holds else None])


async def test_a_step_that_is_refused_undoes_those_before(client, collection, tag):
    await client.run(lists.push(tag + "list", ["x"]))
    steps = [counters.add(tag + "count"), lists.push(tag + "list", ["y"]), strings.append(tag + "list", "z")]
    with pytest.raises(WrongTypeError) as refused:
        await client.commit(then=steps)
    assert refused.value.metadata["field"] == "then[2].operation.append_string.key"
    assert await client.run(keys.describe(tag + "count")) is None
    assert await client.run(lists.get_range(tag + "list")) == [b"x"]
    conditional = Point(tag + "p", [1.0, 0.0, 0.0, 0.0], expected_version=7)
    with pytest.raises(VersionConflictError) as conflict:
        await client.commit(then=[steps[0], transactions.upsert(collection, [conditional])])
    assert conflict.value.metadata["actual_version"] == "0"
    assert await client.run(keys.describe(tag + "count")) is None


async def test_a_repeat_gets_the_first_result(client, tag):
    steps = [counters.add(tag + "count")]
    first = await client.commit(then=steps, request_id=tag)
    assert await client.commit(then=steps, request_id=tag) == first
    with pytest.raises(RequestIdReusedError):
        await client.commit(then=[*steps, *steps], request_id=tag)
    assert await client.run(strings.get(tag + "count")) == b"1"


async def test_bad_transactions(client, collection, tag):
    with pytest.raises(CrossSlotError) as crossing:
        await client.commit(then=[strings.set("a" + collection, ""), strings.set("b" + collection, "")])
    assert crossing.value.metadata["slots"].count(",") == 1
    with pytest.raises(LimitExceededError):
        await client.commit(then=[counters.add(tag)] * 129)
    assert await client.run(keys.describe(tag)) is None
    with pytest.raises(KeyError):
        transactions.key_version(tag, "=", 1)


async def test_nobody_sees_a_part(client, collection, tag):
    """Readers of keys and points beside transactions that write both: what a reader saw of one holds for the other."""
    rounds = 6

    async def write() -> None:
        for number in range(1, rounds + 1):
            points = [
                Point(f"{tag}{place}", [1.0, float(number), 0.0, float(place)], payload={"round": number})
                for place in range(10_000)
            ]
            await client.commit(
                then=[
                    strings.set(tag + "first", str(number)),
                    transactions.upsert(collection, points),
                    strings.set(tag + "last", str(number)),
                ]
            )

    async def read() -> int:
        looked = 0
        while not writing.done():
            first = int(await client.run(strings.get(tag + "first")) or 0)
            found = await client.get(collection, [tag + "0", tag + "9999"])
            versions = [point.payload["round"] for point in found] or [0, 0]
            last = int(await client.run(strings.get(tag + "last")) or 0)
            assert versions[0] == versions[1]
            assert first <= versions[0] <= last
            both = await client.run(strings.get_several([tag + "first", tag + "last"]))
            assert both[0] == both[1]
            looked += 1
        return looked

    writing = asyncio.create_task(write())
    looked = await asyncio.gather(*(read() for _ in range(4)))
    await writing
    assert all(looked)
