"""Producers and consumers of one delayed queue that know what must become of each message.

Each sends one request at a time under a request id, and sends it again after a crash until it is answered. A producer counts a message
once it is told of its id; a consumer one that it is told to have acknowledged. Consumers drop messages, give them back and acknowledge late, so that
most messages are delivered several times.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

from tests.crash.traffic import CALL_SECONDS_MAX, Connection, Retrying
from vecmem.v1 import queues_pb2 as api
from vecmem.v1 import queues_pb2_grpc

KEY = b"{jobs}"
VISIBILITY_TIMEOUT_MS = 150
MAX_DELIVERIES = 4


class Ledger:
    """What all producers and consumers have been told. A message is known by its body, which no other has."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.enqueued: dict[bytes, int] = {}
        """Id by body."""
        self.acknowledged: dict[bytes, int] = {}
        """Receipt by body."""
        self.receipts: dict[int, bytes] = {}
        """Body by receipt, of all deliveries."""
        self.last_receipts: dict[bytes, int] = {}
        self.ids: dict[bytes, int] = {}
        """Id by body, of all deliveries."""
        self.events: Counter[str] = Counter()

    def note_enqueued(self, bodies: list[bytes], ids: list[int]) -> None:
        with self.lock:
            assert ids == sorted(set(ids)), f"ids do not grow: {ids}"
            assert not set(ids) & set(self.enqueued.values()), f"an id was given out twice: {ids}"
            self.enqueued.update(zip(bodies, ids, strict=True))

    def note_delivered(self, message: api.DeliveredMessage) -> None:
        with self.lock:
            body = message.body
            assert message.receipt not in self.receipts, f"receipt {message.receipt} was given out twice"
            assert self.ids.setdefault(body, message.message_id) == message.message_id, f"{body!r} is there twice"
            self.receipts[message.receipt] = body
            self.last_receipts[body] = max(self.last_receipts.get(body, 0), message.receipt)
            self.events["delivered"] += 1
            self.events["delivered again"] += message.delivery_count > 1

    def note_acknowledged(self, body: bytes, receipt: int) -> None:
        with self.lock:
            assert body not in self.acknowledged, f"{body!r} was acknowledged twice"
            self.acknowledged[body] = receipt

    def check(self) -> None:
        """When nothing is under way and nothing is left. Raises AssertionError."""
        lost = sorted(self.enqueued.keys() - self.acknowledged.keys())
        assert not lost, f"{len(lost)} messages are lost: {lost[:3]}"
        unknown = sorted(self.acknowledged.keys() - self.enqueued.keys())
        assert not unknown, f"{len(unknown)} messages came from nowhere: {unknown[:3]}"
        assert self.acknowledged == self.last_receipts, "a message was delivered after it had been acknowledged"
        assert self.ids == self.enqueued, "messages have other ids than their producers were told"


class Worker(Retrying[Ledger]):
    """A producer or a consumer."""

    STUB = queues_pb2_grpc.QueueServiceStub


class Producer(Worker):
    """Adds messages, some of them delayed."""

    def next(self) -> tuple[str, Any]:
        request = api.EnqueueMessagesRequest(key=KEY)
        for place in range(self.rng.randint(1, 5)):
            body = f"{self.name}-{self.request_count}-{place}".encode()
            request.messages.add(body=body, delay_ms=self.rng.choice([0, 0, 5, 50]))
        return "EnqueueMessages", request

    def answered(self, request: Any, reply: Any) -> None:
        self.ledger.note_enqueued([message.body for message in request.messages], list(reply.message_ids))
        time.sleep(
            self.rng.choice([0.01, 0.03, 0.06])
        )  # slower than consumers, so that what is due again is soon delivered


class Consumer(Worker):
    """Takes messages and settles them in some way, or not at all. A careful one acknowledges all of them at once."""

    def __init__(self, name: str, ledger: Ledger, seed: int, *, careful: bool = False) -> None:
        super().__init__(name, ledger, seed)
        self.careful = careful
        self._held: list[api.DeliveredMessage] = []
        self.idle = False
        """Whether nothing was due the last time."""

    def next(self) -> tuple[str, Any]:
        if not self._held:
            return "ReceiveMessages", api.ReceiveMessagesRequest(
                key=KEY,
                count=self.rng.randint(1, 20),
                visibility_timeout_ms=VISIBILITY_TIMEOUT_MS,
                max_deliveries=0 if self.careful else MAX_DELIVERIES,
            )
        way = "acknowledge" if self.careful else self.rng.choice(["acknowledge"] * 4 + ["late", "release", "extend"])
        receipts = [
            api.MessageReceipt(message_id=message.message_id, receipt=message.receipt) for message in self._held
        ]
        match way:
            case "release":
                return "ReleaseMessages", api.ReleaseMessagesRequest(key=KEY, receipts=receipts, delay_ms=5)
            case "extend":
                return "ExtendMessages", api.ExtendMessagesRequest(
                    key=KEY, receipts=receipts, visibility_timeout_ms=VISIBILITY_TIMEOUT_MS
                )
            case "late":
                time.sleep(2 * VISIBILITY_TIMEOUT_MS / 1e3)
        return "AcknowledgeMessages", api.AcknowledgeMessagesRequest(key=KEY, receipts=receipts)

    def answered(self, request: Any, reply: Any) -> None:
        match request:
            case api.ReceiveMessagesRequest():
                for message in reply.messages:
                    self.ledger.note_delivered(message)
                self.idle = not reply.messages
                # Some are forgotten, as by a consumer that has died.
                self._held = [message for message in reply.messages if self.careful or self.rng.random() < 0.9]
                self.ledger.events["set aside"] += reply.dead_count
                time.sleep(0.005 if self.idle else 0)
            case api.AcknowledgeMessagesRequest():
                for message, good in zip(self._held, reply.acknowledged, strict=True):
                    if good:
                        self.ledger.note_acknowledged(message.body, message.receipt)
                    else:
                        self.ledger.events["acknowledged too late"] += 1
                self._held = []
            case api.ReleaseMessagesRequest():
                self._held = []


def finish(ledger: Ledger, workers: list[Worker], connection: Connection) -> None:
    """Settle what is pending, bring back what is dead, take everything that is left, and check. Raises AssertionError."""
    stub = queues_pb2_grpc.QueueServiceStub(connection.channel)
    for worker in workers:
        if worker.pending is not None:
            worker.step(connection)
    consumer = Consumer("last", ledger, seed=0, careful=True)
    while True:
        described = stub.DescribeQueue(api.DescribeQueueRequest(key=KEY), timeout=CALL_SECONDS_MAX)
        if described.dead_count:
            stub.RedriveMessages(api.RedriveMessagesRequest(key=KEY, count=1_024), timeout=CALL_SECONDS_MAX)
        elif not described.next_due_unix_ms:
            break
        consumer.step(connection)
    ledger.check()
