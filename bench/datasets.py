"""Data sets to measure on: ann-benchmarks HDF5 files, and the project's own slice under bench/data."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt

from vecmem.cli.files import metric_of

if TYPE_CHECKING:
    from collections.abc import Sequence

FloatMatrix = npt.NDArray[np.float32]
Metric = Literal["cosine", "dot", "euclidean"]

_RECORDS_BESIDE: Final = "debian-packages.jsonl.gz"
_ROWS_PER_SCAN: Final = 8_192


@dataclass(frozen=True)
class Question:
    """A question in words and the ids that answer it."""

    text: str
    relevant: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """Points and queries in memory, row-aligned: `ids`, `vectors` and `payloads`; `questions` and `question_vectors`."""

    name: str
    metric: Metric
    ids: list[str]
    vectors: FloatMatrix
    """(rows, dimension)"""
    payloads: list[dict[str, Any]]
    payload_kind: str
    """`records` for real ones, `synthetic` where the set has none."""
    queries: FloatMatrix
    """(queries, dimension)"""
    questions: list[Question]
    question_vectors: FloatMatrix

    def __len__(self) -> int:
        return len(self.ids)


def load(path: Path) -> Dataset:
    """Read a data set: an HDF5 file, a directory with one, or the slice. Raises FileNotFoundError, ValueError."""
    if path.is_dir():
        if (path / "package_vectors.npy").exists():
            return _load_slice(path)
        found = sorted(path.glob("*.hdf5"))
        if len(found) != 1:
            message = f"{path}: has {len(found)} HDF5 files; name one"
            raise FileNotFoundError(message)
        path = found[0]
    return _load_hdf5(path)


def _load_slice(directory: Path) -> Dataset:
    vectors = np.load(directory / "package_vectors.npy").astype(np.float32)
    ids, payloads = _read_records(directory / "packages.jsonl.gz")
    question_vectors = np.load(directory / "question_vectors.npy").astype(np.float32)
    questions = _read_questions(directory / "questions.jsonl")
    _check_rows(directory, len(ids), len(vectors))
    _check_rows(directory, len(questions), len(question_vectors))
    return Dataset(
        "debian-slice", "cosine", ids, vectors, payloads, "records", question_vectors, questions, question_vectors
    )


def _load_hdf5(path: Path) -> Dataset:
    import h5py

    with h5py.File(path, "r") as file:
        vectors = file["train"][:].astype(np.float32)
        queries = file["test"][:].astype(np.float32)
        question_vectors = file["question_vectors"][:].astype(np.float32) if "question_vectors" in file else queries[:0]
    ids = [str(row) for row in range(len(vectors))]
    payloads: list[dict[str, Any]] = [{"row": row, "group": f"group-{row % 100}"} for row in range(len(vectors))]
    kind = "synthetic"
    if (path.parent / _RECORDS_BESIDE).exists():
        record_ids, records = _read_records(path.parent / _RECORDS_BESIDE)
        if len(records) == len(vectors):
            ids, payloads, kind = record_ids, records, "records"
    questions_path = path.parent / "questions.jsonl"
    questions = _read_questions(questions_path) if len(question_vectors) and questions_path.exists() else []
    if questions:
        _check_rows(questions_path, len(questions), len(question_vectors))
    metric = metric_of(path)
    if metric is None:
        message = f"{path}: says nothing of its distance"
        raise ValueError(message)
    return Dataset(path.stem, metric, ids, vectors, payloads, kind, queries, questions, question_vectors)


def _read_records(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return [record.pop("id") for record in records], records


def _read_questions(path: Path) -> list[Question]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Question(line["question"], tuple(line["relevant"])) for line in lines]


def _check_rows(path: Path, records: int, vectors: int) -> None:
    if records != vectors:
        message = f"{path}: {records} records, but {vectors} vectors"
        raise ValueError(message)


def scores(metric: Metric, query: FloatMatrix, rows: FloatMatrix) -> FloatMatrix:
    """How near each row is to a query, higher is nearer: cosine, dot product, or the negative distance.

    Shapes: query (dimension,), rows (rows, dimension); returns (rows,).
    """
    if metric == "euclidean":
        return cast("FloatMatrix", -np.linalg.norm(rows - query, axis=1))
    products = cast("FloatMatrix", rows @ query)
    if metric == "cosine":
        products /= np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
    return products


def worst_true_scores(dataset: Dataset, queries: FloatMatrix, k: int) -> npt.NDArray[np.float64]:
    """The k-th best score of each query by exact search: what a hit must reach to count.

    Shapes: queries (queries, dimension); returns (queries,).

    By score and not by id, because points with equal vectors answer a query equally well. The matrix products find the
    candidates; their scores are then computed as `recall` computes those of hits, so that both round alike.
    """
    candidates = min(k + 32, len(dataset))
    worst = np.empty(len(queries))
    rows = dataset.vectors
    if dataset.metric == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    squares = np.einsum("ij,ij->i", rows, rows) if dataset.metric == "euclidean" else None
    for start in range(0, len(queries), 64):
        block = queries[start : start + 64]
        best = np.full((len(block), candidates), -np.inf, dtype=np.float32)
        best_rows = np.zeros((len(block), candidates), dtype=np.int64)
        for begin in range(0, len(rows), _ROWS_PER_SCAN):
            part = block @ rows[begin : begin + _ROWS_PER_SCAN].T
            if squares is not None:
                # |q - x|^2 = |q|^2 - 2qx + |x|^2, and |q|^2 changes no order.
                part = 2 * part - squares[begin : begin + _ROWS_PER_SCAN]
            found = np.arange(begin, begin + part.shape[1])
            pool = np.concatenate([best, part], axis=1)
            pool_rows = np.concatenate([best_rows, np.broadcast_to(found, part.shape)], axis=1)
            kept = np.argpartition(-pool, candidates - 1, axis=1)[:, :candidates]
            best, best_rows = np.take_along_axis(pool, kept, 1), np.take_along_axis(pool_rows, kept, 1)
        for index, query in enumerate(block):
            exact = np.sort(scores(dataset.metric, query, dataset.vectors[best_rows[index]]))
            worst[start + index] = exact[-min(k, len(exact))]
    return worst


def recall(
    dataset: Dataset, queries: FloatMatrix, worst: npt.NDArray[np.float64], found: Sequence[Sequence[int]], k: int
) -> float:
    """Recall@k by score: the share of the k wanted hits whose score reaches the k-th best one. Ties count.

    Args:
        dataset: what was searched.
        queries: (queries, dimension).
        worst: as from worst_true_scores.
        found: rows found for each query, at most k each.
        k: hits wanted.
    """
    wanted = min(k, len(dataset))
    good = 0
    for query, threshold, rows in zip(queries, worst, found, strict=True):
        distinct = list(dict.fromkeys(rows))[:k]
        if distinct:
            good += int((scores(dataset.metric, query, dataset.vectors[distinct]) >= threshold - 1e-6).sum())
    return good / (wanted * len(queries))
