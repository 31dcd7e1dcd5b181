"""What concurrent clients see of keys has one order that explains it, whatever becomes of the server meanwhile.

It is killed while it takes writes and while it opens its directory, hangs, hangs and is killed, and ends by SIGTERM; it checkpoints all the time.
`--rounds N` and `--seed S` choose another length and repeat a run, as far as threads repeat.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.crash.linearizable_messages import specifications_of
from tests.crash.linearizable_workload import (
    Client,
    CoalescingConnection,
    Connection,
    History,
    Keys,
    Plan,
    StubConnection,
)
from tests.crash.traffic import kill, seed_of
from tests.support.linearizability import NotLinearizableError, check
from tests.support.server import ServerProcess
from vecmem.v1 import pipeline_pb2, transactions_pb2

ARGUMENTS = ["--checkpoint-log-bytes", "60000", "--log-retention-bytes", "0", "--checkpoint-idle-seconds", "0.3"]
CLIENTS = 5
ROUNDS = 6
ROUNDS_PER_GENERATION = 4
"""Then the clients go on with other keys, so that histories stay short enough to be checked at once."""


def die(server: ServerProcess, rng: random.Random) -> None:
    """Kill it while it works, and now and then while it opens the directory."""
    kill(server, rng, openings=rng.choice([0, 0, 1, 2]))
    server.start()


def hang(server: ServerProcess, rng: random.Random) -> None:
    """Longer than clients wait: what they sent is done after they have gone."""
    server.send_signal(signal.SIGSTOP)
    time.sleep(rng.uniform(0.1, 1.0))
    server.send_signal(signal.SIGCONT)


def hang_and_die(server: ServerProcess, rng: random.Random) -> None:
    server.send_signal(signal.SIGSTOP)
    time.sleep(rng.uniform(0.1, 0.6))
    server.kill()
    server.start()


def stop(server: ServerProcess, rng: random.Random) -> None:
    server.stop()
    server.start()


FAULTS: Sequence[Callable[[ServerProcess, random.Random], None]] = (die, hang, hang_and_die, stop)


def run_rounds(server: ServerProcess, connections: Sequence[Connection], rng: random.Random, rounds: int) -> History:
    """Let clients work, one for each connection, while the server goes through faults; then check what they saw."""
    history = History()
    plan = Plan(Keys(0))
    keys = plan.keys.all
    clients = [
        Client(f"client{number}", rng.randrange(2**32), connection, plan, history).start()
        for number, connection in enumerate(connections)
    ]
    order: list[Callable[[ServerProcess, random.Random], None]] = []
    try:
        for number in range(rounds):
            if number and number % ROUNDS_PER_GENERATION == 0:
                plan.keys = Keys(number // ROUNDS_PER_GENERATION)
                keys += plan.keys.all
            time.sleep(rng.uniform(0.2, 1.2))
            order = order or rng.sample(FAULTS, len(FAULTS))
            fault = order.pop()
            fault(server, rng)
            history.events[fault.__name__] += 1
            for client in clients:
                client.raise_error()
        time.sleep(0.5)
    except BaseException:
        plan.abandoned = True
        raise
    finally:
        plan.stop = True
        for client in clients:
            client.end()
    clients[0].look_at(keys)
    steps = check(history.operations, specifications_of(keys))
    print(f"{len(history.operations)} operations, {steps} steps", dict(history.events))
    return history


def run_with_faults(directory: Path, config: pytest.Config, connect: Callable[[str], list[Any]], rounds: int) -> None:
    rng = random.Random(seed_of(config))
    rounds = config.getoption("--rounds", default=None) or rounds
    with ServerProcess(directory / "data", arguments=ARGUMENTS) as server:
        connections = connect(server.address)
        try:
            history = run_rounds(server, connections, rng, rounds)
        finally:
            for connection in set(connections):
                connection.close()
    events = history.events
    assert rounds < ROUNDS or all(events[event] for event in ("given up", "settled by another try", "committed")), (
        events
    )


def stubs(address: str) -> list[Any]:
    return [StubConnection(address) for _ in range(CLIENTS)]


def one_client(address: str) -> list[Any]:
    return [CoalescingConnection(address)] * CLIENTS


def both(address: str) -> list[Any]:
    return [*stubs(address), *one_client(address)]


def test_keys_are_linearizable_whenever_the_server_dies(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    run_with_faults(tmp_path, pytestconfig, stubs, ROUNDS)


def test_operations_that_travel_together_are_linearizable(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    run_with_faults(tmp_path, pytestconfig, one_client, ROUNDS // 2)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_soak_with_both_sorts_of_clients(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    run_with_faults(tmp_path, pytestconfig, both, 100)


class Faulty:
    """A connection that does something wrong, to a part of the calls. What it knows is shared by all clients."""

    def __init__(self, address: str) -> None:
        self.wrongs = 0
        self._stub = StubConnection(address)
        self._rng = random.Random(7)
        self._lock = threading.Lock()
        self._requests = 0

    def run(self, operation: pipeline_pb2.Operation, request_id: str, timeout_seconds: float) -> Any:
        del timeout_seconds
        return self._stub.run(operation, request_id, 60)

    def commit(self, request: transactions_pb2.CommitRequest, timeout_seconds: float) -> Any:
        del timeout_seconds
        return self._stub.commit(request, 60)

    def close(self) -> None:
        self._stub.close()

    def _goes_wrong(self) -> bool:
        with self._lock:
            wrong = self._rng.random() < 0.1
            self.wrongs += wrong
        return wrong

    def _request_id(self) -> str:
        with self._lock:
            self._requests += 1
            return f"{type(self).__name__}-{self._requests}"


class StaleReads(Faulty):
    """Answers some reads from a cache that is not told of writes."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._cache: dict[bytes, Any] = {}

    def run(self, operation: pipeline_pb2.Operation, request_id: str, timeout_seconds: float) -> Any:
        asked = operation.SerializeToString(deterministic=True)
        if not request_id and asked in self._cache and self._goes_wrong():
            return self._cache[asked]
        reply = super().run(operation, request_id, timeout_seconds)
        if not request_id:
            self._cache.setdefault(asked, reply)
        return reply


