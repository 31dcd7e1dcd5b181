// Who may be inside a graph together.
//
//   plain searches     many, while nothing changes: they read neighbour lists as they are, without locks
//   guarded searches   many, beside insertions: they copy each neighbour list under the lock of its element, as insertions write it
//   insertions         many, one entry a vector
//   alone              one: marking nodes deleted, growing
//
// A search enters as plain when no insertion is inside or waiting, else as guarded: it never waits for insertions, and an insertion waits
// at most for the plain searches already inside. Whoever wants to be alone keeps new entries out until those inside have left, which
// takes one search or one insertion of a vector.
#pragma once

#include <condition_variable>
#include <mutex>

namespace vecmem {

class Gate {
  public:
    // Returns whether the search is guarded.
    bool enter_search() {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return !alone_ && !waiting_alone_; });
        const bool guarded = inserting_ || waiting_insertions_;
        ++(guarded ? guarded_ : plain_);
        return guarded;
    }

    void leave_search(bool guarded) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!--(guarded ? guarded_ : plain_) && (waiting_alone_ || waiting_insertions_)) changed_.notify_all();
    }

    void enter_insertion() {
        std::unique_lock<std::mutex> lock(mutex_);
        ++waiting_insertions_;
        changed_.wait(lock, [&] { return !alone_ && !waiting_alone_ && !plain_; });
        --waiting_insertions_;
        ++inserting_;
    }

    void leave_insertion() {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!--inserting_ && waiting_alone_) changed_.notify_all();
    }

    void enter_alone() {
        std::unique_lock<std::mutex> lock(mutex_);
        ++waiting_alone_;
        changed_.wait(lock, [&] { return !alone_ && !plain_ && !guarded_ && !inserting_; });
        --waiting_alone_;
        alone_ = true;
    }

    void leave_alone() {
        std::lock_guard<std::mutex> lock(mutex_);
        alone_ = false;
        changed_.notify_all();
    }

  private:
    std::mutex mutex_;
    std::condition_variable changed_;
    int plain_ = 0, guarded_ = 0, inserting_ = 0, waiting_insertions_ = 0, waiting_alone_ = 0;
    bool alone_ = false;
};

class SearchEntry {
  public:
    explicit SearchEntry(Gate& gate) : gate_(gate), guarded(gate.enter_search()) {}
    ~SearchEntry() { gate_.leave_search(guarded); }
    SearchEntry(const SearchEntry&) = delete;
    SearchEntry& operator=(const SearchEntry&) = delete;

  private:
    Gate& gate_;

  public:
    const bool guarded;
};

class InsertionEntry {
  public:
    explicit InsertionEntry(Gate& gate) : gate_(gate) { gate_.enter_insertion(); }
    ~InsertionEntry() { gate_.leave_insertion(); }
    InsertionEntry(const InsertionEntry&) = delete;
    InsertionEntry& operator=(const InsertionEntry&) = delete;

  private:
    Gate& gate_;
};

class AloneEntry {
  public:
    explicit AloneEntry(Gate& gate) : gate_(gate) { gate_.enter_alone(); }
    ~AloneEntry() { gate_.leave_alone(); }
    AloneEntry(const AloneEntry&) = delete;
    AloneEntry& operator=(const AloneEntry&) = delete;

  private:
    Gate& gate_;
};

}  // namespace vecmem
