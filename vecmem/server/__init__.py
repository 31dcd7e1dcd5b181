"""The gRPC edge: servicers, error table, application."""

import os

# Checkpoints fork, and the child never calls gRPC: its fork handlers would only halt the parent's calls meanwhile.
# gRPC reads this when it starts, so it is set before anything of this package imports it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
