"""What every system behind the one interface does, on those that are installed here.

A system by address is tested where an environment variable names it, for instance BENCH_PGVECTOR_URL.
"""

from __future__ import annotations

import argparse
import os
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from bench.datasets import Dataset, load, worst_true_scores
from bench.engines import Place, UnavailableError
from bench.engines.bare_hnswlib import Hnswlib
from bench.engines.registry import BY_URL, SYSTEMS
from bench.measure import K, Truth, alone, rate, run_tasks, searched_by_threads
from bench.scenarios import peers

pytestmark = pytest.mark.filterwarnings("ignore")  # other people's libraries


@pytest.fixture(scope="module")
def dataset(small):
    whole = load(small)
    vectors = np.concatenate([whole.vectors, -whole.vectors])
    ids = [str(row) for row in range(len(vectors))]
    payloads = [{"row": row, "text": f"text {row}"} for row in range(len(vectors))]
    queries = whole.queries[:20]
    return Dataset("engines", "cosine", ids, vectors, payloads, "synthetic", queries, [], queries[:0])


@contextmanager
def opened(name, directory):
    urls = {peer: os.environ.get(f"BENCH_{peer.upper()}_URL", "") for peer in BY_URL}
    try:
        engine = SYSTEMS[name](Place(directory, urls))
    except UnavailableError as error:
        pytest.skip(f"{name}: {error}")
    with engine:
        yield engine


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_finds_what_is_nearest_whoever_asks(name, dataset, tmp_path):
    truth = Truth(dataset, dataset.queries, worst_true_scores(dataset, dataset.queries, K))
    with opened(name, tmp_path) as engine:
        assert engine.name == name
        loaded = engine.load(dataset)
        assert 0 < loaded.acknowledged_seconds <= loaded.complete_seconds
        recalls = []
        for effort in (engine.efforts[0], engine.efforts[-1]):
            engine.use(effort)
            found = alone(lambda query: engine.search(query, K), dataset.queries, len(dataset.queries)).found
            assert all(len(set(rows)) == K and set(rows) <= set(range(len(dataset))) for rows in found)
            recalls.append(truth.recall(found))
        assert recalls[-1] >= 0.97
        assert recalls[0] <= recalls[-1] + 0.02
        tasks = engine.tasks()
        if tasks is not None:
            by_tasks = {}

            async def ask():
                async with tasks as search:
                    for number, query in enumerate(dataset.queries):
                        by_tasks[number] = await search(query, K)
                return 0.0

            run_tasks(ask())
            assert truth.recall([by_tasks[number] for number in range(len(found))]) >= 0.97
        assert rate(engine, dataset.queries, callers=4, count=40) > 0
        engine.close()
    left = [path for path in tmp_path.iterdir() if path.suffix != ".log" and path.name != "vecmem"]
    assert left == []


def test_an_effort_counts_for_later_searches_of_all_threads(dataset, tmp_path):
    with opened("hnswlib", tmp_path) as engine:
        engine.load(dataset)
        engine.use(64)
        seen = []
        lock = threading.Lock()

        def search(query):
            rows = engine.search(query, K)
            with lock:
                seen.append((query.tobytes(), tuple(rows)))
            return rows

        assert searched_by_threads(search, dataset.queries, 4, 60) > 0
        assert len(seen) == 110
        assert len(set(seen)) == len(dataset.queries)


def test_an_error_of_one_thread_is_raised(dataset):
    def search(query):
        if threading.current_thread().name.startswith("caller"):
            raise ValueError("no")
        return []

    with pytest.raises(ValueError, match=r"^no$"):
        searched_by_threads(search, dataset.queries, 3, 9)


def test_a_peer_that_fails_is_told_and_the_others_are_measured(small, tmp_path, monkeypatch):
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")

    def fail(*_):
        raise RuntimeError("no answer")

    monkeypatch.setattr(Hnswlib, "search", fail)
    parser = argparse.ArgumentParser()
    peers.add_arguments(parser)
    arguments = ["--dataset", small, "--systems", "hnswlib,faiss", "--queries", 20, "--work-dir", tmp_path / "work"]
    report = peers.run(parser.parse_args([str(argument) for argument in arguments]))
    assert report.parameters["skipped"] == {"hnswlib": "it failed: RuntimeError('no answer')"}
    assert ("faiss", "qps_16_callers") in {(figure.system, figure.name) for figure in report.figures}
