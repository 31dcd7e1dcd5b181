"""Vectors between numpy and the wire: packed little-endian float32 both ways, never mutating what is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vecmem.v1 import common_pb2

VectorLike = Sequence[float] | NDArray[Any]
"""One vector: a sequence of numbers, or an array of shape (dimension,) of any float or integer dtype."""

FLOAT32: Final = np.dtype("<f4")


def pack_vector(vector: VectorLike, name: str = "vector") -> bytes:
    """Return one vector as little-endian float32 bytes.

    Raises TypeError when the elements are not real numbers, and ValueError unless the shape is (dimension,) with
    dimension >= 1. Values beyond float32 become infinite, which the server refuses.
    """
    # What callers in a hurry pass is left as it is; all else becomes that.
    array = vector if type(vector) is np.ndarray and vector.dtype == FLOAT32 else _as_float32(vector, name)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; one vector has shape (dimension,)")
    return array.tobytes()


def as_matrix(matrix: Any, name: str = "vectors") -> NDArray[Any]:
    """Return an array of shape (rows, dimension) without copying or converting where it is one already.

    Raises as `pack_vector` does, unless the shape is (rows, dimension) with dimension >= 1.
    """
    array = matrix if isinstance(matrix, np.ndarray) else np.asarray(matrix)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name} has shape {array.shape}; many vectors have shape (rows, dimension)")
    _check_kind(array, name)
    return array


def to_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """Return the array as little-endian float32, itself where it is that already."""
    with np.errstate(over="ignore"):
        return array.astype(FLOAT32, copy=False)


def unpack_vector(vector: common_pb2.Vector) -> NDArray[np.float32]:
    """Return a vector of a reply, shape (dimension,), float32; read-only where it came packed."""
    dense = vector.dense
    if dense.packed:
        return np.frombuffer(dense.packed, dtype=FLOAT32)
    return np.asarray(dense.values, dtype=FLOAT32)


def _as_float32(vector: VectorLike, name: str) -> NDArray[np.float32]:
    array = np.asarray(vector)
    _check_kind(array, name)
    return to_float32(array)


def _check_kind(array: NDArray[Any], name: str) -> None:
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} holds {array.dtype}, not real numbers")
