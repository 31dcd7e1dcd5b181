"""Bitmaps with both clients over a real server."""

from __future__ import annotations

import pytest

from vecmem_client import InvalidArgumentError, LimitExceededError, WrongTypeError, bitmaps, lists, strings


@pytest.fixture
def key(collection_name: str) -> str:
    """A key that no other test uses; others with the same tag share its slot."""
    return f"{{{collection_name}}}"


async def test_bits(client, key):
    assert await client.run(bitmaps.set(key, 10)) is False
    assert await client.run(bitmaps.set(key, 3)) is False
    assert await client.run(bitmaps.set(key, 3, False)) is True
    assert await client.run(bitmaps.get(key, 10)) is True
    assert await client.run(bitmaps.get(key, 1_000)) is False
    assert await client.run(strings.get(key)) == b"\x00\x20"
    assert await client.run(bitmaps.count(key)) == 1
    assert await client.run(bitmaps.count(key, 0, 0)) == 0
    assert await client.run(bitmaps.count(key, -6, -6, by_bit=True)) == 1
    assert await client.run(bitmaps.find(key, True)) == 10
    assert await client.run(bitmaps.find(key, True, 0, 0)) is None
    assert await client.run(bitmaps.find(key, False, 10, by_bit=True)) == 11
    with pytest.raises(LimitExceededError):
        await client.run(bitmaps.set(key, 2**28))


async def test_combinations(client, key):
    one, other, both = key + "1", key + "2", key + "3"
    await client.pipeline([strings.set(one, b"\x0f\xff"), strings.set(other, b"\x3c")])
    expected = {"and": b"\x0c\x00", "or": b"\x3f\xff", "xor": b"\x33\xff"}
    for combination, content in expected.items():
        assert await client.run(bitmaps.store_combined(both, [one, other], combination)) == 2
        assert await client.run(strings.get(both)) == content
    assert await client.run(bitmaps.store_combined(both, [other], "not")) == 1
    assert await client.run(strings.get(both)) == b"\xc3"
    assert await client.run(bitmaps.store_combined(both, [key + "none"], "or")) == 0
    assert await client.run(strings.get(both)) is None
    with pytest.raises(InvalidArgumentError):
        await client.run(bitmaps.store_combined(both, [one, other], "not"))


async def test_bit_fields(client, key):
    score, level = bitmaps.field(0, 8), bitmaps.field(8, 5, signed=True)
    steps = [
        bitmaps.setting(score, 250),
        bitmaps.incrementing(score, 10, overflow="saturate"),
        bitmaps.incrementing(score, 1, overflow="fail"),
        bitmaps.incrementing(score, 2),
        bitmaps.setting(level, -3),
        bitmaps.reading(level),
    ]
    assert await client.run(bitmaps.change_fields(key, steps)) == [0, 255, None, 1, 0, -3]
    assert await client.run(bitmaps.get_fields(key, [level, score, bitmaps.field(400, 64, signed=True)])) == [-3, 1, 0]
    with pytest.raises(InvalidArgumentError):
        await client.run(bitmaps.get_fields(key, [bitmaps.field(0, 64)]))
    await client.run(lists.push(key + "list", ["x"]))
    with pytest.raises(WrongTypeError):
        await client.run(bitmaps.get_fields(key + "list", [score]))
