"""A shard whose processes die, hang and run out of disk: what clients and readers see has one order, and the log says so too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cluster.faults.fault_run import run_with_faults, seed
from tests.cluster.faults.nemesis import LINK_FAULTS, PROCESS_FAULTS

SOAK_SECONDS = float(os.environ.get("FAULTS_SOAK_SECONDS", "1800"))


@pytest.mark.timeout(600)
def test_a_shard_lives_through_deaths_and_pauses(tmp_path: Path) -> None:
    run_with_faults(tmp_path, seed(), PROCESS_FAULTS)


@pytest.mark.long
@pytest.mark.timeout(int(2 * SOAK_SECONDS) + 600)
def test_soak_with_all_faults(tmp_path: Path) -> None:
    """For FAULTS_SOAK_SECONDS, and some of them together."""
    run_with_faults(tmp_path, seed(), (*PROCESS_FAULTS, *LINK_FAULTS), seconds=SOAK_SECONDS)
