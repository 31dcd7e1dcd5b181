// A graph over codes: hnswlib's, with storage, searches and locks of our own around it.
//
// Construction is hnswlib's addPoint (Malkov and Yashunin, arXiv:1603.09320, algorithms 1, 3 and 4). What is ours:
//
// - Storage. The element of hnswlib (links, data, label) is laid out so that data begins on a cache line, in memory that the system moves by
//   remapping pages when the graph grows.
// - Search (the paper's algorithms 2 and 5) over hnswlib's structures, because hnswlib's own reads neighbour lists without locks and has one ef.
// - Labels (labels.h). A node stands for the labels of all vectors that have its code, since equal nodes would have nothing but one another for
//   neighbours and hold a search that comes upon them; or, when all these were removed, for nothing. It is taken up again where its
//   code comes back before `sweep` has marked it.
//
// LOCKING. Every structure of hnswlib is read and written inside `gate_` (gate.h), as follows.
// - Plain searches are never inside together with insertions, so they read links without locks.
// - Guarded searches run beside insertions. They take `global` for the entry point and its level, and copy each neighbour list under
//   link_list_locks_[node], which hnswlib holds when it writes a list. Whatever else they read of a node (data, levels) was written before the
//   node was linked for the first time, and they have it from a list. They hold one lock at a time, so they add no cycle to hnswlib's order.
// - hnswlib's deletion marks (read by insertions), growth and everything that moves memory or frees what searches look at happen alone. So does
//   the insertion of a node above the top level, a few in the life of a graph: hnswlib reads the entry point after it has let `global` go.
// - `labels_` is read without locks and says which nodes are results: attached after a node is fully linked, detached by `remove` at any
//   time, without waiting. It locks its writers itself. `unswept_mutex_` guards `unswept_` and keeps it in step with `labels_`.
// - `writing_` serializes add, sweep, reserve, save and load as whole calls, and guards `codes_`.
// - Order: writing_, gate_, unswept_mutex_, the lock of labels_. A search takes none but gate_.
// - save reads while searches and removals go on. It takes writing_ alone, so that a forked child may save when nothing was being added at the
//   moment of the fork; otherwise it fails after 20 s.
//
// No method calls Python; module.cpp releases the interpreter lock around all of them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

// hnswlib defines a static function per translation unit that this kernel does not call.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include <hnswlib/hnswlib.h>
#pragma GCC diagnostic pop

#include "code_table.h"
#include "codec.h"
#include "gate.h"
#include "labels.h"
#include "region.h"

// Levels are drawn from the node's number alone: hnswlib's generator would be used by several threads at once.
template <>
int hnswlib::HierarchicalNSW<float>::getRandomLevel(double reverse_size);

// The search of a layer within insertion (the paper's algorithm 2): the same candidates, held in one sorted array instead of two heaps, and
// their codes asked for ahead. It saves a fifth of the time of an insertion.
template <>
std::priority_queue<std::pair<float, hnswlib::tableint>, std::vector<std::pair<float, hnswlib::tableint>>,
                    hnswlib::HierarchicalNSW<float>::CompareByFirst>
hnswlib::HierarchicalNSW<float>::searchBaseLayer(tableint entry, const void* data, int layer);

namespace vecmem {

// The rows that a search sees, as vecmem.index.rows.RowView: born at its sequence or before, not dead at it, not expired.
//
// The arrays are written by their owner meanwhile, in a way that does not change what is seen (vecmem.index.rows); birth is read before death.
struct Snapshot {
    int64_t sequence = 0, now = 0, row_count = 0;
    const int64_t* born = nullptr;
    const int64_t* died = nullptr;
    const int64_t* expires = nullptr;  // null: no row expires

    bool sees(int64_t row) const {
        return row < row_count && __atomic_load_n(born + row, __ATOMIC_ACQUIRE) <= sequence && __atomic_load_n(died + row, __ATOMIC_ACQUIRE) > sequence &&
               (!expires || __atomic_load_n(expires + row, __ATOMIC_RELAXED) > now);
    }
};

// Which labels may be results: those that have a bit, i % 8 of byte i / 8, lowest first, and that the snapshot sees. No bits, or no snapshot: all.
struct Allowed {
    const uint8_t* bits = nullptr;
    int64_t count = 0;
    const Snapshot* snapshot = nullptr;

    bool operator()(int64_t label) const {
        return (!bits || (label < count && (bits[label >> 3] >> (label & 7) & 1))) && (!snapshot || snapshot->sees(label));
    }

