"""`vecmem import`: points from files into a collection, durable batch by batch.

An import that was cut short is started again as it was: upserts are idempotent. A bad line stops it, unless
--skip-invalid: everything before the line is in the collection then, nothing from the line on is.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from vecmem.cli.collections import METRICS
from vecmem.cli.files import Metric, is_matrix, metric_of
from vecmem.cli.readers import Batch, InvalidRow, Source, batches, count_rows, read_rows
from vecmem.cli.session import Session, facts, with_session
from vecmem.errors import InvalidArgumentError
from vecmem_client import Client, CollectionNotFoundError, Point, VectorConfig
from vecmem_client import InvalidArgumentError as RefusedError

ROWS_PER_BATCH: Final = 2_048
REQUEST_POINTS: Final = 512
INVALID_LISTED_MAX: Final = 20

_POINT_INDEX: Final = re.compile(r"points\[(\d+)\]")


@dataclass
class Outcome:
    """What an import did."""

    collection: str
    created: bool = False
    imported_count: int = 0
    invalid_count: int = 0
    duration_seconds: float = 0.0
    points_per_second: float = 0.0
    invalid: list[str] = field(default_factory=list)
    """The first INVALID_LISTED_MAX of them."""

    def skip(self, row: InvalidRow) -> None:
        """Count a row left out."""
        self.invalid_count += 1
        if len(self.invalid) < INVALID_LISTED_MAX:
            self.invalid.append(str(row))


@click.command("import")
@click.argument("path", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--collection", required=True, help="Target collection.")
@click.option("--create", is_flag=True, help="Create the collection unless it exists; the dimension is the file's.")
@click.option(
    "--metric",
    type=click.Choice(METRICS),
    help="Metric of a new collection. Without it, what an HDF5 file says, else cosine.",
)
@click.option("--using", default="", help="Vector to fill, of a collection with named vectors.")
@click.option(
    "--vectors",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Vectors, row-aligned with JSON lines or Parquet: .npy, or HDF5 with a dataset `train`.",
)
@click.option(
    "--payloads",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Payloads, row-aligned with .npy or HDF5: JSON lines or Parquet.",
)
@click.option("--ids", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Ids, one a line.")
@click.option("--row-ids", is_flag=True, help="Take row numbers, from 0, as ids.")
@click.option("--id-field", default="id", show_default=True, help="Field that holds the id.")
@click.option("--vector-field", default="vector", show_default=True, help="Field that holds the vector.")
@click.option("--skip-invalid", is_flag=True, help="Leave out lines that are no points, and report them.")
@with_session
def import_points(
    session: Session,
    *,
    path: Path,
    collection: str,
    create: bool,
    metric: Metric | None,
    using: str,
    skip_invalid: bool,
    vectors: Path | None,
    **columns: Any,
) -> None:
    """Load points from a file: JSON lines (also .gz), Parquet, .npy or HDF5 as ann-benchmarks has it."""
    source = Source(path, vectors=vectors, **columns)
    declared = metric_of(path) if is_matrix(path) else metric_of(vectors) if vectors else None
    outcome = Outcome(collection)
    started_at = time.monotonic()
    with session.client() as client, session.progress_bar() as bar:
        total = count_rows(source) if session.shows_progress else None
        task = bar.add_task(f"{path.name} -> {collection}", total=total)
        target = _existing(client, collection, using)
        if target is None and not create:
            raise CollectionNotFoundError(f"no collection {collection}; add --create to make it")
        wanted = metric or declared
        if target is not None and wanted is not None and wanted != target.metric:
            message = f"collection {collection} compares by {target.metric}, not by {wanted}"
            raise InvalidArgumentError(message)
        used: Metric = wanted or "cosine" if target is None else target.metric  # type: ignore[assignment]
        dimension = target.dimension if target is not None else None
        gathered = batches(read_rows(source), size=ROWS_PER_BATCH, dimension=dimension, metric=used, path=path)
        for item in gathered:
            written: Iterator[int | InvalidRow] = iter([item]) if isinstance(item, InvalidRow) else iter(())
            if isinstance(item, Batch):
                if target is None:
                    target = VectorConfig(item.vectors.shape[1], used)
                    named = {using: target} if using else None
                    client.create_collection(collection, None if using else target, vectors=named)
                    outcome.created = True
                written = _write(client, collection, using, item, path)
            for step in written:
                if isinstance(step, int):
                    outcome.imported_count += step
                    bar.advance(task, step)
                    continue
                if not skip_invalid:
                    message = f"{step}; the {outcome.imported_count:,} points before it are imported"
                    raise InvalidArgumentError(message, path=str(step.path), line=str(step.number))
                outcome.skip(step)
                bar.advance(task)
    outcome.duration_seconds = time.monotonic() - started_at
    outcome.points_per_second = outcome.imported_count / outcome.duration_seconds
    document = asdict(outcome)
    for line in outcome.invalid:
        session.note(f"left out {line}")
    session.write(document, facts({key: value for key, value in document.items() if key != "invalid"}))


def _existing(client: Client, collection: str, using: str) -> VectorConfig | None:
    """The vector to fill, or None when there is no such collection. Raises InvalidArgumentError."""
    try:
        found = client.get_collection(collection)
    except CollectionNotFoundError:
        return None
    config = found.vectors.get(using) if using else found.vector
    if config is None:
        known = ", ".join([*(["the default one"] if found.vector else []), *found.vectors])
        message = f"collection {collection} has no vector {using or '(default)'}; it has {known}"
        raise InvalidArgumentError(message)
    return config


def _write(client: Client, collection: str, using: str, batch: Batch, path: Path) -> Iterator[int | InvalidRow]:
    """Write a batch: counts of points that have become durable, and rows that the server refused."""
    columns = {using: batch.vectors} if using else batch.vectors
    try:
        client.upsert_bulk(collection, batch.ids, columns, batch.payloads, batch_size=REQUEST_POINTS)
    except (RefusedError, ValueError):
        # One of the rows is to blame: go again in single requests, which tell which. Rows written already are
        # written once more, as they were.
        yield from _write_singly(client, collection, using, batch, path)
    else:
        yield len(batch.ids)


def _write_singly(client: Client, collection: str, using: str, batch: Batch, path: Path) -> Iterator[int | InvalidRow]:
    def points(start: int, stop: int) -> list[Point]:
        rows = zip(batch.ids[start:stop], batch.vectors[start:stop], batch.payloads[start:stop], strict=True)
        if using:
            return [Point(point_id, payload=payload, vectors={using: vector}) for point_id, vector, payload in rows]
        return [Point(point_id, vector, payload) for point_id, vector, payload in rows]

    start = 0
    while start < len(batch.ids):
        stop = min(start + REQUEST_POINTS, len(batch.ids))
        refused, why = _upsert(client, collection, points(start, stop))
        if refused is None:
            yield stop - start
            start = stop
            continue
        if refused:
            client.upsert(collection, points(start, start + refused))
            yield refused
        yield InvalidRow(path, batch.numbers[start + refused], why)
        start += refused + 1


def _upsert(client: Client, collection: str, points: list[Point]) -> tuple[int | None, str]:
    """Write points; the index of the first that was refused, and why. Raises what is nobody's row's fault."""
    try:
        client.upsert(collection, points)
    except RefusedError as error:
        named = _POINT_INDEX.search(error.metadata.get("field", ""))
        if named is None:
            raise
        return int(named[1]), error.message
    except ValueError:
        # The client itself could not encode a payload, say one with a number beyond float64.
        for index, point in enumerate(points):
            try:
                client.upsert(collection, [point])
            except ValueError as error:
                return index, str(error)
        raise
    return None, ""
