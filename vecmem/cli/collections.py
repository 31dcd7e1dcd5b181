"""`vecmem collections`: list, create, get, update, delete, stats."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, cast

import click

from vecmem.cli.session import Grid, Session, confirm, facts, grid, with_session
from vecmem_client import Flat, Hnsw, VectorConfig

if TYPE_CHECKING:
    from rich.table import Table

    from vecmem_client import Collection

MetricName = Literal["cosine", "dot", "euclidean"]
METRICS = ("cosine", "dot", "euclidean")


@click.group()
def collections() -> None:
    """Manage collections."""


def _vectors_table(collection: Collection) -> Grid:
    declared = ({"": collection.vector} if collection.vector else {}) | dict(collection.vectors)
    headings = {"vector": False, "dimension": True, "metric": False, "index": False}
    rows = [
        [name or "(default)", config.dimension, str(config.metric), _index_text(config)]
        for name, config in declared.items()
    ]
    return grid(headings, rows)


def _index_text(config: VectorConfig) -> str:
    if isinstance(config.index, Flat):
        return "flat"
    return f"hnsw m={config.index.m} ef_construction={config.index.ef_construction} ef={config.index.ef}"


def _facts(collection: Collection) -> Table:
    shown = {"name": collection.name, "description": collection.description, "uid": collection.uid}
    shown["created_at"] = collection.created_at.isoformat(timespec="seconds")
    return facts(shown | ({"damage": collection.damage} if collection.damage else {}))


@collections.command("list")
@with_session
def list_collections(session: Session) -> None:
    """List all collections."""
    with session.client() as client:
        found = list(client.list_collections())
        counts = {each.name: client.count(each.name) for each in found if not each.damage and not session.as_json}
    rows = [
        [
            each.name,
            counts.get(each.name),
            each.vector.dimension if each.vector else None,
            str(each.vector.metric) if each.vector else "",
            len(each.vectors),
            each.damage or each.description,
        ]
        for each in found
    ]
    headings = {"name": False, "points": True, "dimension": True, "metric": False, "named": True, "description": False}
    session.write({"collections": found}, grid(headings, rows))


@collections.command()
@click.argument("name")
@click.option("--dimension", type=int, help="Elements of the default vector.")
@click.option("--metric", type=click.Choice(METRICS), default="cosine", show_default=True)
@click.option("--flat", is_flag=True, help="Search by exact scan instead of a graph.")
@click.option("--m", type=int, default=0, help="Links a node of the graph; 0: the server's default.")
@click.option("--ef-construction", type=int, default=0, help="Candidates considered on insertion; 0: the default.")
@click.option("--ef", type=int, default=0, help="Candidates considered by a query; 0: the default.")
@click.option(
    "--vector",
    "named",
    multiple=True,
    metavar="NAME:DIMENSION[:METRIC]",
    help="A named vector, with the same index; may be given several times.",
)
@click.option("--description", default="")
@with_session
def create(
    session: Session,
    *,
    name: str,
    dimension: int | None,
    metric: str,
    flat: bool,
    m: int,
    ef_construction: int,
    ef: int,
    named: tuple[str, ...],
    description: str,
) -> None:
    """Create a collection."""
    index = Flat() if flat else Hnsw(m=m, ef_construction=ef_construction, ef=ef)
    vector = VectorConfig(dimension, cast("MetricName", metric), index) if dimension is not None else None
    vectors = dict(_parse_named(text, metric, index) for text in named)
    if vector is None and not vectors:
        message = "give --dimension, --vector or both"
        raise click.UsageError(message)
    with session.client() as client:
        made = client.create_collection(name, vector, vectors=vectors, description=description)
    session.write(made, _facts(made), _vectors_table(made))


def _parse_named(text: str, metric: str, index: Flat | Hnsw) -> tuple[str, VectorConfig]:
    name, _, rest = text.partition(":")
    dimension, _, own_metric = rest.partition(":")
    if not name or not dimension.isdecimal() or (own_metric or metric) not in METRICS:
        message = f"--vector {text}: is not NAME:DIMENSION[:METRIC]"
        raise click.UsageError(message)
    return name, VectorConfig(int(dimension), cast("MetricName", own_metric or metric), index)


@collections.command()
@click.argument("name")
@with_session
def get(session: Session, *, name: str) -> None:
    """Show the definition of a collection."""
    with session.client() as client:
        found = client.get_collection(name)
    session.write(found, _facts(found), _vectors_table(found))


@collections.command()
@click.argument("name")
@click.option("--description", help="New description.")
@click.option("--using", default="", help="Vector whose graph parameters change; the default vector when not given.")
@click.option("--m", type=int, help="Links a node; 0: the server's default.")
@click.option("--ef-construction", type=int, help="Candidates considered on insertion; 0: the default.")
@click.option("--ef", type=int, help="Candidates considered by a query; 0: the default.")
@with_session
def update(
    session: Session,
    *,
    name: str,
    description: str | None,
    using: str,
    m: int | None,
    ef_construction: int | None,
    ef: int | None,
) -> None:
    """Change the description or graph parameters; what is not given stays."""
    given = {
        key: value for key, value in {"m": m, "ef_construction": ef_construction, "ef": ef}.items() if value is not None
    }
    if description is None and not given:
        message = "nothing to change: give --description, --m, --ef-construction or --ef"
        raise click.UsageError(message)
    with session.client() as client:
        hnsw = None
        if given:
            # The API sets all three at once, so the ones not given are taken from the collection.
            collection = client.get_collection(name)
            config = collection.vectors.get(using) if using else collection.vector
            current = config.index if config is not None and isinstance(config.index, Hnsw) else Hnsw()
            hnsw = replace(current, **given)
        changed = client.update_collection(
            name,
            description=description,
            hnsw=None if using else hnsw,
            vectors_hnsw={using: hnsw} if using and hnsw else None,
        )
    session.write(changed, _facts(changed), _vectors_table(changed))


@collections.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_session
def delete(session: Session, *, name: str, yes: bool) -> None:
    """Delete a collection with all its points."""
    confirm(session, f"Delete collection {name} with all its points?", yes=yes)
    with session.client() as client:
        result = client.delete_collection(name)
    session.write(result, facts({"deleted_point_count": result.deleted_count}))


@collections.command()
@click.argument("name")
@with_session
def stats(session: Session, *, name: str) -> None:
    """Count points, index rows and bytes."""
    with session.client() as client:
        found = client.collection_stats(name)
    headings = {
        "vector": False,
        "vectors": True,
        "graph": True,
        "tail": True,
        "dead": True,
        "rebuilds": False,
        "arena MiB": True,
        "graph MiB": True,
    }
    rows = [
        [
            vector or "(default)",
            counts.vector_count,
            counts.graph_row_count,
            counts.tail_row_count,
            counts.graph_deleted_row_count,
            counts.rebuilding,
            f"{counts.arena_bytes / 2**20:,.1f}",
            f"{counts.graph_bytes / 2**20:,.1f}",
        ]
        for vector, counts in found.vectors.items()
    ]
    summary = facts({"point_count": found.point_count, "payload_bytes": found.payload_bytes})
    session.write(found, summary, grid(headings, rows))
