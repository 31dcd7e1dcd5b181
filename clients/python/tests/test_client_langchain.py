"""The LangChain vector store: LangChain's own suite, unchanged, and what it leaves open, against a real server."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from vecmem_client import Client, Metric, Point, VectorConfig, field
from vecmem_client._langchain_filters import build_filter
from vecmem_client.langchain import VecmemVectorStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class TestLangChainSuite(VectorStoreIntegrationTests):
    """The suite of langchain-tests as it is."""

    @pytest.fixture
    async def vectorstore(self, server, collection_name) -> AsyncIterator[VecmemVectorStore]:
        store = VecmemVectorStore(self.get_embeddings(), collection=collection_name, target=server.address)
        yield store
        store.delete()
        await store.aclose()


class Compass(Embeddings):
    """Places words on a circle: "0" points east, "90" north, and so on; whatever follows a space is ignored."""

    def embed_query(self, text):
        import math

        degrees = math.radians(float(text.split()[0]))
        return [math.cos(degrees), math.sin(degrees)]

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]

    async def aembed_query(self, text):
        return self.embed_query(text)

    async def aembed_documents(self, texts):
        return self.embed_documents(texts)


class Face:
    """The store's methods under their synchronous names, sync or async, all awaitable."""

    def __init__(self, store, *, use_async):
        self.store = store
        self.use_async = use_async

    def __getattr__(self, name):
        async def call(*args, **kwargs):
            if self.use_async:
                return await getattr(self.store, f"a{name}")(*args, **kwargs)
            return await asyncio.to_thread(getattr(self.store, name), *args, **kwargs)

        return call


@pytest.fixture(params=["sync", "async"])
async def store(request, server, collection_name):
    store = VecmemVectorStore(Compass(), collection=collection_name, target=server.address)
    yield Face(store, use_async=request.param == "async")
    await store.aclose()


WORDS = {
    "east": ("0 east", {"kind": "cardinal", "degrees": 0, "deep": {"letter": "E"}, "seen": "2026-01-01T00:00:00Z"}),
    "north-east": ("45 north-east", {"kind": "between", "degrees": 45, "tags": ["ne", "diagonal"]}),
    "north": ("90 north", {"kind": "cardinal", "degrees": 90, "deep": {"letter": "N"}, "seen": "2026-06-01T00:00:00Z"}),
    "west": ("180 west", {"kind": "cardinal", "degrees": 180, "nothing": None, "a.b": True}),
    "south": ("270 south", {"kind": "cardinal", "degrees": 270.5}),
}


async def fill(store):
    texts, metadatas = zip(*WORDS.values(), strict=True)
    assert await store.add_texts(texts, list(metadatas), ids=list(WORDS)) == list(WORDS)


FILTERS = [
    ({"kind": "between"}, {"north-east"}),
    ({"kind": "cardinal", "degrees": {"$lt": 100}}, {"east", "north"}),
    ({"degrees": {"$gte": 45, "$lte": 90}}, {"north-east", "north"}),
    ({"degrees": {"$gt": 180}}, {"south"}),
    ({"degrees": 270.5}, {"south"}),
    ({"degrees": {"$eq": 90}}, {"north"}),
    ({"degrees": {"$ne": 90}}, {"east", "north-east", "west", "south"}),
    ({"degrees": {"$in": [0, 270.5, "90"]}}, {"east", "south"}),
    ({"degrees": {"$nin": [0, 45, 90]}}, {"west", "south"}),
    ({"degrees": {"$in": []}}, set()),
    ({"degrees": {"$not": {"$gt": 50}}}, {"east", "north-east"}),
    ({"tags": "diagonal"}, {"north-east"}),
    ({"deep.letter": "N"}, {"north"}),
    ({'"a.b"': True}, {"west"}),
    ({"deep": {"$exists": True}}, {"east", "north"}),
    ({"deep": {"$exists": False}}, {"north-east", "west", "south"}),
    ({"nothing": None}, {"west"}),
    ({"nothing": {"$ne": None}}, {"east", "north-east", "north", "south"}),
    ({"kind": {"$in": [None, "between"]}}, {"north-east"}),
    ({"seen": {"$gte": "2026-02-01T00:00:00Z"}}, {"north"}),
    ({"seen": {"$lt": datetime(2026, 2, 1, tzinfo=UTC)}}, {"east"}),
    ({"$or": [{"degrees": 0}, {"$and": [{"kind": "cardinal"}, {"degrees": {"$gte": 200}}]}]}, {"east", "south"}),
    ({"$not": {"kind": "cardinal"}}, {"north-east"}),
    ({}, set(WORDS)),
    (field("metadata.kind") == "between", {"north-east"}),
    ((field("metadata.degrees") > 100) & ~(field("metadata.nothing").exists()), {"south"}),
    ((field("text") == "0 east").proto(), {"east"}),
]


