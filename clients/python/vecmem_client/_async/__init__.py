"""The asyncio client: the source from which scripts/generate_sync.py makes its sync twin."""
