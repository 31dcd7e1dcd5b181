"""What TransactionLog promises, of every implementation: order, compare-and-append, chains, trims, followers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.log.support import fill, record
from tests.support.nats import settings_for
from vecmem.errors import (
    InvalidArgumentError,
    LogConflictError,
    NotFoundError,
    UnavailableError,
    UnsupportedFormatError,
)
from vecmem.log.jetstream import JetStreamLog
from vecmem.log.record import Record
from vecmem.log.rocks import RocksLog
from vecmem.log.transaction_log import TransactionLog

OpenLog = Callable[[], TransactionLog]


@pytest.fixture(params=["rocks", "jetstream"])
def open_log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenLog]:
    """Opens one log, new at first, as often as it was closed before."""
    opened: list[TransactionLog] = []
    in_rocks = request.param == "rocks"
    settings = None if in_rocks else settings_for(request.getfixturevalue("nats_server"))

    def open_it() -> TransactionLog:
        opened.append(JetStreamLog.open(settings, create=not opened) if settings else RocksLog.open(tmp_path / "log"))
        return opened[-1]

    yield open_it
    for log in opened:
        log.close()


@pytest.fixture
def log(open_log: OpenLog) -> TransactionLog:
    return open_log()


def test_an_empty_log(log: TransactionLog) -> None:
    assert (log.first_sequence, log.last_sequence, log.running_crc, log.running_crc_at(0)) == (1, 0, 0, 0)
    assert list(log.read(1)) == []
    assert log.append([], 0) == []
    log.trim(1)
    assert log.append([record(1)], 0) == list(log.read(1))


def test_records_come_back_in_order_and_over_a_restart(open_log: OpenLog) -> None:
    log = open_log()
    fill(log, 50)
    entries = list(log.read(1))
    assert [entry.sequence for entry in entries] == list(range(1, 51))
    assert [entry.record for entry in entries] == [record(n) for n in range(1, 51)]
    assert entries[-1].running_crc == log.running_crc == log.running_crc_at(50)
    assert [log.running_crc_at(entry.sequence) for entry in entries] == [entry.running_crc for entry in entries]
    assert [entry.sequence for entry in log.read(20, 23)] == [20, 21, 22]
    assert list(log.read(51)) == list(log.read(20, 20)) == list(log.read(20, 10)) == []
    log.close()
    log = open_log()
    assert (log.first_sequence, log.last_sequence, log.running_crc) == (1, 50, entries[-1].running_crc)
    assert list(log.read(1)) == entries


def test_what_lies_outside_is_refused_at_once(log: TransactionLog) -> None:
    fill(log, 10)
    for start in (-1, 0, 12, 100):
        with pytest.raises(NotFoundError):
            log.read(start)
    for sequence in (-1, 11):
        with pytest.raises(NotFoundError):
            log.running_crc_at(sequence)


def test_an_append_behind_another_record_changes_nothing(log: TransactionLog) -> None:
    fill(log, 3)
    before = list(log.read(1))
    for after in (0, 2, 4):
        with pytest.raises(LogConflictError):
            log.append([record(9)], after)
    assert list(log.read(1)) == before
    assert [entry.sequence for entry in log.append([record(4)], 3)] == [4]


def test_a_record_that_cannot_be_framed_stops_nothing(log: TransactionLog) -> None:
    with pytest.raises(InvalidArgumentError):
        log.append([record(1), Record(0, b"")], 0)
    assert log.append([record(1)], 0) == list(log.read(1))


def test_large_and_many_records(log: TransactionLog) -> None:
    sizes = [0, 5_000_000, 8, 900_000, 900_000, 900_000, 40] + [20_000] * 200
    records = [record(number, size) for number, size in enumerate(sizes, 1)]
    appended = log.append(records, 0)
    assert appended == list(log.read(1))
    assert [entry.record for entry in appended] == records
    assert log.size_bytes > 11_000_000


def test_trim_forgets_and_survives_a_restart(open_log: OpenLog) -> None:
    log = open_log()
    fill(log, 30, batch=1)
    crc_at_19, crc_at_30 = log.running_crc_at(19), log.running_crc
    log.trim(20)
    log.trim(5)
    for _ in range(2):
        assert (log.first_sequence, log.last_sequence) == (20, 30)
        assert log.running_crc_at(19) == crc_at_19
        assert [entry.sequence for entry in log.read(20)] == list(range(20, 31))
        for sequence in (18, 31):
            with pytest.raises(NotFoundError):
                log.running_crc_at(sequence)
        with pytest.raises(NotFoundError):
            log.read(19)
        log.close()
        log = open_log()
    with pytest.raises(InvalidArgumentError):
        log.trim(32)
    log.trim(31)
    log.close()
    log = open_log()
    assert log.first_sequence in {30, 31}
    assert (log.last_sequence, log.running_crc) == (30, crc_at_30)
    fill(log, 2)
    assert [entry.sequence for entry in log.read(31)] == [31, 32]


def test_trim_gives_space_back(log: TransactionLog) -> None:
    fill(log, 100, batch=1)
    for _ in range(100):
        log.append([record(7, 50_000)], log.last_sequence)
    before = log.size_bytes
    log.trim(191)
    assert log.size_bytes < before / 5


def test_a_reader_that_is_overtaken_by_a_trim_is_told(log: TransactionLog) -> None:
    """Not an early end, and not an accusation of damage."""
    for number in range(1, 101):
        log.append([record(number, 100_000)], log.last_sequence)
    reader = log.read(1)
    assert next(reader).sequence == 1
    log.trim(98)
    with pytest.raises(NotFoundError, match="trimmed"):
        list(reader)


def test_an_abandoned_reader_does_not_keep_the_log_open(open_log: OpenLog) -> None:
    log = open_log()
    fill(log, 20)
    reader = log.read(1)
    assert next(reader).sequence == 1
    log.close()
    assert open_log().last_sequence == 20


def test_a_follower_sees_what_comes_later_and_ends_with_the_log(log: TransactionLog) -> None:
    fill(log, 5)
    seen: list[int] = []
    reached = threading.Event()

    def follow() -> None:
        for entry in log.follow(3):
            seen.append(entry.sequence)
            if entry.sequence == 12:
                reached.set()

    thread = threading.Thread(target=follow)
    thread.start()
    fill(log, 7)
    assert reached.wait(20)
    log.close()
    thread.join(20)
    assert not thread.is_alive()
    assert seen == list(range(3, 13))


def test_a_follower_may_begin_beyond_the_end(log: TransactionLog) -> None:
    fill(log, 2)
    seen: list[int] = []

    def follow() -> None:
        with log.follow(10) as follower:
            seen.append(next(follower).sequence)

    thread = threading.Thread(target=follow)
    thread.start()
    fill(log, 10, batch=1)
    thread.join(20)
    assert not thread.is_alive()
    assert seen == [10]


def test_a_follower_of_what_is_trimmed_is_told(log: TransactionLog) -> None:
    fill(log, 10, batch=1)
    log.trim(5)
    with log.follow(2) as follower, pytest.raises(NotFoundError):
        next(follower)


def test_a_follower_ends_when_it_is_closed(log: TransactionLog) -> None:
    follower = log.follow(1)
    thread = threading.Thread(target=list, args=(follower,))
    thread.start()
    follower.close()
    thread.join(20)
    assert not thread.is_alive()


def test_a_closed_log_takes_nothing(log: TransactionLog) -> None:
    fill(log, 2)
    log.close()
    log.close()
    with pytest.raises(UnavailableError):
        log.append([record(3)], 2)


def test_a_record_newer_than_understood_stops_the_opening(open_log: OpenLog) -> None:
    log = open_log()
    log.append([Record(1, b"from the future", writer_version=2)], 0)
    log.close()
    with pytest.raises(UnsupportedFormatError, match="writer version 2"):
        open_log()
