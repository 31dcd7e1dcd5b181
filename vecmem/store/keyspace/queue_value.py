"""A delayed queue: its messages by id, and their places in three orders of time."""

from __future__ import annotations

from heapq import merge
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import numpy as np
from sortedcontainers import SortedList

from vecmem.store.keyspace.container import Container
from vecmem.store.keyspace.packing import pack, unpack
from vecmem.store.keyspace.sorting import copy_sorted
from vecmem.v1 import keys_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGE_BYTES: Final = 380
"""About what a message takes beyond its own bytes: two objects, their numbers, a place in the table and one in an order."""
DELIVERY_COUNT_MAX: Final = 2**32 - 1
LAST_ID: Final = 2**64 - 1
NO_RECEIPT: Final = 0

WAITING, HELD, DEAD = 0, 1, 2
"""In which order a message is: nobody has it; it was delivered, and its last receipt is good; it was set aside."""

Place = tuple[int, int]
"""When a message is due, milliseconds since the Unix epoch, and its id. Of a dead message: when it was set aside."""

_ENTRY = np.dtype(
    [
        ("message_id", "<u8"),
        ("receipt", "<u8"),
        ("due_unix_ms", "<i8"),
        ("enqueued_at_unix_ms", "<i8"),
        ("delivery_count", "<u4"),
        ("order", "u1"),
    ]
)


class Message(NamedTuple):
    """One message as it is. What changes takes its place, so that copies of a queue share all that has not."""

    body: bytes
    enqueued_at_unix_ms: int
    place: Place
    order: int = WAITING
    receipt: int = NO_RECEIPT
    """That of the last delivery while it is good; otherwise NO_RECEIPT, which no delivery has."""
    delivery_count: int = 0


