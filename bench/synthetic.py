"""Clustered vectors by formula: row i is the same whenever it is asked for, and no more than a block is ever in memory.

A mixture of Gaussians in a space of few dimensions, turned into the full one, with a little noise in every dimension. So the
nearest neighbours are near in a few directions only, as those of embeddings are, and a graph's recall is realistic; vectors
drawn evenly from a sphere would have no near neighbours worth the name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt

FloatMatrix = npt.NDArray[np.float32]

BLOCK_ROWS: Final = 4_096
CLUSTERS: Final = 256
LATENT_DIMENSION_MAX: Final = 24
SPREAD: Final = 0.6
"""Standard deviation inside a cluster, in units of that of the clusters' centres."""
NOISE: Final = 0.25
QUERY_COUNT: Final = 1_000

_SPECIFICATION: Final = re.compile(r"synthetic:([1-9]\d*)x([1-9]\d*)")
_QUERIES: Final = 1
_ROWS: Final = 2


def parse(specification: str) -> tuple[int, int] | None:
    """Count and dimension of `synthetic:COUNTxDIMENSION`; None for anything else."""
    found = _SPECIFICATION.fullmatch(specification)
    return (int(found[1]), int(found[2])) if found else None


class SyntheticVectors:
    """A (rows, dimension) float32 matrix that is made as it is read, by slices or by arrays of row numbers."""

    def __init__(self, count: int, dimension: int, seed: int) -> None:
        self.shape = (count, dimension)
        self._seed = seed
        random = np.random.default_rng([seed, 0])
        latent = min(LATENT_DIMENSION_MAX, dimension)
        self._centres = random.standard_normal((CLUSTERS, latent), dtype=np.float32)
        self._turn = random.standard_normal((latent, dimension), dtype=np.float32) / np.float32(np.sqrt(latent))
        self._block_number = -1
        self._block: FloatMatrix = np.empty((0, dimension), np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Sequence[int] | npt.NDArray[np.int64]) -> FloatMatrix:
        """Rows in the order in which they are asked for; IndexError for one that is not there."""
        wanted = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            message = f"rows {wanted.min()} to {wanted.max()} of {len(self)}"
            raise IndexError(message)
        made = np.empty((len(wanted), self.shape[1]), np.float32)
        blocks = wanted // BLOCK_ROWS
        for number in np.unique(blocks):
            here = blocks == number
            made[here] = self._made_block(int(number))[wanted[here] % BLOCK_ROWS]
        return made

    def queries(self, count: int) -> FloatMatrix:
        """Vectors of the same distribution that are not among the rows; shape (count, dimension)."""
        return self._draw([self._seed, _QUERIES], count)

    def _made_block(self, number: int) -> FloatMatrix:
        if number != self._block_number:
            self._block = self._draw([self._seed, _ROWS, number], BLOCK_ROWS)
            self._block_number = number
        return self._block

    def _draw(self, seed: list[int], count: int) -> FloatMatrix:
        random = np.random.default_rng(seed)
        latent = self._centres[random.integers(len(self._centres), size=count)]
        latent = latent + np.float32(SPREAD) * random.standard_normal(latent.shape, dtype=np.float32)
        noise = random.standard_normal((count, self.shape[1]), dtype=np.float32)
        return np.asarray(latent @ self._turn + np.float32(NOISE) * noise, dtype=np.float32)


class RowPayloads(Sequence[dict[str, Any]]):
    """A payload for each row, made as it is read: its number, and one of 100 groups."""

    def __init__(self, count: int) -> None:
        self._rows = range(count)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[row] for row in self._rows[index]]
        row = self._rows[index]
        return {"row": row, "group": f"group-{row % 100}"}
