"""What every command shares: the options --address, --json and --progress, the client, and how results are written.

With --json a command writes one JSON document to standard output and nothing else; without it, tables for people.
Progress and messages go to standard error.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, TypeVar

import click
import grpc
import numpy as np
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from vecmem.errors import VecmemError
from vecmem_client import Client, RetryPolicy, StoredPoint, VecmemClientError

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType, RenderResult

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

ADDRESS_DEFAULT: Final = "127.0.0.1:7700"
_PIPE_COLUMNS: Final = 160
"""Width of tables where no terminal sets one."""
_SEPARATOR_COLUMNS: Final = 3
"""Between two columns of a grid: rich's padding on both sides of its blank divider."""


@dataclass(frozen=True)
class Session:
    """The shared options of one command."""

    address: str
    as_json: bool
    progress: bool | None
    """None: where standard error is a terminal."""

    def client(self) -> Client:
        """Connect. People wait at the terminal, so an absent server is told after three tries; of a cluster the lead may be on its way."""
        return Client(self.address, retry=RetryPolicy() if "," in self.address else RetryPolicy(attempts_max=3))

    def write(self, document: object, *tables: RenderableType) -> None:
        """Write the result: the document with --json, the tables without."""
        if self.as_json:
            click.echo(json.dumps(plain(document), ensure_ascii=False))
            return
        console = Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS, highlight=False)
        for table in tables:
            console.print(table, soft_wrap=isinstance(table, str), markup=False, crop=False)

    def write_line(self, document: object, line: str) -> None:
        """Write one part of a result that goes on: at once, so that whoever reads a pipe has it."""
        click.echo(json.dumps(plain(document), ensure_ascii=False) if self.as_json else line)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Tell people something beside the result."""
        if not self.as_json:
            click.echo(text, err=True)

    def progress_bar(self) -> Progress:
        """A bar with rate and time left, on standard error; invisible unless wanted."""
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not self.shows_progress,
        )

    @property
    def shows_progress(self) -> bool:
        """Whether a progress bar is wanted."""
        return sys.stderr.isatty() if self.progress is None else self.progress


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "-/s")


def with_session(command: Callable[..., Result]) -> Callable[..., Result]:
    """Give a command the shared options and, as its first argument, the Session made of them.

    They may stand before the command's name as well; those behind it win.
    """

    @click.option("--address", metavar="HOST:PORT", help="The server to talk to.  [env: VECMEM_ADDRESS]")
    @click.option("--json", "as_json", is_flag=True, help="Write one JSON document.")
    @click.option("--progress/--no-progress", default=None, help="Draw progress bars; by default on terminals.")
    @click.pass_context
    @functools.wraps(command)
    def wrapped(
        context: click.Context, /, *, address: str | None, as_json: bool, progress: bool | None, **parameters: Any
    ) -> Result:
        outer: Session = context.obj
        session = Session(
            address or outer.address, as_json or outer.as_json, outer.progress if progress is None else progress
        )
        try:
            return command(session, **parameters)
        except VecmemClientError as error:
            if error.code is grpc.StatusCode.UNAVAILABLE:
                error.message = f"the server at {session.address} does not answer: {error.message}"
            raise

    return wrapped


def confirm(session: Session, question: str, *, yes: bool) -> None:
    """Ask before something is destroyed. Without a person at the terminal --yes is needed."""
    if yes:
        return
    if session.as_json or not sys.stdin.isatty():
        message = f"{question} Add --yes to do it."
        raise click.UsageError(message)
    click.confirm(question, abort=True, err=True)


def plain(value: object) -> Any:
    """A result as JSON types: dataclasses as objects, times as RFC 3339, arrays as lists, payloads decoded."""
    if isinstance(value, StoredPoint):
        return _plain_point(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {known.name: plain(getattr(value, known.name)) for known in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, str) or value is None or isinstance(value, int | float):
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, VecmemError):
        return {"reason": value.reason, "message": value.message} | value.metadata
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)


def _plain_point(point: StoredPoint) -> dict[str, Any]:
    document: dict[str, Any] = {"id": point.id}
    if hasattr(point, "score"):
        document["score"] = point.score
    document |= {"version": point.version, "payload": point.payload}
    if point.vector is not None:
        document["vector"] = point.vector.tolist()
    if point.vectors:
        document["vectors"] = plain(point.vectors)
    if point.expires_at is not None:
        document["expires_at"] = point.expires_at.isoformat()
    return document


def text_of(value: bytes) -> str:
    """Bytes for people: as text where they are UTF-8, else as Python writes them."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return repr(value)


def facts(document: Mapping[str, object]) -> Table:
    """A table of names and values."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in document.items():
        table.add_row(key, Text(shown(value)))
    return table


def shown(value: object) -> str:
    """A value for people: thousands separated, JSON for what nests."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}"
    if isinstance(value, Mapping | list):
        return json.dumps(value, ensure_ascii=False) if value else "-"
    return str(value) or "-"


@dataclass(frozen=True)
class Grid:
    """A table with one row each. Where it is wider than the terminal its last column is cut, if that holds text.

    The other columns keep their width, since half an id or score is none: a terminal narrower than they are wraps lines.
    """

    headings: Mapping[str, bool]
    """Says of each column whether it holds numbers."""
    rows: Sequence[Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render it."""
        table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        widths = [
            max(map(cell_len, column))
            for column in zip(*([[*self.headings], *self.rows]), strict=True)  # the headings are a row as well
        ]
        separators = (len(widths) - 1) * _SEPARATOR_COLUMNS
        names = list(self.headings)
        if not self.headings[names[-1]]:
            left = options.max_width - separators - sum(widths[:-1])
            widths[-1] = min(widths[-1], max(left, cell_len(names[-1])))
        for (heading, numeric), width in zip(self.headings.items(), widths, strict=True):
            justify: Literal["left", "right"] = "right" if numeric else "left"
            table.add_column(heading, justify=justify, width=width, no_wrap=True, overflow="ellipsis")
        for row in self.rows:
            table.add_row(*map(Text, row))
        yield from console.render(table, options.update(width=sum(widths) + separators))


def grid(headings: Mapping[str, bool], rows: Iterable[Iterable[object]]) -> Grid:
    """A table of values as people read them; `headings` says of each column whether it holds numbers."""
    return Grid(headings, [[shown(value) for value in row] for row in rows])


def points_table(points: Iterable[StoredPoint]) -> Grid:
    """Points or hits, one a row; the payload takes what room is left."""
    listed = [_plain_point(point) for point in points]
    scored = bool(listed) and "score" in listed[0]
    headings = {"id": False} | ({"score": True} if scored else {}) | {"version": True, "payload": False}
    rows = [
        [point["id"], *([f"{point['score']:.4f}"] if scored else []), point["version"], point["payload"]]
        for point in listed
    ]
    return grid(headings, rows)
