"""Collection definitions of a cluster: agreed on by compare-and-set, and then made so at every shard.

A change is first noted with what is to become of the collection, then made at each shard under one request id, and then noted as done.
Whoever finds a change under way, because whoever began it is slow or has died, finishes it: each step may be done by several at once.
A change that a shard refuses is taken back at the others, so that it fails as a whole.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final, Protocol

from vecmem.cluster.coordination import change
from vecmem.cluster.v1 import definition_pb2
from vecmem.cluster.v1.definition_pb2 import CollectionDefinition, DefinitionRequest
from vecmem.errors import (
    CollectionExistsError,
    CollectionNotFoundError,
    DeadlineExceededError,
    RequestIdReusedError,
    TopologyConflictError,
    UnavailableError,
    VecmemError,
)
from vecmem.store import configuration
from vecmem.v1 import collections_pb2

if TYPE_CHECKING:
    from vecmem.cluster.coordination import Coordination, Entry

PREFIX: Final = "collection."
REQUESTS_KEY: Final = "definition-requests"
REQUESTS_REMEMBERED: Final = 256
ATTEMPTS_MAX: Final = 50
READY: Final = definition_pb2.DEFINITION_STATE_READY
CREATING: Final = definition_pb2.DEFINITION_STATE_CREATING
UPDATING: Final = definition_pb2.DEFINITION_STATE_UPDATING
DELETING: Final = definition_pb2.DEFINITION_STATE_DELETING
EXISTING: Final = (READY, UPDATING)


class Shards(Protocol):
    """Makes changes at all shards. Methods raise the first failure once all shards have answered, and are safe to repeat under one id."""

    async def create(self, name: str, config: collections_pb2.CollectionConfig, change_id: str) -> None:
        """Make a collection at each shard that does not have it."""

    async def update(self, request: collections_pb2.UpdateCollectionRequest, change_id: str) -> None:
        """Change it at each shard."""

    async def delete(self, name: str, change_id: str) -> int:
        """Delete it at each shard that has it; returns how many points that were."""


class Definitions:
    """Of one cluster. A request with an id that was done before changes nothing."""

    def __init__(self, coordination: Coordination, shards: Shards) -> None:
        self._coordination = coordination
        self._shards = shards

    async def create(
        self, name: str, config: collections_pb2.CollectionConfig, request_id: str, fingerprint: int
    ) -> None:
        """Make a collection.

        Raises CollectionExistsError, CollectionNotFoundError where a repeat is about one that was deleted since, RequestIdReusedError,
        UnavailableError, and what a shard refuses it for.
        """
        configuration.check_collection_name(name)
        uid = _new_id()
        wanted = CollectionDefinition(
            name=name, state=CREATING, config=configuration.complete_config(config), change_id=_new_id(), uid=uid
        )
        if request_id:
            wanted.request.CopyFrom(DefinitionRequest(request_id=request_id, fingerprint=fingerprint, uid=uid))
        for _ in range(ATTEMPTS_MAX):
            found = await self._settled(name)
            done = await self._done(request_id, fingerprint)
            if done is not None:
                _check_same(done, found, name)
                return
            if found is not None:
                raise CollectionExistsError(f"collection {name!r} exists")
            try:
                await self._coordination.put(_key(name), wanted.SerializeToString(), 0)
            except TopologyConflictError:
                continue
            await self._finish(name)
            return
        raise TopologyConflictError(f"others have changed collection {name!r} again and again meanwhile")

    async def update(self, request: collections_pb2.UpdateCollectionRequest, request_id: str, fingerprint: int) -> None:
        """Change a collection.

        Raises CollectionNotFoundError, RequestIdReusedError, UnavailableError, and what is wrong with the change.
        """
        name = request.name
        for _ in range(ATTEMPTS_MAX):
            found = await self._settled(name)
            done = await self._done(request_id, fingerprint)
            if done is not None:
                _check_same(done, found, name)
                return
            definition, entry = _existing(found, name)
            wanted = CollectionDefinition()
            wanted.CopyFrom(definition)
            wanted.previous.CopyFrom(definition.config)
            wanted.config.CopyFrom(configuration.updated_config(definition.config, request))
            wanted.state, wanted.change_id = UPDATING, _new_id()
            if request_id:
                wanted.request.CopyFrom(
                    DefinitionRequest(request_id=request_id, fingerprint=fingerprint, uid=definition.uid)
                )
            try:
                await self._coordination.put(_key(name), wanted.SerializeToString(), entry.revision)
            except TopologyConflictError:
                continue
            await self._finish(name)
            return
        raise TopologyConflictError(f"others have changed collection {name!r} again and again meanwhile")

    async def delete(self, name: str, request_id: str, fingerprint: int) -> int:
        """Delete a collection; returns how many points that were.

        Raises CollectionNotFoundError, RequestIdReusedError, UnavailableError.
        """
        for _ in range(ATTEMPTS_MAX):
            found = await self._settled(name)
            done = await self._done(request_id, fingerprint)
            if done is not None:
                return done.deleted_point_count
            definition, entry = _existing(found, name)
            definition.state, definition.change_id = DELETING, _new_id()
            if request_id:
                definition.request.CopyFrom(
                    DefinitionRequest(request_id=request_id, fingerprint=fingerprint, uid=definition.uid)
                )
            try:
                await self._coordination.put(_key(name), definition.SerializeToString(), entry.revision)
            except TopologyConflictError:
                continue
            return await self._finish(name)
        raise TopologyConflictError(f"others have changed collection {name!r} again and again meanwhile")

    async def all(self) -> dict[str, CollectionDefinition]:
        """All collections by their names, those included that are being made or deleted."""
        found = {}
        for key in await self._coordination.keys(PREFIX):
            entry = await self._coordination.get(key)
            if entry is not None:
                definition = CollectionDefinition.FromString(entry.value)
                found[definition.name] = definition
        return found

    async def is_ready(self, name: str) -> bool:
        """Whether there is a collection, and nobody is about to delete it."""
        found = await self._find(name)
        return found is not None and found[0].state in EXISTING

    async def under_way(self) -> dict[str, str]:
        """Changes that are being made: change ids by names."""
        return {
            name: definition.change_id for name, definition in (await self.all()).items() if definition.state != READY
        }

    async def finish(self, name: str) -> None:
        """Finish a change that is under way, whoever began it."""
        await self._settled(name)

    async def _settled(self, name: str) -> tuple[CollectionDefinition, Entry] | None:
        """A definition once no change of it is under way; None: there is no such collection."""
        for _ in range(ATTEMPTS_MAX):
            found = await self._find(name)
            if found is None or found[0].state == READY:
                return found
            try:
                await self._finish(name)
            except (UnavailableError, DeadlineExceededError):
                raise
            except VecmemError:
                continue  # it was refused, and taken back: that is for its caller
        raise TopologyConflictError(f"others are changing collection {name!r} again and again")

    async def _finish(self, name: str) -> int:
        """Make the change that is under way. Raises what a shard refuses it for, once it is taken back."""
        found = await self._find(name)
        if found is None or found[0].state == READY:
            return 0  # somebody else has done it
        definition, entry = found
        if definition.state == DELETING:
            count = await self._shards.delete(name, definition.change_id)
            await self._remember(definition, count)
            await self._note(None, name, entry)
            return count
        try:
            if definition.state == CREATING:
                await self._shards.create(name, definition.config, definition.change_id)
            else:
                await self._shards.update(update_to(name, definition.previous, definition.config), definition.change_id)
        except (UnavailableError, DeadlineExceededError):
            raise  # whoever comes next finishes it
        except VecmemError:
            await self._take_back(definition, entry)
            raise
        await self._remember(definition, 0)
        definition.state = READY
        definition.ClearField("previous")
        definition.ClearField("request")
        await self._note(definition, name, entry)
        return 0

    async def _take_back(self, definition: CollectionDefinition, entry: Entry) -> None:
        if definition.state == CREATING:
            definition.state, definition.change_id = DELETING, _new_id()
        else:
            definition.state, definition.change_id = UPDATING, _new_id()
            back = CollectionDefinition()
            back.CopyFrom(definition)
            definition.config.CopyFrom(back.previous)
            definition.previous.CopyFrom(back.config)
        definition.ClearField("request")
        try:
            await self._coordination.put(_key(definition.name), definition.SerializeToString(), entry.revision)
        except TopologyConflictError:
            return  # somebody else has finished it or taken it back
        await self._finish(definition.name)

    async def _done(self, request_id: str, fingerprint: int) -> DefinitionRequest | None:
        """What a request did when it was made before. Raises RequestIdReusedError for another one under the same id."""
        entry = await self._coordination.get(REQUESTS_KEY) if request_id else None
        for request in definition_pb2.DefinitionRequests.FromString(entry.value).requests if entry is not None else ():
            if request.request_id == request_id:
                if request.fingerprint != fingerprint:
                    raise RequestIdReusedError(
                        f"request_id {request_id!r} was used by another request", field="write.request_id"
                    )
                return request
        return None

    async def _remember(self, definition: CollectionDefinition, deleted_point_count: int) -> None:
        """Note that what a client asked for is done, before anybody sees that no change is under way any more."""
        if not definition.HasField("request"):
            return

        def changed(value: bytes | None) -> bytes | None:
            known = definition_pb2.DefinitionRequests.FromString(value or b"")
            if any(request.request_id == definition.request.request_id for request in known.requests):
                return None
            request = known.requests.add()
            request.CopyFrom(definition.request)
            request.deleted_point_count = deleted_point_count
            del known.requests[:-REQUESTS_REMEMBERED]
            return known.SerializeToString()

        await change(self._coordination, REQUESTS_KEY, changed)

    async def _note(self, definition: CollectionDefinition | None, name: str, entry: Entry) -> None:
        try:
            if definition is None:
                await self._coordination.delete(_key(name), entry.revision)
            else:
                await self._coordination.put(_key(name), definition.SerializeToString(), entry.revision)
        except TopologyConflictError:
            pass  # somebody else has finished it as well

    async def _find(self, name: str) -> tuple[CollectionDefinition, Entry] | None:
        entry = await self._coordination.get(_key(name))
        return None if entry is None else (CollectionDefinition.FromString(entry.value), entry)


def update_to(
    name: str, old: collections_pb2.CollectionConfig, new: collections_pb2.CollectionConfig
) -> collections_pb2.UpdateCollectionRequest:
    """The request that makes one definition another one: only what differs."""
    request = collections_pb2.UpdateCollectionRequest(name=name)
    if old.description != new.description:
        request.description = new.description
    if old.payload_indexes != new.payload_indexes:
        request.payload_indexes.CopyFrom(new.payload_indexes)
    if new.HasField("vector") and old.vector != new.vector:
        if old.vector.hnsw != new.vector.hnsw:
            request.hnsw.CopyFrom(new.vector.hnsw)
        if old.vector.storage != new.vector.storage:
            request.storage = new.vector.storage
    for vector_name, vector in new.vectors.items():
        if old.vectors[vector_name].hnsw != vector.hnsw:
            request.vectors_hnsw[vector_name].CopyFrom(vector.hnsw)
        if old.vectors[vector_name].storage != vector.storage:
            request.vectors_storage[vector_name] = vector.storage
    return request


def _check_same(done: DefinitionRequest, found: tuple[CollectionDefinition, Entry] | None, name: str) -> None:
    if found is None or found[0].uid != done.uid:
        raise CollectionNotFoundError(f"collection {name!r} has been deleted since")


def _existing(found: tuple[CollectionDefinition, Entry] | None, name: str) -> tuple[CollectionDefinition, Entry]:
    if found is None:
        raise CollectionNotFoundError(f"no collection {name[:200]!r}")
    return found


def _key(name: str) -> str:
    return PREFIX + name.encode().hex()


def _new_id() -> str:
    return f"definition-{uuid.uuid4().hex}"
