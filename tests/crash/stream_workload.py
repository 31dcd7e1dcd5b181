"""Producers and consumers of one stream that know what must become of each entry.

Each sends one request at a time under a request id, and sends it again after a crash until it is answered: a producer then knows the id
of its entry, and a consumer which entries it was told to have acknowledged. Consumers forget some of what they get, as if they had died, and claim
what others have forgotten, so that entries are delivered several times, and acknowledged by one while another one has them too.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

from tests.crash.traffic import CALL_SECONDS_MAX, Connection, Retrying
from vecmem.v1 import streams_pb2 as api
from vecmem.v1 import streams_pb2_grpc

KEY = b"{events}"
GROUP = b"workers"
IDLE_MS = 100
"""What is pending for so long is claimed by others."""

Id = tuple[int, int]


class Ledger:
    """What all producers and consumers have been told. An entry is known by its body, which no other has."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.appended: dict[bytes, Id] = {}
        self.delivered: dict[bytes, Id] = {}
        """Those that some consumer was given."""
        self.acknowledged: Counter[Id] = Counter()
        """How often the acknowledgement of an entry was told to have been the one that counts."""
        self.events: Counter[str] = Counter()

    def note_appended(self, body: bytes, entry_id: Id) -> None:
        with self.lock:
            assert entry_id not in self.appended.values(), f"{entry_id} was given out twice"
            self.appended[body] = entry_id

    def note_delivered(self, entry: api.StreamEntry) -> None:
        with self.lock:
            assert not entry.deleted, f"{entry} is gone, and nobody removes anything"
            [pair] = entry.fields
            entry_id = parts(entry.id)
            assert self.delivered.setdefault(pair.value, entry_id) == entry_id, f"{pair.value!r} is there twice"
            self.events["delivered"] += 1
            self.events["delivered again"] += entry.delivery_count > 1

    def note_acknowledged(self, entry_id: Id) -> None:
        with self.lock:
            self.acknowledged[entry_id] += 1
            assert self.acknowledged[entry_id] == 1, f"{entry_id} was acknowledged twice"

    def check(self, entries: dict[bytes, Id], pending: set[Id], unclaimed_count: int) -> None:
        """Compare with what the server holds when nothing is under way. Raises AssertionError."""
        lost = sorted(self.appended.keys() - entries.keys())
        assert not lost, f"{len(lost)} entries are lost: {lost[:3]}"
        assert entries == self.appended, "there are entries that nobody has appended, or with other ids than were told"
        assert not unclaimed_count, f"{unclaimed_count} entries were delivered to nobody"
        undelivered = sorted(self.appended.keys() - self.delivered.keys())
        assert not undelivered, f"{len(undelivered)} entries were delivered to nobody: {undelivered[:3]}"
        again = sorted(pending & self.acknowledged.keys())
        assert not again, f"{len(again)} entries are pending and were acknowledged: {again[:3]}"
        assert not pending, f"{len(pending)} entries are still pending"
        assert set(self.acknowledged) == set(self.appended.values()), "entries are neither pending nor acknowledged"


class Worker(Retrying[Ledger]):
    """A producer or a consumer."""

    STUB = streams_pb2_grpc.StreamServiceStub


class Producer(Worker):
    """Appends entries, the server choosing their ids."""

    def next(self) -> tuple[str, Any]:
        body = f"{self.name}-{self.request_count}".encode()
        return "AppendStreamEntry", api.AppendStreamEntryRequest(
            key=KEY, fields=[api.StreamField(field=b"body", value=body)]
        )

    def answered(self, request: Any, reply: Any) -> None:
        self.ledger.note_appended(request.fields[0].value, parts(reply.id))
        time.sleep(self.rng.choice([0, 0.005, 0.02]))


