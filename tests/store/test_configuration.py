"""Definitions as stored: also those written before there were storage, graph codes and recall targets."""

from __future__ import annotations

from vecmem.index.metric import Metric
from vecmem.index.parameters import GraphCode, HnswParameters, Storage, VectorParameters
from vecmem.store.configuration import complete_config, updated_config, vector_parameters
from vecmem.v1 import collections_pb2


def old_config() -> collections_pb2.CollectionConfig:
    """As an earlier version completed one."""
    config = collections_pb2.CollectionConfig()
    config.vector.dimension, config.vector.metric = 4, Metric.DOT.value
    config.vector.hnsw.m, config.vector.hnsw.ef_construction, config.vector.hnsw.ef = 16, 200, 64
    config.vectors["flat"].dimension, config.vectors["flat"].metric = 3, Metric.EUCLIDEAN.value
    config.vectors["flat"].flat.SetInParent()
    return config


def test_an_old_definition_keeps_its_ef_and_means_float32_and_the_default_target():
    parameters = vector_parameters(old_config())
    graph = HnswParameters(m=16, ef_construction=200, ef=64, graph=GraphCode.AUTOMATIC, target_recall=0.97)
    assert parameters == {
        "": VectorParameters(4, Metric.DOT, graph, Storage.FLOAT32),
        "flat": VectorParameters(3, Metric.EUCLIDEAN, None, Storage.FLOAT32),
    }


def test_an_update_of_an_old_definition_leaves_what_it_does_not_name():
    old = old_config()
    updated = updated_config(old, collections_pb2.UpdateCollectionRequest(description="words"))
    assert updated.description == "words"
    updated.description = ""
    assert updated == old


def test_a_completed_definition_is_complete_and_means_what_the_defaults_are():
    config = collections_pb2.CollectionConfig()
    config.vector.dimension, config.vector.metric = 4, Metric.COSINE.value
    completed = complete_config(config)
    assert complete_config(completed) == completed
    (parameters,) = vector_parameters(completed).values()
    assert parameters.hnsw is not None
    assert parameters.hnsw.ef == 0
    assert abs(parameters.hnsw.target_recall - HnswParameters().target_recall) < 1e-6
    assert not config.vector.HasField("hnsw"), "the one given is not changed"
