"""The state as files, for checkpoints.

    state.bin                   deduplication window: length-prefixed DeduplicationEntry messages
    collections/<uid>/
      collection.bin            CollectionImage
      points.npz-like files:    ids.bin + ids.npy (ends), payloads.bin + payloads.npy (ends), versions.npy, expires_at.npy, live.npy
      <vector>.arena            float32 rows 0 to row_count - 1
      <vector>.present.npy      which of them hold a vector
      <vector>.graph ...        what the index itself saves

Vectors are named by their place in order of their names (`0`, `1`, ...), so that no name reaches the file system.
`write_image` runs in a forked child and touches nothing but the directory; `load_collection` checks every byte that it reads.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vecmem.errors import CorruptionError
from vecmem.filesystem import write_durably
from vecmem.log import checkpoints
from vecmem.log.checkpoints import CheckpointManifest
from vecmem.store.collection import Collection
from vecmem.store.deduplication import DeduplicationWindow
from vecmem.store.state_machine import StateMachine
from vecmem.store.v1 import command_pb2

STATE_FILE = "state.bin"


def write_image(state: StateMachine, directory: Path) -> dict[str, Any]:
    """Write the whole state below an empty directory; returns the metadata that loading needs.

    Nothing may change the state or maintain its indexes meanwhile.
    """
    write_durably(
        directory / STATE_FILE, _prefixed(entry.SerializeToString() for entry in state.deduplication.entries())
    )
    collections: dict[str, Any] = {}
    for collection in state.collections.values():
        target = directory / "collections" / str(collection.uid)
        target.mkdir(parents=True)
        collections[str(collection.uid)] = {
            "name": collection.name,
            "vectors": _write_collection(collection, target),
        }
    return {"time_unix_ms": state.time_unix_ms, "collections": collections}


def load_state(manifest: CheckpointManifest) -> StateMachine:
    """The state without its collections. Raises CorruptionError."""
    state = StateMachine()
    state.time_unix_ms = manifest.metadata["time_unix_ms"]
    content = checkpoints.read_verified(manifest, STATE_FILE)
    state.deduplication = DeduplicationWindow(map(command_pb2.DeduplicationEntry.FromString, _unprefixed(content)))
    return state


def load_collection(manifest: CheckpointManifest, uid: str) -> Collection:
    """One collection. Raises CorruptionError naming the damaged file; nothing of the collection is then used."""
    base = f"collections/{uid}"
    image = command_pb2.CollectionImage.FromString(checkpoints.read_verified(manifest, f"{base}/collection.bin"))
    collection = Collection(image.name, image.uid, image.created_at_unix_ms, image.config)
    live = _read_array(manifest, f"{base}/live.npy")
    collection.rows.load(
        [raw.decode() for raw in _read_blobs(manifest, f"{base}/ids")],
        _read_array(manifest, f"{base}/versions.npy"),
        _read_array(manifest, f"{base}/expires_at.npy"),
        live,
    )
    for row, payload in enumerate(_read_blobs(manifest, f"{base}/payloads")):
        if payload:
            collection.payloads.set(row, payload)
    collection.load_points(live)
    for place, name in enumerate(sorted(collection.vectors)):
        _load_vector(manifest, collection, name, f"{base}/{place}", place, live)
    return collection


def _write_collection(collection: Collection, directory: Path) -> list[dict[str, int]]:
    image = command_pb2.CollectionImage(
        name=collection.name,
        uid=collection.uid,
        created_at_unix_ms=collection.created_at_unix_ms,
        config=collection.config,
    )
    write_durably(directory / "collection.bin", [image.SerializeToString()])
    table = collection.rows
    row_count = table.row_count
    live = np.zeros(row_count, dtype=np.bool_)
    live[table.live_rows()] = True
    alive = live.tolist()
    _write_blobs(directory / "ids", (table.ids[row].encode() if alive[row] else b"" for row in range(row_count)))
    _write_blobs(
        directory / "payloads", (collection.payloads.get(row) if alive[row] else b"" for row in range(row_count))
    )
    _write_array(directory / "versions.npy", table.versions[:row_count])
    _write_array(directory / "expires_at.npy", table.expiry_times())
    _write_array(directory / "live.npy", live)
    metadata = []
    for place, name in enumerate(sorted(collection.vectors)):
        index = collection.vectors[name]
        write_durably(
            directory / f"{place}.arena",
            (chunk.reshape(-1).view(np.uint8).data for chunk in index.arena.chunks(row_count)),
        )
        _write_array(directory / f"{place}.present.npy", index.arena.present(row_count) & live)
        metadata.append(index.save(directory, str(place)))
    return metadata


def _load_vector(
    manifest: CheckpointManifest, collection: Collection, name: str, base: str, place: int, live: np.ndarray[Any, Any]
) -> None:
    index = collection.vectors[name]
    vectors = np.empty((live.size, index.parameters.dimension), dtype="<f4")
    if live.size:
        checkpoints.read_into(manifest, f"{base}.arena", vectors)
    index.arena.load(vectors, _read_array(manifest, f"{base}.present.npy"))
    for file in manifest.files:
        # The index reads its own files with other libraries, which do not check them.
        if file.startswith(f"{base}.") and not file.endswith((".arena", ".present.npy")):
            checkpoints.verify_file(manifest, file)
    directory = manifest.path / Path(base).parent
    metadata = manifest.metadata["collections"][str(collection.uid)]["vectors"][place]
    index.load(directory, str(place), metadata, live)


def _write_array(path: Path, array: np.ndarray[Any, Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_durably(path, [buffer.getbuffer()])


def _read_array(manifest: CheckpointManifest, name: str) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = np.load(io.BytesIO(checkpoints.read_verified(manifest, name)), allow_pickle=False)
    return array


def _write_blobs(path: Path, blobs: Iterable[bytes]) -> None:
    """Write byte strings back to back (.bin), and where each ends (.npy)."""
    ends: list[int] = []
    end = 0

    def chunks() -> Iterator[bytes]:
        nonlocal end
        for blob in blobs:
            end += len(blob)
            ends.append(end)
            yield blob

    write_durably(path.with_name(path.name + ".bin"), chunks())
    _write_array(path.with_name(path.name + ".npy"), np.array(ends, dtype=np.int64))


def _read_blobs(manifest: CheckpointManifest, name: str) -> Iterator[bytes]:
    content = checkpoints.read_verified(manifest, f"{name}.bin")
    start = 0
    for end in _read_array(manifest, f"{name}.npy").tolist():
        yield content[start:end]
        start = end


def _prefixed(messages: Iterable[bytes]) -> Iterator[bytes]:
    for message in messages:
        yield len(message).to_bytes(4, "little")
        yield message


def _unprefixed(content: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(content):
        size = int.from_bytes(content[position : position + 4], "little")
        position += 4 + size
        if position > len(content):
            raise CorruptionError("a message runs past the end", path=STATE_FILE, position=f"byte {position}")
        yield content[position - size : position]
