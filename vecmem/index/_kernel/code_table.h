// Finds the node that has a code: open addressing over node numbers, 5 to 8 bytes a node.
//
// The table keeps no codes and no hashes; it looks at those of the graph. Not thread-safe.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "labels.h"

namespace vecmem {

inline uint64_t mixed(uint64_t x) {
    // Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014), the finalizer of SplitMix64.
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

class CodeTable {
  public:
    // `bytes` is a multiple of 8.
    explicit CodeTable(size_t bytes) : bytes_(bytes) {}

    // A place in the table: of the node with this code, or where it would stand. `code_of(node)` is a node's code.
    template <class CodeOf>
    size_t find(const char* code, CodeOf code_of) const {
        size_t place = home(code);
        while (nodes_[place] != LabelTable::kNoNode && std::memcmp(code_of(nodes_[place]), code, bytes_) != 0) place = next(place);
        return place;
    }
    NodeId operator[](size_t place) const { return nodes_[place]; }

    // Takes a place that `find` returned since the last `put` or `reserve`. There is room for it.
    void put(size_t place, NodeId node) {
        used_ += nodes_[place] == LabelTable::kNoNode;
        nodes_[place] = node;
    }

    // Makes room for `count` more nodes.
    template <class CodeOf>
    void reserve(size_t count, CodeOf code_of) {
        if ((used_ + count) * 4 < nodes_.size() * 3) return;
        std::vector<NodeId> old((used_ + count) * 2 + 16, LabelTable::kNoNode);
        old.swap(nodes_);
        for (NodeId node : old) {
            if (node == LabelTable::kNoNode) continue;
            size_t place = home(code_of(node));
            while (nodes_[place] != LabelTable::kNoNode) place = next(place);
            nodes_[place] = node;
        }
    }

    void clear() {
        used_ = 0;
        nodes_.clear();
    }

    size_t memory_bytes() const { return nodes_.size() * sizeof(NodeId); }

  private:
    size_t next(size_t place) const { return place + 1 == nodes_.size() ? 0 : place + 1; }

    size_t home(const char* code) const {
        uint64_t hash = 0;
        for (size_t i = 0; i < bytes_; i += 8) {
            uint64_t word;
            std::memcpy(&word, code + i, 8);
            hash = ((hash << 5 | hash >> 59) ^ word) * 0x9e3779b97f4a7c15u;
        }
        return static_cast<size_t>((static_cast<unsigned __int128>(mixed(hash)) * nodes_.size()) >> 64);
    }

    const size_t bytes_;
    size_t used_ = 0;
    std::vector<NodeId> nodes_;
};

}  // namespace vecmem
