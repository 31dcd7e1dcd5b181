# Generated from _async/collections.py by scripts/generate_sync.py: change that one and run the script.
"""Methods on collections and on the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vecmem_client import _methods, _replies, _requests
from vecmem_client._sync.base import Base

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vecmem_client._types import (
        CheckpointInfo,
        Collection,
        CollectionStats,
        DeleteResult,
        Demand,
        Hnsw,
        PayloadType,
        PayloadTypeName,
        ServerInfo,
        Storage,
        StorageName,
        VectorConfig,
    )


class CollectionMethods(Base):
    """CollectionService and AdminService."""

    def create_collection(
        self,
        name: str,
        vector: VectorConfig | None = None,
        *,
        vectors: Mapping[str, VectorConfig] | None = None,
        payload_indexes: Mapping[str, PayloadType | PayloadTypeName] | None = None,
        description: str = "",
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Collection:
        """Make an empty collection with a default vector, named vectors, or both.

        Names have 1 to 128 bytes of [A-Za-z0-9_.-]. `payload_indexes` maps payload paths (at most 64) that filters
        will ask for to what is there: "keyword", "integer", "float", "bool" or "time". Filters may ask for other
        paths too; their indexes are built at the first use.
        Raises CollectionExistsError, ValueError without any vector and for unknown names.
        """
        request = _requests.create_collection(
            name, vector, vectors, payload_indexes, description, _requests.new_request_id(request_id)
        )
        reply = self._call(_methods.CREATE_COLLECTION, request, timeout_seconds, retriable=request_id != "")
        return _replies.collection(reply.collection)

    def get_collection(
        self, name: str, *, min_position: Demand = None, timeout_seconds: float | None = None
    ) -> Collection:
        """Return the definition of a collection. Raises CollectionNotFoundError."""
        request = _requests.get_collection(name, min_position)
        reply = self._call(_methods.GET_COLLECTION, request, timeout_seconds)
        return _replies.collection(reply.collection)

    def list_collections(
        self, *, page_size: int = 100, min_position: Demand = None, timeout_seconds: float | None = None
    ) -> Iterator[Collection]:
        """Walk over the collections in order of their names, fetching pages as needed; the timeout is a page's."""
        request = _requests.list_collections(page_size, min_position)
        while True:
            reply = self._call(_methods.LIST_COLLECTIONS, request, timeout_seconds)
            for collection in reply.collections:
                yield _replies.collection(collection)
            if not reply.next_page_token:
                return
            request.page_token = reply.next_page_token

    def update_collection(
        self,
        name: str,
        *,
        description: str | None = None,
        hnsw: Hnsw | None = None,
        vectors_hnsw: Mapping[str, Hnsw] | None = None,
        storage: Storage | StorageName | None = None,
        vectors_storage: Mapping[str, Storage | StorageName] | None = None,
        payload_indexes: Mapping[str, PayloadType | PayloadTypeName] | None = None,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Collection:
        """Change the description, graph parameters and storage of the default vector or of named ones, payload indexes.

        What is None stays. Changed graph parameters take effect by a rebuild in the background, all of an `Hnsw`
        together: its zeros are the defaults. A changed storage has been made when this returns; elements once rounded
        to float16 stay rounded. `payload_indexes` are all there are from now on.
        Raises CollectionNotFoundError, UnknownVectorError, InvalidArgumentError where a stored vector has elements
        beyond the range of float16.
        """
        request = _requests.update_collection(
            name,
            description,
            hnsw,
            vectors_hnsw,
            storage,
            vectors_storage,
            payload_indexes,
            _requests.new_request_id(request_id),
        )
        reply = self._call(_methods.UPDATE_COLLECTION, request, timeout_seconds, retriable=request_id != "")
        return _replies.collection(reply.collection)

    def delete_collection(
        self, name: str, *, request_id: str | None = None, timeout_seconds: float | None = None
    ) -> DeleteResult:
        """Remove a collection with all its points. Raises CollectionNotFoundError."""
        request = _requests.delete_collection(name, _requests.new_request_id(request_id))
        reply = self._call(_methods.DELETE_COLLECTION, request, timeout_seconds, retriable=request_id != "")
        return _replies.deleted_collection(reply)

    def collection_stats(
        self, name: str, *, min_position: Demand = None, timeout_seconds: float | None = None
    ) -> CollectionStats:
        """Count points, index rows and bytes. Raises CollectionNotFoundError."""
        request = _requests.collection_stats(name, min_position)
        reply = self._call(_methods.COLLECTION_STATS, request, timeout_seconds)
        return _replies.collection_stats(reply.stats)

    def server_info(self, *, timeout_seconds: float | None = None) -> ServerInfo:
        """Tell what the server is and how it came up."""
        return _replies.server_info(self._call(_methods.SERVER_INFO, _requests.server_info(), timeout_seconds))

    def hand_over(self, *, timeout_seconds: float | None = None) -> None:
        """Have the node that leads its cluster give that up, so that another one takes over; returns when it takes no more writes."""
        self._call(_methods.HAND_OVER, _requests.hand_over(), timeout_seconds)

    def create_checkpoint(self, *, timeout_seconds: float | None = None) -> CheckpointInfo:
        """Write a checkpoint now and return when it is published; give large stores time. Raises CheckpointError."""
        request = _requests.create_checkpoint()
        return _replies.checkpoint(self._call(_methods.CREATE_CHECKPOINT, request, timeout_seconds))
