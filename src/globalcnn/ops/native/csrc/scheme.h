// The Du Fort-Frankel scheme on planes: one step, and K steps.
//
// Letters are those of the glossary in ops/schemes.py: A for Courant numbers, B for diffusion numbers, E for
// the divergence, R = 1 / (1 + 2 Bx + 2 By). A step computes
//
//   H = R ((1 - 2 Bx - 2 By) h_old - 2 E h + (2 Bx - Ax) h[-X] + (2 Bx + Ax) h[+X]
//                                          + (2 By - Ay) h[-Y] + (2 By + Ay) h[+Y] + 2 dt f)
//
// in just these terms: sums are not factored out (2 Bx (h[+X] + h[-X]) + Ax (h[+X] - h[-X]) would give
// infinities for some not-a-numbers, as inf * 1 - inf * 2 does).
//
// Data flow. A thread takes one block of channels of one image after another and reads it into planes
// (layout.h); from there until the result is written nothing leaves its caches:
//
//        tensor (N, C, H, W)                 planes of one block of channels (plane.h)
//    +----------------------+   read      h -----------+----------------------------+
//    | image n              |  --------->               | halo fill                  |
//    |   channels c .. c+15 |           u, v, Dx, Dy ---+--> first step --> level 1 --+--> step --> level 2
//    ...
//    +----------------------+                |                |        halo fill      |
//               ^                            |                +--> coefficients a b c d G (one stream)
//               |  write                     +--> (K = 1: single step, no coefficients are stored)  |
//               +---------------------------- last level, through `finish` (norm, activation) <-----+
#pragma once
#include "halo.h"
#include "maths.h"
#include "plane.h"

