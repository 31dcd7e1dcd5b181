"""The state as files, for checkpoints.

    keyspace.npz                the keys (vecmem.store.keyspace.image)
    changes.bin                 what the newest records changed (vecmem.store.changes)
    state.bin                   deduplication window: length-prefixed DeduplicationEntry messages
    slots.bin                   SlotTableImage, of a shard that owns some of several shards' slots
    staged.bin                  what is on its way here from other shards: length-prefixed StageSlots messages (vecmem.store.staging)
    collections/<uid>/
      collection.bin            CollectionImage
      points.npz                by row: ids and payloads (bytes back to back, and where each ends), versions, expires_at, live, and which
                                rows hold each vector (present_<place>)
      <place>.arena             rows 0 to row_count - 1 of one vector, float32 or float16; none without rows
      <place>.graph ...         what its index saves

Vectors are named by their place in order of their names (`0`, `1`, ...), so that no name reaches the file system. Few files: each
costs an fsync. `write_image` runs in a forked child and touches nothing but the directory; `load_collection` checks every byte that
it reads.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecmem.errors import CorruptionError
from vecmem.filesystem import write_file
from vecmem.index.vector_index import SavedValue
from vecmem.log import checkpoints
from vecmem.log.checkpoints import CheckpointManifest
from vecmem.store.blobs import join, split
from vecmem.store.changes import ChangeWindow
from vecmem.store.collection import Collection
from vecmem.store.deduplication import DeduplicationWindow
from vecmem.store.keyspace import image as keyspace_image
from vecmem.store.slot_table import SlotTable
from vecmem.store.staging import StagedGroup
from vecmem.store.state_machine import StateMachine
from vecmem.store.v1 import command_pb2

STATE_FILE = "state.bin"
CHANGES_FILE = "changes.bin"
SLOTS_FILE = "slots.bin"
STAGED_FILE = "staged.bin"


def write_image(state: StateMachine, directory: Path) -> dict[str, Any]:
    """Write the whole state below an empty directory; returns the metadata that loading needs.

    Nothing may change the state or maintain its indexes meanwhile.
    """
    write_file(directory / STATE_FILE, _prefixed(entry.SerializeToString() for entry in state.deduplication.entries()))
    write_file(directory / CHANGES_FILE, state.changes.dump())
    if state.slots is not None:
        write_file(directory / SLOTS_FILE, [state.slots.dump().SerializeToString(deterministic=True)])
        write_file(directory / STAGED_FILE, _prefixed(part.SerializeToString() for part in dump_staged(state)))
    keyspace_image.write_keyspace(state.keyspace, directory)
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
    """The state without its keys and collections. Raises CorruptionError."""
    state = StateMachine()
    state.time_unix_ms = manifest.metadata["time_unix_ms"]
    content = checkpoints.read_verified(manifest, STATE_FILE)
    state.deduplication = DeduplicationWindow(map(_deduplication_entry, _unprefixed(content)))
    if CHANGES_FILE in manifest.files:
        try:
            state.changes = ChangeWindow.load(checkpoints.read_verified(manifest, CHANGES_FILE))
        except ValueError as error:
            raise CorruptionError(f"the changes cannot be read: {error}", path=CHANGES_FILE) from error
    else:  # a checkpoint of an earlier version
        state.changes.complete_after = manifest.sequence
    if SLOTS_FILE in manifest.files:
        _load_slots(manifest, state)
    return state


def dump_staged(state: StateMachine) -> Iterator[command_pb2.StageSlots]:
    """What is on its way here, in its canonical form."""
    for source in sorted(state.staging.groups):
        yield from state.staging.groups[source].dump(state.name_of)


def _load_slots(manifest: CheckpointManifest, state: StateMachine) -> None:
    image = checkpoints.read_verified(manifest, SLOTS_FILE)
    staged = checkpoints.read_verified(manifest, STAGED_FILE)
    uids = {about["name"]: int(uid) for uid, about in manifest.metadata["collections"].items()}
    try:
        state.slots = SlotTable.load(command_pb2.SlotTableImage.FromString(image))
        parts = map(command_pb2.StageSlots.FromString, _unprefixed(staged))
        state.staging.groups = StagedGroup.load(parts, uids.__getitem__)
    except (ValueError, KeyError) as error:
        raise CorruptionError(f"the slots cannot be read: {error!r}", path=SLOTS_FILE) from error


def _deduplication_entry(content: bytes) -> command_pb2.DeduplicationEntry:
    entry = command_pb2.DeduplicationEntry.FromString(content)
    if not entry.slots:
        # Results of an earlier version have none: it was always the sequence.
        entry.result.version = entry.result.version or entry.result.sequence
    return entry


def load_keyspace(manifest: CheckpointManifest, state: StateMachine) -> None:
    """Load the keys into a state. Raises CorruptionError naming the damaged file; none of the keys are then used."""
    if keyspace_image.FILE in manifest.files:  # a checkpoint of an earlier version has none
        keyspace_image.load_keyspace(state.keyspace, checkpoints.read_verified(manifest, keyspace_image.FILE))
    if state.slots is not None:
        for _ in state.keyspace.index_slots():
            pass


def load_collection(manifest: CheckpointManifest, uid: str) -> Collection:
    """One collection. Raises CorruptionError naming the damaged file; nothing of the collection is then used."""
    base = f"collections/{uid}"
    image = command_pb2.CollectionImage.FromString(checkpoints.read_verified(manifest, f"{base}/collection.bin"))
    collection = Collection(image.name, image.uid, image.created_at_unix_ms, image.config)
    points = np.load(io.BytesIO(checkpoints.read_verified(manifest, f"{base}/points.npz")), allow_pickle=False)
    live = points["live"]
    collection.rows.load(
        [raw.decode() for raw in split(points["ids"], points["id_ends"])],
        points["versions"],
        points["expires_at"],
        live,
    )
    collection.payloads.load(list(split(points["payloads"], points["payload_ends"])))
    collection.load_points(live)
    for place, name in enumerate(sorted(collection.vectors)):
        _load_vector(manifest, collection, name, place, points[f"present_{place}"], live)
    return collection


def _write_collection(collection: Collection, directory: Path) -> list[dict[str, SavedValue]]:
    image = command_pb2.CollectionImage(
        name=collection.name,
        uid=collection.uid,
        created_at_unix_ms=collection.created_at_unix_ms,
        config=collection.config,
    )
    write_file(directory / "collection.bin", [image.SerializeToString()])
    table = collection.rows
    row_count = table.row_count
    live = np.zeros(row_count, dtype=np.bool_)
    live[table.live_rows()] = True
    alive = live.tolist()
    ids, id_ends = join([table.ids[row].encode() if alive[row] else b"" for row in range(row_count)])
    payloads, payload_ends = join([collection.payloads.get(row) if alive[row] else b"" for row in range(row_count)])
    arrays: dict[str, NDArray[Any]] = {
        "ids": ids,
        "id_ends": id_ends,
        "payloads": payloads,
        "payload_ends": payload_ends,
        "versions": table.versions[:row_count],
        "expires_at": table.expiry_times(),
        "live": live,
    }
    metadata = []
    for place, name in enumerate(sorted(collection.vectors)):
        index = collection.vectors[name]
        arrays[f"present_{place}"] = index.arena.present(row_count) & live
        if row_count:
            chunks = index.arena.chunks(row_count)
            write_file(directory / f"{place}.arena", (chunk.reshape(-1).view(np.uint8).data for chunk in chunks))
        metadata.append(index.save(directory, str(place)))
    np.savez(directory / "points.npz", allow_pickle=False, **arrays)
    return metadata


def _load_vector(
    manifest: CheckpointManifest,
    collection: Collection,
    name: str,
    place: int,
    present: NDArray[np.bool_],
    live: NDArray[np.bool_],
) -> None:
    base = f"collections/{collection.uid}/{place}"
    index = collection.vectors[name]
    if live.size:
        checkpoints.read_into(manifest, f"{base}.arena", index.arena.room(live.size))
        index.arena.adopt(present)
    for file in manifest.files:
        # The index reads its own files with other libraries, which do not check them.
        if file.startswith(f"{base}.") and not file.endswith(".arena"):
            checkpoints.verify_file(manifest, file)
    directory = manifest.path / Path(base).parent
    metadata = manifest.metadata["collections"][str(collection.uid)]["vectors"][place]
    index.load(directory, str(place), metadata, live)


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
