"""Checkpoints on disk: a directory that is published is whole, and every byte read from it was checked.

A checkpoint is a directory of files, written by somebody who knows what is in them, and a manifest written last. It is
made under a temporary name and renamed when all of it is durable, so a published name always has a whole checkpoint:

    checkpoint-00000000000000001234/    published; the number is the log sequence that it reflects
    checkpoint-00000000000000001234-001/    a later one of the same sequence, which goes before it
        MANIFEST                        two lines: the CRC32C of the second in hexadecimal, and a JSON object
        ...                             the files, in subdirectories too
    tmp-00000000000000005678-x1y2/      being written, or left over from a crash

`seal` may run in a forked child: this module starts no thread and uses no event loop.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import google_crc32c
import numpy as np

from vecmem.errors import CheckpointError, CorruptionError, UnsupportedFormatError
from vecmem.filesystem import fsync_directory, fsync_file, publish_directory, remove_directory, write_durably
from vecmem.log import failpoints

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

FORMAT_VERSION: Final = 1
MANIFEST_NAME: Final = "MANIFEST"
_CHUNK_BYTES: Final = 4 * 1024 * 1024
_NAME = re.compile(r"checkpoint-(\d{20})(?:-(\d{3,}))?")


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """What the manifest says of a file. `name` is relative to the checkpoint, with `/`."""

    name: str
    size_bytes: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class CheckpointManifest:
    """What a checkpoint holds: the state after `sequence`, where the log's running CRC was `running_crc`."""

    path: Path
    sequence: int
    running_crc: int
    files: Mapping[str, CheckpointFile]
    metadata: Mapping[str, Any]


class CheckpointStore:
    """The checkpoints in one directory. One writer at a time."""

    def __init__(self, path: Path) -> None:
        """Args: the directory, made if it is not there."""
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        fsync_directory(path.parent)

    def begin(self, sequence: int) -> Path:
        """Make a temporary directory for the checkpoint at a log sequence."""
        return Path(tempfile.mkdtemp(prefix=f"tmp-{sequence:020d}-", dir=self.path))

    def publish(self, temporary: Path) -> Path:
        """Give a sealed directory its final name, durably. Returns the new path. Raises CorruptionError: it was not sealed.

        Where there is one of the same sequence, which may be damaged or have less of the graphs, it stays beside the new one.
        """
        sequence = load_manifest(temporary).sequence
        name = f"checkpoint-{sequence:020d}"
        generations = [_order(path)[1] for path in self.list() if sequence_of(path) == sequence]
        final = self.path / (f"{name}-{generations[0] + 1:03d}" if generations else name)
        failpoints.reach("before_checkpoint_rename")
        publish_directory(temporary, final)
        failpoints.reach("after_checkpoint_rename")
        return final

    def list(self) -> Sequence[Path]:
        """The published checkpoints, newest first, by name alone."""
        return self.published(self.path)

    @staticmethod
    def published(path: Path) -> Sequence[Path]:
        """The checkpoints published in a directory, newest first, without making it or changing anything."""
        children = path.iterdir() if path.is_dir() else ()
        return sorted((child for child in children if _NAME.fullmatch(child.name)), key=_order, reverse=True)

    def remove_older_than(self, keep: int = 2) -> Sequence[Path]:
        """Remove all but the newest `keep` checkpoints, oldest first. Returns what was removed."""
        removed = self.list()[keep:][::-1]
        for path in removed:
            self._remove(path)
        return removed

    def pin(self, path: Path) -> Path:
        """A second name for a checkpoint's files, which stay under it when the checkpoint is removed. The caller removes it.

        Raises OSError: the checkpoint is gone meanwhile, or the file system knows no hard links.
        """
        pinned = Path(tempfile.mkdtemp(prefix=f"tmp-pinned-{path.name}-", dir=self.path))
        try:
            shutil.copytree(path, pinned, copy_function=os.link, dirs_exist_ok=True)
        except BaseException:
            remove_directory(pinned)
            raise
        return pinned

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove these checkpoints, those that are still there."""
        for path in paths:
            if path.exists():
                self._remove(path)

    def remove_temporary(self) -> Sequence[Path]:
        """Remove what a crash left over. Not while a checkpoint is being written. Returns what was removed."""
        removed = [child for child in self.path.iterdir() if child.name.startswith("tmp-")]
        for path in removed:
            remove_directory(path)
        return removed

    def _remove(self, path: Path) -> None:
        # A removal that a crash cuts short must not leave half a checkpoint under a published name.
        doomed = path.with_name(f"tmp-{path.name}")
        path.rename(doomed)
        fsync_directory(self.path)
        remove_directory(doomed)


def sequence_of(path: Path) -> int:
    """The log sequence in a published checkpoint's name. Raises CorruptionError for another name."""
    return _order(path)[0]


