// The operator `solve_backward`: the gradients of `solve`, block by block of channels.
#pragma once
#include "adjoint.h"
#include "solve_inputs.h"

namespace globalcnn {
namespace {

template <class T, class Stored>
struct SolveBackward {
  using Inputs = SolveInputs<T, Stored, SolveBackwardArgs>;

  static int64_t planes(const SolveBackwardArgs& a) {
    // inputs, lambda, gradients, coefficients and their gradients, contributions, e, levels
    return Inputs::PLANES + 1 + 6 + 6 + 6 + 4 + 1 + a.pde.steps;
  }

  static int64_t scratch(const SolveBackwardArgs& a, int64_t block) {
    return planes(a) * Plane<T>(a.shape, a.pde, 0, block).size * int64_t(sizeof(T));
  }

  static void run(const SolveBackwardArgs& a, int64_t block, int64_t begin, int64_t end, T* scratch) {
    const Plane<T> g(a.shape, a.pde, 0, block);
    const SchemeConstants<T> s(a.pde);
    std::memset(scratch, 0, planes(a) * g.size * sizeof(T));
    Arena<T> arena{scratch, g.size};
    T* lambda = arena.take();
    const Inputs in(a, arena);
    T* g_h_old = arena.take();
    const FieldGradients<T> to{arena.take(), arena.take(), arena.take(),
                               arena.take(), arena.take(), arena.take()};
    const StepPlanes<T> k = take_step_planes(arena), gk = take_step_planes(arena);
    const Contributions<T> between = take_contributions(arena);
    T* levels = arena.take(a.pde.steps);
    for (const ChannelBlock b : ChannelBlocks{a.shape, block, begin, end}) {
      in.read(g, b);
      read_planes<T, Stored>(lambda, g, a.grad, b.n, b.c, b.count);
      // what an earlier block left beyond its rows must not be gathered
      clear_halo_columns(lambda, g);
      dispatch(in.learned, in.source, [&](auto with_D, auto with_f) {
        adjoint_of_steps<T, decltype(with_D)::value, decltype(with_f)::value>(
            g, a.pde, s, in.fields(), k, gk, in.h, in.level_before(), lambda, g_h_old, between, levels, to);
      });
      auto write = [&](const View& tensor, const T* plane) {
        if (tensor.data) write_planes<T, Stored>(tensor, g, plane, b.n, b.c, b.count);
      };
      write(a.g_h, lambda), write(a.g_h_old, g_h_old), write(a.g_f, to.f);
      write(a.g_u, to.u), write(a.g_v, to.v), write(a.g_Dx, to.Dx), write(a.g_Dy, to.Dy);
    }
  }
};

}  // namespace
}  // namespace globalcnn
