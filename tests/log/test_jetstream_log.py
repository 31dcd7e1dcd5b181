"""JetStreamLog beyond what every TransactionLog promises: pieces, two writers, damage behind its back, other streams."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.log.support import SECONDS_MAX, fill, record
from tests.support.nats import ask_jetstream, message_count, send, servers_in, settings_for
from vecmem.cluster.nats_server import NatsServers
from vecmem.errors import (
    ConfigurationError,
    CorruptionError,
    LimitExceededError,
    LogConflictError,
    NotFoundError,
    UnavailableError,
    UnsupportedFormatError,
    WritesStoppedError,
)
from vecmem.log import jetstream_batch, jetstream_reader
from vecmem.log.jetstream import JetStreamLog, JetStreamSettings
from vecmem.log.jetstream_batch import Batch, Place, batch_of, cut_into_batches, entries_of
from vecmem.log.record import HEADER_BYTES, Record, frame_bytes


@pytest.fixture
def settings(nats_server: NatsServers) -> JetStreamSettings:
    return settings_for(nats_server)


@pytest.fixture
def log(settings: JetStreamSettings) -> Iterator[JetStreamLog]:
    opened = JetStreamLog.open(settings, create=True)
    yield opened
    opened.close()


def end_of(log: JetStreamLog) -> Place:
    return log._end


def batch_behind(place: Place, *records: Record) -> Batch:
    """A message as this version would append it."""
    _, (batch,) = cut_into_batches(records, after=place, body_bytes_max=1_000_000)
    return batch


def publish(servers: NatsServers, settings: JetStreamSettings, batch: Batch, **headers: str) -> dict[str, Any]:
    """Put a message into the stream behind the log's back."""
    return send(servers, f"vecmem.log.{settings.stream}", batch.frames, batch.headers() | headers)


# Messages and pieces


def test_a_batch_larger_than_a_message_is_cut_between_records(
    log: JetStreamLog, nats_server: NatsServers, settings: JetStreamSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream_batch, "PIECE_BYTES", 1_000)
    entries = log.append([record(number, size) for number, size in enumerate((400, 400, 400, 4_000, 40), 1)], 0)
    assert message_count(nats_server, settings.stream) == 4
    assert list(log.read(1)) == entries
    assert [log.running_crc_at(entry.sequence) for entry in entries] == [entry.running_crc for entry in entries]
    assert [entry.sequence for entry in log.read(4)] == [4, 5]


def test_the_largest_record_fits_and_a_larger_one_is_refused_before_anything_is_written(
    log: JetStreamLog, settings: JetStreamSettings, nats_server: NatsServers
) -> None:
    largest = Record(1, bytes(log.record_bytes_max - HEADER_BYTES))
    assert frame_bytes(largest) > 31 * 1024 * 1024
    with pytest.raises(LimitExceededError, match="the most that a message holds"):
        log.append([record(1), Record(1, largest.payload + b"x")], 0)
    assert message_count(nats_server, settings.stream) == 0
    log.append([record(1), largest], 0)
    assert [entry.record for entry in log.read(1)] == [record(1), largest]
    log.close()
    reopened = JetStreamLog.open(settings)
    assert reopened.last_sequence == 2
    reopened.close()


def test_an_append_that_is_overtaken_between_two_pieces_leaves_a_prefix_and_stops(
    log: JetStreamLog, settings: JetStreamSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream_batch, "PIECE_BYTES", 300)
    other = JetStreamLog.open(settings)
    append_batch = JetStreamLog._append_batch

    async def overtaken(self: JetStreamLog, batch: Batch, **arguments: Any) -> None:
        if self is log and batch.first_sequence == 5:
            assert len(list(await asyncio.to_thread(other.read, 1))) == 4
            await asyncio.to_thread(other.append, [record(77)], 4)
        await append_batch(self, batch, **arguments)

    monkeypatch.setattr(JetStreamLog, "_append_batch", overtaken)
    with pytest.raises(WritesStoppedError, match="what comes before it in the same append is in the log"):
        log.append([record(number) for number in range(1, 10)], 0)
    with pytest.raises(WritesStoppedError):
        log.append([record(5)], 5)
    assert [entry.record for entry in log.read(1)] == [record(1), record(2), record(3), record(4), record(77)]
    other.close()
    reopened = JetStreamLog.open(settings)
    fill(reopened, 1)
    assert [entry.record for entry in reopened.read(5)] == [record(77), record(6)]
    reopened.close()


