#include "graph.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <unordered_set>

#include "pool.h"

namespace {

thread_local uint64_t node_number = 0;

}  // namespace

template <>
int hnswlib::HierarchicalNSW<float>::getRandomLevel(double reverse_size) {
    const double uniform = (static_cast<double>(vecmem::mixed(node_number) >> 11) + 1.0) * 0x1.0p-53;  // above 0, up to 1
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
// Vectors that `add` looks at together.
constexpr size_t kSlice = 2048;

}  // namespace

Graph::Graph(const GraphParams& p)
    : HierarchicalNSW<float>(nullptr), params_(p), codec_(p.code, p.metric, p.dimension, p.scale), code_params_(codec_.params()),
      codes_(codec_.code_bytes()) {
    if (p.dimension < 1 || p.dimension > (1 << 20)) throw std::invalid_argument("dimension must be between 1 and 1048576");
    if (p.m < 2 || p.m > kConnectionsMax) throw std::invalid_argument("m must be between 2 and 1024");
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
    std::unique_ptr<std::atomic<int32_t>[]> states(new std::atomic<int32_t>[count]);
    for (size_t i = 0; i < count; ++i) states[i].store(LabelTable::kNone, std::memory_order_relaxed);
    std::vector<int> levels(count);
    // calloc, since hnswlib frees what it finds here.
    char** lists = static_cast<char**>(std::calloc(count, sizeof(char*)));
    if (!lists) throw std::bad_alloc();
    {
        AloneEntry alone(gate_);
        try {
            region_.grow(base_ + count * size_data_per_element_);
        } catch (...) {
            std::free(lists);
            throw;
        }
        const size_t filled = cur_element_count;
        labels_.reserve(std::move(states), filled);
        std::copy_n(element_levels_.begin(), filled, levels.begin());
        if (filled) std::copy_n(linkLists_, filled, lists);
        std::swap(lists, linkLists_);
        data_level0_memory_ = region_.data() + base_;
        link_list_locks_.swap(locks);
        element_levels_.swap(levels);
        visited_list_pool_.swap(visited);
        max_elements_ = count;
    }
    std::free(lists);
}

void Graph::check_new(const int64_t* labels, size_t count) const {
    std::unordered_set<int64_t> seen(2 * count);
    for (size_t i = 0; i < count; ++i) {
        if (labels[i] < 0 || labels[i] > kLabelMax) throw std::invalid_argument("label " + std::to_string(labels[i]) + " is out of range");
        if (labels_.node_of(labels[i]) != LabelTable::kNoNode) throw std::invalid_argument("label " + std::to_string(labels[i]) + " has a node");
        if (!seen.insert(labels[i]).second) throw std::invalid_argument("label " + std::to_string(labels[i]) + " stands twice");
    }
}

void Graph::encode(const float* vector, char* code) {
    bool clipped = false;
    const float residual = codec_.encode(vector, code, &clipped);
    if (clipped) ++clipped_count_;
    float largest = residual_max_;
    while (residual > largest && !residual_max_.compare_exchange_weak(largest, residual)) {
    }
}

NodeId Graph::insert(const char* code, size_t number) {
    node_number = number;
    {
        InsertionEntry entry(gate_);
        // Where no other insertion is inside that changes it, the top level may be read.
        if (getRandomLevel(mult_) <= maxlevel_) return insert_inside(code, number);
    }
    AloneEntry alone(gate_);
    return insert_inside(code, number);
}

NodeId Graph::insert_inside(const char* code, size_t number) {
    const NodeId node = addPoint(code, number, -1);
    // hnswlib's own way from label to node is not used: it would cost as much memory as a small code.
    std::lock_guard<std::mutex> lock(label_lookup_lock);
    label_lookup_.erase(number);
    return node;
}

void Graph::attach(int64_t label, NodeId node) {
    std::lock_guard<std::mutex> lock(unswept_mutex_);
    if (unswept_.erase(node)) unswept_count_ = unswept_.size();
    labels_.attach(label, node);
}

void Graph::add(const float* vectors, const int64_t* labels, size_t count, unsigned threads) {
    if (!count) return;
    std::lock_guard<std::mutex> lock(writing_);
    check_new(labels, count);
    if (cur_element_count + count > max_elements_) grow(std::max(cur_element_count + count, max_elements_ + max_elements_ / 2));
    for (size_t start = 0; start < count; start += kSlice)
        add_slice(vectors + start * codec_.dimension, labels + start, std::min(kSlice, count - start), threads);
}

