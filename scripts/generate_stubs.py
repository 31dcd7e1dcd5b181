"""Generate the Python stubs from proto/: `python scripts/generate_stubs.py [--check]`.

The public API goes to clients/python/vecmem/v1 (the one copy; the server imports it from there), the
log's commands to vecmem/store/v1, what nodes of a cluster tell each other to vecmem/cluster/v1. With --check nothing is written and a difference exits 1.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import sys
import tempfile
from pathlib import Path

import mypy_protobuf  # noqa: F401  (a clear error here beats protoc's "program not found")
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {
    Path("vecmem/v1"): ROOT / "clients/python",
    Path("vecmem/store/v1"): ROOT,
    Path("vecmem/cluster/v1"): ROOT,
}


def generate(directory: Path) -> None:
    """Write all stubs below `directory`."""
    binaries = Path(sys.executable).parent
    for package in TARGETS:
        protos = sorted(str(path) for path in (ROOT / "proto" / package).glob("*.proto"))
        arguments = [
            "protoc",
            f"--proto_path={ROOT / 'proto'}",
            f"--proto_path={Path(protoc.__file__).parent / '_proto'}",
            f"--plugin=protoc-gen-mypy={binaries / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={binaries / 'protoc-gen-mypy_grpc'}",
            f"--python_out={directory}",
            f"--mypy_out=quiet:{directory}",
        ]
        if package != Path("vecmem/store/v1"):
            arguments += [f"--grpc_python_out={directory}", f"--mypy_grpc_out=quiet:{directory}"]
        if protoc.main(arguments + protos) != 0:
            raise SystemExit(1)
    for path in directory.rglob("*_grpc.py*"):
        if (
            "service "
            not in (
                ROOT / "proto" / path.relative_to(directory).parent / f"{path.name.split('_pb2')[0]}.proto"
            ).read_text()
        ):
            path.unlink()


def main() -> int:
    """Generate, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail on a difference instead of writing")
    check = parser.parse_args().check
    stale: list[Path] = []
    with tempfile.TemporaryDirectory() as temporary:
        generate(Path(temporary))
        for package, root in TARGETS.items():
            fresh = {path.name: path for path in (Path(temporary) / package).iterdir()}
            (root / package).mkdir(parents=True, exist_ok=True)
            existing = {path.name: path for path in (root / package).glob("*_pb2*")}
            for name in sorted(fresh.keys() | existing.keys()):
                target = root / package / name
                if name in fresh and name in existing and filecmp.cmp(fresh[name], target, shallow=False):
                    continue
                stale.append(target.relative_to(ROOT))
                if check:
                    continue
                if name in fresh:
                    shutil.copyfile(fresh[name], target)
                else:
                    target.unlink()
    for path in stale:
        print(f"{'differs from' if check else 'generated from'} proto/: {path}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
