// Runs many small pieces of work on the calling thread and helpers that wait for such calls.
//
// Starting a thread and joining it costs as much as a search; waking one that waits costs a tenth of that. The helpers belong to the process
// and never end. A forked child has none of its parent's helpers and starts its own when it asks for some, without touching a lock that
// may have been held at the moment of the fork.
#pragma once

#include <cstddef>
#include <functional>

namespace vecmem {

// Helpers of their own for searches and for what nobody waits for: insertions, and searches that only measure. These give way: on Linux they run
// at niceness 10 and ask the scheduler for long slices, which whoever wakes up may interrupt. The calling thread waits for them and keeps its
// priority, since it may hold what others wait for, as Python's lock.
enum class Purpose { kSearch, kBackground };

// Calls work(i) once for each i below `count`, on up to `threads` threads, the calling one among them unless it is in the background. Where one
// throws, no further pieces begin, and one of the exceptions is thrown again here.
void parallel(size_t count, size_t threads, Purpose purpose, const std::function<void(size_t)>& work);

}  // namespace vecmem
