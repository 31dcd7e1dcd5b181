"""What the two halves of the LangChain vector store share: settings, clients, and documents to and from points."""

from __future__ import annotations

import asyncio
import math
import uuid
import weakref
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from vecmem_client._async.client import AsyncClient
from vecmem_client._langchain_filters import MetadataFilter, build_filter
from vecmem_client._sync.client import Client
from vecmem_client._types import Metric, Point, VectorConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from langchain_core.embeddings import Embeddings

    from vecmem_client._filters import FilterLike
    from vecmem_client._types import Hit, StoredPoint

POINTS_PER_REQUEST: Final = 1_000
IDS_PER_REQUEST: Final = 10_000


class VectorStoreBase(VectorStore):
    """Settings and clients; see `VecmemVectorStore`."""

    def __init__(
        self,
        embedding: Embeddings,
        *,
        collection: str = "langchain",
        target: str = "127.0.0.1:7700",
        client: Client | None = None,
        async_client: AsyncClient | None = None,
        metric: Metric | str = Metric.COSINE,
        text_key: str = "text",
        metadata_key: str = "metadata",
        relevance_score_fn: Callable[[float], float] | None = None,
    ) -> None:
        self._embedding = embedding
        self._collection = collection
        self._target = target
        self._given_client = client
        self._given_async_client = async_client
        self._metric = Metric(metric)
        self._text_key = text_key
        self._metadata_key = metadata_key
        self._relevance_score_fn = relevance_score_fn
        self._own_client: Client | None = None
        self._own_async_clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncClient]
        self._own_async_clients = weakref.WeakKeyDictionary()

    @property
    def embeddings(self) -> Embeddings:
        """What turns texts into vectors."""
        return self._embedding

    @property
    def client(self) -> Client:
        """The client in use."""
        if self._given_client is not None:
            return self._given_client
        if self._own_client is None:
            self._own_client = Client(self._target)
        return self._own_client

    @property
    def async_client(self) -> AsyncClient:
        """The asynchronous client of the running event loop."""
        if self._given_async_client is not None:
            return self._given_async_client
        loop = asyncio.get_running_loop()
        client = self._own_async_clients.get(loop)
        if client is None:
            client = self._own_async_clients[loop] = AsyncClient(self._target)
        return client

    def close(self) -> None:
        """Close the client that the store made, if it did. In asynchronous use call `aclose`."""
        client, self._own_client = self._own_client, None
        if client is not None:
            client.close()

    async def aclose(self) -> None:
        """Close the clients that the store made for this event loop and for synchronous use."""
        self.close()
        client = self._own_async_clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """Return the map from scores to [0, 1], 1 being nearest."""
        return self._relevance_score_fn or _RELEVANCE[self._metric]

    def _vector_config(self, vectors: Sequence[Sequence[float]]) -> VectorConfig:
        return VectorConfig(len(vectors[0]), self._metric)

    def _filter(self, source: MetadataFilter | None) -> FilterLike | None:
        return build_filter(source, f"{self._metadata_key}." if self._metadata_key else "")

    def _points(
        self,
        texts: Sequence[str],
        vectors: Sequence[Sequence[float]],
        metadatas: Sequence[Mapping[str, Any]] | None,
        ids: Sequence[str | None] | None,
    ) -> list[Point]:
        if metadatas is None:
            metadatas = [{}] * len(texts)
        if ids is None:
            ids = [None] * len(texts)
        for name, column in (("metadatas", metadatas), ("ids", ids), ("embeddings", vectors)):
            if len(column) != len(texts):
                raise ValueError(f"there are {len(column)} {name} for {len(texts)} texts")
        return [
            Point(point_id or str(uuid.uuid4()), vector, self._payload(text, metadata))
            for point_id, vector, text, metadata in zip(ids, vectors, texts, metadatas, strict=True)
        ]

    def _payload(self, text: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
        if self._metadata_key:
            return {self._text_key: text, self._metadata_key: dict(metadata)}
        if self._text_key in metadata:
            raise ValueError(f"the metadata have a key {self._text_key!r}, which is the text's")
        return {**metadata, self._text_key: text}

    def _document(self, point: StoredPoint) -> Document:
        payload = dict(point.payload)
        text = payload.pop(self._text_key, "")
        metadata = payload.get(self._metadata_key, {}) if self._metadata_key else payload
        return Document(id=point.id, page_content=text, metadata=metadata)


def diversify(vector: Sequence[float], hits: Sequence[Hit], k: int, lambda_mult: float) -> list[Hit]:
    """Return `k` hits by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998); they carry vectors."""
    if not hits:
        return []
    candidates: list[Any] = [hit.vector for hit in hits]  # arrays serve as well as the lists that it declares
    chosen = maximal_marginal_relevance(np.asarray(vector, dtype=np.float32), candidates, lambda_mult=lambda_mult, k=k)
    return [hits[index] for index in chosen]


def cut(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Cut a sequence into pieces that fit a request."""
    return (values[start : start + size] for start in range(0, len(values), size))


def refuse(unknown: Iterable[str]) -> None:
    """Raise TypeError for arguments that nothing here would heed: ignoring them would hide a mistake."""
    names = ", ".join(unknown)
    if names:
        raise TypeError(f"unexpected arguments: {names}")


def _cosine_relevance(score: float) -> float:
    return min(1.0, max(0.0, (score + 1.0) / 2.0))


def _dot_relevance(score: float) -> float:
    """Logistic, written so that exp cannot overflow."""
    return 0.5 * (1.0 + math.tanh(score / 2.0))


def _euclidean_relevance(score: float) -> float:
    return 1.0 / (1.0 + score)


_RELEVANCE: Mapping[Metric, Callable[[float], float]] = {
    Metric.COSINE: _cosine_relevance,
    Metric.DOT: _dot_relevance,
    Metric.EUCLIDEAN: _euclidean_relevance,
}
