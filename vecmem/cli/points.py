"""`vecmem query`, `get`, `scroll`, `count` and `delete`: points of one collection."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from google.protobuf import json_format

from vecmem.cli.files import open_matrix
from vecmem.cli.session import Session, confirm, facts, plain, points_table, with_session
from vecmem.v1 import filter_pb2
from vecmem_client import all_of


class FilterType(click.ParamType[Any]):
    """A vecmem.v1.Filter in the JSON mapping of Protocol Buffers."""

    name = "filter"

    def convert(
        self, value: str | filter_pb2.Filter, parameter: click.Parameter | None, context: click.Context | None
    ) -> filter_pb2.Filter:
        """Parse it."""
        if isinstance(value, filter_pb2.Filter):
            return value
        try:
            return json_format.Parse(value, filter_pb2.Filter())
        except json_format.ParseError as error:
            self.fail(f"is no filter: {error}", parameter, context)


class VectorType(click.ParamType[Any]):
    """A vector as a JSON list of numbers."""

    name = "vector"

    def convert(
        self, value: str | npt.NDArray[np.float32], parameter: click.Parameter | None, context: click.Context | None
    ) -> npt.NDArray[np.float32]:
        """Parse it."""
        if isinstance(value, np.ndarray):
            return value
        try:
            elements = json.loads(value)
            if not isinstance(elements, list) or any(type(element) not in {int, float} for element in elements):
                self.fail("is not a JSON list of numbers", parameter, context)
            return np.asarray(elements, dtype=np.float32)
        except (ValueError, OverflowError) as error:
            self.fail(f"is no vector: {error}", parameter, context)


FILTER_HELP = """Only points that match: a vecmem.v1.Filter as JSON, for instance
'{"field": {"path": "section", "match": {"keyword": "net"}}}'."""


def with_filter(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option --filter."""
    return click.option("--filter", "condition", type=FilterType(), metavar="JSON", help=FILTER_HELP)(command)


@click.command()
@click.argument("collection")
@click.option("--vector", type=VectorType(), metavar="JSON", help="The vector: a JSON list of numbers.")
@click.option("--id", "point_id", help="A stored point, whose vector is meant; it is left out of the hits.")
@click.option(
    "--vector-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A .npy file of vectors; see --row.",
)
@click.option("--row", type=click.IntRange(min=0), default=0, show_default=True, help="Row of --vector-file, from 0.")
@click.option("--limit", type=int, default=10, show_default=True, help="Hits wanted.")
@click.option("--offset", type=int, default=0, help="Hits to leave out at the beginning.")
@click.option("--using", default="", help="Name of the vector to compare with; the default vector when not given.")
@click.option("--target-recall", type=float, default=0.0, help="Recall to aim at, 0.5 to 1; 0: the collection's value.")
@click.option("--ef", type=int, default=0, help="Candidates considered in the graph; 0: as the recall takes.")
@click.option("--exact", is_flag=True, help="Compare with every vector that passes the filter.")
@click.option("--explain", is_flag=True, help="Say how the query was answered as well.")
@click.option("--score-threshold", type=float, help="Only hits at least this good.")
@click.option("--with-vectors", is_flag=True, help="Return the vectors as well.")
@with_filter
@with_session
def query(
    session: Session,
    *,
    collection: str,
    vector: npt.NDArray[np.float32] | None,
    point_id: str | None,
    vector_file: Path | None,
    row: int,
    limit: int,
    offset: int,
    using: str,
    target_recall: float,
    ef: int,
    exact: bool,
    explain: bool,
    score_threshold: float | None,
    with_vectors: bool,
    condition: filter_pb2.Filter | None,
) -> None:
    """Find the points nearest to a vector or to a stored point."""
    if sum(given is not None for given in (vector, point_id, vector_file)) != 1:
        message = "give one of --vector, --id and --vector-file"
        raise click.UsageError(message)
    if vector_file is not None:
        with open_matrix(vector_file) as matrix:
            if row >= len(matrix):
                message = f"--row {row}: {vector_file} has {len(matrix)} rows"
                raise click.UsageError(message)
            vector = np.asarray(matrix[row], dtype=np.float32)
    with session.client() as client:
        hits = client.query(
            collection,
            vector,
            id=point_id,
            limit=limit,
            offset=offset,
            using=using,
            target_recall=target_recall,
            ef=ef,
            exact=exact,
            explain=explain,
            score_threshold=score_threshold,
            with_vectors=with_vectors,
            filter=condition,
        )
    if hits.explanation is None:
        session.write({"hits": hits}, points_table(hits))
    else:
        session.write(
            {"hits": hits, "explanation": hits.explanation}, points_table(hits), facts(plain(hits.explanation))
        )


@click.command()
@click.argument("collection")
@click.argument("ids", nargs=-1, required=True)
@click.option("--with-vectors", is_flag=True, help="Return the vectors as well.")
@with_session
def get(session: Session, *, collection: str, ids: tuple[str, ...], with_vectors: bool) -> None:
    """Show points by id; those that do not exist are left out."""
    with session.client() as client:
        points = client.get(collection, ids, with_vectors=with_vectors)
    session.write({"points": points}, points_table(points))


@click.command()
@click.argument("collection")
@click.option("--limit", type=click.IntRange(min=0), default=100, show_default=True, help="Points at most; 0: all.")
@click.option("--with-vectors", is_flag=True, help="Return the vectors as well.")
@with_filter
@with_session
def scroll(
    session: Session, *, collection: str, limit: int, with_vectors: bool, condition: filter_pb2.Filter | None
) -> None:
    """Show points in order of their ids."""
    page_size = min(limit or 1_000, 1_000)
    with session.client() as client:
        walk = client.scroll(collection, filter=condition, page_size=page_size, with_vectors=with_vectors)
        points = list(itertools.islice(walk, limit or None))
    session.write({"points": points}, points_table(points))


@click.command()
@click.argument("collection")
@with_filter
@with_session
def count(session: Session, *, collection: str, condition: filter_pb2.Filter | None) -> None:
    """Count points, exactly."""
    with session.client() as client:
        counted = client.count(collection, filter=condition)
    session.write({"count": counted}, facts({"count": counted}))


@click.command()
@click.argument("collection")
@click.argument("ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every point; the collection stays.")
@click.option("--yes", is_flag=True, help="Do not ask before deleting by filter or all.")
@with_filter
@with_session
def delete(
    session: Session,
    *,
    collection: str,
    ids: tuple[str, ...],
    everything: bool,
    yes: bool,
    condition: filter_pb2.Filter | None,
) -> None:
    """Delete points by ids, by filter or all, at once."""
    if bool(ids) + everything + (condition is not None) != 1:
        message = "give ids, --filter or --all, one of them"
        raise click.UsageError(message)
    if not ids:
        which = "every point" if everything else "every point that matches"
        confirm(session, f"Delete {which} of {collection}?", yes=yes)
    with session.client() as client:
        if ids:
            result = client.delete(collection, ids=ids)
        else:
            result = client.delete(collection, filter=all_of() if condition is None else condition)
    session.write(result, facts({"deleted_count": result.deleted_count}))
