// Written by `python -m globalcnn.ops.native.contract` from ops/spec.py: edit that.
// clang-format off
#pragma once
#include <cmath>

#include "arguments.h"

namespace globalcnn {

constexpr int64_t LAYER_NUMBERS = 16;
constexpr int64_t MAX_LAYER_KERNEL = 127;

// The plain arguments of layer from so many numbers; what is wrong with them, or null.
inline const char* read(LayerArgs& a, const double* numbers) {
  for (int64_t i = 0; i < LAYER_NUMBERS; ++i)
    if (!std::isfinite(numbers[i])) return "a number is not finite";
  const double Dx0 = numbers[0];
  if (!(std::isfinite(Dx0) && Dx0 >= 0)) return "Dx0 must be finite and >= 0";
  a.pde.Dx0 = static_cast<double>(Dx0);
  const double Dy0 = numbers[1];
  if (!(std::isfinite(Dy0) && Dy0 >= 0)) return "Dy0 must be finite and >= 0";
  a.pde.Dy0 = static_cast<double>(Dy0);
  const double steps = numbers[2];
  if (!(steps >= 0 && steps <= 10000)) return "steps must be from 0 to 10000";
  a.pde.steps = static_cast<int64_t>(steps);
  const double dt = numbers[3];
  if (!(std::isfinite(dt) && dt > 0)) return "dt must be finite and > 0";
  a.pde.dt = static_cast<double>(dt);
  const double dx = numbers[4];
  if (!(dx >= 1 && dx <= 256)) return "dx must be from 1 to 256";
  a.pde.dx = static_cast<int64_t>(dx);
  const double dy = numbers[5];
  if (!(dy >= 1 && dy <= 256)) return "dy must be from 1 to 256";
  a.pde.dy = static_cast<int64_t>(dy);
  const double boundary = numbers[6];
  if (!(boundary >= 0 && boundary < 3)) return "boundary must be one of 0 (periodic), 1 (neumann), 2 (dirichlet)";
  a.pde.boundary = static_cast<Boundary>(static_cast<int>(boundary));
  const double scheme = numbers[7];
  if (!(scheme >= 0 && scheme < 2)) return "scheme must be one of 0 (du_fort_frankel), 1 (gated_sweeps)";
  a.pde.scheme = static_cast<Scheme>(static_cast<int>(scheme));
  const double gate = numbers[8];
  if (!(gate >= 0 && gate < 3)) return "gate must be one of 0 (transport), 1 (sigmoid), 2 (rational)";
  a.pde.gate = static_cast<Gate>(static_cast<int>(gate));
  const double y_first = numbers[9];
  a.pde.y_first = y_first != 0;
  const double act = numbers[10];
  if (!(act >= 0 && act < 5)) return "act must be one of 0 (identity), 1 (relu), 2 (relu6), 3 (silu), 4 (hardswish)";
  a.act = static_cast<Act>(static_cast<int>(act));
  const double shared_product = numbers[11];
  a.shared_product = shared_product != 0;
  const double velocity_from_f = numbers[12];
  a.velocity_from_f = velocity_from_f != 0;
  const double start_from_h = numbers[13];
  a.start_from_h = start_from_h != 0;
  const double source = numbers[14];
  a.source = source != 0;
  const double residual = numbers[15];
  a.residual = residual != 0;
  return nullptr;
}

}  // namespace globalcnn