def test_trim_keeps_messages_whole_and_the_last_one(log: JetStreamLog, settings: JetStreamSettings) -> None:
    fill(log, 21)
    running_crc = log.running_crc
    log.trim(10)
    assert log.first_sequence == 8
    assert next(log.read(8)).sequence == 8
    log.trim(22)
    assert log.first_sequence == 15
    other = JetStreamLog.open(settings)
    assert (other.first_sequence, other.last_sequence, other.running_crc) == (15, 21, running_crc)
    assert [entry.sequence for entry in other.read(15)] == list(range(15, 22))
    other.close()


def test_a_trim_by_another_process_is_noticed(log: JetStreamLog, settings: JetStreamSettings) -> None:
    fill(log, 10, batch=1)
    other = JetStreamLog.open(settings)
    log.trim(6)
    with pytest.raises(NotFoundError):
        list(other.read(3))
    assert other.first_sequence == 6
    assert [entry.sequence for entry in other.read(6)] == [6, 7, 8, 9, 10]
    other.close()


# Several writers


def test_a_writer_that_was_overtaken_has_to_read_on(log: JetStreamLog, settings: JetStreamSettings) -> None:
    other = JetStreamLog.open(settings)
    fill(log, 2)
    for _ in range(2):
        with pytest.raises(LogConflictError):
            other.append([record(9)], 0)
    assert [entry.sequence for entry in other.read(1)] == [1, 2]
    assert other.last_sequence == 2
    fill(other, 1)
    with pytest.raises(LogConflictError, match="another writer has appended sequence 3 to 3"):
        log.append([record(9)], 2)
    assert [entry.record for entry in log.read(1)] == [record(1), record(2), record(3)]
    other.close()


def test_a_writer_whose_place_was_trimmed_knows_that_it_will_never_know(nats_server: NatsServers) -> None:
    settings = settings_for(nats_server, settle_seconds=10_000.0)
    log = JetStreamLog.open(settings, create=True)
    other = JetStreamLog.open(settings)
    fill(log, 3, batch=1)
    log.trim(3)
    with pytest.raises(WritesStoppedError, match="what was at its place was trimmed"):
        other.append([record(1)], 0)
    assert [entry.sequence for entry in log.read(3)] == [3]
    log.close()
    other.close()


