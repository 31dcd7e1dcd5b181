"""A node that finds NATS servers which lose acknowledged writes ends, and says why, so that nobody restarts it for nothing."""

from __future__ import annotations

from tests.support.nats import servers_in
from tests.support.server import ServerProcess

SECONDS_MAX = 60.0
EXIT_USAGE = 2


def test_a_node_ends_where_nats_syncs_lazily(tmp_path):
    with servers_in(tmp_path / "nats", 1, sync_always=False) as servers:
        arguments = ["--cluster", servers.urls[0], "--cluster-monitoring", servers.monitoring_urls[0]]
        arguments += ["--log-replicas", "1"]
        node = ServerProcess(tmp_path / "node", arguments=arguments).start()
        assert node.wait(SECONDS_MAX) == EXIT_USAGE
    assert '"reason": "CONFIGURATION"' in node.last_words()
    assert "their configuration lacks `sync_interval: always`" in node.last_words()
    assert "Traceback" not in node.last_words()
