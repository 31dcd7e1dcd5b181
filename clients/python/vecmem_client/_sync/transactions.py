# Generated from _async/transactions.py by scripts/generate_sync.py: change that one and run the script.
"""Transactions over keys and points of one hash slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vecmem_client import _methods, _requests
from vecmem_client._sync.base import Base
from vecmem_client.transactions import request_of, result_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vecmem_client.transactions import CommitResult, Compare, Step


class TransactionMethods(Base):
    """TransactionService."""

    def commit(
        self,
        *,
        compare: Sequence[Compare] = (),
        then: Sequence[Step] = (),
        otherwise: Sequence[Step] = (),
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> CommitResult:
        """Do the steps of `then` where all comparisons hold, or those of `otherwise`: all of them, durably, or none.

        At most 128 of each, built by `vecmem_client.transactions` and the modules of operations on keys; they share a hash slot.
        Raises CrossSlotError, VersionConflictError, and whatever a step or a comparison is refused for; nothing is changed then.
        """
        request = request_of(compare, then, otherwise)
        request.write.request_id = _requests.new_request_id(request_id)
        reply = self._call(_methods.COMMIT, request, timeout_seconds, retriable=request_id != "")
        return result_of(reply, then, otherwise)
