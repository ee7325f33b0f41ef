#include "cpu/pool.h"

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace dk {
namespace {

constexpr size_t kPage = size_t(2) << 20;
constexpr uint64_t kPatience = 64;  // a block that this many requests passed by goes back to the system

struct Idle {
  void* data;
  size_t capacity;
  uint64_t since;
};

std::mutex guard;
std::vector<Idle> idle;
uint64_t requests = 0;

void* from_system(size_t capacity) {
  void* data = std::aligned_alloc(kPage, capacity);
  if (!data) throw std::bad_alloc();
#ifdef __linux__
  madvise(data, capacity, MADV_HUGEPAGE);  // a hint: without it the pages are small
#endif
  return data;
}

}  // namespace

Block::Block(size_t bytes) : bytes_(bytes), capacity_((bytes + kPage - 1) / kPage * kPage), data_(nullptr) {
  std::lock_guard<std::mutex> lock(guard);
  requests++;
  for (size_t i = 0; i < idle.size();) {
    const bool fits = !data_ && idle[i].capacity == capacity_;
    if (fits) data_ = idle[i].data;
    else if (requests - idle[i].since > kPatience) std::free(idle[i].data);
    else {
      i++;
      continue;
    }
    idle[i] = idle.back();
    idle.pop_back();
  }
  if (!data_) data_ = from_system(capacity_);
}

Block::~Block() {
  std::lock_guard<std::mutex> lock(guard);
  idle.push_back({data_, capacity_, requests});
}

size_t pool_bytes() {
  std::lock_guard<std::mutex> lock(guard);
  size_t total = 0;
  for (const Idle& block : idle) total += block.capacity;
  return total;
}

void pool_release() {
  std::lock_guard<std::mutex> lock(guard);
  for (const Idle& block : idle) std::free(block.data);
  idle.clear();
}

}  // namespace dk
