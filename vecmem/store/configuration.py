"""Collection definitions: validation, defaults, and the index parameters that they stand for."""

from __future__ import annotations

import re

from vecmem import limits
from vecmem.errors import InvalidArgumentError, InvalidIdError, LimitExceededError, UnknownVectorError
from vecmem.index.metric import Metric
from vecmem.index.parameters import HnswParameters, VectorParameters
from vecmem.v1 import collections_pb2

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


def check_collection_name(name: str, field: str = "name") -> None:
    """Raises InvalidIdError unless `name` may name a collection."""
    if len(name) > limits.COLLECTION_NAME_BYTES_MAX or not _NAME.fullmatch(name):
        raise InvalidIdError(
            f"{name[:200]!r} is not a collection name: 1 to {limits.COLLECTION_NAME_BYTES_MAX} of [A-Za-z0-9_.-], "
            "not beginning with a dot",
            field=field,
        )


def complete_config(config: collections_pb2.CollectionConfig) -> collections_pb2.CollectionConfig:
    """A checked copy of a definition with its defaults filled in.

    Raises:
        InvalidArgumentError: no vector, a bad dimension, metric or parameter.
        InvalidIdError: a bad vector name.
        LimitExceededError: too many vectors, too long a description.
    """
    complete = collections_pb2.CollectionConfig()
    complete.CopyFrom(config)
    check_description(config.description, "config.description")
    if not config.HasField("vector") and not config.vectors:
        raise InvalidArgumentError("declares no vector", field="config")
    if len(config.vectors) + config.HasField("vector") > limits.VECTORS_PER_COLLECTION_MAX:
        raise LimitExceededError(
            f"{len(config.vectors)} vectors, more than {limits.VECTORS_PER_COLLECTION_MAX}", field="config.vectors"
        )
    if complete.HasField("vector"):
        _complete_vector(complete.vector, "config.vector")
    for name, vector in complete.vectors.items():
        if len(name) > limits.VECTOR_NAME_BYTES_MAX or not _NAME.fullmatch(name):
            raise InvalidIdError(
                f"{name[:200]!r} is not a vector name: 1 to {limits.VECTOR_NAME_BYTES_MAX} of [A-Za-z0-9_.-]",
                field="config.vectors",
            )
        _complete_vector(vector, f"config.vectors[{name!r}]")
    return complete


def updated_config(
    config: collections_pb2.CollectionConfig, request: collections_pb2.UpdateCollectionRequest
) -> collections_pb2.CollectionConfig:
    """A copy of `config` with the changes of a request.

    Raises:
        UnknownVectorError: it names a vector that the collection lacks.
        InvalidArgumentError: it gives graph parameters to a flat vector, or bad ones.
        LimitExceededError: too long a description.
    """
    updated = collections_pb2.CollectionConfig()
    updated.CopyFrom(config)
    if request.HasField("description"):
        check_description(request.description, "description")
        updated.description = request.description
    changes = {f"vectors_hnsw[{name!r}]": (name, hnsw) for name, hnsw in request.vectors_hnsw.items()}
    if request.HasField("hnsw"):
        changes["hnsw"] = ("", request.hnsw)
    for field, (name, hnsw) in changes.items():
        if name not in vector_parameters(config):
            raise UnknownVectorError(f"the collection has no vector {name!r}", field=field)
        vector = updated.vectors[name] if name else updated.vector
        if vector.WhichOneof("index") == "flat":
            raise InvalidArgumentError(f"vector {name!r} has a flat index, which has no parameters", field=field)
        vector.hnsw.CopyFrom(hnsw)
        _complete_hnsw(vector.hnsw, field)
    return updated


def check_description(description: str, field: str) -> None:
    """Raises LimitExceededError when a description is too long."""
    size_bytes = len(description.encode())
    if size_bytes > limits.DESCRIPTION_BYTES_MAX:
        raise LimitExceededError(f"{size_bytes} bytes, more than {limits.DESCRIPTION_BYTES_MAX}", field=field)


def vector_parameters(config: collections_pb2.CollectionConfig) -> dict[str, VectorParameters]:
    """Index parameters by vector name, of a complete definition; the default vector's name is empty."""
    declared = {"": config.vector} if config.HasField("vector") else {}
    declared.update(config.vectors)
    return {
        name: VectorParameters(
            dimension=vector.dimension,
            metric=Metric(vector.metric),
            hnsw=None
            if vector.WhichOneof("index") == "flat"
            else HnswParameters(m=vector.hnsw.m, ef_construction=vector.hnsw.ef_construction, ef=vector.hnsw.ef),
        )
        for name, vector in declared.items()
    }


def _complete_vector(vector: collections_pb2.VectorParams, field: str) -> None:
    _check_range(vector.dimension, 1, limits.DIMENSION_MAX, f"{field}.dimension")
    if vector.metric not in [metric.value for metric in Metric]:
        raise InvalidArgumentError(f"{vector.metric} is not a metric", field=f"{field}.metric")
    if vector.WhichOneof("index") != "flat":
        _complete_hnsw(vector.hnsw, f"{field}.hnsw")


def _complete_hnsw(hnsw: collections_pb2.HnswParams, field: str) -> None:
    hnsw.m = hnsw.m or limits.M_DEFAULT
    hnsw.ef_construction = hnsw.ef_construction or limits.EF_CONSTRUCTION_DEFAULT
    hnsw.ef = hnsw.ef or limits.EF_DEFAULT
    _check_range(hnsw.m, limits.M_MIN, limits.M_MAX, f"{field}.m")
    _check_range(
        hnsw.ef_construction, limits.EF_CONSTRUCTION_MIN, limits.EF_CONSTRUCTION_MAX, f"{field}.ef_construction"
    )
    _check_range(hnsw.ef, limits.EF_MIN, limits.EF_MAX, f"{field}.ef")


def _check_range(value: int, smallest: int, largest: int, field: str) -> None:
    if not smallest <= value <= largest:
        raise InvalidArgumentError(f"{value} is not between {smallest} and {largest}", field=field)
