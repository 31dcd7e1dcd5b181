"""HNSW graphs over codes, and exact comparison: the native part of vecmem.index.

Arrays are C-contiguous and of exactly the dtype that is asked for, else TypeError. Values and shapes that cannot be: ValueError,
nothing is changed. Rows that the arena lacks: IndexError. All calls release the interpreter lock and may run beside each other; the locking
rule stands in `graph.h`.

Searches take (n, dimension) finite `queries` and answer them together, on up to `threads` threads, which give way to all others where the
search is one that nobody waits for (`background`). `k`, `ef` and `rescored` are at
least 1: one number, or an int64 array of one element or one for each query. `allowed` and `extra` are one array for all queries, or
a list that has an array or None for each:

- `allowed`, uint8: bit i % 8 of byte i // 8, lowest first, says whether row i may be a hit. None: all.
- `extra`, int64: rows compared beside, as far as they are allowed; no row twice. None: none.

`coded` are pieces of more such rows, which are compared by their codes first and again, exactly, as far as rounding leaves it open. A row
may stand in several pieces if it was discarded from all but one.

`view` is (sequence, now, row_count, born, died, expires or None), as vecmem.index.rows.RowView has them: rows that it does not see are
not allowed. None: it sees all.

`largest_norm` is an upper bound of the rows' Euclidean norms. The answer is (rows, scores, ends, compared): the hits of query i are
rows[ends[i - 1]:ends[i]], nearest first, the `k` nearest and all that tie with the last of them, ties in order of rows; `scores` as
vecmem.index.metric.scores has them; compared[i] is how many codes, or rows where no codes are searched, were compared with query i,
those of `extra` and `coded` aside.
"""

from typing import TypeAlias

from numpy import bool_, float16, float32, int64, uint8, uint16
from numpy.typing import NDArray

Results: TypeAlias = tuple[NDArray[int64], NDArray[float32], NDArray[int64], NDArray[int64]]
Numbers: TypeAlias = int | NDArray[int64]
Bits: TypeAlias = NDArray[uint8] | list[NDArray[uint8] | None] | None
View: TypeAlias = tuple[int, int, int, NDArray[int64], NDArray[int64], NDArray[int64] | None] | None
Rows: TypeAlias = NDArray[int64] | list[NDArray[int64] | None] | None

class Arena:
    """Rows of vectors in chunks of 2 ** chunk_shift that their owner writes; `metric` by its number, `storage` is float32 or float16.

    Rows of float16 are compared as they are, in the arithmetic that rows of float32 get.
    """

    def __init__(self, metric: int, dimension: int, chunk_shift: int, storage: str = "float32") -> None: ...
    def append(self, vectors: NDArray[float32 | float16 | uint16], terms: NDArray[float32]) -> None:
        """Add a chunk, shape (2 ** chunk_shift, dimension), and the row_terms of its rows; both are kept by reference.

        float16 may come as uint16.
        """

    def scan(
        self,
        queries: NDArray[float32],
        k: Numbers,
        row_count: int,
        allowed: Bits = None,
        extra: Rows = None,
        *,
        view: View = None,
        largest_norm: float,
        threads: int = 1,
        background: bool = False,
    ) -> Results:
        """The nearest of the first `row_count` rows, exactly."""

class Codes:
    """int8 codes of `rows`, shape (n,) and rising, of an arena, for searches to compare beside a graph; about (dimension + 16) bytes a row.

    Raises ValueError for rows that do not rise.
    """

    def __init__(self, arena: Arena, rows: NDArray[int64]) -> None: ...
    def discard(self, rows: NDArray[int64]) -> int:
        """Take rows out for good, beside searches; those that are not here are passed over. How many there were."""

    def __len__(self) -> int:
        """Rows, discarded ones included."""

    @property
    def memory_bytes(self) -> int: ...

class Graph:
    """A graph with a node for each distinct code.

    `code` is int8, float16, float32 or binary, `scale` what one step of an int8 code stands for (a unit of float16).
    """

    def __init__(
        self, code: str, metric: int, dimension: int, m: int, ef_construction: int, scale: float = 1.0
    ) -> None: ...
    def add(self, vectors: NDArray[float32], labels: NDArray[int64], threads: int = 1) -> None:
        """Take vectors, shape (n, dimension), under labels, shape (n,), that no node has; those of equal codes share a node."""

    def remove(self, labels: NDArray[int64]) -> int:
        """Take labels away; how many there were."""

    def sweep(self, count_max: int) -> int:
        """Keep insertions from linking to up to `count_max` nodes without a label; how many."""

    def reserve(self, count: int) -> None:
        """Make room for `count` nodes in all."""

    def search(
        self,
        queries: NDArray[float32],
        k: Numbers,
        ef: Numbers,
        arena: Arena,
        rescored: Numbers,
        allowed: Bits = None,
        extra: Rows = None,
        *,
        coded: tuple[Codes, ...] = (),
        view: View = None,
        compared_max: Numbers | None = None,
        largest_norm: float,
        threads: int = 1,
        background: bool = False,
    ) -> Results:
        """The nearest of the rows of the `rescored` nearest of the `ef` nodes that the graph leads to."""

    def scan(
        self,
        queries: NDArray[float32],
        k: Numbers,
        arena: Arena,
        allowed: Bits = None,
        extra: Rows = None,
        *,
        coded: tuple[Codes, ...] = (),
        view: View = None,
        largest_norm: float,
        threads: int = 1,
        background: bool = False,
    ) -> Results:
        """The nearest of all nodes, exactly: int8 codes first, then the arena for whatever their rounding leaves open."""

    def save(self, path: str) -> None:
        """Write the graph to a file. Searches may go on; insertions wait."""

    def to_bytes(self) -> bytes:
        """What `save` writes."""

    def load(self, path: str) -> None:
        """Fill an empty graph. Raises RuntimeError for a damaged file, and is then still empty."""

    def from_bytes(self, content: bytes) -> None:
        """As `load`."""

    def holding(self, labels: NDArray[int64]) -> NDArray[bool_]:
        """Which labels have a node; shape (n,)."""

    def labels(self) -> NDArray[int64]:
        """All labels, in no order."""

    @property
    def node_count(self) -> int: ...
    @property
    def live_count(self) -> int:
        """Labels, of which several may share a node."""

    @property
    def dead_count(self) -> int:
        """Nodes without a label."""

    @property
    def unswept_count(self) -> int:
        """Nodes without a label that `sweep` has not seen."""

    @property
    def clipped_count(self) -> int:
        """Vectors with elements beyond the scale of int8 codes."""

    @property
    def memory_bytes(self) -> int: ...
    @property
    def scale(self) -> float: ...

def scores(query: NDArray[float32], vectors: NDArray[float32], metric: int) -> NDArray[float32]:
    """Exact scores of the rows of `vectors`, shape (n, dimension)."""

def code_distances(
    a: NDArray[float32], b: NDArray[float32], code: str, metric: int, scale: float = 1.0
) -> NDArray[float32]:
    """Distances of the codes of each pair of rows."""

def instruction_set() -> str:
    """The set that graphs and arenas made from now on use."""

def instruction_sets() -> list[str]:
    """The sets that this machine has, best first."""

def use_instruction_set(name: str) -> None:
    """Force a set; empty: the best again. ValueError where this machine lacks it."""
