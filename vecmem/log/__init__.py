"""The durable log: record codec, TransactionLog and its RocksDB implementation, group commit, checkpoints.

The log never knows what a record means. Imports only the leaves of vecmem.
"""
