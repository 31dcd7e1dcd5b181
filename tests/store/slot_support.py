"""Shards as state machines with their logs, and slots that move between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tests.store.support import Command, apply
from vecmem.log.record import LogEntry, Record, chain
from vecmem.slots import SLOTS, slot_of
from vecmem.store import slot_content
from vecmem.store.slot_copy import SlotCopy
from vecmem.store.slot_sets import SlotMask, mask_of, ranges_of
from vecmem.store.state_machine import COMMAND_RECORD, StateMachine
from vecmem.store.v1 import command_pb2

Result = command_pb2.CommandResult
ALL = np.ones(SLOTS, dtype=np.bool_)
NONE = np.zeros(SLOTS, dtype=np.bool_)


class Node:
    """A shard: what is done becomes a record of its log, and is applied."""

    def __init__(self, shard: int, owned: SlotMask | None = None) -> None:
        self.shard = shard
        self.state = StateMachine()
        self.log: list[LogEntry] = []
        self.now = 1
        if owned is not None:
            assert not self.set_slots("INITIAL", owned).HasField("refusal")

    @property
    def sequence(self) -> int:
        return len(self.log)

    def do(self, command: Command) -> Result:
        command.time_unix_ms = self.now = max(self.now, command.time_unix_ms)
        crc = self.log[-1].running_crc if self.log else 0
        [entry] = chain([Record(COMMAND_RECORD, command.SerializeToString())], len(self.log), crc)
        self.log.append(entry)
        return apply(self.state, entry)

    def set_slots(self, change: str, slots: SlotMask, **more: Any) -> Result:
        command = Command()
        command.set_slots.change = command_pb2.SlotChange.Value(f"SLOT_CHANGE_{change}")
        command.set_slots.slots.extend(ranges_of(slots))
        for name, value in more.items():
            setattr(command.set_slots, name, value)
        return self.do(command)

    def stage(self, part: command_pb2.StageSlots) -> Result:
        command = Command()
        command.stage_slots.CopyFrom(part)
        return self.do(command)

    def digest(self, slots: SlotMask) -> bytes:
        return finished(slot_content.digest_of(self.state, slots))


def finished(steps: Any) -> Any:
    """Take all steps; returns what comes of them."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def slots_of_names(names: Iterable[str]) -> SlotMask:
    return mask_of(slot_of(name.encode()) for name in names)


def accepted(result: Result) -> Result:
    assert not result.HasField("refusal"), result.refusal
    return result


def copy_over(source: Node, target: Node, slots: SlotMask, between: Callable[[], None] = lambda: None) -> int:
    """Copy slots until nothing is left; returns the attempt. `between` is called between parts, before writes are blocked."""
    attempt = accepted(source.set_slots("UNBLOCK", slots)).sequence
    copy = SlotCopy(
        source.state, source_shard=source.shard, attempt=attempt, slots=slots, applied_sequence=source.sequence
    )
    finished(copy.begin())
    finished(copy.catch_up(source.sequence))
    send(copy, target)
    between()
    while copy.left:
        send(copy, target)
        between()
    accepted(source.set_slots("BLOCK", slots))
    finished(copy.catch_up(source.sequence))
    while copy.left:
        send(copy, target)
    return attempt


def send(copy: SlotCopy, target: Node) -> None:
    *_, part = copy.next_part(300)
    accepted(target.stage(part))


def release(source: Node, target: Node, slots: SlotMask, attempt: int) -> Result:
    group = target.state.staging.staged(source.shard, attempt, slots)
    assert group is not None
    digest = finished(group.digest(target.state.name_of))
    assert digest == source.digest(slots)
    return source.set_slots("RELEASE", slots, peer_shard=target.shard, attempt=attempt, digest=digest)


def own(source: Node, target: Node, slots: SlotMask) -> Result:
    """Tell the target what the source remembers of its release."""
    assert source.state.slots is not None
    [found] = [one for one in source.state.slots.releases if np.array_equal(one.slots, slots)]
    return target.set_slots(
        "OWN",
        slots,
        peer_shard=source.shard,
        attempt=found.attempt,
        version_floor=found.version_floor,
        keyspace_version_floor=found.keyspace_version_floor,
        digest=found.digest,
    )


def move(source: Node, target: Node, slots: SlotMask, between: Callable[[], None] = lambda: None) -> None:
    """Move slots, all of them owned by the source, to the target."""
    attempt = copy_over(source, target, slots, between)
    accepted(release(source, target, slots, attempt))
    accepted(own(source, target, slots))
