"""Imports point one way: server, cli -> store -> {index, log} -> leaves. The store never knows gRPC."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LEAVES = {"errors", "config", "limits", "slots", "clock", "filesystem"}
ALLOWED = {
    "index": LEAVES,
    "log": LEAVES,
    "store": LEAVES | {"index", "log"},
    "cluster": LEAVES | {"index", "log", "store"},
    "server": LEAVES | {"index", "log", "store", "cluster"},
    "cli": LEAVES | {"index", "log", "store", "cluster", "server"},
}
"""What each layer may import besides itself."""
TRANSPORT_LAYERS = {"cluster", "server", "cli"}
"""The layers that know gRPC."""
CLIENT_LAYERS = {"cli"}
"""The layers that may talk to a server through the client."""
RECORD_LAYERS = {"store", "cluster", "server", "cli"}
"""The layers that know the commands of the log; the log itself never knows what a record means."""


def imported_modules(source: str, module: str) -> set[str]:
    """Every module that a source imports, at whatever depth, relative imports resolved."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def violations(source: str, module: str) -> list[str]:
    """How a module of vecmem breaks the rule, one line each."""
    layer = module.split(".")[1]
    found = []
    for name in sorted(imported_modules(source, module)):
        root, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if root in {"grpc", "grpc_health", "grpc_reflection", "grpc_status"} or "_pb2_grpc" in name:
            if layer not in TRANSPORT_LAYERS:
                found.append(f"{module} imports {name}: {layer} does not know gRPC")
        elif root == "vecmem_client" and layer not in CLIENT_LAYERS:
            found.append(f"{module} imports {name}: {layer} does not know the client")
        elif root != "vecmem":
            continue
        elif target == "v1":
            if layer == "log" or layer in LEAVES:
                found.append(f"{module} imports {name}: {layer} does not know the API's messages")
        elif name.startswith("vecmem.store.v1"):
            if layer not in RECORD_LAYERS:
                found.append(f"{module} imports {name}: {layer} does not know what a record means")
        elif target != layer and target not in allowed(layer):
            found.append(f"{module} imports {name}: {layer} is below {target} or beside it")
    return found


def allowed(layer: str) -> set[str]:
    """What a layer may import besides itself; a leaf may import errors and limits and no more."""
    return ALLOWED.get(layer, {"errors", "limits"})


def modules() -> list[tuple[str, Path]]:
    """Every module of vecmem but the generated ones."""
    found = []
    for path in sorted((ROOT / "vecmem").rglob("*.py")):
        relative = path.relative_to(ROOT)
        if "_pb2" in path.name or "v1" in relative.parts:
            continue
        found.append((".".join(relative.with_suffix("").parts).removesuffix(".__init__"), path))
    return found


def test_every_module_imports_downward_only():
    found = [line for module, path in modules() for line in violations(path.read_text(encoding="utf-8"), module)]
    assert not found, "\n".join(found)


def test_every_module_belongs_to_a_known_layer():
    """A new package has to be given its place in the rule."""
    assert {module.split(".")[1] for module, _ in modules()} <= LEAVES | set(ALLOWED)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vecmem.store.machine", "from vecmem.server import app"),
        ("vecmem.store.machine", "import grpc"),
        ("vecmem.store.machine", "from vecmem.v1 import points_pb2_grpc"),
        ("vecmem.index.graph", "from vecmem.log.codec import encode"),
        ("vecmem.index.graph", "def late():\n    import vecmem.store.machine"),
        ("vecmem.index.graph", "from vecmem.store.v1 import command_pb2"),
        ("vecmem.log.rocks", "from ..index import graph"),
        ("vecmem.log.rocks", "from vecmem.v1 import points_pb2"),
        ("vecmem.log.rocks", "from vecmem.store.v1 import command_pb2"),
        ("vecmem.limits", "from vecmem.store import machine"),
        ("vecmem.clock", "import vecmem.config"),
        ("vecmem.server.app", "from vecmem.cli import main"),
        ("vecmem.server.app", "import vecmem_client"),
    ],
)
def test_the_rule_catches(module, source):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vecmem.server.app", "import grpc\nfrom vecmem.store import machine\nfrom vecmem.v1 import points_pb2_grpc"),
        ("vecmem.store.machine", "from vecmem.index import graph\nfrom vecmem.log.rocks import open_log"),
        ("vecmem.store.machine", "from vecmem.store.v1 import command_pb2\nfrom vecmem.v1 import filter_pb2"),
        ("vecmem.index.payload", "from vecmem.v1 import filter_pb2\nfrom vecmem.errors import VecmemError"),
        ("vecmem.log.rocks", "import vecmem.filesystem\nfrom vecmem.log import codec"),
        ("vecmem.config", "from vecmem.errors import ConfigurationError"),
        ("vecmem.cli.main", "from vecmem_client import Client\nfrom vecmem.server.app import serve"),
    ],
)
def test_the_rule_allows(module, source):
    assert violations(source, module) == []
