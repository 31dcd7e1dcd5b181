"""Hashes: what each operation does, what it refuses, and that expired fields are there for nobody."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.keyspace import (
    NOW,
    check_refusal,
    contents,
    do,
    field_expiries,
    fields_of,
    operation,
    pairs,
    refusal,
    reloaded,
    whole_hash,
)
from vecmem import limits
from vecmem.store.keyspace import hashes, operations
from vecmem.store.keyspace.keyspace import NEVER, Keyspace
from vecmem.store.keyspace.paging import SORTED_ITEMS_MIN
from vecmem.store.reading import encode_page_token
from vecmem.store.validation import request_fingerprint
from vecmem.v1 import counters_pb2, hashes_pb2, keys_pb2

IF_ABSENT = hashes_pb2.HASH_FIELD_CONDITION_ABSENT
IF_PRESENT = hashes_pb2.HASH_FIELD_CONDITION_PRESENT
ABSENT = hashes_pb2.HASH_FIELD_OUTCOME_ABSENT
UNCHANGED = hashes_pb2.HASH_FIELD_OUTCOME_UNCHANGED
CHANGED = hashes_pb2.HASH_FIELD_OUTCOME_CHANGED
REMOVED = hashes_pb2.HASH_FIELD_OUTCOME_REMOVED


def put(keyspace: Keyspace, key: bytes, values: dict[bytes, bytes], *, now: int = NOW, **fields: Any) -> Any:
    return do(keyspace, "set_hash_fields", key=key, fields=pairs(values), now=now, **fields)


def expire(keyspace: Keyspace, key: bytes, ms: int, *fields: bytes, now: int = NOW, condition: int = 0) -> list[int]:
    expiry = keys_pb2.Expiry(ttl_ms=ms)
    response = do(
        keyspace, "expire_hash_fields", key=key, fields=list(fields), expiry=expiry, condition=condition, now=now
    )
    return list(response.outcomes)


# -- fields and values -----------------------------------------------------------------------------------------------------


def test_fields_have_values() -> None:
    keyspace = Keyspace()
    written = put(keyspace, b"h", {b"b": b"1", b"a": b"", b"": b"3"})
    assert (written.written, written.new_count) == (True, 3)
    assert put(keyspace, b"h", {b"b": b"2", b"c": b"4"}).new_count == 1
    assert fields_of(keyspace, b"h", b"a", b"x", b"b", b"", b"b") == [b"", None, b"2", b"3", b"2"]
    assert list(do(keyspace, "check_hash_fields", key=b"h", fields=[b"a", b"x", b"a"]).existing) == [True, False, True]
    assert whole_hash(keyspace, b"h") == {b"": b"3", b"a": b"", b"b": b"2", b"c": b"4"}
    assert fields_of(keyspace, b"none", b"a") == [None]
    assert whole_hash(keyspace, b"none") == {}
    described = do(keyspace, "describe_key", key=b"h")
    assert (described.type, described.size) == (keys_pb2.KEY_TYPE_HASH, 4)


def test_a_field_named_twice_is_written_once() -> None:
    keyspace = Keyspace()
    twice = [hashes_pb2.HashField(field=b"a", value=value) for value in (b"1", b"2")]
    assert do(keyspace, "set_hash_fields", key=b"h", fields=twice).new_count == 1
    assert fields_of(keyspace, b"h", b"a") == [b"2"]
    assert do(keyspace, "delete_hash_fields", key=b"h", fields=[b"a", b"a"]).deleted_count == 1
    contents(keyspace)


def test_conditions_hold_for_all_fields_or_none_is_written() -> None:
    keyspace = Keyspace()
    assert not put(keyspace, b"h", {b"a": b"1"}, condition=IF_PRESENT).written
    assert put(keyspace, b"h", {b"a": b"1"}, condition=IF_ABSENT).written
    before = contents(keyspace)
    assert not put(keyspace, b"h", {b"a": b"2", b"b": b"2"}, condition=IF_PRESENT).written
    refused = put(keyspace, b"h", {b"a": b"2", b"b": b"2"}, condition=IF_ABSENT)
    assert (refused.written, refused.new_count) == (False, 0)
    assert contents(keyspace) == before
    assert put(keyspace, b"h", {b"b": b"2"}, condition=IF_ABSENT).new_count == 1
    assert put(keyspace, b"h", {b"a": b"3", b"b": b"3"}, condition=IF_PRESENT).written
    assert whole_hash(keyspace, b"h") == {b"a": b"3", b"b": b"3"}


def test_a_key_goes_with_its_last_field_and_its_expiry_stays_until_then() -> None:
    keyspace = Keyspace()
    put(keyspace, b"h", {b"a": b"1"})
    do(keyspace, "expire_key", key=b"h", expiry=keys_pb2.Expiry(ttl_ms=100))
    put(keyspace, b"h", {b"b": b"1"})
    assert do(keyspace, "delete_hash_fields", key=b"h", fields=[b"a", b"x"]).deleted_count == 1
    assert do(keyspace, "describe_key", key=b"h").expires_at_unix_ms == NOW + 100
    do(keyspace, "delete_hash_fields", key=b"h", fields=[b"b"])
    assert (keyspace.values, keyspace.expiries, keyspace.memory_bytes) == ({}, {}, 0)


def test_only_what_changes_something_takes_a_version() -> None:
    keyspace = Keyspace()
    put(keyspace, b"h", {b"a": b"1"})
    before = contents(keyspace)
    do(keyspace, "delete_hash_fields", key=b"h", fields=[b"x"])
    do(keyspace, "delete_hash_fields", key=b"none", fields=[b"x"])
    do(keyspace, "persist_hash_fields", key=b"h", fields=[b"a", b"x"])
    do(keyspace, "persist_hash_fields", key=b"none", fields=[b"a"])
    expire(keyspace, b"h", 5, b"x")
    expire(keyspace, b"h", 5, b"a", condition=keys_pb2.EXPIRY_CONDITION_SOME)
    do(keyspace, "add_hash_integer", key=b"h", field=b"a", delta=5, maximum=3)
    assert contents(keyspace) == before
    version = keyspace.version
    put(keyspace, b"h", {b"a": b"1"})
    assert keyspace.version == version + 1 == do(keyspace, "describe_key", key=b"h").version


# -- numbers ---------------------------------------------------------------------------------------------------------------


def test_integers_are_added_within_bounds() -> None:
    keyspace = Keyspace()
    first = do(keyspace, "add_hash_integer", key=b"h", field=b"n", delta=-5)
    assert (first.value, first.changed) == (-5, True)
    assert do(keyspace, "add_hash_integer", key=b"h", field=b"n", delta=7).value == 2
    left = do(keyspace, "add_hash_integer", key=b"h", field=b"n", delta=7, maximum=8)
    assert (left.value, left.changed) == (2, False)
    clamp = counters_pb2.BOUND_POLICY_CLAMP
    clamped = do(keyspace, "add_hash_integer", key=b"h", field=b"n", delta=7, maximum=8, bound_policy=clamp)
    assert (clamped.value, clamped.changed) == (8, True)
    assert fields_of(keyspace, b"h", b"n") == [b"8"]
    assert not do(keyspace, "add_hash_integer", key=b"new", field=b"n", delta=7, maximum=1).changed
    assert b"new" not in keyspace.values


def test_floats_are_added_within_bounds() -> None:
    keyspace = Keyspace()
    assert do(keyspace, "add_hash_float", key=b"h", field=b"n", delta=1.5).value == 1.5
    assert do(keyspace, "add_hash_float", key=b"h", field=b"n", delta=0.5).value == 2.0
    assert fields_of(keyspace, b"h", b"n") == [b"2"]
    assert do(keyspace, "add_hash_integer", key=b"h", field=b"n", delta=1).value == 3
    assert not do(keyspace, "add_hash_float", key=b"h", field=b"n", delta=-9.0, minimum=0.0).changed


def test_an_addition_keeps_the_expiry_and_a_new_field_gets_its_own() -> None:
    keyspace = Keyspace()
    for number, kind in enumerate(("add_hash_integer", "add_hash_float")):
        key = b"h%d" % number
        for delta in (1, 2):
            expiry = keys_pb2.Expiry(ttl_ms=100 * delta)
            do(keyspace, kind, key=key, field=b"n", delta=delta, expiry_if_absent=expiry)
        assert field_expiries(keyspace, key, b"n") == [NOW + 100]
        assert do(keyspace, kind, key=key, field=b"n", delta=4, now=NOW + 100).value == 4
        assert field_expiries(keyspace, key, b"n", now=NOW + 100) == [NEVER]
        contents(keyspace)


def test_what_is_no_number_is_left() -> None:
    keyspace = Keyspace()
    put(keyspace, b"h", {b"text": b"1x", b"big": b"%d" % limits.INT64_MAX, b"huge": b"1e308"})
    for kind in ("add_hash_integer", "add_hash_float"):
        assert refusal(keyspace, kind, key=b"h", field=b"text", delta=1) == ("NOT_A_NUMBER", "field")
    assert refusal(keyspace, "add_hash_integer", key=b"h", field=b"big", delta=1) == ("OVERFLOW", "delta")
    assert refusal(keyspace, "add_hash_integer", key=b"h", field=b"huge", delta=1) == ("NOT_A_NUMBER", "field")
    assert refusal(keyspace, "add_hash_float", key=b"h", field=b"huge", delta=1e308) == ("OVERFLOW", "delta")


# -- expiry of fields ------------------------------------------------------------------------------------------------------


def test_an_expired_field_is_there_for_nobody() -> None:
    keyspace = Keyspace()
    put(keyspace, b"h", {b"a": b"1", b"b": b"2", b"c": b"3"})
    assert expire(keyspace, b"h", 100, b"a", b"x", b"b") == [CHANGED, ABSENT, CHANGED]
    assert field_expiries(keyspace, b"h", b"a", b"x", b"c") == [NOW + 100, None, NEVER]
    then = NOW + 100
    assert whole_hash(keyspace, b"h", now=then - 1) == {b"a": b"1", b"b": b"2", b"c": b"3"}
    before = contents(keyspace)
    assert whole_hash(keyspace, b"h", now=then) == {b"c": b"3"}
    assert fields_of(keyspace, b"h", b"a", b"c", now=then) == [None, b"3"]
    assert not do(keyspace, "check_hash_fields", key=b"h", fields=[b"a"], now=then).existing[0]
    assert field_expiries(keyspace, b"h", b"a", b"c", now=then) == [None, NEVER]
    assert do(keyspace, "describe_key", key=b"h", now=then).size == 1
    assert do(keyspace, "delete_hash_fields", key=b"h", fields=[b"a"], now=then).deleted_count == 0
    assert expire(keyspace, b"h", 100, b"a", now=then) == [ABSENT]
    assert contents(keyspace) == before, "what reads, or finds nothing to do, changes nothing"
    assert put(keyspace, b"h", {b"a": b"9"}, now=then, condition=IF_ABSENT).new_count == 1
    assert field_expiries(keyspace, b"h", b"a", now=then) == [NEVER]
    [value] = keyspace.values.values()
    assert len(value) == 2, "a write takes out what has expired"
    contents(keyspace)


def test_a_hash_without_a_field_left_is_gone_for_every_operation() -> None:
    keyspace = Keyspace()
    put(keyspace, b"{h}1", {b"a": b"1", b"b": b"2"})
    do(keyspace, "expire_key", key=b"{h}1", expiry=keys_pb2.Expiry(ttl_ms=10_000))
    expire(keyspace, b"{h}1", 100, b"a")
    expire(keyspace, b"{h}1", 200, b"b")
    put(keyspace, b"{h}2", {b"a": b"1"}, expiry=keys_pb2.Expiry(at_unix_ms=NOW + 200))
    then = NOW + 200
    assert list(do(keyspace, "check_keys", keys=[b"{h}1", b"{h}2"], now=then - 1).existing) == [True, True]
    before = contents(keyspace)
    assert list(do(keyspace, "check_keys", keys=[b"{h}1", b"{h}2"], now=then).existing) == [False, False]
    assert do(keyspace, "describe_key", key=b"{h}1", now=then).type == keys_pb2.KEY_TYPE_UNSPECIFIED
    assert not do(keyspace, "scan_keys", now=then).keys
    assert do(keyspace, "delete_keys", keys=[b"{h}1"], now=then).deleted_count == 0
    assert not do(keyspace, "expire_key", key=b"{h}1", expiry=keys_pb2.Expiry(ttl_ms=9), now=then).changed
    assert refusal(keyspace, "rename_key", key=b"{h}1", new_key=b"{h}3", now=then) == ("KEY_NOT_FOUND", "key")
    assert do(keyspace, "get_string", key=b"{h}1", now=then).version == 0, "it is no value of another type either"
    assert contents(keyspace) == before
    assert keyspace.expired_keys(then - 1, 10)[0] == []
    assert keyspace.expired_keys(then, 10)[0] == [b"{h}1", b"{h}2"]
    assert keyspace.remove_expired([b"{h}1"], then) == 1
    assert list(keyspace.values) == [b"{h}2"]
    put(keyspace, b"{h}2", {b"z": b"1"}, now=then)
    assert whole_hash(keyspace, b"{h}2", now=then) == {b"z": b"1"}
    assert keyspace.endings == {}
    assert keyspace.expired_keys(then + 10_000, 10)[0] == []
    contents(keyspace)


def test_a_renamed_hash_ends_as_before() -> None:
    keyspace = Keyspace()
    put(keyspace, b"{h}1", {b"a": b"1"}, expiry=keys_pb2.Expiry(ttl_ms=100))
    do(keyspace, "rename_key", key=b"{h}1", new_key=b"{h}2")
    assert keyspace.endings == {b"{h}2": NOW + 100}
    assert do(keyspace, "describe_key", key=b"{h}2").expires_at_unix_ms == 0, "its own expiry is another thing"
    do(keyspace, "set_string", key=b"{h}2", value=b"")
    assert do(keyspace, "check_keys", keys=[b"{h}2"], now=NOW + 100).existing[0]
    contents(keyspace)


@pytest.mark.parametrize(
    ("condition", "outcomes"),
    [
        (keys_pb2.EXPIRY_CONDITION_UNSPECIFIED, [CHANGED, CHANGED, CHANGED]),
        (keys_pb2.EXPIRY_CONDITION_NONE, [CHANGED, UNCHANGED, UNCHANGED]),
        (keys_pb2.EXPIRY_CONDITION_SOME, [UNCHANGED, CHANGED, CHANGED]),
        (keys_pb2.EXPIRY_CONDITION_LATER, [UNCHANGED, CHANGED, UNCHANGED]),
        (keys_pb2.EXPIRY_CONDITION_EARLIER, [CHANGED, UNCHANGED, CHANGED]),
    ],
)
def test_conditions_hold_for_each_field(condition: int, outcomes: list[int]) -> None:
    keyspace = Keyspace()
    put(keyspace, b"h", {b"never": b"", b"soon": b"", b"late": b""})
    expire(keyspace, b"h", 100, b"soon")
    expire(keyspace, b"h", 300, b"late")
    assert expire(keyspace, b"h", 200, b"never", b"soon", b"late", condition=condition) == outcomes
    old = {b"never": NEVER, b"soon": NOW + 100, b"late": NOW + 300}
    assert field_expiries(keyspace, b"h", *old) == [
        NOW + 200 if outcome == CHANGED else time for outcome, time in zip(outcomes, old.values(), strict=True)
    ]
    contents(keyspace)


def test_a_time_in_the_past_removes_fields_at_once() -> None:
    keyspace = Keyspace()
    put(keyspace, b"h", {b"a": b"1", b"b": b"2"})
    past = keys_pb2.Expiry(at_unix_ms=NOW)
    removed = do(keyspace, "expire_hash_fields", key=b"h", fields=[b"a", b"a"], expiry=past)
    assert list(removed.outcomes) == [REMOVED, ABSENT]
    assert put(keyspace, b"h", {b"c": b"3"}, expiry=past).new_count == 1
    assert whole_hash(keyspace, b"h") == {b"b": b"2"}
    assert len(keyspace.values[b"h"]) == 1
    do(keyspace, "expire_hash_fields", key=b"h", fields=[b"b"], expiry=past)
    put(keyspace, b"h", {b"c": b"3"}, expiry=past)
    assert keyspace.values == {}
    contents(keyspace)


def test_expiry_can_be_kept_and_taken_away() -> None:
    keyspace = Keyspace()
    put(keyspace, b"h", {b"a": b"1", b"b": b"1"}, expiry=keys_pb2.Expiry(ttl_ms=100))
    put(keyspace, b"h", {b"a": b"2", b"c": b"2"}, expiry=keys_pb2.Expiry(keep=True))
    assert field_expiries(keyspace, b"h", b"a", b"b", b"c") == [NOW + 100, NOW + 100, NEVER]
    put(keyspace, b"h", {b"a": b"3"})
    assert field_expiries(keyspace, b"h", b"a") == [NEVER]
    persisted = do(keyspace, "persist_hash_fields", key=b"h", fields=[b"a", b"b", b"x", b"b"])
    assert list(persisted.outcomes) == [UNCHANGED, CHANGED, ABSENT, UNCHANGED]
    assert whole_hash(keyspace, b"h", now=NOW + 1_000) == {b"a": b"3", b"b": b"1", b"c": b"2"}
    put(keyspace, b"h", {b"a": b"4"}, expiry=keys_pb2.Expiry(ttl_ms=100))
    put(keyspace, b"h", {b"a": b"5"}, expiry=keys_pb2.Expiry(keep=True), now=NOW + 100)
    assert fields_of(keyspace, b"h", b"a", now=NOW + 100) == [b"5"], "an expiry that has come is not kept"


def test_a_write_takes_out_only_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "PURGED_FIELDS_MAX", 3)
    keyspace = Keyspace()
    put(keyspace, b"h", {b"%d" % number: b"" for number in range(8)}, expiry=keys_pb2.Expiry(ttl_ms=100))
    put(keyspace, b"h", {b"x": b""}, now=NOW + 99)
    then = NOW + 100
    put(keyspace, b"h", {b"y": b""}, now=then)
    assert len(keyspace.values[b"h"]) == 7
    assert whole_hash(keyspace, b"h", now=then) == {b"x": b"", b"y": b""}
    assert do(keyspace, "delete_hash_fields", key=b"h", fields=[b"x", b"y"], now=then).deleted_count == 2
    assert len(keyspace.values[b"h"]) == 2
    assert not do(keyspace, "check_keys", keys=[b"h"], now=then).existing[0]
    contents(keyspace)
    assert keyspace.expired_keys(then, 9)[0] == [b"h"]


# -- pages -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [30, SORTED_ITEMS_MIN + 300])
def test_a_walk_over_what_comes_and_goes(count: int) -> None:
    keyspace = Keyspace()
    everything = {b"%05d" % number: b"%d" % number for number in range(count)}
    for start in range(0, count, 1_000):
        put(keyspace, b"h", dict(list(everything.items())[start : start + 1_000]))
    assert whole_hash(keyspace, b"h", page_size=7) == everything
    gone = list(everything)[::3]
    for start in range(0, len(gone), 1_000):
        do(keyspace, "delete_hash_fields", key=b"h", fields=gone[start : start + 1_000])
    left = {field: value for field, value in everything.items() if field not in set(gone)}
    assert (
        whole_hash(reloaded(keyspace), b"h", page_size=10_000) == whole_hash(keyspace, b"h", page_size=10_000) == left
    )


def test_a_page_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "PAGE_BYTES_MAX", 100)
    monkeypatch.setattr(hashes, "PAGE_LOOKS_MAX", 5)
    keyspace = Keyspace()
    put(keyspace, b"h", {b"%d" % number: b"x" * 60 for number in range(4)})
    assert len(do(keyspace, "get_hash", key=b"h").fields) == 2
    assert len(whole_hash(keyspace, b"h")) == 4
    put(keyspace, b"i", {b"%d" % number: b"" for number in range(9)}, expiry=keys_pb2.Expiry(ttl_ms=100))
    put(keyspace, b"i", {b"z": b"1"})
    page = do(keyspace, "get_hash", key=b"i", now=NOW + 100)
    assert (len(page.fields), bool(page.next_page_token)) == (0, True)
    assert whole_hash(keyspace, b"i", now=NOW + 100) == {b"z": b"1"}


def test_values_that_no_message_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    keyspace = Keyspace()
    put(keyspace, b"h", {b"a": b"x" * 60})
    monkeypatch.setattr("vecmem.store.keyspace.hashes.REPLY_BYTES_MAX", 100)
    assert refusal(keyspace, "get_hash_fields", key=b"h", fields=[b"a", b"a"]) == ("LIMIT_EXCEEDED", "fields")
    assert fields_of(keyspace, b"h", b"a", b"x") == [b"x" * 60, None]


# -- what it refuses -------------------------------------------------------------------------------------------------------

LONG = b"x" * (limits.MEMBER_BYTES_MAX + 1)
MANY = [b"%d" % number for number in range(limits.MEMBERS_PER_REQUEST_MAX + 1)]
NAMING = [
    "get_hash_fields",
    "check_hash_fields",
    "delete_hash_fields",
    "expire_hash_fields",
    "persist_hash_fields",
    "get_hash_field_expiries",
]
SOON = keys_pb2.Expiry(ttl_ms=1)


@pytest.mark.parametrize("kind", NAMING)
def test_fields_that_are_wrong(kind: str) -> None:
    further = {"expiry": SOON} if kind == "expire_hash_fields" else {}
    assert check_refusal(kind, key=b"", fields=[b"a"], **further) == ("INVALID_KEY", "key")
    assert check_refusal(kind, key=b"h", **further) == ("INVALID_ARGUMENT", "fields")
    assert check_refusal(kind, key=b"h", fields=MANY, **further) == ("LIMIT_EXCEEDED", "fields")
    assert check_refusal(kind, key=b"h", fields=[b"a", LONG], **further) == ("LIMIT_EXCEEDED", "fields[1]")
    operations.check(operation(kind, key=b"h", fields=[*MANY[:-2], LONG[:-1]], **further))
    keyspace = Keyspace()
    do(keyspace, "set_string", key=b"h", value=b"1")
    assert refusal(keyspace, kind, key=b"h", fields=[b"a"], **further) == ("WRONG_TYPE", "key")


def test_writes_that_are_wrong() -> None:
    kind = "set_hash_fields"
    assert check_refusal(kind, key=b"", fields=pairs({b"a": b""})) == ("INVALID_KEY", "key")
    assert check_refusal(kind, key=b"h") == ("INVALID_ARGUMENT", "fields")
    assert check_refusal(kind, key=b"h", fields=pairs(dict.fromkeys(MANY, b""))) == ("LIMIT_EXCEEDED", "fields")
    assert check_refusal(kind, key=b"h", fields=pairs({b"a": b"", LONG: b""})) == ("LIMIT_EXCEEDED", "fields[1].field")
    long_value = pairs({b"a": b"x" * (limits.STRING_BYTES_MAX + 1)})
    assert check_refusal(kind, key=b"h", fields=long_value) == ("LIMIT_EXCEEDED", "fields[0].value")
    one = pairs({b"a": b""})
    assert check_refusal(kind, key=b"h", fields=one, condition=3) == ("INVALID_ARGUMENT", "condition")
    wrong = keys_pb2.Expiry(ttl_ms=0)
    assert check_refusal(kind, key=b"h", fields=one, expiry=wrong) == ("INVALID_ARGUMENT", "expiry.ttl_ms")
    keyspace = Keyspace()
    do(keyspace, "set_string", key=b"h", value=b"1")
    assert refusal(keyspace, kind, key=b"h", fields=one) == ("WRONG_TYPE", "key")


@pytest.mark.parametrize("kind", ["add_hash_integer", "add_hash_float"])
def test_additions_that_are_wrong(kind: str) -> None:
    assert check_refusal(kind, key=b"", delta=1) == ("INVALID_KEY", "key")
    assert check_refusal(kind, key=b"h", field=LONG) == ("LIMIT_EXCEEDED", "field")
    assert check_refusal(kind, key=b"h", minimum=2, maximum=1) == ("INVALID_ARGUMENT", "minimum")
    assert check_refusal(kind, key=b"h", bound_policy=3) == ("INVALID_ARGUMENT", "bound_policy")
    keep = keys_pb2.Expiry(keep=True)
    assert check_refusal(kind, key=b"h", expiry_if_absent=keep) == ("INVALID_ARGUMENT", "expiry_if_absent.keep")
    if kind == "add_hash_float":
        for name in ("delta", "minimum", "maximum"):
            for number in (float("nan"), float("inf")):
                assert check_refusal(kind, key=b"h", **{name: number}) == ("INVALID_ARGUMENT", name)
    keyspace = Keyspace()
    do(keyspace, "set_string", key=b"h", value=b"1")
    assert refusal(keyspace, kind, key=b"h", field=b"a", delta=1) == ("WRONG_TYPE", "key")


def test_expiries_and_pages_that_are_wrong() -> None:
    kind = "expire_hash_fields"
    assert check_refusal(kind, key=b"h", fields=[b"a"]) == ("INVALID_ARGUMENT", "expiry")
    keep = keys_pb2.Expiry(keep=True)
    assert check_refusal(kind, key=b"h", fields=[b"a"], expiry=keep) == ("INVALID_ARGUMENT", "expiry.keep")
    assert check_refusal(kind, key=b"h", fields=[b"a"], expiry=SOON, condition=5) == ("INVALID_ARGUMENT", "condition")
    assert check_refusal("get_hash", key=b"") == ("INVALID_KEY", "key")
    assert check_refusal("get_hash", key=b"h", page_size=10_001) == ("LIMIT_EXCEEDED", "page_size")
    keyspace = Keyspace()
    put(keyspace, b"i", {b"a": b"", b"b": b""})
    token = do(keyspace, "get_hash", key=b"i", page_size=1).next_page_token
    assert check_refusal("get_hash", key=b"h", page_token=token) == ("INVALID_PAGE_TOKEN", "page_token")
    do(keyspace, "set_string", key=b"h", value=b"1")
    assert refusal(keyspace, "get_hash", key=b"h") == ("WRONG_TYPE", "key")


@pytest.mark.parametrize(
    ("token_kind", "kind", "fields", "bound"),
    [
        ("items", "get_hash", {"key": b"h"}, hashes_pb2.GetHashRequest(key=b"h")),
        ("keys", "scan_keys", {"pattern": b"h*"}, keys_pb2.ScanKeysRequest(pattern=b"h*")),
    ],
)
def test_a_token_that_says_no_bytes_is_refused(token_kind: str, kind: str, fields: dict[str, Any], bound: Any) -> None:
    scope = [request_fingerprint(bound)]
    operations.check(operation(kind, **fields, page_token=encode_page_token(token_kind, scope, "=\xff")))
    forged = encode_page_token(token_kind, scope, "=\u20ac")
    assert check_refusal(kind, **fields, page_token=forged) == ("INVALID_PAGE_TOKEN", "page_token")
