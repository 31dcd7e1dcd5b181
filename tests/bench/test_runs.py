"""The demo and the server behind it, end to end on a small part of the slice: what they promise holds, and nothing stays behind."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bench import demo
from bench.datasets import load
from bench.server import Server, ServerError, work_directory
from tests.bench.conftest import ROWS
from vecmem_client import Client

ROOT = Path(__file__).resolve().parent.parent.parent


def bench(*arguments, **options):
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240, **options)


def test_the_demo_shows_what_it_promises_and_exits_0(small, tmp_path):
    done = bench("demo", "--dataset", small, "--work-dir", tmp_path / "work", env=os.environ | {"COLUMNS": "250"})
    assert done.returncode == 0, done.stdout + done.stderr
    for promised in (
        "recall@10 against exact search",
        "p99",
        "Killed.",
        "first answer after",
        "98 of 98 questions, asked as above, have the same answers and scores as before; asked exactly, 98 of 98;",
        "; 0 of ",
        "All of it held.",
    ):
        assert promised in done.stdout
    assert f"{ROWS}/{ROWS}" in done.stderr
    assert not (tmp_path / "work").exists()


def servers_below(directory: Path) -> list[int]:
    """Processes that were started with a data directory below this one."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if str(directory).encode() in command and b"\0serve\0" in command:
            found.append(int(entry.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_ends_its_server_when_it_is_interrupted(small, tmp_path, number):
    command = [sys.executable, "-m", "bench", "demo", "--dataset", small, "--work-dir", tmp_path / "work"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert any("serves on" in line for line in process.stdout)
        assert len(servers_below(tmp_path)) == 1
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == 130
    finally:
        if process.poll() is None:
            # SIGTERM first, so that it can end its server; killed it would leave it behind.
            process.terminate()
            process.communicate(timeout=60)
    assert servers_below(tmp_path) == []
    assert not (tmp_path / "work").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_killed_bench_leaves_no_server_behind(tmp_path):
    starting = (
        "import pathlib, sys, time; from bench.server import Server; server = Server(pathlib.Path(sys.argv[1])); "
        "server.start(); print('up', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", starting, tmp_path / "data"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "up\n"
        assert len(servers_below(tmp_path)) == 1
    finally:
        process.kill()
        process.communicate()
    deadline = time.monotonic() + 60
    while servers_below(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    left = servers_below(tmp_path)
    for number in left:
        os.kill(number, signal.SIGKILL)
    assert left == []


def test_the_demo_notices_other_answers_and_missing_points(small, tmp_path):
    whole = load(small)
    with Server(tmp_path / "data") as server:
        server.start()
        with Client(server.address) as client:
            console = Console(file=io.StringIO())
            demo._load(console, client, whole)
            demo._settle(console, client, whole)
            before = demo._ask(client, whole)
            journal = demo._Journal(server.address)
            client.upsert(demo.JOURNAL, [demo.Point("entry-000000", [0.0, 1.0])])
            journal.acknowledged = ["entry-000000"]
            assert demo._compare(console, client, whole, before, journal) == []

            for kind, how in (("graph", "as above"), ("exact", "exactly")):
                answers = getattr(before, kind)
                swapped = [[answers[0][1], answers[0][0], *answers[0][2:]], *answers[1:]]
                (failure,) = demo._compare(console, client, whole, replace(before, **{kind: swapped}), journal)
                assert f"1 of 98 questions, asked {how}, have other answers" in failure
            journal.acknowledged = ["entry-000000", "entry-000001"]
            (failure,) = demo._compare(console, client, whole, before, journal)
            assert "entry-000001" in failure
            more = replace(whole, ids=[*whole.ids, "lost"])
            journal.acknowledged = ["entry-000000"]
            (failure,) = demo._compare(console, client, more, before, journal)
            assert "lost" in failure
            journal.acknowledged = []
            (failure,) = demo._compare(console, client, whole, before, journal)
            assert "no point was acknowledged" in failure


def test_a_demo_without_questions_fails(tmp_path, small):
    data = load(small)
    import h5py

    with h5py.File(tmp_path / "x-angular.hdf5", "w") as file:
        file["train"], file["test"] = data.vectors[:10], data.vectors[:1]
    done = bench("demo", "--dataset", tmp_path / "x-angular.hdf5", "--work-dir", tmp_path / "work")
    assert done.returncode == 1
    assert "no questions" in done.stdout


def test_a_demo_whose_server_cannot_work_fails_with_its_last_words(tmp_path, small):
    np.save(tmp_path / "package_vectors.npy", np.zeros((ROWS, 384), dtype=np.float16))
    for name in ("packages.jsonl.gz", "questions.jsonl", "question_vectors.npy"):
        (tmp_path / name).write_bytes((small / name).read_bytes())
    done = bench("demo", "--dataset", tmp_path, "--work-dir", tmp_path / "work")
    assert (done.returncode, "FAILED: " in done.stdout) == (1, True), done.stderr
    assert "last words of the server" in done.stdout
    assert not (tmp_path / "work").exists()


def test_a_server_that_does_not_start_is_an_error_with_its_last_words(tmp_path):
    (tmp_path / "data").write_text("a file where the directory should be")
    with Server(tmp_path / "data") as server, pytest.raises(ServerError, match="did not start"):
        server.start()


def test_a_work_directory_goes_again_and_spares_what_was_there(tmp_path):
    with work_directory(tmp_path / "new") as directory:
        assert directory.parent == tmp_path / "new"
        (directory / "file").write_text("x")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with work_directory(tmp_path / "old"):
        pass
    assert (tmp_path / "old").is_dir()
