"""Queries, checked against the state before they wait for their turn (vecmem.store.lanes)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vecmem import limits
from vecmem.errors import InvalidArgumentError, LimitExceededError
from vecmem.index.filter import CompiledFilter, compile_filter
from vecmem.index.metric import Float32Array
from vecmem.index.vector_index import VectorIndex
from vecmem.store.collection import Collection
from vecmem.store.reading import PointSelection, compile_selection
from vecmem.store.shard import Shard
from vecmem.store.validation import dense_values, query_vector, vector_of
from vecmem.v1 import common_pb2, points_pb2


@dataclass(slots=True, eq=False)
class CompiledQuery:
    """A checked query. `vector` None: that of the point `nearest_id`. Never changed; not `frozen`, which each search would pay for."""

    collection: Collection
    index: VectorIndex
    using: str
    vector: Float32Array | None
    nearest_id: str
    compiled: CompiledFilter | None
    limit: int
    offset: int
    score_threshold: float | None
    ef: int
    target_recall: float
    exact: bool
    selection: PointSelection
    explain: bool


def compile_query(shard: Shard, query: points_pb2.Query, field: str = "query") -> CompiledQuery:
    """Check a query against the state.

    Raises CollectionNotFoundError, CollectionDamagedError or an InvalidArgumentError that names the field.
    """
    collection = shard.state.collection(query.collection)
    if query.WhichOneof("kind") != "nearest":
        raise InvalidArgumentError("no kind of query is set", field=f"{field}.nearest")
    using = query.using
    parameters = vector_of(collection, using, f"{field}.using")
    nearest = query.nearest
    vector: Float32Array | None = None
    encoding: common_pb2.VectorEncoding.ValueType = common_pb2.VECTOR_ENCODING_PACKED
    match nearest.WhichOneof("kind"):
        case "vector":
            place = f"{field}.nearest.vector"
            given = nearest.vector
            vector = query_vector(dense_values(given, place), parameters, place)
            if given.dense.values:
                encoding = common_pb2.VECTOR_ENCODING_VALUES
        case "id":
            if not nearest.id:
                raise InvalidArgumentError("is empty", field=f"{field}.nearest.id")
        case _:
            raise InvalidArgumentError("neither vector nor id is set", field=f"{field}.nearest")
    if not query.limit:
        raise InvalidArgumentError("0 hits wanted; at least 1", field=f"{field}.limit")
    if query.offset + query.limit > limits.HITS_MAX:
        raise LimitExceededError(
            f"offset {query.offset} + limit {query.limit} is more than {limits.HITS_MAX}", field=f"{field}.limit"
        )
    if query.params.ef > limits.EF_MAX:
        raise LimitExceededError(f"{query.params.ef} is more than {limits.EF_MAX}", field=f"{field}.params.ef")
    target_recall = query.params.target_recall
    if target_recall and not limits.TARGET_RECALL_MIN <= target_recall <= 1:
        raise InvalidArgumentError(
            f"{round(target_recall, 6)} is not between {limits.TARGET_RECALL_MIN} and 1",
            field=f"{field}.params.target_recall",
        )
    threshold = query.score_threshold if query.HasField("score_threshold") else None
    if threshold is not None and math.isnan(threshold):
        raise InvalidArgumentError("is NaN", field=f"{field}.score_threshold")
    return CompiledQuery(
        collection=collection,
        index=collection.vectors[using],
        using=using,
        vector=vector,
        nearest_id=nearest.id if vector is None else "",
        compiled=compile_filter(query.filter, f"{field}.filter") if query.HasField("filter") else None,
        limit=query.limit,
        offset=query.offset,
        score_threshold=threshold,
        ef=query.params.ef,
        target_recall=target_recall,
        exact=query.params.exact,
        selection=compile_selection(
            collection,
            query.with_payload if query.HasField("with_payload") else None,
            query.with_vectors if query.HasField("with_vectors") else None,
            request_encoding=encoding,
            field=f"{field}.",
        ),
        explain=query.explain,
    )
