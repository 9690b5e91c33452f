// Written by `python -m globalcnn.ops.native.contract` from ops/spec.py: edit that.
// clang-format off
#pragma once
#include <cstdint>

#include "map.h"

namespace globalcnn {

enum class Boundary : int { periodic, neumann, dirichlet };
enum class Act : int { identity, relu, relu6, silu, hardswish };
enum class Scheme : int { du_fort_frankel, gated_sweeps };
enum class Gate : int { transport, sigmoid, rational };

// side of the coefficients' convolutions in training, at most
constexpr int64_t MAX_KERNEL = 7;

// The equation and its grid; Dx0, Dy0 stand in for an absent Dx, Dy.
struct Pde {
  double Dx0;
  double Dy0;
  int64_t steps;
  double dt;
  int64_t dx;
  int64_t dy;
  Boundary boundary;
  Scheme scheme;
  Gate gate;
  bool y_first;
};

// of solve
struct SolveArgs {
  Shape shape;
  Pde pde;
  View h;
  View h_old;
  View f;
  View u;
  View v;
  View Dx;
  View Dy;
  View out;
};

// of solve_backward
struct SolveBackwardArgs {
  Shape shape;
  Pde pde;
  View grad;
  View h;
  View h_old;
  View f;
  View u;
  View v;
  View Dx;
  View Dy;
  View g_h;
  View g_h_old;
  View g_f;
  View g_u;
  View g_v;
  View g_Dx;
  View g_Dy;
};

// of layer
struct LayerArgs {
  Shape shape;
  Pde pde;
  View h;
  View f;
  const void* weight;
  const void* bias;
  const void* scale;
  const void* shift;
  View out;
  int64_t fields;
  int64_t kernel;
  Act act;
  bool shared_product;
  bool velocity_from_f;
  bool start_from_h;
  bool source;
  bool residual;
};

// of evolve and evolve_backward
struct EvolveArgs {
  Shape shape;
  Pde pde;
  View h;
  View f;
  const void* weight;
  const void* gamma;
  const void* beta;
  View out;
  void* mean;
  void* var;
  int64_t fields;
  int64_t kernel;
  double eps;
  Act act;
  bool shared_product;
  bool start_from_h;
  bool source;
  View grad;
  View g_h;
  View g_f;
  void* g_weight;
  void* g_gamma;
  void* g_beta;
};

}  // namespace globalcnn
