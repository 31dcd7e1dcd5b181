"""JetStreamLog over connections that break or say nothing, and over one server alone that dies or whose files rot."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.log.support import SECONDS_MAX, fill, record, rot, until
from tests.support.nats import message_count, settings_for
from tests.support.tcp_proxy import Proxy
from vecmem.cluster.nats_server import NatsServers
from vecmem.errors import CorruptionError, LogConflictError, UnavailableError, VecmemError, WritesStoppedError
from vecmem.log.jetstream import JetStreamLog
from vecmem.log.record import LogEntry, Record


@contextlib.contextmanager
def append_in_thread(log: JetStreamLog, records: list[Record]) -> Iterator[list[LogEntry | VecmemError]]:
    """An append that goes on during the block; its entries, or its error, are there after it."""
    outcome: list[LogEntry | VecmemError] = []

    def run() -> None:
        try:
            outcome.extend(log.append(records, log.last_sequence))
        except VecmemError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield outcome
    finally:
        thread.join(SECONDS_MAX)
        assert not thread.is_alive()


@pytest.fixture
def proxy(nats_server: NatsServers) -> Iterator[Proxy]:
    in_front = Proxy(nats_server.servers[0].plan.url.removeprefix("nats://"))
    yield in_front
    in_front.close()


@pytest.fixture
def proxied(nats_server: NatsServers, proxy: Proxy) -> Iterator[JetStreamLog]:
    """A log that is reached through the proxy only, with three records."""
    opened = JetStreamLog.open(settings_for(nats_server, servers=(f"nats://{proxy.address}",)), create=True)
    fill(opened, 3)
    yield opened
    opened.close()


def other_writer(log: JetStreamLog, servers: NatsServers) -> JetStreamLog:
    return JetStreamLog.open(replace(log._settings, servers=servers.urls))


def test_a_publish_that_arrived_but_was_not_answered_succeeds(
    proxied: JetStreamLog, proxy: Proxy, nats_server: NatsServers
) -> None:
    proxy.mute.set()
    with append_in_thread(proxied, [record(4)]) as outcome:
        until(lambda: message_count(nats_server, proxied._stream.name) == 2)
        proxy.mute.clear()
        proxy.cut()
    assert outcome == list(proxied.read(4))
    assert [entry.record for entry in proxied.read(1)] == [record(1), record(2), record(3), record(4)]
    assert message_count(nats_server, proxied._stream.name) == 2
    fill(proxied, 1)
    assert proxied.last_sequence == 5


def test_a_publish_that_arrived_is_found_though_others_came_after_it(
    proxied: JetStreamLog, proxy: Proxy, nats_server: NatsServers
) -> None:
    proxy.mute.set()
    with append_in_thread(proxied, [record(4)]) as outcome:
        until(lambda: message_count(nats_server, proxied._stream.name) == 2)
        other = other_writer(proxied, nats_server)
        fill(other, 1)
        proxy.mute.clear()
        proxy.cut()
    assert outcome == list(other.read(4, 5))
    with pytest.raises(LogConflictError):
        proxied.append([record(5)], 4)
    other.close()


def test_a_publish_that_was_lost_is_repeated(proxied: JetStreamLog, proxy: Proxy, nats_server: NatsServers) -> None:
    proxy.deaf.set()
    with append_in_thread(proxied, [record(4, 10_000)]) as outcome:
        until(lambda: proxy.swallowed_bytes > 10_000)
        assert message_count(nats_server, proxied._stream.name) == 1
        proxy.deaf.clear()
        proxy.cut()
    assert outcome == list(proxied.read(4))
    assert message_count(nats_server, proxied._stream.name) == 2


def test_a_publish_that_was_lost_conflicts_when_another_writer_has_its_place(
    proxied: JetStreamLog, proxy: Proxy, nats_server: NatsServers
) -> None:
    proxy.deaf.set()
    with append_in_thread(proxied, [record(4, 10_000)]) as outcome:
        until(lambda: proxy.swallowed_bytes > 10_000)
        other = other_writer(proxied, nats_server)
        other.append([record(44)], 3)
        proxy.deaf.clear()
        proxy.cut()
    (error,) = outcome
    assert isinstance(error, LogConflictError)
    assert [entry.record for entry in other.read(4)] == [record(44)]
    assert proxied.stopped_reason == ""
    other.close()


def test_a_publish_without_an_answer_is_settled_over_the_same_connection(
    nats_server: NatsServers, proxy: Proxy
) -> None:
    """The connection stays up but says nothing for a while: longer than a publish waits, shorter than pings do."""
    settings = settings_for(nats_server, servers=(f"nats://{proxy.address}",), publish_seconds=0.2)
    log = JetStreamLog.open(settings, create=True)
    proxy.mute.set()
    with append_in_thread(log, [record(1)]) as outcome:
        until(lambda: message_count(nats_server, settings.stream) == 1)
        time.sleep(0.5)
        proxy.mute.clear()
    assert outcome == list(log.read(1))
    assert message_count(nats_server, settings.stream) == 1
    log.close()


def test_an_append_that_cannot_be_settled_stops_writes_until_the_log_is_opened_again(
    own_nats_server: NatsServers,
) -> None:
    settings = settings_for(own_nats_server, settle_seconds=0.5)
    log = JetStreamLog.open(settings, create=True)
    fill(log, 3)
    (server,) = own_nats_server.servers
    server.kill()
    with pytest.raises(WritesStoppedError, match="no certainty"):
        log.append([record(4)], 3)
    server.launch()
    server.wait_until_ready()
    with pytest.raises(WritesStoppedError, match="until it is opened again"):
        log.append([record(4)], 3)
    with pytest.raises(WritesStoppedError):
        log.trim(2)
    assert log.stopped_reason
    until(lambda: log._connection._client is not None and log._connection._client.is_connected)
    assert [entry.record for entry in log.read(1)] == [record(1), record(2), record(3)]
    log.close()
    log = JetStreamLog.open(settings)
    fill(log, 2)
    assert [entry.record for entry in log.read(1)] == [record(number) for number in range(1, 6)]
    log.close()


def test_closing_ends_an_append_that_waits(own_nats_server: NatsServers) -> None:
    log = JetStreamLog.open(settings_for(own_nats_server), create=True)
    fill(log, 1)
    own_nats_server.kill()
    with append_in_thread(log, [record(2)]) as outcome:
        until(lambda: not log._connection._client.is_connected)
        log.close()
    (error,) = outcome
    assert isinstance(error, WritesStoppedError | UnavailableError)


def test_bit_rot_of_the_only_copy_is_named(own_nats_server: NatsServers) -> None:
    settings = settings_for(own_nats_server)
    log = JetStreamLog.open(settings, create=True)
    fill(log, 40, batch=1)
    log.close()
    rot(own_nats_server.servers[0], settings.stream, record(21).payload)
    log = JetStreamLog.open(settings)
    with pytest.raises(CorruptionError, match="sequence 21: message 21 is missing"):
        list(log.read(1))
    log.close()
