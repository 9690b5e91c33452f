// The operator `solve_backward`: the gradients of `solve`, block by block of channels.
#pragma once
#include "adjoint.h"
#include "layout.h"

namespace globalcnn {
namespace {

template <class T, class Stored>
struct SolveBackward {
  static int64_t planes(const SolveBackwardArgs& a) {
    // inputs, gradients, coefficients and their gradients, contributions, e, levels
    return 8 + 6 + 6 + 6 + 4 + 1 + a.pde.steps;
  }

  static int64_t scratch(const SolveBackwardArgs& a, int64_t block) {
    return planes(a) * Plane<T>(a.shape, a.pde, 0, block).size * int64_t(sizeof(T));
  }

  static void run(const SolveBackwardArgs& a, int64_t block, int64_t begin, int64_t end, T* scratch) {
    const Plane<T> g(a.shape, a.pde, 0, block);
    const SchemeConstants<T> s(a.pde);
    std::memset(scratch, 0, planes(a) * g.size * sizeof(T));
    Arena<T> arena{scratch, g.size};
    T *lambda = arena.take(), *h = arena.take(), *h_old = arena.take(), *f = arena.take(), *u = arena.take(),
      *v = arena.take(), *Dx = arena.take(), *Dy = arena.take(), *g_h_old = arena.take();
    const FieldGradients<T> to{arena.take(), arena.take(), arena.take(),
                               arena.take(), arena.take(), arena.take()};
    const StepPlanes<T> k = take_step_planes(arena), gk = take_step_planes(arena);
    const Contributions<T> between = take_contributions(arena);
    T* levels = arena.take(a.pde.steps);
    const bool learned = a.Dx.data, source = a.f.data;
    const bool h_old_is_h = same(a.h_old, a.h), f_is_h = same(a.f, a.h), f_is_h_old = same(a.f, a.h_old);
    for (const ChannelBlock b : ChannelBlocks{a.shape, block, begin, end}) {
      auto read = [&](T* plane, const View& from) {
        read_planes<T, Stored>(plane, g, from, b.n, b.c, b.count);
      };
      read(lambda, a.grad);
      read(h, a.h);
      read(u, a.u);
      read(v, a.v);
      if (!h_old_is_h) read(h_old, a.h_old);
      if (source && !f_is_h && !f_is_h_old) read(f, a.f);
      if (learned) read(Dx, a.Dx), read(Dy, a.Dy);
      fill_halo(h, g, a.pde.boundary);
      fill_halo_rows(u, g, a.pde.boundary, true);
      fill_halo_columns(v, g, a.pde.boundary, true);
      // what an earlier block left beyond its rows must not be gathered
      clear_halo_columns(lambda, g);
      const Fields<T> d{u, v, Dx, Dy, f_is_h ? h : f_is_h_old ? h_old : f};
      dispatch(learned, source, [&](auto with_D, auto with_f) {
        adjoint_of_steps<T, decltype(with_D)::value, decltype(with_f)::value>(
            g, a.pde, s, d, k, gk, h, h_old_is_h ? h : h_old, lambda, g_h_old, between, levels, to);
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
