// Written by `python -m globalcnn.ops.native.contract` from ops/spec.py: edit that.
// clang-format off
#pragma once
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "arguments.h"
#include "checks.h"
#include "tensors.h"

namespace globalcnn {
namespace {

struct SolveCall {
  Tensor h;
  Tensor h_old;
  std::optional<Tensor> f;
  Tensor u;
  Tensor v;
  std::optional<Tensor> Dx;
  std::optional<Tensor> Dy;
  double Dx0;
  double Dy0;
  int64_t steps;
  double dt;
  int64_t dx;
  int64_t dy;
  int64_t boundary;
  int64_t scheme;
  int64_t gate;
  bool y_first;
};

void check(const SolveCall& c) {
  Checks checks("solve", "h", c.h);
  checks.map("h", c.h);
  checks.map("h_old", c.h_old);
  checks.map("f", c.f);
  checks.map("u", c.u);
  checks.map("v", c.v);
  checks.map("Dx", c.Dx);
  checks.map("Dy", c.Dy);
  checks.together("Dx", c.Dx, "Dy", c.Dy);
  checks.that(std::isfinite(c.Dx0) && c.Dx0 >= 0, "Dx0", c.Dx0, "finite and >= 0");
  checks.that(std::isfinite(c.Dy0) && c.Dy0 >= 0, "Dy0", c.Dy0, "finite and >= 0");
  checks.that(c.steps >= 0 && c.steps <= 10000, "steps", c.steps, "from 0 to 10000");
  checks.that(std::isfinite(c.dt) && c.dt > 0, "dt", c.dt, "finite and > 0");
  checks.that(c.dx >= 1 && c.dx <= 256, "dx", c.dx, "from 1 to 256");
  checks.that(c.dy >= 1 && c.dy <= 256, "dy", c.dy, "from 1 to 256");
  checks.that(c.boundary >= 0 && c.boundary < 3, "boundary", c.boundary, "one of 0 (periodic), 1 (neumann), 2 (dirichlet)");
  checks.that(c.scheme >= 0 && c.scheme < 2, "scheme", c.scheme, "one of 0 (du_fort_frankel), 1 (gated_sweeps)");
  checks.that(c.gate >= 0 && c.gate < 3, "gate", c.gate, "one of 0 (transport), 1 (sigmoid), 2 (rational)");
}

void pack(SolveCall& ) {
}

struct SolveResults {
  Tensor out;
};

SolveResults results(const SolveCall& c) {
  return {torch::stable::empty_like(c.h)};
}

SolveArgs arguments(const SolveCall& c) {
  SolveArgs a{};
  a.shape = shape(c.h);
  a.pde.Dx0 = c.Dx0;
  a.pde.Dy0 = c.Dy0;
  a.pde.steps = c.steps;
  a.pde.dt = c.dt;
  a.pde.dx = c.dx;
  a.pde.dy = c.dy;
  a.pde.boundary = static_cast<Boundary>(c.boundary);
  a.pde.scheme = static_cast<Scheme>(c.scheme);
  a.pde.gate = static_cast<Gate>(c.gate);
  a.pde.y_first = c.y_first;
  a.h = view(c.h);
  a.h_old = view(c.h_old);
  a.f = view(c.f);
  a.u = view(c.u);
  a.v = view(c.v);
  a.Dx = view(c.Dx);
  a.Dy = view(c.Dy);
  return a;
}

void bind(SolveArgs& a, const SolveResults& r) {
  a.out = view(r.out);
}

SolveResults solve(SolveCall c);  // in operators.cpp

Tensor solve_entry(
    const Tensor& h,
    const Tensor& h_old,
    const std::optional<Tensor>& f,
    const Tensor& u,
    const Tensor& v,
    const std::optional<Tensor>& Dx,
    const std::optional<Tensor>& Dy,
    double Dx0,
    double Dy0,
    int64_t steps,
    double dt,
    int64_t dx,
    int64_t dy,
    int64_t boundary,
    int64_t scheme,
    int64_t gate,
    bool y_first) {
  SolveCall c{h, h_old, f, u, v, Dx, Dy, Dx0, Dy0, steps, dt, dx, dy, boundary, scheme, gate, y_first};
  check(c);
  pack(c);
  const SolveResults r = solve(std::move(c));
  return r.out;
}

struct SolveBackwardCall {
  Tensor grad;
  Tensor h;
  Tensor h_old;
  std::optional<Tensor> f;
  Tensor u;
  Tensor v;
  std::optional<Tensor> Dx;
  std::optional<Tensor> Dy;
  double Dx0;
  double Dy0;
  int64_t steps;
  double dt;
  int64_t dx;
  int64_t dy;
  int64_t boundary;
  int64_t scheme;
  int64_t gate;
  bool y_first;
};

void check(const SolveBackwardCall& c) {
  Checks checks("solve_backward", "grad", c.grad);
  checks.map("grad", c.grad);
  checks.map("h", c.h);
  checks.map("h_old", c.h_old);
  checks.map("f", c.f);
  checks.map("u", c.u);
  checks.map("v", c.v);
  checks.map("Dx", c.Dx);
  checks.map("Dy", c.Dy);
  checks.together("Dx", c.Dx, "Dy", c.Dy);
  checks.that(std::isfinite(c.Dx0) && c.Dx0 >= 0, "Dx0", c.Dx0, "finite and >= 0");
  checks.that(std::isfinite(c.Dy0) && c.Dy0 >= 0, "Dy0", c.Dy0, "finite and >= 0");
  checks.that(c.steps >= 0 && c.steps <= 10000, "steps", c.steps, "from 0 to 10000");
  checks.that(std::isfinite(c.dt) && c.dt > 0, "dt", c.dt, "finite and > 0");
  checks.that(c.dx >= 1 && c.dx <= 256, "dx", c.dx, "from 1 to 256");
  checks.that(c.dy >= 1 && c.dy <= 256, "dy", c.dy, "from 1 to 256");
  checks.that(c.boundary >= 0 && c.boundary < 3, "boundary", c.boundary, "one of 0 (periodic), 1 (neumann), 2 (dirichlet)");
  checks.that(c.scheme >= 0 && c.scheme < 2, "scheme", c.scheme, "one of 0 (du_fort_frankel), 1 (gated_sweeps)");
  checks.that(c.gate >= 0 && c.gate < 3, "gate", c.gate, "one of 0 (transport), 1 (sigmoid), 2 (rational)");
}

void pack(SolveBackwardCall& ) {
}

struct SolveBackwardResults {
  Tensor g_h, g_h_old, g_f, g_u, g_v, g_Dx, g_Dy;
};

SolveBackwardResults results(const SolveBackwardCall& c) {
  return {torch::stable::empty_like(c.h),
          torch::stable::empty_like(c.h),
          c.f ? torch::stable::empty_like(c.h) : torch::stable::new_empty(c.h, {0}),
          torch::stable::empty_like(c.h),
          torch::stable::empty_like(c.h),
          c.Dx ? torch::stable::empty_like(c.h) : torch::stable::new_empty(c.h, {0}),
          c.Dy ? torch::stable::empty_like(c.h) : torch::stable::new_empty(c.h, {0})};
}

using SolveBackwardTuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

SolveBackwardArgs arguments(const SolveBackwardCall& c) {
  SolveBackwardArgs a{};
  a.shape = shape(c.grad);
  a.pde.Dx0 = c.Dx0;
  a.pde.Dy0 = c.Dy0;
  a.pde.steps = c.steps;
  a.pde.dt = c.dt;
  a.pde.dx = c.dx;
  a.pde.dy = c.dy;
  a.pde.boundary = static_cast<Boundary>(c.boundary);
  a.pde.scheme = static_cast<Scheme>(c.scheme);
  a.pde.gate = static_cast<Gate>(c.gate);
  a.pde.y_first = c.y_first;
  a.grad = view(c.grad);
  a.h = view(c.h);
  a.h_old = view(c.h_old);
  a.f = view(c.f);
  a.u = view(c.u);
  a.v = view(c.v);
  a.Dx = view(c.Dx);
  a.Dy = view(c.Dy);
  return a;
}

void bind(SolveBackwardArgs& a, const SolveBackwardResults& r) {
  a.g_h = view(r.g_h);
  a.g_h_old = view(r.g_h_old);
  if (r.g_f.dim() == 4) a.g_f = view(r.g_f);
  a.g_u = view(r.g_u);
  a.g_v = view(r.g_v);
  if (r.g_Dx.dim() == 4) a.g_Dx = view(r.g_Dx);
  if (r.g_Dy.dim() == 4) a.g_Dy = view(r.g_Dy);
}

SolveBackwardResults solve_backward(SolveBackwardCall c);  // in operators.cpp

SolveBackwardTuple solve_backward_entry(
    const Tensor& grad,
    const Tensor& h,
    const Tensor& h_old,
    const std::optional<Tensor>& f,
    const Tensor& u,
    const Tensor& v,
    const std::optional<Tensor>& Dx,
    const std::optional<Tensor>& Dy,
    double Dx0,
    double Dy0,
    int64_t steps,
    double dt,
    int64_t dx,
    int64_t dy,
    int64_t boundary,
    int64_t scheme,
    int64_t gate,
    bool y_first) {
  SolveBackwardCall c{grad, h, h_old, f, u, v, Dx, Dy, Dx0, Dy0, steps, dt, dx, dy, boundary, scheme, gate, y_first};
  check(c);
  pack(c);
  const SolveBackwardResults r = solve_backward(std::move(c));
  return {r.g_h, r.g_h_old, r.g_f, r.g_u, r.g_v, r.g_Dx, r.g_Dy};
}

struct LayerCall {
  Tensor h;
  Tensor f;
  Tensor weight;
  Tensor bias;
  Tensor scale;
  Tensor shift;
  double Dx0;
  double Dy0;
  int64_t steps;
  double dt;
  int64_t dx;
  int64_t dy;
  int64_t boundary;
  int64_t scheme;
  int64_t gate;
  bool y_first;
  int64_t act;
  bool shared_product;
  bool velocity_from_f;
  bool start_from_h;
  bool source;
  bool residual;
};

void check(const LayerCall& c) {
  Checks checks("layer", "h", c.h);
  checks.map("h", c.h);
  checks.map("f", c.f);
  checks.parameter("weight", c.weight, "GCkk", 127);
  checks.parameter("bias", c.bias, "GC", 0);
  checks.parameter("scale", c.scale, "C", 0);
  checks.parameter("shift", c.shift, "C", 0);
  checks.that(std::isfinite(c.Dx0) && c.Dx0 >= 0, "Dx0", c.Dx0, "finite and >= 0");
  checks.that(std::isfinite(c.Dy0) && c.Dy0 >= 0, "Dy0", c.Dy0, "finite and >= 0");
  checks.that(c.steps >= 0 && c.steps <= 10000, "steps", c.steps, "from 0 to 10000");
  checks.that(std::isfinite(c.dt) && c.dt > 0, "dt", c.dt, "finite and > 0");
  checks.that(c.dx >= 1 && c.dx <= 256, "dx", c.dx, "from 1 to 256");
  checks.that(c.dy >= 1 && c.dy <= 256, "dy", c.dy, "from 1 to 256");
  checks.that(c.boundary >= 0 && c.boundary < 3, "boundary", c.boundary, "one of 0 (periodic), 1 (neumann), 2 (dirichlet)");
  checks.that(c.scheme >= 0 && c.scheme < 2, "scheme", c.scheme, "one of 0 (du_fort_frankel), 1 (gated_sweeps)");
  checks.that(c.gate >= 0 && c.gate < 3, "gate", c.gate, "one of 0 (transport), 1 (sigmoid), 2 (rational)");
  checks.that(c.act >= 0 && c.act < 5, "act", c.act, "one of 0 (identity), 1 (relu), 2 (relu6), 3 (silu), 4 (hardswish)");
}

void pack(LayerCall& c) {
  c.weight = packed(c.weight);
  c.bias = packed(c.bias);
  c.scale = packed(c.scale);
  c.shift = packed(c.shift);
}

struct LayerResults {
  Tensor out;
};

LayerResults results(const LayerCall& c) {
  return {torch::stable::empty_like(c.h)};
}

LayerArgs arguments(const LayerCall& c) {
  LayerArgs a{};
  a.shape = shape(c.h);
  a.pde.Dx0 = c.Dx0;
  a.pde.Dy0 = c.Dy0;
  a.pde.steps = c.steps;
  a.pde.dt = c.dt;
  a.pde.dx = c.dx;
  a.pde.dy = c.dy;
  a.pde.boundary = static_cast<Boundary>(c.boundary);
  a.pde.scheme = static_cast<Scheme>(c.scheme);
  a.pde.gate = static_cast<Gate>(c.gate);
  a.pde.y_first = c.y_first;
  a.act = static_cast<Act>(c.act);
  a.shared_product = c.shared_product;
  a.velocity_from_f = c.velocity_from_f;
  a.start_from_h = c.start_from_h;
  a.source = c.source;
  a.residual = c.residual;
  a.h = view(c.h);
  a.f = view(c.f);
  a.weight = c.weight.data_ptr();
  a.fields = c.weight.size(0), a.kernel = c.weight.size(2);
  a.bias = c.bias.data_ptr();
  a.scale = c.scale.data_ptr();
  a.shift = c.shift.data_ptr();
  return a;
}

void bind(LayerArgs& a, const LayerResults& r) {
  a.out = view(r.out);
}

LayerResults layer(LayerCall c);  // in operators.cpp

Tensor layer_entry(
    const Tensor& h,
    const Tensor& f,
    const Tensor& weight,
    const Tensor& bias,
    const Tensor& scale,
    const Tensor& shift,
    double Dx0,
    double Dy0,
    int64_t steps,
    double dt,
    int64_t dx,
    int64_t dy,
    int64_t boundary,
    int64_t scheme,
    int64_t gate,
    bool y_first,
    int64_t act,
    bool shared_product,
    bool velocity_from_f,
    bool start_from_h,
    bool source,
    bool residual) {
  LayerCall c{h, f, weight, bias, scale, shift, Dx0, Dy0, steps, dt, dx, dy, boundary, scheme, gate, y_first, act, shared_product, velocity_from_f, start_from_h, source, residual};
  check(c);
  pack(c);
  const LayerResults r = layer(std::move(c));
  return r.out;
}

struct EvolveCall {
  Tensor h;
  std::optional<Tensor> f;
  Tensor weight;
  Tensor gamma;
  Tensor beta;
  double eps;
  double Dx0;
  double Dy0;
  int64_t steps;
  double dt;
  int64_t dx;
  int64_t dy;
  int64_t boundary;
  int64_t scheme;
  int64_t gate;
  bool y_first;
  int64_t act;
  bool shared_product;
  bool start_from_h;
  bool source;
};

void check(const EvolveCall& c) {
  Checks checks("evolve", "h", c.h);
  checks.map("h", c.h);
  checks.map("f", c.f);
  checks.parameter("weight", c.weight, "GCkk", 7);
  checks.parameter("gamma", c.gamma, "GC", 0);
  checks.parameter("beta", c.beta, "GC", 0);
  checks.that(std::isfinite(c.eps) && c.eps >= 0, "eps", c.eps, "finite and >= 0");
  checks.that(std::isfinite(c.Dx0) && c.Dx0 >= 0, "Dx0", c.Dx0, "finite and >= 0");
  checks.that(std::isfinite(c.Dy0) && c.Dy0 >= 0, "Dy0", c.Dy0, "finite and >= 0");
  checks.that(c.steps >= 0 && c.steps <= 10000, "steps", c.steps, "from 0 to 10000");
  checks.that(std::isfinite(c.dt) && c.dt > 0, "dt", c.dt, "finite and > 0");
  checks.that(c.dx >= 1 && c.dx <= 256, "dx", c.dx, "from 1 to 256");
  checks.that(c.dy >= 1 && c.dy <= 256, "dy", c.dy, "from 1 to 256");
  checks.that(c.boundary >= 0 && c.boundary < 3, "boundary", c.boundary, "one of 0 (periodic), 1 (neumann), 2 (dirichlet)");
  checks.that(c.scheme >= 0 && c.scheme < 2, "scheme", c.scheme, "one of 0 (du_fort_frankel), 1 (gated_sweeps)");
  checks.that(c.gate >= 0 && c.gate < 3, "gate", c.gate, "one of 0 (transport), 1 (sigmoid), 2 (rational)");
  checks.that(c.act >= 0 && c.act < 5, "act", c.act, "one of 0 (identity), 1 (relu), 2 (relu6), 3 (silu), 4 (hardswish)");
}

void pack(EvolveCall& c) {
  c.weight = packed(c.weight);
  c.gamma = packed(c.gamma);
  c.beta = packed(c.beta);
}

struct EvolveResults {
  Tensor out, mean, var;
};

EvolveResults results(const EvolveCall& c) {
  return {torch::stable::empty_like(c.h),
          torch::stable::empty_like(c.gamma),
          torch::stable::empty_like(c.gamma)};
}

using EvolveTuple = std::tuple<Tensor, Tensor, Tensor>;

EvolveArgs arguments(const EvolveCall& c) {
  EvolveArgs a{};
  a.shape = shape(c.h);
  a.pde.Dx0 = c.Dx0;
  a.pde.Dy0 = c.Dy0;
  a.pde.steps = c.steps;
  a.pde.dt = c.dt;
  a.pde.dx = c.dx;
  a.pde.dy = c.dy;
  a.pde.boundary = static_cast<Boundary>(c.boundary);
  a.pde.scheme = static_cast<Scheme>(c.scheme);
  a.pde.gate = static_cast<Gate>(c.gate);
  a.pde.y_first = c.y_first;
  a.eps = c.eps;
  a.act = static_cast<Act>(c.act);
  a.shared_product = c.shared_product;
  a.start_from_h = c.start_from_h;
  a.source = c.source;
  a.h = view(c.h);
  a.f = view(c.f);
  a.weight = c.weight.data_ptr();
  a.fields = c.weight.size(0), a.kernel = c.weight.size(2);
  a.gamma = c.gamma.data_ptr();
  a.beta = c.beta.data_ptr();
  return a;
}

void bind(EvolveArgs& a, const EvolveResults& r) {
  a.out = view(r.out);
  a.mean = r.mean.data_ptr();
  a.var = r.var.data_ptr();
}

EvolveResults evolve(EvolveCall c);  // in operators.cpp

EvolveTuple evolve_entry(
    const Tensor& h,
    const std::optional<Tensor>& f,
    const Tensor& weight,
    const Tensor& gamma,
    const Tensor& beta,
    double eps,
    double Dx0,
    double Dy0,
    int64_t steps,
    double dt,
    int64_t dx,
    int64_t dy,
    int64_t boundary,
    int64_t scheme,
    int64_t gate,
    bool y_first,
    int64_t act,
    bool shared_product,
    bool start_from_h,
    bool source) {
  EvolveCall c{h, f, weight, gamma, beta, eps, Dx0, Dy0, steps, dt, dx, dy, boundary, scheme, gate, y_first, act, shared_product, start_from_h, source};
  check(c);
  pack(c);
  const EvolveResults r = evolve(std::move(c));
  return {r.out, r.mean, r.var};
}

struct EvolveBackwardCall {
  Tensor grad;
  Tensor h;
  std::optional<Tensor> f;
  Tensor weight;
  Tensor gamma;
  Tensor beta;
  Tensor mean;
  Tensor var;
  double eps;
  double Dx0;
  double Dy0;
  int64_t steps;
  double dt;
  int64_t dx;
  int64_t dy;
  int64_t boundary;
  int64_t scheme;
  int64_t gate;
  bool y_first;
  int64_t act;
  bool shared_product;
  bool start_from_h;
  bool source;
};

void check(const EvolveBackwardCall& c) {
  Checks checks("evolve_backward", "grad", c.grad);
  checks.map("grad", c.grad);
  checks.map("h", c.h);
  checks.map("f", c.f);
  checks.parameter("weight", c.weight, "GCkk", 7);
  checks.parameter("gamma", c.gamma, "GC", 0);
  checks.parameter("beta", c.beta, "GC", 0);
  checks.parameter("mean", c.mean, "GC", 0);
  checks.parameter("var", c.var, "GC", 0);
  checks.that(std::isfinite(c.eps) && c.eps >= 0, "eps", c.eps, "finite and >= 0");
  checks.that(std::isfinite(c.Dx0) && c.Dx0 >= 0, "Dx0", c.Dx0, "finite and >= 0");
  checks.that(std::isfinite(c.Dy0) && c.Dy0 >= 0, "Dy0", c.Dy0, "finite and >= 0");
  checks.that(c.steps >= 0 && c.steps <= 10000, "steps", c.steps, "from 0 to 10000");
  checks.that(std::isfinite(c.dt) && c.dt > 0, "dt", c.dt, "finite and > 0");
  checks.that(c.dx >= 1 && c.dx <= 256, "dx", c.dx, "from 1 to 256");
  checks.that(c.dy >= 1 && c.dy <= 256, "dy", c.dy, "from 1 to 256");
  checks.that(c.boundary >= 0 && c.boundary < 3, "boundary", c.boundary, "one of 0 (periodic), 1 (neumann), 2 (dirichlet)");
  checks.that(c.scheme >= 0 && c.scheme < 2, "scheme", c.scheme, "one of 0 (du_fort_frankel), 1 (gated_sweeps)");
  checks.that(c.gate >= 0 && c.gate < 3, "gate", c.gate, "one of 0 (transport), 1 (sigmoid), 2 (rational)");
  checks.that(c.act >= 0 && c.act < 5, "act", c.act, "one of 0 (identity), 1 (relu), 2 (relu6), 3 (silu), 4 (hardswish)");
}

void pack(EvolveBackwardCall& c) {
  c.weight = packed(c.weight);
  c.gamma = packed(c.gamma);
  c.beta = packed(c.beta);
  c.mean = packed(c.mean);
  c.var = packed(c.var);
}

struct EvolveBackwardResults {
  Tensor g_h, g_f, g_weight, g_gamma, g_beta;
};

EvolveBackwardResults results(const EvolveBackwardCall& c) {
  return {torch::stable::empty_like(c.h),
          c.f ? torch::stable::empty_like(c.h) : torch::stable::new_empty(c.h, {0}),
          torch::stable::empty_like(c.weight),
          torch::stable::empty_like(c.gamma),
          torch::stable::empty_like(c.beta)};
}

using EvolveBackwardTuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

EvolveArgs arguments(const EvolveBackwardCall& c) {
  EvolveArgs a{};
  a.shape = shape(c.grad);
  a.pde.Dx0 = c.Dx0;
  a.pde.Dy0 = c.Dy0;
  a.pde.steps = c.steps;
  a.pde.dt = c.dt;
  a.pde.dx = c.dx;
  a.pde.dy = c.dy;
  a.pde.boundary = static_cast<Boundary>(c.boundary);
  a.pde.scheme = static_cast<Scheme>(c.scheme);
  a.pde.gate = static_cast<Gate>(c.gate);
  a.pde.y_first = c.y_first;
  a.eps = c.eps;
  a.act = static_cast<Act>(c.act);
  a.shared_product = c.shared_product;
  a.start_from_h = c.start_from_h;
  a.source = c.source;
  a.grad = view(c.grad);
  a.h = view(c.h);
  a.f = view(c.f);
  a.weight = c.weight.data_ptr();
  a.fields = c.weight.size(0), a.kernel = c.weight.size(2);
  a.gamma = c.gamma.data_ptr();
  a.beta = c.beta.data_ptr();
  a.mean = c.mean.data_ptr();
  a.var = c.var.data_ptr();
  return a;
}

void bind(EvolveArgs& a, const EvolveBackwardResults& r) {
  a.g_h = view(r.g_h);
  if (r.g_f.dim() == 4) a.g_f = view(r.g_f);
  a.g_weight = r.g_weight.data_ptr();
  a.g_gamma = r.g_gamma.data_ptr();
  a.g_beta = r.g_beta.data_ptr();
}

EvolveBackwardResults evolve_backward(EvolveBackwardCall c);  // in operators.cpp

EvolveBackwardTuple evolve_backward_entry(
    const Tensor& grad,
    const Tensor& h,
    const std::optional<Tensor>& f,
    const Tensor& weight,
    const Tensor& gamma,
    const Tensor& beta,
    const Tensor& mean,
    const Tensor& var,
    double eps,
    double Dx0,
    double Dy0,
    int64_t steps,
    double dt,
    int64_t dx,
    int64_t dy,
    int64_t boundary,
    int64_t scheme,
    int64_t gate,
    bool y_first,
    int64_t act,
    bool shared_product,
    bool start_from_h,
    bool source) {
  EvolveBackwardCall c{grad, h, f, weight, gamma, beta, mean, var, eps, Dx0, Dy0, steps, dt, dx, dy, boundary, scheme, gate, y_first, act, shared_product, start_from_h, source};
  check(c);
  pack(c);
  const EvolveBackwardResults r = evolve_backward(std::move(c));
  return {r.g_h, r.g_f, r.g_weight, r.g_gamma, r.g_beta};
}

}  // namespace
}  // namespace globalcnn

#define GLOBALCNN_OPERATORS(m) \
  m.impl("solve", TORCH_BOX(&globalcnn::solve_entry)); \
  m.impl("solve_backward", TORCH_BOX(&globalcnn::solve_backward_entry)); \
  m.impl("layer", TORCH_BOX(&globalcnn::layer_entry)); \
  m.impl("evolve", TORCH_BOX(&globalcnn::evolve_entry)); \
  m.impl("evolve_backward", TORCH_BOX(&globalcnn::evolve_backward_entry));
