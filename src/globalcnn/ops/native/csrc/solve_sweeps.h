// The operators `solve` and `solve_backward` for the scheme of gated sweeps.
#pragma once
#include "layout.h"
#include "sweeps_adjoint.h"

namespace globalcnn {
namespace {

// What both read of a block of channels. h_old has no part in the scheme.
template <class T, class Stored, class Args>
struct SweepInputs {
  static constexpr int64_t PLANES = 2 + 4;
  const Args& a;
  T *h, *f;
  FourPlanes<T> fields;
  const bool learned, source, f_is_h;

  SweepInputs(const Args& args, Arena<T>& arena)
      : a(args),
        h(arena.take()),
        f(arena.take()),
        fields(take_four(arena)),
        learned(args.Dx.data),
        source(args.f.data),
        f_is_h(same(args.f, args.h)) {}

  void read(const Plane<T>& g, const ChannelBlock& b) const {
    const View* const views[4] = {&a.u, &a.v, &a.Dx, &a.Dy};
    read_planes<T, Stored>(h, g, a.h, b.n, b.c, b.count);
    if (source && !f_is_h) read_planes<T, Stored>(f, g, a.f, b.n, b.c, b.count);
    for (int i = 0; i < (learned ? 4 : 2); ++i)
      read_planes<T, Stored>(fields.of[i], g, *views[i], b.n, b.c, b.count);
  }
  const T* of_f() const { return f_is_h ? h : f; }
};

template <class T, class Stored>
struct SolveSweeps {
  using Inputs = SweepInputs<T, Stored, SolveArgs>;

  static int64_t scratch(const SolveArgs& a, int64_t) {
    return (Inputs::PLANES + 2) * sweep_plane<T>(a.shape, 0).size * int64_t(sizeof(T));
  }

  static void run(const SolveArgs& a, int64_t block, int64_t begin, int64_t end, T* scratch) {
    const Plane<T> g = sweep_plane<T>(a.shape, 0);
    const GateConstants<T> s(a.pde);
    Arena<T> arena{scratch, g.size};
    const Inputs in(a, arena);
    std::memset(scratch, 0, Inputs::PLANES * g.size * sizeof(T));  // lanes without a channel
    T *level = arena.take(), *before = arena.take();
    const auto prepare = [&](int64_t from, int64_t to) {
      keep_in_rows(g, s, in.learned, from, to, in.fields, in.fields);
    };
    for (const ChannelBlock b : ChannelBlocks{a.shape, block, begin, end}) {
      in.read(g, b);
      if (a.pde.steps > 0)
        sweep_steps(g, a.pde, in.fields, level, before, rows_function(prepare), false, in.h, in.of_f(),
                    in.source, ToPlane<T>{level});
      write_planes<T, Stored>(a.out, g, a.pde.steps > 0 ? level : in.h, b.n, b.c, b.count);
    }
  }
};

template <class T, class Stored>
struct SolveBackwardSweeps {
  using Inputs = SweepInputs<T, Stored, SolveBackwardArgs>;

  static int64_t planes(const SolveBackwardArgs& a) {
    // inputs; keep, stage, sums; grad, gradient of f, a row; levels
    return Inputs::PLANES + 12 + 3 + a.pde.steps;
  }

  static int64_t scratch(const SolveBackwardArgs& a, int64_t) {
    return planes(a) * sweep_plane<T>(a.shape, 0).size * int64_t(sizeof(T));
  }

  struct Planes {
    FourPlanes<T> keep, stage, sums;
    T *grad, *g_f, *row, *levels;
    Planes(Arena<T>& arena, int64_t steps)
        : keep(take_four(arena)),
          stage(take_four(arena)),
          sums(take_four(arena)),
          grad(arena.take()),
          g_f(arena.take()),
          row(arena.take()),
          levels(arena.take(steps)) {}
  };