def _order(path: Path) -> tuple[int, int]:
    """(sequence, generation) in a published checkpoint's name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise CorruptionError("this is not a checkpoint's name", path=str(path))
    return int(match[1]), int(match[2] or 0)


def seal(temporary: Path, *, sequence: int, running_crc: int, metadata: Mapping[str, Any]) -> CheckpointManifest:
    """Make the files of a directory durable and write the manifest that tells their sizes and CRC32Cs.

    Args:
        temporary: the directory, whole but for the manifest.
        sequence: log sequence that the content reflects.
        running_crc: the log's running CRC32C there.
        metadata: anything JSON can hold, for the reader.

    Raises:
        OSError: as the system reports it; the checkpoint is then not sealed.
    """
    failpoints.reach("before_checkpoint_seal")
    files = {}
    directories = []
    for directory, _, names in os.walk(temporary):
        directories.append(Path(directory))
        for name in names:
            path = Path(directory) / name
            fsync_file(path)
            relative = path.relative_to(temporary).as_posix()
            files[relative] = CheckpointFile(relative, *_measure(path))
    for directory_path in directories:
        fsync_directory(directory_path)
    body = json.dumps(
        {
            "format_version": FORMAT_VERSION,
            "sequence": sequence,
            "running_crc": running_crc,
            "files": {name: [files[name].size_bytes, files[name].crc32c] for name in sorted(files)},
            "metadata": metadata,
        },
        separators=(",", ":"),
    ).encode()
    write_durably(temporary / MANIFEST_NAME, [b"%08x\n" % google_crc32c.value(body), body, b"\n"])
    fsync_directory(temporary)
    failpoints.reach("after_checkpoint_seal")
    return CheckpointManifest(temporary, sequence, running_crc, files, dict(metadata))


def load_manifest(path: Path) -> CheckpointManifest:
    """Read and check a checkpoint's manifest; the files it names are checked when they are read.

    Raises:
        CorruptionError: it is missing, damaged, or of another sequence than the directory's name says.
        UnsupportedFormatError: a newer version wrote it.
    """
    manifest = path / MANIFEST_NAME
    try:
        content = manifest.read_bytes()
    except FileNotFoundError as error:
        raise CorruptionError("the manifest is missing", path=str(manifest)) from error
    return parse_manifest(content, path)


def parse_manifest(content: bytes, path: Path) -> CheckpointManifest:
    """The manifest of the checkpoint in a directory, from its bytes. Raises as load_manifest."""
    manifest = path / MANIFEST_NAME

    def damaged(what: str) -> CorruptionError:
        return CorruptionError(what, path=str(manifest))

    checksum, _, body = content.partition(b"\n")
    if not body.endswith(b"\n") or checksum != b"%08x" % google_crc32c.value(body[:-1]):
        raise damaged("CRC32C does not match")
    fields = json.loads(body)
    if fields["format_version"] > FORMAT_VERSION:
        raise UnsupportedFormatError(
            f"{manifest}: format version {fields['format_version']} is newer than {FORMAT_VERSION}, "
            "the newest that this version of vecmem understands"
        )
    match = _NAME.fullmatch(path.name)
    if match and int(match[1]) != fields["sequence"]:
        raise damaged(f"it tells of sequence {fields['sequence']}, unlike its directory's name")
    files = {}
    for name, (size_bytes, crc32c) in fields["files"].items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise damaged(f"it names a file outside the checkpoint: {name}")
        files[name] = CheckpointFile(name, size_bytes, crc32c)
    return CheckpointManifest(path, fields["sequence"], fields["running_crc"], files, fields["metadata"])


def verify_file(manifest: CheckpointManifest, name: str) -> None:
    """Read one file through and check it, in little memory.

    Raises:
        CorruptionError: it is missing, of another size, or its CRC32C differs; or the manifest has no such file.
    """
    for _ in read_chunks(manifest, name):
        pass


def read_chunks(manifest: CheckpointManifest, name: str) -> Iterator[bytes]:
    """Yield a file in chunks of 4 MiB. Only when it ends without an error is the content proven.

    Raises:
        CorruptionError: as verify_file, size at once and CRC32C at the end.
    """
    path, expected = _open_checked(manifest, name)
    crc = 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc = google_crc32c.extend(crc, chunk)
            yield chunk
    _check_crc(path, expected, crc)


def read_verified(manifest: CheckpointManifest, name: str) -> bytes:
    """A file's content, checked. Raises CorruptionError as verify_file."""
    path, expected = _open_checked(manifest, name)
    content = path.read_bytes()
    if len(content) != expected.size_bytes:
        raise CorruptionError(f"it has {len(content)} bytes, not {expected.size_bytes}", path=str(path))
    _check_crc(path, expected, google_crc32c.value(content))
    return content


