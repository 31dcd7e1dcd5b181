"""Vectors and filters: arena, flat and HNSW indexes, payload columns, filter semantics, query planning.

The index never knows the log. Imports only the leaves of vecmem.
"""