    // Labels that have a bit, from `*from` on and below `stop`: up to `room`, at least 64, into `out`. Returns how many, 0 at the end, and moves
    // `*from`, a multiple of 64, on.
    size_t next(int64_t* from, int64_t stop, int64_t* out, size_t room) const {
        size_t size = 0;
        stop = std::min(stop, count);
        for (; *from < stop && size + 64 <= room; *from += 64) {
            uint64_t word = 0;
            std::memcpy(&word, bits + *from / 8, static_cast<size_t>(std::min<int64_t>(8, (count - *from + 7) / 8)));
            for (; word; word &= word - 1) {
                const int64_t label = *from + __builtin_ctzll(word);
                if (label >= stop) break;
                out[size++] = label;
            }
        }
        return size;
    }
};

struct GraphParams {
    CodeType code;
    Metric metric;
    size_t dimension, m, ef_construction;
    float scale;
};

class Graph : private hnswlib::HierarchicalNSW<float> {
  public:
    static constexpr int64_t kLabelMax = LabelTable::kLabelMax;
    static constexpr size_t kConnectionsMax = 1024;

    explicit Graph(const GraphParams& params);
    ~Graph();

    // Inserts vectors of `dimension` finite elements under labels that no node has. Throws invalid_argument and changes nothing if one has, or if
    // one stands twice in the call. Searches find all of them when the call returns, most of them before.
    void add(const float* vectors, const int64_t* labels, size_t count, unsigned threads);

    // Takes labels out of the results at once; those that no node has are passed over. Returns how many there were.
    size_t remove(const int64_t* labels, size_t count);

    // Marks up to `count_max` removed nodes, so that insertions do not link to them any more. Returns how many.
    size_t sweep(size_t count_max);

    // Makes room for `count` nodes in all.
    void reserve(size_t count);

    // The allowed labels of the nearest `kept` of the up to `ef` nodes found near the query that have any, nearest first. `code` and `params` come
    // from codec().encode_query. Adds to `compared` the number of codes compared with the query's. Gives up, with `gave_up` set, when it has compared
    // more than `compared_max` with nodes still open.
    std::vector<int64_t> search(const char* code, const DistanceParams& params, size_t ef, size_t kept, Allowed allowed, size_t compared_max,
                                size_t* compared, bool* gave_up) const;

    // Codes of all nodes: calls visit(label, distance) for the labels that have a bit. The snapshot is for the caller to ask, of the few that
    // matter. Returns how many codes it compared.
    template <class Visit>
    size_t scan(const char* code, const DistanceParams& params, Allowed allowed, Visit visit) const;

    // The whole graph as bytes (graph_file.cpp).
    void save(const std::string& path) const;
    std::string to_bytes() const;
    // Fills an empty graph; throws runtime_error for bytes that are damaged or of another kind of graph, after which it is still empty.
    void load(const std::string& path);
    void from_bytes(const char* content, size_t size);

    const Codec& codec() const { return codec_; }
    const GraphParams& params() const { return params_; }
    size_t node_count() const { return cur_element_count.load(); }
    // Labels, of which several may share a node.
    size_t live_count() const { return labels_.label_count(); }
    // Nodes without a label, and those of them that `sweep` has not marked.
    size_t dead_count() const { return unswept_count_.load() + swept_count_.load(); }
    size_t unswept_count() const { return unswept_count_.load(); }
    size_t clipped_count() const { return clipped_count_.load(); }
    size_t memory_bytes() const;
    // Largest length cut off from a vector by int8 rounding.
    float residual_max() const { return residual_max_.load(); }
    // Which labels have a node; `out` takes one byte each.
    void holding(const int64_t* labels, size_t count, bool* out) const;
    // All labels, in order of nodes.
    std::vector<int64_t> labels() const;
    // Labels that are allowed and have a node.
    std::vector<int64_t> labels(Allowed allowed) const;

  private:
    static constexpr size_t kInitialCapacity = 1024;
    static constexpr size_t kNeighboursMax = 2 * kConnectionsMax;

    struct Near {
        float distance;
        NodeId node;
    };
    struct Found {
        float distance;
        int32_t state;  // of the node, in labels_
    };

