"""Bitmaps: bits, ranges, searches, combinations and bit fields, by themselves and beside redis-server."""

from __future__ import annotations

import random
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.keyspace_support import assert_same_state, ours, theirs
from tests.support.keyspace import NOW, check_refusal, contents, do, outcome_of, refusal, reloaded
from tests.support.redis_server import redis_client  # noqa: F401  (a fixture)
from vecmem import limits
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.v1 import bitmaps_pb2 as api

KEY, OTHER, LIST = b"{t}a", b"{t}b", b"{t}list"
BITS_MAX = 8 * limits.STRING_BYTES_MAX


@pytest.fixture
def keyspace() -> Keyspace:
    return Keyspace()


def put(keyspace: Keyspace, content: bytes, key: bytes = KEY) -> None:
    do(keyspace, "set_string", key=key, value=content)


def bits_of(content: bytes) -> list[int]:
    return [byte >> 7 - place & 1 for byte in content for place in range(8)]


# -- bits ------------------------------------------------------------------------------------------------------------------


def test_a_bit_lengthens_the_string_and_is_read_back(keyspace: Keyspace) -> None:
    assert not do(keyspace, "set_bit", key=KEY, offset=9, bit=True).previous
    assert keyspace.string(KEY, NOW) == b"\x00\x40"
    assert do(keyspace, "get_bit", key=KEY, offset=9).bit
    assert not do(keyspace, "get_bit", key=KEY, offset=8).bit
    assert not do(keyspace, "get_bit", key=KEY, offset=BITS_MAX - 1).bit
    assert do(keyspace, "set_bit", key=KEY, offset=9, bit=False).previous
    assert keyspace.string(KEY, NOW) == b"\x00\x00"
    reloaded(keyspace)


def test_what_changes_nothing_leaves_the_version(keyspace: Keyspace) -> None:
    put(keyspace, b"\x80")
    before = contents(keyspace)
    assert do(keyspace, "set_bit", key=KEY, offset=0, bit=True).previous
    field = {"offset": 0, "width_bits": 8}
    do(keyspace, "change_bit_fields", key=KEY, changes=[{"field": field, "set": 128}, {"field": field}])
    do(keyspace, "change_bit_fields", key=OTHER, changes=[{"field": field}])
    assert contents(keyspace) == before
    do(keyspace, "set_bit", key=KEY, offset=8, bit=False)
    assert keyspace.string(KEY, NOW) == b"\x80\x00"


def test_the_expiry_stays_unless_it_has_come(keyspace: Keyspace) -> None:
    do(keyspace, "set_string", key=KEY, value=b"\xff", expiry={"ttl_ms": 10})
    do(keyspace, "set_bit", key=KEY, offset=0, bit=False)
    assert keyspace.expires_at(KEY) == NOW + 10
    assert not do(keyspace, "set_bit", key=KEY, offset=0, bit=True, now=NOW + 10).previous
    assert keyspace.expires_at(KEY) == 0
    assert keyspace.string(KEY, NOW + 10) == b"\x80"


def test_combining_replaces_a_key_of_any_type_and_its_expiry(keyspace: Keyspace) -> None:
    put(keyspace, b"\x0f")
    do(keyspace, "push_list_items", key=LIST, items=[b"x"], end=1)
    do(keyspace, "expire_key", key=LIST, expiry={"ttl_ms": 10})
    combine = {"keys": [KEY], "combination": api.BITMAP_COMBINATION_NOT}
    assert do(keyspace, "combine_bitmaps", destination=LIST, **combine).size_bytes == 1
    assert keyspace.string(LIST, NOW) == b"\xf0"
    assert keyspace.expires_at(LIST) == 0


def test_combinations_of_strings_of_different_lengths(keyspace: Keyspace) -> None:
    put(keyspace, b"\x0f\xff\x01")
    put(keyspace, b"\x3c", OTHER)
    for keys in ([KEY, OTHER], [OTHER, KEY]):
        for combination, expected in ((1, b"\x0c\0\0"), (2, b"\x3f\xff\x01"), (3, b"\x33\xff\x01")):
            combine = {"destination": b"{t}c", "keys": [*keys, b"{t}none"][: 2 + (combination > 1)]}
            assert do(keyspace, "combine_bitmaps", combination=combination, **combine).size_bytes == 3
            assert keyspace.string(b"{t}c", NOW) == expected