def test_of_many_writers_exactly_one_wins_each_place(nats_cluster: NatsServers) -> None:
    settings = settings_for(nats_cluster)
    logs = [JetStreamLog.open(settings, create=True) for _ in range(4)]
    won: list[tuple[int, bytes]] = []
    conflicts = []

    def write(number: int, log: JetStreamLog) -> None:
        for count in range(30):
            payload = b"%d of %d" % (count, number)
            while True:
                try:
                    (entry,) = log.append([Record(1, payload)], log.last_sequence)
                except LogConflictError:
                    conflicts.append(number)
                    for _ in log.read(log.last_sequence + 1):
                        pass
                else:
                    won.append((entry.sequence, payload))
                    break

    threads = [threading.Thread(target=write, args=(number, log)) for number, log in enumerate(logs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader = JetStreamLog.open(settings)
    assert [(entry.sequence, entry.record.payload) for entry in reader.read(1)] == sorted(won)
    assert len(won) == 120
    assert conflicts
    for log in (*logs, reader):
        log.close()


def test_a_message_that_arrives_again_later_changes_nothing(
    log: JetStreamLog, settings: JetStreamSettings, nats_server: NatsServers
) -> None:
    """Whether NATS still remembers its id or not: the condition alone keeps it out."""
    late = batch_behind(end_of(log), record(1))
    assert publish(nats_server, settings, late)["seq"] == 1
    for batch_id in (late.batch_id, "forgotten"):
        answer = publish(nats_server, settings, late, **{"Nats-Msg-Id": batch_id})
        assert "wrong last sequence" in answer["error"]["description"]
    assert [entry.record for entry in log.read(1)] == [record(1)]
    fill(log, 2)
    assert message_count(nats_server, settings.stream) == 2


# Damage


def test_a_missing_message_is_named_by_the_record_that_is_not_there(
    log: JetStreamLog, settings: JetStreamSettings, nats_server: NatsServers
) -> None:
    fill(log, 70)
    ask_jetstream(nats_server, f"STREAM.MSG.DELETE.{settings.stream}", {"seq": 4})
    seen = []
    with pytest.raises(CorruptionError, match="message 4 is missing") as caught:
        seen.extend(log.read(1))
    assert caught.value.position == "sequence 22"
    assert caught.value.path == f"nats:{settings.stream}"
    with log.follow(20) as follower:
        assert [next(follower).sequence, next(follower).sequence] == [20, 21]
        for _ in range(2):
            with pytest.raises(CorruptionError, match="sequence 22"):
                next(follower)
    with pytest.raises(CorruptionError, match="sequence 25"):
        log.running_crc_at(25)
    assert [entry.sequence for entry in log.read(29)] == list(range(29, 71))
    assert [entry.sequence for entry in log.read(1, 22)] == list(range(1, 22))


def test_a_missing_last_message_is_found_at_the_opening_and_by_who_reads(
    log: JetStreamLog, settings: JetStreamSettings, nats_server: NatsServers
) -> None:
    fill(log, 21)
    follower = log.follow(15)
    ask_jetstream(nats_server, f"STREAM.MSG.DELETE.{settings.stream}", {"seq": 3})
    with pytest.raises(CorruptionError) as caught:
        JetStreamLog.open(settings)
    assert caught.value.position == "sequence 15"
    with pytest.raises(CorruptionError, match="sequence 15"):
        list(log.read(8))
    with pytest.raises(CorruptionError, match="sequence 15"):
        next(follower)


def test_a_follower_notices_that_the_next_message_is_gone(
    log: JetStreamLog, settings: JetStreamSettings, nats_server: NatsServers
) -> None:
    """A message that nobody announced, and that was deleted before the follower read it."""
    fill(log, 7)
    follower = log.follow(7)
    assert next(follower).sequence == 7
    log._connection.call(log._connection._client.close, seconds=10)  # nothing reaches this process any more
    other = JetStreamLog.open(settings)
    fill(other, 7)
    ask_jetstream(nats_server, f"STREAM.MSG.DELETE.{settings.stream}", {"seq": 2})
    other_follower = other.follow(8)
    with pytest.raises(CorruptionError, match="sequence 8"):
        next(other_follower)
    other.close()


def test_a_follower_hears_of_what_another_process_appends(
    log: JetStreamLog, settings: JetStreamSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not depend on looking by itself now and then."""
    monkeypatch.setattr(jetstream_reader, "IDLE_SECONDS", 1_000.0)
    other = JetStreamLog.open(settings)
    heard = threading.Semaphore(0)

    def follow() -> None:
        for _ in other.follow(1):
            heard.release()

    thread = threading.Thread(target=follow)
    thread.start()
    for _ in range(20):
        fill(log, 1)
        assert heard.acquire(timeout=SECONDS_MAX)
    other.close()
    thread.join(SECONDS_MAX)
    assert not thread.is_alive()


def test_all_messages_gone_is_no_new_log(
    log: JetStreamLog, settings: JetStreamSettings, nats_server: NatsServers
) -> None:
    fill(log, 7)
    ask_jetstream(nats_server, f"STREAM.PURGE.{settings.stream}")
    with pytest.raises(CorruptionError, match="message 1"):
        JetStreamLog.open(settings)


def test_a_stream_that_was_made_anew_is_not_the_same_log(
    log: JetStreamLog, settings: JetStreamSettings, nats_server: NatsServers
) -> None:
    fill(log, 7, batch=1)
    follower = log.follow(7)
    assert next(follower).sequence == 7
    ask_jetstream(nats_server, f"STREAM.DELETE.{settings.stream}")
    with pytest.raises(CorruptionError, match="the stream is gone"):
        log.read(1)
    JetStreamLog.open(settings, create=True).close()
    for act in (lambda: next(follower), lambda: log.read(1), lambda: log.trim(3), lambda: log.running_crc_at(4)):
        with pytest.raises(CorruptionError, match="made anew"):
            act()


def altered(batch: Batch, **fields: Any) -> Batch:
    return replace(batch, **fields)


def flipped(frames: bytes, place: int) -> bytes:
    return frames[:place] + bytes([frames[place] ^ 1]) + frames[place + 1 :]


@pytest.mark.parametrize(
    ("change", "position"),
    [
        (lambda batch: altered(batch, frames=flipped(batch.frames, 40)), "sequence 8"),
        (lambda batch: altered(batch, frames=flipped(batch.frames, 124 + 30)), "sequence 9"),
        (lambda batch: altered(batch, frames=flipped(batch.frames, 12)), "sequence 8"),
        (lambda batch: altered(batch, frames=batch.frames[:-1]), "sequence 10"),
        (lambda batch: altered(batch, frames=batch.frames + b"x"), "sequence 10"),
        (lambda batch: altered(batch, frames=batch.frames[:248]), "sequence 10"),
        (lambda batch: altered(batch, frames=b"", record_count=1), "sequence 8"),
        (lambda batch: altered(batch, record_count=2), "sequence 9"),
        (lambda batch: altered(batch, record_count=4), "sequence 11"),
        (lambda batch: altered(batch, running_crc=1), "sequence 11"),
        (lambda batch: altered(batch, running_crc_before=1), "sequence 8"),
        (lambda batch: altered(batch, first_sequence=9), "sequence 8"),
        (lambda batch: altered(batch, first_sequence=7), "sequence 8"),
        (lambda batch: batch_behind(Place(7, 12345, 1), record(8)), "sequence 8"),
    ],
)
def test_an_altered_message_is_named(
    log: JetStreamLog, settings: JetStreamSettings, nats_server: NatsServers, change: Any, position: str
) -> None:
    fill(log, 7)
    batch = change(batch_behind(end_of(log), record(8), record(9), record(10)))
    assert publish(nats_server, settings, batch)["seq"] == 2
    with pytest.raises(CorruptionError) as caught:
        list(log.read(1))
    assert caught.value.position == position
    assert [entry.sequence for entry in log.read(1, 8)] == list(range(1, 8))
    with pytest.raises(LogConflictError):
        log.append([record(8)], 7)


def test_a_message_of_somebody_else_is_no_record(
    log: JetStreamLog, settings: JetStreamSettings, nats_server: NatsServers
) -> None:
    fill(log, 7)
    send(nats_server, f"vecmem.log.{settings.stream}", b"hello")
    with pytest.raises(CorruptionError, match="message 2: a message without the headers of a log"):
        list(log.read(1))
    with pytest.raises(CorruptionError, match="message 2"):
        JetStreamLog.open(settings)


def test_a_newer_batch_or_record_stops_the_reader(
    log: JetStreamLog, settings: JetStreamSettings, nats_server: NatsServers
) -> None:
    fill(log, 7)
    publish(nats_server, settings, batch_behind(end_of(log), Record(1, b"new", writer_version=2)))
    with pytest.raises(UnsupportedFormatError, match="sequence 8: writer version 2"):
        list(log.read(1))
    ask_jetstream(nats_server, f"STREAM.MSG.DELETE.{settings.stream}", {"seq": 2})
    newer = altered(batch_behind(end_of(log), record(8)), message_sequence=3)
    publish(nats_server, settings, newer, **{"Vecmem-Format": "2"})
    with pytest.raises(UnsupportedFormatError, match="batch format 2"):
        list(log.read(1))


def test_a_batch_goes_through_its_headers() -> None:
    batch = batch_behind(Place(41, 7, 3), record(42), record(43))
    assert batch_of(batch.headers(), batch.frames, 4, path="here") == batch
    assert [entry.sequence for entry in entries_of(batch, path="here")] == [42, 43]
    assert batch.headers()["Nats-Expected-Last-Sequence"] == "3"
    for name in batch.headers():
        if name != "Nats-Expected-Last-Sequence":
            with pytest.raises(CorruptionError, match="message 4"):
                batch_of({**batch.headers(), name: ""} if "Id" not in name else {}, batch.frames, 4, path="here")


# Streams and servers


@pytest.mark.parametrize(
    "difference",
    [
        {"storage": "memory"},
        {"max_age": 3_600_000_000_000},
        {"max_bytes": 1_000_000},
        {"max_msgs": 1_000},
        {"max_msgs_per_subject": 1},
        {"discard": "old"},
        {"retention": "workqueue"},
        {"allow_direct": False},
        {"republish": None},
        {"subjects": ["another"]},
        {"allow_rollup_hdrs": True},
        {"allow_msg_ttl": True},
        {"no_ack": True},
    ],
    ids=lambda difference: next(iter(difference)),
)
def test_a_stream_that_is_no_log_is_refused(
    nats_server: NatsServers, settings: JetStreamSettings, log: JetStreamLog, difference: dict[str, Any]
) -> None:
    wanted = log._stream.configuration(1)
    ask_jetstream(nats_server, f"STREAM.DELETE.{settings.stream}")
    ask_jetstream(nats_server, f"STREAM.CREATE.{settings.stream}", {**wanted, **difference})
    for create in (False, True):
        with pytest.raises(ConfigurationError, match=next(iter(difference))):
            JetStreamLog.open(settings, create=create)
    ask_jetstream(nats_server, f"STREAM.DELETE.{settings.stream}")


def test_another_number_of_replicas_is_refused(nats_cluster: NatsServers) -> None:
    settings = settings_for(nats_cluster)
    JetStreamLog.open(settings, create=True).close()
    with pytest.raises(ConfigurationError, match="num_replicas is 3, not 1"):
        JetStreamLog.open(replace(settings, replicas=1))


def test_more_replicas_than_servers_are_refused(nats_server: NatsServers) -> None:
    with pytest.raises(ConfigurationError, match="replicas > 1 not supported"):
        JetStreamLog.open(settings_for(nats_server, replicas=3), create=True)


def test_a_missing_stream_is_made_only_when_asked(settings: JetStreamSettings) -> None:
    with pytest.raises(ConfigurationError, match="no such stream"):
        JetStreamLog.open(settings)


def test_a_server_that_syncs_lazily_is_refused(tmp_path: Any) -> None:
    with servers_in(tmp_path, 1, sync_always=False) as lazy:
        settings = settings_for(lazy)
        with pytest.raises(ConfigurationError, match="acknowledge before they sync"):
            JetStreamLog.open(settings, create=True)
        log = JetStreamLog.open(replace(settings, allow_lazy_sync=True), create=True)
        fill(log, 1)
        log.close()


def test_a_server_that_does_not_tell_is_refused(nats_cluster: NatsServers) -> None:
    settings = settings_for(nats_cluster)
    for monitoring_urls in ((), settings.monitoring_urls[:2]):
        with pytest.raises(UnavailableError, match="nats-3"):
            JetStreamLog.open(replace(settings, monitoring_urls=monitoring_urls), create=True)
    log = JetStreamLog.open(replace(settings, monitoring_urls=(), allow_unknown_sync=True))
    fill(log, 1)
    log.close()


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*", ">", "a/b", "x" * 129])
def test_a_name_that_is_none_is_refused(settings: JetStreamSettings, name: str) -> None:
    with pytest.raises(ConfigurationError, match="no name for a stream"):
        JetStreamLog.open(replace(settings, stream=name), create=True)


def test_no_server_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vecmem.log.nats_connection.NatsConnection.__init__.__kwdefaults__", {"connect_seconds": 1.0})
    before = threading.active_count()
    with pytest.raises(UnavailableError, match=r"no NATS server could be reached at nats://127\.0\.0\.1:1"):
        JetStreamLog.open(JetStreamSettings(servers=("nats://127.0.0.1:1",), stream="none"))
    assert threading.active_count() == before


def test_closing_ends_the_threads_that_wait(log: JetStreamLog) -> None:
    before = {thread.name for thread in threading.enumerate()}
    assert "vecmem-nats" in before
    follower = log.follow(1)
    waiting = threading.Thread(target=list, args=(follower,))
    waiting.start()
    deadline = time.monotonic() + 20
    while follower._reader is None and time.monotonic() < deadline:
        time.sleep(0.01)
    log.close()
    waiting.join(20)
    assert not waiting.is_alive()
    assert not log._connection._thread.is_alive()
