"""A published checkpoint survives a power cut whole; one that was not published leaves nothing under a published name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.crash.harness import REPOSITORY, Machine
from vecmem.log.checkpoints import CheckpointStore, load_manifest, verify_file

CODE = """
import sys
from pathlib import Path
from vecmem.log.checkpoints import CheckpointStore, seal
store = CheckpointStore(Path(sys.argv[1]))
for sequence in range(1, 6):
    temporary = store.begin(sequence)
    (temporary / "deep").mkdir()
    for name in ("a", "deep/b"):
        (temporary / name).write_bytes(bytes([sequence]) * 100_000)
    seal(temporary, sequence=sequence, running_crc=sequence, metadata={})
    store.publish(temporary)
    store.remove_older_than(keep=2)
    print("published", sequence, flush=True)
"""


@pytest.mark.parametrize(
    "failpoint",
    [
        "",
        "before_checkpoint_seal:2",
        "after_checkpoint_seal:2",
        "before_checkpoint_rename:4",
        "after_checkpoint_rename:4",
    ],
)
def test_a_power_cut_leaves_whole_checkpoints(tmp_path: Path, failpoint: str) -> None:
    machine = Machine(tmp_path)
    command = [sys.executable, "-c", CODE, str(machine.root / "checkpoints")]
    child = machine.start(command, PYTHONPATH=str(REPOSITORY), VECMEM_FAILPOINT=failpoint)
    output, _ = child.communicate()
    assert child.returncode == (-9 if failpoint else 0)
    published = [int(line.split()[1]) for line in output.splitlines()]
    machine.power_cut()
    store = CheckpointStore(machine.root / "checkpoints")
    manifests = [load_manifest(path) for path in store.list()]
    for manifest in manifests:
        assert set(manifest.files) == {"a", "deep/b"}
        for name in manifest.files:
            verify_file(manifest, name)
    sequences = [manifest.sequence for manifest in manifests]
    assert sequences[0] >= published[-1]
    assert set(published[-2:]) & set(sequences)
    store.remove_temporary()
    assert len(list(store.path.iterdir())) == len(sequences)
