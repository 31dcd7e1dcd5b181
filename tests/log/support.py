"""What the tests of logs fill them with."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vecmem.log.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vecmem.cluster.nats_server import NatsServer
    from vecmem.log.transaction_log import TransactionLog


SECONDS_MAX = 60.0


def record(number: int, size: int = 100) -> Record:
    """The record of that number: its content follows from it."""
    return Record(1 + number % 5, number.to_bytes(4, "big") * (size // 4))


def fill(log: TransactionLog, count: int, batch: int = 7) -> None:
    """Append records, each with the number of its sequence."""
    while count:
        records = [record(log.last_sequence + 1 + i) for i in range(min(batch, count))]
        log.append(records, log.last_sequence)
        count -= len(records)


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that another thread or process brings about."""
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def rot(server: NatsServer, stream: str, content: bytes) -> None:
    """Flip a bit of a message in the files of a server, while it does not run."""

    def blocks_with_it() -> list[Path]:
        blocks = (server.plan.directory / "jetstream").rglob(f"streams/{stream}/msgs/*.blk")
        return [block for block in blocks if block.read_bytes().count(content) == 1]

    until(lambda: bool(blocks_with_it()))  # one of three may be behind
    server.stop()
    (block,) = blocks_with_it()
    block.write_bytes(block.read_bytes().replace(content, bytes([content[0] ^ 1]) + content[1:]))
    server.launch()
    server.wait_until_ready()
