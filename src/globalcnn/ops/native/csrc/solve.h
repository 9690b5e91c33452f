// The operator `solve`: the PDE solve, block by block of channels.
#pragma once
#include "layout.h"
#include "scheme.h"

namespace globalcnn {
namespace {

template <class T, class Stored>
struct Solve {
  static constexpr int64_t PLANES = 8 + 5 + 2;  // inputs and output, coefficients, two levels

  static int64_t scratch(const SolveArgs& a, int64_t block) {
    return PLANES * Plane<T>(a.shape, a.pde, 0, block).size * int64_t(sizeof(T));
  }

  static void run(const SolveArgs& a, int64_t block, int64_t begin, int64_t end, T* scratch) {
    const Plane<T> g(a.shape, a.pde, 0, block);
    const SchemeConstants<T> s(a.pde);
    std::memset(scratch, 0, 7 * g.size * sizeof(T));  // the inputs
    Arena<T> arena{scratch, g.size};
    T *h = arena.take(), *h_old = arena.take(), *f = arena.take(), *u = arena.take(), *v = arena.take(),
      *Dx = arena.take(), *Dy = arena.take(), *out = arena.take();
    T *stream = arena.take(5), *levels = arena.take(2);
    const bool learned = a.Dx.data, source = a.f.data;
    const bool h_old_is_h = same(a.h_old, a.h), f_is_h = same(a.f, a.h), f_is_h_old = same(a.f, a.h_old);
    for (const ChannelBlock b : ChannelBlocks{a.shape, block, begin, end}) {
      auto read = [&](T* plane, const View& from) {
        read_planes<T, Stored>(plane, g, from, b.n, b.c, b.count);
      };
      read(h, a.h);
      read(u, a.u);
      read(v, a.v);
      if (!h_old_is_h) read(h_old, a.h_old);
      if (source && !f_is_h && !f_is_h_old) read(f, a.f);
      if (learned) read(Dx, a.Dx), read(Dy, a.Dy);
      fill_halo(h, g, a.pde.boundary);
      fill_halo_rows(u, g, a.pde.boundary, true);
      fill_halo_columns(v, g, a.pde.boundary, true);
      const Fields<T> d{u, v, Dx, Dy, f_is_h ? h : f_is_h_old ? h_old : f};
      dispatch(learned, source, [&](auto with_D, auto with_f) {
        run_steps<T, decltype(with_D)::value, decltype(with_f)::value, false>(
            g, a.pde, s, d, stream, h, h_old_is_h ? h : h_old, levels, out, StoreLevel<T>{});
      });
      write_planes<T, Stored>(a.out, g, out, b.n, b.c, b.count);
    }
  }
};

}  // namespace
}  // namespace globalcnn
