// The adjoint of the step of K = 1 with neighbours at distance 1, in two passes: `adjoint_of_single_step`
// leaves what elements contribute to their neighbours, and `gather_at` adds these up.
#pragma once
#include "adjoint.h"

namespace globalcnn {
namespace {

// What the first pass leaves for the second. u, v: the gradients without what comes through 2 E; e: that of 2
// E; own: the gradient of h without its neighbours' part; f: that of f, unused where h, h_old and f are one
// plane, whose gradients `own` then has.
template <class T>
struct SingleStepGradients {
  Contributions<T> to;
  T *u, *v, *e, *own, *f;
};

// The first pass. `two_dt` is 0 without a source. lambda: the gradient of the level, zero in the halo
// columns. The diffusion is not read from d: `diffusion(p, Dx, Dy)` gives it, and `take(p, g_Dx, g_Dy)` gets
// its gradients.
template <class T, bool learned, bool single_state, class Diffusion, class Take>
NOINLINE void adjoint_of_single_step(const Plane<T> g, const SchemeConstants<T> s, T two_dt,
                                     const Fields<T> d, const T* h, const T* h_old, bool start_from_h,
                                     const T* lambda, const SingleStepGradients<T> out,
                                     const Diffusion diffusion, Take& take) {
  // by masks, since factors of 0 would not keep NaN out
  const Vec<T> all_bits = Vec<T>(~IntVec<T>{}), no_bits{};
  const Vec<T> old_to_h = start_from_h ? all_bits : no_bits, old_to_f = start_from_h ? no_bits : all_bits;
  const Vec<T> with_f = two_dt != T(0) ? all_bits : no_bits;
  choose_y_neighbours(g, [&](auto way) {
    RowReader<T, decltype(way)::value> row(h, g), v_row(d.v, g);
    g.each(
        [&](int64_t p) FORCE_INLINE {
          row.advance(p);
          v_row.advance(p);
          const Vec<T> two_E = two_E_at<T, false>(d.u, v_row, p, g.X, s);
          const Neighbours<T> at = neighbours(row, p, g.X);
          const Vec<T> Ax = load(d.u + p) * s.Ax_per_u, Ay = v_row.here * s.Ay_per_v;
          Vec<T> two_Bx, two_By, two_B, R;
          if constexpr (learned) {
            diffusion(p, two_Bx, two_By);
            two_Bx *= s.two_Bx_per_Dx, two_By *= s.two_By_per_Dy;
            two_B = two_Bx + two_By;
            R = divide<T>(broadcast<T>(T(1)), T(1) + two_B);
          } else {
            two_Bx = broadcast<T>(s.two_Bx), two_By = broadcast<T>(s.two_By);
            two_B = broadcast<T>(s.two_B), R = broadcast<T>(s.R);
          }
          const Vec<T> l = load(lambda + p) * R;
          const Vec<T> of_old = T(1) - two_B;
          const Vec<T> of_xm = two_Bx - Ax, of_xp = two_Bx + Ax, of_ym = two_By - Ay, of_yp = two_By + Ay;
          const Vec<T> l_xm = l * at.xm, l_xp = l * at.xp, l_ym = l * at.ym, l_yp = l * at.yp;
          if constexpr (learned) {
            // dH / d(2 Bx) = R (h[-X] + h[+X] - h_old - H)
            const Vec<T> old = load(h_old + p);
            Vec<T> H = of_old * old - two_E * row.here;
            H += of_xm * at.xm + of_xp * at.xp;
            H += of_ym * at.ym + of_yp * at.yp;
            H += load(d.f + p) * two_dt;
            const Vec<T> old_and_H = old + H * R;
            const Vec<T> g_two_Bx = l_xm + l_xp - l * old_and_H, g_two_By = l_ym + l_yp - l * old_and_H;
            take(p, g_two_Bx * s.two_Bx_per_Dx, g_two_By * s.two_By_per_Dy);
          }
          store(out.u + p, (l_xp - l_xm) * s.Ax_per_u);
          store(out.v + p, (l_yp - l_ym) * s.Ay_per_v);
          store(out.e + p, -l * row.here);
          store(out.to.xm + p, of_xm * l);
          store(out.to.xp + p, of_xp * l);
          store(out.to.ym + p, of_ym * l);
          store(out.to.yp + p, of_yp * l);
          const Vec<T> through_f = l * two_dt, through_old = of_old * l;
          if constexpr (single_state) {
            store(out.own + p, through_old + through_f - two_E * l);
          } else {
            store(out.own + p, masked<T>(through_old, old_to_h) - two_E * l);
            store(out.f + p, masked<T>(through_old, old_to_f) + masked<T>(through_f, with_f));
          }
        },
        [&](int64_t p) FORCE_INLINE { row.begin_run(p), v_row.begin_run(p); });
  });
}

// The halo of what the first pass leaves: what a neighbour beyond the edge contributes comes from where its
// value did.
template <class T>
void fill_halo_of_contributions(const Plane<T>& g, Boundary boundary, const SingleStepGradients<T>& out) {
  const Contributions<T>& to = out.to;
  fill_halo(out.e, g, boundary);
  const bool wall = boundary == Boundary::neumann, none = boundary == Boundary::dirichlet;
  const T *from_last = (wall ? to.xm : to.xp) + g.at(wall ? 0 : g.H - 1, 0),
          *from_first = (wall ? to.xp : to.xm) + g.at(wall ? g.H - 1 : 0, 0);
  T *above = to.xp + g.at(-1, 0), *below = to.xm + g.at(g.H, 0);
  for (int64_t j = 0; j < g.line(); ++j) {
    above[j] = none ? T(0) : from_last[j];
    below[j] = none ? T(0) : from_first[j];
  }
  const T *to_left = (wall ? to.ym : to.yp) + g.at(0, wall ? 0 : g.W - 1),
          *to_right = (wall ? to.yp : to.ym) + g.at(0, wall ? g.W - 1 : 0);
  set_column<T, false>(to.yp + g.at(0, -1), none ? nullptr : to_left, g, T(1));
  set_column<T, false>(to.ym + g.at(0, g.W), none ? nullptr : to_right, g, T(1));
}

// The second pass at p: adds to the gradients of u and v what comes through 2 E; returns the gradient of h.
template <class T>
inline FORCE_INLINE Vec<T> gather_at(const Plane<T>& g, const SchemeConstants<T>& s, int64_t p,
                                     const SingleStepGradients<T>& from, Vec<T>& g_u, Vec<T>& g_v) {
  const Contributions<T>& to = from.to;
  g_u += (load(from.e + p + g.X) - load(from.e + p - g.X)) * s.Ax_per_u;
  g_v += (load(from.e + p + g.Y) - load(from.e + p - g.Y)) * s.Ay_per_v;
  return load(from.own + p) + (load(to.xm + p + g.X) + load(to.xp + p - g.X)) +
         (load(to.ym + p + g.Y) + load(to.yp + p - g.Y));
}

}  // namespace
}  // namespace globalcnn
