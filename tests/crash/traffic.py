"""Clients at work in threads of their own while the server dies under them.

A `TrafficWriter` sends requests until the server is gone; a `Retrying` one keeps the request that was not answered and sends it again under its id.
"""

from __future__ import annotations

import random
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar

import grpc
import pytest

from tests.support.server import ServerProcess
from vecmem.v1 import admin_pb2, admin_pb2_grpc, collections_pb2, collections_pb2_grpc, points_pb2_grpc

CALL_SECONDS_MAX = 30.0
L = TypeVar("L")


class Connection:
    """The services of a server under one channel."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(
            address,
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 64 * 1024 * 1024)],
        )
        self.points = points_pb2_grpc.PointServiceStub(self.channel)
        self.collections = collections_pb2_grpc.CollectionServiceStub(self.channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(self.channel)

    def info(self) -> admin_pb2.GetServerInfoResponse:
        return self.admin.GetServerInfo(admin_pb2.GetServerInfoRequest(), timeout=CALL_SECONDS_MAX)

    def checkpoint(self) -> admin_pb2.CreateCheckpointResponse:
        return self.admin.CreateCheckpoint(admin_pb2.CreateCheckpointRequest(), timeout=CALL_SECONDS_MAX)

    def names(self) -> set[str]:
        reply = self.collections.ListCollections(
            collections_pb2.ListCollectionsRequest(page_size=1000), timeout=CALL_SECONDS_MAX
        )
        return {collection.name for collection in reply.collections}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()


class TrafficWriter(ABC):
    """One client."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        """What it found wrong."""

    def run(self, connection: Connection, stop: threading.Event) -> None:
        """Write until stopped or cut off."""
        try:
            while not stop.is_set():
                self.step(connection)
        except grpc.RpcError as error:
            # Where the server is gone, or going, what was not answered is in doubt. Any other answer is wrong.
            answered = "grpc-status-details-bin" in dict(error.trailing_metadata() or ())
            if answered and error.code() is not grpc.StatusCode.UNAVAILABLE:
                self.error = error
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            self.error = error

    @abstractmethod
    def step(self, connection: Connection) -> None:
        """Send one request, and note what was answered."""


class Retrying(TrafficWriter, Generic[L]):
    """Sends a request until it is answered, and tells a ledger that all share."""

    STUB: ClassVar[Any]
    """Of the service."""

    def __init__(self, name: str, ledger: L, seed: int) -> None:
        super().__init__()
        self.ledger = ledger
        self.rng = random.Random(seed)
        self.pending: tuple[str, Any] | None = None
        self.name = f"{name}-{seed}"
        self.request_count = 0

    def step(self, connection: Connection) -> None:
        if self.pending is None:
            method, request = self.next()
            self.request_count += 1
            request.write.request_id = f"{self.name}-{self.request_count}"
            self.pending = method, request
        method, request = self.pending
        reply = getattr(self.STUB(connection.channel), method)(request, timeout=CALL_SECONDS_MAX)
        self.pending = None
        self.answered(request, reply)

    @abstractmethod
    def next(self) -> tuple[str, Any]:
        """A method and a new request."""

    @abstractmethod
    def answered(self, request: Any, reply: Any) -> None:
        """Note what was answered."""


class Traffic:
    """Writers at work in threads of their own, until the server dies or `stop`."""

    def __init__(self, writers: Sequence[TrafficWriter], connection: Connection) -> None:
        self._writers = writers
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=writer.run, args=(connection, self._stop), daemon=True) for writer in writers
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Wait for the writers to end; raises what any of them found wrong."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * CALL_SECONDS_MAX)
            assert not thread.is_alive()
        for writer in self._writers:
            if writer.error is not None:
                raise writer.error


def seed_of(config: pytest.Config) -> int:
    """The seed of a crash loop, printed so that the run can be repeated."""
    seed: int | None = config.getoption("--seed", default=None)
    seed = random.randrange(2**32) if seed is None else seed
    print("seed", seed)
    return seed


def kill(server: ServerProcess, rng: random.Random, *, openings: int) -> None:
    """Kill a server while it works, and so many times again while it opens its directory."""
    server.kill()
    for _ in range(openings):
        with server.log_path.open("ab") as log:
            opening = subprocess.Popen(server.command(), stdout=subprocess.DEVNULL, stderr=log)
        time.sleep(rng.uniform(0.0, 1.0))
        opening.kill()
        opening.wait()


def work_through_deaths(
    server: ServerProcess, workers: Sequence[Retrying[Any]], rng: random.Random, rounds: int
) -> Counter[str]:
    """Let clients work while the server is killed and started again, so many times; returns what has happened.

    Now and then it dies again while it opens the directory. Raises what a client found wrong.
    """
    events: Counter[str] = Counter()
    for number in range(rounds):
        with Connection(server.address) as connection:
            traffic = Traffic(workers, connection)
            time.sleep(rng.uniform(0.05, 1.0))
            kill(server, rng, openings=rng.choice([0, 0, 0, 1]))
            try:
                traffic.end()
            except Exception as error:
                error.add_note(f"in round {number}, after {dict(events)}")
                raise
        events["pending"] += sum(worker.pending is not None for worker in workers)
        server.start()
        with Connection(server.address) as connection:
            events["from a checkpoint"] += bool(connection.info().recovery.checkpoint_sequence)
    return events
