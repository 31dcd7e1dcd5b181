"""All systems by name, vecmem first; those that pip can bring run without being asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench.engines.bare_faiss import Faiss
from bench.engines.bare_hnswlib import Hnswlib
from bench.engines.chroma_server import ChromaServer
from bench.engines.lance import Lance
from bench.engines.milvus import MilvusLite, MilvusServer
from bench.engines.pgvector import Pgvector
from bench.engines.qdrant_edge_store import QdrantEdge
from bench.engines.qdrant_server import QdrantServer
from bench.engines.redis_search import RedisSearch
from bench.engines.vecmem_server import Vecmem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bench.engines import Engine, Place

PEERS: Final[Mapping[str, Callable[[Place], Engine]]] = {
    "hnswlib": Hnswlib,
    "faiss": Faiss,
    "qdrant-edge": QdrantEdge,
    "lancedb": Lance,
    "milvus-lite": MilvusLite,
    "chroma": ChromaServer,
    "qdrant": QdrantServer,
    "redis": RedisSearch,
    "milvus": MilvusServer,
    "pgvector": Pgvector,
}
"""Everything that vecmem is measured beside."""

SYSTEMS: Final[Mapping[str, Callable[[Place], Engine]]] = {"vecmem": Vecmem, **PEERS}

BY_URL: Final = ("qdrant", "redis", "milvus", "pgvector")
"""Those that need an address."""
