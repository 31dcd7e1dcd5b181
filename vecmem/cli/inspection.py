"""`vecmem info`, `health`, `checkpoint` and `verify`: what an operator looks at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vecmem.cli.session import Session, facts, grid, plain, with_session
from vecmem_client import VecmemClientError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vecmem.store.verify import DataDirectoryReport

CHECKPOINT_SECONDS_MAX: Final = 3_600.0
LOG_FACTS: Final = ("first_sequence", "last_sequence", "records", "torn_tail_bytes", "torn_tail_file")
"""What of the log's report people are shown; --json has all of it."""


@click.command()
@click.argument("data_dir", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@with_session
def info(session: Session, *, data_dir: Path | None) -> None:
    """Show what a server is and how it came up; with DATA_DIR, what a stopped server's directory holds."""
    if data_dir is not None:
        report = _examine(session, data_dir)
        session.write(report, *_report_tables(report))
        return
    with session.client() as client:
        found = client.server_info()
    document = plain(found)
    recovery = {f"recovery.{key}": value for key, value in document["recovery"].items()}
    session.write(found, facts({key: value for key, value in document.items() if key != "recovery"} | recovery))


@click.command()
@with_session
def checkpoint(session: Session) -> None:
    """Write a checkpoint now; return when it is published. Serving goes on meanwhile."""
    with session.client() as client:
        published = client.create_checkpoint(timeout_seconds=CHECKPOINT_SECONDS_MAX)
    session.write(published, facts(plain(published)))


@click.command()
@click.option(
    "--timeout", "timeout_seconds", type=click.FloatRange(min=0.1), default=3.0, show_default=True, help="Seconds."
)
@with_session
def health(session: Session, *, timeout_seconds: float) -> int:
    """Ask the standard health service whether a server takes calls, as container runtimes and load balancers do.

    Exits with 0 where it does, with 1 where it is ending, and with 5 where it cannot be reached.
    """
    if "," in session.address:
        raise click.UsageError("--address: the health of one server is asked for, not of several")
    with grpc.insecure_channel(session.address) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
        except grpc.RpcError as error:
            # Whatever the reason, and a deadline that has passed is one: nobody answers there as a server does.
            message = error.details() or error.code().name
            raise VecmemClientError(message, code=grpc.StatusCode.UNAVAILABLE, reason=error.code().name) from error
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    session.write({"status": status}, status)
    return 0 if reply.status == health_pb2.HealthCheckResponse.SERVING else 1


@click.command()
@click.argument("data_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@with_session
def verify(session: Session, *, data_dir: Path) -> int:
    """Check a data directory offline; nothing in it is changed. Exits 1 when something is damaged."""
    report = _examine(session, data_dir)
    session.write(report, *_report_tables(report))
    return 1 if report.damage else 0


def _examine(session: Session, data_dir: Path) -> DataDirectoryReport:
    from vecmem.store.verify import verify_data_directory

    with session.progress_bar() as bar:
        task = bar.add_task("log records", total=None)
        return verify_data_directory(
            data_dir, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )


def _report_tables(report: DataDirectoryReport) -> list[RenderableType]:
    log = {f"log.{key}": value for key, value in plain(report.log).items() if key in LOG_FACTS}
    tables: list[RenderableType] = [facts({"data_dir": report.data_dir} | log | {"damage": len(report.damage)})]
    if report.checkpoints:
        headings = {
            "checkpoint": False,
            "sequence": True,
            "bytes": True,
            "collections": True,
            "points": True,
            "keys": True,
        }
        tables.append(grid(headings, [plain(each).values() for each in report.checkpoints]))
    tables += [f"note: {note}" for note in report.notes]
    tables += [f"DAMAGE: {damage.message} [{damage.reason}]" for damage in report.damage]
    return tables
