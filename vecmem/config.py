"""The server's settings: one frozen dataclass, filled from defaults < TOML file < `VECMEM_*` environment < flags.

Nothing is guessed: an unknown key, a value of the wrong type or out of range raises ConfigurationError, which names the
key and the source it came from. Each field says what it trades against what; docs/configuration.md is generated from
the same words (scripts/generate_configuration.py).
"""

from __future__ import annotations

import ipaddress
import math
import re
import tomllib
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_type_hints

from vecmem.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

ENVIRONMENT_PREFIX: Final = "VECMEM_"
OTHER_VARIABLES: Final = frozenset({"VECMEM_ADDRESS", "VECMEM_CONFIG", "VECMEM_FAILPOINT"})
"""Variables of the same prefix that are no settings: the command reads the server to talk to and the TOML file from
them, and a crash test the place to die at (vecmem.log.failpoints)."""

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
GRPC_ENGINES: Final = ("auto", "grpcio", "native")
EVICTION_POLICIES: Final = ("none", "volatile-ttl", "volatile-lru", "lru")

_SERVICE_LINK: Final = re.compile(r"VECMEM_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
"""Kubernetes puts these into every pod beside a service named `vecmem`; they are nobody's settings."""

_BOOLEANS: Final = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


def _about(
    help_text: str, *, group: str, minimum: float | None = None, choices: tuple[str, ...] | None = None
) -> dict[str, Any]:
    """What help, documentation and checks need to know about a setting."""
    return {"help": help_text, "group": group, "minimum": minimum, "choices": choices}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a server is told at start. `group` tells behaviour from performance. Raises ConfigurationError."""

    data_dir: Path = field(
        default=Path("vecmem-data"),
        metadata=_about(
            "Directory that holds the log and the checkpoints; made if it is not there. Relative to the working "
            "directory. Its disk decides how long a write takes: a write is answered only after an fsync.",
            group="behaviour",
        ),
    )
    listen: str = field(
        default="127.0.0.1:7700",
        metadata=_about(
            "Address and port to serve on; port 0 takes a free one and the ready line names it. An IPv6 address "
            "stands in brackets.",
            group="behaviour",
        ),
    )
    allow_remote: bool = field(
        default=False,
        metadata=_about(
            "Needed to listen on an address that is not loopback: there are no users and no TLS, so whoever reaches "
            "the port reads and writes everything.",
            group="behaviour",
        ),
    )
    grace_seconds: float = field(
        default=10.0,
        metadata=_about(
            "How long calls in flight may take to finish after SIGTERM before they are cancelled. Longer: fewer failed "
            "calls at a deploy; shorter: a faster restart. Acknowledged writes are safe either way.",
            minimum=0,
            group="behaviour",
        ),
    )
    checkpoint_on_exit: bool = field(
        default=True,
        metadata=_about(
            "Take a checkpoint after the drain at SIGTERM. Costs the time to write it at exit; saves replay and graph "
            "building at the next start.",
            group="behaviour",
        ),
    )
    memory_limit_bytes: int = field(
        default=0,
        metadata=_about(
            "What keys and collections may take together, as the server estimates it. At the limit whatever could make "
            "them grow is refused with MEMORY_LIMIT_EXCEEDED, unless eviction_policy finds keys to remove. Leave room: "
            "the process takes a few hundred MiB beside them, and more while it loads or builds graphs. 0: no limit.",
            minimum=0,
            group="behaviour",
        ),
    )
    eviction_policy: str = field(
        default="none",
        metadata=_about(
            "Which keys go when memory_limit_bytes is reached; points never do. none: no key, writes are refused. "
            "volatile-ttl: of those that expire the ones that do first. volatile-lru: of those that expire the ones "
            "used longest ago. lru: of all keys the ones used longest ago. What was used when is estimated from a "
            "sample, and forgotten by a restart.",
            choices=EVICTION_POLICIES,
            group="behaviour",
        ),
    )
    cluster: str = field(
        default="",
        metadata=_about(
            "NATS servers, nats://HOST:PORT with commas between, whose JetStream holds the replicated log: this node then is one of "
            "several that hold the same data, one of which leads. Empty: this node is alone, and its data directory holds the log.",
            group="cluster",
        ),
    )
    cluster_name: str = field(
        default="vecmem",
        metadata=_about("Name of the cluster, the same for all its nodes: letters, digits, - and _.", group="cluster"),
    )
    cluster_monitoring: str = field(
        default="",
        metadata=_about(
            "Monitoring pages of all NATS servers, http://HOST:PORT with commas between: they tell whether a server syncs each message "
            "before it acknowledges it, without which a power cut loses acknowledged writes. A cluster whose servers do not is refused.",
            group="cluster",
        ),
    )
    cluster_allow_lazy_sync: bool = field(
        default=False,
        metadata=_about(
            "Take NATS servers that acknowledge before they sync, or do not tell. A power cut then loses acknowledged writes.",
            group="cluster",
        ),
    )
    log_replicas: int = field(
        default=3,
        metadata=_about(
            "NATS servers that have each record of the log on disk before a write is answered.",
            minimum=1,
            group="cluster",
        ),
    )
    node: str = field(
        default="",
        metadata=_about(
            "Name of this node, which no other has. Empty: the address that it serves on.", group="cluster"
        ),
    )
    shard: int = field(
        default=0,
        metadata=_about("Number of the shard that this node belongs to.", minimum=0, group="cluster"),
    )
    shards: int = field(
        default=1,
        metadata=_about(
            "How many shards a new cluster begins with, each with as many hash slots; of no matter where it exists already. Without "
            "`cluster`: how many processes of this machine share the data, each with a log of its own.",
            minimum=1,
            group="cluster",
        ),
    )
    coordination_file: str = field(
        default="",
        metadata=_about(
            "Of the processes of one machine: an SQLite file that says which shard has which slots. `vecmem serve --shards` sets it.",
            group="cluster",
        ),
    )
    advertise: str = field(
        default="",
        metadata=_about(
            "Address at which clients and other nodes reach this node, HOST:PORT. Empty: the one that it serves on.",
            group="cluster",
        ),
    )
    lease_seconds: float = field(
        default=2.0,
        metadata=_about(
            "How long a node leads from each renewal of its lease on. Shorter: another one takes over sooner when it dies; "
            "longer: pauses of a node or of NATS are outlasted.",
            minimum=0.1,
            group="cluster",
        ),
    )
    log_level: str = field(
        default="info",
        metadata=_about(
            "Least severe messages that the server writes to standard error.",
            choices=LOG_LEVELS,
            group="behaviour",
        ),
    )
    checkpoint_log_bytes: int = field(
        default=256 * 1024 * 1024,
        metadata=_about(
            "Log bytes written since the last checkpoint that trigger the next. Smaller: faster restarts after a "
            "crash; larger: less is written to disk twice.",
            minimum=1024,
            group="performance",
        ),
    )
    checkpoint_idle_seconds: float = field(
        default=5.0,
        metadata=_about(
            "A checkpoint is also taken when nothing was written for so long and there is something new worth "
            "saving. Shorter: a crash after a burst of writes restarts fast sooner; longer: fewer checkpoints under "
            "uneven load.",
            minimum=0.1,
            group="performance",
        ),
    )
    log_retention_bytes: int = field(
        default=256 * 1024 * 1024,
        metadata=_about(
            "Log bytes kept although a checkpoint covers them. More: an older checkpoint can still stand in for a "
            "damaged one; less: less disk. 0 keeps no more than recovery needs.",
            minimum=0,
            group="performance",
        ),
    )
    grpc_engine: str = field(
        default="auto",
        metadata=_about(
            "What serves gRPC; answers are the same. native (pip install 'vecmem[native]') takes several times as many "
            "single calls a second, but bounds the size of a message only once it has been read. auto: native on a "
            "loopback address where it is installed, else grpcio.",
            choices=GRPC_ENGINES,
            group="performance",
        ),
    )
    search_threads: int = field(
        default=0,
        metadata=_about(
            "Threads that search. More than the cores only adds waiting. 0: one per core.",
            minimum=0,
            group="performance",
        ),
    )
    graph_threads: int = field(
        default=0,
        metadata=_about(
            "Threads that insert into graphs behind the writes. Fewer leave more of the machine to searches while a "
            "load runs; results are complete either way. 0: one per core.",
            minimum=0,
            group="performance",
        ),
    )

    def __post_init__(self) -> None:
        """Hold the same checks for settings made in code."""
        for known in fields(self):
            object.__setattr__(self, known.name, _checked(known, getattr(self, known.name), "Settings"))
        host, _ = split_address(self.listen)
        if not self.allow_remote and not is_loopback(host):
            message = (
                f"listen: {self.listen} is not a loopback address, and there are no users and no TLS: "
                "set allow_remote (--allow-remote) to serve on it all the same"
            )
            raise ConfigurationError(message, key="listen")

    @property
    def in_cluster(self) -> bool:
        """Whether this node is one of several."""
        return bool(self.cluster or self.coordination_file)


def setting_fields() -> tuple[Field[Any], ...]:
    """All settings in order of declaration; `metadata` has help, minimum, choices and group."""
    return fields(Settings)


def setting_type(name: str) -> type:
    """The type of one setting: Path, str, bool, int or float."""
    kind: type = get_type_hints(Settings)[name]
    return kind


def load_settings(
    *,
    config_file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """Settings from their sources, the later ones winning: defaults, TOML file, environment, flags.

    Args:
        config_file: a TOML file with settings as top-level keys; None: no file.
        environment: variables; those named `VECMEM_` and a setting's name in capitals count, any other `VECMEM_*` is
            refused but for OTHER_VARIABLES.
        flags: settings by name; a value of None counts as not given.

    Raises:
        ConfigurationError: unknown key, wrong type, out of range, unreadable file; the message names key and source.
    """
    known = {setting.name: setting for setting in setting_fields()}
    values: dict[str, object] = {}

    def take(key: str, value: object, source: str) -> None:
        if key not in known:
            message = f"{source}: unknown setting {key!r}; known are {', '.join(sorted(known))}"
            raise ConfigurationError(message, key=key, source=source)
        values[key] = _checked(known[key], value, source)

    if config_file is not None:
        for key, value in _read_toml(config_file).items():
            take(key, value, str(config_file))
    for variable, text in sorted((environment or {}).items()):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in OTHER_VARIABLES:
            continue
        if _SERVICE_LINK.fullmatch(variable):
            continue
        key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        source = f"environment variable {variable}"
        take(key, _parsed(key, text, source) if key in known else text, source)
    for key, value in (flags or {}).items():
        if value is not None:
            take(key, value, f"flag --{key.replace('_', '-')}")
    return Settings(**values)  # type: ignore[arg-type]  # _checked saw to the types


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[ipv6]:port`. Raises ConfigurationError."""
    host, separator, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    well_formed = separator and bare and port.isascii() and port.isdigit() and int(port) <= 65_535
    if not well_formed or (":" in bare and bare == host):
        message = f"listen: {address!r} is not HOST:PORT with a port from 0 to 65535 (an IPv6 host stands in brackets)"
        raise ConfigurationError(message, key="listen")
    return bare, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`. Other names than `localhost` are not looked up and count as remote."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror or error}"
        raise ConfigurationError(message, source=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        message = f"{path}: is not TOML: {error}"
        raise ConfigurationError(message, source=str(path)) from error


def _parsed(key: str, text: str, source: str) -> object:
    """The value that a string from the environment stands for."""
    kind = setting_type(key)
    try:
        if kind is bool:
            return _BOOLEANS[text.lower()]
        return text if kind is Path else kind(text)
    except (KeyError, ValueError) as error:
        wanted = "true or false" if kind is bool else _type_name(kind)
        message = f"{source}: {key} must be {wanted}, not {text!r}"
        raise ConfigurationError(message, key=key, source=source) from error


def _checked(known: Field[Any], value: object, source: str) -> object:
    """`value` in the setting's type. Integers count as floats, strings as paths; nothing else is converted."""
    kind = setting_type(known.name)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is Path and isinstance(value, str) and value:
        value = Path(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        message = f"{source}: {known.name} must be {_type_name(kind)}, not {value!r}"
        raise ConfigurationError(message, key=known.name, source=source)
    minimum: float | None = known.metadata["minimum"]
    if isinstance(value, int | float) and minimum is not None and (not math.isfinite(value) or value < minimum):
        message = f"{source}: {known.name} must be at least {minimum:g}, not {value!r}"
        raise ConfigurationError(message, key=known.name, source=source)
    choices: tuple[str, ...] | None = known.metadata["choices"]
    if choices is not None and value not in choices:
        message = f"{source}: {known.name} must be one of {', '.join(choices)}, not {value!r}"
        raise ConfigurationError(message, key=known.name, source=source)
    return value


def _type_name(kind: type) -> str:
    return {Path: "a path", str: "a string", bool: "a boolean", int: "an integer", float: "a number"}[kind]
