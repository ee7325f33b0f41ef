// Large blocks of memory that are used again. A gradient the size of all segments, fresh from the system each step,
// costs more in page faults than in arithmetic; here it keeps its (huge) pages from step to step.
#pragma once
#include <cstddef>
#include <cstdint>

namespace dk {

class Block {  // memory that goes back to the pool with its last owner
 public:
  explicit Block(size_t bytes);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_, capacity_;
  void* data_;
};

size_t pool_bytes();   // held by the pool, in no use
void pool_release();   // gives them back to the system

}  // namespace dk
