"""One run of clients, sessions and a nemesis on a cluster, and all that is checked afterwards.

Keys are changed now and then, so that the history of each stays short enough to be checked. After each fault every client must be answered again, and every
node must come to what was acknowledged by then.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.faults.cluster_checks import Replayed, check_acknowledged, check_copy, check_sessions, replay
from tests.cluster.faults.cluster_workload import ClusterConnection, GroupKeys, Notes, reads_at, sessions_of
from tests.cluster.faults.fault_cluster import FaultCluster, Group, wait_until
from tests.cluster.faults.nemesis import Nemesis
from tests.crash.linearizable_messages import specifications_of
from tests.crash.linearizable_workload import Client, History, Plan
from tests.support.linearizability import check, resolved

CLIENTS = 4
STRIKES_PER_GENERATION = 2
GENERATIONS_A_GROUP = 100_000
"""No two groups have a key in common."""
SETTLE_SECONDS_MAX = 180.0
TOGETHER_SHARE = 0.3
LONG_SHARE = 0.05
ANSWERS = 10
"""That have to come after each fault."""


def seed() -> int:
    """Of a run: FAULTS_SEED, or a random one, which is printed."""
    chosen = int(os.environ.get("FAULTS_SEED") or random.randrange(2**32))
    print("FAULTS_SEED", chosen)
    return chosen


class Run:
    """The clients of one group and what they were told. `end` checks all of it."""

    def __init__(self, cluster: FaultCluster, group: Group, rng: random.Random) -> None:
        self.cluster, self.group, self.rng = cluster, group, rng
        self._generation = group.shard * GENERATIONS_A_GROUP
        self.history, self.notes = History(), Notes()
        self.plan = Plan(GroupKeys(group, self._generation))
        self.keys = self.plan.keys.all
        self._connections = [
            ClusterConnection(group, self.notes, rng.randrange(2**32), passed_on=number == CLIENTS - 1)
            for number in range(CLIENTS)
        ]
        self._clients = [
            Client(f"client{number}", rng.randrange(2**32), connection, self.plan, self.history, SETTLE_SECONDS_MAX)
            for number, connection in enumerate(self._connections)
        ]
        self._sessions = sessions_of(group, self.plan, self.notes, rng)

    def start(self) -> None:
        """Let everybody work, and return when somebody was answered."""
        for one in [*self._clients, *self._sessions]:
            one.start()
        self.wait_for_answers()

    def next_keys(self) -> None:
        """Let the clients go on with other keys."""
        self._generation += 1
        self.plan.keys = GroupKeys(self.group, self._generation)
        self.keys += self.plan.keys.all

    def wait_for_answers(self) -> None:
        """Return when writes are acknowledged again, and every node has come to what was acknowledged before."""
        count, position = len(self.notes.acknowledged), self.notes.last_position
        wait_until(lambda: self._raise_error() or len(self.notes.acknowledged) >= count + ANSWERS, "writes")
        for place, node in enumerate(self.group.nodes):
            wait_until(
                lambda place=place: reads_at(self.group, place, self.keys[0], position),
                f"position {position} at {node.name}",
            )

    def end(self) -> None:
        """End everybody. Raises what a client has found wrong by itself."""
        self.plan.stop = True
        for one in [*self._clients, *self._sessions]:
            one.end()
        self._clients[0].look_at(self.keys)
        for connection in self._connections:
            connection.close()

    def abandon(self) -> None:
        """End everybody without waiting for answers: the test has failed."""
        self.plan.stop = self.plan.abandoned = True

    def check_history(self, found: Replayed | None = None) -> None:
        """Prove that one order explains what all clients were told. Raises NotLinearizableError.

        By the log it is known which of the calls without an answer have happened; else each may have or not.
        """
        operations = self.history.operations if found is None else resolved(self.history.operations, found.requests)
        steps = check(operations, specifications_of(self.keys))
        print(f"{len(self.history.operations)} operations, {steps} steps; {dict(self.history.events)}")

    def stop_nodes(self) -> None:
        """End the nodes, which append leases as long as they run."""
        for node in self.group.nodes:
            node.process.stop()

    def check_log(self) -> Replayed:
        """Prove, when the nodes have ended, that the log says what clients and readers were told. Raises LogViolationError."""
        log = self.cluster.read_log(self.group)
        try:
            found = replay(log.read(1), self.notes.reads)
        finally:
            log.close()
        check_sessions(self.notes.reads)
        check_acknowledged(found, self.notes.acknowledged, [node.name for node in self.group.nodes])
        for node in self.group.nodes:
            check_copy(found, node.process.data_dir / "log")
        print(f"{len(self.notes.acknowledged)} acknowledged, {len(self.notes.reads)} reads; {dict(self.notes.events)}")
        print(f"{found.last_sequence} records, terms {found.terms}")
        return found

    def _raise_error(self) -> None:
        for one in [*self._clients, *self._sessions]:
            if one.error is not None:
                raise one.error


def check_under_faults(
    directory: Path,
    seed: int,
    faults: Sequence[str],
    *,
    nodes_of_groups: Sequence[int] = (3,),
    seconds: float = 0.0,
) -> None:
    """Let a nemesis strike each group by each fault once, and then go on until the time is over; then check."""
    rng = random.Random(seed)
    deadline = time.monotonic() + seconds
    with FaultCluster(directory, nodes_of_groups=nodes_of_groups) as cluster:
        runs = [Run(cluster, group, rng) for group in cluster.groups]
        nemeses = [Nemesis(cluster, run.group, run.notes, rng, faults) for run in runs]
        for run in runs:
            run.start()
        try:
            number = 0
            while number < len(faults) * len(runs) or time.monotonic() < deadline:
                if number and number % STRIKES_PER_GENERATION == 0:
                    for run in runs:
                        run.next_keys()
                # In what lasts longer, some faults come together, and some last longer.
                together = 2 if seconds and rng.random() < TOGETHER_SHARE else 1
                is_long = bool(seconds) and rng.random() < LONG_SHARE
                nemeses[number % len(runs)].strike(together=together, is_long=is_long)
                for run in runs:
                    run.wait_for_answers()
                number += 1
        except BaseException:
            for run in runs:
                run.abandon()
            raise
        for run in runs:
            run.end()
        for run in runs:
            run.stop_nodes()
            run.check_history(run.check_log())
