"""Checkpoints of a shard that any node can restore itself from, in a bucket of JetStream's Object Store.

An upload is two objects, whose common name begins with the sequence and is never given twice:

    00000000000000001234.5f2a90c1.NODE/FILES        the checkpoint's files one behind the other, in order of their names
    00000000000000001234.5f2a90c1.NODE/MANIFEST     its manifest, as on disk: written last

What has a manifest is published: before it was written all files were read back from the bucket and their checksums compared.
An upload without one is under way, or was left over by a node that died.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import google_crc32c

from vecmem.errors import CorruptionError, DataLossError, NotFoundError
from vecmem.filesystem import fsync_directory, write_durably
from vecmem.log import checkpoints, failpoints
from vecmem.log.checkpoints import MANIFEST_NAME, CheckpointManifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from vecmem.log.object_store import ObjectStore

UPLOADS_KEPT: Final = 2
"""The newest may turn out damaged; the one before it and the log behind that stand in for it."""
STALE_SECONDS: Final = 60.0
"""An upload without a manifest to which nothing was added for so long is nobody's any more."""
_FILES: Final = "FILES"


@dataclass(frozen=True, slots=True, order=True)
class Upload:
    """A published checkpoint. They sort by sequence."""

    sequence: int
    name: str


class PublishedCheckpoints:
    """Those of one shard; one thread at a time. Every method raises UnavailableError where NATS does not answer."""

    def __init__(self, store: ObjectStore, node: str) -> None:
        """`node`: who uploads. No other node, and nobody else in this process, uploads under that name."""
        self._store = store
        self._node = node

    def newest_first(self) -> Sequence[Upload]:
        """The published ones."""
        return self._sorted_out()[0]

    def is_under_way(self) -> bool:
        """Whether another node uploads at the moment, as far as can be told."""
        return any(
            not self._is_own(name) and self._store.age_seconds(f"{name}/{_FILES}") < STALE_SECONDS
            for name in self._sorted_out()[1]
        )

    def tidy(self) -> None:
        """Remove all but the newest published ones, and what dead uploads have left over."""
        published, unfinished = self._sorted_out()
        doomed = [upload.name for upload in published[UPLOADS_KEPT:]]
        doomed += [
            name
            for name in unfinished
            if self._is_own(name) or self._store.age_seconds(f"{name}/{_FILES}") >= STALE_SECONDS
        ]
        for name in doomed:
            self._store.remove(f"{name}/{MANIFEST_NAME}")
            self._store.remove(f"{name}/{_FILES}")

    def upload(self, manifest: CheckpointManifest, sent: Callable[[float], None]) -> Upload:
        """Publish a checkpoint.

        Args:
            manifest: of the checkpoint, whose files stay where they are.
            sent: called after each piece with the seconds that it took; it may block, for as long as others are to have NATS,
                or raise, which leaves the upload unfinished.

        Raises:
            CorruptionError: a file is damaged, here or as it came back; nothing was published.
            OSError: a file cannot be read.
        """
        name = f"{manifest.sequence:020d}.{os.urandom(4).hex()}.{self._node}"

        def sent_chunk(seconds: float) -> None:
            failpoints.reach("after_upload_chunk")
            sent(seconds)

        pieces = (piece for file in sorted(manifest.files) for piece in checkpoints.read_chunks(manifest, file))
        self._store.put(f"{name}/{_FILES}", pieces, sent_chunk)
        failpoints.reach("before_upload_check")
        for _, content in self._files_of(name, manifest, sent):
            for _ in content:
                pass
        failpoints.reach("before_upload_publish")
        self._store.put(f"{name}/{MANIFEST_NAME}", [(manifest.path / MANIFEST_NAME).read_bytes()])
        failpoints.reach("after_upload_publish")
        return Upload(manifest.sequence, name)

    def manifest(self, upload: Upload, path: Path = Path()) -> CheckpointManifest:
        """The manifest of a published checkpoint, checked; `path`: where its files are, or will be. Raises DataLossError."""
        return self._manifest(upload, path)[0]

    def download(self, upload: Upload, directory: Path) -> CheckpointManifest:
        """Bring a checkpoint into an empty directory, durably, the manifest last, as if it had been sealed there.

        Raises:
            DataLossError: an object of it is damaged or gone; the message names it.
        """
        manifest, content = self._manifest(upload, directory)
        directories = {directory}
        for name, chunks in self._files_of(upload.name, manifest, lambda _: None):
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            directories.update(parent for parent in path.parents if directory in parent.parents)
            write_durably(path, chunks)
        for path in directories:
            fsync_directory(path)
        write_durably(directory / MANIFEST_NAME, [content])
        fsync_directory(directory)
        failpoints.reach("after_download")
        return manifest

    def _manifest(self, upload: Upload, path: Path) -> tuple[CheckpointManifest, bytes]:
        where = f"{upload.name}/{MANIFEST_NAME}"
        try:
            content = b"".join(self._store.get(where))
            manifest = checkpoints.parse_manifest(content, path)
        except NotFoundError as error:
            raise CorruptionError("it is gone", path=self._store.path_of(where)) from error
        except CorruptionError as error:
            raise CorruptionError(f"the manifest is damaged: {error}", path=self._store.path_of(where)) from error
        if manifest.sequence != upload.sequence:
            raise CorruptionError(f"it tells of sequence {manifest.sequence}", path=self._store.path_of(where))
        return manifest, content

    def _files_of(
        self, name: str, manifest: CheckpointManifest, sent: Callable[[float], None]
    ) -> Iterator[tuple[str, Iterator[bytes]]]:
        """Each file with its content, which is to be read to its end. Raises CorruptionError where that is not as the manifest says."""
        where = f"{name}/{_FILES}"
        parts = _Parts(_timed(self._store.get(where), sent))

        def damaged(what: str) -> CorruptionError:
            return CorruptionError(what, path=self._store.path_of(where))

        def content_of(file: str) -> Iterator[bytes]:
            expected, crc, size_bytes = manifest.files[file], 0, 0
            for part in parts.take(expected.size_bytes):
                crc, size_bytes = google_crc32c.extend(crc, part), size_bytes + len(part)
                yield part
            if size_bytes != expected.size_bytes:
                raise damaged(f"file {file} has {size_bytes} bytes, not {expected.size_bytes}")
            if crc != expected.crc32c:
                raise damaged(f"the CRC32C of file {file} is {crc:08x}, not {expected.crc32c:08x}")

        try:
            for file in sorted(manifest.files):
                yield file, content_of(file)
            if any(parts.take(1)):
                raise damaged("there is more behind the last file")
        except NotFoundError as error:
            raise damaged("it is gone") from error

    def _sorted_out(self) -> tuple[list[Upload], list[str]]:
        """The published ones, newest first, and the names of the others."""
        contents = self._store.contents()
        published, unfinished = [], []
        for name in {name.rpartition("/")[0] for name in contents}:
            sequence = name.partition(".")[0]
            if not sequence.isdecimal():
                continue  # not ours
            objects = (f"{name}/{_FILES}", f"{name}/{MANIFEST_NAME}")
            if all(
                object_name in contents
                and contents[object_name].written
                and self._is_whole(object_name, contents[object_name].chunk_count)
                for object_name in objects
            ):
                published.append(Upload(int(sequence), name))
            else:
                unfinished.append(name)
        return sorted(published, reverse=True), unfinished

    def _is_whole(self, object_name: str, chunk_count: int) -> bool:
        try:
            info = self._store.info(object_name)
        except (DataLossError, NotFoundError):
            return False
        return not info.deleted and info.chunk_count == chunk_count

    def _is_own(self, name: str) -> bool:
        return name.split(".", 2)[2:] == [self._node]


class _Parts:
    """Takes what comes in pieces apart by sizes."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._held = memoryview(b"")

    def take(self, size_bytes: int) -> Iterator[bytes]:
        """Yield the next bytes, fewer only if there are no more."""
        while size_bytes:
            if not self._held:
                piece = next(self._pieces, None)
                if piece is None:
                    return
                self._held = memoryview(piece)
            part, self._held = self._held[:size_bytes], self._held[size_bytes:]
            size_bytes -= len(part)
            failpoints.reach("after_download_chunk")
            yield bytes(part)


def _timed(pieces: Iterator[bytes], took: Callable[[float], None]) -> Iterator[bytes]:
    while True:
        began = time.monotonic()
        piece = next(pieces, None)
        if piece is None:
            return
        took(time.monotonic() - began)
        yield piece
