"""Data sets to measure on: ann-benchmarks HDF5 files, the project's own slice under bench/data, and clusters by formula."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt

from bench.synthetic import QUERY_COUNT, RowPayloads, SyntheticVectors, parse
from vecmem.cli.files import metric_of

if TYPE_CHECKING:
    from collections.abc import Sequence

FloatMatrix = npt.NDArray[np.float32]
BoolRow = npt.NDArray[np.bool_]
Metric = Literal["cosine", "dot", "euclidean"]

_RECORDS_BESIDE: Final = "debian-packages.jsonl.gz"
_ROWS_PER_SCAN: Final = 8_192
SYNTHETIC_SEED: Final = 1


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
    vectors: FloatMatrix | SyntheticVectors
    """(rows, dimension)"""
    payloads: Sequence[dict[str, Any]]
    payload_kind: str
    """`records` for real ones, `synthetic` where the set has none."""
    queries: FloatMatrix
    """(queries, dimension)"""
    questions: list[Question]
    question_vectors: FloatMatrix

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimension(self) -> int:
        """Elements a vector."""
        return int(self.vectors.shape[1])


def load(path: Path) -> Dataset:
    """Read a data set: `synthetic:COUNTxDIMENSION`, an HDF5 file, a directory with one, or the slice.

    Raises FileNotFoundError, ValueError.
    """
    if shape := parse(str(path)):
        return make_synthetic(*shape)
    if path.is_dir():
        if (path / "package_vectors.npy").exists():
            return _load_slice(path)
        found = sorted(path.glob("*.hdf5"))
        if len(found) != 1:
            message = f"{path}: has {len(found)} HDF5 files; name one"
            raise FileNotFoundError(message)
        path = found[0]
    return _load_hdf5(path)


def make_synthetic(count: int, dimension: int) -> Dataset:
    """Clustered vectors under cosine, the same at each call; of a smaller count they are the first of a larger one."""
    vectors = SyntheticVectors(count, dimension, SYNTHETIC_SEED)
    ids = [str(row) for row in range(count)]
    queries = vectors.queries(QUERY_COUNT)
    return Dataset(
        f"synthetic-{count}x{dimension}",
        "cosine",
        ids,
        vectors,
        RowPayloads(count),
        "synthetic",
        queries,
        [],
        queries[:0],
    )


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
    payloads: Sequence[dict[str, Any]] = RowPayloads(len(vectors))
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


def worst_true_scores(
    dataset: Dataset, queries: FloatMatrix, k: int, matching: BoolRow | None = None
) -> npt.NDArray[np.float64]:
    """The k-th best score of each query by exact search: what a hit must reach to count.

    By score and not by id, because points with equal vectors answer a query equally well. The matrix products find the
    candidates; their scores are then computed as `recall` computes those of hits, so that both round alike.

    Args:
        dataset: what is searched.
        queries: (queries, dimension).
        k: hits wanted. Where fewer rows match, the worst of those.
        matching: (rows,), which rows may be hits. None: all. At least one is.

    Returns:
        Shape (queries,).
    """
    count = len(dataset) if matching is None else int(matching.sum())
    candidates = min(k + 32, count)
    best = np.full((len(queries), candidates), -np.inf, dtype=np.float32)
    best_rows = np.zeros((len(queries), candidates), dtype=np.int64)
    for begin in range(0, len(dataset), _ROWS_PER_SCAN):
        rows = dataset.vectors[begin : begin + _ROWS_PER_SCAN]
        numbers = np.arange(begin, begin + len(rows))
        if matching is not None:
            kept = matching[numbers]
            rows, numbers = rows[kept], numbers[kept]
        if dataset.metric == "cosine":
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for start in range(0, len(queries), 64):
            block = slice(start, start + 64)
            part = queries[block] @ rows.T
            if dataset.metric == "euclidean":
                # |q - x|^2 = |q|^2 - 2qx + |x|^2, and |q|^2 changes no order.
                part = 2 * part - np.einsum("ij,ij->i", rows, rows)
            pool = np.concatenate([best[block], part], axis=1)
            pool_rows = np.concatenate([best_rows[block], np.broadcast_to(numbers, part.shape)], axis=1)
            nearest = np.argpartition(-pool, candidates - 1, axis=1)[:, :candidates]
            best[block] = np.take_along_axis(pool, nearest, 1)
            best_rows[block] = np.take_along_axis(pool_rows, nearest, 1)
    vectors = _rows_of(dataset, best_rows)
    worst = np.empty(len(queries))
    for index, query in enumerate(queries):
        worst[index] = np.sort(scores(dataset.metric, query, vectors[index]))[-min(k, candidates)]
    return worst


def _rows_of(dataset: Dataset, rows: npt.NDArray[np.int64]) -> FloatMatrix:
    """Vectors by row numbers of any shape, read in order: rows by formula are made block by block."""
    distinct, places = np.unique(rows, return_inverse=True)
    return dataset.vectors[distinct][places.reshape(rows.shape)]


def recall(
    dataset: Dataset,
    queries: FloatMatrix,
    worst: npt.NDArray[np.float64],
    found: Sequence[Sequence[int]],
    k: int,
    matching: BoolRow | None = None,
) -> float:
    """Recall@k by score: the share of the k wanted hits whose score reaches the k-th best one. Ties count.

    Args:
        dataset: what was searched.
        queries: (queries, dimension).
        worst: as from worst_true_scores.
        found: rows found for each query; only the first k count.
        k: hits wanted; where fewer rows match, those.
        matching: as in worst_true_scores; a hit that does not match does not count.
    """
    wanted = min(k, len(dataset) if matching is None else int(matching.sum()))
    distinct = [np.array(list(dict.fromkeys(rows))[:k], dtype=np.int64) for rows in found]
    if matching is not None:
        distinct = [rows[matching[rows]] for rows in distinct]
    vectors = _rows_of(dataset, np.concatenate(distinct)) if distinct else queries[:0]
    ends = np.cumsum([len(rows) for rows in distinct])
    good = 0
    for query, threshold, end, rows in zip(queries, worst, ends, distinct, strict=True):
        if len(rows):
            good += int((scores(dataset.metric, query, vectors[end - len(rows) : end]) >= threshold - 1e-6).sum())
    return good / (wanted * len(queries))
