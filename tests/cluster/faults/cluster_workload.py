"""Clients of a faulty cluster: connections that find the node that leads and note what it acknowledges, and sessions that read from any node.

The clients themselves are those of the crash tests (tests/crash/linearizable_workload.py), each with a ClusterConnection.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Self

import grpc
from google.rpc import error_details_pb2, status_pb2

from tests.cluster.faults.fault_cluster import Group
from tests.crash.linearizable_messages import answered, kind_of, operation_of
from tests.crash.linearizable_workload import KINDS, Keys, OutcomeOpenError, Plan, StubConnection
from tests.support.linearizability import Action
from vecmem.cluster.peers import ACCEPT_MOVED_KEY
from vecmem.slots import slot_of
from vecmem.v1 import common_pb2, pipeline_pb2, transactions_pb2

WANDERS_SHARE: Final = 0.05
"""Of calls that go to just any node, whoever was thought to lead."""
READ_SECONDS_MAX: Final = 1.0
READS_FROM_ANY: Final = {
    "register": ("get",),
    "counter": ("get",),
    "set": ("contains", "size", "members"),
    "queue": ("items",),
    "lock": ("holder",),
}


class GroupKeys(Keys):
    """The keys of one generation, all in slots of one group."""

    def __init__(self, group: Group, generation: int) -> None:
        candidates = (f"{generation}.{number}" for number in itertools.count())
        fitting = (tag for tag in candidates if slot_of(tag.encode()) in group.slots)
        tags = list(itertools.islice(fitting, len(KINDS)))
        self.alone = [f"{{{tag}}}-alone-{kind}" for tag, kind in zip(tags, KINDS, strict=True)]
        self.together = [f"{{{tags[0]}}}-{kind}" for kind in KINDS]


@dataclass(frozen=True)
class Acknowledged:
    """A write that a node has answered."""

    request_id: str
    node: int | None
    """None: the call was passed on to whoever leads."""
    position: int
    tries: int
    """Calls that may have brought it into the log, this one included."""


@dataclass(frozen=True)
class ReplicaRead:
    """What a session was told by a node that may follow."""

    session: str
    node: int
    asked_for: int
    """min_position of the call."""
    position: int
    """That the answer says it reflects."""
    action: Action


@dataclass
class Notes:
    """What all connections and sessions of one group have noted."""

    acknowledged: list[Acknowledged] = field(default_factory=list)
    reads: list[ReplicaRead] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    last_position: int = 0
    """Of all that was acknowledged."""

    def last_leader(self) -> int:
        """Place of the node that was last seen to lead."""
        return next((one.node for one in reversed(self.acknowledged) if one.node is not None), 0)


def refusal_of(error: BaseException | None) -> error_details_pb2.ErrorInfo:
    """Why a call was refused; empty where the server has not said so."""
    info = error_details_pb2.ErrorInfo()
    if isinstance(error, grpc.RpcError):
        content = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
        if content:
            status_pb2.Status.FromString(content).details[0].Unpack(info)
    return info


class ClusterConnection:
    """One client's way to whichever node leads the group. See Connection in tests/crash/linearizable_workload.py.

    It goes there by itself, or `passed_on`, and asks one node until that fails it.
    """

    def __init__(self, group: Group, notes: Notes, seed: int, *, passed_on: bool = False) -> None:
        self._group = group
        self._notes = notes
        self._rng = random.Random(seed)
        self._passed_on = passed_on
        metadata = () if passed_on else ((ACCEPT_MOVED_KEY, "1"),)
        self._stubs = [StubConnection(address, metadata) for address in group.addresses]
        self._node = self._rng.randrange(len(self._stubs))
        self._tries: Counter[str] = Counter()

    def run(self, operation: pipeline_pb2.Operation, request_id: str, timeout_seconds: float) -> Any:
        return self._send(lambda stub, seconds: stub.run(operation, request_id, seconds), request_id, timeout_seconds)

    def commit(self, request: transactions_pb2.CommitRequest, timeout_seconds: float) -> Any:
        return self._send(
            lambda stub, seconds: stub.commit(request, seconds), request.write.request_id, timeout_seconds
        )

    def close(self) -> None:
        for stub in self._stubs:
            stub.close()

    def _send(self, send: Callable[[StubConnection, float], Any], request_id: str, timeout_seconds: float) -> Any:
        """Send to the one who leads; where a node says that it does not, to the one that it names, until the time is up."""
        deadline = time.monotonic() + timeout_seconds
        if self._rng.random() < WANDERS_SHARE:
            self._node = self._rng.randrange(len(self._stubs))
        while True:
            node = self._node
            self._tries[request_id] += 1
            try:
                reply = send(self._stubs[node], max(0.001, deadline - time.monotonic()))
            except OutcomeOpenError as error:
                refusal = refusal_of(error.__cause__)
                named = self._group.node_at(refusal.metadata.get("owner", ""))
                self._node = self._rng.randrange(len(self._stubs)) if named in (None, node) else named
                moved = refusal.reason == "MOVED"
                self._tries[request_id] -= moved
                self._notes.events[refusal.reason or error.code.name] += 1
                if not moved or time.monotonic() > deadline:
                    raise
                time.sleep(self._rng.uniform(0.005, 0.03))
                continue
            if request_id:
                position, by = reply.header.position.sequence, None if self._passed_on else node
                self._notes.acknowledged.append(Acknowledged(request_id, by, position, self._tries.pop(request_id)))
                self._notes.last_position = max(self._notes.last_position, position)
            return reply


class Session:
    """Reads from any node, in a thread of its own.

    From one and the same, which may die and even be replaced meanwhile, or from one after the other and then never less than it has seen.
    """

    def __init__(self, name: str, group: Group, plan: Plan, notes: Notes, seed: int, *, stays_at: int | None) -> None:
        self.error: BaseException | None = None
        self._name = name
        self._group = group
        self._plan = plan
        self._notes = notes
        self._rng = random.Random(seed)
        self._stubs = [StubConnection(address, ((ACCEPT_MOVED_KEY, "1"),)) for address in group.addresses]
        self._stays_at = stays_at
        self._seen = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Self:
        self._thread.start()
        return self

    def end(self) -> None:
        """Wait for it, after `plan.stop`. Raises what it found wrong."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        for stub in self._stubs:
            stub.close()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._plan.stop:
                self._read()
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            self.error = error

    def _read(self) -> None:
        rng = self._rng
        key = rng.choice(self._plan.keys.all)
        name = rng.choice(READS_FROM_ANY[kind_of(key)])
        action = Action(key, name, (rng.choice("abcd"),) if name == "contains" else ())
        operation = operation_of(action)
        read = getattr(operation, operation.WhichOneof("kind") or "").read
        read.preference = common_pb2.READ_PREFERENCE_ANY
        read.min_position.shard = self._group.shard
        node = rng.randrange(len(self._stubs)) if self._stays_at is None else self._stays_at
        if self._stays_at is None:
            # Now and then what others were told is asked for as well.
            read.min_position.sequence = (
                self._seen if rng.random() < 0.7 else max(self._seen, self._notes.last_position)
            )
        try:
            reply = self._stubs[node].run(operation, "", READ_SECONDS_MAX)
        except OutcomeOpenError as error:
            self._notes.events[f"read: {error.code.name}"] += 1
            time.sleep(0.05)
            return
        except grpc.RpcError as error:
            if refusal_of(error).reason != "POSITION_AHEAD":
                raise
            self._notes.events["read: position ahead"] += 1
            return
        position = reply.header.position.sequence
        noted = ReplicaRead(self._name, node, read.min_position.sequence, position, answered(action, reply))
        self._notes.reads.append(noted)
        self._seen = max(self._seen, position)
        time.sleep(rng.uniform(0.0, 0.03))


def sessions_of(group: Group, plan: Plan, notes: Notes, rng: random.Random) -> list[Session]:
    """One that stays at each node, and two that go around."""
    places: Sequence[int | None] = [*range(len(group.nodes)), None, None]
    return [
        Session(f"session {number}", group, plan, notes, rng.randrange(2**32), stays_at=place)
        for number, place in enumerate(places)
    ]


def reads_at(group: Group, place: int, key: str, position: int) -> bool:
    """Whether a node answers reads, here of a register, and has come to a position."""
    operation = operation_of(Action(key, "get"))
    operation.get_string.read.preference = common_pb2.READ_PREFERENCE_ANY
    operation.get_string.read.min_position.shard = group.shard
    operation.get_string.read.min_position.sequence = position
    stub = StubConnection(group.addresses[place], ((ACCEPT_MOVED_KEY, "1"),))
    try:
        with suppress(OutcomeOpenError, grpc.RpcError):
            return bool(stub.run(operation, "", 2.0).header.position.sequence >= position)
        return False
    finally:
        stub.close()
