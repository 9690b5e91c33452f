// What `solve` and `solve_backward` read of a channel block: levels, source and coefficients, halos filled.
#pragma once
#include "layout.h"
#include "scheme.h"

namespace globalcnn {
namespace {

template <class T, class Stored, class Args>
struct SolveInputs {
  static constexpr int64_t PLANES = 7;

  const Args& a;
  T *h, *h_old, *f, *u, *v, *Dx, *Dy;
  const bool learned, source, h_old_is_h, f_is_h, f_is_h_old;

  // The planes must hold zeros: lanes without a channel are never written.
  SolveInputs(const Args& args, Arena<T>& arena)
      : a(args),
        h(arena.take()),
        h_old(arena.take()),
        f(arena.take()),
        u(arena.take()),
        v(arena.take()),
        Dx(arena.take()),
        Dy(arena.take()),
        learned(args.Dx.data),
        source(args.f.data),
        h_old_is_h(same(args.h_old, args.h)),
        f_is_h(same(args.f, args.h)),
        f_is_h_old(same(args.f, args.h_old)) {}

  void read(const Plane<T>& g, const ChannelBlock& b) const {
    auto fill = [&](T* plane, const View& from) {
      read_planes<T, Stored>(plane, g, from, b.n, b.c, b.count);
    };
    fill(h, a.h);
    fill(u, a.u);
    fill(v, a.v);
    if (!h_old_is_h) fill(h_old, a.h_old);
    if (source && !f_is_h && !f_is_h_old) fill(f, a.f);
    if (learned) fill(Dx, a.Dx), fill(Dy, a.Dy);
    fill_halo(h, g, a.pde.boundary);
    fill_halo_rows(u, g, a.pde.boundary, true);
    fill_halo_columns(v, g, a.pde.boundary, true);
  }

  // The level before h, and the fields of the equation; tensors that are one share a plane.
  const T* level_before() const { return h_old_is_h ? h : h_old; }
  Fields<T> fields() const { return {u, v, Dx, Dy, f_is_h ? h : f_is_h_old ? h_old : f}; }
};

}  // namespace
}  // namespace globalcnn
