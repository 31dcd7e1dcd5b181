"""Packed sets of rows: the kernel's bit order, whatever the number of rows."""

from __future__ import annotations

import numpy as np
import pytest

from vecmem.index.row_set import RowSet


@pytest.mark.parametrize("row_count", [0, 1, 7, 8, 9, 63, 64, 65, 1_000])
def test_bits_are_lowest_first_and_come_back(row_count):
    mask = np.random.default_rng(row_count).random(row_count) < 0.4
    packed = RowSet.of_mask(mask)
    assert packed.bits.dtype == np.uint8
    assert len(packed.bits) == (row_count + 7) // 8
    assert [bool(packed.bits[row // 8] >> (row % 8) & 1) for row in range(row_count)] == mask.tolist()
    assert sum(int(byte).bit_count() for byte in packed.bits) == packed.count == int(mask.sum())
    assert packed.mask().tolist() == mask.tolist()
    assert packed.mask().dtype == np.bool_
    assert packed.rows().tolist() == np.flatnonzero(mask).tolist()


def test_a_set_cannot_be_changed():
    packed = RowSet.of_mask(np.ones(9, np.bool_))
    with pytest.raises(ValueError, match="read-only"):
        packed.bits[0] = 0
    packed.mask()[0] = False
    assert packed.count == 9
