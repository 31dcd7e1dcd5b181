"""A writer as a process of its own: `python -m bench.paced_writer`, at so many points a second or as fast as it goes.

A thread in the measuring process would share the interpreter lock with what is measured. It writes the points of a data set with a
little noise, so that none equals one that is there, under ids of its own. It prints `writing` when it begins and `done N SECONDS` when
the last of N points was acknowledged.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Final

import numpy as np

from bench.datasets import load
from vecmem_client import Client, Point

POINTS_PER_CALL: Final = 50
"""Of a paced writer; at 2,000 points a second that is 40 calls a second."""
NOISE: Final = 0.1
SEED: Final = 3


def main() -> None:
    """Write as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("collection")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--rate", type=float, default=0.0, help="points a second; 0: as fast as it goes")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long, where there is a rate")
    arguments = parser.parse_args()
    dataset = load(arguments.dataset)
    count = round(arguments.rate * arguments.seconds) if arguments.rate else len(dataset)
    random = np.random.default_rng(SEED)
    rows = np.arange(count) % len(dataset)
    vectors = dataset.vectors[rows]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    noise = random.standard_normal(vectors.shape, dtype=np.float32)
    vectors = vectors + np.float32(NOISE / np.sqrt(vectors.shape[1])) * lengths * noise
    payloads = [dataset.payloads[row] for row in rows]
    ids = [f"written-{number}" for number in range(count)]
    with Client(arguments.address, timeout_seconds=120) as client:
        print("writing", flush=True)
        started_at = time.perf_counter()
        if arguments.rate:
            for begin in range(0, count, POINTS_PER_CALL):
                time.sleep(max(0.0, started_at + begin / arguments.rate - time.perf_counter()))
                part = slice(begin, begin + POINTS_PER_CALL)
                points = zip(ids[part], vectors[part], payloads[part], strict=True)
                client.upsert(arguments.collection, [Point(*point) for point in points])
        else:
            client.upsert_bulk(arguments.collection, ids, vectors, payloads)
        print(f"done {count} {time.perf_counter() - started_at:.3f}", flush=True)


if __name__ == "__main__":
    main()
