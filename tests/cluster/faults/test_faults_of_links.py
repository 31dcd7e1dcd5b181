"""A shard whose network and clocks fail: what clients and readers see has one order, and the log says so too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.faults.fault_run import run_with_faults, seed
from tests.cluster.faults.nemesis import LINK_FAULTS


@pytest.mark.timeout(600)
def test_a_shard_lives_through_partitions_slow_links_and_wrong_clocks(tmp_path: Path) -> None:
    run_with_faults(tmp_path, seed(), LINK_FAULTS)
