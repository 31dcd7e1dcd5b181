"""The keyspace as a file of a checkpoint, `keyspace.npz`, which is also its canonical form: equal keyspaces have equal bytes.

Keys in order of their bytes, each with its type, value and expiry: bytes back to back, and where each ends.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

import numpy as np

from vecmem.errors import CorruptionError
from vecmem.store.blobs import join, split

if TYPE_CHECKING:
    from pathlib import Path

    from vecmem.store.keyspace.keyspace import Keyspace

FILE: Final = "keyspace.npz"
STRING: Final = 1
"""Types on disk: never changed or reused."""


def write_keyspace(keyspace: Keyspace, directory: Path) -> None:
    """Write the file into a directory."""
    keys = list(keyspace.sorted_keys)
    key_bytes, key_ends = join(keys)
    value_bytes, value_ends = join([keyspace.values[key] for key in keys])
    np.savez(
        directory / FILE,
        allow_pickle=False,
        version=np.int64(keyspace.version),
        keys=key_bytes,
        key_ends=key_ends,
        types=np.full(len(keys), STRING, dtype=np.uint8),
        values=value_bytes,
        value_ends=value_ends,
        expires_at=np.array([keyspace.expires_at(key) for key in keys], dtype=np.int64),
    )


def load_keyspace(keyspace: Keyspace, content: bytes) -> None:
    """Fill an empty keyspace from the bytes of the file. Raises CorruptionError."""
    arrays = np.load(io.BytesIO(content), allow_pickle=False)
    if (arrays["types"] != STRING).any():
        raise CorruptionError("it holds values of types that this version does not know", path=FILE)
    keys = list(split(arrays["keys"], arrays["key_ends"]))
    expires_at = arrays["expires_at"]
    expiring = np.flatnonzero(expires_at).tolist()
    keyspace.load(
        zip(keys, split(arrays["values"], arrays["value_ends"]), strict=True),
        {keys[place]: int(expires_at[place]) for place in expiring},
        int(arrays["version"]),
    )
