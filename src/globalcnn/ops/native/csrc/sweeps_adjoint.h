// The adjoint of a step of sweeps. That of one sweep is the sweep in the other direction:
//
//   s_i = grad_i + g_{i+1} s_{i+1},   the gradient of x_i is keep_i s_i, that of keep_i is s_i (x_i -
//   d_{i-1}).
//
// It needs what each sweep read and what it gave, which are computed again before; the gradients of `keep`
// take the places of the results.
#pragma once
#include "sweeps.h"

namespace globalcnn {
namespace {

// At one element: `s`, in: what comes from the next one downstream; out: what goes to the next one upstream.
// fixed: the element is the first of a chain that nothing flows into.
template <class T>
inline FORCE_INLINE void adjoint_at(Vec<T> keep, Vec<T> x, Vec<T> before, bool fixed, T* grad, T* result,
                                    Vec<T>& s) {
  s += load(grad);
  store(grad, fixed ? s : keep * s);
  store(result, fixed ? Vec<T>{} : s * (x - before));
  s -= keep * s;
}

// Of a sweep along x through R rows. after: a row, what comes from downstream; starts: nothing does yet;
// ends: the last of these rows is the first of the sweep.
template <int R, class T, class In>
inline void adjoint_across(const Plane<T>& g, int64_t row, bool backward, bool starts, bool ends, bool closed,
                           const In in, const T* keep, T* result, T* grad, T* after) {
  constexpr int64_t L = LANES<T>;
  const int64_t step = backward ? g.stride : -g.stride, first = backward ? row : row + R - 1;
  for (int64_t j = 0; j < g.W; ++j) {
    int64_t p = g.at(first, j);
    Vec<T> s = starts ? Vec<T>{} : load(after + j * L);
    for (int k = 0; k < R; ++k, p += step) {
      const bool end = k == R - 1 && ends;
      const Vec<T> before = end ? Vec<T>{} : load(result + p + step);
      adjoint_at<T>(load_to_register(keep + p), in(p), before, end && closed, grad + p, result + p, s);
    }
    store(after + j * L, s);
  }
}

// Of a sweep along y through R rows.
template <int R, class T, class In>
inline void adjoint_along(const Plane<T>& g, int64_t row, bool backward, bool closed, const In in,
                          const T* keep, T* result, T* grad) {
  constexpr int64_t L = LANES<T>;
  const int64_t step = backward ? L : -L;
  int64_t p = g.at(row, backward ? 0 : g.W - 1);
  Vec<T> s[R] = {};
  for (int64_t j = 1; j < g.W; ++j, p += step)
    for (int k = 0; k < R; ++k) {
      const int64_t q = p + k * g.stride;
      adjoint_at<T>(load_to_register(keep + q), in(q), load(result + q + step), false, grad + q, result + q,
                    s[k]);
    }
  for (int k = 0; k < R; ++k) {
    const int64_t q = p + k * g.stride;
    adjoint_at<T>(load_to_register(keep + q), in(q), Vec<T>{}, closed, grad + q, result + q, s[k]);
  }
}

// Of a sweep through the rows [begin, end).
template <class T, class In>
NOINLINE void adjoint_of_rows(const Plane<T> g, Sweep s, bool closed, int64_t begin, int64_t end, const In in,
                              const T* keep, T* result, T* grad, T* after) {
  each_group(begin, end, !s.backward && !s.along_y, [&](auto R_, int64_t row) FORCE_INLINE {
    constexpr int R = decltype(R_)::value;
    if (s.along_y) return adjoint_along<R>(g, row, s.backward, closed, in, keep, result, grad);
    const bool top = row == 0, bottom = row + R == g.H;
    adjoint_across<R>(g, row, s.backward, s.backward ? top : bottom, s.backward ? bottom : top, closed, in,
                      keep, result, grad, after);
  });
}

// The same for any spacing and boundary. On a ring what comes from downstream is the fixed point of going
// around it once.
template <class T, class In>
NOINLINE void adjoint_of_lines(const Plane<T> g, const Pde& pde, Sweep s, const In in, const T* keep,
                               T* result, T* grad) {
  const Lines<T> lines(g, pde, s);
  const bool closed = pde.boundary == Boundary::neumann;
  for (int64_t line = 0; line < lines.count; ++line)
    for (int64_t chain = 0; chain < lines.chains; ++chain) {
      const int64_t length = lines.length(chain), last = lines.at(line, chain, length - 1);
      Vec<T> from_downstream{}, around{};
      if (lines.ring) {
        for (int64_t k = length - 1; k >= 0; --k) {
          const int64_t p = lines.at(line, chain, k);
          from_downstream += load(grad + p);
          // (1 - keep_0) s_0 is what reaches the last element
          from_downstream -= ring_keep<T>(keep + p) * from_downstream;
        }
        from_downstream = from_downstream / opening_of_ring(lines, line, chain, keep);
        around = load(result + last);
      }
      Vec<T> s_here = from_downstream;
      for (int64_t k = length - 1; k >= 0; --k) {
        const int64_t p = lines.at(line, chain, k);
        const Vec<T> before = k > 0 ? load(result + lines.at(line, chain, k - 1)) : around;
        const Vec<T> own = lines.ring ? ring_keep<T>(keep + p) : load(keep + p);
        adjoint_at<T>(own, in(p), before, k == 0 && closed, grad + p, result + p, s_here);
        if (lines.ring) {  // a gate that counts as less than it is has no gradient
          const Vec<T> given = load(keep + p);
          store(result + p, given < own ? Vec<T>{} : load(result + p));
        }
      }
    }
}

// Of one step. grad: in, the gradient of the result; out, that of what the step starts from, `in`. stage:
// in, the results of the sweeps, in planes of their own; out, the gradients of `keep` in the order of the
// sweeps. take(begin, end): called once for every row, when all that is known there.
template <class T, class In, class Take>
void adjoint_of_sweep_step(const Plane<T>& g, const Pde& pde, const FourPlanes<T>& keep,
                           const FourPlanes<T>& stage, T* grad, T* after, const In& in, const Take& take) {
  const bool closed = pde.boundary == Boundary::neumann;
  if (!between_edges(pde)) {
    for (int i = 3; i >= 0; --i) {
      const Sweep s = sweep_number(pde, i);
      const T* kept = keep.of[s.place()];
      if (i > 0)
        adjoint_of_lines(g, pde, s, FromPlane<T>{stage.of[i - 1]}, kept, stage.of[i], grad);
      else
        adjoint_of_lines(g, pde, s, in, kept, stage.of[0], grad);
    }
    take(0, g.H);
    return;
  }
  auto back = [&](int i, int64_t begin, int64_t end) {
    const Sweep s = sweep_number(pde, i);
    adjoint_of_rows(g, s, closed, begin, end, FromPlane<T>{stage.of[i - 1]}, keep.of[s.place()], stage.of[i],
                    grad, after);
  };
  auto back_first = [&](int64_t begin, int64_t end) {
    const Sweep s = sweep_number(pde, 0);
    adjoint_of_rows(g, s, closed, begin, end, in, keep.of[s.place()], stage.of[0], grad, after);
  };
  each_strip(g, false, [&](int64_t begin, int64_t end) {
    back(3, begin, end);
    if (!pde.y_first) back(2, begin, end), back(1, begin, end);
  });
  each_strip(g, true, [&](int64_t begin, int64_t end) {
    if (pde.y_first) back(2, begin, end), back(1, begin, end);
    back_first(begin, end);
    take(begin, end);
  });
}

// The planes of `stage` in the order of `keep`.
template <class T>
FourPlanes<T> in_order_of_keep(const Pde& pde, const FourPlanes<T>& stage) {
  FourPlanes<T> to;
  for (int i = 0; i < 4; ++i) to.of[sweep_number(pde, i).place()] = stage.of[i];
  return to;
}

}  // namespace
}  // namespace globalcnn