def test_a_zero_is_found_behind_the_end_unless_the_range_ends(keyspace: Keyspace) -> None:
    put(keyspace, b"\xff\xff")
    assert do(keyspace, "find_bit", key=KEY, bit=False).offset == 16
    assert do(keyspace, "find_bit", key=KEY, bit=False, start=1).offset == 16
    for bounds in ({"stop": -1}, {"start": 2}, {"start": 3, "stop": 9}):
        assert not do(keyspace, "find_bit", key=KEY, bit=False, **bounds).HasField("offset")
    assert do(keyspace, "find_bit", key=OTHER, bit=False, start=5).offset == 0
    assert not do(keyspace, "find_bit", key=OTHER, bit=True).HasField("offset")


def test_counts_and_searches_are_those_of_every_single_bit(keyspace: Keyspace) -> None:
    """Over lengths at and around what is looked at in one step."""
    values = random.Random(1)
    for length in (0, 1, 7, 65_535, 65_536, 65_537, 200_001):
        for content in (values.randbytes(length), bytes(length), b"\xff" * length):
            put(keyspace, content)
            bits = bits_of(content)
            for _ in range(12):
                start, stop = sorted(values.randrange(8 * length + 1) for _ in range(2))
                bounds = {"key": KEY, "start": start, "stop": stop, "by_bit": True}
                part = bits[start : stop + 1]
                assert do(keyspace, "count_bits", **bounds).count == sum(part)
                for bit in (True, False):
                    found = do(keyspace, "find_bit", bit=bit, **bounds)
                    expected = start + part.index(bit) if bit in part else None
                    assert (found.offset if found.HasField("offset") else None) == expected


