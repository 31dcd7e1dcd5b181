"""The child of the crash tests on log level: appends records that prove their own place, and reports each ack.

Run as `python log_child.py DIRECTORY MODE SEED`; prints one line per event:

    open FIRST LAST     the log is open
    ack SEQUENCE        this and every earlier record is acknowledged
    stopped             an append was refused; reads were tried and went on up to the line before
    read COUNT          how many records a read gave after that

MODE: `write` forever; `lie`, the same without any sync (the canary); `trim`, as write with trims now and then.
"""

from __future__ import annotations

import hashlib
import random
import sys
from pathlib import Path

from vecmem.errors import WritesStoppedError
from vecmem.log import rocks
from vecmem.log.record import Record
from vecmem.log.rocks import RocksLog


class LyingLog(RocksLog):
    """Acknowledges without having synced."""

    def _make_durable(self) -> None:
        pass


def payload_of(sequence: int) -> bytes:
    """What the record at a sequence holds: sizes from 0 to about 5 KB, and now and then 100 KB."""
    size = int.from_bytes(hashlib.sha256(b"%d" % sequence).digest()[:2], "big") % 5_000
    return random.Random(sequence).randbytes(100_000 if size % 50 == 0 else size)


def main() -> None:
    directory, mode, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    rng = random.Random(seed)
    rocks.MEMTABLE_BYTES = 400_000  # so that flushes happen all the time
    log = (LyingLog if mode == "lie" else RocksLog).open(directory)
    print("open", log.first_sequence, log.last_sequence, flush=True)
    while True:
        after = log.last_sequence
        records = [Record(7, payload_of(after + 1 + i)) for i in range(rng.randint(1, 20))]
        try:
            print("ack", log.append(records, after)[-1].sequence, flush=True)
            if mode == "trim" and rng.random() < 0.05:
                log.trim(rng.randint(log.first_sequence, log.last_sequence + 1))
        except WritesStoppedError:
            print("read", sum(1 for _ in log.read(log.first_sequence)), flush=True)
            print("stopped", flush=True)
            sys.stdin.read()


if __name__ == "__main__":
    main()
