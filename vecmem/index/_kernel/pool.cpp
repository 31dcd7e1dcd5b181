#include "pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

#include <sched.h>
#include <signal.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/resource.h>
#include <sys/syscall.h>
#endif

namespace vecmem {

namespace {

constexpr size_t kHelpersMax = 256;
constexpr int kBackgroundNiceness = 10;

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

#ifdef __linux__
// To be less nice than the thread that starts this one is not allowed, nor wanted. Since Linux 6.6 a thread that wakes up waits for the end of the
// running one's slice, whatever their niceness, unless its own slice is shorter; since 6.12 a thread may say how long its slice is (sched(7),
// sched_setattr(2)). An older system takes no notice of that.
void give_way(int niceness) {
    setpriority(PRIO_PROCESS, static_cast<id_t>(syscall(SYS_gettid)), niceness);
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime_ns, deadline_ns, period_ns;
    } attributes = {sizeof(attributes), SCHED_OTHER, 0, niceness, 0, 100'000'000, 0, 0};
    syscall(SYS_sched_setattr, 0, &attributes, 0);
}
#endif

class Pool {
  public:
    explicit Pool(int niceness) : niceness_(niceness) {}

    const pid_t process = getpid();

    // `alone`: the calling thread waits for the helpers, unless there are none.
    void run(Job& job, size_t helpers, bool alone) {
        size_t found = 0;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            for (; found < helpers; ++found) {
                if (waiting_.size() >= idle_ && !start()) break;  // fewer threads, the same work
                waiting_.push_back(&job);
            }
        }
        for (size_t i = 0; i < found; ++i) wanted_.notify_one();
        if (alone && found) {
            std::unique_lock<std::mutex> lock(mutex_);
            left_.wait(lock, [&] { return job.next >= job.count && !job.inside; });
        } else {
            job.run();
        }
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
#ifdef __linux__
        // Elsewhere niceness is the process's.
        if (niceness_) give_way(niceness_);
#endif
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

    const int niceness_;
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
        auto made = std::make_unique<Pool>(purpose == Purpose::kBackground ? kBackgroundNiceness : 0);
        if (current.compare_exchange_strong(found, made.get())) found = made.release();
    }
    return *found;
}

}  // namespace

void parallel(size_t count, size_t threads, Purpose purpose, const std::function<void(size_t)>& work) {
    Job job(count, work);
    const size_t used = std::min(threads, count);
    if (purpose == Purpose::kBackground) {
        pool(purpose).run(job, used, true);
    } else if (used > 1) {
        pool(purpose).run(job, used - 1, false);
    } else {
        job.run();
    }
    if (job.failure) std::rethrow_exception(job.failure);
}

}  // namespace vecmem
