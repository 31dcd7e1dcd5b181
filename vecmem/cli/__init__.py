"""The `vecmem` command."""
