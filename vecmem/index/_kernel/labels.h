// Which labels the nodes of a graph stand for: none, one, or several where vectors have equal codes.
//
// Searches read without locks: a node's state is one atomic number, and the labels of a group stand in memory that is only appended to and
// struck out while searches may look at it. What a group has outgrown is freed when the graph is alone. A reader that began before a change
// sees the labels from before it or from after it; one that was there all the time, always.
//
// Labels are numbers from 0 to kLabelMax that the caller may use again after `detach`. 4 bytes for each node and each label in use, and about
// 70 for each label of a group.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace vecmem {

using NodeId = uint32_t;

class LabelTable {
  public:
    static constexpr int64_t kLabelMax = (int64_t{1} << 31) - 2;
    static constexpr int32_t kNone = -1;
    static constexpr NodeId kNoNode = ~NodeId{0};

    // -- read at any time inside the graph's gate

    // The node's label; kNone; or less, for `visit` and `any` alone to understand.
    int32_t state(NodeId node) const { return states_[node].load(std::memory_order_acquire); }

    // Calls f(label) for each label of a node in that state.
    template <class F>
    void visit(int32_t state, F f) const {
        any(state, [&](int64_t label) {
            f(label);
            return false;
        });
    }

    // Whether f(label) holds for a label of a node in that state; stops at the first.
    template <class F>
    bool any(int32_t state, F f) const {
        if (state >= 0) return f(int64_t{state});
        if (state == kNone) return false;
        const Group& group = *groups_[static_cast<size_t>(-2 - state)].load(std::memory_order_acquire);
        const uint32_t size = group.size.load(std::memory_order_acquire);
        for (uint32_t i = 0; i < size; ++i)
            if (const int32_t label = group.labels[i].load(std::memory_order_relaxed); label >= 0 && f(int64_t{label})) return true;
        return false;
    }

    size_t label_count() const { return label_count_.load(); }
    size_t labelled_node_count() const { return labelled_node_count_.load(); }
    size_t bytes() const { return bytes_.load(); }

    // -- thread-safe; short

    // The node of a label, or kNoNode.
    NodeId node_of(int64_t label) const;
    // Those of many labels.
    void nodes_of(const int64_t* labels, size_t count, NodeId* out) const;

    // Lets a node stand for a label that no node has. Room for one more group is there (`wants_room`).
    void attach(int64_t label, NodeId node);

    // Takes a label away, if a node has it: returns the node, or kNoNode. `was_last` says whether the node has no other.
    NodeId detach(int64_t label, bool* was_last);

    // Whether `make_room` has to come before so many more labels are attached to nodes.
    bool wants_room(size_t count) const;

    // -- alone

    // Room for states of so many nodes, of which the first `filled` are there.
    void reserve(std::unique_ptr<std::atomic<int32_t>[]> states, size_t filled);
    // Room for so many more groups; frees what searches may have looked at before.
    void make_room(size_t count);

  private:
    static constexpr size_t kChunk = 1 << 16;
    static constexpr size_t kOutgrownMax = 1 << 20;

    // Appended to up to `capacity`; a label that left is overwritten by kNone.
    struct Group {
        explicit Group(uint32_t n) : capacity(n), labels(new std::atomic<int32_t>[n]) {}
        const uint32_t capacity;
        std::atomic<uint32_t> size{0};
        uint32_t live = 0;
        const std::unique_ptr<std::atomic<int32_t>[]> labels;
    };

    int32_t* slot_of(int64_t label) const;
    void map(int64_t label, NodeId node);
    void append(Group& group, int32_t label);
    Group* replaced(Group* group, uint32_t capacity);

    mutable std::mutex mutex_;  // guards all below but what is atomic
    std::unique_ptr<std::atomic<int32_t>[]> states_;  // by node
    std::vector<std::unique_ptr<int32_t[]>> nodes_;   // by label, in chunks
    std::unique_ptr<std::atomic<Group*>[]> groups_;
    std::vector<std::unique_ptr<Group>> owned_;  // what groups_ points to, by the same index
    std::vector<uint32_t> free_, freed_;         // indices to use again: now, and after the next make_room
    std::vector<std::unique_ptr<Group>> outgrown_;
    size_t outgrown_bytes_ = 0, group_capacity_ = 0;
    std::unordered_map<int32_t, uint32_t> places_;  // of labels in their groups
    std::atomic<size_t> label_count_{0}, labelled_node_count_{0}, bytes_{0};
};

}  // namespace vecmem
