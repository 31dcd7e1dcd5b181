"""The durable log: record codec, TransactionLog in RocksDB and in NATS JetStream, group commit, checkpoints.

The log never knows what a record means. Imports only the leaves of vecmem.
"""
