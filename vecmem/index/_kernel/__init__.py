"""HNSW graphs over codes, and exact comparison, in C++ on hnswlib's headers. `_native.pyi` documents the calls, `graph.h` the locks."""

from vecmem.index._kernel._native import (
    Arena,
    Codes,
    Graph,
    code_distances,
    instruction_set,
    instruction_sets,
    scores,
    use_instruction_set,
)

__all__ = [
    "Arena",
    "Codes",
    "Graph",
    "code_distances",
    "instruction_set",
    "instruction_sets",
    "scores",
    "use_instruction_set",
]
