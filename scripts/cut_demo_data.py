"""Cut bench/data out of the full data set: `python scripts/cut_demo_data.py DIRECTORY [--packages 5000]`.

DIRECTORY holds debian-packages.jsonl.gz, debian-minilm-384-angular.hdf5 (`train` row-aligned with it) and
questions.jsonl (row-aligned with `question_vectors`). The slice has every package that a question names as relevant and a
uniform sample of the others, in the order of the full set. It is the same at every run: the seed is fixed and the
gzip header carries no time.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import shutil
from pathlib import Path

import h5py
import numpy as np

SEED = 20_240_611
TARGET = Path(__file__).resolve().parent.parent / "bench" / "data"


def choose_rows(ids: list[str], relevant: set[str], count: int) -> np.ndarray:
    """Rows of the slice, rising: the relevant ones and a uniform sample of the rest."""
    wanted = np.array([identifier in relevant for identifier in ids])
    others = np.flatnonzero(~wanted)
    sample = np.random.default_rng(SEED).choice(others, size=count - int(wanted.sum()), replace=False)
    return np.sort(np.concatenate([np.flatnonzero(wanted), sample]))


def write_gzip(path: Path, content: bytes) -> None:
    """Compress without a time or a name in the header."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=9, mtime=0) as file:
        file.write(content)
    path.write_bytes(buffer.getvalue())


def main() -> None:
    """Cut and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--packages", type=int, default=5_000)
    parser.add_argument("--target", type=Path, default=TARGET)
    arguments = parser.parse_args()

    with gzip.open(arguments.directory / "debian-packages.jsonl.gz", "rb") as file:
        lines = file.read().splitlines(keepends=True)
    questions = (arguments.directory / "questions.jsonl").read_bytes()
    relevant = {name for line in questions.splitlines() for name in json.loads(line)["relevant"]}
    rows = choose_rows([json.loads(line)["id"] for line in lines], relevant, arguments.packages)
    with h5py.File(arguments.directory / "debian-minilm-384-angular.hdf5") as file:
        vectors = file["train"][:][rows]
        question_vectors = file["question_vectors"][:]

    arguments.target.mkdir(parents=True, exist_ok=True)
    write_gzip(arguments.target / "packages.jsonl.gz", b"".join(lines[row] for row in rows))
    np.save(arguments.target / "package_vectors.npy", vectors.astype("<f2"))
    np.save(arguments.target / "question_vectors.npy", question_vectors.astype("<f2"))
    shutil.copyfile(arguments.directory / "questions.jsonl", arguments.target / "questions.jsonl")
    (arguments.target / "questions.jsonl").chmod(0o644)
    for path in sorted(arguments.target.iterdir()):
        print(f"{path.stat().st_size:>10,}  {path.name}")


if __name__ == "__main__":
    main()
