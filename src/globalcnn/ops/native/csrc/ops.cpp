// The operators of globalcnn on the CPU, registered on PyTorch's stable ABI under the schemas that
// ops/operators.py defines. Checks of what a user can get wrong are made there, in Python.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>

#include "kernels.h"

namespace globalcnn {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The best instruction set of this processor, or the one that GLOBALCNN_ISA names if it can run here.
const Kernels* choose_kernels() {
  const Kernels* usable[3] = {kernels_plain(), nullptr, nullptr};
#if defined(__x86_64__) || defined(_M_X64)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) usable[1] = kernels_avx2();
  if (__builtin_cpu_supports("avx512f")) usable[2] = kernels_avx512();
#endif
  const char* wanted = std::getenv("GLOBALCNN_ISA");
  const Kernels* best = nullptr;
  for (const Kernels* k : usable)
    if (k && (!wanted || !*wanted || std::strcmp(wanted, k->name) == 0)) best = k;
  if (!best)
    throw std::runtime_error(std::string("GLOBALCNN_ISA=") + wanted + " cannot run on this processor");
  return best;
}

const Kernels& best_kernels() {
  static const Kernels* chosen = choose_kernels();
  return *chosen;
}

const Kernels& kernels(const Shape& s) { return s.dtype == Dtype::f64 ? *kernels_plain() : best_kernels(); }

View view(const Tensor& t) { return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

View view(const std::optional<Tensor>& t) { return t ? view(*t) : View{nullptr, 0, 0, 0, 0}; }

Shape shape(const Tensor& t) {
  Dtype dtype = Dtype::f32;
  switch (t.scalar_type()) {
    case ScalarType::Float:
      break;
    case ScalarType::BFloat16:
      dtype = Dtype::bf16;
      break;
    case ScalarType::Double:
      dtype = Dtype::f64;
      break;
    default:
      throw std::runtime_error("globalcnn: the native backend computes float32, bfloat16 and float64");
  }
  return {t.size(0), t.size(1), t.size(2), t.size(3), dtype};
}

// Scratch of this thread, kept from call to call: fresh memory costs more in page faults than the arithmetic.
char* scratch(int64_t bytes) {
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

// How many channels a plane of the kernels holds, whatever the order in memory: as many as a vector has
// lanes, since then no neighbour has to be brought into its lane and no row ends within a vector. Few
// channels would leave too many lanes empty.
int64_t depth_of(const Shape& s) {
  const int64_t lanes = kernels(s).lanes(s.dtype);
  return 2 * s.C >= lanes ? lanes : 1;
}

int64_t units_of(int64_t channels, int64_t depth) { return (channels + depth - 1) / depth; }

template <class Args>
void run(const Args& args, int64_t cost, int64_t (*bytes)(const Args&, int64_t),
         void (*work)(const Args&, int64_t, int64_t, int64_t, char*)) {
  const Shape& s = args.shape;
  if (s.N * s.C * s.H * s.W == 0) return;
  const int64_t depth = depth_of(s), units = s.N * units_of(s.C, depth);
  // a thread is worth waking for some ten microseconds of work
  const int64_t per_unit = depth * s.H * s.W * cost;
  const int64_t grain = std::max<int64_t>(1, (int64_t(1) << 17) / std::max<int64_t>(1, per_unit));
  const int64_t need = bytes(args, depth);
  torch::stable::parallel_for(
      0, units, grain, [&](int64_t begin, int64_t end) { work(args, depth, begin, end, scratch(need)); });
}

Pde pde(double Dx0, double Dy0, int64_t steps, double dt, int64_t dx, int64_t dy, int64_t boundary) {
  return {steps, dx, dy, dt, Dx0, Dy0, static_cast<Boundary>(boundary)};
}

Tensor solve(const Tensor& h, const Tensor& h_old, const std::optional<Tensor>& f, const Tensor& u,
             const Tensor& v, const std::optional<Tensor>& Dx, const std::optional<Tensor>& Dy, double Dx0,
             double Dy0, int64_t steps, double dt, int64_t dx, int64_t dy, int64_t boundary) {
  Tensor out = torch::stable::empty_like(h);
  const SolveArgs args{shape(h), pde(Dx0, Dy0, steps, dt, dx, dy, boundary),
                       view(h),  view(h_old),
                       view(f),  view(u),
                       view(v),  view(Dx),
                       view(Dy), view(out)};
  run(args, 20 * steps, kernels(args.shape).solve_scratch, kernels(args.shape).solve);
  return out;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients solve_backward(const Tensor& grad, const Tensor& h, const Tensor& h_old,
                         const std::optional<Tensor>& f, const Tensor& u, const Tensor& v,
                         const std::optional<Tensor>& Dx, const std::optional<Tensor>& Dy, double Dx0,
                         double Dy0, int64_t steps, double dt, int64_t dx, int64_t dy, int64_t boundary) {
  const auto like_h = [&] { return torch::stable::empty_like(h); };
  const auto none = [&] { return torch::stable::new_empty(h, {0}); };
  Gradients g{like_h(),
              like_h(),
              f ? like_h() : none(),
              like_h(),
              like_h(),
              Dx ? like_h() : none(),
              Dy ? like_h() : none()};
  const auto where = [](const Tensor& t, bool wanted) {
    return wanted ? view(t) : View{nullptr, 0, 0, 0, 0};
  };
  const BackwardArgs args{shape(h),
                          pde(Dx0, Dy0, steps, dt, dx, dy, boundary),
                          view(grad),
                          view(h),
                          view(h_old),
                          view(f),
                          view(u),
                          view(v),
                          view(Dx),
                          view(Dy),
                          view(std::get<0>(g)),
                          view(std::get<1>(g)),
                          where(std::get<2>(g), f.has_value()),
                          view(std::get<3>(g)),
                          view(std::get<4>(g)),
                          where(std::get<5>(g), Dx.has_value()),
                          where(std::get<6>(g), Dy.has_value())};
  run(args, 60 * steps, kernels(args.shape).backward_scratch, kernels(args.shape).backward);
  return g;
}

// Weights are read by address: `.to(memory_format=...)` may have changed their order.
Tensor packed(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

Tensor layer(const Tensor& h, const Tensor& f, const Tensor& weight_given, const Tensor& bias_given,
             const Tensor& scale_given, const Tensor& shift_given, double Dx0, double Dy0, int64_t steps,
             double dt, int64_t dx, int64_t dy, int64_t boundary, int64_t act, bool shared_product,
             bool velocity_from_f, bool start_from_h, bool source, bool residual) {
  Tensor out = torch::stable::empty_like(h);
  const Tensor weight = packed(weight_given), bias = packed(bias_given), scale = packed(scale_given),
               shift = packed(shift_given);
  const LayerArgs args{shape(h),         pde(Dx0, Dy0, steps, dt, dx, dy, boundary),
                       view(h),          view(f),
                       view(out),        weight.data_ptr(),
                       bias.data_ptr(),  scale.data_ptr(),
                       shift.data_ptr(), weight.size(0),
                       weight.size(2),   static_cast<Act>(act),
                       shared_product,   velocity_from_f,
                       start_from_h,     source,
                       residual};
  run(args, 60 + 15 * steps, kernels(args.shape).layer_scratch, kernels(args.shape).layer);
  return out;
}

// In training a unit of work is the channels of a plane in all images. There must be units for all
// processors; their number, and not that of the threads, so that the threads change no result.
int64_t training_depth(const Shape& s) {
  static const int64_t processors = std::max<int64_t>(1, std::thread::hardware_concurrency());
  const int64_t depth = depth_of(s);
  return units_of(s.C, depth) >= std::min(processors, s.C) ? depth : 1;
}

// A map whose channels lie side by side in memory, and which is gone through one channel at a time: it would
// read a cache line for every element.
bool to_be_turned(const Tensor& t) {
  return t.stride(1) == 1 && t.size(1) > 1 && t.size(2) * t.size(3) > 1 && training_depth(shape(t)) == 1;
}

Tensor planar_like(const Tensor& t) {
  return torch::stable::new_empty(t, {t.size(0), t.size(1), t.size(2), t.size(3)});
}

void copy_planes(const Tensor& to, const Tensor& from) {
  CopyArgs a{};
  a.shape = shape(from);
  a.pde.dx = a.pde.dy = 1;
  a.from = view(from), a.to = view(to);
  run(a, 4, kernels(a.shape).copy_scratch, kernels(a.shape).copy);
}

Tensor planar(const Tensor& t) {
  if (!to_be_turned(t)) return t;
  Tensor to = planar_like(t);
  copy_planes(to, t);
  return to;
}

std::optional<Tensor> planar(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(planar(*t)) : std::nullopt;
}

template <class Work>
void over_channels(const TrainArgs& args, int64_t (*bytes)(const TrainArgs&, int64_t), const Work& work) {
  const Shape& s = args.shape;
  if (s.N * s.C * s.H * s.W == 0) return;
  const int64_t depth = training_depth(s), need = bytes(args, depth);
  torch::stable::parallel_for(0, units_of(s.C, depth), 1, [&](int64_t begin, int64_t end) {
    work(args, depth, begin, end, scratch(need));
  });
}

std::tuple<Tensor, Tensor, Tensor> evolve(const Tensor& h_given, const std::optional<Tensor>& f_given,
                                          const Tensor& weight_given, const Tensor& gamma_given,
                                          const Tensor& beta_given, double eps, double Dx0, double Dy0,
                                          int64_t steps, double dt, int64_t dx, int64_t dy, int64_t boundary,
                                          int64_t act, bool shared_product, bool start_from_h, bool source) {
  const Tensor weight = packed(weight_given), gamma = packed(gamma_given), beta = packed(beta_given);
  const Tensor h = planar(h_given);
  const std::optional<Tensor> f = planar(f_given);
  Tensor result = torch::stable::empty_like(h_given);
  const bool turned = to_be_turned(result);
  Tensor out = turned ? planar_like(result) : result, mean = torch::stable::empty_like(gamma),
         var = torch::stable::empty_like(gamma);
  TrainArgs a{};
  a.shape = shape(h);
  a.pde = pde(Dx0, Dy0, steps, dt, dx, dy, boundary);
  a.h = view(h), a.f = view(f), a.out = view(out);
  a.weight = weight.data_ptr(), a.gamma = gamma.data_ptr(), a.beta = beta.data_ptr();
  a.mean = mean.data_ptr(), a.var = var.data_ptr();
  a.eps = eps, a.fields = weight.size(0), a.kernel = weight.size(2), a.act = static_cast<Act>(act);
  a.shared_product = shared_product, a.start_from_h = start_from_h, a.source = source;
  over_channels(a, kernels(a.shape).train_scratch, kernels(a.shape).train);
  if (turned) copy_planes(result, out);
  return {result, mean, var};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> evolve_backward(
    const Tensor& grad_given, const Tensor& h_given, const std::optional<Tensor>& f_given,
    const Tensor& weight_given, const Tensor& gamma_given, const Tensor& beta_given, const Tensor& mean_given,
    const Tensor& var_given, double eps, double Dx0, double Dy0, int64_t steps, double dt, int64_t dx,
    int64_t dy, int64_t boundary, int64_t act, bool shared_product, bool start_from_h, bool source) {
  const Tensor weight = packed(weight_given), gamma = packed(gamma_given), beta = packed(beta_given),
               mean = packed(mean_given), var = packed(var_given);
  const Tensor grad = planar(grad_given), h = planar(h_given);
  const std::optional<Tensor> f = planar(f_given);
  Tensor result_h = torch::stable::empty_like(h_given);
  Tensor result_f = f ? torch::stable::empty_like(h_given) : torch::stable::new_empty(h_given, {0});
  const bool turned = to_be_turned(result_h);
  Tensor g_h = turned ? planar_like(result_h) : result_h, g_weight = torch::stable::empty_like(weight),
         g_gamma = torch::stable::empty_like(gamma), g_beta = torch::stable::empty_like(beta);
  Tensor g_f = f && turned ? planar_like(result_f) : result_f;
  TrainArgs a{};
  a.shape = shape(h);
  a.pde = pde(Dx0, Dy0, steps, dt, dx, dy, boundary);
  a.h = view(h), a.f = view(f), a.grad = view(grad), a.g_h = view(g_h);
  if (f) a.g_f = view(g_f);
  a.weight = weight.data_ptr(), a.gamma = gamma.data_ptr(), a.beta = beta.data_ptr();
  a.mean = mean.data_ptr(), a.var = var.data_ptr();
  a.g_weight = g_weight.data_ptr(), a.g_gamma = g_gamma.data_ptr(), a.g_beta = g_beta.data_ptr();
  a.eps = eps, a.fields = weight.size(0), a.kernel = weight.size(2), a.act = static_cast<Act>(act);
  a.shared_product = shared_product, a.start_from_h = start_from_h, a.source = source;
  over_channels(a, kernels(a.shape).train_backward_scratch, kernels(a.shape).train_backward);
  if (turned) copy_planes(result_h, g_h);
  if (turned && f) copy_planes(result_f, g_f);
  return {result_h, result_f, g_weight, g_gamma, g_beta};
}

}  // namespace
}  // namespace globalcnn

STABLE_TORCH_LIBRARY_IMPL(globalcnn, CPU, m) {
  m.impl("solve", TORCH_BOX(&globalcnn::solve));
  m.impl("solve_backward", TORCH_BOX(&globalcnn::solve_backward));
  m.impl("layer", TORCH_BOX(&globalcnn::layer));
  m.impl("evolve", TORCH_BOX(&globalcnn::evolve));
  m.impl("evolve_backward", TORCH_BOX(&globalcnn::evolve_backward));
}

extern "C" __attribute__((visibility("default"))) const char* globalcnn_isa() {
  try {
    return globalcnn::best_kernels().name;
  } catch (const std::exception&) {
    return "";
  }
}
