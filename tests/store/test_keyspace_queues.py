"""Delayed queues: what each operation does and what it refuses. Its value and its model have modules of their own."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from tests.support.keyspace import NOW, check_refusal, contents, do, refusal, reloaded
from vecmem import limits
from vecmem.store.keyspace import operations, queues
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.operation import Moment
from vecmem.store.keyspace.paging import encode_bytes_token
from vecmem.store.keyspace.queue_value import QueueValue
from vecmem.v1 import keys_pb2, pipeline_pb2
from vecmem.v1 import queues_pb2 as api

READY, DELAYED, IN_FLIGHT = (
    api.QUEUE_MESSAGE_STATE_READY,
    api.QUEUE_MESSAGE_STATE_DELAYED,
    api.QUEUE_MESSAGE_STATE_IN_FLIGHT,
)
BURIED = api.QUEUE_MESSAGE_STATE_DEAD


def put(keyspace: Keyspace, *bodies: bytes, key: bytes = b"q", now: int = NOW, **due: int) -> list[int]:
    messages = [api.NewQueueMessage(body=body, **due) for body in bodies]
    return list(do(keyspace, "enqueue_messages", key=key, messages=messages, now=now).message_ids)


def receive(keyspace: Keyspace, count: int = 1_024, *, now: int = NOW, timeout: int = 100, **fields: Any) -> Any:
    fields = {"key": b"q", "count": count, "visibility_timeout_ms": timeout, **fields}
    return do(keyspace, "receive_messages", now=now, **fields)


def bodies(response: Any) -> list[bytes]:
    return [message.body for message in response.messages]


def receipts(response: Any) -> list[api.MessageReceipt]:
    return [api.MessageReceipt(message_id=one.message_id, receipt=one.receipt) for one in response.messages]


def acknowledge(keyspace: Keyspace, named: list[api.MessageReceipt], *, now: int = NOW) -> list[bool]:
    return list(do(keyspace, "acknowledge_messages", key=b"q", receipts=named, now=now).acknowledged)


def counts(keyspace: Keyspace, *, now: int = NOW) -> tuple[int, int, int, int]:
    """Ready, delayed, in flight, dead."""
    found = do(keyspace, "describe_queue", key=b"q", now=now)
    return found.ready_count, found.delayed_count, found.in_flight_count, found.dead_count


def peek(keyspace: Keyspace, state: int = 0, *, now: int = NOW, page_size: int = 0) -> list[Any]:
    found: list[Any] = []
    token = ""
    while True:
        fields = {"key": b"q", "state": state, "page_size": page_size, "page_token": token}
        page = do(keyspace, "peek_messages", now=now, **fields)
        assert len(page.messages) <= (page_size or 100)
        found += page.messages
        token = page.next_page_token
        if not token:
            return found


# -- what each does --------------------------------------------------------------------------------------------------------


def test_a_message_is_delivered_once_and_gone_when_acknowledged() -> None:
    keyspace = Keyspace()
    ids = put(keyspace, b"a", b"", b"c")
    assert ids == sorted(set(ids))
    assert counts(keyspace) == (3, 0, 0, 0)
    first = receive(keyspace, 2, now=NOW + 5)
    assert bodies(first) == [b"a", b""]
    assert [message.message_id for message in first.messages] == ids[:2]
    [message, other] = first.messages
    assert (message.delivery_count, message.enqueued_at_unix_ms, message.due_at_unix_ms) == (1, NOW, NOW + 105)
    assert other.receipt > message.receipt > 0
    assert counts(keyspace, now=NOW + 5) == (1, 0, 2, 0)
    assert bodies(receive(keyspace, now=NOW + 5)) == [b"c"]
    assert bodies(receive(keyspace, now=NOW + 5)) == []
    assert acknowledge(keyspace, receipts(first), now=NOW + 6) == [True, True]
    assert acknowledge(keyspace, receipts(first), now=NOW + 6) == [False, False]
    assert counts(keyspace, now=NOW + 6) == (0, 0, 1, 0)


def test_a_message_waits_until_it_is_due() -> None:
    keyspace = Keyspace()
    put(keyspace, b"late", delay_ms=50)
    put(keyspace, b"later", at_unix_ms=NOW + 60)
    put(keyspace, b"past", at_unix_ms=1)
    put(keyspace, b"now")
    assert counts(keyspace) == (2, 2, 0, 0)
    found = receive(keyspace)
    assert bodies(found) == [b"past", b"now"], "in order of the times at which they are due"
    assert found.next_due_in_ms == 50
    assert bodies(receive(keyspace, now=NOW + 49)) == []
    assert bodies(receive(keyspace, now=NOW + 50)) == [b"late"]
    assert bodies(receive(keyspace, now=NOW + 60)) == [b"later"]


def test_what_is_not_acknowledged_comes_again_and_the_old_receipt_is_good_until_then() -> None:
    keyspace = Keyspace()
    put(keyspace, b"a", b"b")
    first = receive(keyspace)
    assert bodies(receive(keyspace, now=NOW + 99)) == []
    assert counts(keyspace, now=NOW + 100) == (2, 0, 0, 0)
    [a, b] = receipts(first)
    assert acknowledge(keyspace, [b], now=NOW + 150) == [True], "late, but nobody else has received it"
    again = receive(keyspace, now=NOW + 151)
    assert bodies(again) == [b"a"]
    assert again.messages[0].delivery_count == 2
    assert again.messages[0].receipt > a.receipt
    assert acknowledge(keyspace, [a], now=NOW + 152) == [False]
    assert acknowledge(keyspace, receipts(again), now=NOW + 152) == [True]
    assert keyspace.values == {}


def test_a_delivery_is_extended_and_released() -> None:
    keyspace = Keyspace()
    put(keyspace, b"a", b"b")
    first = receive(keyspace)
    [a, b] = receipts(first)
    extended = do(keyspace, "extend_messages", key=b"q", receipts=[a], visibility_timeout_ms=500, now=NOW + 50)
    assert list(extended.extended) == [True]
    assert bodies(receive(keyspace, now=NOW + 100)) == [b"b"]
    stale = do(keyspace, "extend_messages", key=b"q", receipts=[b, a], visibility_timeout_ms=10, now=NOW + 100)
    assert list(stale.extended) == [False, True], "to less than what was left"
    assert bodies(receive(keyspace, now=NOW + 110)) == [b"a"]
    assert acknowledge(keyspace, [a], now=NOW + 110) == [False]

    keyspace = Keyspace()
    put(keyspace, b"a", b"b")
    [a, b] = receipts(receive(keyspace))
    released = do(keyspace, "release_messages", key=b"q", receipts=[a], now=NOW + 5)
    assert list(released.released) == [True]
    assert counts(keyspace, now=NOW + 5) == (1, 0, 1, 0)
    assert acknowledge(keyspace, [a], now=NOW + 5) == [False], "it was given back"
    delayed = do(keyspace, "release_messages", key=b"q", receipts=[b, b], delay_ms=70, now=NOW + 5)
    assert list(delayed.released) == [True, False]
    again = receive(keyspace, now=NOW + 75)
    assert [(message.body, message.delivery_count) for message in again.messages] == [(b"a", 2), (b"b", 2)]


def test_a_message_that_was_delivered_too_often_is_set_aside_and_brought_back() -> None:
    keyspace = Keyspace()
    [poison, _] = put(keyspace, b"poison", b"fine")
    for count in (1, 2, 3):
        found = receive(keyspace, 1, max_deliveries=3)
        assert [(message.message_id, message.delivery_count) for message in found.messages] == [(poison, count)]
        do(keyspace, "release_messages", key=b"q", receipts=receipts(found))
    found = receive(keyspace, max_deliveries=3, now=NOW + 30)
    assert (bodies(found), found.dead_count) == ([b"fine"], 1)
    assert counts(keyspace, now=NOW + 30) == (0, 0, 1, 1)
    assert acknowledge(keyspace, receipts(found), now=NOW + 31) == [True]
    [dead] = peek(keyspace, BURIED)
    assert (dead.message_id, dead.body, dead.state, dead.due_at_unix_ms) == (poison, b"poison", BURIED, NOW + 30)
    assert dead.delivery_count == 3
    assert peek(keyspace) == []
    assert do(keyspace, "describe_queue", key=b"q").next_due_unix_ms == 0
    empty = receive(keyspace, now=NOW + 40)
    assert (bodies(empty), empty.HasField("next_due_in_ms")) == ([], False)
    back = do(keyspace, "redrive_messages", key=b"q", count=10, delay_ms=5, now=NOW + 50)
    assert (back.redriven_count, back.dead_count) == (1, 0)
    found = receive(keyspace, max_deliveries=3, now=NOW + 55)
    assert [(message.message_id, message.delivery_count) for message in found.messages] == [(poison, 1)]
    assert do(keyspace, "redrive_messages", key=b"q", message_ids=[poison]).redriven_count == 0, "it is not dead"


def test_dead_messages_are_brought_back_or_removed_one_by_one() -> None:
    keyspace = dead_messages(4)
    ids = [message.message_id for message in peek(keyspace, BURIED)]
    back = do(keyspace, "redrive_messages", key=b"q", message_ids=[ids[2], ids[2], 5, ids[0]], now=NOW + 900)
    assert (back.redriven_count, back.dead_count) == (2, 2)
    assert [message.message_id for message in peek(keyspace)] == [ids[0], ids[2]]
    assert do(keyspace, "remove_messages", key=b"q", message_ids=[ids[1], ids[1], 5, ids[2]]).removed_count == 2
    assert [message.message_id for message in peek(keyspace, BURIED)] == [ids[3]]
    assert do(keyspace, "remove_messages", key=b"q", message_ids=ids).removed_count == 2
    assert (keyspace.values, keyspace.memory_bytes) == ({}, 0)


def dead_messages(count: int) -> Keyspace:
    keyspace = Keyspace()
    put(keyspace, *(b"%d" % number for number in range(count)))
    receive(keyspace, timeout=1)
    assert receive(keyspace, max_deliveries=1, now=NOW + 1).dead_count == count
    return keyspace


def test_one_receive_sets_aside_so_many_and_the_next_goes_on() -> None:
    keyspace = Keyspace()
    for _ in range(3):
        put(keyspace, *[b"x"] * 1_000)
        receive(keyspace, timeout=1)
    put(keyspace, b"y", now=NOW + 1)
    first = receive(keyspace, max_deliveries=1, now=NOW + 2)
    assert (bodies(first), first.dead_count, first.next_due_in_ms) == ([], limits.DEAD_MESSAGES_PER_RECEIVE_MAX, 0)
    receive(keyspace, max_deliveries=1, now=NOW + 2)
    last = receive(keyspace, max_deliveries=1, now=NOW + 2)
    assert (bodies(last), last.dead_count) == ([b"y"], 3_000 - 2 * limits.DEAD_MESSAGES_PER_RECEIVE_MAX)


def test_ids_and_receipts_never_come_again_even_where_the_key_was_gone() -> None:
    keyspace = Keyspace()
    seen: list[int] = []
    for _ in range(3):
        seen += put(keyspace, b"a", b"b")
        found = receive(keyspace)
        seen += [message.receipt for message in found.messages]
        assert acknowledge(keyspace, receipts(found)) == [True, True]
        assert keyspace.values == {}
        put(keyspace, b"c")
        do(keyspace, "delete_keys", keys=[b"q"])
        keyspace = reloaded(keyspace)
    assert seen == sorted(set(seen))


def test_a_queue_is_walked_in_pages_by_state() -> None:
    keyspace = Keyspace()
    put(keyspace, *(b"r%d" % number for number in range(5)))
    first = receive(keyspace, 2)
    late = put(keyspace, *(b"d%d" % number for number in range(3)), delay_ms=1_000)
    put(keyspace, b"r5", at_unix_ms=5)
    for page_size in (1, 2, 0):
        assert [one.body for one in peek(keyspace, READY, page_size=page_size)] == [b"r5", b"r2", b"r3", b"r4"]
        assert [one.body for one in peek(keyspace, IN_FLIGHT, page_size=page_size)] == [b"r0", b"r1"]
        assert [one.message_id for one in peek(keyspace, DELAYED, page_size=page_size)] == late
        everything = peek(keyspace, page_size=page_size)
        assert [one.state for one in everything] == [READY] * 4 + [IN_FLIGHT] * 2 + [DELAYED] * 3
    assert [one.state for one in peek(keyspace, now=NOW + 100)] == [READY] * 6 + [DELAYED] * 3
    assert [one.delivery_count for one in peek(keyspace, READY, now=NOW + 100)] == [0] * 4 + [1] * 2
    assert acknowledge(keyspace, receipts(first)) == [True, True], "nothing was delivered by looking"


def test_large_messages_are_delivered_and_shown_one_by_one() -> None:
    keyspace = Keyspace()
    put(keyspace, b"x" * limits.STRING_BYTES_MAX, b"y")
    page = do(keyspace, "peek_messages", key=b"q")
    assert (len(page.messages), bool(page.next_page_token)) == (1, True)
    assert [len(message.body) for message in peek(keyspace)] == [limits.STRING_BYTES_MAX, 1]
    first = receive(keyspace)
    assert [len(body) for body in bodies(first)] == [limits.STRING_BYTES_MAX]
    assert first.next_due_in_ms == 0
    assert bodies(receive(keyspace)) == [b"y"]


def test_what_one_call_returns_is_counted() -> None:
    keyspace = Keyspace()
    put(keyspace, b"x" * 1_000)
    before = contents(keyspace)
    checked = api.ReceiveMessagesRequest(key=b"q", visibility_timeout_ms=5)
    outcome = outcome_within(keyspace, checked, Moment(NOW, result_bytes_left=1_063))
    assert (outcome.error.reason, outcome.error.metadata["field"]) == ("LIMIT_EXCEEDED", "count")
    assert contents(keyspace) == before
    assert len(outcome_within(keyspace, checked, Moment(NOW, result_bytes_left=1_064)).receive_messages.messages) == 1


def outcome_within(keyspace: Keyspace, request: api.ReceiveMessagesRequest, moment: Moment) -> Any:
    outcome = pipeline_pb2.OperationResult()
    operations.run(keyspace, pipeline_pb2.Operation(receive_messages=request), outcome, moment)
    return outcome


def test_versions_grow_with_changes_alone_and_expiry_stays() -> None:
    keyspace = Keyspace()
    put(keyspace, b"a")
    do(keyspace, "expire_key", key=b"q", expiry={"ttl_ms": 1_000})
    found = receive(keyspace)
    described = do(keyspace, "describe_key", key=b"q")
    assert (described.type, described.size) == (keys_pb2.KEY_TYPE_DELAYED_QUEUE, 1)
    assert described.expires_at_unix_ms == NOW + 1_000
    before = contents(keyspace)
    nobody = [api.MessageReceipt(message_id=9, receipt=9), api.MessageReceipt(message_id=found.messages[0].message_id)]
    receive(keyspace)
    acknowledge(keyspace, nobody)
    do(keyspace, "extend_messages", key=b"q", receipts=nobody, visibility_timeout_ms=5)
    do(keyspace, "release_messages", key=b"q", receipts=nobody)
    do(keyspace, "remove_messages", key=b"q", message_ids=[99])
    do(keyspace, "redrive_messages", key=b"q", count=9)
    assert contents(keyspace) == before
    assert acknowledge(keyspace, receipts(found), now=NOW + 1_000) == [False], "the queue has expired"
    assert counts(keyspace, now=NOW + 1_000) == (0, 0, 0, 0)
    put(keyspace, b"new", now=NOW + 1_000)
    assert counts(keyspace, now=NOW + 5_000) == (1, 0, 0, 0)


def test_a_renamed_queue_goes_on() -> None:
    keyspace = Keyspace()
    put(keyspace, b"a", key=b"{q}1")
    found = do(keyspace, "receive_messages", key=b"{q}1", visibility_timeout_ms=10)
    do(keyspace, "rename_key", key=b"{q}1", new_key=b"{q}2")
    told = do(keyspace, "acknowledge_messages", key=b"{q}2", receipts=receipts(found))
    assert list(told.acknowledged) == [True]


def test_a_queue_that_is_not_there_has_nothing() -> None:
    keyspace = Keyspace()
    assert bodies(receive(keyspace)) == []
    assert acknowledge(keyspace, [api.MessageReceipt(message_id=1, receipt=2)]) == [False]
    assert do(keyspace, "remove_messages", key=b"q", message_ids=[1]).removed_count == 0
    assert do(keyspace, "redrive_messages", key=b"q", count=1).redriven_count == 0
    assert peek(keyspace) == []
    assert counts(keyspace) == (0, 0, 0, 0)
    assert (keyspace.values, keyspace.version) == ({}, 0)


def test_a_hundred_thousand_messages_are_emptied_in_order() -> None:
    keyspace = Keyspace()
    for number in range(100):
        put(keyspace, *[b"%d" % number] * 1_000, at_unix_ms=NOW - number)
    value = keyspace.values[b"q"]
    assert isinstance(value, QueueValue)
    expected = sorted(message.place for message in value.messages.values())
    got: list[tuple[int, int]] = []
    while value.messages:
        due = {place[1]: place[0] for place in (message.place for message in islice(value.ready(None, NOW), 1_024))}
        found = receive(keyspace)
        got += [(due[message.message_id], message.message_id) for message in found.messages]
        assert all(acknowledge(keyspace, receipts(found)))
    assert got == expected
    assert (keyspace.values, keyspace.memory_bytes) == ({}, 0)


# -- what is refused -------------------------------------------------------------------------------------------------------

LONG = b"x" * (limits.STRING_BYTES_MAX + 1)
ONE = {"key": b"q", "receipts": [{"message_id": 1, "receipt": 1}]}
MANY = {"key": b"q", "receipts": [{"message_id": 1}] * 1_025}
TOO_LATE = limits.TIME_MS_MAX + 1


@pytest.mark.parametrize(
    ("kind", "fields", "refused"),
    [
        ("enqueue_messages", {"key": b"", "messages": [{}]}, ("INVALID_KEY", "key")),
        ("enqueue_messages", {"key": b"k" * 1_025, "messages": [{}]}, ("LIMIT_EXCEEDED", "key")),
        ("enqueue_messages", {"key": b"q"}, ("INVALID_ARGUMENT", "messages")),
        ("enqueue_messages", {"key": b"q", "messages": [{}] * 1_025}, ("LIMIT_EXCEEDED", "messages")),
        ("enqueue_messages", {"key": b"q", "messages": [{}, {"body": LONG}]}, ("LIMIT_EXCEEDED", "messages[1].body")),
        *(
            (
                "enqueue_messages",
                {"key": b"q", "messages": [{field: time}]},
                ("INVALID_ARGUMENT", f"messages[0].{field}"),
            )
            for field, time in [("delay_ms", -1), ("delay_ms", TOO_LATE), ("at_unix_ms", 0), ("at_unix_ms", TOO_LATE)]
        ),
        ("receive_messages", {"key": b"", "visibility_timeout_ms": 1}, ("INVALID_KEY", "key")),
        ("receive_messages", {"key": b"q"}, ("INVALID_ARGUMENT", "visibility_timeout_ms")),
        ("receive_messages", {"key": b"q", "visibility_timeout_ms": -1}, ("INVALID_ARGUMENT", "visibility_timeout_ms")),
        (
            "receive_messages",
            {"key": b"q", "visibility_timeout_ms": TOO_LATE},
            ("INVALID_ARGUMENT", "visibility_timeout_ms"),
        ),
        ("receive_messages", {"key": b"q", "count": 1_025, "visibility_timeout_ms": 1}, ("LIMIT_EXCEEDED", "count")),
        *(
            (kind, {**rest, **fields}, refused)
            for kind, rest in [
                ("acknowledge_messages", {}),
                ("extend_messages", {"visibility_timeout_ms": 1}),
                ("release_messages", {}),
            ]
            for fields, refused in [
                ({**ONE, "key": b""}, ("INVALID_KEY", "key")),
                ({"key": b"q"}, ("INVALID_ARGUMENT", "receipts")),
                (MANY, ("LIMIT_EXCEEDED", "receipts")),
            ]
        ),
        ("extend_messages", ONE, ("INVALID_ARGUMENT", "visibility_timeout_ms")),
        ("extend_messages", {**ONE, "visibility_timeout_ms": TOO_LATE}, ("INVALID_ARGUMENT", "visibility_timeout_ms")),
        ("release_messages", {**ONE, "delay_ms": -1}, ("INVALID_ARGUMENT", "delay_ms")),
        ("release_messages", {**ONE, "delay_ms": TOO_LATE}, ("INVALID_ARGUMENT", "delay_ms")),
        ("remove_messages", {"key": b"", "message_ids": [1]}, ("INVALID_KEY", "key")),
        ("remove_messages", {"key": b"q"}, ("INVALID_ARGUMENT", "message_ids")),
        ("remove_messages", {"key": b"q", "message_ids": [1] * 1_025}, ("LIMIT_EXCEEDED", "message_ids")),
        ("redrive_messages", {"key": b"", "count": 1}, ("INVALID_KEY", "key")),
        ("redrive_messages", {"key": b"q"}, ("INVALID_ARGUMENT", "count")),
        ("redrive_messages", {"key": b"q", "count": 1_025}, ("LIMIT_EXCEEDED", "count")),
        ("redrive_messages", {"key": b"q", "count": 1, "message_ids": [1]}, ("INVALID_ARGUMENT", "count")),
        ("redrive_messages", {"key": b"q", "message_ids": [1] * 1_025}, ("LIMIT_EXCEEDED", "message_ids")),
        ("redrive_messages", {"key": b"q", "count": 1, "delay_ms": -1}, ("INVALID_ARGUMENT", "delay_ms")),
        ("peek_messages", {"key": b""}, ("INVALID_KEY", "key")),
        ("peek_messages", {"key": b"q", "state": 5}, ("INVALID_ARGUMENT", "state")),
        ("peek_messages", {"key": b"q", "page_size": 10_001}, ("LIMIT_EXCEEDED", "page_size")),
        ("peek_messages", {"key": b"q", "page_token": "?"}, ("INVALID_PAGE_TOKEN", "page_token")),
        ("describe_queue", {"key": b""}, ("INVALID_KEY", "key")),
    ],
)
def test_what_is_wrong_in_itself_is_refused(kind: str, fields: dict[str, Any], refused: tuple[str, str]) -> None:
    assert check_refusal(kind, **fields) == refused


def test_a_page_token_is_good_for_its_own_walk_alone() -> None:
    keyspace = Keyspace()
    put(keyspace, b"a", b"b")
    token = do(keyspace, "peek_messages", key=b"q", page_size=1).next_page_token
    for fields in ({"key": b"other"}, {"key": b"q", "state": READY}):
        assert check_refusal("peek_messages", page_token=token, **fields) == ("INVALID_PAGE_TOKEN", "page_token")
    scope = queues._scope(api.PeekMessagesRequest(key=b"q"))
    forged = encode_bytes_token("messages", scope, b"short")
    assert check_refusal("peek_messages", key=b"q", page_token=forged) == ("INVALID_PAGE_TOKEN", "page_token")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("enqueue_messages", {"messages": [{}]}),
        ("receive_messages", {"visibility_timeout_ms": 1}),
        ("acknowledge_messages", {"receipts": [{}]}),
        ("extend_messages", {"receipts": [{}], "visibility_timeout_ms": 1}),
        ("release_messages", {"receipts": [{}]}),
        ("remove_messages", {"message_ids": [1]}),
        ("redrive_messages", {"count": 1}),
        ("peek_messages", {}),
        ("describe_queue", {}),
    ],
)
def test_a_value_of_another_type_is_refused(kind: str, fields: dict[str, Any]) -> None:
    keyspace = Keyspace()
    do(keyspace, "set_string", key=b"q", value=b"v")
    assert refusal(keyspace, kind, key=b"q", **fields) == ("WRONG_TYPE", "key")
    keyspace = Keyspace()
    put(keyspace, b"a")
    assert refusal(keyspace, "append_string", key=b"q", value=b"x") == ("WRONG_TYPE", "key")