def read_into(manifest: CheckpointManifest, name: str, targets: Sequence[np.ndarray[Any, Any]]) -> None:
    """Read a file into C-contiguous arrays, one behind the other, of exactly its size together, and check it in the same pass.

    Raises:
        CorruptionError: as verify_file; the content of the arrays is then undefined.
        CheckpointError: the arrays are of another size.
    """
    path, expected = _open_checked(manifest, name)
    size_bytes = sum(target.nbytes for target in targets)
    if size_bytes != expected.size_bytes or not all(target.flags.c_contiguous for target in targets):
        raise CheckpointError(f"{path} has {expected.size_bytes} bytes; arrays of {size_bytes} cannot take it")
    crc = 0
    with open(path, "rb", buffering=0) as file:
        for target in targets:
            flat = target.reshape(-1).view(np.uint8)
            position = 0
            while position < flat.size:
                count = file.readinto(flat.data[position : position + _CHUNK_BYTES])
                if not count:
                    break
                crc = google_crc32c.extend(crc, flat[position : position + count])
                position += count
    _check_crc(path, expected, crc)


def _open_checked(manifest: CheckpointManifest, name: str) -> tuple[Path, CheckpointFile]:
    path = manifest.path / name
    expected = manifest.files.get(name)
    if expected is None:
        raise CorruptionError("the manifest has no such file", path=str(path))
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError as error:
        raise CorruptionError("the file is missing", path=str(path)) from error
    if size_bytes != expected.size_bytes:
        raise CorruptionError(f"it has {size_bytes} bytes, not {expected.size_bytes}", path=str(path))
    return path, expected


def _check_crc(path: Path, expected: CheckpointFile, crc: int) -> None:
    if crc != expected.crc32c:
        raise CorruptionError(f"CRC32C is {crc:08x}, not {expected.crc32c:08x}", path=str(path))


def _measure(path: Path) -> tuple[int, int]:
    size_bytes = crc = 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            size_bytes += len(chunk)
            crc = google_crc32c.extend(crc, chunk)
    return size_bytes, crc