    void check_new(const int64_t* labels, size_t count) const;
    void grow(size_t count);
    void add_slice(const float* vectors, const int64_t* labels, size_t count, unsigned threads);
    void encode(const float* vector, char* code);
    NodeId insert(const char* code, size_t number);
    NodeId insert_inside(const char* code, size_t number);
    void attach(int64_t label, NodeId node);
    void find_codes_again();
    template <bool guarded>
    std::vector<Found> search_as(const char* code, const DistanceParams& params, size_t ef, Allowed allowed, bool every, size_t compared_max,
                                 size_t* compared, bool* gave_up) const;
    template <bool guarded>
    void search_beam(NodeId entry, float distance, const char* code, const DistanceParams& params, size_t ef, std::vector<Found>& out,
                     size_t* compared) const;
    template <bool guarded>
    void search_heaps(NodeId entry, float distance, const char* code, const DistanceParams& params, size_t ef, Allowed allowed,
                      size_t compared_max, std::vector<Found>& out, size_t* compared, bool* gave_up) const;
    template <class Visit>
    size_t scan_nodes(const char* code, const DistanceParams& params, Visit visit) const;
    template <class Visit>
    size_t scan_labels(const char* code, const DistanceParams& params, Allowed allowed, Visit visit) const;
    template <bool guarded>
    const NodeId* neighbours(NodeId node, int level, NodeId* copy, size_t* count) const;
    size_t unvisited(const NodeId* list, size_t count, hnswlib::vl_type* visited, hnswlib::vl_type tag, NodeId* out) const;
    void write(const std::function<void(const void*, size_t)>& sink) const;
    void read(const std::function<void(void*, size_t)>& source, size_t size);

    const GraphParams params_;
    const Codec codec_;
    const DistanceParams code_params_;
    Region region_;
    size_t base_ = 0;  // where the first element begins in the region
    LabelTable labels_;

    mutable Gate gate_;
    mutable std::mutex writing_;
    CodeTable codes_;
    std::mutex unswept_mutex_;
    std::unordered_set<NodeId> unswept_;  // nodes without a label that hnswlib has no mark on
    std::atomic<size_t> unswept_count_{0}, swept_count_{0}, clipped_count_{0}, codes_bytes_{0};
    std::atomic<float> residual_max_{0};
};

template <class Visit>
size_t Graph::scan(const char* code, const DistanceParams& params, Allowed allowed, Visit visit) const {
    // Nodes that are still being inserted have no label, so their data is never read.
    SearchEntry entry(gate_);
    return allowed.bits ? scan_labels(code, params, allowed, visit) : scan_nodes(code, params, visit);
}

template <class Visit>
size_t Graph::scan_nodes(const char* code, const DistanceParams& params, Visit visit) const {
    const size_t count = cur_element_count;
    constexpr size_t kBlock = 256, kAhead = 4;
    struct {
        const char* code;
        int32_t state;
    } block[kBlock];
    size_t compared = 0;
    for (size_t node = 0; node < count;) {
        size_t size = 0;
        for (; node < count && size < kBlock; ++node) {
            const int32_t state = labels_.state(static_cast<NodeId>(node));
            block[size] = {getDataByInternalId(static_cast<NodeId>(node)), state};
            size += state != LabelTable::kNone;
        }
        for (size_t i = 0; i < size; ++i) {
            if (i + kAhead < size)
                for (size_t byte = 0; byte < data_size_; byte += 64) __builtin_prefetch(block[i + kAhead].code + byte);
            const float distance = fstdistfunc_(code, block[i].code, &params);
            labels_.visit(block[i].state, [&](int64_t label) { visit(label, distance); });
        }
        compared += size;
    }
    return compared;
}

// From labels to nodes, so that what does not pass costs a bit. Labels that share a node are each compared.
template <class Visit>
size_t Graph::scan_labels(const char* code, const DistanceParams& params, Allowed allowed, Visit visit) const {
    constexpr size_t kBlock = 512, kAhead = 6;
    int64_t labels[kBlock];
    NodeId nodes[kBlock];
    size_t compared = 0;
    for (int64_t from = 0;;) {
        const size_t found = allowed.next(&from, allowed.count, labels, kBlock);
        if (!found) return compared;
        labels_.nodes_of(labels, found, nodes);
        size_t size = 0;
        for (size_t i = 0; i < found; ++i) {
            labels[size] = labels[i];
            nodes[size] = nodes[i];
            size += nodes[i] != LabelTable::kNoNode;
        }
        const auto fetch = [&](size_t i) {
            if (i >= size) return;
            const char* start = getDataByInternalId(nodes[i]);
            for (size_t byte = 0; byte < data_size_; byte += 64) __builtin_prefetch(start + byte);
        };
        for (size_t i = 0; i < kAhead; ++i) fetch(i);
        for (size_t i = 0; i < size; ++i) {
            fetch(i + kAhead);
            visit(labels[i], fstdistfunc_(code, getDataByInternalId(nodes[i]), &params));
        }
        compared += size;
    }
}

}  // namespace vecmem
