"""The `vecmem` command."""

# Settles what gRPC may do at a fork, which gRPC reads when it is first imported.
import vecmem.server  # noqa: F401
