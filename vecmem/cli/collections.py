"""`vecmem collections`: list, create, get, update, delete, stats."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vecmem.cli.session import Grid, Session, confirm, facts, grid, with_session
from vecmem_client import Flat, GraphCode, Hnsw, Metric, PayloadType, Storage, VectorConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType
    from rich.table import Table

    from vecmem_client import Collection

METRICS = [metric.value for metric in Metric]
CommandT = TypeVar("CommandT", bound="Callable[..., Any]")


class PayloadIndexType(click.ParamType[Any]):
    """A payload path and the type of its values, as PATH:TYPE."""

    name = "payload index"

    def convert(
        self, value: str | tuple[str, PayloadType], parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[str, PayloadType]:
        """Parse it. A path may have colons of its own."""
        if isinstance(value, tuple):
            return value
        path, _, kind = value.rpartition(":")
        if not path or kind not in tuple(PayloadType):
            self.fail(f"{value} is not PATH:TYPE, where TYPE is one of {', '.join(PayloadType)}", parameter, context)
        return path, PayloadType(kind)


def _with_vector_options(unset: int | None) -> Callable[[CommandT], CommandT]:
    """The options that set how vectors are searched and kept; numbers that are not given are `unset`."""
    options = [
        click.option("--m", type=int, default=unset, help="Links a node of the graph; 0: the server's default."),
        click.option(
            "--ef-construction", type=int, default=unset, help="Candidates considered on insertion; 0: the default."
        ),
        click.option(
            "--ef", type=int, default=unset, help="Candidates considered by a query; 0: as --target-recall takes."
        ),
        click.option(
            "--target-recall", type=float, default=unset, help="Recall that queries aim at, 0.5 to 1; 0: the default."
        ),
        click.option(
            "--graph",
            type=click.Choice(["auto", *(code.value for code in GraphCode)]),
            help="What the graph holds of each vector; auto: the server chooses.",
        ),
        click.option(
            "--storage", type=click.Choice([storage.value for storage in Storage]), help="How the vectors are kept."
        ),
        click.option(
            "--payload-index",
            "payload_indexes",
            type=PayloadIndexType(),
            multiple=True,
            metavar="PATH:TYPE",
            help=f"Declare an index of a payload path that filters ask for; TYPE is one of {', '.join(PayloadType)}.",
        ),
    ]

    def decorate(command: CommandT) -> CommandT:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.group()
def collections() -> None:
    """Manage collections."""


def _vectors_table(collection: Collection) -> Grid:
    declared = ({"": collection.vector} if collection.vector else {}) | dict(collection.vectors)
    headings = {"vector": False, "dimension": True, "metric": False, "storage": False, "index": False}
    rows = [
        [name or "(default)", config.dimension, config.metric, config.storage, _index_text(config)]
        for name, config in declared.items()
    ]
    return grid(headings, rows)


def _index_text(config: VectorConfig) -> str:
    if isinstance(config.index, Flat):
        return "flat"
    hnsw = config.index
    effort = f"ef={hnsw.ef}" if hnsw.ef else f"target_recall={hnsw.target_recall}"
    return f"hnsw m={hnsw.m} ef_construction={hnsw.ef_construction} {effort} graph={hnsw.graph or 'auto'}"


def _facts(collection: Collection) -> Table:
    shown = {"name": collection.name, "description": collection.description, "uid": collection.uid}
    shown["created_at"] = collection.created_at.isoformat(timespec="seconds")
    if collection.payload_indexes:
        shown["payload_indexes"] = ", ".join(f"{path}:{kind}" for path, kind in collection.payload_indexes.items())
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
@_with_vector_options(unset=0)
@click.option(
    "--vector",
    "named",
    multiple=True,
    metavar="NAME:DIMENSION[:METRIC]",
    help="A named vector, with the same index and storage; may be given several times.",
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
    target_recall: float,
    graph: str | None,
    storage: str | None,
    payload_indexes: tuple[tuple[str, PayloadType], ...],
    named: tuple[str, ...],
    description: str,
) -> None:
    """Create a collection."""
    hnsw = Hnsw(m=m, ef_construction=ef_construction, ef=ef, graph=_graph_code(graph), target_recall=target_recall)
    # The dimension is that of each vector.
    common = VectorConfig(0, Metric(metric), Flat() if flat else hnsw, Storage(storage) if storage else None)
    vector = replace(common, dimension=dimension) if dimension is not None else None
    vectors = dict(_parse_named(text, common) for text in named)
    if vector is None and not vectors:
        message = "give --dimension, --vector or both"
        raise click.UsageError(message)
    with session.client() as client:
        made = client.create_collection(
            name, vector, vectors=vectors, payload_indexes=dict(payload_indexes), description=description
        )
    session.write(made, _facts(made), _vectors_table(made))


def _parse_named(text: str, common: VectorConfig) -> tuple[str, VectorConfig]:
    name, _, rest = text.partition(":")
    dimension, _, metric = rest.partition(":")
    if not name or not dimension.isdecimal() or (metric and metric not in METRICS):
        message = f"--vector {text}: is not NAME:DIMENSION[:METRIC]"
        raise click.UsageError(message)
    return name, replace(common, dimension=int(dimension), metric=Metric(metric or common.metric))


def _graph_code(name: str | None) -> GraphCode | None:
    return None if name in {None, "auto"} else GraphCode(name)


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
@click.option("--using", default="", help="Vector whose graph or storage changes; the default vector when not given.")
@_with_vector_options(unset=None)
@click.option("--drop-payload-index", "dropped", multiple=True, metavar="PATH", help="Declare it no longer.")
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
    target_recall: float | None,
    graph: str | None,
    storage: str | None,
    payload_indexes: tuple[tuple[str, PayloadType], ...],
    dropped: tuple[str, ...],
) -> None:
    """Change description, graph parameters, storage or payload indexes; what is not given stays."""
    numbers = {"m": m, "ef_construction": ef_construction, "ef": ef, "target_recall": target_recall}
    given: dict[str, Any] = {key: value for key, value in numbers.items() if value is not None}
    if graph is not None:
        given["graph"] = _graph_code(graph)
    if not (given or payload_indexes or dropped) and description is None and storage is None:
        message = "nothing to change: see --help for what can be"
        raise click.UsageError(message)
    with session.client() as client:
        # The API sets all parameters of a graph at once, and all payload indexes: those not given are taken from the collection.
        collection = client.get_collection(name)
        config = collection.vectors.get(using) if using else collection.vector
        current = config.index if config is not None and isinstance(config.index, Hnsw) else Hnsw()
        hnsw = replace(current, **given) if given else None
        kept = Storage(storage) if storage else None
        declared = None
        if payload_indexes or dropped:
            if unknown := set(dropped) - set(collection.payload_indexes):
                message = f"--drop-payload-index: {min(unknown)!r} is not declared"
                raise click.UsageError(message)
            declared = {path: kind for path, kind in collection.payload_indexes.items() if path not in dropped}
            declared |= dict(payload_indexes)
        changed = client.update_collection(
            name,
            description=description,
            hnsw=None if using else hnsw,
            vectors_hnsw={using: hnsw} if using and hnsw else None,
            storage=None if using else kept,
            vectors_storage={using: kept} if using and kept else None,
            payload_indexes=declared,
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
        "storage": False,
        "codes": False,
        "recall": True,
        "measured": True,
        "ef": True,
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
            counts.storage,
            counts.graph,
            counts.measured_recall,
            counts.measured_query_count,
            counts.calibrated_ef,
        ]
        for vector, counts in found.vectors.items()
    ]
    summary = facts({"point_count": found.point_count, "payload_bytes": found.payload_bytes})
    tables: list[RenderableType] = [summary, grid(headings, rows)]
    if found.payload_indexes:
        headings = {"payload index": False, "declared": False, "points": True, "MiB": True}
        tables.append(
            grid(
                headings,
                [
                    [each.path, each.declared, each.point_count, f"{each.bytes / 2**20:,.1f}"]
                    for each in found.payload_indexes
                ],
            )
        )
    session.write(found, *tables)
