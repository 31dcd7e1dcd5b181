"""HyperLogLog sketches with both clients over a real server."""

from __future__ import annotations

import pytest

from vecmem_client import CrossSlotError, WrongTypeError, hyperloglog, keys, strings


async def test_unique_visitors(client, collection_name):
    monday, tuesday, week = (f"{{{collection_name}}}:{name}" for name in ("monday", "tuesday", "week"))
    assert await client.run(hyperloglog.count([monday])) == 0
    assert await client.run(hyperloglog.add(monday, ["ada", "bob", "ada"])) is True
    assert await client.run(hyperloglog.add(monday, ["bob"])) is False
    await client.run(hyperloglog.add(tuesday, ["bob", b"eve"]))
    assert await client.run(hyperloglog.count([monday])) == 2
    assert await client.run(hyperloglog.count([monday, tuesday])) == 3
    assert await client.run(hyperloglog.merge(week, [monday, tuesday])) is True
    assert await client.run(hyperloglog.merge(week, [tuesday])) is False
    described = await client.run(keys.describe(week))
    assert (described.type, described.size) == ("hyperloglog", 3)
    with pytest.raises(CrossSlotError):
        await client.run(hyperloglog.count([monday, "elsewhere"]))
    await client.run(strings.set(monday, "text"))
    with pytest.raises(WrongTypeError):
        await client.run(hyperloglog.add(monday, ["ada"]))