  // The step from level k once more, and its adjoint; adds to the gradients of `keep` and f.
  template <bool separate>
  static void back_step(const SolveBackwardArgs& a, const Plane<T>& g, const Planes& x, const T* level,
                        const T* f, bool source) {
    const FromStart<T, separate> in(level, f, a.pde, source);
    sweep_step(g, a.pde, x.keep, x.stage, x.row, no_rows_function(), false, in, ToPlane<T>{x.stage.of[3]});
    const FourPlanes<T> g_keep = in_order_of_keep(a.pde, x.stage);
    const T dt = source ? T(a.pde.dt) : T(0);
    adjoint_of_sweep_step(g, a.pde, x.keep, x.stage, x.grad, x.row, in, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t p = g.at(i, 0); p < g.at(i, g.W); p += LANES<T>) {
          for (int k = 0; k < 4; ++k)
            store(x.sums.of[k] + p, load(x.sums.of[k] + p) + load(g_keep.of[k] + p));
          store(x.g_f + p, load(x.g_f + p) + load(x.grad + p) * dt);
        }
    });
  }

  static void back_block(const SolveBackwardArgs& a, const Plane<T>& g, const GateConstants<T>& s,
                         const Inputs& in, const Planes& x) {
    if (a.pde.steps == 0) {  // the fields have no part, whatever they are
      std::memset(in.fields.of[0], 0, 4 * g.size * sizeof(T));
      return;
    }
    keep_in_rows(g, s, in.learned, 0, g.H, in.fields, x.keep);
    std::memset(x.sums.of[0], 0, 4 * g.size * sizeof(T));
    std::memset(x.g_f, 0, g.size * sizeof(T));
    Pde one = a.pde;
    one.steps = 1;
    auto level = [&](int64_t k) { return k == 0 ? in.h : x.levels + (k - 1) * g.size; };
    for (int64_t k = 1; k < a.pde.steps; ++k) {
      T* const to = x.levels + (k - 1) * g.size;
      sweep_steps(g, one, x.keep, to, x.row, no_rows_function(), false, level(k - 1), in.of_f(), in.source,
                  ToPlane<T>{to});
    }
    for (int64_t k = a.pde.steps - 1; k >= 0; --k) {
      if (in.source && in.of_f() != level(k))
        back_step<true>(a, g, x, level(k), in.of_f(), true);
      else
        back_step<false>(a, g, x, level(k), nullptr, in.source);
    }
    for (int64_t i = 0; i < g.H; ++i)
      for (int64_t p = g.at(i, 0); p < g.at(i, g.W); p += LANES<T>) {
        Vec<T> g_keep[4], keep[4], field[4] = {}, g_field[4];
        for (int k = 0; k < 4; ++k) g_keep[k] = load(x.sums.of[k] + p), keep[k] = load(x.keep.of[k] + p);
        for (int k = 0; k < (in.learned ? 4 : 2); ++k) field[k] = load(in.fields.of[k] + p);
        fields_backward<T, false>(s, in.learned, g_keep, keep, field, g_field);
        for (int k = 0; k < 4; ++k) store(in.fields.of[k] + p, g_field[k]);
      }
  }

  static void run(const SolveBackwardArgs& a, int64_t block, int64_t begin, int64_t end, T* scratch) {
    const Plane<T> g = sweep_plane<T>(a.shape, 0);
    const GateConstants<T> s(a.pde);
    std::memset(scratch, 0, planes(a) * g.size * sizeof(T));
    Arena<T> arena{scratch, g.size};
    const Inputs in(a, arena);
    const Planes x(arena, a.pde.steps);
    for (const ChannelBlock b : ChannelBlocks{a.shape, block, begin, end}) {
      in.read(g, b);
      read_planes<T, Stored>(x.grad, g, a.grad, b.n, b.c, b.count);
      back_block(a, g, s, in, x);
      auto write = [&](const View& tensor, const T* plane) {
        if (tensor.data) write_planes<T, Stored>(tensor, g, plane, b.n, b.c, b.count);
      };
      write(a.g_h, x.grad), write(a.g_f, x.g_f);
      write(a.g_u, in.fields.of[0]), write(a.g_v, in.fields.of[1]);
      write(a.g_Dx, in.fields.of[2]), write(a.g_Dy, in.fields.of[3]);
      // h_old has no part in the scheme
      std::memset(x.g_f, 0, g.size * sizeof(T));
      write(a.g_h_old, x.g_f);
    }
  }
};

}  // namespace
}  // namespace globalcnn
