"""Rules of this repository that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULE_LINES_MAX = 500
CHECKING_NAME = re.compile(r"_?(assert|check|expect|validate|verify)")
BINARY_SUFFIXES = {".npy", ".gz", ".hdf5", ".parquet", ".png"}


def files(*patterns: str) -> list[Path]:
    """Files of the repository, those not yet committed included, that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *patterns]
    try:
        listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()
    except (FileNotFoundError, subprocess.CalledProcessError):
        found = [path for pattern in patterns or ("*",) for path in ROOT.rglob(pattern.rpartition("/")[2])]
        kept = [path for path in found if not {".venv", ".git", "node_modules"} & set(path.parts)]
        return sorted(path for path in kept if path.is_file())
    return sorted(path for name in set(listing.split("\0")) if name and (path := ROOT / name).is_file())


def python_files() -> list[Path]:
    """Python that people write: generated code is left out."""
    return [path for path in files("*.py") if "_pb2" not in path.name]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def within(path: Path, *directories: str) -> bool:
    return relative(path).startswith(directories)


def is_test_module(path: Path) -> bool:
    return path.name.startswith("test_") and "tests" in path.relative_to(ROOT).parts


def oversized(paths: list[Path]) -> list[str]:
    counts = {relative(path): path.read_text(encoding="utf-8").count("\n") for path in paths}
    return [f"{name}: {count} lines" for name, count in counts.items() if count > MODULE_LINES_MAX]


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]


def writing_opens(source: str) -> list[int]:
    """Lines that open a file to write it past vecmem.filesystem: open() with such a mode, write_text, write_bytes."""
    found = []
    tree = ast.parse(source)
    for call in calls(tree, "open"):
        modes = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        if any(not isinstance(mode, ast.Constant) or set("wax+") & set(str(mode.value)) for mode in modes):
            found.append(call.lineno)
    shortcuts = {"write_text", "write_bytes"}
    found += [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in shortcuts]
    return found


def asserts_something(function: ast.AST, helpers: dict[str, ast.AST], seen: frozenset[str] = frozenset()) -> bool:
    """Whether a test can fail by itself: it asserts, expects an exception, or calls what does.

    What does is a helper of the same module that asserts, or anything whose name says that it checks.
    """
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in {"raises", "fail", "run_state_machine_as_test"} or CHECKING_NAME.match(name):
            return True
        if name in helpers and name not in seen and asserts_something(helpers[name], helpers, seen | {name}):
            return True
    return False


def silent_tests(source: str) -> list[str]:
    tree = ast.parse(source)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    helpers: dict[str, ast.AST] = {node.name: node for node in ast.walk(tree) if isinstance(node, kinds)}
    tests = {name: node for name, node in helpers.items() if name.startswith("test")}
    return [name for name, node in tests.items() if not asserts_something(node, helpers)]


def test_no_module_has_outgrown_its_reader():
    modules = [path for path in python_files() if not within(path, "clients/python/vecmem_client/_sync")]
    assert not oversized(modules)


def test_only_commands_print():
    found = [
        f"{relative(path)}:{call.lineno}"
        for path in python_files()
        if within(path, "vecmem/", "clients/") and not within(path, "vecmem/cli/", "clients/python/examples/")
        for call in calls(ast.parse(path.read_text(encoding="utf-8")), "print")
    ]
    assert not found


def test_the_store_writes_files_through_one_module_only():
    found = [
        f"{relative(path)}:{line}"
        for path in python_files()
        if within(path, "vecmem/") and relative(path) != "vecmem/filesystem.py"
        for line in writing_opens(path.read_text(encoding="utf-8"))
    ]
    assert not found


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("open(p, 'w')", 1),
        ("open(p, mode='ab')", 1),
        ("open(p, 'r+b')", 1),
        ("open(p, m)", 1),
        ("p.write_bytes(b'')", 1),
        ("open(p)", 0),
        ("open(p, 'rb')", 0),
    ],
)
def test_the_check_on_writing_tells_writing_from_reading(source, count):
    assert len(writing_opens(source)) == count


def test_nothing_is_left_half_done():
    # Put together here, so that this file does not find itself.
    marker = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"]) + r")\b|breakpoint\(\)")
    found = [
        f"{relative(path)}:{number}"
        for path in files()
        if path.suffix not in BINARY_SUFFIXES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if marker.search(line)
    ]
    assert not found


def test_every_test_can_fail():
    found = [
        f"{relative(path)}: {name}"
        for path in python_files()
        if is_test_module(path)
        for name in silent_tests(path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_the_check_on_tests_finds_one_that_cannot_fail():
    assert silent_tests("def test_a():\n    run()\n") == ["test_a"]
    assert silent_tests("def run():\n    pass\ndef test_a():\n    run()\n") == ["test_a"]
    assert silent_tests("def run():\n    assert go()\ndef test_a():\n    run()\n") == []
    assert silent_tests("async def test_a():\n    await check_all()\n") == []
    assert silent_tests("def test_a():\n    with pytest.raises(ValueError):\n        run()\n") == []


def test_both_distributions_have_one_version():
    server = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    client = tomllib.loads((ROOT / "clients/python/pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert server["version"] == client["version"]
    assert f"vecmem-client=={client['version']}" in server["dependencies"]


def test_the_build_names_no_package_registry():
    """Where packages come from is the business of the machine that installs them."""
    hosts = re.compile(r"pypi\.org|pythonhosted|registry\.npmjs|--(extra-)?index-url|--registry", re.IGNORECASE)
    found = [
        relative(path)
        for path in files()
        if path.suffix not in BINARY_SUFFIXES and path != Path(__file__).resolve()
        if hosts.search(path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_the_slice_of_data_stays_small():
    sizes = {path.name: path.stat().st_size for path in (ROOT / "bench" / "data").iterdir()}
    assert {"packages.jsonl.gz", "package_vectors.npy", "questions.jsonl", "question_vectors.npy"} <= set(sizes)
    assert sum(sizes.values()) < 8_000_000
