"""JetStreamLog while servers die, hang and connections break: nothing acknowledged is lost, doubled or out of order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from tests.log.support import SECONDS_MAX, fill, record, rot, until
from tests.support.nats import ask_jetstream, settings_for
from vecmem.cluster.nats_server import NatsServer, NatsServers
from vecmem.errors import UnavailableError, VecmemError
from vecmem.log.jetstream import JetStreamLog
from vecmem.log.record import LogEntry


class Appending:
    """Appends records in a thread until it is stopped; keeps what was acknowledged and what went wrong."""

    def __init__(self, log: JetStreamLog) -> None:
        self.acknowledged: list[LogEntry] = []
        self.error: VecmemError | None = None
        self._log = log
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                after = self._log.last_sequence
                records = [record(after + 1 + place) for place in range(1 + after % 3)]
                self.acknowledged += self._log.append(records, after)
        except VecmemError as error:
            self.error = error

    def stop(self) -> list[LogEntry]:
        self._stopping.set()
        self._thread.join(SECONDS_MAX)
        assert not self._thread.is_alive()
        assert self.error is None, self.error
        return self.acknowledged


def leader_of(servers: NatsServers, stream: str) -> NatsServer:
    """The server that leads a stream. Any other one that runs is asked."""
    name = ask_jetstream(servers, f"STREAM.INFO.{stream}")["cluster"]["leader"]
    return next(server for server in servers.servers if server.plan.name == name)


def kill(server: NatsServer) -> None:
    server.kill()


def hang(server: NatsServer) -> None:
    server.send_signal(signal.SIGSTOP)


def revive(server: NatsServer) -> None:
    """Undo either, and wait until the server is part of its cluster again."""
    if server.running:
        server.send_signal(signal.SIGCONT)
    else:
        server.launch()
    server.wait_until_ready()


@pytest.mark.parametrize("fail", [kill, hang])
def test_the_death_of_the_leader_loses_nothing(nats_cluster: NatsServers, fail: Callable[[NatsServer], None]) -> None:
    """Appends go on by themselves after the election; a follower, here as another process, sees each record once."""
    settings = settings_for(nats_cluster)
    log, following = JetStreamLog.open(settings, create=True), JetStreamLog.open(settings)
    follower_entries: list[LogEntry] = []

    def follow() -> None:
        for entry in following.follow(1):
            follower_entries.append(entry)  # noqa: PERF402 - it never ends, and is looked at meanwhile

    reading = threading.Thread(target=follow)
    reading.start()
    appending = Appending(log)
    until(lambda: len(appending.acknowledged) > 50)
    leader = leader_of(nats_cluster, settings.stream)
    try:
        fail(leader)
        before = len(appending.acknowledged)
        until(lambda: len(appending.acknowledged) > before + 50 or appending.error is not None)
    finally:
        revive(leader)
    acknowledged = appending.stop()
    until(lambda: len(follower_entries) >= len(acknowledged))
    following.close()
    reading.join(SECONDS_MAX)
    log.close()
    reopened = JetStreamLog.open(settings)
    assert list(reopened.read(1)) == acknowledged == follower_entries
    assert [entry.sequence for entry in acknowledged] == list(range(1, len(acknowledged) + 1))
    assert all(entry.record == record(entry.sequence) for entry in acknowledged)
    reopened.close()


def test_all_servers_killed_at_once_lose_nothing(nats_cluster: NatsServers) -> None:
    settings = settings_for(nats_cluster)
    log = JetStreamLog.open(settings, create=True)
    appending = Appending(log)
    until(lambda: len(appending.acknowledged) > 50)
    nats_cluster.kill()
    before = len(appending.acknowledged)
    nats_cluster.start()
    until(lambda: len(appending.acknowledged) > before + 50 or appending.error is not None)
    acknowledged = appending.stop()
    assert list(log.read(1)) == acknowledged
    assert [entry.sequence for entry in acknowledged] == list(range(1, len(acknowledged) + 1))
    log.close()


@pytest.mark.parametrize("leads", [True, False])
def test_a_log_is_opened_while_one_server_is_dead(nats_cluster: NatsServers, *, leads: bool) -> None:
    """Nobody can ask it whether it syncs; it acknowledges nothing either."""
    settings = settings_for(nats_cluster)
    log = JetStreamLog.open(settings, create=True)
    fill(log, 10)
    log.close()
    leader = leader_of(nats_cluster, settings.stream)
    dead = leader if leads else next(server for server in nats_cluster.servers if server is not leader)
    try:
        kill(dead)
        opened: list[JetStreamLog] = []

        def is_open() -> bool:
            with suppress(UnavailableError):  # until it is missed, and another one leads
                opened.append(JetStreamLog.open(settings))
            return bool(opened)

        until(is_open)
        fill(opened[0], 10)
        assert opened[0].last_sequence == 20
        opened[0].close()
    finally:
        revive(dead)


def test_a_reader_waits_for_the_election_of_a_leader(nats_cluster: NatsServers) -> None:
    settings = settings_for(nats_cluster)
    log = JetStreamLog.open(settings, create=True)
    fill(log, 30)
    leader = leader_of(nats_cluster, settings.stream)
    leader.kill()
    try:
        assert [entry.sequence for entry in log.read(1)] == list(range(1, 31))
        assert log.running_crc_at(12) == next(log.read(12)).running_crc
        log.trim(15)
        assert log.first_sequence == 15
    finally:
        revive(leader)
        log.close()


def test_bit_rot_in_one_copy_is_noticed_and_the_leaders_copy_read(
    nats_cluster: NatsServers, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(nats_cluster)
    log = JetStreamLog.open(settings, create=True)
    fill(log, 40, batch=1)
    log.close()
    leader = leader_of(nats_cluster, settings.stream)
    rotten = next(server for server in nats_cluster.servers if server is not leader)
    rot(rotten, settings.stream, record(21).payload)
    log = JetStreamLog.open(replace(settings, servers=(rotten.plan.url,)))

    def read_all() -> bool:
        assert [entry.record for entry in log.read(1)] == [record(number) for number in range(1, 41)]
        return "sequence 21: message 21 is missing" in caplog.text

    until(read_all)  # at first the others answer
    log.close()
