#include "labels.h"

#include <algorithm>

namespace vecmem {

namespace {

constexpr size_t kPlaceBytes = 48;  // an entry of places_, about

}  // namespace

int32_t* LabelTable::slot_of(int64_t label) const {
    if (label < 0 || label > kLabelMax) return nullptr;
    const auto chunk = static_cast<size_t>(label) / kChunk;
    if (chunk >= nodes_.size() || !nodes_[chunk]) return nullptr;
    int32_t* slot = &nodes_[chunk][static_cast<size_t>(label) % kChunk];
    return *slot < 0 ? nullptr : slot;
}

void LabelTable::map(int64_t label, NodeId node) {
    const auto chunk = static_cast<size_t>(label) / kChunk;
    if (nodes_.size() <= chunk) nodes_.resize(chunk + 1);
    if (!nodes_[chunk]) {
        nodes_[chunk].reset(new int32_t[kChunk]);
        std::fill_n(nodes_[chunk].get(), kChunk, kNone);
        bytes_ += kChunk * sizeof(int32_t);
    }
    nodes_[chunk][static_cast<size_t>(label) % kChunk] = static_cast<int32_t>(node);
}

NodeId LabelTable::node_of(int64_t label) const {
    std::lock_guard<std::mutex> lock(mutex_);
    const int32_t* slot = slot_of(label);
    return slot ? static_cast<NodeId>(*slot) : kNoNode;
}

void LabelTable::nodes_of(const int64_t* labels, size_t count, NodeId* out) const {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < count; ++i) {
        const int32_t* slot = slot_of(labels[i]);
        out[i] = slot ? static_cast<NodeId>(*slot) : kNoNode;
    }
}

void LabelTable::append(Group& group, int32_t label) {
    const uint32_t size = group.size.load(std::memory_order_relaxed);
    places_[label] = size;
    group.labels[size].store(label, std::memory_order_relaxed);
    group.size.store(size + 1, std::memory_order_release);
    ++group.live;
}

// A group with the labels of another, which searches may still look at.
LabelTable::Group* LabelTable::replaced(Group* group, uint32_t capacity) {
    auto made = std::make_unique<Group>(capacity);
    const uint32_t size = group->size.load(std::memory_order_relaxed);
    for (uint32_t i = 0; i < size; ++i)
        if (const int32_t label = group->labels[i].load(std::memory_order_relaxed); label >= 0) append(*made, label);
    bytes_ += capacity * sizeof(int32_t);
    return made.release();
}

void LabelTable::attach(int64_t label, NodeId node) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto number = static_cast<int32_t>(label);
    const int32_t state = states_[node].load(std::memory_order_relaxed);
    map(label, node);
    if (state == kNone) {
        states_[node].store(number, std::memory_order_release);
        ++labelled_node_count_;
    } else if (state >= 0) {
        auto group = std::make_unique<Group>(4);
        append(*group, state);
        append(*group, number);
        size_t index = owned_.size();
        if (free_.empty()) {
            owned_.emplace_back();
        } else {
            index = free_.back();
            free_.pop_back();
        }
        groups_[index].store(group.get(), std::memory_order_release);
        owned_[index] = std::move(group);
        bytes_ += sizeof(Group) + 4 * sizeof(int32_t) + 2 * kPlaceBytes;
        states_[node].store(-2 - static_cast<int32_t>(index), std::memory_order_release);
    } else {
        const auto index = static_cast<size_t>(-2 - state);
        std::unique_ptr<Group>& group = owned_[index];
        if (group->size.load(std::memory_order_relaxed) == group->capacity) {
            std::unique_ptr<Group> larger(replaced(group.get(), std::max(4u, 2 * (group->live + 1))));
            groups_[index].store(larger.get(), std::memory_order_release);
            outgrown_bytes_ += group->capacity * sizeof(int32_t);
            outgrown_.push_back(std::move(group));
            group = std::move(larger);
        }
        append(*group, number);
        bytes_ += kPlaceBytes;
    }
    ++label_count_;
}

NodeId LabelTable::detach(int64_t label, bool* was_last) {
    std::lock_guard<std::mutex> lock(mutex_);
    int32_t* slot = slot_of(label);
    *was_last = false;
    if (!slot) return kNoNode;
    const auto node = static_cast<NodeId>(*slot);
    *slot = kNone;
    --label_count_;
    const int32_t state = states_[node].load(std::memory_order_relaxed);
    if (state < 0) {
        const auto index = static_cast<size_t>(-2 - state);
        Group& group = *owned_[index];
        const auto place = places_.find(static_cast<int32_t>(label));
        group.labels[place->second].store(kNone, std::memory_order_relaxed);
        places_.erase(place);
        bytes_ -= kPlaceBytes;
        if (--group.live) return node;
        outgrown_bytes_ += group.capacity * sizeof(int32_t);
        outgrown_.push_back(std::move(owned_[index]));
        freed_.push_back(static_cast<uint32_t>(index));
    }
    states_[node].store(kNone, std::memory_order_release);
    --labelled_node_count_;
    *was_last = true;
    return node;
}

bool LabelTable::wants_room(size_t count) const {
    std::lock_guard<std::mutex> lock(mutex_);
    return outgrown_bytes_ > kOutgrownMax || free_.size() + (group_capacity_ - owned_.size()) < count;
}

void LabelTable::reserve(std::unique_ptr<std::atomic<int32_t>[]> states, size_t filled) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < filled; ++i) states[i].store(states_[i].load(std::memory_order_relaxed), std::memory_order_relaxed);
    states_ = std::move(states);
}

void LabelTable::make_room(size_t count) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& group : outgrown_) bytes_ -= group->capacity * sizeof(int32_t);
    outgrown_.clear();
    outgrown_bytes_ = 0;
    free_.insert(free_.end(), freed_.begin(), freed_.end());
    freed_.clear();
    if (free_.size() + (group_capacity_ - owned_.size()) >= count) return;
    const size_t wanted = std::max(owned_.size() + count, 2 * owned_.size());
    std::unique_ptr<std::atomic<Group*>[]> groups(new std::atomic<Group*>[wanted]);
    owned_.reserve(wanted);
    for (size_t i = 0; i < owned_.size(); ++i) groups[i].store(owned_[i].get(), std::memory_order_relaxed);
    groups_ = std::move(groups);
    group_capacity_ = wanted;
}

}  // namespace vecmem
