"""Streams: what each operation does beyond what redis-server shows."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest

from tests.store.stream_support import FIELDS, SEQUENCE_MAX, append, filled, parts, pending, read, sid, times
from tests.support.keyspace import NOW, check_refusal, contents, do, outcome_of, refusal, reloaded
from vecmem import limits
from vecmem.store.keyspace import stream_group_listings
from vecmem.store.keyspace.keyspace import Keyspace

# -- ids --------------------------------------------------------------------------------------------------------------------


def test_ids_are_made_of_the_time_and_only_grow() -> None:
    keyspace = Keyspace()
    assert append(keyspace, now=50) == (50, 0)
    assert append(keyspace, now=50) == (50, 1)
    assert append(keyspace, now=51) == (51, 0)
    assert append(keyspace, explicit_id=sid(90, 7), now=52) == (90, 7)
    assert append(keyspace, now=53) == (90, 8), "time goes on from the last id"
    assert append(keyspace, id_time_unix_ms=90, now=53) == (90, 9)
    assert append(keyspace, id_time_unix_ms=91, now=53) == (91, 0)
    assert append(keyspace, explicit_id=sid(91, SEQUENCE_MAX)) == (91, SEQUENCE_MAX)
    assert append(keyspace, now=91) == (92, 0), "a time whose sequences are used up is followed by the next"
    assert append(keyspace, id_time_unix_ms=0, key=b"other") == (0, 1)


@pytest.mark.parametrize(
    ("new", "field"),
    [
        ({"explicit_id": sid(5, 4)}, "explicit_id"),
        ({"explicit_id": sid(5, 3)}, "explicit_id"),
        ({"explicit_id": sid(4, SEQUENCE_MAX)}, "explicit_id"),
        ({"id_time_unix_ms": 4}, "id_time_unix_ms"),
    ],
)
def test_an_id_that_is_not_greater_is_refused(new: dict[str, Any], field: str) -> None:
    keyspace = Keyspace()
    append(keyspace, explicit_id=sid(5, 4))
    assert refusal(keyspace, "append_stream_entry", key=b"s", fields=FIELDS, **new) == ("STREAM_ID_TOO_SMALL", field)
    error = outcome_of(keyspace, "append_stream_entry", key=b"s", fields=FIELDS, **new).error
    assert error.metadata["last_id"] == "5-4"
    assert "5-4" in error.message


def test_when_all_ids_are_used_up_nothing_can_be_appended() -> None:
    keyspace = Keyspace()
    append(keyspace, explicit_id=sid(SEQUENCE_MAX, SEQUENCE_MAX))
    for new in ({}, {"id_time_unix_ms": SEQUENCE_MAX}):
        found = refusal(keyspace, "append_stream_entry", key=b"s", fields=FIELDS, **new)
        assert found[0] == "STREAM_ID_TOO_SMALL"
    do(keyspace, "create_stream_group", key=b"s", group=b"g")
    assert times(read(keyspace)) == [SEQUENCE_MAX]
    assert times(read(keyspace)) == []


# -- entries ----------------------------------------------------------------------------------------------------------------


def test_a_stream_without_entries_stays_and_counts_none() -> None:
    keyspace = filled(3)
    found = do(keyspace, "trim_stream", key=b"s", trim={"max_length": 0})
    assert (found.trimmed_count, found.entry_count) == (3, 0)
    described = do(keyspace, "describe_stream", key=b"s")
    assert (described.exists, described.entry_count, described.appended_count) == (True, 0, 3)
    assert parts(described.last_id) == (3, 0)
    assert not described.HasField("first_entry_id")
    assert do(keyspace, "describe_key", key=b"s").size == 0
    assert do(keyspace, "check_keys", keys=[b"s"]).existing == [True]
    assert not do(keyspace, "describe_stream", key=b"none").exists
    reloaded(keyspace)


def test_nothing_is_made_where_there_has_to_be_a_stream() -> None:
    keyspace = Keyspace()
    response = do(keyspace, "append_stream_entry", key=b"s", fields=FIELDS, only_if_exists=True)
    assert not response.HasField("id")
    assert keyspace.values == {}


def test_changes_that_change_nothing_leave_the_version() -> None:
    keyspace = filled(3)
    before = contents(keyspace)
    do(keyspace, "delete_stream_entries", key=b"s", ids=[sid(9)])
    do(keyspace, "trim_stream", key=b"s", trim={"max_length": 3})
    do(keyspace, "trim_stream", key=b"s", trim={"min_id": sid(1)})
    do(keyspace, "acknowledge_stream_entries", key=b"s", group=b"g", ids=[sid(1)])
    do(keyspace, "delete_stream_group", key=b"s", group=b"none")
    do(keyspace, "delete_stream_consumer", key=b"s", group=b"g", consumer=b"none")
    do(keyspace, "claim_stream_entries", key=b"s", group=b"g", consumer=b"ada", ids=[sid(1)])
    do(keyspace, "auto_claim_stream_entries", key=b"s", group=b"g", consumer=b"ada")
    assert contents(keyspace) == before
    do(keyspace, "set_stream_group_position", key=b"s", group=b"g", at_end=True)
    before = contents(keyspace)
    assert times(read(keyspace, b"somebody")) == []
    assert contents(keyspace) == before, (
        "who finds nothing new leaves no trace, or those who wait would wake one another"
    )


def test_bounds_may_leave_their_ids_out() -> None:
    keyspace = filled(5)
    read(keyspace)
    for low_out, high_out, expected in ((False, False, [2, 3, 4]), (True, False, [3, 4]), (False, True, [2, 3])):
        bounds = {"minimum": {"id": sid(2), "exclusive": low_out}, "maximum": {"id": sid(4), "exclusive": high_out}}
        assert times(do(keyspace, "get_stream_range", key=b"s", range=bounds)) == expected
        assert times(do(keyspace, "get_stream_range", key=b"s", range=bounds, reverse=True)) == expected[::-1]
        assert [row[0] for row in pending(keyspace, range=bounds)] == expected


def test_the_greatest_id_that_was_deleted_is_remembered() -> None:
    keyspace = filled(5)
    do(keyspace, "delete_stream_entries", key=b"s", ids=[sid(4), sid(2)])
    do(keyspace, "trim_stream", key=b"s", trim={"max_length": 0})
    assert parts(do(keyspace, "describe_stream", key=b"s").max_deleted_id) == (4, 0), "trimming does not count"


def test_bounds_beyond_all_ids_select_nothing() -> None:
    keyspace = filled(2)
    append(keyspace, explicit_id=sid(SEQUENCE_MAX, SEQUENCE_MAX))
    for bounds in ({"maximum": {"id": sid(0), "exclusive": True}},
                   {"minimum": {"id": sid(SEQUENCE_MAX, SEQUENCE_MAX), "exclusive": True}},
                   {"minimum": {"id": sid(2)}, "maximum": {"id": sid(1)}}):  # fmt: skip
        for reverse in (False, True):
            assert times(do(keyspace, "get_stream_range", key=b"s", range=bounds, reverse=reverse)) == []


def test_large_entries_come_in_several_replies() -> None:
    keyspace = Keyspace()
    large = [{"field": b"f", "value": bytes(15 * 1024 * 1024)}]
    for time in (1, 2, 3):
        append(keyspace, fields=large, explicit_id=sid(time))
    append(keyspace, key=b"{s}", explicit_id=sid(7))
    do(keyspace, "create_stream_group", key=b"s", group=b"g")
    page = do(keyspace, "get_stream_range", key=b"s")
    assert (times(page), page.more) == ([1, 2], True)
    page = do(keyspace, "get_stream_range", key=b"s", range={"minimum": {"id": sid(2), "exclusive": True}})
    assert (times(page), page.more) == ([3], False)
    page = do(keyspace, "get_stream_range", key=b"s", reverse=True)
    assert (times(page), page.more) == ([3, 2], True)
    page = read(keyspace)
    assert (times(page), page.more) == ([1, 2], True)
    page = read(keyspace, pending_after=sid(0))
    assert (times(page), page.more) == ([1, 2], False)
    page = do(keyspace, "auto_claim_stream_entries", key=b"s", group=b"g", consumer=b"bob")
    assert (times(page), page.HasField("next_start")) == ([1, 2], False)
    assert times(read(keyspace)) == [3]
    page = do(keyspace, "auto_claim_stream_entries", key=b"s", group=b"g", consumer=b"bob")
    assert (times(page), parts(page.next_start)) == ([1, 2], (3, 0))
    page = do(keyspace, "auto_claim_stream_entries", key=b"s", group=b"g", consumer=b"bob", only_ids=True)
    assert (times(page), page.HasField("next_start")) == ([1, 2, 3], False)
    ids = [sid(1), sid(2), sid(3)]
    fields: dict[str, Any] = {"key": b"s", "group": b"g", "consumer": b"bob", "ids": ids}
    assert refusal(keyspace, "claim_stream_entries", **fields) == ("LIMIT_EXCEEDED", "ids")


def test_one_large_entry_always_fits() -> None:
    keyspace = Keyspace()
    each = limits.STREAM_ENTRY_BYTES_MAX // limits.MEMBERS_PER_REQUEST_MAX
    many = [{"field": b"", "value": bytes(each)}] * limits.MEMBERS_PER_REQUEST_MAX
    append(keyspace, fields=many, explicit_id=sid(1))
    append(keyspace, explicit_id=sid(2))
    do(keyspace, "create_stream_group", key=b"s", group=b"g")
    page = read(keyspace)
    assert (times(page), page.more) == ([1], True)
    assert (times(read(keyspace)), times(read(keyspace))) == ([2], [])


def test_many_streams_share_the_room_of_one_reply() -> None:
    keyspace = Keyspace()
    for key in (b"{s}1", b"{s}2"):
        for time in range(1, 5):
            append(keyspace, key=key, explicit_id=sid(time))
    positions = [{"key": b"{s}1"}, {"key": b"{s}none", "after": sid(3)}, {"key": b"{s}2", "after": sid(2)}]
    first, none, second = do(keyspace, "read_streams", positions=positions, count=2).streams
    assert (times(first), first.more, parts(first.after)) == ([1, 2], True, (2, 0))
    assert (times(none), none.more, parts(none.after)) == ([], False, (3, 0))
    assert (times(second), second.more, parts(second.after)) == ([3, 4], False, (4, 0))
    with patch.object(limits, "STREAM_ENTRIES_PER_REPLY_MAX", 5):
        first, _, second = do(keyspace, "read_streams", positions=positions[:1] * 2 + [{"key": b"{s}2"}]).streams
        assert (times(first), first.more, times(second), second.more) == ([1, 2, 3, 4], False, [], True)


# -- groups -----------------------------------------------------------------------------------------------------------------


def test_each_entry_goes_to_one_consumer_until_it_is_acknowledged() -> None:
    keyspace = filled(5)
    assert times(read(keyspace, b"ada", count=2)) == [1, 2]
    found = read(keyspace, b"bob", count=2, now=NOW + 5)
    assert (times(found), found.more) == ([3, 4], True)
    assert [entry.delivery_count for entry in found.entries] == [1, 1]
    assert pending(keyspace, now=NOW + 10) == [
        (1, b"ada", 10, 1),
        (2, b"ada", 10, 1),
        (3, b"bob", 5, 1),
        (4, b"bob", 5, 1),
    ]
    assert pending(keyspace, now=NOW + 10, min_idle_ms=6) == [(1, b"ada", 10, 1), (2, b"ada", 10, 1)]
    response = do(keyspace, "acknowledge_stream_entries", key=b"s", group=b"g", ids=[sid(2), sid(2), sid(5), sid(3)])
    assert response.acknowledged == [True, False, False, True]
    assert [row[0] for row in pending(keyspace)] == [1, 4]
    group = do(keyspace, "describe_stream_group", key=b"s", group=b"g").group
    assert (group.lag, group.consumer_count, group.pending_count) == (1, 2, 2)
    assert (parts(group.first_pending_id), parts(group.last_pending_id)) == ((1, 0), (4, 0))
    reloaded(keyspace)


def test_what_was_removed_while_pending_comes_without_fields_and_can_be_acknowledged() -> None:
    keyspace = filled(3)
    read(keyspace)
    do(keyspace, "delete_stream_entries", key=b"s", ids=[sid(2)])
    found = read(keyspace, pending_after=sid(0), now=NOW + 1)
    assert [
        (times(found)[place], entry.deleted, entry.delivery_count) for place, entry in enumerate(found.entries)
    ] == [
        (1, False, 2),
        (2, True, 1),
        (3, False, 2),
    ]
    assert not found.entries[1].fields
    assert do(keyspace, "acknowledge_stream_entries", key=b"s", group=b"g", ids=[sid(2)]).acknowledged == [True]
    do(keyspace, "trim_stream", key=b"s", trim={"min_id": sid(3)})
    found = do(keyspace, "auto_claim_stream_entries", key=b"s", group=b"g", consumer=b"bob")
    assert (list(map(parts, found.deleted_ids)), times(found)) == ([(1, 0)], [3])
    do(keyspace, "trim_stream", key=b"s", trim={"max_length": 0})
    found = do(keyspace, "claim_stream_entries", key=b"s", group=b"g", consumer=b"cem", ids=[sid(3), sid(3), sid(1)])
    assert (list(map(parts, found.deleted_ids)), times(found)) == ([(3, 0)], [])
    assert pending(keyspace) == []


def test_claims_go_by_how_long_nothing_was_heard() -> None:
    keyspace = filled(4)
    read(keyspace, count=2)
    read(keyspace, count=2, now=NOW + 100)
    fields: dict[str, Any] = {"key": b"s", "group": b"g", "consumer": b"bob", "min_idle_ms": 150}
    found = do(keyspace, "auto_claim_stream_entries", now=NOW + 150, count=1, **fields)
    assert (times(found), parts(found.next_start)) == ([1], (2, 0))
    found = do(keyspace, "auto_claim_stream_entries", now=NOW + 150, start=found.next_start, **fields)
    assert (times(found), found.HasField("next_start")) == ([2], False)
    assert [entry.delivery_count for entry in found.entries] == [2]
    ids = [sid(time) for time in (1, 2, 3, 4)]
    assert times(do(keyspace, "claim_stream_entries", now=NOW + 249, ids=ids, **fields)) == []
    assert times(do(keyspace, "claim_stream_entries", now=NOW + 250, ids=ids, **fields)) == [3, 4]
    assert [row[1:] for row in pending(keyspace, now=NOW + 250)] == [(b"bob", 100, 2)] * 2 + [(b"bob", 0, 2)] * 2
    found = do(keyspace, "claim_stream_entries", now=NOW, ids=ids[:1], delivered_at_unix_ms=NOW + 900, key=b"s",
               group=b"g", consumer=b"ada", delivery_count=SEQUENCE_MAX)  # fmt: skip
    assert pending(keyspace)[0] == (1, b"ada", 0, SEQUENCE_MAX)
    assert read(keyspace, pending_after=sid(0)).entries[0].delivery_count == SEQUENCE_MAX, "more is not counted"


def test_what_counts_as_a_delivery() -> None:
    keyspace = filled(4)
    assert [entry.delivery_count for entry in read(keyspace, count=2).entries] == [1, 1]
    found = read(keyspace, count=1, no_acknowledge=True)
    assert (times(found), found.entries[0].delivery_count) == ([3], 0)
    assert read(keyspace, pending_after=sid(1), no_acknowledge=True).entries[0].delivery_count == 2
    assert times(read(keyspace, count=1)) == [4], "asking again leaves the position of the group"
    fields: dict[str, Any] = {"key": b"s", "group": b"g", "consumer": b"bob"}
    ids = [sid(1), sid(3)]
    found = do(keyspace, "claim_stream_entries", ids=ids, only_ids=True, **fields)
    assert [(parts(entry.id), len(entry.fields), entry.delivery_count) for entry in found.entries] == [((1, 0), 0, 1)]
    found = do(keyspace, "claim_stream_entries", ids=[sid(3)], only_ids=True, force=True, **fields)
    assert [entry.delivery_count for entry in found.entries] == [1]
    do(keyspace, "acknowledge_stream_entries", key=b"s", group=b"g", ids=ids)
    found = do(keyspace, "claim_stream_entries", ids=[*ids, sid(3)], force=True, **fields)
    assert [entry.delivery_count for entry in found.entries] == [2, 2, 3], (
        "as if delivered once before, as in redis-server"
    )
    found = do(keyspace, "claim_stream_entries", ids=ids, delivered_at_unix_ms=NOW + 5, delivery_count=0, **fields)
    assert [entry.delivery_count for entry in found.entries] == [0, 0]
    rows = do(keyspace, "list_stream_pending", key=b"s", group=b"g", consumer=b"bob").entries
    assert [(row.delivered_at_unix_ms, row.delivery_count) for row in rows] == [(NOW, 0)] * 2, "not in time to come"
    reloaded(keyspace)


def test_consumers_are_seen_when_they_get_something_or_ask_for_what_is_pending() -> None:
    keyspace = filled(2)
    read(keyspace, count=1, now=NOW + 1)
    read(keyspace, pending_after=sid(9), now=NOW + 2)
    read(keyspace, b"bob", now=NOW + 3)
    read(keyspace, b"bob", now=NOW + 4)
    fields: dict[str, Any] = {"key": b"s", "group": b"g", "consumer": b"cem"}
    do(keyspace, "create_stream_consumer", now=NOW + 5, **fields)
    do(keyspace, "create_stream_consumer", now=NOW + 6, **fields)
    do(keyspace, "claim_stream_entries", ids=[sid(2)], now=NOW + 7, **fields)
    do(keyspace, "auto_claim_stream_entries", min_idle_ms=10_000, now=NOW + 8, **fields)
    found = do(keyspace, "list_stream_consumers", key=b"s", group=b"g").consumers
    assert [(one.consumer, one.pending_count, one.seen_at_unix_ms, one.active_at_unix_ms) for one in found] == [
        (b"ada", 1, NOW + 2, NOW + 1),
        (b"bob", 0, NOW + 3, NOW + 3),
        (b"cem", 1, NOW + 7, NOW + 7),
    ]
    reloaded(keyspace)


def test_an_automatic_claim_looks_at_ten_times_as_many() -> None:
    keyspace = filled(30)
    read(keyspace, now=NOW + 100)
    fields: dict[str, Any] = {"key": b"s", "group": b"g", "consumer": b"bob", "min_idle_ms": 50, "count": 2}
    found = do(keyspace, "auto_claim_stream_entries", now=NOW + 100, **fields)
    assert (times(found), parts(found.next_start)) == ([], (21, 0))
    assert not do(keyspace, "auto_claim_stream_entries", now=NOW + 100, start=sid(21), **fields).HasField("next_start")


def test_groups_and_consumers_are_listed_by_pages() -> None:
    keyspace = Keyspace()
    names = [b"%d" % number for number in range(1_200)]
    for name in names:
        do(keyspace, "create_stream_group", key=b"s", group=name, create_stream=True)
        do(keyspace, "create_stream_consumer", key=b"s", group=b"0", consumer=name, now=NOW + int(name))
    for kind, field in (("list_stream_groups", "groups"), ("list_stream_consumers", "consumers")):
        found: list[bytes] = []
        token = ""
        more = {"group": b"0"} if field == "consumers" else {}
        while True:
            page = do(keyspace, kind, key=b"s", page_size=500, page_token=token, **more)
            found += [one.consumer if more else one.group for one in getattr(page, field)]
            token = page.next_page_token
            if not token:
                break
        assert found == sorted(names)
    page = do(keyspace, "list_stream_consumers", key=b"s", group=b"0", page_size=1)
    wrong = {"key": b"s", "group": b"1", "page_token": page.next_page_token}
    assert check_refusal("list_stream_consumers", **wrong) == ("INVALID_PAGE_TOKEN", "page_token")
    assert (page.consumers[0].seen_at_unix_ms, page.consumers[0].active_at_unix_ms) == (NOW, 0)
    assert do(keyspace, "list_stream_groups", key=b"none").groups == []
    do(keyspace, "delete_stream_consumer", key=b"s", group=b"0", consumer=b"7")
    do(keyspace, "delete_stream_group", key=b"s", group=b"7")
    consumers = do(keyspace, "list_stream_consumers", key=b"s", group=b"0", page_size=10_000).consumers
    groups = do(keyspace, "list_stream_groups", key=b"s", page_size=10_000).groups
    assert [one.consumer for one in consumers] == [one.group for one in groups] == sorted(set(names) - {b"7"})
    reloaded(keyspace)


def test_a_consumer_that_goes_takes_what_is_pending_with_it() -> None:
    keyspace = filled(3)
    read(keyspace, count=2)
    read(keyspace, b"bob")
    found = do(keyspace, "delete_stream_consumer", key=b"s", group=b"g", consumer=b"ada")
    assert (found.deleted, found.pending_count) == (True, 2)
    assert pending(keyspace) == [(3, b"bob", 0, 1)]
    found = do(keyspace, "delete_stream_group", key=b"s", group=b"g")
    assert (found.deleted, found.pending_count) == (True, 1)
    assert refusal(keyspace, "list_stream_pending", key=b"s", group=b"g") == ("STREAM_GROUP_NOT_FOUND", "group")
    reloaded(keyspace)


def test_a_page_of_what_is_pending_ends_where_looking_takes_long() -> None:
    keyspace = filled(5)
    read(keyspace, count=4)
    read(keyspace, now=NOW - 100)
    with patch.object(stream_group_listings, "PAGE_LOOKS_MAX", 3):
        found = do(keyspace, "list_stream_pending", key=b"s", group=b"g", min_idle_ms=50)
        assert (times(found), parts(found.next_start)) == ([], (4, 0))
        bounds = {"minimum": {"id": found.next_start}}
        found = do(keyspace, "list_stream_pending", key=b"s", group=b"g", min_idle_ms=50, range=bounds)
        assert (times(found), found.HasField("next_start")) == ([5], False)
