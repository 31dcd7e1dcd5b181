"""The configuration of a NATS server that loses nothing, in the one place that writes it.

`vecmem cluster dev`, the tests, `vecmem cluster nats-config` and with it the files of deploy/ have it from here: each message is
synced before it is acknowledged (`sync_interval: always`; NATS's default is two minutes), and the largest message of the
replicated log fits. What NATS would refuse, or take for something else, is refused before it is written.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from vecmem.config import split_address
from vecmem.errors import ConfigurationError
from vecmem.log.jetstream_batch import HEADERS_BYTES_MAX, STORED_MESSAGE_BYTES_MAX

MAX_PAYLOAD_BYTES: Final = STORED_MESSAGE_BYTES_MAX + HEADERS_BYTES_MAX
MAX_PENDING_BYTES: Final = 8 * MAX_PAYLOAD_BYTES
"""What may wait for one client before the server cuts it off: some of the largest messages, in base64."""
ROUTE_SCHEME: Final = "nats://"

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, kw_only=True)
class NatsConfiguration:
    """What one server is told. Raises ConfigurationError."""

    name: str
    """Unique in the cluster; empty: told by the program's flag --name."""
    listen: str
    """HOST:PORT for clients, which the nodes are."""
    monitoring: str
    """HOST:PORT of the pages by which nodes find out whether it syncs."""
    store_directory: str
    """Where it keeps its messages."""
    cluster_name: str = ""
    cluster_listen: str = ""
    """HOST:PORT for the other servers; empty: it is alone."""
    routes: tuple[str, ...] = ()
    """nats://HOST:PORT of the servers of the cluster, its own may be among them."""
    sync_always: bool = True
    """False only to test what is done about it."""

    def __post_init__(self) -> None:
        """Refuse what NATS would, by the names that `vecmem cluster nats-config` has for it."""
        if self.name and not _NAME.fullmatch(self.name):
            raise _refusal("name", self.name, "letters, digits, '.', '-' and '_'")
        _check_address("listen", self.listen)
        _check_address("monitoring", self.monitoring)
        if not PurePosixPath(self.store_directory).is_absolute():
            raise _refusal("store-dir", self.store_directory, "an absolute path")
        if bool(self.routes) != bool(self.cluster_listen):
            raise ConfigurationError("route, cluster-listen: a server of a cluster needs both, a server alone neither")
        if not self.routes:
            return
        if not _NAME.fullmatch(self.cluster_name):
            raise _refusal("cluster-name", self.cluster_name, "letters, digits, '.', '-' and '_'")
        _check_address("cluster-listen", self.cluster_listen)
        for route in self.routes:
            if not route.startswith(ROUTE_SCHEME):
                raise _refusal("route", route, f"{ROUTE_SCHEME}HOST:PORT")
            _check_address("route", route.removeprefix(ROUTE_SCHEME))
        if len(set(self.routes)) != len(self.routes):
            raise _refusal("route", ", ".join(self.routes), "each server once")

    def text(self) -> str:
        """The configuration file."""
        lines = [f"server_name: {json.dumps(self.name)}"] if self.name else []
        lines += [
            f"listen: {json.dumps(self.listen)}",
            f"http: {json.dumps(self.monitoring)}",
            f"max_payload: {MAX_PAYLOAD_BYTES}",
            f"max_pending: {MAX_PENDING_BYTES}",
            "jetstream {",
            f"  store_dir: {json.dumps(self.store_directory)}",
        ]
        if self.sync_always:
            lines.append("  sync_interval: always")
        lines.append("}")
        if self.routes:
            lines += [
                "cluster {",
                f"  name: {json.dumps(self.cluster_name)}",
                f"  listen: {json.dumps(self.cluster_listen)}",
                f"  routes: [{', '.join(json.dumps(route) for route in self.routes)}]",
                "}",
            ]
        return "\n".join(lines) + "\n"


def _check_address(key: str, address: str) -> None:
    try:
        _, port = split_address(address)
    except ConfigurationError as error:
        raise _refusal(key, address, "HOST:PORT") from error
    if not port:
        raise _refusal(key, address, "HOST:PORT with a port of its own")


def _refusal(key: str, value: str, wanted: str) -> ConfigurationError:
    return ConfigurationError(f"{key}: must be {wanted}, not {value!r}", key=key)