async def test_metadata_filters_select(store):
    """Every operator, in searches of each kind."""
    await fill(store)
    for source, expected in FILTERS:
        found = await store.similarity_search("0", k=10, filter=source)
        assert {document.id for document in found} == expected, source
        scored = await store.similarity_search_with_score("0", k=10, filter=source)
        assert {document.id for document, _ in scored} == expected, source
        diverse = await store.max_marginal_relevance_search("0", k=10, filter=source)
        assert {document.id for document in diverse} == expected, source


@pytest.mark.parametrize(
    ("mistake", "source"),
    [
        (ValueError, {"$nor": []}),
        (ValueError, {"a": {"$like": "x"}}),
        (ValueError, {"a": {}}),
        (ValueError, {"a": {"$gt": "tomorrow"}}),
        (ValueError, {"a": {"$gt": "2026-01-01T00:00:00"}}),
        (TypeError, {"a": ["x"]}),
        (TypeError, {"a": {"$in": "x"}}),
        (TypeError, {"a": {"$exists": 1}}),
        (TypeError, {"$and": {"a": 1}}),
        (TypeError, {"$not": [1]}),
        (TypeError, "a = 1"),
    ],
)
def test_a_malformed_filter_is_refused(mistake, source):
    with pytest.raises(mistake):
        build_filter(source, "metadata.")


async def test_documents_keep_text_and_metadata_and_scores_say_what_the_metric_says(store):
    await fill(store)
    (best, score), (second, _) = await store.similarity_search_with_score("10", k=2)
    assert best == Document(id="east", page_content=WORDS["east"][0], metadata=WORDS["east"][1])
    assert second.id == "north-east"
    assert score == pytest.approx(0.9848, abs=1e-4)
    assert [d.id for d in await store.similarity_search_by_vector([0.0, 1.0], k=1)] == ["north"]
    relevant = await store.similarity_search_with_relevance_scores("0", k=5)
    assert [(d.id, round(score, 3)) for d, score in relevant][0::4] == [("east", 1.0), ("west", 0.0)]
    relevant = await store.similarity_search_with_relevance_scores("0", k=5, score_threshold=0.8)
    assert [d.id for d, _ in relevant] == ["east", "north-east"]


async def test_marginal_relevance_prefers_what_is_unlike(store):
    await store.add_texts(["0", "1", "2", "80"], ids=["a", "b", "c", "d"])
    assert [d.id for d in await store.max_marginal_relevance_search("0", k=2, lambda_mult=1.0)] == ["a", "b"]
    assert [d.id for d in await store.max_marginal_relevance_search("0", k=2, lambda_mult=0.1)] == ["a", "d"]
    near = await store.max_marginal_relevance_search("0", k=2, fetch_k=3, lambda_mult=0.1)
    assert [d.id for d in near] == ["a", "c"]
    assert len(await store.max_marginal_relevance_search_by_vector([1.0, 0.0], k=4)) == 4


