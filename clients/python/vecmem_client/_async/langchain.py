"""The asynchronous half of the LangChain vector store."""

# `filter` is what LangChain calls this argument.
# ruff: noqa: A002

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Self

from vecmem_client._errors import CollectionExistsError, CollectionNotFoundError
from vecmem_client._filters import all_of
from vecmem_client._langchain_base import (
    IDS_PER_REQUEST,
    POINTS_PER_REQUEST,
    VectorStoreBase,
    cut,
    diversify,
    refuse,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings

    from vecmem_client._langchain_filters import MetadataFilter
    from vecmem_client._types import Hit, Point


class AsyncStoreMethods(VectorStoreBase):
    """Methods over `AsyncClient`."""

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Return a store with these texts in it; `kwargs` are the constructor's."""
        store = cls(embedding, **kwargs)
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed texts and write them, replacing what has the same id; return the ids, fresh ones where none was given.

        The collection is created if it is missing. Raises ValueError when `metadatas` or `ids` do not match the
        texts in number, TypeError for further arguments.
        """
        refuse(kwargs)
        texts = list(texts)
        if not texts:
            return []
        vectors = await self._embedding.aembed_documents(texts)
        points = self._points(texts, vectors, metadatas, ids)
        for batch in cut(points, POINTS_PER_REQUEST):
            try:
                await self.async_client.upsert(self._collection, batch)
            except CollectionNotFoundError:
                await self._acreate(batch, vectors)
        return [point.id for point in points]

    async def _acreate(self, batch: Sequence[Point], vectors: Sequence[Sequence[float]]) -> None:
        with contextlib.suppress(CollectionExistsError):  # somebody else was faster, which is as good
            await self.async_client.create_collection(self._collection, self._vector_config(vectors))
        await self.async_client.upsert(self._collection, batch)

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Remove documents by id, or all for None. Ids that do not exist are no error. Returns True."""
        refuse(kwargs)
        with contextlib.suppress(CollectionNotFoundError):  # then there is nothing to remove
            if ids is None:
                await self.async_client.delete(self._collection, filter=all_of())
            else:
                for batch in cut(ids, IDS_PER_REQUEST):
                    await self.async_client.delete(self._collection, ids=batch)
        return True

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents that exist, in the order of `ids`."""
        documents: list[Document] = []
        with contextlib.suppress(CollectionNotFoundError):  # then there are none
            for batch in cut(ids, IDS_PER_REQUEST):
                points = await self.async_client.get(self._collection, batch)
                documents.extend(self._document(point) for point in points)
        return documents

    async def asimilarity_search(
        self, query: str, k: int = 4, filter: MetadataFilter | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the `k` documents nearest to a text, best first; `ef`, `target_recall` and `exact` are as in `Client.query`."""
        return await self.asimilarity_search_by_vector(await self._embedding.aembed_query(query), k, filter, **kwargs)

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, filter: MetadataFilter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return the `k` documents nearest to a text with what the metric says about each, best first."""
        hits = await self._anearest(await self._embedding.aembed_query(query), k, filter, **kwargs)
        return [(self._document(hit), hit.score) for hit in hits]

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: MetadataFilter | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the `k` documents nearest to a vector, best first."""
        return [self._document(hit) for hit in await self._anearest(embedding, k, filter, **kwargs)]

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: MetadataFilter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return `k` documents that are near to a text and unlike each other, out of the nearest `fetch_k`.

        `lambda_mult` is 1 for nearness alone and 0 for diversity alone.
        """
        vector = await self._embedding.aembed_query(query)
        return await self.amax_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, filter, **kwargs)

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: MetadataFilter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return `k` documents that are near to a vector and unlike each other, out of the nearest `fetch_k`."""
        hits = await self._anearest(embedding, max(k, fetch_k), filter, with_vectors=True, **kwargs)
        return [self._document(hit) for hit in diversify(embedding, hits, k, lambda_mult)]

    async def _anearest(
        self,
        vector: Sequence[float],
        k: int,
        filter: MetadataFilter | None,
        *,
        ef: int = 0,
        target_recall: float = 0.0,
        exact: bool = False,
        with_vectors: bool = False,
        **kwargs: Any,
    ) -> list[Hit]:
        refuse(kwargs)
        try:
            return await self.async_client.query(
                self._collection,
                vector,
                limit=k,
                filter=self._filter(filter),
                ef=ef,
                target_recall=target_recall,
                exact=exact,
                with_vectors=[""] if with_vectors else False,
            )
        except CollectionNotFoundError:
            return []  # the first write creates it
