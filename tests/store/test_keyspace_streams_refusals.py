"""Streams: what is refused, with its reason and field, and that nothing has changed then."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest

from tests.store.stream_support import FIELDS, filled, sid
from tests.support.keyspace import check_refusal, do, outcome_of, refusal
from vecmem import limits
from vecmem.store.keyspace.keyspace import Keyspace

LONG = bytes(1_025)
NAMED = {"key": b"s", "group": b"g", "consumer": b"c"}
ONE = {"ids": [sid(1)]}


@pytest.mark.parametrize(
    ("kind", "fields", "reason", "field"),
    [
        ("append_stream_entry", {"fields": FIELDS}, "INVALID_KEY", "key"),
        ("append_stream_entry", {"key": b"s"}, "INVALID_ARGUMENT", "fields"),
        ("append_stream_entry", {"key": b"s", "fields": FIELDS * 1_025}, "LIMIT_EXCEEDED", "fields"),
        ("append_stream_entry", {"key": b"s", "fields": [{"field": LONG}]}, "LIMIT_EXCEEDED", "fields[0].field"),
        (
            "append_stream_entry",
            {"key": b"s", "fields": [{"field": b"f", "value": bytes(limits.STREAM_ENTRY_BYTES_MAX)}]},
            "LIMIT_EXCEEDED",
            "fields",
        ),
        ("append_stream_entry", {"key": b"s", "fields": FIELDS, "explicit_id": sid(0)}, "INVALID_ARGUMENT", "explicit_id"),
        ("append_stream_entry", {"key": b"s", "fields": FIELDS, "trim": {}}, "INVALID_ARGUMENT", "trim"),
        ("trim_stream", {"key": b"s"}, "INVALID_ARGUMENT", "trim"),
        ("get_stream_range", {"key": b"s", "limit": 10_001}, "LIMIT_EXCEEDED", "limit"),
        ("get_stream_range", {"key": b"s", "range": {"minimum": {}}}, "INVALID_ARGUMENT", "range.minimum.id"),
        ("delete_stream_entries", {"key": b"s"}, "INVALID_ARGUMENT", "ids"),
        ("delete_stream_entries", {"key": b"s", "ids": [sid(1)] * 1_025}, "LIMIT_EXCEEDED", "ids"),
        ("read_streams", {}, "INVALID_ARGUMENT", "positions"),
        ("read_streams", {"positions": [{"key": b"s"}] * 1_025}, "LIMIT_EXCEEDED", "positions"),
        ("read_streams", {"positions": [{"key": b"s"}, {}]}, "INVALID_KEY", "positions[1].key"),
        ("read_streams", {"positions": [{"key": b"s"}, {"key": b"t"}]}, "CROSS_SLOT", "positions"),
        ("read_streams", {"positions": [{"key": b"s"}], "count": 10_001}, "LIMIT_EXCEEDED", "count"),
        ("create_stream_group", {"key": b"s"}, "INVALID_ARGUMENT", "group"),
        ("create_stream_group", {"key": b"s", "group": LONG}, "LIMIT_EXCEEDED", "group"),
        ("set_stream_group_position", {"group": b"g"}, "INVALID_KEY", "key"),
        ("delete_stream_group", {"key": b"s"}, "INVALID_ARGUMENT", "group"),
        ("create_stream_consumer", {"key": b"s", "group": b"g"}, "INVALID_ARGUMENT", "consumer"),
        ("delete_stream_consumer", {"key": b"s", "group": b"g", "consumer": LONG}, "LIMIT_EXCEEDED", "consumer"),
        ("read_stream_group", {"key": b"s", "group": b"g"}, "INVALID_ARGUMENT", "consumer"),
        ("read_stream_group", {**NAMED, "count": 10_001}, "LIMIT_EXCEEDED", "count"),
        ("acknowledge_stream_entries", {"key": b"s", "group": b"g"}, "INVALID_ARGUMENT", "ids"),
        ("claim_stream_entries", {**NAMED}, "INVALID_ARGUMENT", "ids"),
        ("claim_stream_entries", {**NAMED, **ONE, "min_idle_ms": -1}, "INVALID_ARGUMENT", "min_idle_ms"),
        ("claim_stream_entries", {**NAMED, **ONE, "idle_ms": 2**53 + 1}, "INVALID_ARGUMENT", "idle_ms"),
        ("claim_stream_entries", {**NAMED, **ONE, "delivered_at_unix_ms": -1}, "INVALID_ARGUMENT", "delivered_at_unix_ms"),
        ("auto_claim_stream_entries", {**NAMED, "min_idle_ms": -1}, "INVALID_ARGUMENT", "min_idle_ms"),
        ("auto_claim_stream_entries", {**NAMED, "count": 10_001}, "LIMIT_EXCEEDED", "count"),
        ("list_stream_pending", {"key": b"s", "group": b"g", "consumer": LONG}, "LIMIT_EXCEEDED", "consumer"),
        ("list_stream_pending", {**NAMED, "range": {"maximum": {}}}, "INVALID_ARGUMENT", "range.maximum.id"),
        ("list_stream_pending", {**NAMED, "min_idle_ms": -1}, "INVALID_ARGUMENT", "min_idle_ms"),
        ("list_stream_pending", {**NAMED, "count": 10_001}, "LIMIT_EXCEEDED", "count"),
        ("list_stream_groups", {"key": b"s", "page_size": 10_001}, "LIMIT_EXCEEDED", "page_size"),
        ("list_stream_groups", {"key": b"s", "page_token": "no"}, "INVALID_PAGE_TOKEN", "page_token"),
        ("list_stream_consumers", {"key": b"s", "group": b"g", "page_size": 10_001}, "LIMIT_EXCEEDED", "page_size"),
        ("list_stream_consumers", {"key": b"s", "group": b"g", "page_token": "no"}, "INVALID_PAGE_TOKEN", "page_token"),
        ("describe_stream_group", {"key": b"s"}, "INVALID_ARGUMENT", "group"),
        ("describe_stream", {}, "INVALID_KEY", "key"),
    ],
)  # fmt: skip
def test_what_is_wrong_whatever_the_state_is_refused(
    kind: str, fields: dict[str, Any], reason: str, field: str
) -> None:
    assert check_refusal(kind, **fields) == (reason, field)


EVERY = [
    ("append_stream_entry", {"fields": FIELDS}),
    ("get_stream_range", {}),
    ("describe_stream", {}),
    ("delete_stream_entries", ONE),
    ("trim_stream", {"trim": {"max_length": 0}}),
    ("create_stream_group", {"group": b"g", "create_stream": True}),
    ("list_stream_groups", {}),
    ("delete_stream_group", {"group": b"g"}),
    ("acknowledge_stream_entries", {"group": b"g", **ONE}),
]
WITH_GROUP: list[tuple[str, dict[str, Any]]] = [
    ("set_stream_group_position", {}),
    ("create_stream_consumer", {"consumer": b"c"}),
    ("delete_stream_consumer", {"consumer": b"c"}),
    ("read_stream_group", {"consumer": b"c"}),
    ("claim_stream_entries", {"consumer": b"c", **ONE}),
    ("auto_claim_stream_entries", {"consumer": b"c"}),
    ("list_stream_pending", {}),
    ("describe_stream_group", {}),
    ("list_stream_consumers", {}),
]


@pytest.mark.parametrize(("kind", "fields"), [*EVERY, *((kind, {"group": b"g", **rest}) for kind, rest in WITH_GROUP)])
def test_another_type_is_refused(kind: str, fields: dict[str, Any]) -> None:
    keyspace = Keyspace()
    do(keyspace, "set_string", key=b"s", value=b"v")
    assert refusal(keyspace, kind, key=b"s", **fields) == ("WRONG_TYPE", "key")


def test_another_type_among_several_is_named() -> None:
    keyspace = filled(1)
    do(keyspace, "set_string", key=b"{s}2", value=b"v")
    positions = [{"key": b"s"}, {"key": b"{s}2"}]
    assert refusal(keyspace, "read_streams", positions=positions) == ("WRONG_TYPE", "positions[1].key")


@pytest.mark.parametrize(("kind", "fields"), WITH_GROUP)
@pytest.mark.parametrize("key", [b"s", b"none"])
def test_a_group_that_is_not_there_is_refused(kind: str, fields: dict[str, Any], key: bytes) -> None:
    keyspace = filled(1, group=b"another")
    assert refusal(keyspace, kind, key=key, group=b"g", **fields) == ("STREAM_GROUP_NOT_FOUND", "group")


def test_groups_are_made_once_and_where_there_is_a_stream() -> None:
    keyspace = filled(1)
    assert refusal(keyspace, "create_stream_group", key=b"s", group=b"g") == ("STREAM_GROUP_EXISTS", "group")
    assert refusal(keyspace, "create_stream_group", key=b"none", group=b"g") == ("KEY_NOT_FOUND", "key")


def test_what_the_writes_of_one_record_return_is_bounded() -> None:
    keyspace = filled(2)
    outcome = outcome_of(keyspace, "read_stream_group", key=b"s", group=b"g", consumer=b"c")
    assert not outcome.HasField("error")
    with patch.object(limits, "STREAM_ENTRY_REPLY_BYTES", limits.RESULT_BYTES_MAX + 1):
        fields: dict[str, Any] = {"key": b"s", "group": b"g", "consumer": b"c"}
        assert refusal(keyspace, "read_stream_group", pending_after=sid(0), **fields) == ("LIMIT_EXCEEDED", "count")
        assert refusal(keyspace, "auto_claim_stream_entries", **fields) == ("LIMIT_EXCEEDED", "count")
        assert refusal(keyspace, "claim_stream_entries", **fields, **ONE) == ("LIMIT_EXCEEDED", "ids")
