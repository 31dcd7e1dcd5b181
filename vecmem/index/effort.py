"""What effort a recall takes: how many candidates a search of one graph considers to reach the recall that is asked for.

Effort is counted in candidates that pass the filter, `ef`. Before anything is known of a graph it follows a rule that real data of
common kinds meet or surpass.

`ef` may be called in any thread.
"""

from __future__ import annotations

from vecmem import limits

LIMIT_COMMON = 10
"""Hits of a common query: what `limits.EF_DEFAULT` is meant for."""
MISSES_EXPONENT = 0.75
"""How effort grows as fewer may be missed. Measured on 62,436 MiniLM vectors: of the true nearest, 0.027, 0.011 and 0.004 are missed at
ef 32, 64 and 128, so that effort goes with misses ** -0.75."""
LIMIT_EXPONENT = 0.5
"""How effort grows with the hits wanted, until it is a share of them."""
LIMIT_MARGIN = 1.5
"""Effort at least, for each hit wanted: the last candidates of a graph search are often not the best."""


class Effort:
    """The effort of one graph."""

    def ef(self, target_recall: float, *, limit: int, selectivity: float = 1.0) -> int:  # noqa: ARG002
        """Candidates that reach `target_recall`, above 0, with `limit` hits, where a share of `selectivity` of the rows passes.

        At least `limit`. A target of 1 is for an exact search; here it takes the largest effort there is.
        """
        return assumed_ef(target_recall, limit)

    def forget(self) -> None:
        """The graph is another one now: nothing is known of it."""


def assumed_ef(target_recall: float, limit: int) -> int:
    """Effort without any knowledge of the graph."""
    missed = max(1.0 - target_recall, 1e-4)
    effort = limits.EF_DEFAULT * ((1.0 - limits.TARGET_RECALL_DEFAULT) / missed) ** MISSES_EXPONENT
    effort *= max(1.0, limit / LIMIT_COMMON) ** LIMIT_EXPONENT
    return max(limit, min(int(max(effort, limit * LIMIT_MARGIN) + 0.5), limits.EF_MAX))