def test_a_lone_bit_is_found_in_a_string_of_any_size(keyspace: Keyspace) -> None:
    for place in (0, 7, 8 * 65_536 - 1, 8 * 65_536, 8 * 1_000_000 - 1):
        for bit in (True, False):
            content = bytearray((b"\0" if bit else b"\xff") * 1_000_000)
            content[place // 8] ^= 0x80 >> place % 8
            put(keyspace, bytes(content))
            assert do(keyspace, "find_bit", key=KEY, bit=bit).offset == place
            assert do(keyspace, "count_bits", key=KEY).count == (1 if bit else 8 * 1_000_000 - 1)


def test_bits_beyond_the_longest_string_are_refused() -> None:
    for kind in ("set_bit", "get_bit"):
        assert check_refusal(kind, key=KEY, offset=BITS_MAX) == ("LIMIT_EXCEEDED", "offset")
        assert check_refusal(kind, key=KEY, offset=2**64 - 1) == ("LIMIT_EXCEEDED", "offset")
    field = {"offset": BITS_MAX - 7, "width_bits": 8}
    assert check_refusal("get_bit_fields", key=KEY, fields=[field]) == ("LIMIT_EXCEEDED", "fields[0].offset")
    changes = [{"field": field, "set": 1}]
    assert check_refusal("change_bit_fields", key=KEY, changes=changes) == ("LIMIT_EXCEEDED", "changes[0].field.offset")


def test_the_last_bit_there_can_be(keyspace: Keyspace) -> None:
    do(keyspace, "set_bit", key=KEY, offset=BITS_MAX - 1, bit=True)
    assert do(keyspace, "find_bit", key=KEY, bit=True).offset == BITS_MAX - 1
    field = {"offset": BITS_MAX - 8, "width_bits": 8}
    assert do(keyspace, "get_bit_fields", key=KEY, fields=[field]).values == [1]
    found = do(keyspace, "find_bit", key=KEY, bit=False, start=-1)
    assert found.offset == BITS_MAX - 8


def test_requests_that_are_wrong_whatever_the_state() -> None:
    fields = [
        {"offset": 0, "width_bits": width, "signed": signed} for width, signed in ((0, True), (65, True), (64, False))
    ]
    for field in fields:
        expected = ("INVALID_ARGUMENT", "fields[1].width_bits")
        assert check_refusal("get_bit_fields", key=KEY, fields=[{"width_bits": 1}, field]) == expected
    assert check_refusal("get_bit_fields", key=KEY) == ("INVALID_ARGUMENT", "fields")
    assert check_refusal("change_bit_fields", key=KEY) == ("INVALID_ARGUMENT", "changes")
    many = [{"field": {"width_bits": 1}}] * (limits.MEMBERS_PER_REQUEST_MAX + 1)
    assert check_refusal("change_bit_fields", key=KEY, changes=many) == ("LIMIT_EXCEEDED", "changes")
    wrong = [{"field": {"width_bits": 1}, "overflow": 9}]
    assert check_refusal("change_bit_fields", key=KEY, changes=wrong) == ("INVALID_ARGUMENT", "changes[0].overflow")
    combine = {"destination": KEY, "keys": [KEY, OTHER]}
    for combination, field in ((0, "combination"), (9, "combination"), (api.BITMAP_COMBINATION_NOT, "keys")):
        assert check_refusal("combine_bitmaps", **combine, combination=combination) == ("INVALID_ARGUMENT", field)
    assert check_refusal("combine_bitmaps", destination=b"", keys=[KEY], combination=1)[1] == "destination"
    assert check_refusal("combine_bitmaps", destination=KEY, keys=[], combination=1)[1] == "keys"
    elsewhere = check_refusal("combine_bitmaps", destination=b"elsewhere", keys=[KEY], combination=1)
    assert elsewhere == ("CROSS_SLOT", "destination")


def test_keys_of_other_types_are_refused(keyspace: Keyspace) -> None:
    put(keyspace, b"x")
    do(keyspace, "push_list_items", key=LIST, items=[b"x"], end=1)
    changes = [{"field": {"width_bits": 1}, "set": 1}]
    for kind, fields in (
        ("set_bit", {}), ("get_bit", {}), ("count_bits", {}), ("find_bit", {}),
        ("get_bit_fields", {"fields": [{"width_bits": 1}]}), ("change_bit_fields", {"changes": changes}),
    ):  # fmt: skip
        assert refusal(keyspace, kind, key=LIST, **fields) == ("WRONG_TYPE", "key")
    combine = {"destination": KEY, "keys": [KEY, LIST], "combination": 1}
    assert refusal(keyspace, "combine_bitmaps", **combine) == ("WRONG_TYPE", "keys[1]")


def test_more_than_one_operation_combines_is_refused(keyspace: Keyspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COMBINED_BITMAP_BYTES_MAX", 8)
    put(keyspace, b"1234")
    combine = {"destination": OTHER, "combination": api.BITMAP_COMBINATION_OR}
    assert refusal(keyspace, "combine_bitmaps", keys=[KEY] * 3, **combine) == ("LIMIT_EXCEEDED", "keys")
    assert do(keyspace, "combine_bitmaps", keys=[KEY] * 2, **combine).size_bytes == 4


def test_results_of_fields_count_as_what_a_write_returns(keyspace: Keyspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from vecmem.store.keyspace import operation as shared

    monkeypatch.setattr(shared.Moment, "spend", lambda self, size_bytes, field: spent.append((size_bytes, field)))
    spent: list[tuple[int, str]] = []
    do(keyspace, "change_bit_fields", key=KEY, changes=[{"field": {"width_bits": 64, "signed": True}, "set": -1}] * 3)
    assert spent == [(48, "changes")]


def test_a_number_far_below_a_signed_field_saturates_at_the_lowest(keyspace: Keyspace) -> None:
    """Where redis-server, see `within_reach`, takes the highest."""
    change = {"field": {"signed": True, "width_bits": 8}, "set": limits.INT64_MIN, "overflow": 2}
    do(keyspace, "change_bit_fields", key=KEY, changes=[change])
    assert keyspace.string(KEY, NOW) == b"\x80"


# -- beside redis-server ---------------------------------------------------------------------------------------------------

KEYS = st.sampled_from([KEY, OTHER, b"{t}c", LIST])
CONTENTS = st.binary(max_size=6) | st.sampled_from([b"", b"\xff" * 3, b"\0" * 3, b"\xff" * 9, b"\0" * 9 + b"\x01"])
BOUND = st.integers(-60, 60)
RANGES = st.one_of(
    st.just(()), st.tuples(BOUND), st.tuples(BOUND, BOUND, st.booleans()), st.tuples(st.just(0), BOUND, st.booleans())
)
FIELDS = st.one_of(
    st.tuples(st.just(True), st.sampled_from([1, 2, 7, 8, 31, 63, 64]), st.integers(0, 70)),
    st.tuples(st.just(False), st.sampled_from([1, 2, 7, 8, 31, 63]), st.integers(0, 70)),
)
NUMBERS = st.integers(-300, 300) | st.sampled_from([limits.INT64_MIN, limits.INT64_MAX, limits.INT64_MIN + 1, 2**62])
CHANGES = st.tuples(
    FIELDS,
    st.none() | st.tuples(st.sampled_from(["set", "increment"]), NUMBERS),
    st.sampled_from(["WRAP", "SAT", "FAIL"]),
)
STEPS = st.one_of(
    st.tuples(st.just("set"), KEYS, st.integers(0, 70), st.booleans()),
    st.tuples(st.just("get"), KEYS, st.integers(0, 70)),
    st.tuples(st.just("count"), KEYS, RANGES),
    st.tuples(st.just("find"), KEYS, st.booleans(), RANGES),
    st.tuples(st.just("combine"), KEYS, st.lists(KEYS, min_size=1, max_size=3), st.sampled_from(["AND", "OR", "XOR"])),
    st.tuples(st.just("combine"), KEYS, st.lists(KEYS, min_size=1, max_size=1), st.just("NOT")),
    st.tuples(st.just("fields"), KEYS, st.lists(FIELDS, min_size=1, max_size=4)),
    st.tuples(st.just("change"), KEYS, st.lists(CHANGES, min_size=1, max_size=5)),
    st.tuples(st.just("string"), KEYS, CONTENTS),
    st.tuples(st.just("list"), st.just(LIST)),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("expire"), KEYS, st.integers(1_000, 3_000)),
)
COMBINATIONS = {"AND": 1, "OR": 2, "XOR": 3, "NOT": 4}
OVERFLOWS = {"WRAP": 1, "SAT": 2, "FAIL": 3}


def range_of(bounds: tuple[Any, ...]) -> tuple[dict[str, Any], list[Any]]:
    """The fields of a request and the arguments of a command."""
    match bounds:
        case ():
            return {}, []
        case (start,):
            return {"start": start}, [start]
        case (start, stop, by_bit):
            return {"start": start, "stop": stop, "by_bit": by_bit}, [start, stop, "BIT" if by_bit else "BYTE"]
    raise AssertionError(bounds)


def without_slip(client: redis.Redis, key: bytes, bounds: tuple[Any, ...]) -> tuple[Any, ...]:
    """Bounds for redis-server, which takes a stop before the first bit for the first one: a slip of its own, as in GETRANGE."""
    if len(bounds) == 3 and client.type(key) == b"string":
        _, stop, by_bit = bounds
        length = client.strlen(key) * (8 if by_bit else 1)
        if stop < -length:
            return 1, 0, by_bit
    return bounds


def field_of(field: tuple[bool, int, int]) -> dict[str, Any]:
    signed, width, offset = field
    return {"signed": signed, "width_bits": width, "offset": offset}


def arguments_of(change: tuple[Any, ...]) -> list[Any]:
    (signed, width, offset), step, overflow = change
    place = ["i" * signed + "u" * (not signed) + str(width), offset]
    if step is None:
        return ["GET", *place]
    return ["OVERFLOW", overflow, {"set": "SET", "increment": "INCRBY"}[step[0]], *place, step[1]]


def within_reach(change: tuple[Any, ...]) -> tuple[Any, ...]:
    """A change that redis-server gets right: it takes numbers far below what a signed field holds for numbers above, when it sets one."""
    field, step, overflow = change
    signed, width, _ = field
    if signed and width < 64 and step is not None and step[0] == "set":
        step = ("set", max(step[1], -(2**62)))
    return field, step, overflow


def both(keyspace: Keyspace, client: redis.Redis, step: tuple[Any, ...]) -> tuple[Any, Any]:
    """Do one thing in both; returns what each answered."""
    match step:
        case ("set", key, offset, bit):
            outcome = outcome_of(keyspace, "set_bit", key=key, offset=offset, bit=bit)
            return ours(outcome, lambda it: int(it.previous)), theirs(lambda: client.setbit(key, offset, int(bit)))
        case ("get", key, offset):
            outcome = outcome_of(keyspace, "get_bit", key=key, offset=offset)
            return ours(outcome, lambda it: int(it.bit)), theirs(lambda: client.getbit(key, offset))
        case ("count", key, bounds):
            # redis-server takes both bounds or none.
            bounds = bounds if len(bounds) != 1 else (*bounds, -1, False)
            outcome = outcome_of(keyspace, "count_bits", key=key, **range_of(bounds)[0])
            arguments = range_of(without_slip(client, key, bounds))[1]
            return ours(outcome, lambda it: it.count), theirs(
                lambda: client.execute_command("BITCOUNT", key, *arguments)
            )
        case ("find", key, bit, bounds):
            outcome = outcome_of(keyspace, "find_bit", key=key, bit=bit, **range_of(bounds)[0])
            arguments = range_of(without_slip(client, key, bounds))[1]
            reply = theirs(lambda: client.execute_command("BITPOS", key, int(bit), *arguments))
            return ours(outcome, lambda it: it.offset if it.HasField("offset") else -1), reply
        case ("combine", destination, keys, name):
            fields = {"destination": destination, "keys": keys, "combination": COMBINATIONS[name]}
            outcome = outcome_of(keyspace, "combine_bitmaps", **fields)
            return ours(outcome, lambda it: it.size_bytes), theirs(lambda: client.bitop(name, destination, *keys))
        case ("fields", key, fields):
            outcome = outcome_of(keyspace, "get_bit_fields", key=key, fields=[field_of(field) for field in fields])
            flat = [part for field in fields for part in arguments_of((field, None, None))]
            reply = theirs(lambda: client.execute_command("BITFIELD_RO", key, *flat))
            return ours(outcome, lambda it: list(it.values)), reply
        case ("change", key, changes):
            changes = [within_reach(change) for change in changes]
            steps = [
                {"field": field_of(field), "overflow": OVERFLOWS[overflow], **({step[0]: step[1]} if step else {})}
                for field, step, overflow in changes
            ]
            outcome = outcome_of(keyspace, "change_bit_fields", key=key, changes=steps)
            flat = [part for change in changes for part in arguments_of(change)]
            reply = theirs(lambda: client.execute_command("BITFIELD", key, *flat))
            return ours(outcome, lambda it: [r.value if r.HasField("value") else None for r in it.results]), reply
        case ("string", key, content):
            return do(keyspace, "set_string", key=key, value=content).written, client.set(key, content)
        case ("list", key):
            outcome = outcome_of(keyspace, "push_list_items", key=key, items=[b"x"], end=2)
            return ours(outcome, lambda it: it.item_count), theirs(lambda: client.rpush(key, b"x"))
        case ("delete", key):
            return do(keyspace, "delete_keys", keys=[key]).deleted_count, client.delete(key)
        case ("expire", key, seconds):
            response = do(keyspace, "expire_key", key=key, expiry={"ttl_ms": seconds * 1_000})
            return response.changed, bool(client.expire(key, seconds))
    raise AssertionError(step)


FILLED = st.lists(st.tuples(st.just("string"), KEYS, CONTENTS), min_size=2, max_size=4)


@settings(max_examples=300)
@given(st.tuples(FILLED, st.lists(STEPS, min_size=8, max_size=40)).map(lambda parts: [*parts[0], *parts[1]]))
def test_redis_answers_the_same(redis_client: redis.Redis, steps: list[tuple[Any, ...]]) -> None:  # noqa: F811
    redis_client.flushall()
    keyspace = Keyspace()
    for step in steps:
        before = contents(keyspace)
        answered, expected = both(keyspace, redis_client, step)
        assert answered == expected, step
        assert answered not in ("WRONG_TYPE", "ERROR") or contents(keyspace) == before
    assert_same_state(keyspace, redis_client, (KEY, OTHER, b"{t}c", LIST))
    reloaded(keyspace)
