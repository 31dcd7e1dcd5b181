"""TransactionService: see proto/vecmem/v1/transactions.proto for what it promises."""

from __future__ import annotations

from collections.abc import Iterator

from vecmem.server import calls
from vecmem.server.calls import Context, unary
from vecmem.store import transactions
from vecmem.store.shard import Shard
from vecmem.store.v1 import command_pb2
from vecmem.v1 import transactions_pb2 as api
from vecmem.v1 import transactions_pb2_grpc


class TransactionServicer(transactions_pb2_grpc.TransactionServiceServicer):
    """Transactions of one shard."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    @unary
    async def Commit(self, request: api.CommitRequest, context: Context) -> api.CommitResponse:
        """See the proto."""
        state = self._shard.state
        _ = state.keyspace  # raises where it is damaged, before anything is logged

        def build(command: command_pb2.Command) -> Iterator[None]:
            command.commit_transaction.SetInParent()
            return transactions.fill_command(request, state.collection, command.commit_transaction)

        if self._shard.memory.tracks_use:
            self._shard.memory.touch(transactions.keys_in(request))
        result = await calls.write(self._shard, request, build, grows=transactions.grows(request))
        return api.CommitResponse(
            header=calls.header(self._shard, result.sequence),
            succeeded=result.transaction.succeeded,
            results=result.transaction.results,
        )
