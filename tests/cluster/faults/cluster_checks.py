"""What has to hold after a run, by the one log: nobody else acknowledges, and whoever follows shows a state that the log had.

The log is replayed by the specifications that the histories are checked with, not by vecmem's own state machine. Where they leave open what a value is, all that
it may be is kept, and observations narrow it down.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.faults.cluster_workload import Acknowledged, ReplicaRead
from tests.crash.linearizable_messages import SPECIFICATIONS, kind_of
from tests.support.linearizability import Action
from vecmem.log.record import LogEntry
from vecmem.log.rocks_verify import verify_rocks_log
from vecmem.store.v1 import command_pb2
from vecmem.v1 import lists_pb2, pipeline_pb2, strings_pb2

READ_KINDS = frozenset({"get_string", "check_set_members", "scan_set", "get_list_range", "describe_lock"})
"""Of operations, which a transaction may hold."""


class LogViolationError(AssertionError):
    """Something that clients were told is not what the log says."""


@dataclass
class Replayed:
    """What the log says."""

    last_sequence: int = 0
    terms: list[tuple[int, str]] = field(default_factory=list)
    """Where each node has begun to lead, and its name; in log order, so that they cannot overlap."""
    requests: dict[str, int] = field(default_factory=dict)
    """Sequence of the record that brought each request first."""
    running_crcs: list[int] = field(default_factory=lambda: [0])

    def leader_at(self, sequence: int) -> str:
        """Who leads where a record is in the log; empty: nobody."""
        place = bisect.bisect_right(self.terms, (sequence, "\uffff")) - 1
        return self.terms[place][1] if place >= 0 else ""

    def leads_after(self, node: str, sequence: int) -> bool:
        """Whether a node has led at a record or behind it."""
        return self.leader_at(sequence) == node or any(name == node for begins, name in self.terms if begins > sequence)


def action_of(operation: pipeline_pb2.Operation) -> Action:
    """The action that a logged operation does: operation_of the other way round."""
    kind = operation.WhichOneof("kind")
    assert kind is not None
    request: Any = getattr(operation, kind)
    key = request.keys[0].decode() if kind == "delete_keys" else request.key.decode()
    match kind:
        case "set_string":
            value = request.value.decode()
            if request.HasField("expected_version"):
                return Action(key, "set_if_version", (value, request.expected_version))
            absent = request.condition == strings_pb2.SET_CONDITION_ABSENT
            return Action(key, "set_if_absent" if absent else "set", (value,))
        case "delete_keys":
            return Action(key, "delete")
        case "add_integer":
            return Action(key, "add", (request.delta,))
        case "add_set_members" | "remove_set_members":
            return Action(key, "add" if kind.startswith("add") else "remove", (request.members[0].decode(),))
        case "push_list_items":
            assert request.end == lists_pb2.LIST_END_RIGHT
            return Action(key, "push", (request.items[0].decode(),))
        case "pop_list_items":
            return Action(key, "pop")
        case "acquire_lock":
            return Action(key, "acquire", (request.owner.decode(),))
        case "release_lock":
            return Action(key, "release", (request.owner.decode(), request.fencing_token))
        case other:
            raise ValueError(f"no client does {other}")


class LogModel:
    """The values of all keys at one place of the log: for each the states that it may have."""

    def __init__(self) -> None:
        self._states: dict[str, tuple[Any, ...]] = {}

    def apply(self, action: Action) -> None:
        """Go on by an action."""
        states = self._after(action)
        if not states:
            raise LogViolationError(f"{action} is not possible where the log has it")
        self._states[action.key] = states

    def observe(self, action: Action) -> None:
        """Take note of what a client was told. Raises LogViolationError."""
        found = self._after(action)
        if not found:
            raise LogViolationError(f"{action} is not what the log says: {self._of(action.key)!r}")
        self._states[action.key] = found

    def holds(self, condition: Action) -> bool:
        """Whether a condition holds, which is never open."""
        return bool(self._after(Action(condition.key, condition.name, condition.arguments, True)))

    def _of(self, key: str) -> tuple[Any, ...]:
        return self._states.get(key, (SPECIFICATIONS[kind_of(key)].initial,))

    def _after(self, action: Action) -> tuple[Any, ...]:
        step = SPECIFICATIONS[kind_of(action.key)].step
        return tuple(dict.fromkeys(after for state in self._of(action.key) for after in step(state, action)))


def replay(entries: Iterable[LogEntry], reads: Sequence[ReplicaRead]) -> Replayed:
    """Go through a log from its beginning, and compare each read with the state at the position that it claims.

    Raises LogViolationError.
    """
    found, model = Replayed(), LogModel()
    reads_at = defaultdict(list)
    for read in reads:
        reads_at[read.position].append(read)
    time_unix_ms = 0
    _compare(model, reads_at.pop(0, []))
    for entry in entries:
        command = command_pb2.Command.FromString(entry.record.payload)
        if entry.sequence != found.last_sequence + 1 or command.time_unix_ms < time_unix_ms:
            raise LogViolationError(f"record {entry.sequence} at {command.time_unix_ms} comes after {time_unix_ms}")
        time_unix_ms = command.time_unix_ms
        found.last_sequence = entry.sequence
        found.running_crcs.append(entry.running_crc)
        _replay_one(entry.sequence, command, found, model)
        _compare(model, reads_at.pop(entry.sequence, []))
    if reads_at:
        raise LogViolationError(
            f"the log ends at {found.last_sequence}, and these say they are behind it: {dict(reads_at)}"
        )
    return found


def _replay_one(sequence: int, command: command_pb2.Command, found: Replayed, model: LogModel) -> None:
    if command.request_id and found.requests.setdefault(command.request_id, sequence) != sequence:
        return  # it came again
    match command.WhichOneof("kind"):
        case "hold_lease":
            lease = command.hold_lease
            name = lease.node if lease.duration_ms else ""
            if not found.terms or found.terms[-1][1] != name:
                found.terms.append((sequence, name))
        case "run_operations":
            for operation in command.run_operations.operations:
                model.apply(action_of(operation))
        case "commit_transaction":
            transaction = command.commit_transaction
            holds = all(
                model.holds(Action(one.compare.key.decode(), "is_at_least", (one.compare.integer.value,)))
                for one in transaction.compare
            )
            for step in transaction.then if holds else transaction.otherwise:
                if step.operation.WhichOneof("kind") not in READ_KINDS:
                    model.apply(action_of(step.operation))
        case "set_slots" if command.set_slots.change == command_pb2.SLOT_CHANGE_INITIAL:
            pass
        case other:
            raise LogViolationError(f"record {sequence} holds {other}, which nobody has asked for")


def _compare(model: LogModel, reads: Sequence[ReplicaRead]) -> None:
    for read in reads:
        try:
            model.observe(read.action)
        except LogViolationError as error:
            raise LogViolationError(f"{read}: {error}") from error


def check_sessions(reads: Sequence[ReplicaRead]) -> None:
    """Prove that no session goes back, and that each is given what it asks for at least. Raises LogViolationError."""
    seen: dict[str, ReplicaRead] = {}
    for read in reads:
        before = seen.get(read.session)
        if read.position < read.asked_for or (before is not None and read.position < before.position):
            raise LogViolationError(f"{read} goes back behind what was asked for, or behind {before}")
        seen[read.session] = read


def check_acknowledged(found: Replayed, acknowledged: Sequence[Acknowledged], names: Sequence[str]) -> None:
    """Prove that each acknowledged write is in the log where it was said to be, and was acknowledged by who led there.

    A request that was sent before may be in the term of another node, which has not lived to answer; who leads later answers it from memory.
    `names` are those of the group's nodes. Raises LogViolationError.
    """
    for write in acknowledged:
        at = found.requests.get(write.request_id)
        if at != write.position:
            raise LogViolationError(f"{write} is in the log at {at}")
        if write.node is None:
            continue
        name = names[write.node]
        if found.leader_at(at) != name and (write.tries == 1 or not found.leads_after(name, at)):
            raise LogViolationError(f"{write}, by {name}, is in the term of {found.leader_at(at)!r}")


def check_copy(found: Replayed, log_directory: Path) -> None:
    """Prove that a node's own copy is a beginning of the log. Raises LogViolationError."""
    report = verify_rocks_log(log_directory)
    if report.damage:
        raise LogViolationError(f"{log_directory}: {report.damage}")
    if report.last_sequence > found.last_sequence or report.running_crc != found.running_crcs[report.last_sequence]:
        raise LogViolationError(f"{log_directory} differs from the log at or before {report.last_sequence}")
