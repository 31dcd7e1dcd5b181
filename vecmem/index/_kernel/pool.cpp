#include "pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

#include <signal.h>
#include <unistd.h>

namespace vecmem {

namespace {

constexpr size_t kHelpersMax = 256;

struct Job {
    Job(size_t n, const std::function<void(size_t)>& f) : count(n), work(f) {}

    void run() {
        try {
            for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(i);
        } catch (...) {
            next = count;
            std::lock_guard<std::mutex> lock(failure_mutex);
            failure = std::current_exception();
        }
    }

    const size_t count;
    const std::function<void(size_t)>& work;
    std::atomic<size_t> next{0};
    std::mutex failure_mutex;
    std::exception_ptr failure;
    size_t inside = 0;  // helpers, guarded by the pool's mutex
};

class Pool {
  public:
    const pid_t process = getpid();

    void run(Job& job, size_t helpers) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            for (size_t i = 0; i < helpers; ++i) {
                if (waiting_.size() >= idle_ && !start()) break;  // fewer threads, the same work
                waiting_.push_back(&job);
            }
        }
        for (size_t i = 0; i < helpers; ++i) wanted_.notify_one();
        job.run();
        std::unique_lock<std::mutex> lock(mutex_);
        // Helpers that have not come yet find nothing to do.
        waiting_.erase(std::remove(waiting_.begin(), waiting_.end(), &job), waiting_.end());
        left_.wait(lock, [&] { return !job.inside; });
    }

  private:
    // Holding mutex_.
    bool start() {
        if (started_ == kHelpersMax) return false;
        try {
            std::thread([this] { help(); }).detach();
        } catch (const std::system_error&) {
            return false;
        }
        ++started_;
        ++idle_;
        return true;
    }

    [[noreturn]] void help() {
        // Signals are for the threads that the process knows of.
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, nullptr);
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wanted_.wait(lock, [&] { return !waiting_.empty(); });
            Job* job = waiting_.front();
            waiting_.pop_front();
            ++job->inside;
            --idle_;
            lock.unlock();
            job->run();
            lock.lock();
            ++idle_;
            if (!--job->inside) left_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable wanted_, left_;
    std::deque<Job*> waiting_;  // once for each helper that a job still wants
    size_t idle_ = 0, started_ = 0;
};

// This process's pool. It never ends, since its helpers wait in it until the process does.
Pool& pool(Purpose purpose) {
    static std::atomic<Pool*> pools[2] = {};
    std::atomic<Pool*>& current = pools[static_cast<size_t>(purpose)];
    Pool* found = current;
    while (!found || found->process != getpid()) {
        // A forked child leaves its parent's pool alone: no thread came with it, and its lock may have been held.
        auto made = std::make_unique<Pool>();
        if (current.compare_exchange_strong(found, made.get())) found = made.release();
    }
    return *found;
}

}  // namespace

void parallel(size_t count, size_t threads, Purpose purpose, const std::function<void(size_t)>& work) {
    Job job(count, work);
    const size_t used = std::min(threads, count);
    if (used > 1) {
        pool(purpose).run(job, used - 1);
    } else {
        job.run();
    }
    if (job.failure) std::rethrow_exception(job.failure);
}

}  // namespace vecmem
