"""Lists: what each operation does, what it refuses, that a dump keeps everything, and that redis-server agrees."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from tests.store.keyspace_support import assert_same_state, ours, theirs
from tests.support.keyspace import NOW, check_refusal, contents, do, outcome_of, refusal, reloaded
from tests.support.redis_server import redis_client  # noqa: F401  (a fixture)
from vecmem import limits
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.lists import ListValue
from vecmem.v1 import lists_pb2

LEFT, RIGHT = lists_pb2.LIST_END_LEFT, lists_pb2.LIST_END_RIGHT
BEFORE, AFTER = lists_pb2.LIST_SIDE_BEFORE, lists_pb2.LIST_SIDE_AFTER


def holding(*items: bytes, key: bytes = b"k") -> Keyspace:
    keyspace = Keyspace()
    for place in range(0, len(items), 1_000):
        do(keyspace, "push_list_items", key=key, end=RIGHT, items=items[place : place + 1_000])
    return keyspace


def items_of(keyspace: Keyspace, key: bytes = b"k", now: int = NOW) -> list[bytes]:
    return list(do(keyspace, "get_list_range", key=key, now=now).items)


# -- what each does --------------------------------------------------------------------------------------------------------


def test_the_last_item_pushed_is_the_outermost() -> None:
    keyspace = holding(b"a", b"b")
    assert do(keyspace, "push_list_items", key=b"k", end=LEFT, items=[b"c", b"d"]).item_count == 4
    assert items_of(keyspace) == [b"d", b"c", b"a", b"b"]
    assert list(do(keyspace, "pop_list_items", key=b"k", end=LEFT).items) == [b"d"]
    popped = do(keyspace, "pop_list_items", key=b"k", end=RIGHT, count=2)
    assert (list(popped.items), popped.item_count) == ([b"b", b"a"], 1)


def test_a_list_that_has_to_be_there_is_not_made() -> None:
    keyspace = Keyspace()
    assert do(keyspace, "push_list_items", key=b"k", end=LEFT, items=[b"a"], only_if_present=True).item_count == 0
    assert not keyspace.values
    keyspace = holding(b"a")
    assert do(keyspace, "push_list_items", key=b"k", end=LEFT, items=[b"b"], only_if_present=True).item_count == 2


@pytest.mark.parametrize("end", [LEFT, RIGHT])
def test_the_last_item_takes_the_key_and_its_expiry_with_it(end: int) -> None:
    keyspace = holding(b"a", b"b")
    do(keyspace, "expire_key", key=b"k", expiry={"ttl_ms": 100})
    assert do(keyspace, "pop_list_items", key=b"k", end=end, count=1_024).item_count == 0
    assert (keyspace.values, keyspace.expiries, keyspace.memory_bytes) == ({}, {}, 0)
    do(keyspace, "push_list_items", key=b"k", end=end, items=[b"c"])
    assert keyspace.expires_at(b"k") == 0


def test_what_has_expired_is_an_empty_list() -> None:
    keyspace = holding(b"a", b"b")
    do(keyspace, "expire_key", key=b"k", expiry={"ttl_ms": 100})
    do(keyspace, "push_list_items", key=b"k", end=RIGHT, items=[b"c"])
    at = NOW + 100
    assert items_of(keyspace, now=at - 1) == [b"a", b"b", b"c"], "a push leaves the expiry as it is"
    assert items_of(keyspace, now=at) == []
    assert not do(keyspace, "pop_list_items", key=b"k", end=LEFT, now=at).items
    assert not do(keyspace, "set_list_item", key=b"k", index=0, item=b"x", now=at).written
    assert do(keyspace, "push_list_items", key=b"k", end=LEFT, items=[b"z"], now=at).item_count == 1
    assert items_of(keyspace, now=at + 1_000) == [b"z"]
    reloaded(keyspace)


def test_ranges_and_indexes_count_from_both_ends() -> None:
    keyspace = holding(b"a", b"b", b"c")
    found = do(keyspace, "get_list_range", key=b"k", start=-2, stop=-1)
    assert (list(found.items), found.item_count) == ([b"b", b"c"], 3)
    assert list(do(keyspace, "get_list_range", key=b"k", start=1).items) == [b"b", b"c"], "without a stop: to the end"
    assert list(do(keyspace, "get_list_range", key=b"k", start=0, stop=0).items) == [b"a"]
    assert list(do(keyspace, "get_list_range", key=b"k", start=5, stop=9).items) == []
    assert do(keyspace, "get_list_item", key=b"k", index=-1).item == b"c"
    assert not do(keyspace, "get_list_item", key=b"k", index=3).HasField("item")
    assert not do(keyspace, "get_list_item", key=b"none", index=0).HasField("item")
    assert do(keyspace, "set_list_item", key=b"k", index=-3, item=b"").written
    missed = do(keyspace, "set_list_item", key=b"k", index=-4, item=b"x")
    assert (missed.written, missed.item_count) == (False, 3)
    assert items_of(keyspace) == [b"", b"b", b"c"]


def test_items_are_inserted_removed_and_trimmed() -> None:
    keyspace = holding(b"a", b"b", b"a", b"b", b"a")
    assert do(keyspace, "insert_list_item", key=b"k", side=AFTER, pivot=b"b", item=b"!").inserted
    assert do(keyspace, "insert_list_item", key=b"k", side=BEFORE, pivot=b"a", item=b"?").item_count == 7
    assert not do(keyspace, "insert_list_item", key=b"k", side=BEFORE, pivot=b"z", item=b"?").inserted
    assert items_of(keyspace) == [b"?", b"a", b"b", b"!", b"a", b"b", b"a"]
    assert do(keyspace, "remove_list_items", key=b"k", item=b"a", count=-1).removed_count == 1
    assert do(keyspace, "remove_list_items", key=b"k", item=b"b", count=1).removed_count == 1
    assert items_of(keyspace) == [b"?", b"a", b"!", b"a", b"b"]
    assert do(keyspace, "remove_list_items", key=b"k", item=b"a").item_count == 3
    trimmed = do(keyspace, "trim_list", key=b"k", start=-2)
    assert (trimmed.removed_count, trimmed.item_count, items_of(keyspace)) == (1, 2, [b"!", b"b"])
    do(keyspace, "trim_list", key=b"k", start=1, stop=0)
    assert keyspace.values == {}


def test_an_item_moves_to_another_list_or_around_its_own() -> None:
    keyspace = holding(b"a", b"b", key=b"{k}1")
    moved = do(keyspace, "move_list_item", key=b"{k}1", destination=b"{k}2", end=RIGHT, destination_end=LEFT)
    assert moved.item == b"b"
    do(keyspace, "expire_key", key=b"{k}2", expiry={"ttl_ms": 100})
    around = do(keyspace, "move_list_item", key=b"{k}2", destination=b"{k}2", end=LEFT, destination_end=RIGHT)
    assert around.item == b"b"
    assert keyspace.expires_at(b"{k}2") == NOW + 100, "its only item never left it"
    do(keyspace, "move_list_item", key=b"{k}1", destination=b"{k}2", end=LEFT, destination_end=RIGHT)
    assert (list(keyspace.sorted_keys), items_of(keyspace, b"{k}2")) == ([b"{k}2"], [b"b", b"a"])
    nothing = do(keyspace, "move_list_item", key=b"{k}1", destination=b"{k}2", end=LEFT, destination_end=RIGHT)
    assert not nothing.HasField("item")


def test_a_search_goes_either_way() -> None:
    keyspace = holding(*(b"%d" % (number % 3) for number in range(3_000)))

    def found(**fields: Any) -> list[int]:
        return list(do(keyspace, "find_list_item", key=b"k", item=b"1", **fields).indexes)

    assert found() == [1]
    assert found(count=3) == [1, 4, 7]
    assert found(rank=-1, count=2) == [2_998, 2_995]
    assert found(rank=500) == [1 + 3 * 499]
    assert found(rank=1_001) == []
    assert found(rank=limits.INT64_MIN) == []
    assert found(compared_count_max=4, count=10) == [1]
    assert found(compared_count_max=2_048, rank=-1, count=10_000) == list(range(2_998, 3_000 - 2_048 - 1, -3))
    assert len(found(compared_count_max=2**64 - 1, count=10_000)) == 1_000


def test_versions_grow_with_changes_alone() -> None:
    keyspace = holding(b"a")
    version = do(keyspace, "describe_key", key=b"k").version
    do(keyspace, "trim_list", key=b"k", start=0)
    do(keyspace, "remove_list_items", key=b"k", item=b"z")
    do(keyspace, "set_list_item", key=b"k", index=7, item=b"z")
    do(keyspace, "insert_list_item", key=b"k", side=AFTER, pivot=b"z", item=b"z")
    assert do(keyspace, "describe_key", key=b"k").version == version
    do(keyspace, "set_list_item", key=b"k", index=0, item=b"z")
    described = do(keyspace, "describe_key", key=b"k")
    assert described.version > version
    assert (described.type, described.size) == (ListValue.TYPE, 1)


# -- what is refused -------------------------------------------------------------------------------------------------------

LONG = b"x" * (limits.STRING_BYTES_MAX + 1)
MOVE = {"key": b"{k}1", "destination": b"{k}2", "end": LEFT, "destination_end": LEFT}


@pytest.mark.parametrize(
    ("kind", "fields", "refused"),
    [
        ("push_list_items", {"key": b"", "end": LEFT, "items": [b"a"]}, ("INVALID_KEY", "key")),
        ("push_list_items", {"key": b"k" * 1_025, "end": LEFT, "items": [b"a"]}, ("LIMIT_EXCEEDED", "key")),
        ("push_list_items", {"key": b"k", "items": [b"a"]}, ("INVALID_ARGUMENT", "end")),
        ("push_list_items", {"key": b"k", "end": 3, "items": [b"a"]}, ("INVALID_ARGUMENT", "end")),
        ("push_list_items", {"key": b"k", "end": LEFT}, ("INVALID_ARGUMENT", "items")),
        ("push_list_items", {"key": b"k", "end": LEFT, "items": [b""] * 1_025}, ("LIMIT_EXCEEDED", "items")),
        ("push_list_items", {"key": b"k", "end": LEFT, "items": [b"", LONG]}, ("LIMIT_EXCEEDED", "items[1]")),
        ("pop_list_items", {"key": b"", "end": LEFT}, ("INVALID_KEY", "key")),
        ("pop_list_items", {"key": b"k"}, ("INVALID_ARGUMENT", "end")),
        ("pop_list_items", {"key": b"k", "end": LEFT, "count": 1_025}, ("LIMIT_EXCEEDED", "count")),
        ("get_list_range", {"key": b""}, ("INVALID_KEY", "key")),
        ("get_list_item", {"key": b""}, ("INVALID_KEY", "key")),
        ("set_list_item", {"key": b""}, ("INVALID_KEY", "key")),
        ("set_list_item", {"key": b"k", "item": LONG}, ("LIMIT_EXCEEDED", "item")),
        ("insert_list_item", {"key": b"", "side": AFTER}, ("INVALID_KEY", "key")),
        ("insert_list_item", {"key": b"k"}, ("INVALID_ARGUMENT", "side")),
        ("insert_list_item", {"key": b"k", "side": AFTER, "pivot": LONG}, ("LIMIT_EXCEEDED", "pivot")),
        ("insert_list_item", {"key": b"k", "side": AFTER, "item": LONG}, ("LIMIT_EXCEEDED", "item")),
        ("remove_list_items", {"key": b""}, ("INVALID_KEY", "key")),
        ("remove_list_items", {"key": b"k", "item": LONG}, ("LIMIT_EXCEEDED", "item")),
        ("trim_list", {"key": b""}, ("INVALID_KEY", "key")),
        ("move_list_item", MOVE | {"key": b""}, ("INVALID_KEY", "key")),
        ("move_list_item", MOVE | {"destination": b""}, ("INVALID_KEY", "destination")),
        ("move_list_item", MOVE | {"destination": b"{z}"}, ("CROSS_SLOT", "destination")),
        ("move_list_item", MOVE | {"end": 0}, ("INVALID_ARGUMENT", "end")),
        ("move_list_item", MOVE | {"destination_end": 0}, ("INVALID_ARGUMENT", "destination_end")),
        ("find_list_item", {"key": b""}, ("INVALID_KEY", "key")),
        ("find_list_item", {"key": b"k", "item": LONG}, ("LIMIT_EXCEEDED", "item")),
        ("find_list_item", {"key": b"k", "count": 10_001}, ("LIMIT_EXCEEDED", "count")),
    ],
)
def test_what_is_wrong_in_itself_is_refused(kind: str, fields: dict[str, Any], refused: tuple[str, str]) -> None:
    assert check_refusal(kind, **fields) == refused


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("push_list_items", {"end": LEFT, "items": [b"a"]}),
        ("push_list_items", {"end": LEFT, "items": [b"a"], "only_if_present": True}),
        ("pop_list_items", {"end": LEFT}),
        ("get_list_range", {}),
        ("get_list_item", {}),
        ("set_list_item", {}),
        ("insert_list_item", {"side": AFTER}),
        ("remove_list_items", {}),
        ("trim_list", {"start": 1}),
        ("move_list_item", {"destination": b"k", "end": LEFT, "destination_end": LEFT}),
        ("find_list_item", {}),
    ],
)
def test_a_value_of_another_type_is_refused(kind: str, fields: dict[str, Any]) -> None:
    keyspace = Keyspace()
    do(keyspace, "set_string", key=b"k", value=b"v")
    assert refusal(keyspace, kind, key=b"k", **fields) == ("WRONG_TYPE", "key")


def test_nothing_leaves_a_list_for_a_key_of_another_type() -> None:
    keyspace = holding(b"a", key=b"{k}1")
    do(keyspace, "set_string", key=b"{k}2", value=b"v")
    assert refusal(keyspace, "move_list_item", **MOVE) == ("WRONG_TYPE", "destination")


def test_replies_that_are_too_large_are_refused() -> None:
    keyspace = holding(b"x" * limits.STRING_BYTES_MAX, b"y")
    assert refusal(keyspace, "get_list_range", key=b"k") == ("LIMIT_EXCEEDED", "stop")
    assert refusal(keyspace, "pop_list_items", key=b"k", end=LEFT, count=2) == ("LIMIT_EXCEEDED", "count")
    assert len(do(keyspace, "pop_list_items", key=b"k", end=LEFT).items[0]) == limits.STRING_BYTES_MAX
    for _ in range(10):
        do(keyspace, "push_list_items", key=b"k", end=LEFT, items=[b""] * 1_000)
    assert refusal(keyspace, "get_list_range", key=b"k") == ("LIMIT_EXCEEDED", "stop")
    assert len(do(keyspace, "get_list_range", key=b"k", stop=9_999).items) == 10_000


# -- the value -------------------------------------------------------------------------------------------------------------

SIDES = st.sampled_from([LEFT, RIGHT])
ITEMS = st.sampled_from([b"", b"a", b"b", b"c"]) | st.binary(max_size=4)


@given(st.lists(st.binary(max_size=40)), st.integers(0, 2**64 - 1))
def test_a_dump_keeps_the_items(items: list[bytes], version: int) -> None:
    value = ListValue(items)
    value.version = version
    loaded = ListValue.load(value.dump())
    assert loaded.items(0, len(items)) == items
    assert loaded.size_bytes == value.size_bytes
    assert loaded.dump() == value.dump()


def test_a_damaged_dump_is_refused() -> None:
    dumped = ListValue([b"a", b"bc"]).dump()
    for damaged in (
        b"",
        dumped[:7],
        dumped[:12],
        dumped[:-1],
        dumped + b"x",
        b"\x03" + dumped[1:],
        b"\xff" * len(dumped),
    ):
        with pytest.raises(ValueError, match="bytes"):
            ListValue.load(damaged)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), SIDES, st.lists(ITEMS, max_size=8)),
            st.tuples(st.just("pop"), SIDES, st.integers(1, 9)),
            st.tuples(st.just("insert"), st.integers(0, 9), ITEMS),
            st.tuples(st.just("set"), st.integers(0, 9), ITEMS),
            st.tuples(st.just("keep"), st.integers(0, 9), st.integers(0, 9)),
            st.tuples(st.just("items"), st.integers(0, 9), st.integers(0, 9)),
        ),
        max_size=30,
    )
)
def test_two_halves_are_one_list(steps: list[tuple[Any, ...]]) -> None:
    value, model = ListValue(), list[bytes]()
    for step in steps:
        match step:
            case ("push", end, items):
                value.push(end, items)
                model = items[::-1] + model if end == LEFT else model + items
            case ("pop", end, count):
                popped = value.peek(end, count)
                value.pop(end, popped)
                assert popped == (model[:count] if end == LEFT else model[::-1][:count])
                model = model[count:] if end == LEFT else model[: max(0, len(model) - count)]
            case ("insert", place, item):
                index = min(place, len(model))
                value.insert(index, item)
                model.insert(index, item)
            case ("set", place, item):
                if place < len(model):
                    value[place] = item
                    model[place] = item
            case ("keep", start, length):
                value.keep(start, start + length)
                model = model[start : start + length]
            case ("items", start, length):
                assert value.items(start, start + length) == model[start : start + length]
        assert (len(value), value.items(0, len(value))) == (len(model), model)
        assert [value[index] for index in range(len(model))] == model
        assert value.size_bytes == ListValue(model).size_bytes


def test_a_queue_of_a_hundred_thousand_is_emptied_from_either_end() -> None:
    for end in (LEFT, RIGHT):
        value = ListValue(b"%d" % number for number in range(100_000))
        taken = []
        while len(value):
            items = value.peek(end, 7)
            value.pop(end, items)
            taken += items
        assert taken == [b"%d" % number for number in range(100_000)][:: 1 if end == LEFT else -1]
        assert value.size_bytes == ListValue().size_bytes


# -- redis agrees ----------------------------------------------------------------------------------------------------------

NAMES = (b"{t}a", b"{t}b", b"{t}c")
KEYS = st.sampled_from(NAMES)
INDEXES = st.integers(-9, 9)
STEPS = st.one_of(
    st.tuples(st.just("push"), KEYS, SIDES, st.lists(ITEMS, min_size=1, max_size=5), st.booleans()),
    st.tuples(st.just("push"), KEYS, SIDES, st.lists(ITEMS, min_size=1, max_size=5), st.just(False)),
    st.tuples(st.just("pop"), KEYS, SIDES, st.integers(1, 4)),
    st.tuples(st.just("range"), KEYS, INDEXES, INDEXES),
    st.tuples(st.just("index"), KEYS, INDEXES),
    st.tuples(st.just("set"), KEYS, INDEXES, ITEMS),
    st.tuples(st.just("insert"), KEYS, st.sampled_from([BEFORE, AFTER]), ITEMS, ITEMS),
    st.tuples(st.just("remove"), KEYS, ITEMS, st.integers(-3, 3)),
    st.tuples(st.just("trim"), KEYS, INDEXES, INDEXES),
    st.tuples(st.just("move"), KEYS, KEYS, SIDES, SIDES),
    st.tuples(st.just("find"), KEYS, ITEMS, st.integers(-3, 3).filter(bool), st.integers(1, 4), st.integers(0, 9)),
    st.tuples(st.just("string"), KEYS),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("rename"), KEYS, KEYS),
    st.tuples(st.just("expire"), KEYS, st.integers(1_000, 3_000)),
)
LETTER = {LEFT: "L", RIGHT: "R"}
WORD = {LEFT: "LEFT", RIGHT: "RIGHT"}


def both(keyspace: Keyspace, client: redis.Redis, step: tuple[Any, ...]) -> tuple[Any, Any]:
    """Do one thing in both; returns what each answered."""
    name, key, *rest = step
    match (name, *rest):
        case ("push", end, items, present):
            outcome = outcome_of(keyspace, "push_list_items", key=key, end=end, items=items, only_if_present=present)
            command = f"{LETTER[end]}PUSH{'X' if present else ''}"
            return ours(outcome, lambda it: it.item_count), theirs(lambda: client.execute_command(command, key, *items))
        case ("pop", end, count):
            outcome = outcome_of(keyspace, "pop_list_items", key=key, end=end, count=count)
            reply = theirs(lambda: client.execute_command(f"{LETTER[end]}POP", key, count))
            return ours(outcome, lambda it: list(it.items) or None), reply
        case ("range", start, stop):
            outcome = outcome_of(keyspace, "get_list_range", key=key, start=start, stop=stop)
            return ours(outcome, lambda it: list(it.items)), theirs(lambda: client.lrange(key, start, stop))
        case ("index", index):
            outcome = outcome_of(keyspace, "get_list_item", key=key, index=index)
            return ours(outcome, _item), theirs(lambda: client.lindex(key, index))
        case ("set", index, item):
            outcome = outcome_of(keyspace, "set_list_item", key=key, index=index, item=item)
            return ours(outcome, lambda it: it.written or "ERROR"), theirs(lambda: bool(client.lset(key, index, item)))
        case ("insert", side, pivot, item):
            outcome = outcome_of(keyspace, "insert_list_item", key=key, side=side, pivot=pivot, item=item)
            where = "BEFORE" if side == BEFORE else "AFTER"
            return (
                ours(outcome, lambda it: -1 if it.item_count and not it.inserted else it.item_count),
                theirs(lambda: client.linsert(key, where, pivot, item)),
            )
        case ("remove", item, count):
            outcome = outcome_of(keyspace, "remove_list_items", key=key, item=item, count=count)
            return ours(outcome, lambda it: it.removed_count), theirs(lambda: client.lrem(key, count, item))
        case ("trim", start, stop):
            outcome = outcome_of(keyspace, "trim_list", key=key, start=start, stop=stop)
            return ours(outcome, lambda _: True), theirs(lambda: bool(client.ltrim(key, start, stop)))
        case ("move", destination, end, destination_end):
            outcome = outcome_of(
                keyspace, "move_list_item", key=key, destination=destination, end=end, destination_end=destination_end
            )
            reply = theirs(lambda: client.lmove(key, destination, WORD[end], WORD[destination_end]))
            return ours(outcome, _item), reply
        case ("find", item, rank, count, compared):
            outcome = outcome_of(
                keyspace,
                "find_list_item",
                key=key,
                item=item,
                rank=rank,
                count=count,
                compared_count_max=compared,
            )
            options = ["RANK", rank, "COUNT", count, "MAXLEN", compared]
            return (
                ours(outcome, lambda it: list(it.indexes)),
                theirs(lambda: client.execute_command("LPOS", key, item, *options)),
            )
        case ("string",):
            return do(keyspace, "set_string", key=key, value=b"v").written, client.set(key, b"v")
        case ("delete",):
            return do(keyspace, "delete_keys", keys=[key]).deleted_count, client.delete(key)
        case ("rename", new_key):
            outcome = outcome_of(keyspace, "rename_key", key=key, new_key=new_key)
            return ours(outcome, lambda it: it.renamed), theirs(lambda: bool(client.rename(key, new_key)))
        case ("expire", seconds):
            response = do(keyspace, "expire_key", key=key, expiry={"ttl_ms": seconds * 1_000})
            return response.changed, bool(client.expire(key, seconds))
    raise AssertionError(step)


def _item(response: Any) -> bytes | None:
    return response.item if response.HasField("item") else None


@given(st.lists(STEPS, max_size=40))
def test_redis_answers_the_same(redis_client: redis.Redis, steps: list[tuple[Any, ...]]) -> None:  # noqa: F811
    redis_client.flushall()
    keyspace, twin = Keyspace(), Keyspace()
    for step in steps:
        before = contents(keyspace)
        answered, expected = both(keyspace, redis_client, step)
        assert answered == expected, step
        assert answered not in ("WRONG_TYPE", "ERROR") or contents(keyspace) == before
    assert_same_state(keyspace, redis_client, NAMES)
    reloaded(keyspace)
    redis_client.flushall()
    for step in steps:
        both(twin, redis_client, step)
    assert contents(twin) == contents(keyspace), "the same operations make the same keyspace"