namespace globalcnn {
namespace {

// Factors from the fields to the scheme's numbers, and these themselves where the diffusion is constant.
template <class T>
struct SchemeConstants {
  T Ax_per_u, Ay_per_v, two_Bx_per_Dx, two_By_per_Dy, two_dt;
  T two_Bx, two_By, two_B, R, Px, Py, old;  // two_B = 2 Bx + 2 By; P = 2 B R; old = (1 - 2 Bx - 2 By) R
  explicit SchemeConstants(const Pde& p)
      : Ax_per_u(T(p.dt / double(p.dx))),
        Ay_per_v(T(p.dt / double(p.dy))),
        two_Bx_per_Dx(T(2 * p.dt / double(p.dx * p.dx))),
        two_By_per_Dy(T(2 * p.dt / double(p.dy * p.dy))),
        two_dt(T(2 * p.dt)) {
    const double bx = 2 * p.dt / double(p.dx * p.dx) * p.Dx0, by = 2 * p.dt / double(p.dy * p.dy) * p.Dy0;
    two_Bx = T(bx);
    two_By = T(by);
    two_B = T(bx + by);
    R = T(1 / (1 + bx + by));
    Px = T(bx / (1 + bx + by));
    Py = T(by / (1 + bx + by));
    old = T((1 - bx - by) / (1 + bx + by));
  }
};

// The planes that drive a block's evolution; u with halo rows, v with halo columns. f null: no source.
template <class T>
struct Fields {
  const T *u, *v, *Dx, *Dy, *f;
};

// How a loop gets the neighbours along y: it loads them; or, at distance 1, it keeps them in registers, since
// each vector is the neighbour of the next: whole vectors with a block of channels, shuffled out of two
// vectors with a single channel. Shuffles pay where vectors are as long as a cache line: there an unaligned
// load always takes two lines.
enum class YNeighbours : int { loaded, in_registers, shuffled };

#if defined(__AVX512F__) && !defined(__clang__)
constexpr bool SHUFFLES_PAY = true;
#else
constexpr bool SHUFFLES_PAY = false;
#endif

// Reads a plane vector by vector, with the neighbours along y: `begin_run` at the first offset of every run,
// `advance` at every offset in order.
template <class T, YNeighbours way>
struct RowReader {
  const T* plane;
  int64_t Y;
  Vec<T> here, before, after;
  RowReader(const T* plane_, const Plane<T>& g) : plane(plane_), Y(g.Y) {}
  void begin_run(int64_t p) {
    if constexpr (way != YNeighbours::loaded) {
      here = load(plane + p - LANES<T>);
      after = load(plane + p);
    }
  }
  void advance(int64_t p) {
    if constexpr (way != YNeighbours::loaded) {
      before = here;
      here = after;
      after = load(plane + p + LANES<T>);
    } else {
      here = load_to_register(plane + p);
    }
  }
  Vec<T> minus(int64_t p) const {
    if constexpr (way == YNeighbours::in_registers) return before;
    if constexpr (way == YNeighbours::shuffled) return shifted<-1>(before, here);
    return load_to_register(plane + p - Y);
  }
  Vec<T> plus(int64_t p) const {
    if constexpr (way == YNeighbours::in_registers) return after;
    if constexpr (way == YNeighbours::shuffled) return shifted<1>(here, after);
    return load_to_register(plane + p + Y);
  }
  template <int by>
  static Vec<T> shifted(Vec<T> x, Vec<T> y) {
#if !defined(__clang__)
    constexpr int L = LANES<T>;
    IntVec<T> from;
    for (int i = 0; i < L; ++i) from[i] = (by < 0 ? L : 0) + by + i;
    return __builtin_shuffle(x, y, from);
#else
    return x;
#endif
  }
};

// Calls `body` with the way in which this plane's neighbours along y are read.
template <class T, class Body>
inline void choose_y_neighbours(const Plane<T>& g, const Body& body) {
  if (g.block > 1 && g.Y == g.block) return body(Constant<YNeighbours, YNeighbours::in_registers>{});
  if constexpr (SHUFFLES_PAY)
    if (g.Y == 1) return body(Constant<YNeighbours, YNeighbours::shuffled>{});
  body(Constant<YNeighbours, YNeighbours::loaded>{});
}

// `finish(to, x, p)` gets the vector x at offset p of a level, which belongs at `to`: the usual one stores
// it.
template <class T>
struct StoreLevel {
  void operator()(T* to, Vec<T> x, int64_t) const { store(to, x); }
};

// The four neighbours of a vector.
template <class T>
struct Neighbours {
  Vec<T> xm, xp, ym, yp;
};

template <class T, YNeighbours way>
inline FORCE_INLINE Neighbours<T> neighbours(const RowReader<T, way>& row, int64_t p, int64_t X) {
  return {load_to_register(row.plane + p - X), load_to_register(row.plane + p + X), row.minus(p),
          row.plus(p)};
}

// 2 E, times 1 / (dt/dx): `prescaled` fields come multiplied by `Ax_per_u` and the like.
template <class T, bool prescaled, YNeighbours way>
inline FORCE_INLINE Vec<T> two_E_at(const T* u, const RowReader<T, way>& v_row, int64_t p, int64_t X,
                                    const SchemeConstants<T>& s) {
  const Vec<T> x = load(u + p - X) - load(u + p + X), y = v_row.minus(p) - v_row.plus(p);
  if constexpr (prescaled) return x + y;
  Vec<T> two_E = x * s.Ax_per_u;
  two_E += y * s.Ay_per_v;
  return two_E;
}

// In the loops below whatever they need comes by value: as far as the compiler knows, a store could change
// what a reference leads to, and it would be read again for every vector.

// The only step of K = 1, from the fields at once: no coefficients are stored. single_state: h, h_old and f
// are one plane. prescaled: the fields come multiplied by dt/dx, dt/dy (u, v) and 2 dt/dx^2, 2 dt/dy^2 (Dx,
// Dy).
template <class T, bool learned, bool source, YNeighbours way, bool single_state, bool prescaled,
          class Finish>
NOINLINE void single_step(const Plane<T> g, const SchemeConstants<T> s, const Fields<T> d, const T* h,
                          const T* h_old, T* out, Finish finish) {
  RowReader<T, way> row(h, g), v_row(d.v, g);
  const T constant_old = T(1) - s.two_B;
  auto scaled = [](Vec<T> x, T number) { return prescaled ? x : x * number; };
  g.each(
      [&](int64_t p) FORCE_INLINE {
        row.advance(p);
        v_row.advance(p);
        const Vec<T> two_E = two_E_at<T, prescaled>(d.u, v_row, p, g.X, s);
        const Neighbours<T> at = neighbours(row, p, g.X);
        const Vec<T> h_here = row.here, old = single_state ? h_here : load(h_old + p);
        const Vec<T> Ax = scaled(load(d.u + p), s.Ax_per_u), Ay = scaled(v_row.here, s.Ay_per_v);
        Vec<T> two_Bx, two_By, of_old, whole;
        if constexpr (learned) {
          two_Bx = scaled(load_to_register(d.Dx + p), s.two_Bx_per_Dx);
          two_By = scaled(load_to_register(d.Dy + p), s.two_By_per_Dy);
          const Vec<T> two_B = two_Bx + two_By;
          of_old = T(1) - two_B, whole = T(1) + two_B;
        } else {
          two_Bx = broadcast<T>(s.two_Bx), two_By = broadcast<T>(s.two_By),
          of_old = broadcast<T>(constant_old);
        }
        Vec<T> H = of_old * old - two_E * h_here;
        H += (two_Bx - Ax) * at.xm + (two_Bx + Ax) * at.xp;
        H += (two_By - Ay) * at.ym + (two_By + Ay) * at.yp;
        if constexpr (source) H += (single_state ? h_here : load(d.f + p)) * s.two_dt;
        if constexpr (learned)
          H = divide<T>(H, whole);
        else
          H *= s.R;
        finish(out + p, H, p);
      },
      [&](int64_t p) FORCE_INLINE { row.begin_run(p), v_row.begin_run(p); });
}

// The coefficients of a step, stored side by side for every vector of a plane so that a step reads them as
// one stream:
//   H = (1 - (a + b + c + e)) h_old + G h + a h[-X] + b h[+X] + c h[-Y] + e h[+Y] + 2 dt R f,
// a, b = (2 Bx -+ Ax) R, c, e = (2 By -+ Ay) R, G = -2 E R. Since a + b + c + e = 1 - c_old and 2 R = 1 +
// c_old, neither R nor what multiplies f is stored. With constant diffusion: Qx = Ax R, Qy = Ay R and G.
template <bool learned>
constexpr int64_t COEFFICIENTS = learned ? 5 : 3;

template <class T>
struct LearnedCoefficients {
  Vec<T> a, b, c, e, G, old;
  static constexpr int64_t L = LANES<T>;
  static inline FORCE_INLINE LearnedCoefficients load_from(const T* stream) {
    LearnedCoefficients k;
    k.a = load_to_register(stream), k.b = load_to_register(stream + L);
    k.c = load_to_register(stream + 2 * L), k.e = load_to_register(stream + 3 * L);
    k.G = load(stream + 4 * L);
    k.old = T(1) - ((k.a + k.b) + (k.c + k.e));
    return k;
  }
  static inline FORCE_INLINE LearnedCoefficients of(Vec<T> Ax, Vec<T> Ay, Vec<T> two_Bx, Vec<T> two_By,
                                                    Vec<T> two_E) {
    LearnedCoefficients k;
    const Vec<T> R = divide<T>(broadcast<T>(T(1)), T(1) + two_Bx + two_By);
    k.a = (two_Bx - Ax) * R, k.b = (two_Bx + Ax) * R, k.c = (two_By - Ay) * R, k.e = (two_By + Ay) * R;
    k.G = -two_E * R;
    k.old = T(2) * R - T(1);
    return k;
  }
  inline FORCE_INLINE void store_to(T* stream) const {
    store(stream, a), store(stream + L, b), store(stream + 2 * L, c), store(stream + 3 * L, e);
    store(stream + 4 * L, G);
  }
};

// One of several steps. The first computes the coefficients from the fields and leaves them in `stream`, the
// others read them there.
template <class T, bool learned, bool source, YNeighbours way, bool first, bool prescaled, class Finish>
NOINLINE void one_of_several_steps(const Plane<T> g, const SchemeConstants<T> s, const Fields<T> d, T* stream,
                                   const T* h, const T* h_old, T* out, Finish finish) {
  constexpr int64_t L = LANES<T>;
  RowReader<T, way> row(h, g), v_row(d.v, g);
  const T dt = s.two_dt * T(0.5);
  auto scaled = [](Vec<T> x, T number) { return prescaled ? x : x * number; };
  g.each(
      [&](int64_t p) FORCE_INLINE {
        row.advance(p);
        T* const stored = stream + p * COEFFICIENTS<learned>;
        const Neighbours<T> at = neighbours(row, p, g.X);
        Vec<T> two_E, Ax, Ay;
        if constexpr (first) {
          v_row.advance(p);
          two_E = two_E_at<T, prescaled>(d.u, v_row, p, g.X, s);
          Ax = scaled(load_to_register(d.u + p), s.Ax_per_u), Ay = scaled(v_row.here, s.Ay_per_v);
        }
        Vec<T> H, f_here;
        if constexpr (source) f_here = load_to_register(d.f + p);
        if constexpr (learned) {
          LearnedCoefficients<T> k;
          if constexpr (first) {
            const Vec<T> two_Bx = scaled(load_to_register(d.Dx + p), s.two_Bx_per_Dx);
            const Vec<T> two_By = scaled(load_to_register(d.Dy + p), s.two_By_per_Dy);
            k = LearnedCoefficients<T>::of(Ax, Ay, two_Bx, two_By, two_E);
            k.store_to(stored);
          } else {
            k = LearnedCoefficients<T>::load_from(stored);
          }
          Vec<T> old = load(h_old + p);
          if constexpr (source) old += f_here * dt;  // 2 dt R f = c_old dt f + dt f
          H = k.old * old + k.a * at.xm + k.c * at.ym;
          Vec<T> rest = k.G * row.here + k.b * at.xp + k.e * at.yp;
          if constexpr (source) rest += f_here * dt;
          H += rest;
        } else {
          Vec<T> Qx, Qy, G;
          if constexpr (first) {
            Qx = Ax * s.R, Qy = Ay * s.R, G = -two_E * s.R;
            store(stored, Qx), store(stored + L, Qy), store(stored + 2 * L, G);
          } else {
            Qx = load_to_register(stored), Qy = load_to_register(stored + L), G = load(stored + 2 * L);
          }
          H = load(h_old + p) * s.old + G * row.here;
          H += (s.Px - Qx) * at.xm + (s.Px + Qx) * at.xp;
          H += (s.Py - Qy) * at.ym + (s.Py + Qy) * at.yp;
          if constexpr (source) H += f_here * (s.two_dt * s.R);
        }
        finish(out + p, H, p);
      },
      [&](int64_t p) FORCE_INLINE {
        row.begin_run(p);
        if constexpr (first) v_row.begin_run(p);
      });
}

// The K steps of one plane. h comes with its halo filled; `levels` are two planes for the levels in between,
// `stream` as many as there are coefficients. The last level goes to `out`, through `finish`. prescaled: h,
// h_old and f are one plane, and the fields come multiplied, as `single_step` says.
template <class T, bool learned, bool source, bool prescaled, class Finish>
void run_steps(const Plane<T>& g, const Pde& pde, const SchemeConstants<T>& s, const Fields<T>& d, T* stream,
               const T* h, const T* h_old, T* levels, T* out, Finish finish) {
  if (pde.steps == 0) {
    g.each([&](int64_t p) { finish(out + p, load(h + p), p); });
    return;
  }
  choose_y_neighbours(g, [&](auto way_) {
    constexpr YNeighbours way = decltype(way_)::value;
    if (pde.steps == 1) {
      single_step<T, learned, source, way, prescaled, prescaled>(g, s, d, h, h_old, out, finish);
      return;
    }
    const T *now = h, *old = h_old;
    for (int64_t k = 1; k < pde.steps; ++k) {
      // there are two planes of levels: the one written holds h_old, whose vectors have been read just before
      T* next = levels + (k - 1) % 2 * g.size;
      const StoreLevel<T> keep;
      if (k == 1)
        one_of_several_steps<T, learned, source, way, true, prescaled>(g, s, d, stream, now, old, next, keep);
      else
        one_of_several_steps<T, learned, source, way, false, false>(g, s, d, stream, now, old, next, keep);
      fill_halo(next, g, pde.boundary);
      old = now, now = next;
    }
    one_of_several_steps<T, learned, source, way, false, false>(g, s, d, stream, now, old, out, finish);
  });
}

}  // namespace
}  // namespace globalcnn
