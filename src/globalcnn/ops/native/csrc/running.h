// What the entry points to the kernels share (PyTorch's operators, ONNX Runtime's): which kernels, how many
// channels at once, scratch memory, and how large a share of the work one thread takes.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace globalcnn {

// The best instruction set of this processor, or the one that GLOBALCNN_ISA names if it can run here.
inline const Kernels* choose_kernels() {
  const Kernels* usable[3] = {kernels_plain(), nullptr, nullptr};
#if defined(__x86_64__) || defined(_M_X64)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) usable[1] = kernels_avx2();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    usable[2] = kernels_avx512();
#endif
  const char* wanted = std::getenv("GLOBALCNN_ISA");
  const Kernels* best = nullptr;
  for (const Kernels* k : usable)
    if (k && (!wanted || !*wanted || std::strcmp(wanted, k->name) == 0)) best = k;
  if (!best)
    throw std::runtime_error(std::string("GLOBALCNN_ISA=") + wanted + " cannot run on this processor");
  return best;
}

inline const Kernels& best_kernels() {
  static const Kernels* chosen = choose_kernels();
  return *chosen;
}

inline const Kernels& kernels(const Shape& s) {
  return s.dtype == Dtype::f64 ? *kernels_plain() : best_kernels();
}

// Scratch memory of this thread, kept from call to call: fresh memory costs more in page faults than the
// arithmetic.
inline char* scratch(int64_t bytes) {
  struct Kept {
    std::unique_ptr<char[]> memory;
    int64_t size = 0;
  };
  thread_local Kept kept;
  constexpr int64_t line = 64;
#if defined(__SANITIZE_ADDRESS__)
  kept.size = 0;  // exactly what is asked for, so that what lies beyond it is seen
#endif
  if (kept.size < bytes + line) {
    kept.memory.reset(new char[bytes + line]);
    kept.size = bytes + line;
  }
  const auto address = reinterpret_cast<uintptr_t>(kept.memory.get());
  return kept.memory.get() + (line - address % line) % line;
}

// Channels of a block, whatever the layout in memory: as many as a vector has lanes, since then no neighbour
// has to be brought into its lane and no row ends within a vector. Few channels would leave too many lanes
// empty: then 1.
inline int64_t block_of(const Shape& s) {
  const int64_t lanes = kernels(s).lanes(s.dtype);
  return 2 * s.C >= lanes ? lanes : 1;
}

// The sweeps along a row take whole vectors for pixels.
inline int64_t block_of(const Shape& s, const Pde& pde) {
  return pde.scheme == Scheme::gated_sweeps ? kernels(s).lanes(s.dtype) : block_of(s);
}

inline int64_t blocks_of(int64_t channels, int64_t block) { return (channels + block - 1) / block; }

// How many units of work are worth waking a thread for: some ten microseconds. cost: about how many
// operations per element.
inline int64_t grain_of(const Shape& s, int64_t block, int64_t cost) {
  const int64_t per_unit = block * s.H * s.W * cost;
  return std::max<int64_t>(1, (int64_t(1) << 17) / std::max<int64_t>(1, per_unit));
}

// Of a whole layer.
inline int64_t layer_cost(const Pde& pde) { return 60 + 15 * pde.steps; }

}  // namespace globalcnn
