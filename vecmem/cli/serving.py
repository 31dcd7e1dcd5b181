"""`vecmem serve`: settings from file, environment and flags, then the server until SIGTERM."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from vecmem.cli.session import Session, with_session
from vecmem.config import is_loopback, load_settings, setting_fields, setting_type, split_address
from vecmem.errors import ConfigurationError


class CannotListenError(ConfigurationError):
    """The address is in use, or not one of this machine's."""


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """A flag for every setting, so that none can be forgotten here."""
    for setting in reversed(setting_fields()):
        kind = setting_type(setting.name)
        name = f"--{setting.name.replace('_', '-')}"
        default = str(setting.default).lower() if kind is bool else setting.default
        help_text = f"{setting.metadata['help']}  [default: {default}]"
        if kind is bool:
            option = click.option(f"{name}/--no-{name.removeprefix('--')}", default=None, help=help_text)
        else:
            option = click.option(name, type=str if kind is Path else kind, default=None, help=help_text)
        command = option(command)
    return command


@click.command()
@click.option(
    "--config",
    "config_file",
    envvar="VECMEM_CONFIG",
    show_envvar=True,
    type=click.Path(path_type=Path),
    help="TOML file with settings.",
)
@with_settings
@with_session
def serve(session: Session, *, config_file: Path | None, **flags: Any) -> None:
    """Run a server until SIGTERM or SIGINT; then finish the calls in flight and exit 0.

    With --json the one line on standard output says when and where it serves:
    {"event": "ready", "address": "127.0.0.1:7700", "pid": 1, "version": "...", "grpc_engine": "native"}

    With --shards N, and without --cluster, the data is shared between N processes of this machine, each with a log of its own below the
    data directory, on ports that follow that of --listen; each of them answers for all, and the ready line has their "addresses".
    """
    settings = load_settings(config_file=config_file, environment=os.environ, flags=flags)
    if not is_loopback(split_address(settings.listen)[0]):
        click.echo(
            f"warning: {settings.listen} can be reached from other machines, and there are no users and no TLS: "
            "whoever reaches it reads and writes everything",
            err=True,
        )

    if settings.shards > 1 and not settings.in_cluster:
        from vecmem.cli.shards import serve_shards

        serve_shards(session, settings, config_file, flags)
        return

    # Imported here: the other commands need neither the index nor the log, and start faster without them.
    from vecmem.server.app import serve as run_server
    from vecmem.server.engine import choose

    engine = choose(settings)

    def announce(address: str) -> None:
        ready = {
            "event": "ready",
            "address": address,
            "pid": os.getpid(),
            "version": version("vecmem"),
            "grpc_engine": engine.name,
        }
        human = f"vecmem {ready['version']} serves on {address}, data in {settings.data_dir}, process {ready['pid']}"
        click.echo(json.dumps(ready) if session.as_json else human)

    try:
        run_server(settings, engine, on_ready=announce)
    except ConfigurationError as error:
        if error.metadata.get("key") != "listen":
            raise
        # The settings themselves have passed every check: it is the machine that will not have the address.
        raise CannotListenError(error.message, **error.metadata) from error
