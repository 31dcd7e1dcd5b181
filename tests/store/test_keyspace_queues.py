"""Delayed queues: what each operation does, what it refuses, that a dump keeps everything, and that a simple model agrees."""

from __future__ import annotations

from typing import Any

from tests.support.keyspace import NOW, do
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.v1 import queues_pb2 as api


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
