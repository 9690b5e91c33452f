// The operators of globalcnn on the CPU, registered on PyTorch's stable ABI under the schemas of ops/spec.py.
// calls.h, written from there, has each operator's call, checks and results.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <thread>
#include <utility>

#include "calls.h"
#include "running.h"

namespace globalcnn {
namespace {

// A unit of work is a block of channels of one image; cost: about how many operations per element.
template <class Args>
void run_over_images(const Args& args, int64_t cost, int64_t (*bytes)(const Args&, int64_t),
                     void (*work)(const Args&, int64_t, int64_t, int64_t, char*)) {
  const Shape& s = args.shape;
  if (s.N * s.C * s.H * s.W == 0) return;
  const int64_t block = block_of(s, args.pde), units = s.N * blocks_of(s.C, block);
  const int64_t grain = grain_of(s, block, cost);
  const int64_t need = bytes(args, block);
  torch::stable::parallel_for(
      0, units, grain, [&](int64_t begin, int64_t end) { work(args, block, begin, end, scratch(need)); });
}

// In training a unit of work is a block of channels of all images. There must be units for all processors;
// their number, and not that of the threads, so that the threads change no result.
int64_t training_block_of(const Shape& s) {
  static const int64_t processors = std::max<int64_t>(1, std::thread::hardware_concurrency());
  const int64_t block = block_of(s);
  return blocks_of(s.C, block) >= std::min(processors, s.C) ? block : 1;
}

// The same by scheme: the sweeps take whole vectors for pixels, so that a single channel has images for lanes
// where there are enough of them.
int64_t training_block_of(const Shape& s, Scheme scheme) {
  const int64_t block = training_block_of(s), lanes = kernels(s).lanes(s.dtype);
  return scheme == Scheme::gated_sweeps && 2 * s.N < lanes ? lanes : block;
}

void run_over_channels(const EvolveArgs& args, int64_t (*bytes)(const EvolveArgs&, int64_t),
                       void (*work)(const EvolveArgs&, int64_t, int64_t, int64_t, char*)) {
  const Shape& s = args.shape;
  if (s.N * s.C * s.H * s.W == 0) return;
  const int64_t block = training_block_of(s, args.pde.scheme), need = bytes(args, block);
  torch::stable::parallel_for(0, blocks_of(s.C, block), 1, [&](int64_t begin, int64_t end) {
    work(args, block, begin, end, scratch(need));
  });
}

// A map in channels-last layout, which training goes through one channel at a time: it would read a cache
// line for every element.
bool needs_transpose(const Tensor& t, Scheme scheme) {
  return t.stride(1) == 1 && t.size(1) > 1 && t.size(2) * t.size(3) > 1 &&
         training_block_of(shape(t), scheme) == 1;
}

Tensor planar_like(const Tensor& t) {
  return torch::stable::new_empty(t, {t.size(0), t.size(1), t.size(2), t.size(3)});
}

void copy_map(const Tensor& to, const Tensor& from) {
  CopyArgs a{};
  a.shape = shape(from);
  a.pde.dx = a.pde.dy = 1;
  a.from = view(from), a.to = view(to);
  run_over_images(a, 4, kernels(a.shape).copy_scratch, kernels(a.shape).copy);
}

// The map, or a copy of it with its planes whole in memory.
Tensor planar(const Tensor& t, Scheme scheme) {
  if (!needs_transpose(t, scheme)) return t;
  Tensor to = planar_like(t);
  copy_map(to, t);
  return to;
}

std::optional<Tensor> planar(const std::optional<Tensor>& t, Scheme scheme) {
  return t ? std::optional<Tensor>(planar(*t, scheme)) : std::nullopt;
}

// Where a kernel of training writes a result: the result, or planar memory that is copied to it afterwards.
Tensor planar_result(const Tensor& t, Scheme scheme) {
  return t.dim() == 4 && needs_transpose(t, scheme) ? planar_like(t) : t;
}

void finish(const Tensor& result, const Tensor& written, Scheme scheme) {
  if (result.dim() == 4 && needs_transpose(result, scheme)) copy_map(result, written);
}

SolveResults solve(SolveCall c) {
  const SolveResults r = results(c);
  SolveArgs a = arguments(c);
  bind(a, r);
  run_over_images(a, 20 * c.steps, kernels(a.shape).solve_scratch, kernels(a.shape).solve);
  return r;
}

SolveBackwardResults solve_backward(SolveBackwardCall c) {
  const SolveBackwardResults r = results(c);
  SolveBackwardArgs a = arguments(c);
  bind(a, r);
  run_over_images(a, 60 * c.steps, kernels(a.shape).solve_backward_scratch, kernels(a.shape).solve_backward);
  return r;
}

LayerResults layer(LayerCall c) {
  const LayerResults r = results(c);
  LayerArgs a = arguments(c);
  bind(a, r);
  run_over_images(a, layer_cost(a.pde), kernels(a.shape).layer_scratch, kernels(a.shape).layer);
  return r;
}

// For an empty batch no kernel runs: its statistics and the gradients of its parameters are zero.
void zero_if_empty(const Tensor& map, std::initializer_list<Tensor> results) {
  if (map.numel() > 0) return;
  for (const Tensor& t : results)
    if (t.numel() > 0)
      std::memset(t.data_ptr(), 0, t.numel() * (t.scalar_type() == ScalarType::Double ? 8 : 4));
}

EvolveResults evolve(EvolveCall c) {
  const Scheme scheme = static_cast<Scheme>(c.scheme);
  const EvolveResults r = results(c);
  zero_if_empty(c.h, {r.mean, r.var});
  c.h = planar(c.h, scheme), c.f = planar(c.f, scheme);
  const EvolveResults written{planar_result(r.out, scheme), r.mean, r.var};
  EvolveArgs a = arguments(c);
  bind(a, written);
  run_over_channels(a, kernels(a.shape).evolve_scratch, kernels(a.shape).evolve);
  finish(r.out, written.out, scheme);
  return r;
}

EvolveBackwardResults evolve_backward(EvolveBackwardCall c) {
  const Scheme scheme = static_cast<Scheme>(c.scheme);
  const EvolveBackwardResults r = results(c);
  zero_if_empty(c.h, {r.g_weight, r.g_gamma, r.g_beta});
  c.grad = planar(c.grad, scheme), c.h = planar(c.h, scheme), c.f = planar(c.f, scheme);
  const EvolveBackwardResults written{planar_result(r.g_h, scheme), planar_result(r.g_f, scheme), r.g_weight,
                                      r.g_gamma, r.g_beta};
  EvolveArgs a = arguments(c);
  bind(a, written);
  run_over_channels(a, kernels(a.shape).evolve_backward_scratch, kernels(a.shape).evolve_backward);
  finish(r.g_h, written.g_h, scheme);
  finish(r.g_f, written.g_f, scheme);
  return r;
}

}  // namespace
}  // namespace globalcnn

STABLE_TORCH_LIBRARY_IMPL(globalcnn, CPU, m) { GLOBALCNN_OPERATORS(m) }

extern "C" __attribute__((visibility("default"))) const char* globalcnn_isa() {
  try {
    return globalcnn::best_kernels().name;
  } catch (const std::exception&) {
    return "";
  }
}
