// What the operators (operators.cpp) and the kernels (kernel_table.h, compiled once per instruction set)
// share. Symbols are those of ops/schemes.py: h, h_old, f, u, v, Dx, Dy, dt, dx, dy.
#pragma once
#include <cstdint>

#include "arguments.h"

namespace globalcnn {

// from one layout in memory to another
struct CopyArgs {
  Shape shape;
  Pde pde;
  View from, to;
};

// One unit of work is `block` channels of one image, all rows and columns: 1, or as many as a vector has
// lanes. Each function does the units [begin, end) with `scratch`, of as many bytes as the function of the
// same name + _scratch says.
struct Kernels {
  const char* name;
  int64_t (*lanes)(Dtype);
  int64_t (*solve_scratch)(const SolveArgs&, int64_t block);
  void (*solve)(const SolveArgs&, int64_t block, int64_t begin, int64_t end, char* scratch);
  int64_t (*solve_backward_scratch)(const SolveBackwardArgs&, int64_t block);
  void (*solve_backward)(const SolveBackwardArgs&, int64_t block, int64_t begin, int64_t end, char* scratch);
  int64_t (*layer_scratch)(const LayerArgs&, int64_t block);
  void (*layer)(const LayerArgs&, int64_t block, int64_t begin, int64_t end, char* scratch);
  // from one order in memory to another
  int64_t (*copy_scratch)(const CopyArgs&, int64_t block);
  void (*copy)(const CopyArgs&, int64_t block, int64_t begin, int64_t end, char* scratch);
  // here a unit is `block` channels of all images
  int64_t (*evolve_scratch)(const EvolveArgs&, int64_t block);
  void (*evolve)(const EvolveArgs&, int64_t block, int64_t begin, int64_t end, char* scratch);
  int64_t (*evolve_backward_scratch)(const EvolveArgs&, int64_t block);
  void (*evolve_backward)(const EvolveArgs&, int64_t block, int64_t begin, int64_t end, char* scratch);
};

const Kernels* kernels_plain();
const Kernels* kernels_avx2();  // null where the compiler does not know the instruction set
const Kernels* kernels_avx512();

}  // namespace globalcnn
