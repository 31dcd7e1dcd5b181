"""LangChain vector store over vecmem: `VecmemVectorStore`. Needs the extra `vecmem-client[langchain]`.

A document is a point: its text and its metadata are the payload's keys `text` and `metadata`, its embedding is the
default vector. The asynchronous methods are native: they go through `AsyncClient`, never through a thread.
"""

from vecmem_client._async.langchain import AsyncStoreMethods
from vecmem_client._langchain_filters import MetadataFilter
from vecmem_client._sync.langchain import StoreMethods


class VecmemVectorStore(StoreMethods, AsyncStoreMethods):
    """A collection of vecmem as a LangChain vector store.

    `embedding` turns texts into vectors. The first write creates the collection, with the dimension of the
    embeddings and the given `metric`, unless it exists; until then reads find nothing. `metric` is that of the
    collection in any case, since relevance scores follow from it: (1 + s) / 2 for cosine, the logistic function for
    dot, 1 / (1 + s) for euclidean, or `relevance_score_fn`.

    Texts are stored under the payload's key `text_key` and metadata under `metadata_key`; an empty `metadata_key`
    takes the other top-level keys of the payload for metadata, as suits a collection that was not written here.

    Filters are mappings over the metadata, such as `{"section": "net", "size": {"$lt": 10_000}}`, with
    `$eq $ne $gt $gte $lt $lte $in $nin $exists $and $or $not`, or `vecmem_client.field` expressions over the whole
    payload, such as `field("metadata.section") == "net"`. What they negate is also true for documents without the key.

    The store makes clients for `target` when they are first needed, an asynchronous one for each event loop, and
    closes them in `close` and `aclose`. `client` and `async_client` are used instead where given, and stay open.
    """


__all__ = ["MetadataFilter", "VecmemVectorStore"]
