"""`vecmem serve --shards N`: the data of one machine shared between processes, each with fixed hash slots and a log of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from vecmem.cli.local_nodes import local_nodes
from vecmem.cli.session import Session
from vecmem.cluster.coordination import FileCoordination
from vecmem.cluster.view import TOPOLOGY_KEY
from vecmem.config import Settings, split_address
from vecmem.errors import ConfigurationError, UnavailableError
from vecmem.v1.cluster_pb2 import Topology

COORDINATION_FILE = "cluster.sqlite"
POLL_SECONDS = 0.1


def serve_shards(session: Session, settings: Settings, config_file: Path | None, flags: dict[str, Any]) -> None:
    """Run all processes until SIGTERM or SIGINT.

    Raises ConfigurationError where the directory holds something else, UnavailableError where a process does not start or ends by itself.
    """
    _check_directory(settings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    commands = [
        (settings.data_dir / f"shard-{shard}.log", _flags_of(settings, config_file, flags, shard))
        for shard in range(settings.shards)
    ]
    with local_nodes(commands) as nodes:
        ready = {
            "event": "ready",
            "address": nodes[0].address,
            "addresses": [node.address for node in nodes],
            "pid": os.getpid(),
            "pids": [node.process.pid for node in nodes],
            "version": version("vecmem"),
            "grpc_engine": nodes[0].ready["grpc_engine"],
        }
        human = (
            f"vecmem {ready['version']} serves on {ready['address']} and {settings.shards - 1} more ports, one for each shard, "
            f"data in {settings.data_dir}, process {ready['pid']}"
        )
        click.echo(json.dumps(ready) if session.as_json else human)
        while not stop.wait(POLL_SECONDS):
            for shard, node in enumerate(nodes):
                code = node.process.poll()
                if code is not None:
                    raise UnavailableError(
                        f"the process of shard {shard} has ended with {code}; {commands[shard][0]} says why"
                    )


def _check_directory(settings: Settings) -> None:
    """Make the directory. Raises ConfigurationError where it holds the data of one process, or of another number of them."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    path = settings.data_dir / COORDINATION_FILE
    if not path.exists():
        if (settings.data_dir / "log").exists():
            raise ConfigurationError(
                f"{settings.data_dir} holds the data of a single process, which is not shared out afterwards: load it into a new one",
                key="shards",
            )
        return
    entry = asyncio.run(FileCoordination(path).get(TOPOLOGY_KEY))
    if entry is not None:
        shard_count = len(Topology.FromString(entry.value).shards)
        if shard_count != settings.shards:
            raise ConfigurationError(
                f"{settings.data_dir} has {shard_count} shards, not {settings.shards}: their number stays what it was",
                key="shards",
            )


def _flags_of(settings: Settings, config_file: Path | None, flags: dict[str, Any], shard: int) -> list[str]:
    """The flags of one process: those given, but for what it has of its own."""
    host, port = split_address(settings.listen)
    own = {
        "data_dir": str(settings.data_dir / f"shard-{shard}"),
        "listen": f"{'[' + host + ']' if ':' in host else host}:{port + shard if port else 0}",
        "coordination_file": str(settings.data_dir / COORDINATION_FILE),
        "shard": shard,
        "shards": settings.shards,
        "node": f"shard-{shard}",
        # What is given is for all of them together.
        "memory_limit_bytes": settings.memory_limit_bytes // settings.shards,
    }
    found = [] if config_file is None else ["--config", str(config_file)]
    for key, value in {**flags, **own}.items():
        name = key.replace("_", "-")
        if value is True or value is False:
            found.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            found += [f"--{name}", str(value)]
    return found
