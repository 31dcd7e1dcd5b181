"""Sets: what each operation does, what it refuses, that a replay takes the same members, and that redis-server agrees."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from tests.support.keyspace import (
    NOW,
    check_refusal,
    contents,
    do,
    members_of,
    operation,
    our_answer,
    outcome_of,
    redis_answer,
    refusal,
    reloaded,
)
from tests.support.redis_server import redis_client  # noqa: F401  (a fixture)
from vecmem import limits
from vecmem.store.keyspace import operations, sets
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.packing import pack
from vecmem.store.keyspace.paging import SORTED_ITEMS_MIN
from vecmem.store.keyspace.sets import SetValue, random_places
from vecmem.v1 import keys_pb2, sets_pb2

UNION = sets_pb2.SET_COMBINATION_UNION
INTERSECTION = sets_pb2.SET_COMBINATION_INTERSECTION
DIFFERENCE = sets_pb2.SET_COMBINATION_DIFFERENCE


def add(keyspace: Keyspace, key: bytes, *members: bytes) -> int:
    added: int = do(keyspace, "add_set_members", key=key, members=list(members)).added_count
    return added


# -- what it does ----------------------------------------------------------------------------------------------------------


def test_members_are_there_once() -> None:
    keyspace = Keyspace()
    assert add(keyspace, b"s", b"b", b"a", b"b", b"") == 3
    assert add(keyspace, b"s", b"a", b"c") == 1
    assert do(keyspace, "check_set_members", key=b"s", members=[b"a", b"x", b"", b"a"]).existing == [
        True,
        False,
        True,
        True,
    ]
    assert members_of(keyspace, b"s") == [b"", b"a", b"b", b"c"]
    assert do(keyspace, "remove_set_members", key=b"s", members=[b"a", b"a", b"x"]).removed_count == 1
    described = do(keyspace, "describe_key", key=b"s")
    assert (described.type, described.size) == (keys_pb2.KEY_TYPE_SET, 3)


def test_a_key_goes_with_its_last_member_and_its_expiry_stays_until_then() -> None:
    keyspace = Keyspace()
    add(keyspace, b"s", b"a")
    do(keyspace, "expire_key", key=b"s", expiry=keys_pb2.Expiry(ttl_ms=100))
    add(keyspace, b"s", b"b")
    do(keyspace, "remove_set_members", key=b"s", members=[b"a"])
    assert do(keyspace, "describe_key", key=b"s").expires_at_unix_ms == NOW + 100
    do(keyspace, "remove_set_members", key=b"s", members=[b"b"])
    assert (keyspace.values, keyspace.expiries, keyspace.memory_bytes) == ({}, {}, 0)


def test_a_set_that_has_expired_is_not_added_to() -> None:
    keyspace = Keyspace()
    add(keyspace, b"s", b"old")
    do(keyspace, "expire_key", key=b"s", expiry=keys_pb2.Expiry(ttl_ms=100))
    assert not members_of(keyspace, b"s", now=NOW + 100)
    assert do(keyspace, "add_set_members", key=b"s", members=[b"new"], now=NOW + 100).added_count == 1
    assert members_of(keyspace, b"s", now=NOW + 100) == [b"new"]
    assert keyspace.expiries == {}
    contents(keyspace)


def test_only_what_changes_something_takes_a_version() -> None:
    keyspace = Keyspace()
    add(keyspace, b"{s}1", b"a")
    before = contents(keyspace)
    add(keyspace, b"{s}1", b"a")
    do(keyspace, "remove_set_members", key=b"{s}1", members=[b"x"])
    do(keyspace, "remove_set_members", key=b"{s}2", members=[b"x"])
    do(keyspace, "pop_set_members", key=b"{s}2")
    do(keyspace, "move_set_member", key=b"{s}1", destination=b"{s}2", member=b"x")
    do(keyspace, "move_set_member", key=b"{s}1", destination=b"{s}1", member=b"a")
    do(keyspace, "store_combined_sets", destination=b"{s}2", keys=[b"{s}3"], combination=UNION)
    assert contents(keyspace) == before
    version = keyspace.version
    add(keyspace, b"{s}1", b"b")
    assert keyspace.version == version + 1 == do(keyspace, "describe_key", key=b"{s}1").version


@pytest.mark.parametrize("count", [30, SORTED_ITEMS_MIN + 300])
def test_a_walk_sees_once_what_stays(count: int) -> None:
    keyspace = Keyspace()
    value = SetValue(b"%05d" % number for number in range(count))
    keyspace.change(b"s", value, 0, NOW)
    stay = [b"%05d" % number for number in range(0, count, 2)]
    seen: list[bytes] = []
    token = ""
    for round_ in itertools.count():
        page = do(keyspace, "scan_set", key=b"s", page_size=7, page_token=token)
        seen += page.members
        token = page.next_page_token
        if not token:
            break
        # Some of those between come and go, the one that the next page goes on after among them.
        do(keyspace, "remove_set_members", key=b"s", members=[b"%05d" % (round_ * 13 % count // 2 * 2 + 1), seen[-1]])
        add(keyspace, b"s", *(member for member in [seen[-1]] if member in stay), b"%05d+" % (round_ * 7 % count))
    assert seen == sorted(set(seen))
    assert set(stay) <= set(seen)
    assert members_of(keyspace, b"s", page_size=10_000) == sorted(value)


def test_the_last_page_says_so() -> None:
    keyspace = Keyspace()
    add(keyspace, b"s", *(b"%d" % number for number in range(6)))
    pages = [do(keyspace, "scan_set", key=b"s", page_size=3)]
    pages.append(do(keyspace, "scan_set", key=b"s", page_size=3, page_token=pages[0].next_page_token))
    assert [bool(page.next_page_token) for page in pages] == [True, False]
    assert [page.member_count for page in pages] == [6, 6]
    assert do(keyspace, "scan_set", key=b"none").member_count == 0


def test_random_members_are_different_ones() -> None:
    keyspace = Keyspace()
    everything = [b"%d" % number for number in range(50)]
    add(keyspace, b"s", *everything)
    before = contents(keyspace)
    some = do(keyspace, "get_set_random_members", key=b"s", count=20).members
    assert len(set(some)) == len(some) == 20
    assert set(some) <= set(everything)
    assert sorted(do(keyspace, "get_set_random_members", key=b"s", count=1_000).members) == sorted(everything)
    assert len(do(keyspace, "get_set_random_members", key=b"s").members) == 1
    assert not do(keyspace, "get_set_random_members", key=b"none", count=5).members
    assert contents(keyspace) == before


def test_pops_take_all_members_in_the_end() -> None:
    keyspace = Keyspace()
    add(keyspace, b"s", *(b"%d" % number for number in range(50)))
    taken = list(do(keyspace, "pop_set_members", key=b"s").members)
    assert len(taken) == 1
    taken += do(keyspace, "pop_set_members", key=b"s", count=20).members
    taken += do(keyspace, "pop_set_members", key=b"s", count=1_000).members
    assert sorted(taken) == sorted(b"%d" % number for number in range(50))
    assert keyspace.values == {}


def test_a_move_makes_and_removes_keys() -> None:
    keyspace = Keyspace()
    add(keyspace, b"{s}1", b"a", b"b")
    assert do(keyspace, "move_set_member", key=b"{s}1", destination=b"{s}2", member=b"a").moved
    assert not do(keyspace, "move_set_member", key=b"{s}1", destination=b"{s}2", member=b"a").moved
    assert do(keyspace, "move_set_member", key=b"{s}1", destination=b"{s}1", member=b"b").moved
    add(keyspace, b"{s}2", b"b")
    assert do(keyspace, "move_set_member", key=b"{s}1", destination=b"{s}2", member=b"b").moved
    assert list(keyspace.values) == [b"{s}2"]
    assert members_of(keyspace, b"{s}2") == [b"a", b"b"]


def test_a_stored_combination_replaces_whatever_is_there() -> None:
    keyspace = Keyspace()
    add(keyspace, b"{s}1", b"a", b"b")
    add(keyspace, b"{s}2", b"b", b"c")
    do(keyspace, "set_string", key=b"{s}3", value=b"text", expiry=keys_pb2.Expiry(ttl_ms=100))
    keys = [b"{s}1", b"{s}2"]
    assert do(keyspace, "store_combined_sets", destination=b"{s}3", keys=keys, combination=UNION).member_count == 3
    assert members_of(keyspace, b"{s}3") == [b"a", b"b", b"c"]
    assert keyspace.expiries == {}
    assert do(keyspace, "store_combined_sets", destination=b"{s}1", keys=keys, combination=DIFFERENCE).member_count == 1
    assert members_of(keyspace, b"{s}1") == [b"a"]
    stored = do(keyspace, "store_combined_sets", destination=b"{s}3", keys=keys, combination=INTERSECTION)
    assert stored.member_count == 0
    assert b"{s}3" not in keyspace.values
    contents(keyspace)


def test_an_intersection_is_counted_up_to_a_limit() -> None:
    keyspace = Keyspace()
    for key in (b"{s}1", b"{s}2"):
        add(keyspace, key, *(b"%d" % number for number in range(20)))
    keys = [b"{s}1", b"{s}2"]
    assert do(keyspace, "count_set_intersection", keys=keys).count == 20
    assert do(keyspace, "count_set_intersection", keys=keys, limit=7).count == 7
    assert do(keyspace, "count_set_intersection", keys=keys, limit=2**64 - 1).count == 20
    assert do(keyspace, "count_set_intersection", keys=[*keys, b"{s}3"]).count == 0


# -- what it refuses -------------------------------------------------------------------------------------------------------

LONG = b"x" * (limits.MEMBER_BYTES_MAX + 1)
MANY = [b"%d" % number for number in range(limits.MEMBERS_PER_REQUEST_MAX + 1)]
MANY_KEYS = [b"{s}%d" % number for number in range(limits.KEYS_PER_REQUEST_MAX + 1)]
NAMING = ["add_set_members", "remove_set_members", "check_set_members"]
COUNTING = ["pop_set_members", "get_set_random_members"]


@pytest.mark.parametrize("kind", NAMING)
def test_members_that_are_wrong(kind: str) -> None:
    assert check_refusal(kind, key=b"", members=[b"a"]) == ("INVALID_KEY", "key")
    assert check_refusal(kind, key=b"k" * 1_025, members=[b"a"]) == ("LIMIT_EXCEEDED", "key")
    assert check_refusal(kind, key=b"s") == ("INVALID_ARGUMENT", "members")
    assert check_refusal(kind, key=b"s", members=MANY) == ("LIMIT_EXCEEDED", "members")
    assert check_refusal(kind, key=b"s", members=[b"a", LONG]) == ("LIMIT_EXCEEDED", "members[1]")
    operations.check(operation(kind, key=b"s", members=[*MANY[:-2], LONG[:-1]]))


@pytest.mark.parametrize(("kind", "largest"), [(COUNTING[0], 1_024), (COUNTING[1], 10_000)])
def test_counts_that_are_wrong(kind: str, largest: int) -> None:
    assert check_refusal(kind, key=b"", count=1) == ("INVALID_KEY", "key")
    assert check_refusal(kind, key=b"s", count=largest + 1) == ("LIMIT_EXCEEDED", "count")
    operations.check(operation(kind, key=b"s", count=largest))


def test_pages_that_are_wrong() -> None:
    keyspace = Keyspace()
    for key in (b"s", b"t"):
        add(keyspace, key, b"a", b"b")
    token = do(keyspace, "scan_set", key=b"t", page_size=1).next_page_token
    assert check_refusal("scan_set", key=b"") == ("INVALID_KEY", "key")
    assert check_refusal("scan_set", key=b"s", page_size=10_001) == ("LIMIT_EXCEEDED", "page_size")
    assert check_refusal("scan_set", key=b"s", page_token=token) == ("INVALID_PAGE_TOKEN", "page_token")
    assert check_refusal("get_hash", key=b"t", page_token=token) == ("INVALID_PAGE_TOKEN", "page_token")
    assert check_refusal("scan_set", key=b"s", page_token="?") == ("INVALID_PAGE_TOKEN", "page_token")


def test_moves_that_are_wrong() -> None:
    kind = "move_set_member"
    assert check_refusal(kind, key=b"", destination=b"s", member=b"") == ("INVALID_KEY", "key")
    assert check_refusal(kind, key=b"s", destination=b"", member=b"") == ("INVALID_KEY", "destination")
    assert check_refusal(kind, key=b"s", destination=b"t", member=b"") == ("CROSS_SLOT", "destination")
    assert check_refusal(kind, key=b"s", destination=b"s", member=LONG) == ("LIMIT_EXCEEDED", "member")


@pytest.mark.parametrize("kind", ["combine_sets", "store_combined_sets", "count_set_intersection"])
def test_combinations_that_are_wrong(kind: str) -> None:
    further: dict[str, Any] = {} if kind == "count_set_intersection" else {"combination": UNION}
    if kind == "store_combined_sets":
        further["destination"] = b"{s}0"
        assert check_refusal(kind, **{**further, "keys": [b"{s}1"], "destination": b""}) == (
            "INVALID_KEY",
            "destination",
        )
        assert check_refusal(kind, **{**further, "keys": [b"t"]}) == ("CROSS_SLOT", "destination")
    assert check_refusal(kind, **further) == ("INVALID_ARGUMENT", "keys")
    assert check_refusal(kind, **further, keys=[b"{s}1", b""]) == ("INVALID_KEY", "keys[1]")
    assert check_refusal(kind, **further, keys=[b"{s}1", b"t"]) == ("CROSS_SLOT", "keys")
    assert check_refusal(kind, **further, keys=MANY_KEYS) == ("LIMIT_EXCEEDED", "keys")
    for combination in (0, 4) if "combination" in further else ():
        assert check_refusal(kind, **{**further, "combination": combination}, keys=[b"{s}1"]) == (
            "INVALID_ARGUMENT",
            "combination",
        )


def test_values_of_other_types_are_left_alone() -> None:
    keyspace = Keyspace()
    do(keyspace, "set_string", key=b"{s}text", value=b"1")
    add(keyspace, b"{s}set", b"a")
    wrong = ("WRONG_TYPE", "key")
    for kind in NAMING:
        assert refusal(keyspace, kind, key=b"{s}text", members=[b"a"]) == wrong
    for kind in [*COUNTING, "scan_set"]:
        assert refusal(keyspace, kind, key=b"{s}text") == wrong
    move = "move_set_member"
    assert refusal(keyspace, move, key=b"{s}text", destination=b"{s}set", member=b"a") == wrong
    for member in (b"a", b"x"):
        assert refusal(keyspace, move, key=b"{s}set", destination=b"{s}text", member=member) == (
            "WRONG_TYPE",
            "destination",
        )
    assert not do(keyspace, move, key=b"{s}none", destination=b"{s}text", member=b"a").moved
    keys = [b"{s}set", b"{s}none", b"{s}text"]
    for combination in (UNION, INTERSECTION, DIFFERENCE):
        assert refusal(keyspace, "combine_sets", keys=keys, combination=combination) == ("WRONG_TYPE", "keys[2]")
        assert refusal(keyspace, "store_combined_sets", destination=b"{s}new", keys=keys, combination=combination) == (
            "WRONG_TYPE",
            "keys[2]",
        )
    assert refusal(keyspace, "count_set_intersection", keys=keys) == ("WRONG_TYPE", "keys[2]")
    assert refusal(keyspace, "get_string", key=b"{s}set") == wrong


def test_a_combination_that_no_message_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "REPLY_BYTES_MAX", 100)
    keyspace = Keyspace()
    add(keyspace, b"s", *(b"%05d" % number for number in range(12)))
    assert len(do(keyspace, "combine_sets", keys=[b"s"], combination=UNION).members) == 12
    add(keyspace, b"s", b"12345")
    assert refusal(keyspace, "combine_sets", keys=[b"s"], combination=UNION) == ("LIMIT_EXCEEDED", "keys")
    assert do(keyspace, "store_combined_sets", destination=b"s", keys=[b"s"], combination=UNION).member_count == 13


# -- what a replay gives ---------------------------------------------------------------------------------------------------


def test_places_are_those_of_splitmix64() -> None:
    """The first numbers for the seed 0 and for 1,234,567 are published ones; another generator would replay old logs to another state."""
    everything = 2**64
    assert list(random_places(0, everything, 1)) == [0xE220A8397B1DCDAF]
    assert next(random_places(1_234_567, everything, 1)) == 6_457_827_717_110_365_317
    assert list(random_places(7, 5, 5)) == list(random_places(7, 5, 5))
    assert all(place < 5 - taken for taken, place in enumerate(random_places(99, 5, 5)))


def test_the_same_members_are_taken_for_ever() -> None:
    """Written down when the format was made: a change would replay old logs to another state."""
    keyspace = Keyspace()
    add(keyspace, b"s", *(b"%d" % number for number in range(10)))
    assert list(do(keyspace, "pop_set_members", key=b"s", count=4).members) == [b"1", b"8", b"5", b"4"]


def test_each_member_is_taken_about_as_often() -> None:
    counts: dict[bytes, int] = {}
    for version in range(4_000):
        keyspace = Keyspace()
        keyspace.version = version
        add(keyspace, b"s", *(b"%d" % number for number in range(8)))
        for member in do(keyspace, "pop_set_members", key=b"s", count=2).members:
            counts[member] = counts.get(member, 0) + 1
    assert len(counts) == 8
    # 1,000 each on average, with a standard deviation of 27.
    assert all(850 < count < 1_150 for count in counts.values())


MEMBERS = st.sampled_from([b"", b"a", b"b", b"c", b"1", b"2", b"\xff\x00"]) | st.binary(max_size=3)
KEYS = st.sampled_from([b"{t}a", b"{t}b", b"{t}c"])
CHANGES = st.one_of(
    st.tuples(
        st.just("add_set_members"), st.fixed_dictionaries({"key": KEYS, "members": st.lists(MEMBERS, min_size=1)})
    ),
    st.tuples(
        st.just("remove_set_members"), st.fixed_dictionaries({"key": KEYS, "members": st.lists(MEMBERS, min_size=1)})
    ),
    st.tuples(st.just("pop_set_members"), st.fixed_dictionaries({"key": KEYS, "count": st.integers(0, 4)})),
    st.tuples(st.just("move_set_member"), st.fixed_dictionaries({"key": KEYS, "destination": KEYS, "member": MEMBERS})),
    st.tuples(
        st.just("store_combined_sets"),
        st.fixed_dictionaries(
            {"destination": KEYS, "keys": st.lists(KEYS, min_size=1, max_size=3), "combination": st.integers(1, 3)}
        ),
    ),
)


@given(st.lists(CHANGES, max_size=30), st.integers(0, 30))
def test_a_replay_from_any_checkpoint_gives_the_same(
    changes: list[tuple[str, dict[str, Any]]], checkpoint: int
) -> None:
    one, other = Keyspace(), Keyspace()
    for number, (kind, fields) in enumerate(changes):
        if number == checkpoint:
            other = reloaded(other)
        now = NOW + number
        assert outcome_of(one, kind, now=now, **fields) == outcome_of(other, kind, now=now, **fields)
    assert contents(one) == contents(other)
    assert contents(reloaded(one)) == contents(one)


@given(st.lists(st.binary(max_size=5), min_size=1, unique=True))
def test_what_is_dumped_is_loaded(members: list[bytes]) -> None:
    value = SetValue(members)
    loaded = SetValue.load(value.dump())
    assert list(loaded) == members
    assert (loaded.size_bytes, loaded) == (value.size_bytes, value)


@pytest.mark.parametrize(
    "damaged", [b"", pack([]), pack([b"a", b"a"]), pack([b"a", b"b"])[:-1], pack([b"a", b"b"]) + b"c", b"\xff" * 40]
)
def test_damage_is_told(damaged: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        SetValue.load(damaged)


# -- redis agrees ----------------------------------------------------------------------------------------------------------

STEPS = st.one_of(
    st.tuples(st.just("sadd"), KEYS, st.lists(MEMBERS, min_size=1, max_size=5)),
    st.tuples(st.just("sadd"), KEYS, st.lists(MEMBERS, min_size=1, max_size=5)),
    st.tuples(st.just("srem"), KEYS, st.lists(MEMBERS, min_size=1, max_size=5)),
    st.tuples(st.just("smismember"), KEYS, st.lists(MEMBERS, min_size=1, max_size=5)),
    st.tuples(st.just("spop"), KEYS, st.integers(1, 3)),
    st.tuples(st.just("srandmember"), KEYS, st.integers(1, 3)),
    st.tuples(st.just("smove"), KEYS, KEYS, MEMBERS),
    st.tuples(st.just("combine"), st.integers(1, 3), st.lists(KEYS, min_size=1, max_size=3)),
    st.tuples(st.just("store"), st.integers(1, 3), KEYS, st.lists(KEYS, min_size=1, max_size=3)),
    st.tuples(st.just("sintercard"), st.lists(KEYS, min_size=1, max_size=3), st.integers(0, 2)),
    st.tuples(st.just("scan"), KEYS, st.integers(1, 3)),
    st.tuples(st.just("set"), KEYS),
    st.tuples(st.just("expire"), KEYS),
    st.tuples(st.just("del"), KEYS),
)
COMBINED = {UNION: "SUNION", INTERSECTION: "SINTER", DIFFERENCE: "SDIFF"}


def both(keyspace: Keyspace, client: redis.Redis, step: tuple[Any, ...]) -> tuple[Any, Any]:
    """Do one thing in both; returns what each answered, with the reason for an error."""

    def ours(kind: str, take: Any, **fields: Any) -> Any:
        return our_answer(keyspace, kind, take, **fields)

    match step:
        case ("sadd", key, members):
            return ours("add_set_members", lambda it: it.added_count, key=key, members=members), redis_answer(
                lambda: client.sadd(key, *members)
            )
        case ("srem", key, members):
            return ours("remove_set_members", lambda it: it.removed_count, key=key, members=members), redis_answer(
                lambda: client.srem(key, *members)
            )
        case ("smismember", key, members):
            return ours("check_set_members", lambda it: list(it.existing), key=key, members=members), redis_answer(
                lambda: list(map(bool, client.smismember(key, members)))
            )
        case ("spop", key, count):
            # Which ones is chance: those that we took are taken there.
            there = redis_answer(lambda: client.smembers(key))
            taken = ours("pop_set_members", lambda it: list(it.members), key=key, count=count)
            if isinstance(there, str):
                return taken, there
            assert len(set(taken)) == len(taken) == min(count, len(there))
            return len(taken), client.srem(key, *taken) if taken else 0
        case ("srandmember", key, count):
            there = redis_answer(lambda: client.smembers(key))
            chosen = ours("get_set_random_members", lambda it: list(it.members), key=key, count=count)
            if isinstance(there, str):
                return chosen, there
            assert set(chosen) <= there
            return len(set(chosen)), min(count, len(there))
        case ("smove", key, destination, member):
            return ours(
                "move_set_member", lambda it: it.moved, key=key, destination=destination, member=member
            ), redis_answer(lambda: bool(client.smove(key, destination, member)))
        case ("combine", combination, keys):
            return ours(
                "combine_sets", lambda it: sorted(it.members), keys=keys, combination=combination
            ), redis_answer(lambda: sorted(client.execute_command(COMBINED[combination], *keys)))
        case ("store", combination, destination, keys):
            return ours(
                "store_combined_sets",
                lambda it: it.member_count,
                destination=destination,
                keys=keys,
                combination=combination,
            ), redis_answer(lambda: client.execute_command(COMBINED[combination] + "STORE", destination, *keys))
        case ("sintercard", keys, limit):
            return ours("count_set_intersection", lambda it: it.count, keys=keys, limit=limit), redis_answer(
                lambda: client.sintercard(len(keys), keys, limit)
            )
        case ("scan", key, page_size):
            there = redis_answer(lambda: sorted(client.smembers(key)))
            if isinstance(there, str):
                return ours("scan_set", lambda it: it, key=key), there
            return members_of(keyspace, key, page_size=page_size), there
        case ("set", key):
            return ours("set_string", lambda it: it.written, key=key, value=b"text"), client.set(key, b"text")
        case ("expire", key):
            expiry = keys_pb2.Expiry(ttl_ms=5_000_000)
            return ours("expire_key", lambda it: it.changed, key=key, expiry=expiry), client.expire(key, 5_000)
        case ("del", key):
            return ours("delete_keys", lambda it: it.deleted_count, keys=[key]), client.delete(key)
    raise AssertionError(step)


@given(st.lists(STEPS, max_size=40))
def test_redis_answers_the_same(redis_client: redis.Redis, steps: list[tuple[Any, ...]]) -> None:  # noqa: F811
    redis_client.flushall()
    keyspace = Keyspace()
    for step in steps:
        ours, theirs = both(keyspace, redis_client, step)
        assert ours == theirs, step
    for key in (b"{t}a", b"{t}b", b"{t}c"):
        kind = redis_client.type(key)
        assert do(keyspace, "describe_key", key=key).type == {b"none": 0, b"string": 1, b"set": 3}[kind]
        assert (redis_client.ttl(key) > 0) == bool(keyspace.expires_at(key))
        if kind == b"set":
            assert members_of(keyspace, key) == sorted(redis_client.smembers(key))
    assert contents(reloaded(keyspace)) == contents(keyspace)
