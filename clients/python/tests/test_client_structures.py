"""Hashes, sets, lists and sorted sets with both clients over a real server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from vecmem_client import (
    InvalidArgumentError,
    LimitExceededError,
    NotANumberError,
    WrongTypeError,
    hashes,
    keys,
    lists,
    sets,
    sorted_sets,
    strings,
)


@pytest.fixture
def key(collection_name: str) -> str:
    """A key that no other test uses; others with the same tag share its slot."""
    return f"{{{collection_name}}}"


async def test_hashes(client, key):
    written = await client.run(hashes.set(key, {"name": "Ada", "visits": "7"}))
    assert (written.written, written.new_count) == (True, 2)
    assert not (await client.run(hashes.set(key, {"name": "x", "new": "x"}, condition="absent"))).written
    assert await client.run(hashes.get(key, ["visits", "none", "name"])) == [b"7", None, b"Ada"]
    assert await client.run(hashes.exist(key, ["name", "none"])) == [True, False]
    assert (await client.run(hashes.add(key, "visits", 3, maximum=9, beyond="clamp"))).value == 9
    assert (await client.run(hashes.add_float(key, "weight", 0.5))).value == 0.5
    with pytest.raises(NotANumberError):
        await client.run(hashes.add(key, "name"))
    page = await client.run(hashes.page(key, page_size=2))
    rest = await client.run(hashes.page(key, page_token=page.next_page_token))
    assert page.fields | rest.fields == {b"name": b"Ada", b"visits": b"9", b"weight": b"0.5"}
    assert (page.field_count, rest.next_page_token) == (3, "")
    assert set(await client.run(hashes.random_fields(key, 5))) == {b"name", b"visits", b"weight"}
    assert len(await client.run(hashes.random_fields(key, 5, with_repetition=True))) == 5
    [(field, value)] = await client.run(hashes.random_items(key))
    assert (page.fields | rest.fields)[field] == value
    at = datetime.now(UTC) + timedelta(hours=1)
    assert await client.run(hashes.expire(key, ["name", "none"], expires_at=at)) == ["changed", "absent"]
    [expires_at, never] = await client.run(hashes.expiries(key, ["name", "visits"]))
    assert abs(expires_at - at) < timedelta(milliseconds=2)
    assert never is None
    assert await client.run(hashes.persist(key, ["name", "visits"])) == ["changed", "unchanged"]
    assert await client.run(hashes.delete(key, ["name", "visits", "weight", "none"])) == 3
    assert await client.run(keys.describe(key)) is None


async def test_sets(client, key):
    other = key + "2"
    assert await client.run(sets.add(key, ["a", "b", "c", "a"])) == 3
    assert await client.run(sets.add(other, ["b", "c", "d"])) == 3
    assert await client.run(sets.contains(key, ["a", "z"])) == [True, False]
    assert sorted(await client.run(sets.combine([key, other], "union"))) == [b"a", b"b", b"c", b"d"]
    assert sorted(await client.run(sets.combine([key, other], "intersection"))) == [b"b", b"c"]
    assert await client.run(sets.combine([key, other], "difference")) == [b"a"]
    assert await client.run(sets.count_intersection([key, other])) == 2
    assert await client.run(sets.count_intersection([key, other], limit=1)) == 1
    assert await client.run(sets.store_combined(key + "3", [key, other], "union")) == 4
    assert await client.run(sets.move(key, other, "a"))
    assert not await client.run(sets.move(key, other, "a"))
    page = await client.run(sets.page(other, page_size=3))
    assert (page.members, page.member_count, bool(page.next_page_token)) == ([b"a", b"b", b"c"], 4, True)
    sampled = await client.run(sets.sample(other, 2))
    assert len(set(sampled)) == 2
    popped = await client.run(sets.pop(other, 10))
    assert sorted(popped) == [b"a", b"b", b"c", b"d"]
    assert await client.run(sets.remove(key, ["b", "c", "z"])) == 2
    assert await client.run(keys.exist([key, other])) == [False, False]


async def test_lists(client, key):
    other = key + "2"
    assert await client.run(lists.push(key, ["b", "c"])) == 2
    assert await client.run(lists.push(key, ["a"], end="left")) == 3
    assert await client.run(lists.push(other, ["x"], only_if_present=True)) == 0
    assert await client.run(lists.get_range(key)) == [b"a", b"b", b"c"]
    assert await client.run(lists.get_range(key, -2, -1)) == [b"b", b"c"]
    assert await client.run(lists.get(key, -1)) == b"c"
    assert await client.run(lists.get(key, 9)) is None
    assert await client.run(lists.length(key)) == 3
    assert await client.run(lists.set(key, 1, "B"))
    assert not await client.run(lists.set(key, 9, "x"))
    assert await client.run(lists.insert(key, "b2", side="after", pivot="B"))
    assert not await client.run(lists.insert(key, "x", side="before", pivot="none"))
    assert await client.run(lists.find(key, "b2")) == [2]
    assert await client.run(lists.move(key, other)) == b"a"
    assert await client.run(lists.remove(key, "b2")) == 1
    assert await client.run(lists.trim(key, 1)) == 1
    assert await client.run(lists.pop(key, 5, end="right")) == [b"c"]
    assert await client.run(lists.pop(key)) == []
    assert await client.run(lists.move(key, other)) is None
    assert await client.run(keys.describe(key)) is None


async def test_sorted_sets(client, key):
    other = key + "2"
    added = await client.run(sorted_sets.add(key, {"ada": 3, "bob": 1, "cem": 2}))
    assert (added.added_count, added.changed_count) == (3, 0)
    kept = await client.run(sorted_sets.add(key, {"ada": 1, "bob": 5}, score_condition="greater"))
    assert (kept.added_count, kept.changed_count) == (0, 1)
    assert await client.run(sorted_sets.scores(key, ["ada", "none"])) == [3.0, None]
    ranks = await client.run(sorted_sets.ranks(key, ["bob", "none"], reverse=True))
    assert ranks == [sorted_sets.Ranked(0, 5.0), None]
    best = await client.run(sorted_sets.get_range(key, reverse=True, limit=2))
    assert best == [sorted_sets.Scored(b"bob", 5.0), sorted_sets.Scored(b"ada", 3.0)]
    middle = await client.run(sorted_sets.get_range(key, sorted_sets.by_score(2, 5, above_minimum=True)))
    assert [found.member for found in middle] == [b"ada", b"bob"]
    assert await client.run(sorted_sets.count(key, sorted_sets.by_score(maximum=2))) == 1
    assert await client.run(sorted_sets.increment(key, "ada", 10)) == 13.0
    assert await client.run(sorted_sets.increment(key, "new", 1, condition="present")) is None
    await client.run(sorted_sets.add(other, {"a": 0, "b": 0, "c": 0, "ada": 0}))
    named = await client.run(sorted_sets.get_range(other, sorted_sets.by_member("b")))
    assert [found.member for found in named] == [b"b", b"c"]
    both = await client.run(sorted_sets.combine([key, other], "intersection", weights=[2, 1], aggregate="maximum"))
    assert both == [sorted_sets.Scored(b"ada", 26.0)]
    assert await client.run(sorted_sets.store_combined(key + "3", [key, other], "union")) == 6
    page = await client.run(sorted_sets.page(key, page_size=2))
    assert (len(page.members), page.member_count, bool(page.next_page_token)) == (2, 3, True)
    assert await client.run(sorted_sets.remove_range(other, sorted_sets.by_rank(0, 1))) == 2
    lowest = await client.run(sorted_sets.pop(key))
    assert lowest == [sorted_sets.Scored(b"cem", 2.0)]
    assert await client.run(sorted_sets.remove(key, ["ada", "bob"])) == 2
    assert await client.run(keys.describe(key)) is None


async def test_types_do_not_mix_and_mistakes_are_named(client, key):
    await client.run(strings.set(key, "text"))
    results = await client.pipeline(
        [hashes.set(key, {"a": "b"}), sets.add(key, ["a"]), lists.push(key, ["a"]), sorted_sets.add(key, {"a": 1})]
    )
    assert all(isinstance(result, WrongTypeError) for result in results)
    assert await client.run(strings.get(key)) == b"text"
    with pytest.raises(InvalidArgumentError) as refused:
        await client.run(sorted_sets.add(key, {"a": 1, "b": float("nan")}))
    assert "[1].score" in refused.value.metadata["field"]
    with pytest.raises(LimitExceededError):
        await client.run(sets.add(key, [str(number) for number in range(1_025)]))
    with pytest.raises(InvalidArgumentError):
        await client.run(hashes.set(key, {}))


async def test_structures_outlive_a_kill(make_client, own_server):
    client = make_client(own_server.address)
    await client.run(hashes.set("h", {"a": "1"}, ttl_seconds=1000))
    await client.run(sets.add("s", ["x", "y"]))
    await client.run(lists.push("l", ["1", "2"]))
    await client.create_checkpoint()
    await client.run(sorted_sets.add("z", {"m": 2}))
    await client.run(lists.push("l", ["3"]))
    own_server.kill()
    own_server.start()
    again = make_client(own_server.address)
    assert await again.run(hashes.get("h", ["a"])) == [b"1"]
    assert (await again.run(hashes.expiries("h", ["a"])))[0] is not None
    assert (await again.run(sets.page("s"))).members == [b"x", b"y"]
    assert await again.run(lists.get_range("l")) == [b"1", b"2", b"3"]
    assert await again.run(sorted_sets.scores("z", ["m"])) == [2.0]
