"""Collection definitions: validation, defaults, and the index parameters that they stand for."""

from __future__ import annotations

import re
from enum import IntEnum

from vecmem import limits
from vecmem.errors import InvalidArgumentError, InvalidIdError, LimitExceededError, UnknownVectorError
from vecmem.index.column import PayloadType
from vecmem.index.field_path import FieldPath
from vecmem.index.metric import Metric
from vecmem.index.parameters import GraphCode, HnswParameters, Storage, VectorParameters
from vecmem.v1 import collections_pb2

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_NAMES: dict[type[IntEnum], str] = {Metric: "metric", Storage: "storage", GraphCode: "code of a graph"}


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
        InvalidArgumentError: no vector, a bad dimension, metric, storage or parameter, a bad payload index.
        InvalidFilterError: a bad path of a payload index.
        InvalidIdError: a bad vector name.
        LimitExceededError: too many vectors or payload indexes, too long a description.
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
    _check_payload_indexes(config.payload_indexes, "config.payload_indexes")
    return complete


def updated_config(
    config: collections_pb2.CollectionConfig, request: collections_pb2.UpdateCollectionRequest
) -> collections_pb2.CollectionConfig:
    """A copy of `config` with the changes of a request.

    Raises:
        UnknownVectorError: it names a vector that the collection lacks.
        InvalidArgumentError: it gives graph parameters to a flat vector, or bad ones, an unknown storage, a bad payload index.
        InvalidFilterError: a bad path of a payload index.
        LimitExceededError: too long a description, too many payload indexes.
    """
    updated = collections_pb2.CollectionConfig()
    updated.CopyFrom(config)
    if request.HasField("description"):
        check_description(request.description, "description")
        updated.description = request.description
    graphs = {f"vectors_hnsw[{name!r}]": (name, hnsw) for name, hnsw in request.vectors_hnsw.items()}
    if request.HasField("hnsw"):
        graphs["hnsw"] = ("", request.hnsw)
    for field, (name, hnsw) in graphs.items():
        vector = _declared(updated, name, field)
        if vector.WhichOneof("index") == "flat":
            raise InvalidArgumentError(f"vector {name!r} has a flat index, which has no parameters", field=field)
        vector.hnsw.CopyFrom(hnsw)
        _complete_hnsw(vector.hnsw, field)
    storages = {f"vectors_storage[{name!r}]": (name, storage) for name, storage in request.vectors_storage.items()}
    if request.storage:
        storages["storage"] = ("", request.storage)
    for field, (name, storage) in storages.items():
        vector = _declared(updated, name, field)
        if storage:
            _check_known(Storage, storage, field)
            vector.storage = storage
    if request.HasField("payload_indexes"):
        _check_payload_indexes(request.payload_indexes, "payload_indexes")
        updated.payload_indexes.CopyFrom(request.payload_indexes)
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
            hnsw=None if vector.WhichOneof("index") == "flat" else _hnsw_parameters(vector.hnsw),
            # A definition of before there was a choice says nothing.
            storage=Storage(vector.storage or Storage.FLOAT32),
        )
        for name, vector in declared.items()
    }


def payload_types(config: collections_pb2.CollectionConfig) -> dict[FieldPath, PayloadType]:
    """The declared payload indexes of a complete definition: types by path."""
    return {
        FieldPath.parse(index.path, "payload_indexes"): PayloadType(index.type)
        for index in config.payload_indexes.indexes
    }


def _hnsw_parameters(hnsw: collections_pb2.HnswParams) -> HnswParameters:
    return HnswParameters(
        m=hnsw.m,
        ef_construction=hnsw.ef_construction,
        ef=hnsw.ef,
        graph=GraphCode(hnsw.graph),
        target_recall=hnsw.target_recall or limits.TARGET_RECALL_DEFAULT,
    )


def _declared(config: collections_pb2.CollectionConfig, name: str, field: str) -> collections_pb2.VectorParams:
    """A vector of a definition by its name. Raises UnknownVectorError where there is none."""
    if not (name in config.vectors if name else config.HasField("vector")):
        raise UnknownVectorError(f"the collection has no vector {name!r}", field=field)
    return config.vectors[name] if name else config.vector


def _complete_vector(vector: collections_pb2.VectorParams, field: str) -> None:
    _check_range(vector.dimension, 1, limits.DIMENSION_MAX, f"{field}.dimension")
    _check_known(Metric, vector.metric, f"{field}.metric")
    vector.storage = vector.storage or collections_pb2.STORAGE_FLOAT32
    _check_known(Storage, vector.storage, f"{field}.storage")
    if vector.WhichOneof("index") != "flat":
        _complete_hnsw(vector.hnsw, f"{field}.hnsw")


def _complete_hnsw(hnsw: collections_pb2.HnswParams, field: str) -> None:
    hnsw.m = hnsw.m or limits.M_DEFAULT
    hnsw.ef_construction = hnsw.ef_construction or limits.EF_CONSTRUCTION_DEFAULT
    hnsw.target_recall = hnsw.target_recall or limits.TARGET_RECALL_DEFAULT
    _check_range(hnsw.m, limits.M_MIN, limits.M_MAX, f"{field}.m")
    _check_range(
        hnsw.ef_construction, limits.EF_CONSTRUCTION_MIN, limits.EF_CONSTRUCTION_MAX, f"{field}.ef_construction"
    )
    if hnsw.ef:  # 0: by target_recall
        _check_range(hnsw.ef, limits.EF_MIN, limits.EF_MAX, f"{field}.ef")
    _check_known(GraphCode, hnsw.graph, f"{field}.graph")
    _check_range(hnsw.target_recall, limits.TARGET_RECALL_MIN, 1.0, f"{field}.target_recall")


def _check_payload_indexes(declared: collections_pb2.PayloadIndexes, field: str) -> None:
    if len(declared.indexes) > limits.PAYLOAD_INDEXES_MAX:
        raise LimitExceededError(
            f"{len(declared.indexes)} indexes, more than {limits.PAYLOAD_INDEXES_MAX}", field=f"{field}.indexes"
        )
    known: set[FieldPath] = set()
    for position, index in enumerate(declared.indexes):
        place = f"{field}.indexes[{position}]"
        path = FieldPath.parse(index.path, f"{place}.path")
        if path in known:
            raise InvalidArgumentError(f"{index.path!r} is declared twice", field=f"{place}.path")
        known.add(path)
        if index.type not in collections_pb2.PayloadType.values()[1:]:
            raise InvalidArgumentError(f"{index.type} is not a type of payload values", field=f"{place}.type")


def _check_known(kind: type[IntEnum], value: int, field: str) -> None:
    if value not in [known.value for known in kind]:
        raise InvalidArgumentError(f"{value} is not a {_NAMES[kind]}", field=field)


def _check_range(value: float, smallest: float, largest: float, field: str) -> None:
    if not smallest <= value <= largest:  # NaN is not either
        shown = round(value, 6)  # an element of float32 has no more digits
        raise InvalidArgumentError(f"{shown} is not between {smallest} and {largest}", field=field)
