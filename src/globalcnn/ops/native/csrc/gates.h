// Gates of the sweeps, from the fields of a scheme and back.
//
// A sweep computes d_i = x_i + g_i (d_before - x_i). The kernels hold `keep` = 1 - g, the share of the
// element itself: it is 1 / (1 + a) for a transport number a, and d_i = d_before + keep_i (x_i - d_before).
// The four of an element, always in this order: x forward, x backward, y forward, y backward.
#pragma once
#include "convolution.h"
#include "maths.h"
#include "plane.h"

namespace globalcnn {
namespace {

// Planes of `keep`, of its gradients, or of the fields u, v, Dx, Dy.
template <class T>
struct FourPlanes {
  T* of[4];
};

template <class T>
FourPlanes<T> take_four(Arena<T>& arena) {
  T* const first = arena.take(4);
  return {{first, first + arena.size, first + 2 * arena.size, first + 3 * arena.size}};
}

// Factors from the fields to transport numbers, and these where the diffusion is constant.
template <class T>
struct GateConstants {
  T per_field[4];  // u, v, Dx, Dy
  T Bx, By;
  T Dx0, Dy0;
  Gate gate;
  explicit GateConstants(const Pde& p)
      : per_field{T(p.dt / double(p.dx)), T(p.dt / double(p.dy)), T(p.dt / double(p.dx * p.dx)),
                  T(p.dt / double(p.dy * p.dy))},
        Bx(T(p.dt / double(p.dx * p.dx) * p.Dx0)),
        By(T(p.dt / double(p.dy * p.dy) * p.Dy0)),
        Dx0(T(p.Dx0)),
        Dy0(T(p.Dy0)),
        gate(p.gate) {}
};

template <class T>
inline Vec<T> reciprocal(Vec<T> x) {
  return divide<T>(broadcast<T>(T(1)), x);
}

// From transport numbers, those of u, v, Dx, Dy, all >= 0: with a positive velocity only the forward sweeps
// transport. learned: those of Dx and Dy vary.
template <class T, bool learned>
inline FORCE_INLINE void keep_of_numbers(const GateConstants<T>& s, const Vec<T>* number, Vec<T>* keep) {
  const Vec<T> of_x = learned ? T(1) + number[learned ? 2 : 0] : broadcast<T>(T(1) + s.Bx);
  const Vec<T> of_y = learned ? T(1) + number[learned ? 3 : 1] : broadcast<T>(T(1) + s.By);
  keep[0] = reciprocal<T>(of_x + number[0]), keep[1] = reciprocal<T>(of_x);
  keep[2] = reciprocal<T>(of_y + number[1]), keep[3] = reciprocal<T>(of_y);
}

// 1 - the logistic function of z, by way of e^-|z|, which does not overflow.
template <class T>
inline Vec<T> keep_of_sigmoid(Vec<T> z) {
  const Vec<T> e = exp_of_negative(z < T(0) ? z : -z);
  return (z < T(0) ? broadcast<T>(T(1)) : e) * reciprocal<T>(T(1) + e);
}

// 1 - (1 + z / (1 + |z|)) / 2
template <class T>
inline Vec<T> keep_of_rational(Vec<T> z) {
  return T(0.5) - T(0.5) * divide<T>(z, T(1) + (z < T(0) ? -z : z));
}

// The fields of an element, whatever their signs, to its four `keep`.
template <class T>
inline void keep_of_fields(const GateConstants<T>& s, const Vec<T>* field, Vec<T>* keep) {
  if (s.gate == Gate::transport) {
    const T zero = 0;
    for (int axis = 0; axis < 2; ++axis) {
      const Vec<T> velocity = field[axis] * s.per_field[axis];
      const Vec<T> diffusion = max<T>(field[2 + axis] * s.per_field[2 + axis], zero);
      keep[2 * axis] = reciprocal<T>(T(1) + (max<T>(velocity, zero) + diffusion));
      keep[2 * axis + 1] = reciprocal<T>(T(1) + (max<T>(-velocity, zero) + diffusion));
    }
  } else {
    for (int i = 0; i < 4; ++i) {
      const Vec<T> z = field[i % 2 * 2 + i / 2];
      keep[i] = s.gate == Gate::sigmoid ? keep_of_sigmoid<T>(z) : keep_of_rational<T>(z);
    }
  }
}

// The same for the rows [begin, end) of planes. May work in place.
template <class T>
NOINLINE void keep_in_rows(const Plane<T> g, const GateConstants<T> s, bool learned, int64_t begin,
                           int64_t end, const FourPlanes<T> fields, const FourPlanes<T> keep) {
  const int count = learned ? 4 : 2;
  for (int64_t i = begin; i < end; ++i)
    for (int64_t p = g.at(i, 0); p < g.at(i, g.W); p += LANES<T>) {
      Vec<T> field[4] = {{}, {}, broadcast<T>(s.Dx0), broadcast<T>(s.Dy0)}, to[4];
      for (int k = 0; k < count; ++k) field[k] = load(fields.of[k] + p);
      keep_of_fields<T>(s, field, to);
      for (int k = 0; k < 4; ++k) store(keep.of[k] + p, to[k]);
    }
}

// The gradient of what a gate is made from, a transport number or a logit, given that of `keep`.
template <class T>
inline FORCE_INLINE Vec<T> gate_backward(Gate gate, Vec<T> g_keep, Vec<T> keep) {
  if (gate == Gate::transport) return -g_keep * (keep * keep);
  const Vec<T> g = T(1) - keep;
  if (gate == Gate::sigmoid) return -g_keep * (keep * g);
  const Vec<T> smaller = keep < g ? keep : g;
  return -g_keep * (T(2) * smaller * smaller);
}

// The gradients of the fields of an element from those of its four `keep`. never_negative: u, v, Dx and Dy
// are >= 0.
template <class T, bool never_negative>
inline FORCE_INLINE void fields_backward(const GateConstants<T>& s, bool learned, const Vec<T>* g_keep,
                                         const Vec<T>* keep, const Vec<T>* field, Vec<T>* g_field) {
  Vec<T> of[4];
  for (int i = 0; i < 4; ++i)
    of[i] = gate_backward<T>(never_negative ? Gate::transport : s.gate, g_keep[i], keep[i]);
  if (!never_negative && s.gate != Gate::transport) {
    for (int i = 0; i < 4; ++i) g_field[i % 2 * 2 + i / 2] = of[i];
    return;
  }
  const Vec<T> zero{};
  for (int axis = 0; axis < 2; ++axis) {
    const Vec<T> forward = of[2 * axis], backward = of[2 * axis + 1];
    Vec<T> velocity = forward, diffusion = forward + backward;
    if constexpr (!never_negative) {
      velocity = field[axis] > T(0) ? forward : (field[axis] < T(0) ? -backward : zero);
      if (learned) diffusion = field[2 + axis] < T(0) ? zero : diffusion;
    }
    g_field[axis] = velocity * s.per_field[axis];
    g_field[2 + axis] = diffusion * s.per_field[2 + axis];
  }
}

}  // namespace
}  // namespace globalcnn
