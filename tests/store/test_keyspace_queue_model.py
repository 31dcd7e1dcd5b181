"""The value of a delayed queue: dumps, copies, and a simple model of all operations that agrees at every step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.keyspace import NOW, contents, do, reloaded
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.packing import pack
from vecmem.store.keyspace.queue_value import _ENTRY, DEAD, HELD, WAITING, QueueValue
from vecmem.v1 import queues_pb2 as api


def filled() -> QueueValue:
    value = QueueValue()
    for message_id in range(1, 7):
        value.add(message_id, b"body %d" % message_id, 1_000 + message_id, 500)
    for message_id in (2, 3, 4):
        value.deliver(value.messages[message_id], 100 + message_id, 2_000)
    value.release(value.messages[3], 1_500)
    value.bury(value.messages[4], 1_700)
    value.version = 9
    return value


def test_a_dump_and_a_copy_keep_everything() -> None:
    value = filled()
    for other in (QueueValue.load(value.dump()), value.copy()):
        other.version = value.version
        assert other == value
        assert other.size_bytes == value.size_bytes
        assert other.messages == value.messages
        assert other.counts(1_004) == value.counts(1_004) == (1, 3, 1)
        assert (other.dead_count, other.next_due_unix_ms()) == (1, 1_001)
        assert [message.body for message in other.ready(None, 3_000)] == [
            b"body 1", b"body 5", b"body 6", b"body 3", b"body 2",
        ]  # fmt: skip
        other.remove(other.messages[1])
        other.redrive(other.messages[4], 7)
        other.release(other.messages[2], 8)
        other.add(7, b"new", 5, 5)
        assert value.dump() == filled().dump() != other.dump()
        assert value.size_bytes == filled().size_bytes


def test_the_way_to_contents_does_not_show_in_a_dump() -> None:
    one, other = QueueValue(), QueueValue()
    for value, numbers in ((one, (1, 2, 3)), (other, (3, 1, 2))):
        for message_id in (1, 2, 3):
            value.add(message_id, b"x", 10, 5)
        for message_id in numbers:
            value.deliver(value.messages[message_id], 10 + message_id, 20)
        for message_id in numbers:
            value.bury(value.messages[message_id], 30)
    assert one.dump() == other.dump()


def entry(message_id: int, receipt: int, order: int, delivery_count: int = 1) -> np.ndarray:
    return np.array([(message_id, receipt, 5, 5, delivery_count, order)], dtype=_ENTRY)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        pack([]),
        pack([b"a"]),
        pack([b"a", b"b", entry(1, 0, WAITING).tobytes()]),
        pack([b"a", entry(1, 0, WAITING).tobytes() + b"x"]),
        pack([b"a", entry(1, 0, 3).tobytes()]),
        pack([b"a", entry(1, 7, WAITING).tobytes()]),
        pack([b"a", entry(1, 7, DEAD).tobytes()]),
        pack([b"a", entry(1, 0, HELD).tobytes()]),
        pack([b"a", entry(1, 7, HELD, delivery_count=0).tobytes()]),
        pack([b"a", b"b", entry(2, 0, WAITING).tobytes() + entry(1, 0, WAITING).tobytes()]),
        pack([b"a", b"b", entry(1, 0, WAITING).tobytes() + entry(1, 0, WAITING).tobytes()]),
    ],
)
def test_a_damaged_dump_is_refused(content: bytes) -> None:
    assert len(QueueValue.load(pack([b"a", entry(1, 7, HELD).tobytes()]))) == 1
    with pytest.raises(ValueError, match=r"bytes|places|state|order"):
        QueueValue.load(content)


# -- the model -------------------------------------------------------------------------------------------------------------


@dataclass
class Waiting:
    """A message of the model."""

    message_id: int
    body: bytes
    due: int
    enqueued_at: int
    receipt: int | None = None
    deliveries: int = 0
    dead: bool = False


@dataclass
class Model:
    """A list of messages that is searched from end to end; numbers come from the queue, and have to be new and greater."""

    messages: list[Waiting] = field(default_factory=list)
    last_number: int = 0

    def note(self, number: int) -> int:
        assert number > self.last_number, "an id or a receipt is greater than all before it"
        self.last_number = number
        return number

    def living(self) -> list[Waiting]:
        return sorted((one for one in self.messages if not one.dead), key=lambda one: (one.due, one.message_id))

    def state(self, one: Waiting, now: int) -> int:
        if one.dead:
            return api.QUEUE_MESSAGE_STATE_DEAD
        if one.due <= now:
            return api.QUEUE_MESSAGE_STATE_READY
        return api.QUEUE_MESSAGE_STATE_DELAYED if one.receipt is None else api.QUEUE_MESSAGE_STATE_IN_FLIGHT

    def of(self, named: api.MessageReceipt) -> Waiting | None:
        for one in self.messages:
            if (one.message_id, one.receipt) == (named.message_id, named.receipt):
                return one
        return None

    def receive(self, response: Any, count: int, max_deliveries: int, timeout: int, now: int) -> None:
        """What a receive must have answered, done here as well."""
        expected: list[Waiting] = []
        dead_count = 0
        for one in self.living():
            if one.due > now or len(expected) == count:
                break
            if max_deliveries and one.deliveries >= max_deliveries:
                one.dead, one.receipt, one.due = True, None, now
                dead_count += 1
            else:
                expected.append(one)
        assert [one.message_id for one in response.messages] == [one.message_id for one in expected]
        assert response.dead_count == dead_count
        for one, got in zip(expected, response.messages, strict=True):
            one.receipt = self.note(got.receipt)
            one.deliveries += 1
            one.due = now + timeout
            assert (got.body, got.delivery_count, got.enqueued_at_unix_ms, got.due_at_unix_ms) == (
                one.body,
                one.deliveries,
                one.enqueued_at,
                one.due,
            )
        living = self.living()
        told = response.next_due_in_ms if response.HasField("next_due_in_ms") else None
        assert told == (max(0, living[0].due - now) if living else None)


TIMES = st.sampled_from([0, 1, 3, 10, 40])
PLACES = st.lists(st.integers(0, 6), min_size=1, max_size=4)
"""Counted from the last id or receipt backwards."""
STEPS = st.one_of(
    st.tuples(
        st.just("enqueue"),
        st.lists(st.tuples(st.sampled_from(["now", "delay", "at"]), TIMES), min_size=1, max_size=4),
    ),
    st.tuples(st.just("receive"), st.integers(0, 4), st.sampled_from([0, 2, 3]), st.sampled_from([1, 5, 30])),
    st.tuples(st.just("receive"), st.integers(1, 4), st.just(0), st.just(1)),
    st.tuples(st.sampled_from(["acknowledge", "extend", "release"]), PLACES, TIMES),
    st.tuples(st.just("remove"), PLACES),
    st.tuples(st.just("redrive"), st.just([]) | PLACES, TIMES),
    st.tuples(st.sampled_from(["restart", "purge"])),
)


@settings(max_examples=200)
@given(st.lists(st.tuples(TIMES, STEPS), min_size=10, max_size=50))
def test_a_queue_does_what_a_simple_model_does(steps: list[tuple[int, tuple[Any, ...]]]) -> None:
    keyspace, model, now = Keyspace(), Model(), NOW
    ids: list[int] = [0]
    handed_out = [api.MessageReceipt()]

    def run(kind: str, **fields: Any) -> Any:
        return do(keyspace, kind, key=b"q", now=now, **fields)

    for wait, step in steps:
        now += wait
        match step:
            case ("enqueue", due):
                messages, times = [], []
                for number, (form, time) in enumerate(due):
                    times.append({"now": now, "delay": now + time, "at": NOW + time}[form])
                    due_field = {"now": {}, "delay": {"delay_ms": time}, "at": {"at_unix_ms": NOW + time}}[form]
                    messages.append(api.NewQueueMessage(body=b"%d" % number, **due_field))
                for message_id, message, time in zip(
                    run("enqueue_messages", messages=messages).message_ids, messages, times, strict=True
                ):
                    ids.append(model.note(message_id))
                    model.messages.append(Waiting(message_id, message.body, time, now))
            case ("receive", count, max_deliveries, timeout):
                response = run(
                    "receive_messages", count=count, max_deliveries=max_deliveries, visibility_timeout_ms=timeout
                )
                model.receive(response, count or 1, max_deliveries, timeout, now)
                handed_out += [
                    api.MessageReceipt(message_id=one.message_id, receipt=one.receipt) for one in response.messages
                ]
            case ("acknowledge" | "extend" | "release" as kind, places, time):
                named = [handed_out[-1 - place % len(handed_out)] for place in places]
                fields = {"extend": {"visibility_timeout_ms": time + 1}, "release": {"delay_ms": time}}.get(kind, {})
                response = run(f"{kind}_messages", receipts=named, **fields)
                told = list(
                    getattr(response, {"acknowledge": "acknowledged", "extend": "extended"}.get(kind, "released"))
                )
                for one, good in zip(named, told, strict=True):
                    found = model.of(one)
                    assert good == (found is not None)
                    if found is None:
                        continue
                    if kind == "acknowledge":
                        model.messages.remove(found)
                    elif kind == "extend":
                        found.due = now + time + 1
                    else:
                        found.due, found.receipt = now + time, None
            case ("remove", places):
                named_ids = [ids[-1 - place % len(ids)] for place in places]
                gone = [one for one in model.messages if one.message_id in named_ids]
                assert run("remove_messages", message_ids=named_ids).removed_count == len(gone)
                model.messages = [one for one in model.messages if one not in gone]
            case ("redrive", places, time):
                named_ids = [ids[-1 - place % len(ids)] for place in places]
                dead = sorted((one for one in model.messages if one.dead), key=lambda one: (one.due, one.message_id))
                back = [one for one in dead if one.message_id in named_ids] if places else dead[:2]
                selected = {"message_ids": named_ids} if places else {"count": 2}
                response = run("redrive_messages", delay_ms=time, **selected)
                assert (response.redriven_count, response.dead_count) == (len(back), len(dead) - len(back))
                for one in back:
                    one.dead, one.deliveries, one.due = False, 0, now + time
            case ("restart",):
                keyspace = reloaded(keyspace)
            case _:
                do(keyspace, "delete_keys", keys=[b"q"], now=now)
                model.messages = []
        check(keyspace, model, now)


def check(keyspace: Keyspace, model: Model, now: int) -> None:
    """Both hold the same, whichever way it is looked at."""
    contents(keyspace)
    described = do(keyspace, "describe_queue", key=b"q", now=now)
    dead = sorted((one for one in model.messages if one.dead), key=lambda one: (one.due, one.message_id))
    living = model.living()
    for state, expected in {
        api.QUEUE_MESSAGE_STATE_UNSPECIFIED: living,
        api.QUEUE_MESSAGE_STATE_READY: [one for one in living if one.due <= now],
        api.QUEUE_MESSAGE_STATE_DELAYED: [one for one in living if one.due > now and one.receipt is None],
        api.QUEUE_MESSAGE_STATE_IN_FLIGHT: [one for one in living if one.due > now and one.receipt is not None],
        api.QUEUE_MESSAGE_STATE_DEAD: dead,
    }.items():
        page = do(keyspace, "peek_messages", key=b"q", state=state, page_size=1_000, now=now)
        assert not page.next_page_token
        assert [
            (one.message_id, one.body, one.delivery_count, one.due_at_unix_ms, one.state) for one in page.messages
        ] == [(one.message_id, one.body, one.deliveries, one.due, model.state(one, now)) for one in expected]
        if state:
            counted = {
                api.QUEUE_MESSAGE_STATE_READY: described.ready_count,
                api.QUEUE_MESSAGE_STATE_DELAYED: described.delayed_count,
                api.QUEUE_MESSAGE_STATE_IN_FLIGHT: described.in_flight_count,
                api.QUEUE_MESSAGE_STATE_DEAD: described.dead_count,
            }[state]
            assert counted == len(expected)
    assert described.next_due_unix_ms == (living[0].due if living else 0)
    assert (b"q" in keyspace.values) == bool(model.messages)
