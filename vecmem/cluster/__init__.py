"""The cluster: one shard's log on several servers, and the servers that keep it."""
