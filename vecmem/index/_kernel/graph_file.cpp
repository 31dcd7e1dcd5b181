// A graph as bytes, little-endian:
//
//   Header            fixed size, see below
//   elements          node_count x (links of the bottom layer, code), as in memory without the padding
//   levels            node_count x int32
//   lists             for each node of a level above 0, its upper lists
//   label counts      node_count x uint32, 0 where removed
//   labels            int32 each, those of a node together, in order of nodes
//   unswept           unswept_count x uint32, removed nodes without hnswlib's mark
//   checksum          CRC32C of all bytes before, uint32
//
// Loading trusts nothing: the checksum first, then every number that memory is reached by.

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_set>

#include "graph.h"

namespace vecmem {

namespace {

constexpr char kMagic[8] = {'v', 'm', 'k', 'g', 'r', 'a', 'p', 'h'};
constexpr uint32_t kVersion = 2;
constexpr std::chrono::milliseconds kPause{1}, kPatience{20'000};

struct Header {
    char magic[8];
    uint32_t version, code, metric, dimension, m, ef_construction;
    float scale, residual_max;
    uint64_t node_count, label_count, unswept_count, clipped_count, lists_bytes;
    uint32_t entry;
    int32_t top_level;
};

// CRC32C, eight bytes a step (Kounavis and Berry, "Novel table lookup-based algorithms for high-performance CRC generation", 2008).
class Crc {
  public:
    void update(const void* data, size_t size) {
        const auto& t = tables();
        const auto* p = static_cast<const uint8_t*>(data);
        uint32_t crc = crc_;
        for (; size >= 8; size -= 8, p += 8) {
            uint32_t low, high;
            std::memcpy(&low, p, 4);
            std::memcpy(&high, p + 4, 4);
            low ^= crc;
            crc = t[7][low & 255] ^ t[6][low >> 8 & 255] ^ t[5][low >> 16 & 255] ^ t[4][low >> 24] ^ t[3][high & 255] ^ t[2][high >> 8 & 255] ^
                  t[1][high >> 16 & 255] ^ t[0][high >> 24];
        }
        for (; size; --size) crc = crc >> 8 ^ t[0][(crc ^ *p++) & 255];
        crc_ = crc;
    }
    uint32_t value() const { return ~crc_; }

  private:
    using Tables = std::array<std::array<uint32_t, 256>, 8>;
    static const Tables& tables() {
        static const Tables built = [] {
            Tables t{};
            for (uint32_t i = 0; i < 256; ++i) {
                uint32_t crc = i;
                for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
                t[0][i] = crc;
            }
            for (size_t i = 0; i < 256; ++i)
                for (size_t k = 1; k < 8; ++k) t[k][i] = t[k - 1][i] >> 8 ^ t[0][t[k - 1][i] & 255];
            return t;
        }();
        return built;
    }
    uint32_t crc_ = ~0u;
};

struct File {
    explicit File(const std::string& path, const char* mode) : handle(std::fopen(path.c_str(), mode)) {
        if (!handle) throw std::runtime_error("cannot open " + path);
    }
    ~File() {
        if (handle) std::fclose(handle);
    }
    void close(const std::string& path) {
        std::FILE* closing = handle;
        handle = nullptr;
        if (std::fclose(closing)) throw std::runtime_error("cannot write " + path);
    }
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    std::FILE* handle;
};

[[noreturn]] void damaged(const char* what) { throw std::runtime_error(std::string("the graph is damaged: ") + what); }

}  // namespace

void Graph::write(const std::function<void(const void*, size_t)>& sink) const {
    // In a child that was forked in the middle of an insertion the lock stays taken for good: better an error than to wait for ever.
    std::unique_lock<std::mutex> lock(writing_, std::try_to_lock);
    for (auto waited = std::chrono::milliseconds(0); !lock.owns_lock(); waited += kPause) {
        if (waited > kPatience) throw std::runtime_error("the graph is being written to");
        std::this_thread::sleep_for(kPause);
        (void)lock.try_lock();
    }
    Crc crc;
    const auto put = [&](const void* data, size_t size) {
        crc.update(data, size);
        sink(data, size);
    };
    // Not under the locks of labels_ and unswept_, which a forked child may find taken: a label that is removed meanwhile is on one side or
    // the other.
    const size_t count = cur_element_count;
    Header header{};
    std::memcpy(header.magic, kMagic, sizeof kMagic);
    header.version = kVersion;
    header.code = static_cast<uint32_t>(params_.code);
    header.metric = static_cast<uint32_t>(params_.metric);
    header.dimension = static_cast<uint32_t>(params_.dimension);
    header.m = static_cast<uint32_t>(params_.m);
    header.ef_construction = static_cast<uint32_t>(params_.ef_construction);
    header.scale = params_.scale;
    header.residual_max = residual_max_;
    header.node_count = count;
    header.clipped_count = clipped_count_;
    header.entry = enterpoint_node_;
    header.top_level = maxlevel_;
    for (size_t i = 0; i < count; ++i) header.lists_bytes += static_cast<size_t>(element_levels_[i]) * size_links_per_element_;
    std::vector<uint32_t> label_counts(count);
    std::vector<int32_t> labels;
    std::vector<NodeId> unswept;
    for (size_t i = 0; i < count; ++i) {
        const auto node = static_cast<NodeId>(i);
        const size_t before = labels.size();
        labels_.visit(labels_.state(node), [&](int64_t label) { labels.push_back(static_cast<int32_t>(label)); });
        label_counts[i] = static_cast<uint32_t>(labels.size() - before);
        if (!label_counts[i] && !isMarkedDeleted(node)) unswept.push_back(node);
    }
    header.label_count = labels.size();
    header.unswept_count = unswept.size();
    put(&header, sizeof header);
    for (size_t i = 0; i < count; ++i) put(data_level0_memory_ + i * size_data_per_element_, label_offset_);
    put(element_levels_.data(), count * sizeof(int));
    for (size_t i = 0; i < count; ++i)
        if (element_levels_[i]) put(linkLists_[i], static_cast<size_t>(element_levels_[i]) * size_links_per_element_);
    put(label_counts.data(), count * sizeof(uint32_t));
    put(labels.data(), labels.size() * sizeof(int32_t));
    put(unswept.data(), unswept.size() * sizeof(NodeId));
    const uint32_t value = crc.value();
    sink(&value, sizeof value);
}

// `source` fills a buffer or throws; `size` bytes stand behind it in all.
void Graph::read(const std::function<void(void*, size_t)>& source, size_t size) {
    std::lock_guard<std::mutex> lock(writing_);
    if (cur_element_count) throw std::invalid_argument("only an empty graph can be loaded");
    Crc crc;
    const auto get = [&](void* data, size_t bytes) {
        source(data, bytes);
        crc.update(data, bytes);
    };
    Header header;
    if (size < sizeof header + sizeof(uint32_t)) damaged("too short");
    get(&header, sizeof header);
    if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) damaged("not a graph");
    if (header.version != kVersion) throw std::runtime_error("the graph has format version " + std::to_string(header.version) + ", not " + std::to_string(kVersion));
    if (header.code != static_cast<uint32_t>(params_.code) || header.metric != static_cast<uint32_t>(params_.metric) ||
        header.dimension != params_.dimension || header.m != params_.m || header.scale != params_.scale)
        throw std::runtime_error("the graph was made with other parameters");
    const uint64_t count = header.node_count;
    const uint64_t each = label_offset_ + sizeof(int) + sizeof(uint32_t);
    if (count > static_cast<uint64_t>(kLabelMax) || count > size / each || header.unswept_count > count || header.lists_bytes > size ||
        header.label_count > size ||
        size != sizeof header + count * each + header.lists_bytes + header.label_count * sizeof(int32_t) + header.unswept_count * sizeof(NodeId) +
                    sizeof(uint32_t))
        damaged("its size is not what its header says");
    if (!(header.residual_max >= 0)) damaged("residual");
    grow(std::max<size_t>(count, kInitialCapacity));
    // Nothing is visible before `cur_element_count` is set, alone, at the end.
    for (size_t i = 0; i < count; ++i) get(data_level0_memory_ + i * size_data_per_element_, label_offset_);
    std::vector<int> levels(max_elements_);
    get(levels.data(), count * sizeof(int));
    uint64_t lists_bytes = 0;
    for (size_t i = 0; i < count; ++i) {
        if (levels[i] < 0 || levels[i] > 64) damaged("a level");
        lists_bytes += static_cast<uint64_t>(levels[i]) * size_links_per_element_;
    }
    if (lists_bytes != header.lists_bytes) damaged("its levels");
    const auto free_lists = [&] {
        for (size_t i = 0; i < count; ++i) {
            std::free(linkLists_[i]);
            linkLists_[i] = nullptr;
        }
    };
    try {
        for (size_t i = 0; i < count; ++i) {
            if (!levels[i]) continue;
            const size_t bytes = static_cast<size_t>(levels[i]) * size_links_per_element_;
            linkLists_[i] = static_cast<char*>(std::malloc(bytes + 1));
            if (!linkLists_[i]) throw std::bad_alloc();
            get(linkLists_[i], bytes);
        }
        std::vector<uint32_t> label_counts(count);
        get(label_counts.data(), count * sizeof(uint32_t));
        std::vector<int32_t> labels(header.label_count);
        get(labels.data(), labels.size() * sizeof(int32_t));
        std::vector<NodeId> unswept(header.unswept_count);
        get(unswept.data(), unswept.size() * sizeof(NodeId));
        uint32_t expected;
        source(&expected, sizeof expected);
        if (crc.value() != expected) damaged("checksum");
        for (size_t i = 0; i < count; ++i) {
            for (int level = 0; level <= levels[i]; ++level) {
                auto* list = get_linklist_at_level(static_cast<NodeId>(i), level);
                const size_t links = getListCount(list);
                if (links > (level ? maxM_ : maxM0_)) damaged("a neighbour list");
                for (size_t j = 1; j <= links; ++j)
                    if (list[j] >= count || levels[list[j]] < level || list[j] == i) damaged("a neighbour");
            }
        }
        if (count ? header.entry >= count || header.top_level < 0 || levels[header.entry] != header.top_level
                  : header.entry != static_cast<NodeId>(-1) || header.top_level != -1)
            damaged("its entry point");
        std::unordered_set<int32_t> seen(2 * labels.size());
        for (int32_t label : labels)
            if (label < 0 || label > kLabelMax || !seen.insert(label).second) damaged("a label");
        uint64_t label_count = 0;
        for (uint32_t of_node : label_counts) label_count += of_node;
        if (label_count != labels.size()) damaged("its labels");
        for (NodeId node : unswept)
            if (node >= count || label_counts[node] || isMarkedDeleted(node)) damaged("a removed node");
        AloneEntry alone(gate_);
        labels_.make_room(static_cast<size_t>(std::count_if(label_counts.begin(), label_counts.end(), [](uint32_t n) { return n > 1; })));
        size_t marked = 0;
        for (size_t i = 0, next = 0; i < count; ++i) {
            const auto node = static_cast<NodeId>(i);
            for (uint32_t j = 0; j < label_counts[i]; ++j) labels_.attach(labels[next++], node);
            setExternalLabel(node, i);
            marked += isMarkedDeleted(node);
        }
        element_levels_.swap(levels);
        std::lock_guard<std::mutex> unswept_lock(unswept_mutex_);
        unswept_.insert(unswept.begin(), unswept.end());
        unswept_count_ = unswept_.size();
        num_deleted_ = marked;
        swept_count_ = marked;
        clipped_count_ = header.clipped_count;
        residual_max_ = header.residual_max;
        enterpoint_node_ = header.entry;
        maxlevel_ = header.top_level;
        cur_element_count = count;
        find_codes_again();
    } catch (...) {
        free_lists();
        throw;
    }
}

void Graph::save(const std::string& path) const {
    File file(path, "wb");
    write([&](const void* data, size_t size) {
        if (std::fwrite(data, 1, size, file.handle) != size) throw std::runtime_error("cannot write " + path);
    });
    file.close(path);
}

std::string Graph::to_bytes() const {
    std::string bytes;
    write([&](const void* data, size_t size) { bytes.append(static_cast<const char*>(data), size); });
    return bytes;
}

void Graph::load(const std::string& path) {
    File file(path, "rb");
    if (std::fseek(file.handle, 0, SEEK_END)) throw std::runtime_error("cannot read " + path);
    const long size = std::ftell(file.handle);
    if (size < 0 || std::fseek(file.handle, 0, SEEK_SET)) throw std::runtime_error("cannot read " + path);
    read(
        [&](void* data, size_t wanted) {
            if (std::fread(data, 1, wanted, file.handle) != wanted) throw std::runtime_error("cannot read " + path);
        },
        static_cast<size_t>(size));
}

void Graph::from_bytes(const char* content, size_t size) {
    size_t position = 0;
    read(
        [&](void* data, size_t wanted) {
            if (wanted > size - position) damaged("too short");
            if (wanted) std::memcpy(data, content + position, wanted);
            position += wanted;
        },
        size);
}

}  // namespace vecmem