class QueueValue(Container):
    """Whether a message is due follows from its place and the time, so nothing has to happen when its time comes."""

    __slots__ = ("_orders", "messages")

    TYPE = keys_pb2.KEY_TYPE_DELAYED_QUEUE
    NAME = "delayed queue"

    def __init__(self) -> None:
        super().__init__()
        self.messages: dict[int, Message] = {}
        self._orders: tuple[SortedList[Place], ...] = (SortedList(), SortedList(), SortedList())

    def __len__(self) -> int:
        return len(self.messages)

    def add(self, message_id: int, body: bytes, due_unix_ms: int, now_unix_ms: int) -> None:
        """Add a message with an id greater than all before it."""
        message = self.messages[message_id] = Message(body, now_unix_ms, (due_unix_ms, message_id))
        self._orders[WAITING].add(message.place)
        self.size_bytes += MESSAGE_BYTES + len(body)

    def deliver(self, message: Message, receipt: int, due_unix_ms: int) -> Message:
        """Hand a message out until a time, under a new receipt; returns it as it is then."""
        delivery_count = min(message.delivery_count + 1, DELIVERY_COUNT_MAX)
        return self._put(message, HELD, due_unix_ms, receipt, delivery_count)

    def delivered(self, message_id: int, receipt: int) -> Message | None:
        """The message of a delivery; None: the receipt is not good, or there is no such message."""
        message = self.messages.get(message_id)
        return message if message is not None and message.order == HELD and message.receipt == receipt else None

    def extend(self, message: Message, due_unix_ms: int) -> None:
        """Leave a message that was delivered to its consumer until a time."""
        self._put(message, HELD, due_unix_ms, message.receipt, message.delivery_count)

    def release(self, message: Message, due_unix_ms: int) -> None:
        """Take a message back that was delivered; it is due at a time."""
        self._put(message, WAITING, due_unix_ms, NO_RECEIPT, message.delivery_count)

    def bury(self, message: Message, now_unix_ms: int) -> None:
        """Set a message aside as dead."""
        self._put(message, DEAD, now_unix_ms, NO_RECEIPT, message.delivery_count)

    def redrive(self, message: Message, due_unix_ms: int) -> None:
        """Bring a dead message back as if it had never been delivered."""
        self._put(message, WAITING, due_unix_ms, NO_RECEIPT, 0)

    def remove(self, message: Message) -> None:
        """Remove a message that is there."""
        self._orders[message.order].remove(message.place)
        del self.messages[message.place[1]]
        self.size_bytes -= MESSAGE_BYTES + len(message.body)

    def next_due_unix_ms(self) -> int:
        """When the first message became due, or will be; 0: there is none but dead ones. Takes constant time."""
        return min((order[0][0] for order in self._orders[:DEAD] if order), default=0)

    def counts(self, now_unix_ms: int) -> tuple[int, int, int]:
        """How many messages are ready, delayed and in flight."""
        waiting, held, _ = self._orders
        waiting_due, held_due = (order.bisect_right((now_unix_ms, LAST_ID)) for order in (waiting, held))
        return waiting_due + held_due, len(waiting) - waiting_due, len(held) - held_due

    @property
    def dead_count(self) -> int:
        """How many messages are dead."""
        return len(self._orders[DEAD])

    def first_dead(self, count: int) -> list[Message]:
        """Up to so many dead messages, those that died first."""
        return [self.messages[message_id] for _, message_id in self._orders[DEAD].islice(0, count)]

    def living(self, after: Place | None) -> Iterator[Message]:
        """All messages but dead ones behind a place, in order."""
        return self._messages(merge(*(_behind(order, after) for order in self._orders[:DEAD])))

    def ready(self, after: Place | None, now_unix_ms: int) -> Iterator[Message]:
        """Those that are due behind a place, in order."""
        last = (now_unix_ms, LAST_ID)
        return self._messages(merge(*(_behind(order, after, last) for order in self._orders[:DEAD])))

    def not_due(self, order: int, after: Place | None, now_unix_ms: int) -> Iterator[Message]:
        """Those of an order that are not due yet behind a place."""
        first = (now_unix_ms, LAST_ID)
        return self._messages(_behind(self._orders[order], first if after is None else max(after, first)))

    def dead(self, after: Place | None) -> Iterator[Message]:
        """Dead ones behind a place, in the order in which they died."""
        return self._messages(_behind(self._orders[DEAD], after))

    def dump(self) -> bytes:
        """See Container. In order of ids."""
        ordered = sorted(self.messages.items())
        entries = np.zeros(len(ordered), dtype=_ENTRY)
        for index, (message_id, message) in enumerate(ordered):
            entries[index] = (
                message_id,
                message.receipt,
                message.place[0],
                message.enqueued_at_unix_ms,
                message.delivery_count,
                message.order,
            )
        return pack([*(message.body for _, message in ordered), entries.tobytes()])

    def copy(self) -> Self:
        """See Container."""
        copied = type(self)()
        copied.messages = self.messages.copy()
        copied._orders = tuple(copy_sorted(order) for order in self._orders)
        copied.size_bytes, copied.version = self.size_bytes, self.version
        return copied

    @classmethod
    def load(cls, content: bytes) -> Self:
        """See Container."""
        blobs = unpack(content)
        if not blobs:
            raise ValueError("it has no places")
        *bodies, packed = blobs
        if len(packed) != len(bodies) * _ENTRY.itemsize:
            raise ValueError(f"{len(packed)} bytes of places for {len(bodies)} messages")
        loaded = cls()
        places: tuple[list[Place], ...] = ([], [], [])
        entries = np.frombuffer(packed, dtype=_ENTRY).tolist()
        for body, (message_id, receipt, due, enqueued_at, delivery_count, order) in zip(bodies, entries, strict=True):
            if order > DEAD or (receipt != NO_RECEIPT) != (order == HELD) or (order == HELD and not delivery_count):
                raise ValueError(f"message {message_id} is in no state there is")
            place = (due, message_id)
            loaded.messages[message_id] = Message(body, enqueued_at, place, order, receipt, delivery_count)
            places[order].append(place)
            loaded.size_bytes += MESSAGE_BYTES + len(body)
        if not all(before < behind for before, behind in pairwise(loaded.messages)) or len(loaded) != len(bodies):
            raise ValueError("its messages are not in order")
        loaded._orders = tuple(SortedList(order) for order in places)
        return loaded

    def _put(self, old: Message, order: int, due_unix_ms: int, receipt: int, delivery_count: int) -> Message:
        """Put a message into an order in place of what it was."""
        place = (due_unix_ms, old.place[1])
        self._orders[old.order].remove(old.place)
        self._orders[order].add(place)
        message = Message(old.body, old.enqueued_at_unix_ms, place, order, receipt, delivery_count)
        self.messages[place[1]] = message
        return message

    def _messages(self, places: Iterator[Place]) -> Iterator[Message]:
        return (self.messages[message_id] for _, message_id in places)


def _behind(order: SortedList[Place], after: Place | None, last: Place | None = None) -> Iterator[Place]:
    places: Iterator[Place] = order.irange(after, last, inclusive=(False, True))
    return places
