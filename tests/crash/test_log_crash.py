"""The log under kill -9, power cuts and failing disks: every acknowledged record is there, in its place, whole.

Method: a child appends records whose content follows from their sequence and reports acknowledgements over a pipe. The
parent kills it at some moment, drops whatever the child had not synced (tests/crash/unsynced.c), and opens the log.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.crash.harness import REPOSITORY, Machine
from tests.crash.log_child import payload_of
from vecmem.errors import VecmemError
from vecmem.log.rocks import RocksLog
from vecmem.log.rocks_verify import verify_rocks_log

CHILD = str(Path(__file__).with_name("log_child.py"))


def child_command(directory: Path, mode: str, seed: int) -> list[str]:
    return [sys.executable, CHILD, str(directory), mode, str(seed)]


def run_until_killed(child: subprocess.Popen[str], acks: int) -> tuple[int, int]:
    """Kill a child after some acknowledgements, or find it dead. Returns the last sequence acknowledged and the acks."""
    last = count = 0
    assert child.stdout is not None
    for line in child.stdout:
        word, *numbers = line.split()
        if word == "ack":
            last, count = int(numbers[0]), count + 1
        elif word == "open":
            last = int(numbers[1])
        if count == acks:
            child.kill()
            count += 1
    child.wait()
    child.stdout.close()
    if child.stdin is not None:
        child.stdin.close()
    return last, count


def check_log(directory: Path, acknowledged: int) -> int:
    """Open the log, compare every record with what it must be; returns the last sequence."""
    assert verify_rocks_log(directory).damage == []
    log = RocksLog.open(directory)
    try:
        assert log.last_sequence >= acknowledged
        for entry in log.read(log.first_sequence):
            assert entry.record.payload == payload_of(entry.sequence)
        return log.last_sequence
    finally:
        log.close()


def check_directory(directory: Path, acknowledged: int) -> int:
    """The same, where the process may have died before there was a log."""
    if (directory / "rocksdb").exists():
        return check_log(directory, acknowledged)
    assert acknowledged == 0
    return 0


def environment_with(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **extra}


@pytest.mark.parametrize("mode", ["write", "trim"])
def test_power_cuts_lose_nothing_acknowledged(tmp_path: Path, mode: str) -> None:
    """Rounds of write, kill -9, power cut on one directory; some rounds die while the log is being opened."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    machine = Machine(tmp_path)
    acknowledged = 0
    for round_number in range(6):
        child = machine.start(
            child_command(machine.root / "log", mode, seed + round_number), PYTHONPATH=str(REPOSITORY)
        )
        if round_number % 3 == 2:
            time.sleep(rng.uniform(0.05, 0.4))
            child.kill()
        last, _ = run_until_killed(child, rng.randint(1, 80))
        machine.power_cut()
        acknowledged = check_directory(machine.root / "log", max(last, acknowledged))


@pytest.mark.parametrize("opening", ["first", "later"])
def test_an_opening_may_end_at_any_sync(tmp_path: Path, opening: str) -> None:
    """Right after each sync of an opening in turn, the process dies, alone or with the power: the next one has it all."""
    machine = Machine(tmp_path)
    command = child_command(machine.root / "log", "write", 7)
    acknowledged = 0
    if opening == "later":
        acknowledged, _ = run_until_killed(machine.start(command, PYTHONPATH=str(REPOSITORY)), 20)
        machine.power_cut()
    before, killed = tmp_path / "before", tmp_path / "killed"
    shutil.copytree(machine.root, before)
    for syncs in itertools.count(1):
        for directory in (machine.root, killed):
            shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(before, machine.root)
        child = machine.start(command, PYTHONPATH=str(REPOSITORY), UNSYNCED_SYNCS=str(syncs))
        last, acks = run_until_killed(child, 1)
        shutil.copytree(machine.root, killed)
        machine.power_cut()
        for directory in (killed, machine.root):
            check_directory(directory / "log", max(last, acknowledged))
        if acks:
            break
    assert syncs > 10


