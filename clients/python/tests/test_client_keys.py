"""Operations on keys with both clients over a real server: alone, together, in pipelines, through lost connections."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.tcp_proxy import Proxy
from vecmem_client import (
    CrossSlotError,
    InvalidKeyError,
    KeyNotFoundError,
    NotANumberError,
    NumberOverflowError,
    Position,
    PositionAheadError,
    RequestIdReusedError,
    RetryPolicy,
    counters,
    keys,
    strings,
)

CALLERS = 40


@pytest.fixture
def key(collection_name: str) -> str:
    """A key that no other test uses; others with the same tag share its slot."""
    return f"{{{collection_name}}}"


async def test_strings(client, key):
    assert await client.run(strings.get(key)) is None
    first = await client.run(strings.set(key, "eins", condition="absent"))
    assert (first.written, first.previous) == (True, None)
    assert not (await client.run(strings.set(key, "zwei", condition="absent"))).written
    second = await client.run(
        strings.set(key, b"zwei", expected_version=first.version, return_previous=True, condition="present")
    )
    assert (second.written, second.previous) == (True, b"eins")
    assert await client.run(strings.append(key, "!")) == 5
    assert await client.run(strings.get_range(key, -2)) == b"i!"
    assert await client.run(strings.get_range(key, 0, 0)) == b"z"
    assert await client.run(strings.set_range(key, 7, "x")) == 8
    versioned = await client.run(strings.get_versioned(key))
    assert versioned.value == b"zwei!\0\0x"
    assert versioned.version > second.version
    assert await client.run(strings.set_several({key + "1": "1", key + "2": b"2"}))
    assert not await client.run(strings.set_several({key + "1": "x", key + "3": "x"}, only_if_all_absent=True))
    assert await client.run(strings.get_several([key + "1", key + "3", key + "2"])) == [b"1", None, b"2"]
    assert await client.run(strings.take(key)) == b"zwei!\0\0x"
    assert await client.run(strings.take(key)) is None


async def test_counters(client, key):
    assert (await client.run(counters.add(key))).value == 1
    clamped = await client.run(counters.add(key, 10, maximum=5, beyond="clamp"))
    assert (clamped.value, clamped.changed) == (5, True)
    refused = await client.run(counters.add(key, -10, minimum=0))
    assert (refused.value, refused.changed) == (5, False)
    assert (await client.run(counters.add_float(key, 0.25))).value == 5.25
    with pytest.raises(NotANumberError):
        await client.run(counters.add(key))
    await client.run(strings.set(key, str(2**63 - 1)))
    with pytest.raises(NumberOverflowError):
        await client.run(counters.add(key))


async def test_keys(client, key):
    at = datetime.now(UTC) + timedelta(hours=1)
    await client.run(strings.set(key, "x", expires_at=at))
    described = await client.run(keys.describe(key))
    assert (described.type, described.size) == ("string", 1)
    assert abs(described.expires_at - at) < timedelta(milliseconds=2)
    assert not await client.run(keys.expire(key, ttl_seconds=7200, condition="earlier"))
    assert await client.run(keys.expire(key, ttl_seconds=1800, condition="earlier"))
    assert await client.run(keys.persist(key))
    assert (await client.run(keys.describe(key))).expires_at is None
    assert await client.run(keys.exist([key, key + "2"])) == [True, False]
    assert await client.run(keys.touch([key, key])) == 2
    assert await client.run(keys.rename(key, key + "2"))
    with pytest.raises(KeyNotFoundError):
        await client.run(keys.rename(key, key + "2"))
    page = await client.run(keys.scan(key.replace("{", "\\{") + "*", type="string", page_size=1))
    assert page.keys == [(key + "2").encode()]
    assert await client.run(keys.delete([key, key + "2"])) == 1
    assert await client.run(keys.describe(key + "2")) is None


async def test_mistakes(client, key):
    with pytest.raises(InvalidKeyError):
        await client.run(strings.get(""))
    with pytest.raises(CrossSlotError) as crossed:
        await client.run(keys.delete(["a", "b"]))
    assert len(crossed.value.metadata["slots"].split(", ")) == 2
    with pytest.raises(TypeError):
        strings.set(key, 5)
    with pytest.raises(ValueError, match="one of"):
        strings.set(key, "x", ttl_seconds=1, keep_expiry=True)
    with pytest.raises(ValueError, match="time zone"):
        strings.set(key, "x", expires_at=datetime(2040, 1, 1))  # noqa: DTZ001  (that is the mistake)


async def test_a_pipeline_keeps_results_and_errors_apart(client, key):
    results = await client.pipeline([strings.set(key, "text"), counters.add(key), strings.get(key), keys.exist([key])])
    assert results[0].written
    assert isinstance(results[1], NotANumberError)
    assert results[2:] == [b"text", [True]]


async def test_request_ids(client, key):
    first = await client.run(counters.add(key), request_id=key)
    assert await client.run(counters.add(key), request_id=key) == first
    with pytest.raises(RequestIdReusedError):
        await client.run(counters.add(key, 2), request_id=key)
    await client.run(counters.add(key), request_id="")
    results = await client.pipeline([counters.add(key), counters.add(key)], request_id=key + "p")
    assert await client.pipeline([counters.add(key), counters.add(key)], request_id=key + "p") == results
    assert await client.run(strings.get(key)) == b"4"


@pytest.mark.one_shard(reason="a position is demanded of its own shard alone")
async def test_reads_can_demand_a_position(client, key):
    await client.run(strings.set(key, "x"))
    assert await client.run(strings.get(key), min_position=client.last_position) == b"x"
    with pytest.raises(PositionAheadError):
        await client.run(strings.get(key), min_position=Position(0, 10**12))


@pytest.mark.parametrize("coalesce", [True, False])
async def test_concurrent_operations_keep_their_own_results(make_client, server, key, coalesce):
    client = make_client(server.address, coalesce=coalesce)

    async def work(number: int) -> None:
        mine = f"{key}{number}"
        for round_ in range(10):
            assert (await client.run(counters.add(mine))).value == round_ + 1
            assert await client.run(strings.get(mine)) == b"%d" % (round_ + 1)
            if number % 4 == 0:
                with pytest.raises(InvalidKeyError):
                    await client.run(counters.add(""))

    await asyncio.gather(*(work(number) for number in range(CALLERS)))


async def test_increments_count_once_however_often_the_connection_breaks(make_client, server, key):
    """The proxy cuts connections with RPCs under way: what was retried, together or alone, was applied once."""
    proxy = Proxy(server.address)
    client = make_client(proxy.address, retry=RetryPolicy(attempts_max=100, backoff_seconds_max=0.2))
    done = 0

    async def work() -> None:
        nonlocal done
        for _ in range(25):
            await client.run(counters.add(key))
            done += 1

    async def cut() -> None:
        while done < CALLERS * 25:
            await asyncio.sleep(0.1)
            proxy.cut()

    try:
        cutting = asyncio.create_task(cut())
        await asyncio.gather(*(work() for _ in range(CALLERS)))
        await cutting
    finally:
        proxy.close()
    assert await make_client(server.address).run(strings.get(key)) == b"%d" % (CALLERS * 25)


async def test_a_key_that_expires_after_the_year_9999_can_be_described(client, collection_name):
    key = f"{{{collection_name}}}far"
    await client.run(strings.set(key, "v", ttl_seconds=10_000 * 366 * 86_400.0))
    assert (await client.run(keys.describe(key))).expires_at.year == 9999
