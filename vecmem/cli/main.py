"""The `vecmem` command. Exit codes are documented in docs/configuration.md and never change their meaning."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

import click
import grpc

from vecmem.cli.cluster import cluster
from vecmem.cli.collections import collections
from vecmem.cli.feeds import commit, publish, subscribe, watch
from vecmem.cli.importing import import_points
from vecmem.cli.inspection import checkpoint, health, info, verify
from vecmem.cli.keyspace import counters, keys, strings
from vecmem.cli.points import count, delete, get, query, scroll
from vecmem.cli.serving import CannotListenError, serve
from vecmem.cli.session import ADDRESS_DEFAULT, Session
from vecmem.errors import ConfigurationError, DataLossError, UnavailableError, VecmemError
from vecmem_client import VecmemClientError

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_DAMAGED: Final = 3
EXIT_ADDRESS: Final = 4
EXIT_UNREACHABLE: Final = 5
EXIT_IN_USE: Final = 6
EXIT_INTERRUPTED: Final = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version("vecmem"), prog_name="vecmem")
@click.option(
    "--address",
    envvar="VECMEM_ADDRESS",
    show_envvar=True,
    default=ADDRESS_DEFAULT,
    show_default=True,
    metavar="HOST:PORT",
    help="The server to talk to.",
)
@click.option("--json", "as_json", is_flag=True, help="Write one JSON document to standard output and nothing else.")
@click.option("--progress/--no-progress", default=None, help="Draw progress bars; by default on terminals.")
@click.pass_context
def vecmem(context: click.Context, *, address: str, as_json: bool, progress: bool | None) -> None:
    """A durable, in-memory, vector-search-first store: serve it, load it, ask it, look after it."""
    context.obj = Session(address, as_json, progress)


for command in (serve, collections, import_points, query, get, scroll, count, delete, info, health, verify, checkpoint):
    vecmem.add_command(command)
for command in (watch, subscribe, publish, commit):
    vecmem.add_command(command)
for group in (keys, strings, counters, cluster):
    vecmem.add_command(group)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code; every failure is one line, or one JSON object, on standard error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in arguments
    try:
        code = vecmem.main(arguments, prog_name="vecmem", standalone_mode=False)
    except click.Abort:
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        if as_json:
            _report(error.format_message(), "USAGE", {}, as_json=True)
        else:
            error.show()
        return EXIT_USAGE
    except VecmemError as error:
        _report(error.message, error.reason, error.metadata, as_json=as_json)
        return _exit_code(error)
    except VecmemClientError as error:
        _report(error.message, error.reason, error.metadata, as_json=as_json)
        return EXIT_UNREACHABLE if error.code is grpc.StatusCode.UNAVAILABLE else EXIT_FAILED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        name = errno.errorcode.get(error.errno or 0, "OS_ERROR")
        _report(f"{where}{error.strerror or error}", name, {}, as_json=as_json)
        return EXIT_FAILED
    return code if isinstance(code, int) else 0


def _report(message: str, reason: str, metadata: object, *, as_json: bool) -> None:
    document = {"error": {"reason": reason, "message": message, "metadata": metadata}}
    click.echo(json.dumps(document, ensure_ascii=False) if as_json else f"vecmem: {message} [{reason}]", err=True)


def _exit_code(error: VecmemError) -> int:
    if isinstance(error, CannotListenError):
        return EXIT_ADDRESS
    if isinstance(error, ConfigurationError):
        return EXIT_USAGE
    if isinstance(error, UnavailableError):
        return EXIT_IN_USE
    return EXIT_DAMAGED if isinstance(error, DataLossError) else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
