#include "graph.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <unordered_set>

#include "pool.h"

namespace {

thread_local uint64_t node_number = 0;

// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014), the finalizer of SplitMix64.
uint64_t mixed(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

}  // namespace

template <>
int hnswlib::HierarchicalNSW<float>::getRandomLevel(double reverse_size) {
    const double uniform = (static_cast<double>(mixed(node_number) >> 11) + 1.0) * 0x1.0p-53;  // above 0, up to 1
    return static_cast<int>(-std::log(uniform) * reverse_size);
}

template <>
std::priority_queue<std::pair<float, hnswlib::tableint>, std::vector<std::pair<float, hnswlib::tableint>>,
                    hnswlib::HierarchicalNSW<float>::CompareByFirst>
hnswlib::HierarchicalNSW<float>::searchBaseLayer(tableint entry, const void* data, int layer) {
    struct Near {
        float distance;
        tableint node;
    };
    constexpr tableint kExpanded = tableint{1} << 31;
    constexpr size_t kAhead = 3;
    const size_t ef = ef_construction_;
    thread_local std::vector<Near> beam;
    thread_local std::vector<tableint> fresh;
    if (beam.size() < ef + 1) beam.resize(ef + 1);
    if (fresh.size() < maxM0_ + 1) fresh.resize(maxM0_ + 1);
    const auto fetch = [&](tableint node) {
        const char* start = getDataByInternalId(node);
        for (size_t i = 0; i < data_size_; i += 64) __builtin_prefetch(start + i);
    };
    VisitedList* list = visited_list_pool_->getFreeVisitedList();
    vl_type* const visited = list->mass;
    const vl_type tag = list->curV;
    visited[entry] = tag;
    beam[0] = {fstdistfunc_(data, getDataByInternalId(entry), dist_func_param_), entry};
    size_t size = 1;
    for (size_t next = 0; next < size;) {
        const tableint node = beam[next].node;
        beam[next].node |= kExpanded;
        ++next;
        size_t count = 0;
        {
            std::unique_lock<std::mutex> lock(link_list_locks_[node]);
            linklistsizeint* links = get_linklist_at_level(node, layer);
            const size_t all = getListCount(links);
            for (size_t i = 1; i <= all; ++i) {
                fresh[count] = links[i];
                count += visited[links[i]] != tag;
                visited[links[i]] = tag;
            }
        }
        for (size_t i = 0; i < std::min(count, kAhead); ++i) fetch(fresh[i]);
        for (size_t i = 0; i < count; ++i) {
            if (i + kAhead < count) fetch(fresh[i + kAhead]);
            const float distance = fstdistfunc_(data, getDataByInternalId(fresh[i]), dist_func_param_);
            if (size == ef && distance >= beam[size - 1].distance) continue;
            const auto end = beam.begin() + static_cast<ptrdiff_t>(size);
            const auto after = std::upper_bound(beam.begin(), end, distance, [](float x, const Near& y) { return x < y.distance; });
            const auto place = static_cast<size_t>(after - beam.begin());
            if (size < ef) ++size;
            std::memmove(&beam[place + 1], &beam[place], (size - 1 - place) * sizeof(Near));
            beam[place] = {distance, fresh[i]};
            next = std::min(next, place);
        }
        while (next < size && beam[next].node & kExpanded) ++next;
    }
    visited_list_pool_->releaseVisitedList(list);
    std::vector<std::pair<float, tableint>> found;
    found.reserve(size + 1);
    // Nodes that are marked deleted get no new links, unless there is nothing else to link to.
    for (int pass = 0; pass < 2 && found.empty(); ++pass)
        for (size_t i = 0; i < size; ++i)
            if (const tableint node = beam[i].node & ~kExpanded; pass || !isMarkedDeleted(node)) found.emplace_back(beam[i].distance, node);
    return std::priority_queue<std::pair<float, tableint>, std::vector<std::pair<float, tableint>>, CompareByFirst>(CompareByFirst(), std::move(found));
}

namespace vecmem {

namespace {

constexpr size_t kLine = 64;
// Beams are kept sorted by insertion up to this size; beyond, two heaps are cheaper.
constexpr size_t kBeamMax = 512;
constexpr size_t kNeighboursMax = 2 * 1024;

void prefetch(const char* start, size_t bytes) {
    for (size_t i = 0; i < bytes; i += kLine) __builtin_prefetch(start + i);
}

}  // namespace

Graph::Graph(const GraphParams& p)
    : HierarchicalNSW<float>(nullptr), params_(p), codec_(p.code, p.metric, p.dimension, p.scale), code_params_(codec_.params()) {
    if (p.dimension < 1 || p.dimension > (1 << 20)) throw std::invalid_argument("dimension must be between 1 and 1048576");
    if (p.m < 2 || p.m > kNeighboursMax / 2) throw std::invalid_argument("m must be between 2 and 1024");
    if (p.ef_construction < 1 || p.ef_construction > 100'000) throw std::invalid_argument("ef_construction must be between 1 and 100000");
    M_ = maxM_ = p.m;
    maxM0_ = 2 * p.m;
    ef_construction_ = std::max(p.ef_construction, p.m);
    mult_ = 1 / std::log(1.0 * static_cast<double>(M_));
    revSize_ = 1.0 / mult_;
    data_size_ = codec_.code_bytes();
    fstdistfunc_ = distance_function(instruction_set(), p.code, p.metric);
    dist_func_param_ = const_cast<DistanceParams*>(&code_params_);
    size_links_level0_ = maxM0_ * sizeof(NodeId) + sizeof(hnswlib::linklistsizeint);
    // One link to spare: insertion looks at the link behind the last one to prefetch what it names.
    size_links_per_element_ = (maxM_ + 1) * sizeof(NodeId) + sizeof(hnswlib::linklistsizeint);
    offsetLevel0_ = 0;
    offsetData_ = size_links_level0_;
    label_offset_ = offsetData_ + data_size_;
    // Every element's data begins on a cache line: the first element does, and elements are whole lines apart.
    size_data_per_element_ = (label_offset_ + sizeof(hnswlib::labeltype) + kLine - 1) / kLine * kLine;
    base_ = (kLine - size_links_level0_ % kLine) % kLine;
    label_op_locks_ = std::vector<std::mutex>(1);  // by label; hnswlib's calls that take them are not used
    enterpoint_node_ = static_cast<NodeId>(-1);
    maxlevel_ = -1;
    std::lock_guard<std::mutex> lock(writing_);
    grow(kInitialCapacity);
}

Graph::~Graph() {
    data_level0_memory_ = nullptr;  // the region's; hnswlib's destructor frees the rest
}

void Graph::reserve(size_t count) {
    if (count > static_cast<size_t>(kLabelMax)) throw std::invalid_argument("more nodes than a graph can number");
    std::lock_guard<std::mutex> lock(writing_);
    if (count > max_elements_) grow(count);
}

// Holding writing_. Prepares what it can beside searches, then swaps alone.
void Graph::grow(size_t count) {
    if (count > static_cast<size_t>(kLabelMax)) throw std::length_error("more nodes than a graph can number");
    std::vector<std::mutex> locks(count);
    auto visited = std::make_unique<hnswlib::VisitedListPool>(1, static_cast<int>(count));
    Labels labels(new std::atomic<int32_t>[count]);
    std::vector<int> levels(count);
    // calloc, since hnswlib frees what it finds here.
    char** lists = static_cast<char**>(std::calloc(count, sizeof(char*)));
    if (!lists) throw std::bad_alloc();
    {
        AloneEntry alone(gate_);
        std::lock_guard<std::mutex> lock(labels_mutex_);
        try {
            region_.grow(base_ + count * size_data_per_element_);
        } catch (...) {
            std::free(lists);
            throw;
        }
        const size_t filled = cur_element_count;
        for (size_t i = 0; i < count; ++i) labels[i].store(i < filled ? labels_[i].load() : kNone, std::memory_order_relaxed);
        std::copy_n(element_levels_.begin(), filled, levels.begin());
        if (filled) std::copy_n(linkLists_, filled, lists);
        std::swap(lists, linkLists_);
        data_level0_memory_ = region_.data() + base_;
        link_list_locks_.swap(locks);
        element_levels_.swap(levels);
        labels_.swap(labels);
        visited_list_pool_.swap(visited);
        max_elements_ = count;
    }
    std::free(lists);
}

void Graph::map_label(int64_t label, NodeId node) {
    const auto chunk = static_cast<size_t>(label) / kLabelChunk;
    if (nodes_.size() <= chunk) nodes_.resize(chunk + 1);
    if (!nodes_[chunk]) {
        nodes_[chunk].reset(new int32_t[kLabelChunk]);
        std::fill_n(nodes_[chunk].get(), kLabelChunk, kNone);
    }
    nodes_[chunk][static_cast<size_t>(label) % kLabelChunk] = static_cast<int32_t>(node);
}

int32_t* Graph::node_of(int64_t label) {
    if (label < 0 || label > kLabelMax) return nullptr;
    const auto chunk = static_cast<size_t>(label) / kLabelChunk;
    if (chunk >= nodes_.size() || !nodes_[chunk]) return nullptr;
    int32_t* node = &nodes_[chunk][static_cast<size_t>(label) % kLabelChunk];
    return *node < 0 ? nullptr : node;
}

void Graph::publish(int64_t label, NodeId node) {
    std::lock_guard<std::mutex> lock(labels_mutex_);
    map_label(label, node);
    labels_[node].store(static_cast<int32_t>(label), std::memory_order_release);
    ++live_count_;
    ++node_count_done_;
}

void Graph::check_new(const int64_t* labels, size_t count) {
    std::unordered_set<int64_t> seen(2 * count);
    std::lock_guard<std::mutex> lock(labels_mutex_);
    for (size_t i = 0; i < count; ++i) {
        if (labels[i] < 0 || labels[i] > kLabelMax) throw std::invalid_argument("label " + std::to_string(labels[i]) + " is out of range");
        if (node_of(labels[i])) throw std::invalid_argument("label " + std::to_string(labels[i]) + " has a node");
        if (!seen.insert(labels[i]).second) throw std::invalid_argument("label " + std::to_string(labels[i]) + " stands twice");
    }
}

void Graph::insert(const float* vector, int64_t label, std::vector<char>& code) {
    bool clipped = false;
    const float residual = codec_.encode(vector, code.data(), &clipped);
    if (clipped) ++clipped_count_;
    float largest = residual_max_;
    while (residual > largest && !residual_max_.compare_exchange_weak(largest, residual)) {
    }
    NodeId node;
    {
        InsertionEntry entry(gate_);
        node = addPoint(code.data(), node_number, -1);
        // hnswlib's own way from label to node is not used: it would cost as much memory as a small code.
        std::lock_guard<std::mutex> lock(label_lookup_lock);
        label_lookup_.erase(node_number);
    }
    publish(label, node);
}

void Graph::add(const float* vectors, const int64_t* labels, size_t count, unsigned threads) {
    if (!count) return;
    std::lock_guard<std::mutex> lock(writing_);
    check_new(labels, count);
    const size_t first = cur_element_count;
    if (first + count > max_elements_) grow(std::max(first + count, max_elements_ + max_elements_ / 2));
    parallel(count, std::min<size_t>(threads, (count + 3) / 4), [&](size_t i) {
        thread_local std::vector<char> code;
        code.resize(codec_.code_bytes());
        node_number = first + i;
        insert(vectors + i * codec_.dimension, labels[i], code);
    });
}

size_t Graph::remove(const int64_t* labels, size_t count) {
    std::lock_guard<std::mutex> lock(labels_mutex_);
    size_t removed = 0;
    for (size_t i = 0; i < count; ++i) {
        int32_t* node = node_of(labels[i]);
        if (!node) continue;
        labels_[static_cast<size_t>(*node)].store(kNone, std::memory_order_relaxed);
        unswept_.push_back(static_cast<NodeId>(*node));
        *node = kNone;
        ++removed;
    }
    live_count_ -= removed;
    unswept_count_ = unswept_.size();
    return removed;
}

size_t Graph::sweep(size_t count_max) {
    std::lock_guard<std::mutex> lock(writing_);
    std::vector<NodeId> swept;
    {
        std::lock_guard<std::mutex> labels_lock(labels_mutex_);
        const size_t count = std::min(count_max, unswept_.size());
        swept.assign(unswept_.end() - static_cast<ptrdiff_t>(count), unswept_.end());
        unswept_.resize(unswept_.size() - count);
        unswept_count_ = unswept_.size();
    }
    if (swept.empty()) return 0;
    AloneEntry alone(gate_);
    for (NodeId node : swept)
        if (!isMarkedDeleted(node)) markDeletedInternal(node);
    return swept.size();
}

size_t Graph::memory_bytes() const {
    const size_t count = cur_element_count;
    const double upper = static_cast<double>(size_links_per_element_ + 16) / static_cast<double>(M_ - 1);
    const size_t each = size_data_per_element_ + sizeof(std::mutex) + sizeof(char*) + sizeof(int) + 2 * sizeof(int32_t);
    return count * (each + static_cast<size_t>(upper));
}

void Graph::holding(const int64_t* labels, size_t count, bool* out) {
    std::lock_guard<std::mutex> lock(labels_mutex_);
    for (size_t i = 0; i < count; ++i) out[i] = node_of(labels[i]) != nullptr;
}

std::vector<int64_t> Graph::labels() const {
    SearchEntry entry(gate_);
    std::vector<int64_t> found;
    const size_t count = cur_element_count;
    for (size_t node = 0; node < count; ++node)
        if (const int32_t label = label_of(static_cast<NodeId>(node)); label >= 0) found.push_back(label);
    return found;
}

// -- search ----------------------------------------------------------------------------------------------------------------------------

template <bool guarded>
const Graph::NodeId* Graph::neighbours(NodeId node, int level, NodeId* copy, size_t* count) const {
    const auto list = [&] { return get_linklist_at_level(node, level); };
    if constexpr (!guarded) {
        *count = getListCount(list());
        return list() + 1;
    } else {
        std::lock_guard<std::mutex> lock(const_cast<std::mutex&>(link_list_locks_[node]));
        *count = getListCount(list());
        std::copy_n(list() + 1, *count, copy);
        return copy;
    }
}

size_t Graph::unvisited(const NodeId* list, size_t count, hnswlib::vl_type* visited, hnswlib::vl_type tag, NodeId* out) const {
    size_t kept = 0;
    for (size_t i = 0; i < count; ++i) {
        const NodeId node = list[i];
        out[kept] = node;
        kept += visited[node] != tag;
        visited[node] = tag;
    }
    return kept;
}

template <bool guarded>
void Graph::search_beam(NodeId entry, float distance, const char* code, const DistanceParams& params, size_t ef,
                        std::vector<Candidate>& out, size_t* compared) const {
    constexpr NodeId kExpanded = NodeId{1} << 31;
    NodeId copy[kNeighboursMax], fresh[kNeighboursMax];
    std::vector<Near> beam(ef + 1);
    hnswlib::VisitedList* list = visited_list_pool_->getFreeVisitedList();
    list->mass[entry] = list->curV;
    beam[0] = {distance, entry};
    size_t size = 1;
    for (size_t next = 0; next < size;) {
        const NodeId node = beam[next].node;
        beam[next].node |= kExpanded;
        size_t count;
        const NodeId* links = neighbours<guarded>(node, 0, copy, &count);
        count = unvisited(links, count, list->mass, list->curV, fresh);
        *compared += count;
        const size_t bytes = data_size_;
        constexpr size_t kAhead = 3;
        for (size_t i = 0; i < std::min(count, kAhead); ++i) prefetch(getDataByInternalId(fresh[i]), bytes);
        ++next;
        for (size_t i = 0; i < count; ++i) {
            if (i + kAhead < count) prefetch(getDataByInternalId(fresh[i + kAhead]), bytes);
            const float d = fstdistfunc_(code, getDataByInternalId(fresh[i]), &params);
            if (size == ef && d >= beam[size - 1].distance) continue;
            size_t place = static_cast<size_t>(std::upper_bound(beam.begin(), beam.begin() + static_cast<ptrdiff_t>(size), d,
                                                                [](float x, const Near& y) { return x < y.distance; }) -
                                               beam.begin());
            if (size < ef) ++size;
            std::memmove(&beam[place + 1], &beam[place], (size - 1 - place) * sizeof(Near));
            beam[place] = {d, fresh[i]};
            if (place < next) {
                next = place;
                if constexpr (!guarded) prefetch(reinterpret_cast<const char*>(get_linklist0(fresh[i])), size_links_level0_);
            }
        }
        while (next < size && beam[next].node & kExpanded) ++next;
    }
    visited_list_pool_->releaseVisitedList(list);
    for (size_t i = 0; i < size; ++i)
        if (const int32_t label = labels_[beam[i].node & ~kExpanded].load(std::memory_order_acquire); label >= 0)
            out.push_back({beam[i].distance, label});
}

template <bool guarded>
void Graph::search_heaps(NodeId entry, float distance, const char* code, const DistanceParams& params, size_t ef, Allowed allowed,
                         std::vector<Candidate>& out, size_t* compared) const {
    NodeId copy[kNeighboursMax], fresh[kNeighboursMax];
    std::vector<Near> open;
    const auto further = [](const Near& a, const Near& b) { return a.distance > b.distance; };
    const auto nearer = [](const Candidate& a, const Candidate& b) { return a.distance < b.distance; };
    out.reserve(ef + 1);
    const auto take = [&](float d, NodeId node) {
        const int32_t label = labels_[node].load(std::memory_order_acquire);
        if (label < 0 || !allowed(label)) return;
        out.push_back({d, label});
        std::push_heap(out.begin(), out.end(), nearer);
        if (out.size() > ef) {
            std::pop_heap(out.begin(), out.end(), nearer);
            out.pop_back();
        }
    };
    hnswlib::VisitedList* list = visited_list_pool_->getFreeVisitedList();
    list->mass[entry] = list->curV;
    open.push_back({distance, entry});
    take(distance, entry);
    while (!open.empty()) {
        const Near near = open.front();
        if (out.size() == ef && near.distance > out.front().distance) break;
        std::pop_heap(open.begin(), open.end(), further);
        open.pop_back();
        size_t count;
        const NodeId* links = neighbours<guarded>(near.node, 0, copy, &count);
        count = unvisited(links, count, list->mass, list->curV, fresh);
        *compared += count;
        constexpr size_t kAhead = 3;
        for (size_t i = 0; i < std::min(count, kAhead); ++i) prefetch(getDataByInternalId(fresh[i]), data_size_);
        for (size_t i = 0; i < count; ++i) {
            if (i + kAhead < count) prefetch(getDataByInternalId(fresh[i + kAhead]), data_size_);
            const float d = fstdistfunc_(code, getDataByInternalId(fresh[i]), &params);
            if (out.size() == ef && d >= out.front().distance) continue;
            open.push_back({d, fresh[i]});
            std::push_heap(open.begin(), open.end(), further);
            take(d, fresh[i]);
        }
    }
    visited_list_pool_->releaseVisitedList(list);
    std::sort_heap(out.begin(), out.end(), nearer);
}

template <bool guarded>
std::vector<Candidate> Graph::search_as(const char* code, const DistanceParams& params, size_t ef, Allowed allowed, size_t* compared) const {
    std::vector<Candidate> out;
    NodeId entry;
    int top;
    {
        std::unique_lock<std::mutex> lock(const_cast<std::mutex&>(global), std::defer_lock);
        if constexpr (guarded) lock.lock();
        entry = enterpoint_node_;
        top = maxlevel_;
    }
    if (entry == static_cast<NodeId>(-1)) return out;
    ef = std::max<size_t>(1, std::min(ef, cur_element_count.load()));
    float distance = fstdistfunc_(code, getDataByInternalId(entry), &params);
    ++*compared;
    NodeId copy[kNeighboursMax];
    for (int level = top; level > 0; --level) {
        for (bool moved = true; moved;) {
            moved = false;
            size_t count;
            const NodeId* links = neighbours<guarded>(entry, level, copy, &count);
            *compared += count;
            NodeId best = entry;
            for (size_t i = 0; i < count; ++i) {
                const float d = fstdistfunc_(code, getDataByInternalId(links[i]), &params);
                if (d < distance) {
                    distance = d;
                    best = links[i];
                    moved = true;
                }
            }
            entry = best;
        }
    }
    if (!allowed.bits && ef <= kBeamMax && !removed_count())
        search_beam<guarded>(entry, distance, code, params, ef, out, compared);
    else
        search_heaps<guarded>(entry, distance, code, params, ef, allowed, out, compared);
    return out;
}

std::vector<Candidate> Graph::search(const char* code, const DistanceParams& params, size_t ef, Allowed allowed, size_t* compared) const {
    SearchEntry entry(gate_);
    return entry.guarded ? search_as<true>(code, params, ef, allowed, compared) : search_as<false>(code, params, ef, allowed, compared);
}

}  // namespace vecmem
