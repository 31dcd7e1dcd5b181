"""A shard whose network and clocks fail: what clients and readers see has one order, and the log says so too.

And the checks notice: nodes with a defect each, seeded by node_entry, do not pass them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.faults.cluster_checks import (
    LogViolationError,
    Replayed,
    check_acknowledged,
    check_sessions,
    replay,
)
from tests.cluster.faults.cluster_workload import Acknowledged, ReplicaRead
from tests.cluster.faults.fault_cluster import LEASE_SECONDS, FaultCluster, wait_until
from tests.cluster.faults.fault_run import Run, check_under_faults, seed
from tests.cluster.faults.nemesis import FAULTS, LINK_FAULTS, Scene
from tests.crash.linearizable_messages import answered, kind_of, operation_of
from tests.crash.linearizable_workload import StubConnection
from tests.support.linearizability import Action, NotLinearizableError, Operation
from vecmem.cluster.peers import ACCEPT_MOVED_KEY
from vecmem.log.record import LogEntry, Record
from vecmem.store.state_machine import COMMAND_RECORD
from vecmem.store.v1 import command_pb2

WRITES_UNSEEN = 40
"""By a primary that is cut off: some of all its keys."""


@pytest.mark.timeout(600)
def test_a_shard_lives_through_partitions_slow_links_and_wrong_clocks(tmp_path: Path) -> None:
    check_under_faults(tmp_path, seed(), LINK_FAULTS)


@contextmanager
def run_with_defect(directory: Path, defect: str) -> Iterator[Run]:
    with FaultCluster(directory, defect=defect) as cluster:
        run = Run(cluster, cluster.groups[0], random.Random(seed()))
        run.start()
        try:
            yield run
        except BaseException:
            run.abandon()
            raise


def read_all(run: Run, place: int) -> None:
    """Add what one node says of all keys, as the one that leads, to the history."""
    stub = StubConnection(run.group.addresses[place], ((ACCEPT_MOVED_KEY, "1"),))
    for key in run.plan.keys.all:
        action = Action(key, {"set": "members", "queue": "items", "lock": "holder"}.get(kind_of(key), "get"))
        called_ns = time.monotonic_ns()
        reply = stub.run(operation_of(action), "", 10.0)
        told = answered(action, reply)
        run.history.operations.append(Operation.known("reader", called_ns, time.monotonic_ns(), told))
    stub.close()


def test_a_primary_that_ignores_its_lease_is_noticed(tmp_path: Path) -> None:
    """Canary: cut off from the log it still answers reads, while others write."""
    with run_with_defect(tmp_path, "ignores_its_lease") as run:
        scene = Scene(run.cluster, run.group, run.notes, run.rng)
        with FAULTS["cut_off_primary"](scene):
            first, count = run.notes.last_leader(), len(run.notes.acknowledged)
            wait_until(
                lambda: sum(one.node not in (None, first) for one in run.notes.acknowledged[count:]) > WRITES_UNSEEN,
                "another primary",
            )
            read_all(run, first)
        run.end()
        run.stop_nodes()
        found = run.check_log()
        with pytest.raises(NotLinearizableError) as raised:
            run.check_history(found)
        print(raised.value)


def test_a_replica_that_acknowledges_is_noticed(tmp_path: Path) -> None:
    """Canary: whoever asks a node that follows to write is told that it is done."""
    with run_with_defect(tmp_path, "acknowledges_by_itself") as run:
        wait_until(
            lambda: {one.node for one in run.notes.acknowledged} >= set(range(len(run.group.nodes))), "wrong answers"
        )
        time.sleep(LEASE_SECONDS)
        run.end()
        with pytest.raises(NotLinearizableError):
            run.check_history()
        run.stop_nodes()
        with pytest.raises(LogViolationError):
            run.check_log()
        run.notes.reads.clear()
        with pytest.raises(LogViolationError, match=r"Acknowledged.* is in the log at"):
            run.check_log()


def lease(node: str, duration_ms: int = 1_000) -> command_pb2.Command:
    return command_pb2.Command(hold_lease=command_pb2.HoldLease(node=node, duration_ms=duration_ms))


def added(delta: int, request_id: str) -> command_pb2.Command:
    operations = [operation_of(Action("0-counter", "add", (delta,)))]
    return command_pb2.Command(request_id=request_id, run_operations=command_pb2.RunOperations(operations=operations))


def replayed(*reads: ReplicaRead) -> Replayed:
    """One node leads, adds 1 and hands over; another one adds 2, and is asked once more for the first."""
    commands = [lease("a"), added(1, "one"), lease("a", 0), lease("b"), added(2, "two"), added(1, "one"), lease("b")]
    entries = [
        LogEntry(sequence, Record(COMMAND_RECORD, command.SerializeToString()), sequence)
        for sequence, command in enumerate(commands, 1)
    ]
    return replay(entries, reads)


def read_of(position: int, value: int, *, asked_for: int = 0) -> ReplicaRead:
    return ReplicaRead("session", 0, asked_for, position, Action("0-counter", "get", (), value))


def test_a_read_is_compared_with_the_log_at_its_position() -> None:
    found = replayed(read_of(0, 0), read_of(2, 1), read_of(4, 1), read_of(7, 3))
    assert found.terms == [(1, "a"), (3, ""), (4, "b")]
    assert found.requests == {"one": 2, "two": 5}
    for wrong in (read_of(1, 1), read_of(2, 3), read_of(7, 4), read_of(8, 3)):
        with pytest.raises(LogViolationError):
            replayed(wrong)


def test_a_session_does_not_go_back() -> None:
    check_sessions([read_of(2, 1), read_of(2, 1), read_of(4, 1, asked_for=4)])
    for wrong in ([read_of(4, 1), read_of(2, 1)], [read_of(2, 1, asked_for=3)]):
        with pytest.raises(LogViolationError):
            check_sessions(wrong)


def test_a_write_is_acknowledged_by_who_leads_where_it_is() -> None:
    found = replayed()
    for right in (Acknowledged("one", 0, 2, 1), Acknowledged("two", 1, 5, 1), Acknowledged("one", 1, 2, 2)):
        check_acknowledged(found, [right], ["a", "b"])
    for wrong in (
        Acknowledged("two", 0, 5, 1),  # another one leads there
        Acknowledged("two", 0, 5, 2),  # ... and it has not led since
        Acknowledged("one", 1, 2, 1),  # never asked before
        Acknowledged("one", 1, 6, 2),  # it is elsewhere
        Acknowledged("three", 0, 2, 1),  # it is nowhere
    ):
        with pytest.raises(LogViolationError):
            check_acknowledged(found, [wrong], ["a", "b"])
