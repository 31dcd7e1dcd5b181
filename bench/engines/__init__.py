"""What vecmem is measured beside, in the same invocation: one module a peer or floor."""
