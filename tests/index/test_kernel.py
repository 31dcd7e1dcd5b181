"""The native kernel by itself: instruction sets, boundary, files, and the choice of codes."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from tests.index.kernel_fuzz import fuzz
from vecmem.index import _kernel, calibration
from vecmem.index.metric import Metric, row_terms

CODES = ["int8", "float16", "float32", "binary"]
DIMENSIONS = [1, 3, 16, 63, 64, 65, 128, 384, 1000]


@pytest.fixture(autouse=True)
def best_instruction_set():
    yield
    _kernel.use_instruction_set("")


def vectors_of(count: int, dimension: int, seed: int) -> np.ndarray:
    print(f"seed {seed}")
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def arena_of(vectors: np.ndarray, metric: Metric) -> _kernel.Arena:
    shift = max(0, int(np.ceil(np.log2(max(1, len(vectors))))))
    arena = _kernel.Arena(int(metric), vectors.shape[1], shift)
    chunk = np.zeros((1 << shift, vectors.shape[1]), np.float32)
    chunk[: len(vectors)] = vectors
    arena.append(chunk, row_terms(metric, chunk))
    return arena


def largest_norm(vectors: np.ndarray) -> float:
    return float(np.linalg.norm(vectors.astype(np.float64), axis=1).max()) * 1.001


def test_the_plain_set_is_always_there_and_last():
    assert _kernel.instruction_sets()[-1] == "plain"
    assert _kernel.instruction_set() == _kernel.instruction_sets()[0]


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("code", CODES)
def test_all_instruction_sets_compute_the_same_distances(code, dimension):
    """int8 and hamming to the bit, floats to rounding; against numpy as well."""
    a, b = vectors_of(50, dimension, 1), vectors_of(50, dimension, 2)
    a[0] = a[1] = b[1] = 1e3  # beyond the scale: every element clipped, the largest sums there are
    b[0] = -1e3
    for metric in Metric:
        results = {}
        for name in _kernel.instruction_sets():
            _kernel.use_instruction_set(name)
            results[name] = _kernel.code_distances(a, b, code, int(metric), 0.02)
        plain = results["plain"]
        for name, distances in results.items():
            if code in {"int8", "binary"}:
                assert np.array_equal(distances, plain), name
            else:
                np.testing.assert_allclose(distances, plain, rtol=1e-4, atol=1e-4 * np.abs(plain).max(), err_msg=name)
        np.testing.assert_allclose(
            plain, expected_distances(a, b, code, metric, 0.02), rtol=1e-3, atol=2e-3 * max(1, np.abs(plain).max())
        )


def expected_distances(a: np.ndarray, b: np.ndarray, code: str, metric: Metric, scale: float) -> np.ndarray:
    x, y = (v.astype(np.float64) for v in (a, b))
    if code == "binary":
        return ((x > 0) != (y > 0)).sum(axis=1).astype(np.float64)
    if metric is Metric.COSINE:
        x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    if code == "int8":
        x, y = (np.clip(np.rint(v / scale), -127, 127) for v in (x, y))
    elif code == "float16":
        x, y = (np.clip(v / scale, -65504, 65504).astype(np.float16).astype(np.float64) for v in (x, y))
    return ((x - y) ** 2).sum(axis=1) if metric is Metric.EUCLIDEAN else -(x * y).sum(axis=1)


@pytest.mark.parametrize("metric", list(Metric), ids=lambda metric: metric.name.lower())
def test_all_instruction_sets_give_the_same_answers(metric):
    """Scores do not depend on the set at all; graphs are built by distances and may differ in ties of float rounding."""
    vectors, queries = vectors_of(500, 48, 3), vectors_of(20, 48, 4)
    answers = {}
    for name in _kernel.instruction_sets():
        _kernel.use_instruction_set(name)
        arena = arena_of(vectors, metric)
        graph = _kernel.Graph("int8", int(metric), 48, 16, 100, 0.03)
        graph.add(vectors, np.arange(500))
        scan = graph.scan(queries, 10, arena, largest_norm=largest_norm(vectors))
        exact = arena.scan(queries, 10, 500, largest_norm=largest_norm(vectors))
        found = graph.search(queries, 10, np.array([100]), arena, 40, largest_norm=largest_norm(vectors))
        for mine, other in zip(scan, exact, strict=True):
            assert np.array_equal(mine, other)
        assert scan[3].tolist() == [500] * 20
        answers[name] = [part.tolist() for part in (*scan, *found)]
    assert all(answer == answers["plain"] for answer in answers.values())


@pytest.mark.parametrize("dimension", [1, 7, 16, 31, 48, 100])
@pytest.mark.parametrize("metric", list(Metric), ids=lambda metric: metric.name.lower())
def test_rows_of_float16_are_compared_as_they_are(metric, dimension):
    """An arena of float16 answers as one of float32 that holds the same rounded values, on every set of instructions."""
    rounded = (vectors_of(400, dimension, 3) * 0.01).astype(np.float16)
    rounded[:3] = [[np.finfo(np.float16).smallest_subnormal], [-0.0], [6e4 if metric is not Metric.COSINE else 1]]
    vectors, queries = rounded.astype(np.float32), vectors_of(12, dimension, 4)
    norm = largest_norm(vectors)
    bits = np.packbits(np.arange(400) % 3 > 0, bitorder="little")
    for name in _kernel.instruction_sets():
        _kernel.use_instruction_set(name)
        graph = _kernel.Graph("int8", int(metric), dimension, 16, 100, 0.001)
        graph.add(vectors, np.arange(400))
        wide = arena_of(vectors, metric)
        for chunk in (rounded, rounded.view(np.uint16)):
            narrow = _kernel.Arena(int(metric), dimension, 9, "float16")
            padded = np.zeros((512, dimension), chunk.dtype)
            padded[:400] = chunk
            narrow.append(padded, row_terms(metric, padded.view(np.float16).astype(np.float32)))
            for search in (
                lambda arena: arena.scan(queries, 10, 400, largest_norm=norm),
                lambda arena: arena.scan(queries, 10, 400, bits, largest_norm=norm),
                lambda arena, graph=graph: graph.scan(queries, 10, arena, largest_norm=norm),
                lambda arena, graph=graph: graph.search(queries, 10, 60, arena, 40, largest_norm=norm),
            ):
                assert [x.tolist() for x in search(narrow)] == [x.tolist() for x in search(wide)], name


def test_chunks_have_the_type_of_their_arena():
    terms = np.ones(4, np.float32)
    for storage, right, wrong in (
        ("float32", [np.float32], [np.float64, np.float16, np.uint16, np.int32]),
        ("float16", [np.float16, np.uint16], [np.float32, np.int16, np.uint8]),
    ):
        arena = _kernel.Arena(1, 3, 2, storage)
        for dtype in right:
            arena.append(np.ones((4, 3), dtype), terms)
        for dtype in wrong:
            with pytest.raises(TypeError, match="float32, or float16"):
                arena.append(np.ones((4, 3), dtype), terms)
        with pytest.raises(ValueError, match="a chunk needs"):
            arena.append(np.ones((4, 2), right[0]), terms)
    with pytest.raises(ValueError, match="storage"):
        _kernel.Arena(1, 3, 2, "int8")


def test_rows_that_are_not_numbers_come_last():
    """The owner of an arena keeps them out; if one gets in, searches stay whole."""
    vectors = np.ones((64, 4), np.float32)
    vectors[::2] = [np.inf, -np.inf, np.nan, 1]
    for metric in Metric:
        arena = _kernel.Arena(int(metric), 4, 6)
        arena.append(vectors, np.ones(64, np.float32))
        rows, *_ = arena.scan(vectors[1:2], 32, 64, None, np.arange(64), largest_norm=100)
        assert set(range(1, 64, 2)) <= set(rows[:32].tolist())


@pytest.mark.parametrize("metric", list(Metric), ids=lambda metric: metric.name.lower())
def test_scans_are_exact_even_where_codes_clip_everything(metric):
    """The bound on rounding counts what clipping cut off, so a hopeless scale costs time and nothing else."""
    vectors, queries = vectors_of(400, 20, 5), vectors_of(10, 20, 6)
    scores = np.array([_kernel.scores(query, vectors, int(metric)) for query in queries])
    order = np.sort(scores if metric is Metric.EUCLIDEAN else -scores, axis=1)[:, :7]
    for scale in (1e-4, 0.01, 0.1, 10.0):
        graph = _kernel.Graph("int8", int(metric), 20, 8, 40, scale)
        graph.add(vectors, np.arange(400))
        _, found, ends, _ = graph.scan(queries, 7, arena_of(vectors, metric), largest_norm=largest_norm(vectors))
        assert ends.tolist() == [7 * (i + 1) for i in range(10)]
        assert np.array_equal(found.reshape(10, 7) if metric is Metric.EUCLIDEAN else -found.reshape(10, 7), order)


@pytest.mark.parametrize("code", CODES)
def test_every_code_finds_near_neighbours(code):
    vectors, queries = vectors_of(1_000, 64, 7), vectors_of(30, 64, 8)
    arena = arena_of(vectors, Metric.COSINE)
    graph = _kernel.Graph(code, int(Metric.COSINE), 64, 16, 100, 0.004)
    graph.add(vectors, np.arange(1_000), 2)
    norm = largest_norm(vectors)
    true, *_ = arena.scan(queries, 10, 1_000, largest_norm=norm)
    found, *_ = graph.search(queries, 10, np.array([400]), arena, 400, largest_norm=norm)
    shares = [
        len(set(a) & set(b)) / 10
        for a, b in zip(true.reshape(30, 10).tolist(), found.reshape(30, 10).tolist(), strict=True)
    ]
    assert np.mean(shares) >= (0.9 if code == "binary" else 0.98)


def test_what_a_query_wants_is_its_own_and_threads_change_nothing():
    """Queries of one call differ in k, ef, rescored, filter and extra rows, and are answered as each would be alone."""
    vectors, queries = vectors_of(2_000, 32, 9), vectors_of(40, 32, 10)
    arena = arena_of(vectors, Metric.COSINE)
    graph = _kernel.Graph("int8", int(Metric.COSINE), 32, 8, 50, 0.006)
    graph.add(vectors[:1_900], np.arange(1_900))
    norm = largest_norm(vectors)
    number = np.arange(40)
    k, ef, rescored = number % 7 + 1, np.where(number % 2, 10, 500), number % 30 + 1
    random = np.random.default_rng(11)
    filters = [random.integers(0, 256, 250).astype(np.uint8) if i % 3 else None for i in range(40)]
    filters[4] = np.zeros(0, np.uint8)
    extra = [np.arange(1_900, 2_000) if i % 4 else None for i in range(40)]
    searches = {
        "graph": lambda q, k, ef, rescored, *rest, threads: graph.search(
            q, k, ef, arena, rescored, *rest, largest_norm=norm, threads=threads
        ),
        "codes": lambda q, k, _, __, *rest, threads: graph.scan(q, k, arena, *rest, largest_norm=norm, threads=threads),
        "rows": lambda q, k, _, __, *rest, threads: arena.scan(q, k, 1_900, *rest, largest_norm=norm, threads=threads),
    }
    for name, search in searches.items():
        together = search(queries, k, ef, rescored, filters, extra, threads=4)
        for i in range(40):
            alone = search(
                queries[i : i + 1], int(k[i]), ef[i : i + 1], int(rescored[i]), filters[i], extra[i], threads=1
            )
            hits = slice(together[2][i - 1] if i else 0, together[2][i])
            assert together[0][hits].tolist() == alone[0].tolist(), (name, i)
            assert together[1][hits].tolist() == alone[1].tolist(), (name, i)
            assert together[3][i] == alone[3][0], (name, i)
            rows = alone[0][alone[0] < 1_900]
            if filters[i] is not None:
                assert np.unpackbits(np.append(filters[i], np.zeros(250, np.uint8)), bitorder="little")[rows].all()
            assert len(rows) == len(alone[0]) or extra[i] is not None
            assert len(alone[0]) == k[i] or (i == 4 and extra[i] is None and not len(alone[0]))


def test_numbers_and_lists_need_one_element_for_each_query():
    vectors = vectors_of(20, 8, 1)
    arena = arena_of(vectors, Metric.DOT)
    graph = _kernel.Graph("int8", int(Metric.DOT), 8, 8, 50, 0.01)
    bits = np.ones(3, np.uint8)

    def search(k=1, ef=1, rescored=1, allowed=None, extra=None):
        return graph.search(vectors[:3], k, ef, arena, rescored, allowed, extra, largest_norm=10)

    assert search()[2].tolist() == [0, 0, 0]
    for wrong in ({"k": np.ones(2, np.int64)}, {"ef": np.ones(0, np.int64)}, {"rescored": np.ones(4, np.int64)}):
        with pytest.raises(ValueError, match="one for each query"):
            search(**wrong)
    for wrong in ({"allowed": [bits, None]}, {"extra": []}):
        with pytest.raises(ValueError, match="one element for each query"):
            search(**wrong)
    for wrong in ({"k": 0}, {"ef": np.array([1, 1, 0])}, {"rescored": -1}, {"k": 2**64}):
        with pytest.raises(ValueError, match=r"at least 1|out of range"):
            search(**wrong)
    for wrong in (
        {"k": 1.0},
        {"ef": None},
        {"allowed": [bits, None, 3]},
        {"extra": [bits, None, None]},
        {"allowed": "x"},
    ):
        with pytest.raises(TypeError, match=r"must be|incompatible"):
            search(**wrong)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_searches_of_a_forked_child_start_their_own_helpers():
    """The parent's helpers do not come along, and its pool may have been locked."""
    vectors = vectors_of(500, 16, 2)
    arena = arena_of(vectors, Metric.COSINE)
    stop = threading.Event()

    def search() -> tuple[np.ndarray, ...]:
        return arena.scan(vectors[:40], 5, 500, largest_norm=100, threads=3)

    def keep_searching() -> None:
        while not stop.is_set():
            search()

    expected = search()[0].tolist()
    busy = threading.Thread(target=keep_searching)
    busy.start()
    try:
        for _ in range(5):
            child = os.fork()
            if not child:
                os._exit(0 if search()[0].tolist() == expected else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        busy.join()


def test_removed_labels_go_at_once_and_may_come_back():
    vectors = vectors_of(300, 16, 11)
    arena = arena_of(vectors, Metric.EUCLIDEAN)
    graph = _kernel.Graph("float32", int(Metric.EUCLIDEAN), 16, 8, 50)
    labels = np.arange(300)
    graph.add(vectors, labels)
    assert graph.remove(labels[:100]) == 100
    assert graph.remove(labels[:100]) == 0
    assert not graph.holding(labels[:100]).any()
    search = lambda: graph.search(vectors[:1], 300, np.array([300]), arena, 300, largest_norm=100)[0]  # noqa: E731
    assert set(search().tolist()) == set(range(100, 300))
    assert (graph.sweep(60), graph.sweep(60), graph.sweep(60)) == (60, 40, 0)
    assert set(search().tolist()) == set(range(100, 300))
    graph.add(vectors[:100], labels[:100])
    assert set(search().tolist()) == set(range(300))
    assert (graph.node_count, graph.live_count) == (400, 300)


def test_a_refused_call_changes_nothing():
    vectors = vectors_of(10, 8, 12)
    graph = _kernel.Graph("int8", 1, 8, 8, 50, 0.01)
    graph.add(vectors, np.arange(10))
    broken = vectors.copy()
    broken[9, 7] = np.nan
    for bad, labels in [
        (vectors, np.arange(5, 15)),
        (vectors, np.array([20] * 10)),
        (vectors, np.arange(-1, 9)),
        (vectors, np.arange(2**31 - 5, 2**31 + 5)),
        (broken, np.arange(20, 30)),
        (vectors[:, :7].copy(), np.arange(20, 30)),
        (vectors, np.arange(20, 29)),
    ]:
        with pytest.raises(ValueError, match=r"label|finite|dimension|differ"):
            graph.add(bad, labels)
    with pytest.raises(TypeError):
        graph.add(vectors.astype(np.float64), np.arange(20, 30))
    with pytest.raises(TypeError):
        graph.add(vectors[:, ::2], np.arange(20, 30))
    assert graph.node_count == 10


def test_the_boundary_withstands_nonsense():
    """Calls with random wrong shapes, dtypes, values and orders raise, or answer; the process lives and the graph stays whole."""
    seed = int.from_bytes(os.urandom(4), "little")
    assert fuzz(seed, calls=1_500) > 300


def test_graphs_are_let_go_while_threads_still_search_them():
    """A graph and an arena live as long as a call uses them, whoever drops them meanwhile."""
    vectors = vectors_of(2_000, 32, 13)
    holder = {}
    done = threading.Event()
    errors = []

    def search() -> None:
        while not done.is_set():
            pair = holder.get("pair")
            if pair is None:
                continue
            try:
                rows, *_ = pair[0].search(vectors[:50], 5, np.array([50]), pair[1], 10, largest_norm=100)
                if len(rows) < 5:
                    errors.append(len(rows))
            except Exception as error:  # noqa: BLE001 - reported below
                errors.append(error)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(15):
        graph = _kernel.Graph("int8", 1, 32, 8, 40, 0.006)
        graph.add(vectors[:300], np.arange(300))
        holder["pair"] = (graph, arena_of(vectors, Metric.COSINE))
        del graph
    holder.clear()
    done.set()
    for thread in threads:
        thread.join()
    assert not errors


def filled(code: str) -> tuple[_kernel.Graph, np.ndarray]:
    vectors = vectors_of(400, 12, 14)
    graph = _kernel.Graph(code, 1, 12, 4, 40, 0.01)
    graph.add(vectors, np.arange(400) * 3)
    graph.remove(np.arange(0, 300, 3))
    graph.sweep(50)
    return graph, vectors


@pytest.mark.parametrize("code", CODES)
def test_a_saved_graph_comes_back_whole(code, tmp_path):
    graph, vectors = filled(code)
    graph.save(str(tmp_path / "g"))
    content = graph.to_bytes()
    assert (tmp_path / "g").read_bytes() == content
    for load in ("load", "from_bytes"):
        copy = _kernel.Graph(code, 1, 12, 4, 40, 0.01)
        getattr(copy, load)(str(tmp_path / "g") if load == "load" else content)
        assert copy.to_bytes() == content
        counts = lambda g: (g.node_count, g.live_count, g.dead_count, g.unswept_count)  # noqa: E731
        assert counts(copy) == counts(graph)
        # Signs of 12 elements leave some vectors no code of their own.
        assert counts(copy) == (400, 300, 100, 50) or (code == "binary" and copy.live_count == 300)
        assert sorted(copy.labels()) == sorted(graph.labels())
        copy.add(vectors[:5], np.arange(2_000, 2_005))
        assert copy.remove(np.array([2_001])) == 1


def test_damaged_files_are_refused_and_leave_the_graph_empty():
    content = filled("int8")[0].to_bytes()
    random = np.random.default_rng(15)
    copy = _kernel.Graph("int8", 1, 12, 4, 40, 0.01)
    for _ in range(150):
        damaged = bytearray(content)
        if random.random() < 0.7:
            damaged[int(random.integers(len(damaged)))] ^= 1 << int(random.integers(8))
        else:
            del damaged[int(random.integers(len(damaged))) :]
        with pytest.raises(RuntimeError, match="graph"):
            copy.from_bytes(bytes(damaged))
        assert copy.node_count == 0
    copy.from_bytes(content)
    assert copy.to_bytes() == content


def test_a_graph_of_other_parameters_is_refused():
    content = filled("int8")[0].to_bytes()
    for other in (("int8", 2, 12, 4), ("int8", 1, 13, 4), ("int8", 1, 12, 5), ("float16", 1, 12, 4)):
        with pytest.raises(RuntimeError, match="parameters"):
            _kernel.Graph(*other, 40, 0.01).from_bytes(content)


def test_calibration_takes_int8_for_ordinary_vectors_and_float32_where_rounding_would_lose_them():
    plain = vectors_of(1_000, 64, 16)
    for metric in Metric:
        assert calibration.calibrate(metric, plain).code == "int8"
    # All that tells these rows apart lies far below the step that one large element forces on the scale.
    hidden = plain * 1e-3
    hidden[:, 0] = 10
    for metric in (Metric.EUCLIDEAN, Metric.COSINE):
        chosen = calibration.calibrate(metric, hidden)
        assert chosen.code == "float32"
        assert chosen.recall < calibration.RECALL_MIN
    assert calibration.calibrate(Metric.DOT, plain[:1] * 0).scale == 1.0