async def test_a_retriever_searches(store):
    await fill(store)
    for search_type, arguments in [
        ("similarity", {"k": 1, "filter": {"kind": "between"}}),
        ("mmr", {"k": 1, "filter": {"kind": "between"}}),
        ("similarity_score_threshold", {"score_threshold": 0.9, "filter": {"kind": "between"}}),
    ]:
        retriever = store.store.as_retriever(search_type=search_type, search_kwargs=arguments)
        found = await retriever.ainvoke("50") if store.use_async else await asyncio.to_thread(retriever.invoke, "50")
        assert [document.id for document in found] == ["north-east"], search_type


async def test_reads_and_deletes_before_the_first_write_find_nothing(store, server, collection_name):
    assert await store.similarity_search("0") == []
    assert await store.get_by_ids(["a"]) == []
    assert await store.delete(["a"]) is True
    assert await store.add_texts([]) == []
    with Client(server.address) as client:
        assert collection_name not in {collection.name for collection in client.list_collections()}


async def test_delete_without_ids_removes_every_document(store):
    await fill(store)
    await store.delete()
    assert await store.similarity_search("0") == []


async def test_ids_are_made_where_none_are_given(store):
    ids = await store.add_documents([Document(page_content="0"), Document(page_content="1", id="mine")])
    assert ids[1] == "mine"
    assert len(ids[0]) == 36
    assert [d.id for d in await store.get_by_ids([ids[1], "missing", ids[0]])] == [ids[1], ids[0]]


async def test_mistakes_are_refused_not_ignored(store):
    for mistake, call in [
        (ValueError, store.add_texts(["0", "1"], ids=["a"])),
        (ValueError, store.add_texts(["0", "1"], [{}])),
        (TypeError, store.add_texts(["0"], batch=3)),
        (TypeError, store.similarity_search("0", filters={"typo": 1})),
        (TypeError, store.delete(["a"], where="b")),
    ]:
        with pytest.raises(mistake):
            await call


async def test_from_texts_makes_a_store(store, server, collection_name):
    made = await store.from_texts(
        ["0", "90"], Compass(), [{"n": 1}, {"n": 2}], ids=["a", "b"],
        collection=collection_name, target=server.address, metric=Metric.EUCLIDEAN,
    )  # fmt: skip
    face = Face(made, use_async=store.use_async)
    assert [(d.id, d.metadata) for d in await face.similarity_search("80", k=1)] == [("b", {"n": 2})]
    scored = await face.similarity_search_with_relevance_scores("0", k=2)
    assert [round(score, 3) for _, score in scored] == [1.0, 0.414]
    await made.aclose()


async def test_a_collection_written_elsewhere_is_read_with_its_own_keys(server, collection_name):
    with Client(server.address) as client:
        client.create_collection(collection_name, VectorConfig(2, Metric.DOT))
        client.upsert(collection_name, [Point("a", [1, 0], {"body": "east", "year": 2026})])
        store = VecmemVectorStore(
            Compass(), collection=collection_name, client=client, metric="dot", text_key="body", metadata_key=""
        )
        (found,) = store.similarity_search("0", filter={"year": {"$gte": 2026}})
        assert found == Document(id="a", page_content="east", metadata={"year": 2026})
        store.add_texts(["90 north"], [{"year": 2027}], ids=["b"])
        assert client.get(collection_name, ["b"])[0].payload == {"body": "90 north", "year": 2027}
        with pytest.raises(ValueError, match="body"):
            store.add_texts(["90 north"], [{"body": "mine"}])
        assert store.similarity_search_with_relevance_scores("0", k=1)[0][1] == pytest.approx(0.731, abs=1e-3)
        store.close()
        assert client.count(collection_name) == 2, "a client passed in stays open"


def test_one_store_serves_several_event_loops(server, collection_name):
    """As in a program that calls asyncio.run more than once; no call goes through a thread."""
    store = VecmemVectorStore(Compass(), collection=collection_name, target=server.address)

    async def add(text):
        ids = await store.aadd_texts([text], ids=[text])
        await store.aclose()
        return ids

    assert [asyncio.run(add(text)) for text in ("0", "90")] == [["0"], ["90"]]
    assert {d.id for d in store.similarity_search("0")} == {"0", "90"}
    store.close()
