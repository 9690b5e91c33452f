// The adjoint of K steps of the scheme: from the gradient of the last level to those of the fields and of the
// first two levels. The levels are computed again, then the adjoint of every step runs from the last to the
// first.
#pragma once
#include "scheme.h"

namespace globalcnn {
namespace {

// Planes of a step's coefficients, or of their gradients:
//   H = c_old h_old + G h + Px (h[-X] + h[+X]) + Qx (h[+X] - h[-X]) + Py (..) + Qy (..) + F,
// where P = 2 B R, Q = A R, G = -2 E R, F = 2 dt R f and c_old = (1 - 2 Bx - 2 By) R = 1 - 2 (Px + Py).
// The forward stores fewer (`COEFFICIENTS`); here each gets a gradient of its own.
template <class T>
struct StepPlanes {
  T *Px, *Qx, *Py, *Qy, *G, *F;
};

template <class T>
StepPlanes<T> take_step_planes(Arena<T>& arena) {
  T* const first = arena.take(6);
  return {first,
          first + arena.size,
          first + 2 * arena.size,
          first + 3 * arena.size,
          first + 4 * arena.size,
          first + 5 * arena.size};
}

// What every element contributes to the gradients of its neighbours at -X, +X, -Y, +Y; they gather it.
template <class T>
struct Contributions {
  T *xm, *xp, *ym, *yp;
};

template <class T>
Contributions<T> take_contributions(Arena<T>& arena) {
  T* const first = arena.take(4);
  return {first, first + arena.size, first + 2 * arena.size, first + 3 * arena.size};
}

template <class T, bool learned, bool source>
NOINLINE void prepare_step(const Plane<T> g, const SchemeConstants<T> s, const Fields<T> d,
                           const StepPlanes<T> to) {
  g.each([&](int64_t p) FORCE_INLINE {
    Vec<T> two_E = (load(d.u + p - g.X) - load(d.u + p + g.X)) * s.Ax_per_u;
    two_E += (load(d.v + p - g.Y) - load(d.v + p + g.Y)) * s.Ay_per_v;
    Vec<T> R;
    if constexpr (learned) {
      const Vec<T> two_Bx = load(d.Dx + p) * s.two_Bx_per_Dx, two_By = load(d.Dy + p) * s.two_By_per_Dy;
      R = T(1) / (T(1) + two_Bx + two_By);
      store(to.Px + p, two_Bx * R);
      store(to.Py + p, two_By * R);
    } else {
      R = broadcast<T>(s.R);
    }
    store(to.Qx + p, load(d.u + p) * s.Ax_per_u * R);
    store(to.Qy + p, load(d.v + p) * s.Ay_per_v * R);
    store(to.G + p, -two_E * R);
    if constexpr (source) store(to.F + p, load(d.f + p) * s.two_dt * R);
  });
}

// A step from these coefficients.
template <class T, bool learned, bool source, YNeighbours way>
NOINLINE void step_from_planes(const Plane<T> g, const SchemeConstants<T> s, const StepPlanes<T> k,
                               const T* h, const T* h_old, T* out) {
  RowReader<T, way> row(h, g);
  g.each(
      [&](int64_t p) FORCE_INLINE {
        row.advance(p);
        const Neighbours<T> at = neighbours(row, p, g.X);
        Vec<T> Px, Py, of_old;
        if constexpr (learned) {
          Px = load_to_register(k.Px + p), Py = load_to_register(k.Py + p);
          of_old = T(1) - T(2) * (Px + Py);
        } else {
          Px = broadcast<T>(s.Px), Py = broadcast<T>(s.Py), of_old = broadcast<T>(s.old);
        }
        const Vec<T> Qx = load_to_register(k.Qx + p), Qy = load_to_register(k.Qy + p);
        Vec<T> H = of_old * load(h_old + p) + load(k.G + p) * row.here;
        H += (Px - Qx) * at.xm + (Px + Qx) * at.xp;
        H += (Py - Qy) * at.ym + (Py + Qy) * at.yp;
        if constexpr (source) H += load(k.F + p);
        store(out + p, H);
      },
      [&](int64_t p) FORCE_INLINE { row.begin_run(p); });
}

// Adds to `gk`, the gradients of the coefficients, what the step from (h_old, h) adds, given lambda, the
// gradient of its result; sets what its neighbours gather.
template <class T, bool learned, bool source, bool first>
NOINLINE void adjoint_step(const Plane<T> g, const SchemeConstants<T> s, const StepPlanes<T> k,
                           const StepPlanes<T> gk, const T* h, const T* h_old, const T* lambda,
                           const Contributions<T> to) {
  auto add = [](T* sum, Vec<T> x) { store(sum, first ? x : load(sum) + x); };
  g.each([&](int64_t p) FORCE_INLINE {
    const Vec<T> xm = load_to_register(h + p - g.X), xp = load_to_register(h + p + g.X);
    const Vec<T> ym = load_to_register(h + p - g.Y), yp = load_to_register(h + p + g.Y);
    const Vec<T> l = load(lambda + p);
    const Vec<T> l_xm = l * xm, l_xp = l * xp, l_ym = l * ym, l_yp = l * yp;
    Vec<T> Px, Py;
    if constexpr (learned) {
      Px = load(k.Px + p), Py = load(k.Py + p);
      const Vec<T> old = T(2) * load(h_old + p);
      add(gk.Px + p, l_xm + l_xp - l * old);
      add(gk.Py + p, l_ym + l_yp - l * old);
    } else {
      Px = broadcast<T>(s.Px), Py = broadcast<T>(s.Py);
    }
    const Vec<T> Qx = load(k.Qx + p), Qy = load(k.Qy + p);
    add(gk.Qx + p, l_xp - l_xm);
    add(gk.Qy + p, l_yp - l_ym);
    add(gk.G + p, l * load(h + p));
    if constexpr (source) add(gk.F + p, l);
    store(to.xm + p, (Px - Qx) * l);
    store(to.xp + p, (Px + Qx) * l);
    store(to.ym + p, (Py - Qy) * l);
    store(to.yp + p, (Py + Qy) * l);
  });
  // the last vector may have run on into the halo, where nothing is to be gathered
  T* const planes[4] = {to.xm, to.xp, to.ym, to.yp};
  for (T* x : planes) std::memset(x + g.first + g.range, 0, LANES<T> * sizeof(T));
}

// Gathers in the halo rows, which have contributions from inside only: up of the rows below, down of those
// above.
template <class T>
void gather_in_halo_rows(T* to, const Plane<T>& g, const T* up, const T* down, T up_factor, T down_factor) {
  for (int64_t k = 1; k <= g.dx; ++k) {
    T *above = to + g.at(-k, 0), *below = to + g.at(g.H - 1 + k, 0);
    const int64_t from_above = g.dx - k, from_below = g.H - 1 + k - g.dx;
    for (int64_t j = 0; j < g.line(); ++j) {
      above[j] = from_above < g.H ? up[g.at(from_above, 0) + j] * up_factor : T(0);
      below[j] = from_below >= 0 ? down[g.at(from_below, 0) + j] * down_factor : T(0);
    }
  }
}

// The same in the halo columns. With single channels the loop over all rows has done these already.
template <class T>
void gather_in_halo_columns(T* to, const Plane<T>& g, const T* left, const T* right, T left_factor,
                            T right_factor) {
  if (g.block == 1) return;
  for (int64_t k = 1; k <= g.dy; ++k) {
    const int64_t from_left = g.dy - k, from_right = g.W - 1 + k - g.dy;
    const T* of_left = from_left < g.W ? left + g.at(0, from_left) : nullptr;
    const T* of_right = from_right >= 0 ? right + g.at(0, from_right) : nullptr;
    set_column<T, false>(to + g.at(0, -k), of_left, g, left_factor);
    set_column<T, false>(to + g.at(0, g.W - 1 + k), of_right, g, right_factor);
  }
}

// lambda becomes the gradient of the level before, carry that of the level before that one.
template <class T, bool learned>
NOINLINE void gather(const Plane<T> g, Boundary boundary, const SchemeConstants<T> s, const StepPlanes<T> k,
                     T* lambda, T* carry, const Contributions<T> from) {
  g.each([&](int64_t p) FORCE_INLINE {
    const Vec<T> l = load(lambda + p);
    Vec<T> of_old;
    if constexpr (learned)
      of_old = T(1) - T(2) * (load(k.Px + p) + load(k.Py + p));
    else
      of_old = broadcast<T>(s.old);
    Vec<T> g_h = load(k.G + p) * l + load(carry + p);
    g_h += load(from.xm + p + g.X) + load(from.xp + p - g.X);
    g_h += load(from.ym + p + g.Y) + load(from.yp + p - g.Y);
    store(lambda + p, g_h);
    store(carry + p, of_old * l);
  });
  gather_in_halo_rows(lambda, g, from.xm, from.xp, T(1), T(1));
  gather_in_halo_columns(lambda, g, from.ym, from.yp, T(1), T(1));
  scatter_add_halo_rows(lambda, g, boundary, false);
  scatter_add_halo_columns(lambda, g, boundary, false);
  clear_halo_columns(lambda, g);
  clear_halo_columns(carry, g);
}

// Gradients of the fields, and e, that of 2 E.
template <class T>
struct FieldGradients {
  T *u, *v, *Dx, *Dy, *f, *e;
};

// From the gradients of the coefficients to those of the fields, but for the part of u and v that comes
// through 2 E.
template <class T, bool learned, bool source>
NOINLINE void gradients_of_fields(const Plane<T> g, const SchemeConstants<T> s, const Fields<T> d,
                                  const StepPlanes<T> k, const StepPlanes<T> gk, const FieldGradients<T> to) {
  g.each([&](int64_t p) FORCE_INLINE {
    const Vec<T> gQx = load(gk.Qx + p), gQy = load(gk.Qy + p), gG = load(gk.G + p);
    Vec<T> R;
    if constexpr (learned) {
      const Vec<T> gPx = load(gk.Px + p), gPy = load(gk.Py + p);
      const Vec<T> Qx = load(k.Qx + p), Qy = load(k.Qy + p), G = load(k.G + p);
      R = T(1) / (T(1) + load(d.Dx + p) * s.two_Bx_per_Dx + load(d.Dy + p) * s.two_By_per_Dy);
      // every coefficient is R times something: together they give R times the gradient of R
      Vec<T> gR = gPx * load(k.Px + p) + gPy * load(k.Py + p) + gQx * Qx + gQy * Qy + gG * G;
      // where a coefficient is infinite so is the level's every term: infinities that cancelled out in the
      // gradients, summed up over steps and directions, still make not-a-number
      gR += (Qx - Qx) + (Qy - Qy) + (G - G);
      if constexpr (source) {
        const Vec<T> F = load(k.F + p);
        gR += load(gk.F + p) * F + (F - F);
      }
      store(to.Dx + p, (gPx - gR) * R * s.two_Bx_per_Dx);
      store(to.Dy + p, (gPy - gR) * R * s.two_By_per_Dy);
    } else {
      R = broadcast<T>(s.R);
    }
    store(to.u + p, gQx * R * s.Ax_per_u);
    store(to.v + p, gQy * R * s.Ay_per_v);
    store(to.e + p, -gG * R);
    if constexpr (source) store(to.f + p, load(gk.F + p) * s.two_dt * R);
  });
}

// Adds what comes through 2 E = (u[-X] - u[+X]) dt/dx + (v[-Y] - v[+Y]) dt/dy to the gradients of u and v.
template <class T>
NOINLINE void gradients_through_divergence(const Plane<T> g, Boundary boundary, const SchemeConstants<T> s,
                                           const FieldGradients<T> to) {
  T* const e = to.e;
  clear_halo_columns(e, g);
  clear_halo_columns(to.v, g);
  std::memset(e + g.first + g.range, 0, (g.size - g.first - g.range) * sizeof(T));
  g.each([&](int64_t p) FORCE_INLINE {
    store(to.u + p, load(to.u + p) + (load(e + p + g.X) - load(e + p - g.X)) * s.Ax_per_u);
    store(to.v + p, load(to.v + p) + (load(e + p + g.Y) - load(e + p - g.Y)) * s.Ay_per_v);
  });
  gather_in_halo_rows<T>(to.u, g, e, e, s.Ax_per_u, -s.Ax_per_u);
  gather_in_halo_columns<T>(to.v, g, e, e, s.Ay_per_v, -s.Ay_per_v);
  scatter_add_halo_rows(to.u, g, boundary, true);
  scatter_add_halo_columns(to.v, g, boundary, true);
}

// The adjoint of the K steps of one plane. lambda: in, the gradient of the last level, zero in the halo
// columns; out, that of h; carry: out, that of h_old. levels: K - 1 planes.
template <class T, bool learned, bool source>
void adjoint_of_steps(const Plane<T>& g, const Pde& pde, const SchemeConstants<T>& s, const Fields<T>& d,
                      const StepPlanes<T>& k, const StepPlanes<T>& gk, const T* h, const T* h_old, T* lambda,
                      T* carry, const Contributions<T>& between, T* levels, const FieldGradients<T>& to) {
  std::memset(carry, 0, g.size * sizeof(T));
  if (pde.steps == 0) {
    T* const gradients[6] = {to.u, to.v, to.Dx, to.Dy, to.f, to.e};
    for (T* x : gradients) std::memset(x, 0, g.size * sizeof(T));
    return;
  }
  prepare_step<T, learned, source>(g, s, d, k);
  if (g.block == 1) {
    // loops run over the halo columns too: infinite coefficients there, times a zero lambda, would be
    // not-a-numbers
    T* const coefficients[5] = {k.Px, k.Qx, k.Py, k.Qy, k.G};
    for (T* x : coefficients) clear_halo_columns(x, g);
  }
  auto level = [&](int64_t i) { return i < 0 ? h_old : i == 0 ? h : levels + (i - 1) * g.size; };
  for (int64_t i = 1; i < pde.steps; ++i) {
    T* next = levels + (i - 1) * g.size;
    choose_y_neighbours(g, [&](auto way) {
      step_from_planes<T, learned, source, decltype(way)::value>(g, s, k, level(i - 1), level(i - 2), next);
    });
    fill_halo(next, g, pde.boundary);
  }
  for (int64_t i = pde.steps - 1; i >= 0; --i) {
    if (i == pde.steps - 1)
      adjoint_step<T, learned, source, true>(g, s, k, gk, level(i), level(i - 1), lambda, between);
    else
      adjoint_step<T, learned, source, false>(g, s, k, gk, level(i), level(i - 1), lambda, between);
    gather<T, learned>(g, pde.boundary, s, k, lambda, carry, between);
  }
  gradients_of_fields<T, learned, source>(g, s, d, k, gk, to);
  gradients_through_divergence(g, pde.boundary, s, to);
}

}  // namespace
}  // namespace globalcnn
