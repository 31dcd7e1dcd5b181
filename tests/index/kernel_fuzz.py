"""Random calls into the native kernel, most of them wrong: `python -m tests.index.kernel_fuzz <seed> <calls>`, under a sanitizer if you like."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from vecmem.index import _kernel

REFUSALS = (ValueError, TypeError, IndexError, RuntimeError, OverflowError)
"""What a wrong call may raise. MemoryError and whatever else would be a fault."""


class Fuzzer:
    """Draws arguments, each right with a good chance, so that calls get past the first check."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.dimension = 12
        self.refused = self.answered = 0
        self.new()

    def new(self) -> None:
        code = str(self.random.choice(["int8", "float16", "float32", "binary"]))
        self.metric = int(self.random.integers(1, 4))
        self.graph = _kernel.Graph(code, self.metric, self.dimension, int(self.random.integers(2, 12)), 30, 0.02)
        dtype = np.dtype(self.random.choice(["float32", "float16"]))
        self.arena = _kernel.Arena(self.metric, self.dimension, 7, dtype.name)
        for _ in range(4):
            self.arena.append(self.matrix(128).astype(dtype), np.ones(128, np.float32))
        self.codes = [_kernel.Codes(self.arena, np.arange(begin, begin + 100)) for begin in (0, 100, 300)]

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def matrix(self, count: int) -> np.ndarray:
        """Some of its rows are equal to each other and to those of others."""
        matrix = self.random.normal(size=(count, self.dimension)).astype(np.float32)
        for row in matrix:
            if self.chance(0.3):
                row[:] = int(self.random.integers(1, 5))
        return matrix

    def vectors(self, count: int | None = None) -> Any:
        right = self.matrix(int(self.random.integers(0, 6)) if count is None else count)
        if self.chance(0.7):
            return right
        wrong: list[Callable[[], Any]] = [
            lambda: right.astype(np.float64),
            lambda: right[:, :-1].copy(),
            lambda: right[:, ::2],
            lambda: np.asfortranarray(self.matrix(5)),
            lambda: right.ravel(),
            lambda: right[None],
            lambda: np.full((3, self.dimension), self.random.choice([np.nan, np.inf, -np.inf]), np.float32),
            lambda: np.full((2, self.dimension), 3e38, np.float32),
            lambda: np.zeros((2, self.dimension), np.float32),
            lambda: np.zeros((0, self.dimension), np.float32),
            lambda: np.zeros((0, 0), np.float32),
            lambda: None,
            lambda: "vectors",
            lambda: right.tolist(),
            lambda: right.astype(">f4"),
        ]
        return wrong[int(self.random.integers(len(wrong)))]()

    def integers(self, count: int, top: int = 512) -> Any:
        right = self.random.integers(0, top, count)
        if self.chance(0.8):
            return right
        wrong: list[Callable[[], Any]] = [
            lambda: right.astype(np.int32),
            lambda: -right,
            lambda: right + 2**31,
            lambda: right + 2**62,
            lambda: np.repeat(right, 2)[::2],
            lambda: right[None],
            lambda: None,
            lambda: np.zeros(0, np.int64),
        ]
        return wrong[int(self.random.integers(len(wrong)))]()

    def number(self, right: int) -> Any:
        if self.chance(0.8):
            return right
        return [0, -1, 2**31, 2**63 - 1, -(2**63), 2**64, 1.5, None, "1", 10_000_000][int(self.random.integers(10))]

    def bits(self) -> Any:
        if self.chance(0.5):
            return None
        return [
            lambda: self.random.integers(0, 256, 64).astype(np.uint8),
            lambda: self.random.integers(0, 256, int(self.random.integers(0, 9))).astype(np.uint8),
            lambda: np.zeros(0, np.uint8),
            lambda: np.ones(64, np.bool_),
            lambda: np.ones((8, 8), np.uint8),
        ][int(self.random.integers(5))]()

    def each(self, draw: Callable[[], Any]) -> Any:
        """One for all queries, or a list."""
        return draw() if self.chance(0.5) else [draw() for _ in range(int(self.random.integers(0, 6)))]

    def view(self) -> Any:
        if self.chance(0.5):
            return None
        times = [self.random.integers(0, 4, 512) for _ in range(3)]
        wrong: list[Callable[[], Any]] = [
            lambda: (2, 2, 512, *times[:2]),
            lambda: (2, 2, 513, *times),
            lambda: (2, 2, 2**63, *times),
            lambda: (2, 2, 512, times[0], times[1].astype(np.int32), None),
            lambda: (2, 2, 512, times[0][:100], *times[1:]),
            lambda: [2, 2, 512, *times],
            lambda: "view",
        ]
        if self.chance(0.3):
            return wrong[int(self.random.integers(len(wrong)))]()
        return (2, 2, self.number(512), times[0], times[1], times[2] if self.chance(0.5) else None)

    def coded(self) -> Any:
        """Pieces of codes, now and then one twice, of another arena or none at all."""
        if self.chance(0.4):
            return ()
        right = tuple(self.random.choice(np.array(self.codes, dtype=object), int(self.random.integers(1, 4))))
        if self.chance(0.8):
            return right
        other = _kernel.Arena(int(self.random.integers(1, 4)), int(self.random.integers(1, 20)), 2)
        wrong = [(*right, None), list(right), None, (_kernel.Codes(other, np.zeros(0, np.int64)),), self.codes[0]]
        return wrong[int(self.random.integers(len(wrong)))]

    def one(self) -> Callable[[], Any]:
        queries, count = self.vectors(), int(self.random.integers(0, 6))
        ef = self.integers(
            1 if self.chance(0.5) else len(queries) if isinstance(queries, np.ndarray) and queries.ndim else 1, 200
        )
        norm = 50.0 if self.chance(0.9) else float(self.random.choice([np.nan, -1, np.inf, 0]))
        extra = None if self.chance(0.6) else self.each(lambda: self.integers(3))
        threads = self.number(2) if self.chance(0.3) else 1
        threads = threads if threads is None or isinstance(threads, str | float) or threads < 1_000 else 8
        k = self.number(5) if self.chance(0.5) else self.integers(1 if self.chance(0.5) else count, 9)
        allowed = self.each(self.bits)
        view = self.view()
        more: dict[str, Any] = {"view": view, "largest_norm": norm, "threads": threads}
        most = None if self.chance(0.5) else self.number(40) if self.chance(0.5) else self.integers(count, 60)
        calls: list[Callable[[], Any]] = [
            lambda: self.graph.add(self.vectors(count), self.integers(count), threads),
            lambda: self.graph.add(self.matrix(count), self.random.permutation(512)[:count], 1),
            lambda: self.graph.remove(self.integers(count)),
            lambda: self.graph.sweep(self.number(10)),
            lambda: self.graph.search(
                queries,
                k,
                ef,
                self.arena,
                self.number(20),
                allowed,
                extra,
                coded=self.coded(),
                compared_max=most,
                **more,
            ),
            lambda: self.graph.scan(queries, k, self.arena, allowed, extra, coded=self.coded(), **more),
            lambda: self.new_codes(),
            lambda: self.codes[int(self.random.integers(3))].discard(self.integers(count)),
            lambda: self.arena.scan(queries, k, self.number(512), allowed, extra, **more),
            lambda: self.arena.append(self.vectors(), np.ones(3, np.float32)),
            lambda: self.graph.holding(self.integers(count)),
            lambda: self.graph.labels(),
            lambda: _kernel.scores(self.vectors(), self.vectors(), self.metric),
            lambda: _kernel.scores(self.matrix(1)[0], self.vectors(), self.number(2)),
            lambda: self.graph.from_bytes(self.random.bytes(int(self.random.integers(0, 300)))),
            lambda: _kernel.Graph(
                str(self.random.choice(["int8", "int9"])),
                self.number(1),
                self.number(4),
                self.number(4) if self.chance(0.5) else 8,
                10,
                0.1,
            ),
            lambda: _kernel.Graph("int8", 1, 4, 4, 10, float(self.random.choice([0, -1, np.nan, np.inf, 1e-45]))),
            lambda: self.round_trip(),
        ]
        return calls[int(self.random.integers(len(calls)))]

    def new_codes(self) -> None:
        rows = self.integers(int(self.random.integers(0, 40)))
        if self.chance(0.8) and isinstance(rows, np.ndarray):
            rows = np.unique(rows)
        self.codes[int(self.random.integers(3))] = _kernel.Codes(self.arena, rows)

    def round_trip(self) -> None:
        content = self.graph.to_bytes()
        damaged = bytearray(content)
        damaged[int(self.random.integers(len(damaged)))] ^= 1
        _kernel.Graph("int8", self.metric, self.dimension, 4, 30, 0.02).from_bytes(bytes(damaged))

    def run(self, calls: int) -> None:
        for number in range(calls):
            if number % 200 == 199:
                self.new()
            try:
                self.one()()
            except REFUSALS:
                self.refused += 1
            else:
                self.answered += 1
        if self.graph.live_count != len(self.graph.labels()):
            raise AssertionError("the graph lost count of its labels")


def fuzz(seed: int, calls: int) -> int:
    """Make so many calls; returns how many were answered, the rest having been refused."""
    print(f"fuzz seed {seed}")
    fuzzer = Fuzzer(seed)
    fuzzer.run(calls)
    return fuzzer.answered


if __name__ == "__main__":
    print(f"{fuzz(int(sys.argv[1]), int(sys.argv[2]))} of {sys.argv[2]} calls answered")
