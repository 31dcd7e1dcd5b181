"""AdminService: see proto/vecmem/v1/admin.proto for what it promises."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vecmem.server import calls
from vecmem.server.calls import Context, unary
from vecmem.store.shard import Shard
from vecmem.v1 import admin_pb2 as api
from vecmem.v1 import admin_pb2_grpc

if TYPE_CHECKING:
    from vecmem.cluster.member import Member


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a process knows about itself. `ready_ms`: from its start until it could answer."""

    version: str
    grpc_engine: str
    started_at_unix_ms: int
    ready_ms: float


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """For operators."""

    ANY_NODE = True

    def __init__(self, shard: Shard, facts: ServerFacts, member: Member | None = None) -> None:
        self._shard = shard
        self._facts = facts
        self._member = member

    @unary
    async def GetServerInfo(
        self,
        request: api.GetServerInfoRequest,
        context: Context,
    ) -> api.GetServerInfoResponse:
        """See the proto."""
        shard = self._shard
        empty = shard.log.last_sequence < shard.log.first_sequence
        info = api.GetServerInfoResponse(
            header=calls.header(shard, shard.applied_sequence),
            version=self._facts.version,
            log_first_sequence=0 if empty else shard.log.first_sequence,
            log_last_sequence=0 if empty else shard.log.last_sequence,
            checkpoint_sequence=shard.checkpoint_sequence,
            collection_count=len(shard.state.collections) + len(shard.state.damaged),
            point_count=shard.state.point_count(),
            key_count=0 if shard.state.keyspace_damage else len(shard.state.keyspace.values),
            key_memory_bytes=0 if shard.state.keyspace_damage else shard.state.keyspace.memory_bytes,
            data_memory_bytes=shard.memory.used_bytes(),
            memory_limit_bytes=shard.memory.limit_bytes,
            eviction_policy=shard.memory.policy,
            evicted_key_count=shard.memory.evicted_key_count,
            resident_memory_bytes=resident_memory_bytes(),
            read_only_reason=shard.read_only_reason,
            failures=shard.failures,
            grpc_engine=self._facts.grpc_engine,
            recovery=api.RecoveryInfo(
                checkpoint_sequence=shard.recovery.checkpoint_sequence,
                replayed_record_count=shard.recovery.replayed_record_count,
                torn_tail_bytes=shard.recovery.torn_tail_bytes,
                duration_ms=self._facts.ready_ms,
                notes=shard.recovery.notes,
            ),
        )
        info.started_at.FromMilliseconds(self._facts.started_at_unix_ms)
        if self._member is not None:
            info.member.CopyFrom(member_info(shard, self._member))
        return info

    @unary
    async def HandOver(self, request: api.HandOverRequest, context: Context) -> api.HandOverResponse:
        """See the proto."""
        self._shard.check_leads()
        if self._member is not None:
            await self._member.release()
        return api.HandOverResponse(header=calls.header(self._shard, self._shard.applied_sequence))

    @unary
    async def CreateCheckpoint(
        self,
        request: api.CreateCheckpointRequest,
        context: Context,
    ) -> api.CreateCheckpointResponse:
        """See the proto."""
        report = await self._shard.checkpoint()
        return api.CreateCheckpointResponse(
            header=calls.header(self._shard, self._shard.applied_sequence),
            sequence=report.sequence,
            size_bytes=report.size_bytes,
            duration_ms=report.duration_ms,
            stall_ms=report.stall_ms,
        )


def member_info(shard: Shard, member: Member) -> api.MemberInfo:
    """What part a node takes in its cluster."""
    return api.MemberInfo(
        node=member.node,
        leads=shard.leads,
        owner=shard.owner,
        lease_age_ms=member.lease_age_seconds * 1e3,
        lag=member.lag,
    )


def resident_memory_bytes() -> int:
    """Resident memory of this process now; where the system does not tell, its highest value so far."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
