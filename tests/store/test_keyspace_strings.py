"""Strings, counters and what keys have in common: what each operation does, what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.keyspace import NOW, contents, do, operation, refusal
from vecmem import limits
from vecmem.errors import InvalidArgumentError, InvalidPageTokenError, LimitExceededError, VecmemError
from vecmem.slots import slot_of
from vecmem.store.keyspace import operations
from vecmem.store.keyspace.counters import float_of, float_text, integer_of
from vecmem.store.keyspace.glob import compile_glob, literal_prefix
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.operation import Moment
from vecmem.v1 import keys_pb2, pipeline_pb2, sorted_sets_pb2, strings_pb2


def ttl(milliseconds: int) -> keys_pb2.Expiry:
    return keys_pb2.Expiry(ttl_ms=milliseconds)


# -- strings ---------------------------------------------------------------------------------------------------------------


def test_versions_decide_who_was_first() -> None:
    keyspace = Keyspace()
    first = do(keyspace, "set_string", key=b"k", value=b"1", expected_version=0)
    assert first.written
    late = do(keyspace, "set_string", key=b"k", value=b"2", expected_version=0)
    assert (late.written, late.version) == (False, first.version)
    second = do(keyspace, "set_string", key=b"k", value=b"2", expected_version=first.version)
    assert second.written
    assert second.version > first.version
    assert not do(keyspace, "set_string", key=b"k", value=b"3", expected_version=first.version).written
    do(keyspace, "delete_keys", keys=[b"k"])
    again = do(keyspace, "set_string", key=b"k", value=b"1", expected_version=0)
    assert again.version > second.version, "a key that comes back does not take up an old version"


def test_a_write_takes_the_expiry_away_unless_told_to_keep_it() -> None:
    keyspace = Keyspace()
    do(keyspace, "set_string", key=b"k", value=b"1", expiry=ttl(100))
    do(keyspace, "set_string", key=b"k", value=b"2", expiry=keys_pb2.Expiry(keep=True))
    do(keyspace, "append_string", key=b"k", value=b"!")
    do(keyspace, "set_string_range", key=b"k", offset=0, value=b"3")
    do(keyspace, "set_string", key=b"k", value=b"9", condition=strings_pb2.SET_CONDITION_ABSENT)
    assert do(keyspace, "describe_key", key=b"k").expires_at_unix_ms == NOW + 100
    do(keyspace, "set_string", key=b"k", value=b"4")
    assert do(keyspace, "describe_key", key=b"k").expires_at_unix_ms == 0
    assert keyspace.expiries == {}


def test_what_has_expired_is_not_there_for_any_operation() -> None:
    keyspace = Keyspace()
    do(keyspace, "set_string", key=b"k", value=b"7", expiry=ttl(100))
    at = NOW + 100
    assert do(keyspace, "get_string", key=b"k", now=at - 1).value == b"7"
    assert not do(keyspace, "get_string", key=b"k", now=at).HasField("value")
    assert list(do(keyspace, "check_keys", keys=[b"k"], now=at).existing) == [False]
    assert list(do(keyspace, "scan_keys", now=at).keys) == []
    assert do(keyspace, "delete_keys", keys=[b"k"], now=at).deleted_count == 0
    assert not do(keyspace, "set_string", key=b"k", value=b"1", condition=2, now=at).written
    assert not do(keyspace, "expire_key", key=b"k", expiry=ttl(5), now=at).changed
    assert not do(keyspace, "persist_key", key=b"k", now=at).changed
    assert do(keyspace, "add_integer", key=b"k", delta=1, now=at).value == 1
    assert do(keyspace, "describe_key", key=b"k", now=at).expires_at_unix_ms == 0, "the new one lives on"
    do(keyspace, "expire_key", key=b"k", expiry=ttl(5), now=at)
    do(keyspace, "append_string", key=b"k", value=b"2", now=at + 5)
    assert do(keyspace, "get_string", key=b"k", now=at + 50).value == b"2"


def test_the_sweep_removes_what_has_expired_and_only_that() -> None:
    keyspace = Keyspace()
    for number in range(10):
        do(keyspace, "set_string", key=b"%d" % number, value=b"x", expiry=ttl(100 + number))
    do(keyspace, "expire_key", key=b"3", expiry=ttl(10_000))
    do(keyspace, "persist_key", key=b"4")
    assert keyspace.expired_keys(NOW + 105, 3)[0] == [b"0", b"1", b"2"]
    named = keyspace.expired_keys(NOW + 105, 100)[0]
    assert named == [b"0", b"1", b"2", b"5"]
    assert keyspace.remove_expired([*named, b"3", b"9", b"none"], NOW + 105) == 4
    assert list(keyspace.sorted_keys) == [b"3", b"4", b"6", b"7", b"8", b"9"]
    assert keyspace.expired_keys(NOW + 105, 100)[0] == []


def test_expiries_that_are_moved_on_leave_no_trail() -> None:
    keyspace = Keyspace()
    do(keyspace, "set_string", key=b"k", value=b"x")
    for number in range(5_000):
        do(keyspace, "expire_key", key=b"k", expiry=ttl(1_000 + number))
    assert len(keyspace._expiring) < 2_000
    assert keyspace.expired_keys(NOW + 6_000, 10)[0] == [b"k"]


def test_memory_is_counted_up_and_down() -> None:
    keyspace = Keyspace()
    for number in range(100):
        do(keyspace, "set_string", key=b"%d" % number, value=b"x" * number)
        do(keyspace, "append_string", key=b"%d" % number, value=b"y")
    assert keyspace.memory_bytes > 100 * 150
    do(keyspace, "rename_key", key=b"1", new_key=b"{1}")
    do(keyspace, "rename_key", key=b"{1}", new_key=b"1")
    for number in range(100):
        do(keyspace, "delete_keys", keys=[b"%d" % number])
    assert keyspace.memory_bytes == 0


# -- bad input -------------------------------------------------------------------------------------------------------------

LONG_KEY = b"k" * (limits.KEY_BYTES_MAX + 1)


@pytest.mark.parametrize(
    ("kind", "fields", "reason", "field"),
    [
        ("get_string", {"key": b""}, "INVALID_KEY", "key"),
        ("get_string", {"key": LONG_KEY}, "LIMIT_EXCEEDED", "key"),
        ("get_strings", {"keys": []}, "INVALID_ARGUMENT", "keys"),
        ("get_strings", {"keys": [b"a", b""]}, "INVALID_KEY", "keys[1]"),
        ("get_strings", {"keys": [b"a", b"b"]}, "CROSS_SLOT", "keys"),
        ("delete_keys", {"keys": [b"a"] * 1_025}, "LIMIT_EXCEEDED", "keys"),
        ("set_string", {"key": b"a", "expiry": ttl(0)}, "INVALID_ARGUMENT", "expiry.ttl_ms"),
        ("set_string", {"key": b"a", "expiry": ttl(2**53 + 1)}, "INVALID_ARGUMENT", "expiry.ttl_ms"),
        (
            "set_string",
            {"key": b"a", "expiry": keys_pb2.Expiry(at_unix_ms=-1)},
            "INVALID_ARGUMENT",
            "expiry.at_unix_ms",
        ),
        ("set_string", {"key": b"a", "condition": 9}, "INVALID_ARGUMENT", "condition"),
        ("set_strings", {"values": []}, "INVALID_ARGUMENT", "values"),
        (
            "set_strings",
            {"values": [strings_pb2.KeyValue(key=b"a"), strings_pb2.KeyValue(key=b"b")]},
            "CROSS_SLOT",
            "values",
        ),
        ("set_string_range", {"key": b"a", "offset": 2**63}, "LIMIT_EXCEEDED", "offset"),
        (
            "set_string_range",
            {"key": b"a", "offset": limits.STRING_BYTES_MAX, "value": b"x"},
            "LIMIT_EXCEEDED",
            "offset",
        ),
        ("rename_key", {"key": b"a", "new_key": b"b"}, "CROSS_SLOT", "new_key"),
        ("rename_key", {"key": b"a"}, "INVALID_KEY", "new_key"),
        ("expire_key", {"key": b"a"}, "INVALID_ARGUMENT", "expiry"),
        ("expire_key", {"key": b"a", "expiry": keys_pb2.Expiry(keep=True)}, "INVALID_ARGUMENT", "expiry.keep"),
        ("expire_key", {"key": b"a", "expiry": ttl(1), "condition": 7}, "INVALID_ARGUMENT", "condition"),
        ("scan_keys", {"pattern": b"*" * 1_025}, "LIMIT_EXCEEDED", "pattern"),
        ("scan_keys", {"page_size": 10_001}, "LIMIT_EXCEEDED", "page_size"),
        ("scan_keys", {"type": 99}, "INVALID_ARGUMENT", "type"),
        ("scan_keys", {"page_token": "x"}, "INVALID_PAGE_TOKEN", "page_token"),
        ("add_integer", {"key": b"a", "delta": 1, "minimum": 2, "maximum": 1}, "INVALID_ARGUMENT", "minimum"),
        ("add_integer", {"key": b"a", "bound_policy": 5}, "INVALID_ARGUMENT", "bound_policy"),
        ("add_float", {"key": b"a", "delta": math.nan}, "INVALID_ARGUMENT", "delta"),
        ("add_float", {"key": b"a", "delta": math.inf}, "INVALID_ARGUMENT", "delta"),
        ("add_float", {"key": b"a", "maximum": -math.inf}, "INVALID_ARGUMENT", "maximum"),
        (
            "add_float",
            {"key": b"a", "expiry_if_absent": keys_pb2.Expiry(keep=True)},
            "INVALID_ARGUMENT",
            "expiry_if_absent.keep",
        ),
        ("get_string", {"key": b"a", "read": strings_pb2.GetStringRequest(read={}).read}, "INVALID_ARGUMENT", "read"),
    ],
)
def test_bad_input_is_refused_before_anything_is_logged(
    kind: str, fields: dict[str, Any], reason: str, field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        operations.check(operation(kind, **fields))
    assert (refused.value.reason, refused.value.metadata["field"]) == (reason, field)


def test_an_operation_of_no_kind_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="kind"):
        operations.check(pipeline_pb2.Operation())


def test_slots_are_named() -> None:
    with pytest.raises(VecmemError) as refused:
        operations.check(operation("delete_keys", keys=[b"a", b"b", b"{a}x"]))
    assert refused.value.metadata["slots"] == ", ".join(map(str, sorted([slot_of(b"a"), slot_of(b"b")])))


def test_a_value_that_would_be_too_long_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STRING_BYTES_MAX", 10)
    keyspace = Keyspace()
    do(keyspace, "set_string", key=b"k", value=b"12345678")
    assert refusal(keyspace, "append_string", key=b"k", value=b"9ab") == ("LIMIT_EXCEEDED", "value")
    with pytest.raises(LimitExceededError):
        operations.check(operation("set_string", key=b"k", value=b"12345678901"))


# -- counters --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [b"", b"-", b"+1", b"01", b"-0", b" 1", b"1 ", b"1_0", b"1.0", b"x", "\u0661".encode(), b"9223372036854775808"],
)
def test_what_spells_no_integer_is_no_counter(text: bytes) -> None:
    keyspace = Keyspace()
    do(keyspace, "set_string", key=b"k", value=text)
    assert refusal(keyspace, "add_integer", key=b"k", delta=1) == ("NOT_A_NUMBER", "key")


@pytest.mark.parametrize("text", [b"", b"nan", b"inf", b"-inf", b"1e999", b"1_0.0", b" 1.0", b"0x1p3", b"1" * 500])
def test_what_spells_no_finite_double_is_no_counter(text: bytes) -> None:
    keyspace = Keyspace()
    do(keyspace, "set_string", key=b"k", value=text)
    assert refusal(keyspace, "add_float", key=b"k", delta=1.0) == ("NOT_A_NUMBER", "key")


def test_overflow_changes_nothing() -> None:
    keyspace = Keyspace()
    do(keyspace, "set_string", key=b"k", value=b"%d" % limits.INT64_MAX)
    assert refusal(keyspace, "add_integer", key=b"k", delta=1) == ("OVERFLOW", "delta")
    do(keyspace, "set_string", key=b"k", value=b"1.7e308")
    assert refusal(keyspace, "add_float", key=b"k", delta=1.7e308) == ("OVERFLOW", "delta")


def test_bounds_refuse_or_clamp() -> None:
    keyspace = Keyspace()
    assert do(keyspace, "add_integer", key=b"k", delta=4, maximum=5).value == 4
    refused = do(keyspace, "add_integer", key=b"k", delta=2, maximum=5)
    assert (refused.value, refused.changed) == (4, False)
    clamped = do(keyspace, "add_integer", key=b"k", delta=2, maximum=5, bound_policy=2)
    assert (clamped.value, clamped.changed) == (5, True)
    low = do(keyspace, "add_integer", key=b"k", delta=limits.INT64_MIN, minimum=0, bound_policy=2)
    assert low.value == 0
    assert do(keyspace, "add_float", key=b"f", delta=2.5, maximum=2.0, bound_policy=2).value == 2.0
    fresh = do(keyspace, "add_integer", key=b"none", delta=-1, minimum=0)
    assert (fresh.value, fresh.changed, b"none" in keyspace.values) == (0, False, False)


def test_only_a_new_counter_takes_the_expiry() -> None:
    keyspace = Keyspace()
    for _ in range(3):
        do(keyspace, "add_integer", key=b"k", delta=1, expiry_if_absent=ttl(100))
    assert keyspace.expiries == {b"k": NOW + 100}
    assert do(keyspace, "add_integer", key=b"k", delta=1, expiry_if_absent=ttl(100), now=NOW + 100).value == 1
    assert keyspace.expiries == {b"k": NOW + 200}


@given(st.integers(limits.INT64_MIN, limits.INT64_MAX))
def test_integers_are_read_as_they_are_spelt(value: int) -> None:
    assert integer_of(b"%d" % value) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_doubles_are_read_as_they_are_spelt(value: float) -> None:
    assert float_of(float_text(value)) == value


# -- keys ------------------------------------------------------------------------------------------------------------------


def test_a_walk_returns_each_key_once_whatever_is_written_meanwhile() -> None:
    keyspace = Keyspace()
    stay = {b"k%03d" % number for number in range(0, 300, 3)}
    for key in stay:
        do(keyspace, "set_string", key=key, value=b"")
    seen: list[bytes] = []
    token = ""
    for round_ in range(1_000):
        page = do(keyspace, "scan_keys", pattern=b"k*", page_size=7, page_token=token)
        seen += page.keys
        token = page.next_page_token
        if not token:
            break
        do(keyspace, "set_string", key=b"k%03d" % (round_ % 300), value=b"new")
        do(keyspace, "delete_keys", keys=[b"k%03d" % (round_ * 7 % 300 // 3 * 3 + 1)])
    assert len(seen) == len(set(seen))
    assert stay <= set(seen)
    with pytest.raises(InvalidPageTokenError):
        operations.check(operation("scan_keys", pattern=b"j*", page_token=page_token_of(keyspace)))


def page_token_of(keyspace: Keyspace) -> str:
    token: str = do(keyspace, "scan_keys", pattern=b"k*", page_size=1).next_page_token
    return token


def test_a_page_that_looks_at_many_keys_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vecmem.store.keyspace.keys.SCAN_KEYS_MAX", 10)
    keyspace = Keyspace()
    for number in range(35):
        do(keyspace, "set_string", key=b"%02d" % number, value=b"")
    page = do(keyspace, "scan_keys", pattern=b"*4")
    assert (list(page.keys), bool(page.next_page_token)) == ([b"04"], True)
    assert do(keyspace, "scan_keys", pattern=b"3*").keys == [b"30", b"31", b"32", b"33", b"34"]


@pytest.mark.parametrize(
    ("pattern", "prefix"),
    [(b"ab*", b"ab"), (b"*", b""), (b"a\\*", b"a"), (b"a[b]", b"a"), (b"abc", b"abc"), (b"a?", b"a")],
)
def test_the_literal_prefix(pattern: bytes, prefix: bytes) -> None:
    assert literal_prefix(pattern) == prefix


def test_a_pattern_takes_no_exponential_time() -> None:
    assert not compile_glob(b"*a" * 300 + b"b").fullmatch(b"a" * 1_024)


def test_a_key_of_the_last_bytes_is_found_by_its_prefix() -> None:
    keyspace = Keyspace()
    for key in (b"\xff", b"\xff\xff", b"\xfe\xff", b"\xfe"):
        do(keyspace, "set_string", key=key, value=b"")
    assert list(do(keyspace, "scan_keys", pattern=b"\xff*").keys) == [b"\xff", b"\xff\xff"]
    assert list(do(keyspace, "scan_keys", pattern=b"\xfe\xff*").keys) == [b"\xfe\xff"]


def test_rename_moves_value_and_expiry() -> None:
    keyspace = Keyspace()
    do(keyspace, "set_string", key=b"{k}1", value=b"1", expiry=ttl(100))
    do(keyspace, "set_string", key=b"{k}2", value=b"2", expiry=ttl(500))
    assert not do(keyspace, "rename_key", key=b"{k}1", new_key=b"{k}2", only_if_absent=True).renamed
    assert do(keyspace, "rename_key", key=b"{k}1", new_key=b"{k}2").renamed
    assert do(keyspace, "get_string", key=b"{k}2").value == b"1"
    assert keyspace.expiries == {b"{k}2": NOW + 100}
    assert refusal(keyspace, "rename_key", key=b"{k}1", new_key=b"{k}2") == ("KEY_NOT_FOUND", "key")


# -- what a small request must not cost --------------------------------------------------------------------------------------


def test_the_writes_of_one_record_return_so_much_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is refused for that is left as it was."""
    keyspace = Keyspace()
    do(keyspace, "set_string", key=b"k", value=b"x" * 100)
    do(keyspace, "push_list_items", key=b"l", end=2, items=[b"y" * 100])
    do(keyspace, "add_set_members", key=b"s", members=[b"z"])
    do(keyspace, "add_sorted_set_members", key=b"z", members=[sorted_sets_pb2.ScoredMember(member=b"z", score=1)])
    for kind, fields in (
        ("set_string", {"key": b"k", "value": b"new", "return_previous": True}),
        ("take_string", {"key": b"k"}),
        ("pop_list_items", {"key": b"l", "end": 1}),
        ("move_list_item", {"key": b"l", "destination": b"l", "end": 1, "destination_end": 2}),
        ("pop_set_members", {"key": b"s"}),
        ("pop_sorted_set_members", {"key": b"z", "end": 1}),
    ):
        before = contents(keyspace)
        outcome = pipeline_pb2.OperationResult()
        operations.run(keyspace, operation(kind, **fields), outcome, Moment(NOW, result_bytes_left=50))
        assert outcome.error.reason == "LIMIT_EXCEEDED", kind
        assert contents(keyspace) == before, kind
    moment = Moment(NOW, result_bytes_left=250)
    for enough in (True, True, False):
        outcome = pipeline_pb2.OperationResult()
        fields = {"key": b"k", "value": b"x" * 100, "return_previous": True}
        operations.run(keyspace, operation("set_string", **fields), outcome, moment)
        assert outcome.HasField("error") != enough


def test_a_page_is_bounded_by_the_work_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vecmem.store.keyspace.keys.SCAN_STEPS_MAX", 1_000)
    keyspace = Keyspace()
    for number in range(20):
        do(keyspace, "set_string", key=b"%02d" % number + b"x" * 48, value=b"")
    page = do(keyspace, "scan_keys", pattern=b"*" + b"?" * 9)
    assert len(page.keys) == 3
    assert page.next_page_token


def test_keys_whose_time_is_moved_on_hold_up_no_others() -> None:
    keyspace = Keyspace()
    for number in range(100):
        do(keyspace, "set_string", key=b"moved%d" % number, value=b"", expiry=ttl(10))
        do(keyspace, "expire_key", key=b"moved%d" % number, expiry=ttl(1_000))
    do(keyspace, "set_string", key=b"due", value=b"", expiry=ttl(20))
    found: list[bytes] = []
    for _ in range(100):
        keys, more = keyspace.expired_keys(NOW + 30, 5)
        found += keys
        if not more:
            break
    assert found == [b"due"]
    assert keyspace.expired_keys(NOW + 1_000, 1_000)[0].count(b"moved7") == 1
