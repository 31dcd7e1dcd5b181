"""The kernel under sanitizers: a stress of searches beside writes, and the boundary's fuzz. Skipped where the compiler has none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

KERNEL = Path(__file__).resolve().parents[2] / "vecmem" / "index" / "_kernel"
STRESS = Path(__file__).resolve().parent / "native" / "stress.cpp"
# hnswlib holds a new element's lock while it takes those of its neighbours: elements are linked in one order, so there is no cycle, but
# the detector of lock orders cannot know.
ENVIRONMENT = {"TSAN_OPTIONS": "detect_deadlocks=0 halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}

RUN_WITH = """
import importlib.util, runpy, sys
spec = importlib.util.spec_from_file_location("vecmem.index._kernel._native", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert sys.modules[spec.name].__file__ == module.__file__
"""
"""Runs a script with another build of the native module."""

assorthead = pytest.importorskip("assorthead")


def compile_with(flags: list[str], sources: list[Path], target: Path) -> None:
    """Compile, or skip where the compiler or its sanitizer is missing."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    common = [
        "-std=c++17",
        "-g",
        "-O1",
        "-w",
        "-ffp-contract=off",
        "-pthread",
        f"-I{KERNEL}",
        "-isystem",
        assorthead.includes(),
    ]
    command = [compiler, *common, *flags, *map(str, sources), "-o", str(target)]
    probe = subprocess.run(
        [compiler, *[f for f in flags if "sanitize" in f], "-x", "c++", "-", "-o", "/dev/null"],
        input="int main(){}",
        text=True,
        capture_output=True,
        check=False,
    )
    if probe.returncode:
        pytest.skip(f"the compiler has no {flags[0]}")
    subprocess.run(command, check=True)


def check_stress(sanitizer: str, rounds: int, directory: Path) -> None:
    program = directory / "stress"
    sources = [STRESS, *(path for path in KERNEL.glob("*.cpp") if not path.name.startswith("module"))]
    compile_with([f"-fsanitize={sanitizer}"], sources, program)
    seed = int.from_bytes(os.urandom(2), "little")
    result = subprocess.run(
        [program, str(rounds), str(seed)],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=1_200,
    )
    assert result.returncode == 0, f"seed {seed}\n{result.stdout}{result.stderr}"
    assert "ok" in result.stdout


def test_searches_beside_writes_are_free_of_races(tmp_path):
    check_stress("thread", 1, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(2_400)
def test_searches_beside_writes_are_free_of_races_for_long(tmp_path):
    check_stress("thread", 20, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(2_400)
def test_memory_is_used_as_it_may_be(tmp_path):
    check_stress("address,undefined", 20, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(2_400)
def test_the_boundary_withstands_nonsense_under_the_address_sanitizer(tmp_path):
    """The whole extension, compiled with the sanitizer, in place of the installed one."""
    nanobind = pytest.importorskip("nanobind")
    include, source = Path(nanobind.include_dir()), Path(nanobind.source_dir())
    flags = [
        "-fsanitize=address",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        "-fno-strict-aliasing",
        f"-I{include}",
        f"-I{sysconfig.get_path('include')}",
    ]
    flags.append(f"-I{include.parent / 'ext' / 'robin_map' / 'include'}")
    target = tmp_path / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    compile_with(flags, [*KERNEL.glob("*.cpp"), source / "nb_combined.cpp"], target)
    # The C++ library as well: Python itself does not bring it, and the sanitizer looks for it at the start.
    libraries = [
        subprocess.run(["c++", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    seed = int.from_bytes(os.urandom(2), "little")
    fuzz = Path(__file__).resolve().parent / "kernel_fuzz.py"
    result = subprocess.run(
        [sys.executable, "-c", RUN_WITH, str(target), str(fuzz), str(seed), "20000"],
        env=os.environ | ENVIRONMENT | {"LD_PRELOAD": " ".join(libraries), "PYTHONMALLOC": "malloc"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=1_800,
    )
    assert result.returncode == 0, f"seed {seed}\n{result.stdout[-2_000:]}{result.stderr[-8_000:]}"
    assert "calls answered" in result.stdout
