"""Answers of shards put together: what the whole store would have answered, had it been one.

Pure functions of messages. Each shard has answered for other points, so the best of all are among the best of each.
"""

from __future__ import annotations

import heapq
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from vecmem.v1 import collections_pb2, common_pb2, points_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vecmem.v1.points_pb2 import Hit

T = TypeVar("T")


def merge_header(headers: Sequence[tuple[int, common_pb2.ResponseHeader]]) -> common_pb2.ResponseHeader:
    """One header of those of shards, by their numbers; there is at least one."""
    merged = common_pb2.ResponseHeader()
    sequences: dict[int, int] = {}
    for number, header in headers:
        sequences[number] = max(sequences.get(number, 0), header.position.sequence)
        merged.server_time_unix_ms = max(merged.server_time_unix_ms, header.server_time_unix_ms)
    for number in sorted(sequences):
        merged.positions.add(shard=number, sequence=sequences[number])
    merged.position.CopyFrom(merged.positions[0])
    return merged


def merge_hits(
    parts: Iterable[Sequence[Hit]], *, lower_is_better: bool, offset: int, limit: int, without_id: str = ""
) -> list[Hit]:
    """The best of hits that come best first, equal scores in order of their ids."""

    def rank(hit: Hit) -> tuple[float, bytes]:
        return (hit.score if lower_is_better else -hit.score), hit.point.id.encode()

    merged = heapq.merge(*parts, key=rank)
    wanted = (hit for hit in merged if hit.point.id != without_id) if without_id else merged
    return list(islice(wanted, offset, offset + limit))


def merge_explanations(parts: Sequence[points_pb2.Explanation]) -> points_pb2.Explanation:
    """What all shards did together. The plan is the dearest one that a shard took."""
    merged = points_pb2.Explanation()
    for part in parts:
        merged.plan = max(merged.plan, part.plan)
        merged.ef = max(merged.ef, part.ef)
        merged.target_recall = max(merged.target_recall, part.target_recall)
        for field in ("point_count", "matching_count", "compared_count", "tail_count"):
            setattr(merged, field, getattr(merged, field) + getattr(part, field))
        for field in ("graph_cost_us", "scan_cost_us"):
            setattr(merged, field, max(getattr(merged, field), getattr(part, field)))
        if not merged.filter_paths:
            merged.filter_paths.extend(part.filter_paths)
    return merged


def merge_pages(
    pages: Iterable[tuple[Sequence[T], bytes | None]], name_of: Callable[[T], bytes], count: int
) -> tuple[list[T], bytes | None]:
    """One page of those of several shards.

    Args:
        pages: of each shard what it has found in order of names, and the name that it has looked up to; None: it has come to the end.
        name_of: of what was found.
        count: how many may be in the page.

    Returns what is in the page, and the name that the next one goes on after; None: it was the last one.
    """
    pages = list(pages)
    bound = min((looked_to for _, looked_to in pages if looked_to is not None), default=None)
    merged = heapq.merge(*(found for found, _ in pages), key=name_of)
    # Behind the bound a shard may have more that comes first.
    page = list(islice((one for one in merged if bound is None or name_of(one) <= bound), count))
    if len(page) == count and any(found and name_of(found[-1]) > name_of(page[-1]) for found, _ in pages):
        return page, name_of(page[-1])
    return page, bound


def merge_stats(parts: Sequence[collections_pb2.CollectionStats]) -> collections_pb2.CollectionStats:
    """Of a whole collection: numbers and sizes are added, recall is weighed by the queries it was measured with."""
    merged = collections_pb2.CollectionStats()
    indexes: dict[str, collections_pb2.PayloadIndexStats] = {}
    for part in parts:
        merged.point_count += part.point_count
        merged.payload_bytes += part.payload_bytes
        for name, stats in part.vectors.items():
            if name in merged.vectors:
                _add_vector_stats(merged.vectors[name], stats)
            else:
                merged.vectors[name].CopyFrom(stats)
        for index in part.payload_indexes:
            if index.path in indexes:
                indexes[index.path].point_count += index.point_count
                indexes[index.path].bytes += index.bytes
            else:
                indexes[index.path] = index
    merged.payload_indexes.extend(indexes[path] for path in sorted(indexes))
    return merged


def _add_vector_stats(merged: collections_pb2.VectorStats, part: collections_pb2.VectorStats) -> None:
    queries = merged.measured_query_count + part.measured_query_count
    if queries:
        merged.measured_recall = (
            merged.measured_recall * merged.measured_query_count + part.measured_recall * part.measured_query_count
        ) / queries
    merged.measured_query_count = queries
    for field in (
        "vector_count",
        "graph_row_count",
        "tail_row_count",
        "graph_deleted_row_count",
        "arena_bytes",
        "graph_bytes",
    ):
        setattr(merged, field, getattr(merged, field) + getattr(part, field))
    merged.rebuilding |= part.rebuilding
    merged.calibrated_ef = max(merged.calibrated_ef, part.calibrated_ef)


def merge_upserts(parts: Sequence[tuple[int, points_pb2.UpsertResponse]]) -> points_pb2.UpsertResponse:
    """The reply to a batch whose points several shards have written."""
    merged = points_pb2.UpsertResponse(header=merge_header([(number, part.header) for number, part in parts]))
    versions = {part.version for _, part in parts if part.version}
    merged.version = versions.pop() if len(parts) == 1 and versions else 0
    for _, part in sorted(parts, key=lambda numbered: numbered[0]):
        merged.inserted_count += part.inserted_count
        merged.updated_count += part.updated_count
        merged.conflicts.extend(part.conflicts)
    return merged