class Consumer(Worker):
    """Reads, or claims what others have forgotten, and acknowledges. A careful one forgets nothing and claims at once."""

    def __init__(self, name: str, ledger: Ledger, seed: int, *, careful: bool = False) -> None:
        super().__init__(name, ledger, seed)
        self.careful = careful
        self.idle = False
        """Whether a claim and a read found nothing, one after the other."""
        self._held: list[api.StreamId] = []
        self._start: api.StreamId | None = None
        self._claims = False
        self._found = True

    def next(self) -> tuple[str, Any]:
        named: dict[str, Any] = {"key": KEY, "group": GROUP}
        if self._held:
            return "AcknowledgeStreamEntries", api.AcknowledgeStreamEntriesRequest(**named, ids=self._held)
        named |= {"consumer": self.name.encode(), "count": self.rng.randint(1, 20)}
        self._claims = not self._claims if self.careful else self.rng.random() < 0.4
        if self._claims:
            idle_ms = 0 if self.careful else IDLE_MS
            return "AutoClaimStreamEntries", api.AutoClaimStreamEntriesRequest(
                **named, min_idle_ms=idle_ms, start=self._start
            )
        if not self.careful and self.rng.random() < 0.1:
            return "ReadStreamGroup", api.ReadStreamGroupRequest(**named, pending_after=api.StreamId())
        return "ReadStreamGroup", api.ReadStreamGroupRequest(**named)

    def answered(self, request: Any, reply: Any) -> None:
        if isinstance(request, api.AcknowledgeStreamEntriesRequest):
            for entry_id, good in zip(request.ids, reply.acknowledged, strict=True):
                if good:
                    self.ledger.note_acknowledged(parts(entry_id))
                else:
                    self.ledger.events["acknowledged by another one"] += 1
            self._held = []
            return
        claimed = isinstance(request, api.AutoClaimStreamEntriesRequest)
        if claimed:
            self._start = reply.next_start if reply.HasField("next_start") else None
            assert not reply.deleted_ids
            self.ledger.events["claimed"] += len(reply.entries)
        for entry in reply.entries:
            self.ledger.note_delivered(entry)
        # Some are forgotten, as by a consumer that has died.
        self._held = [entry.id for entry in reply.entries if self.careful or self.rng.random() < 0.8]
        found = bool(reply.entries) or self._start is not None
        self.idle = not found and not self._found
        self._found = found
        if not self.careful:
            # Now and then so long that others claim what this one is about to acknowledge.
            time.sleep(self.rng.choice([0, 0.005, 0.01, 3 * IDLE_MS / 1e3 if self._held else 0.01]))


def parts(entry_id: api.StreamId) -> Id:
    return entry_id.time_unix_ms, entry_id.sequence


def create(connection: Connection) -> None:
    """Make the stream and its group."""
    request = api.CreateStreamGroupRequest(key=KEY, group=GROUP, create_stream=True)
    streams_pb2_grpc.StreamServiceStub(connection.channel).CreateStreamGroup(request, timeout=CALL_SECONDS_MAX)


def finish(ledger: Ledger, workers: list[Worker], connection: Connection) -> None:
    """Settle what is under way, consume what is left, and check. Raises AssertionError."""
    for worker in workers:
        if worker.pending is not None:
            worker.step(connection)
    consumer = Consumer("last", ledger, seed=0, careful=True)
    while not consumer.idle:
        consumer.step(connection)
    check(ledger, connection)


def check(ledger: Ledger, connection: Connection) -> None:
    """Compare all that the server holds with the ledger. Raises AssertionError."""
    stub = streams_pb2_grpc.StreamServiceStub(connection.channel)
    entries: dict[bytes, Id] = {}
    request = api.GetStreamRangeRequest(key=KEY)
    while True:
        page = stub.GetStreamRange(request, timeout=CALL_SECONDS_MAX)
        for entry in page.entries:
            assert entry.fields[0].value not in entries, f"{entry.fields[0].value!r} is there twice"
            entries[entry.fields[0].value] = parts(entry.id)
        if not page.more:
            break
        request.range.minimum.id.CopyFrom(page.entries[-1].id)
        request.range.minimum.exclusive = True
    named: dict[str, Any] = {"key": KEY, "group": GROUP}
    listed = stub.ListStreamPending(api.ListStreamPendingRequest(**named, count=10_000), timeout=CALL_SECONDS_MAX)
    group = stub.DescribeStreamGroup(api.DescribeStreamGroupRequest(**named), timeout=CALL_SECONDS_MAX).group
    assert group.pending_count == len(listed.entries)
    ledger.check(entries, {parts(entry.id) for entry in listed.entries}, group.lag)
