// What the operators (ops.cpp) and the kernels (kernel_table.h, compiled once per instruction set) share.
// Symbols are those of ops/schemes.py: h, h_old, f, u, v, Dx, Dy, dt, dx, dy.
#pragma once
#include <cstdint>

namespace globalcnn {

enum class Dtype : int { f32, bf16, f64 };
enum class Boundary : int { periodic, zero_flux, zero };
enum class Act : int { identity, relu, relu6, silu, hardswish };

// A tensor (N, C, H, W) by address and strides in elements; null for an absent one.
struct View {
  void* data;
  int64_t n, c, h, w;
};

// steps, spacing and boundary of the solve; Dx0, Dy0 stand in for an absent Dx, Dy.
struct Pde {
  int64_t steps, dx, dy;
  double dt, Dx0, Dy0;
  Boundary boundary;
};

struct Shape {
  int64_t N, C, H, W;
  Dtype dtype;
};

struct SolveArgs {
  Shape shape;
  Pde pde;
  View h, h_old, f, u, v, Dx, Dy, out;
};

// g_*: where the gradients go; null where none is asked for.
struct BackwardArgs {
  Shape shape;
  Pde pde;
  View grad, h, h_old, f, u, v, Dx, Dy;
  View g_h, g_h_old, g_f, g_u, g_v, g_Dx, g_Dy;
};

// The whole layer at inference: fields from `h` (velocity from `f` if velocity_from_f) by depthwise
// convolutions with the norms folded in, the solve, the folded output norm, the activation.
struct LayerArgs {
  Shape shape;
  Pde pde;
  View h, f, out;
  const void *weight, *bias, *scale, *shift;  // (G, C, k, k), (G, C), (C), (C); compute type
  int64_t fields, kernel;                     // G = 2 (u, v) or 4 (u, v, Dx, Dy)
  Act act;
  bool shared_product, velocity_from_f, start_from_h, source, residual;
};

constexpr int64_t MAX_KERNEL = 7;  // side of the coefficients' convolutions in training

// The evolution in training, h to H (f null: f is h): coefficients by convolution, batch norm, activation.
// The forward writes mean and var (G, C); the backward reads them. g_weight, g_gamma, g_beta as weight,
// gamma, beta.
struct TrainArgs {
  Shape shape;
  Pde pde;
  View h, f, out, grad, g_h, g_f;
  const void *weight, *gamma, *beta;  // (G, C, k, k), (G, C), (G, C)
  void *mean, *var, *g_weight, *g_gamma, *g_beta;
  double eps;
  int64_t fields, kernel;
  Act act;
  bool shared_product, start_from_h, source;
};

struct CopyArgs {
  Shape shape;
  Pde pde;
  View from, to;
};

// One unit of work is `depth` channels of one image, all rows and columns: 1, or as many as a vector has
// lanes. Each function does the units [begin, end) with `scratch`, of as many bytes as the function of the
// same name + _scratch says.
struct Kernels {
  const char* name;
  int64_t (*lanes)(Dtype);
  int64_t (*solve_scratch)(const SolveArgs&, int64_t depth);
  void (*solve)(const SolveArgs&, int64_t depth, int64_t begin, int64_t end, char* scratch);
  int64_t (*backward_scratch)(const BackwardArgs&, int64_t depth);
  void (*backward)(const BackwardArgs&, int64_t depth, int64_t begin, int64_t end, char* scratch);
  int64_t (*layer_scratch)(const LayerArgs&, int64_t depth);
  void (*layer)(const LayerArgs&, int64_t depth, int64_t begin, int64_t end, char* scratch);
  // from one order in memory to another
  int64_t (*copy_scratch)(const CopyArgs&, int64_t depth);
  void (*copy)(const CopyArgs&, int64_t depth, int64_t begin, int64_t end, char* scratch);
  // here a unit is `depth` channels of all images
  int64_t (*train_scratch)(const TrainArgs&, int64_t depth);
  void (*train)(const TrainArgs&, int64_t depth, int64_t begin, int64_t end, char* scratch);
  int64_t (*train_backward_scratch)(const TrainArgs&, int64_t depth);
  void (*train_backward)(const TrainArgs&, int64_t depth, int64_t begin, int64_t end, char* scratch);
};

const Kernels* kernels_plain();
const Kernels* kernels_avx2();  // null where the compiler does not know the instruction set
const Kernels* kernels_avx512();

}  // namespace globalcnn
