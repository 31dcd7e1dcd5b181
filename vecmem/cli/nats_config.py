"""`vecmem cluster nats-config`: the configuration file of one NATS server of a cluster, on standard output."""

from __future__ import annotations

import shlex
from typing import Final

import click

from vecmem.cli.session import Session, with_session

OPTION_OF: Final = {
    "name": "--name",
    "listen": "--listen",
    "monitoring": "--monitoring",
    "store_directory": "--store-dir",
    "cluster_name": "--cluster-name",
    "cluster_listen": "--cluster-listen",
    "routes": "--route",
}
"""By the names of NatsConfiguration's fields."""


@click.command("nats-config")
@click.option(
    "--name",
    default="",
    help="Name of the server, which no other has; left out: the flag --name of nats-server tells it.",
)
@click.option("--listen", default="0.0.0.0:4222", show_default=True, metavar="HOST:PORT", help="For the nodes.")
@click.option(
    "--monitoring",
    default="",
    metavar="HOST:PORT",
    help="Pages that nodes read.  [default: port 8222 of --listen's host]",
)
@click.option(
    "--store-dir", "store_directory", default="/var/lib/nats", show_default=True, metavar="DIRECTORY", help="Its disk."
)
@click.option("--cluster-name", default="vecmem", show_default=True, help="The same for all servers.")
@click.option(
    "--cluster-listen",
    default="",
    metavar="HOST:PORT",
    help="For the other servers.  [default: port 6222 of --listen's host]",
)
@click.option(
    "--route",
    "routes",
    multiple=True,
    metavar="nats://HOST:PORT",
    help="A server of the cluster; once for each of them.",
)
@with_session
def nats_config(session: Session, **values: str | tuple[str, ...]) -> None:
    """Print the configuration of a NATS server that syncs each message before it acknowledges it.

    Without --route it is that of a server alone. Its first line is the command that prints it again.
    """
    from vecmem.cluster.nats_configuration import NatsConfiguration

    host = str(values["listen"]).rpartition(":")[0]
    values["monitoring"] = values["monitoring"] or f"{host}:8222"
    if values["routes"]:
        values["cluster_listen"] = values["cluster_listen"] or f"{host}:6222"
    else:
        values["cluster_name"] = ""
    text = NatsConfiguration(**values).text()  # type: ignore[arg-type]  # the options are named by its fields
    words = ["vecmem", "cluster", "nats-config"]
    for field_name, option in OPTION_OF.items():
        given = values[field_name]
        for value in (given,) if isinstance(given, str) else given:
            words += [option, value] if value else []
    configuration = f"# {shlex.join(words)}\n{text}"
    if session.as_json:
        session.write({"configuration": configuration})
    else:
        click.echo(configuration, nl=False)
