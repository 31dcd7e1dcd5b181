"""The first rows of the slice as a data set of its own."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

SLICE = Path(__file__).resolve().parent.parent.parent / "bench" / "data"
ROWS = 400


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The first rows of the slice, in a directory of its form; questions that they answer come first."""
    directory = tmp_path_factory.mktemp("slice")
    lines = gzip.decompress((SLICE / "packages.jsonl.gz").read_bytes()).splitlines(keepends=True)
    (directory / "packages.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[:ROWS])))
    np.save(directory / "package_vectors.npy", np.load(SLICE / "package_vectors.npy")[:ROWS])
    for name in ("questions.jsonl", "question_vectors.npy"):
        (directory / name).write_bytes((SLICE / name).read_bytes())
    return directory
