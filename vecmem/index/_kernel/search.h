// Searches from query to scored rows: candidates of a graph or of a scan, compared again exactly.
#pragma once

#include <limits>
#include <vector>

#include "arena.h"
#include "codes.h"
#include "graph.h"

namespace vecmem {

struct Request {
    size_t k;                      // rows wanted, at least 1
    Allowed allowed;               // rows that may be results
    const int64_t* extra = nullptr;  // rows to compare exactly beside, as far as they are allowed, each once
    size_t extra_count = 0;
    const Codes* const* coded = nullptr;  // more rows, as `extra`: codes first, then exactly whatever rounding leaves open
    size_t coded_count = 0;
    float largest_norm = 0;        // of the arena's rows
    size_t compared_max = std::numeric_limits<size_t>::max();  // codes that a search of the graph under bits compares before it gives up
};

struct Answer {
    std::vector<Scored> hits;  // the k nearest and all that tie with the last of them, nearest first, ties in order of rows
    size_t compared = 0;       // codes or rows that the search itself went through; neither `extra` and `coded` nor what was compared again
};

// The nearest of up to `ef` nodes that the graph leads to, of which `rescored` are compared again. Where the rows that have a bit lie so far off that
// the search gives up, the nearest of all of them.
Answer search_graph(const Graph& graph, const Arena& arena, const float* query, const Request& request, size_t ef, size_t rescored);

// The nearest of all nodes of a graph: codes first, then exactly whatever can be among the nearest by the bound on rounding. Not for binary codes.
Answer scan_graph(const Graph& graph, const Arena& arena, const float* query, const Request& request);

// The nearest of the arena's first `row_count` rows that are allowed.
Answer scan_arena(const Arena& arena, const float* query, const Request& request, int64_t row_count);

}  // namespace vecmem