def test_a_log_that_lies_is_caught(tmp_path: Path) -> None:
    """Canary: without the sync, the same power cut loses acknowledged records, so the test above can fail."""
    machine = Machine(tmp_path)
    child = machine.start(child_command(machine.root / "log", "lie", 1), PYTHONPATH=str(REPOSITORY))
    last, _ = run_until_killed(child, 10)
    machine.power_cut()
    assert last > 0
    with pytest.raises((AssertionError, VecmemError)):
        check_log(machine.root / "log", last)


@pytest.mark.parametrize("failure", ["eio", "enospc"])
def test_after_a_failed_write_reads_go_on_and_nothing_acknowledged_is_lost(tmp_path: Path, failure: str) -> None:
    """An fsync fails, or the disk is full: the append is refused, reads give every acknowledged record, so does a restart."""
    machine = Machine(tmp_path)
    child = machine.start(child_command(machine.root / "log", "write", 5), PYTHONPATH=str(REPOSITORY))
    assert child.stdout is not None
    last = acks = read = 0
    for line in child.stdout:
        word, *numbers = line.split()
        if word == "ack":
            last, acks = int(numbers[0]), acks + 1
        elif word == "read":
            read = int(numbers[0])
        elif word == "stopped":
            break
        if acks == 10:
            machine.command(failure)
    assert read == last > 0
    child.kill()
    run_until_killed(child, 0)
    machine.command("")
    machine.power_cut()
    check_log(machine.root / "log", last)


@pytest.mark.parametrize(
    "failpoint",
    [
        "before_append_write:3",
        "before_append_sync:9",
        "after_append_sync:9",
        "before_memtable_flush",
        "after_memtable_flush",
    ],
)
def test_death_at_a_failpoint_loses_nothing(tmp_path: Path, failpoint: str) -> None:
    """The process dies right before or after a write, a sync or a flush, with the power."""
    machine = Machine(tmp_path)
    command = child_command(machine.root / "log", "write", 3)
    child = machine.start(command, PYTHONPATH=str(REPOSITORY), VECMEM_FAILPOINT=failpoint)
    last, _ = run_until_killed(child, -1)
    assert child.returncode == -9
    machine.power_cut()
    check_log(machine.root / "log", last)


def test_an_unknown_failpoint_is_refused(tmp_path: Path) -> None:
    """A misspelt name must not make a crash test pass by killing nothing."""
    done = subprocess.run(
        child_command(tmp_path, "write", 1),
        env=environment_with(VECMEM_FAILPOINT="no_such_place"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no such failpoint" in done.stderr


def test_the_event_loop_would_not_wait_for_a_slow_sync(tmp_path: Path) -> None:
    """The GIL is free while a sync takes long: another thread counts on. Why append does not use a synced write."""
    machine = Machine(tmp_path)
    code = (
        "import os, sys, threading, time\n"
        "from pathlib import Path\n"
        "from vecmem.log.rocks import RocksLog\n"
        "from vecmem.log.record import Record\n"
        "log = RocksLog.open(Path(sys.argv[1]))\n"
        "Path(os.environ['UNSYNCED_CONTROL']).write_text('delay 300')\n"
        "beats = 0\n"
        "done = threading.Event()\n"
        "def append():\n"
        "    log.append([Record(1, b'x')], 0)\n"
        "    done.set()\n"
        "threading.Thread(target=append).start()\n"
        "while not done.is_set():\n"
        "    time.sleep(0.001)\n"
        "    beats += 1\n"
        "print(beats, flush=True)\n"
        "os._exit(0)\n"
    )
    child = machine.start([sys.executable, "-c", code, str(machine.root / "log")], PYTHONPATH=str(REPOSITORY))
    output, _ = child.communicate()
    assert int(output) > 5