void Graph::add_slice(const float* vectors, const int64_t* labels, size_t count, unsigned threads) {
    const size_t bytes = codec_.code_bytes(), used = std::min<size_t>(threads, (count + 3) / 4);
    std::vector<char> codes(count * bytes);
    parallel(count, used, Purpose::kBackground, [&](size_t i) { encode(vectors + i * codec_.dimension, &codes[i * bytes]); });

    // Nodes for codes that none has, each once; `number` is that of the code in `fresh`, which also stands in for its node until that is made.
    const size_t first = cur_element_count;
    std::vector<size_t> fresh;
    const auto code_of = [&](NodeId node) { return node < first ? getDataByInternalId(node) : &codes[fresh[node - first] * bytes]; };
    codes_.reserve(count, code_of);
    codes_bytes_ = codes_.memory_bytes();
    std::vector<NodeId> nodes(count);
    std::vector<size_t> places(count);
    size_t shared = 0;
    for (size_t i = 0; i < count; ++i) {
        places[i] = codes_.find(&codes[i * bytes], code_of);
        nodes[i] = codes_[places[i]];
        // A node that insertions link to no more is worth less than a new one.
        if (nodes[i] == LabelTable::kNoNode || (nodes[i] < first && isMarkedDeleted(nodes[i]))) {
            nodes[i] = static_cast<NodeId>(first + fresh.size());
            fresh.push_back(i);
            codes_.put(places[i], nodes[i]);
        } else {
            ++shared;
        }
    }
    if (labels_.wants_room(shared)) {
        AloneEntry alone(gate_);
        labels_.make_room(shared);
    }
    std::vector<NodeId> made(fresh.size());
    try {
        parallel(made.size(), used, Purpose::kBackground, [&](size_t i) {
            made[i] = insert(&codes[fresh[i] * bytes], first + i);
            attach(labels[fresh[i]], made[i]);
        });
    } catch (...) {
        find_codes_again();
        throw;
    }
    for (size_t i = 0; i < made.size(); ++i) codes_.put(places[fresh[i]], made[i]);
    for (size_t i = 0, next = 0; i < count; ++i) {
        if (next < fresh.size() && fresh[next] == i) {
            ++next;
        } else {
            attach(labels[i], nodes[i] < first ? nodes[i] : made[nodes[i] - first]);
        }
    }
}

// Makes the table of codes of all nodes.
void Graph::find_codes_again() {
    const auto code_of = [&](NodeId node) { return getDataByInternalId(node); };
    const size_t count = cur_element_count;
    codes_.clear();
    codes_.reserve(count, code_of);
    codes_bytes_ = codes_.memory_bytes();
    for (size_t i = 0; i < count; ++i) {
        const auto node = static_cast<NodeId>(i);
        const size_t place = codes_.find(getDataByInternalId(node), code_of);
        if (codes_[place] == LabelTable::kNoNode || isMarkedDeleted(codes_[place])) codes_.put(place, node);
    }
}

size_t Graph::remove(const int64_t* labels, size_t count) {
    std::lock_guard<std::mutex> lock(unswept_mutex_);
    size_t removed = 0;
    for (size_t i = 0; i < count; ++i) {
        bool was_last;
        const NodeId node = labels_.detach(labels[i], &was_last);
        removed += node != LabelTable::kNoNode;
        if (was_last) unswept_.insert(node);
    }
    unswept_count_ = unswept_.size();
    return removed;
}

size_t Graph::sweep(size_t count_max) {
    std::lock_guard<std::mutex> lock(writing_);
    std::vector<NodeId> swept;
    {
        std::lock_guard<std::mutex> unswept_lock(unswept_mutex_);
        while (swept.size() < count_max && !unswept_.empty()) {
            swept.push_back(*unswept_.begin());
            unswept_.erase(unswept_.begin());
        }
        unswept_count_ = unswept_.size();
    }
    if (swept.empty()) return 0;
    AloneEntry alone(gate_);
    for (NodeId node : swept) markDeletedInternal(node);
    swept_count_ += swept.size();
    return swept.size();
}

size_t Graph::memory_bytes() const {
    const size_t count = cur_element_count;
    const double upper = static_cast<double>(size_links_per_element_ + 16) / static_cast<double>(M_ - 1);
    const size_t each = size_data_per_element_ + sizeof(std::mutex) + sizeof(char*) + sizeof(int) + sizeof(int32_t);
    return count * (each + static_cast<size_t>(upper)) + labels_.bytes() + codes_bytes_;
}

void Graph::holding(const int64_t* labels, size_t count, bool* out) const {
    for (size_t i = 0; i < count; ++i) out[i] = labels_.node_of(labels[i]) != LabelTable::kNoNode;
}

std::vector<int64_t> Graph::labels() const {
    SearchEntry entry(gate_);
    std::vector<int64_t> found;
    const size_t count = cur_element_count;
    for (size_t node = 0; node < count; ++node)
        labels_.visit(labels_.state(static_cast<NodeId>(node)), [&](int64_t label) { found.push_back(label); });
    return found;
}

std::vector<int64_t> Graph::labels(Allowed allowed) const {
    constexpr size_t kBlock = 512;
    int64_t some[kBlock];
    NodeId nodes[kBlock];
    std::vector<int64_t> found;
    int64_t from = 0;
    while (const size_t size = allowed.next(&from, allowed.count, some, kBlock)) {
        labels_.nodes_of(some, size, nodes);
        for (size_t i = 0; i < size; ++i)
            if (nodes[i] != LabelTable::kNoNode && allowed(some[i])) found.push_back(some[i]);
    }
    return found;
}

}  // namespace vecmem
