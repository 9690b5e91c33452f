// The halo of a plane: its fill by the boundary condition, and the adjoint of that, the halo scatter-add.
//
// `odd`: the mirror image changes sign (the normal velocity at a wall).
#pragma once
#include "maths.h"
#include "plane.h"

namespace globalcnn {
namespace {

// Where element i of a line of n comes from, beyond its ends too; index -1: it is zero.
struct Origin {
  int64_t index;
  bool mirrored;
};

inline Origin origin(int64_t i, int64_t n, Boundary boundary) {
  if (i >= 0 && i < n) return {i, false};
  if (boundary == Boundary::dirichlet) return {-1, false};
  const int64_t period = boundary == Boundary::periodic ? n : 2 * n;
  const int64_t m = (i % period + period) % period;
  return m < n ? Origin{m, false} : Origin{2 * n - 1 - m, true};
}

// Sets one column (the pixel `to` of every row) to sign * the column `from`, or to zero for a null `from`;
// with `add` it is added.
template <class T, bool add>
inline void set_column(T* to, const T* from, const Plane<T>& g, T sign) {
  if (g.block == 1) {
    for (int64_t i = 0; i < g.H * g.stride; i += g.stride)
      to[i] = (add ? to[i] : T(0)) + (from ? sign * from[i] : T(0));
    return;
  }
  const Vec<T> zero{};
  for (int64_t i = 0; i < g.H * g.stride; i += g.stride)
    store(to + i, (add ? load(to + i) : zero) + (from ? load(from + i) * sign : zero));
}

// The halo's row number k of 2 dx, and its column number k of 2 dy, counted from the edges outwards.
template <class T>
inline int64_t halo_row(const Plane<T>& g, int64_t k) {
  return k < g.dx ? -1 - k : g.H + k - g.dx;
}
template <class T>
inline int64_t halo_column(const Plane<T>& g, int64_t k) {
  return k < g.dy ? -1 - k : g.W + k - g.dy;
}

// Fills the dx halo rows on each side.
template <class T>
NOINLINE void fill_halo_rows(T* a, const Plane<T>& g, Boundary boundary, bool odd) {
  for (int64_t k = 0; k < 2 * g.dx; ++k) {
    const int64_t row = halo_row(g, k);
    const Origin o = origin(row, g.H, boundary);
    T* to = a + g.at(row, 0);
    if (o.index < 0) {
      std::memset(to, 0, g.line() * sizeof(T));
    } else if (odd && o.mirrored) {
      const T* from = a + g.at(o.index, 0);
      for (int64_t j = 0; j < g.line(); ++j) to[j] = -from[j];
    } else {
      std::memcpy(to, a + g.at(o.index, 0), g.line() * sizeof(T));
    }
  }
}

// Fills the dy halo columns on each side.
template <class T>
NOINLINE void fill_halo_columns(T* a, const Plane<T>& g, Boundary boundary, bool odd) {
  for (int64_t k = 0; k < 2 * g.dy; ++k) {
    const int64_t column = halo_column(g, k);
    const Origin o = origin(column, g.W, boundary);
    const T* from = o.index < 0 ? nullptr : a + g.at(0, o.index);
    set_column<T, false>(a + g.at(0, column), from, g, odd && o.mirrored ? T(-1) : T(1));
  }
}

// Fills the halo of a level of the state on all sides.
template <class T>
NOINLINE void fill_halo(T* a, const Plane<T>& g, Boundary boundary) {
  if (boundary != Boundary::periodic || g.dx != 1 || g.dy != 1 || g.block != 1) {
    fill_halo_rows(a, g, boundary, false);
    fill_halo_columns(a, g, boundary, false);
    return;
  }
  // the usual case of single channels, at a third of the cost
  T *line = a + g.at(0, 0), *last = a + g.at(g.H - 1, 0);
  const int64_t stride = g.stride, W = g.W;
  convert_line(line - stride, static_cast<const T*>(last), W);
  convert_line(last + stride, static_cast<const T*>(line), W);
  for (int64_t i = 0; i < g.H; ++i, line += stride) {
    line[-1] = line[W - 1];
    line[W] = line[0];
  }
}

// The adjoints of the fills: a gradient gathered in the halo belongs to the elements that it was copied from.
template <class T>
NOINLINE void scatter_add_halo_rows(T* a, const Plane<T>& g, Boundary boundary, bool odd) {
  for (int64_t k = 0; k < 2 * g.dx; ++k) {
    const int64_t row = halo_row(g, k);
    const Origin o = origin(row, g.H, boundary);
    if (o.index < 0) continue;
    T* to = a + g.at(o.index, 0);
    const T* from = a + g.at(row, 0);
    const T sign = odd && o.mirrored ? T(-1) : T(1);
    for (int64_t j = 0; j < g.line(); ++j) to[j] += sign * from[j];
  }
}

template <class T>
NOINLINE void scatter_add_halo_columns(T* a, const Plane<T>& g, Boundary boundary, bool odd) {
  for (int64_t k = 0; k < 2 * g.dy; ++k) {
    const int64_t column = halo_column(g, k);
    const Origin o = origin(column, g.W, boundary);
    if (o.index < 0) continue;
    set_column<T, true>(a + g.at(0, o.index), a + g.at(0, column), g, odd && o.mirrored ? T(-1) : T(1));
  }
}

template <class T>
void clear_halo_columns(T* a, const Plane<T>& g) {
  for (int64_t k = 0; k < g.py; ++k) {
    set_column<T, false>(a + g.at(0, -1 - k), nullptr, g, T(0));
    set_column<T, false>(a + g.at(0, g.W + k), nullptr, g, T(0));
  }
}

// The halo of zeros that convolutions need, in place of the boundary's.
template <class T>
void clear_halo(T* a, const Plane<T>& g, Boundary boundary) {
  if (boundary == Boundary::dirichlet) return;  // it is zero
  std::memset(a, 0, g.first * sizeof(T));
  std::memset(a + g.first + g.range, 0, g.X * sizeof(T));
  clear_halo_columns(a, g);
}

}  // namespace
}  // namespace globalcnn