class LostWrites(Faulty):
    """Undoes some additions and pushes after they have been acknowledged."""

    def run(self, operation: pipeline_pb2.Operation, request_id: str, timeout_seconds: float) -> Any:
        undo = pipeline_pb2.Operation()
        reply = super().run(operation, request_id, timeout_seconds)
        match operation.WhichOneof("kind"):
            case "add_integer":
                undo.add_integer.key, undo.add_integer.delta = operation.add_integer.key, -operation.add_integer.delta
            case "push_list_items":
                undo.pop_list_items.key = operation.push_list_items.key
                undo.pop_list_items.end = operation.push_list_items.end
            case _:
                return reply
        if self._goes_wrong():
            super().run(undo, self._request_id(), timeout_seconds)
        return reply


class RepeatedWrites(Faulty):
    """Does some writes a second time, as a server would that does not know a repeat."""

    def run(self, operation: pipeline_pb2.Operation, request_id: str, timeout_seconds: float) -> Any:
        reply = super().run(operation, request_id, timeout_seconds)
        if request_id and operation.WhichOneof("kind") in ("add_integer", "pop_list_items") and self._goes_wrong():
            super().run(operation, self._request_id(), timeout_seconds)
        return reply


class TornTransactions(Faulty):
    """Does the steps of some transactions one after the other."""

    def commit(self, request: transactions_pb2.CommitRequest, timeout_seconds: float) -> Any:
        if not self._goes_wrong():
            return super().commit(request, timeout_seconds)
        compared = transactions_pb2.CommitRequest(compare=request.compare, then=request.then[:1])
        compared.otherwise.extend(request.otherwise[:1])
        reply = super().commit(compared, timeout_seconds)
        for step in (request.then if reply.succeeded else request.otherwise)[1:]:
            time.sleep(0.005)
            further = transactions_pb2.CommitRequest(then=[step])
            reply.results.extend(super().commit(further, timeout_seconds).results)
        return reply


class SharedLocks(Faulty):
    """Tells some of those who ask for a lock that they have it, while another has."""

    def run(self, operation: pipeline_pb2.Operation, request_id: str, timeout_seconds: float) -> Any:
        reply = super().run(operation, request_id, timeout_seconds)
        if operation.WhichOneof("kind") == "acquire_lock" and not reply.acquired and self._goes_wrong():
            reply.acquired = True
            reply.holder.owner = operation.acquire_lock.owner
            reply.fencing_token = reply.holder.fencing_token
        return reply


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("canaries") / "data") as running:
        yield running


@pytest.mark.parametrize("sort", [Faulty, StaleReads, LostWrites, RepeatedWrites, TornTransactions, SharedLocks])
def test_the_check_notices_what_is_wrong(server: ServerProcess, sort: type[Faulty]) -> None:
    """Canary: the same clients, and between them and the server something that breaks one promise; or nothing, for comparison."""
    history = History()
    plan = Plan(Keys(1_000 + [*Faulty.__subclasses__(), Faulty].index(sort)))
    connection = sort(server.address)
    clients = [Client(f"{sort.__name__}{n}", n, connection, plan, history).start() for n in range(CLIENTS)]
    deadline = time.monotonic() + 60
    while len(history.operations) < 1_500 and time.monotonic() < deadline and not any(one.error for one in clients):
        time.sleep(0.05)
    plan.stop = True
    for client in clients:
        client.end()
    connection.close()
    specifications = specifications_of(plan.keys.all)
    if sort is Faulty:
        check(history.operations, specifications)
        return
    assert connection.wrongs
    with pytest.raises(NotLinearizableError) as raised:
        check(history.operations, specifications)
    print(connection.wrongs, raised.value)
