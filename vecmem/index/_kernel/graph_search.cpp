// Searches of a graph: the paper's algorithms 2 and 5.
#include "graph.h"

#include <algorithm>
#include <limits>

namespace vecmem {

namespace {

// Beams are kept sorted by insertion up to this size; beyond, two heaps are cheaper.
constexpr size_t kBeamMax = 512;

void prefetch(const char* start, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(start + i);
}

}  // namespace

template <bool guarded>
const NodeId* Graph::neighbours(NodeId node, int level, NodeId* copy, size_t* count) const {
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
                        std::vector<Found>& out, size_t* compared) const {
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
        if constexpr (!guarded) {
            // Most likely the next to be looked at.
            size_t after = next + 1;
            while (after < size && beam[after].node & kExpanded) ++after;
            if (after < size) prefetch(reinterpret_cast<const char*>(get_linklist0(beam[after].node)), size_links_level0_);
        }
        const size_t bytes = data_size_;
        constexpr size_t kAhead = 4;
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
        if (const int32_t state = labels_.state(beam[i].node & ~kExpanded); state != LabelTable::kNone) out.push_back({beam[i].distance, state});
}

template <bool guarded>
void Graph::search_heaps(NodeId entry, float distance, const char* code, const DistanceParams& params, size_t ef, Allowed allowed,
                         size_t compared_max, std::vector<Found>& out, size_t* compared, bool* gave_up) const {
    NodeId copy[kNeighboursMax], fresh[kNeighboursMax];
    std::vector<Near> open;
    const auto further = [](const Near& a, const Near& b) { return a.distance > b.distance; };
    const auto nearer = [](const Found& a, const Found& b) { return a.distance < b.distance; };
    out.reserve(ef + 1);
    const auto take = [&](float d, NodeId node) {
        const int32_t state = labels_.state(node);
        if (!labels_.any(state, allowed)) return;
        out.push_back({d, state});
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
        if (*compared > compared_max) {
            *gave_up = true;
            break;
        }
        std::pop_heap(open.begin(), open.end(), further);
        open.pop_back();
        size_t count;
        const NodeId* links = neighbours<guarded>(near.node, 0, copy, &count);
        count = unvisited(links, count, list->mass, list->curV, fresh);
        *compared += count;
        constexpr size_t kAhead = 4;
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
std::vector<Graph::Found> Graph::search_as(const char* code, const DistanceParams& params, size_t ef, Allowed allowed, bool every,
                                           size_t compared_max, size_t* compared, bool* gave_up) const {
    std::vector<Found> out;
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
    if (!every && !allowed.bits && ef <= kBeamMax && !dead_count())
        search_beam<guarded>(entry, distance, code, params, ef, out, compared);
    else
        search_heaps<guarded>(entry, distance, code, params, ef, allowed, compared_max, out, compared, gave_up);
    return out;
}

std::vector<int64_t> Graph::search(const char* code, const DistanceParams& params, size_t ef, size_t kept, Allowed allowed, size_t compared_max,
                                   size_t* compared, bool* gave_up) const {
    SearchEntry entry(gate_);
    std::vector<int64_t> labels;
    // Nearly always the snapshot sees all that is near, and to ask of the few that are kept is enough. Where it does not, every node is asked.
    for (bool every = false;; every = true) {
        Allowed near = allowed;
        if (!every) near.snapshot = nullptr;
        const std::vector<Found> found = entry.guarded
                                             ? search_as<true>(code, params, ef, near, every, compared_max, compared, gave_up)
                                             : search_as<false>(code, params, ef, near, every, compared_max, compared, gave_up);
        bool missed = false;
        labels.clear();
        if (*gave_up) return labels;
        labels.reserve(std::min(found.size(), kept));
        for (size_t i = 0; i < std::min(found.size(), kept); ++i) {
            const size_t before = labels.size();
            labels_.visit(found[i].state, [&](int64_t label) {
                if (allowed(label)) labels.push_back(label);
            });
            missed |= labels.size() == before;
        }
        if (!missed || every) return labels;
    }
}

}  // namespace vecmem
