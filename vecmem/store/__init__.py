"""The state machine: collections and points as a pure fold over the log, and the shard that runs it.

The store never knows gRPC.
"""
