// The scheme of gated sweeps on planes: one-sided sweeps along x and y, forward and backward.
//
// A sweep along x (rows) takes the rows in order, and is a loop over the vectors of each. One along y is a
// chain of dependent operations in every row: several rows are taken side by side. Both go through groups of
// GROUP rows, and a step through strips of rows that stay in the first cache (first axis x):
//
//     strip after strip, downwards           coefficients (convolution, gates); x forward
//     strip after strip, upwards             x backward; y forward; y backward, with what follows the step
//
// With the first axis y: coefficients, y forward, y backward, x forward downwards; x backward upwards. Other
// spacings than 1 and periodic maps are swept line by line (`sweep_lines`).
//
// Planes have whole blocks of channels (or images) for pixels, and their halo is of no use here.
#pragma once
#include "gates.h"

namespace globalcnn {
namespace {

constexpr int GROUP = 4;

template <class T>
Plane<T> sweep_plane(const Shape& shape, int64_t kernel_radius) {
  Pde no_neighbours{};
  return Plane<T>(shape, no_neighbours, kernel_radius, LANES<T>);
}

// Rows and the direction of a sweep; `place`: which of the four `keep` it takes.
struct Sweep {
  bool along_y, backward;
  int place() const { return 2 * along_y + backward; }
};

// The sweep number i of a step.
inline Sweep sweep_number(const Pde& pde, int i) { return {(i >= 2) != pde.y_first, i % 2 == 1}; }

// Whether the sweeps run from neighbour to neighbour between two edges.
inline bool between_edges(const Pde& pde) {
  return pde.dx == 1 && pde.dy == 1 && pde.boundary != Boundary::periodic;
}

// How many rows of a strip.
template <class T>
int64_t strip_rows(const Plane<T>& g) {
  const int64_t rows = 128 / g.W / GROUP * GROUP;
  return rows < GROUP ? GROUP : rows;
}

// Calls `body` with the strips [begin, end) of rows.
template <class T, class Body>
inline void each_strip(const Plane<T>& g, bool upwards, const Body& body) {
  const int64_t rows = strip_rows(g), strips = (g.H + rows - 1) / rows;
  for (int64_t i = 0; i < strips; ++i) {
    const int64_t begin = (upwards ? strips - 1 - i : i) * rows;
    body(begin, begin + rows < g.H ? begin + rows : g.H);
  }
}

// Calls `body(Int<R>, row)` for groups of R rows from `row` on, which make up [begin, end).
template <class Body>
inline void each_group(int64_t begin, int64_t end, bool upwards, const Body& body) {
  while (begin < end) {
    const int64_t left = end - begin, taken = left >= 4 ? 4 : left >= 2 ? 2 : 1;
    const int64_t row = upwards ? end - taken : begin;
    if (taken == 4)
      body(Int<4>{}, row);
    else if (taken == 2)
      body(Int<2>{}, row);
    else
      body(Int<1>{}, row);
    upwards ? end -= taken : begin += taken;
  }
}

// What a sweep reads at offset p: a plane,
template <class T>
struct FromPlane {
  const T* plane;
  Vec<T> operator()(int64_t p) const { return load(plane + p); }
};

// or the state and source at the start of a step: h + dt f; where f is h, h times 1 + dt.
template <class T, bool separate>
struct FromStart {
  const T *h, *f;
  T factor;
  FromStart(const T* state, const T* source, const Pde& pde, bool with_source)
      : h(state), f(source), factor(separate ? T(pde.dt) : T(with_source ? 1 + pde.dt : 1.0)) {}
  Vec<T> operator()(int64_t p) const {
    if constexpr (separate) return load(h + p) + load(f + p) * factor;
    return load(h + p) * factor;
  }
};

// What becomes of the results of a sweep: `put(p, row, column, x)`.
template <class T>
struct ToPlane {
  T* plane;
  void operator()(int64_t p, int64_t, int64_t, Vec<T> x) const { store(plane + p, x); }
};

// A sweep along x through R rows. `before`: a row, the last result; starts: there is none yet.
template <int R, class T, class In, class Put>
inline void sweep_across(const Plane<T>& g, int64_t row, bool backward, bool starts, bool closed, const In in,
                         const T* keep, T* before, const Put put) {
  constexpr int64_t L = LANES<T>;
  const int64_t step = backward ? -g.stride : g.stride, first = backward ? row + R - 1 : row;
  const int64_t down = backward ? -1 : 1;
  for (int64_t j = 0; j < g.W; ++j) {
    int64_t p = g.at(first, j);
    Vec<T> d = starts ? Vec<T>{} : load(before + j * L);
    for (int k = 0; k < R; ++k, p += step) {
      const Vec<T> x = in(p);
      if (k == 0 && starts && closed)
        d = x;
      else
        d += load(keep + p) * (x - d);
      put(p, first + down * k, j, d);
    }
    store(before + j * L, d);
  }
}

// A sweep along y through R rows from `row` on.
template <int R, class T, class In, class Put>
inline void sweep_along(const Plane<T>& g, int64_t row, bool backward, bool closed, const In in,
                        const T* keep, const Put put) {
  constexpr int64_t L = LANES<T>;
  const int64_t step = backward ? -L : L, right = backward ? -1 : 1;
  int64_t column = backward ? g.W - 1 : 0, p = g.at(row, column);
  Vec<T> d[R];
  for (int k = 0; k < R; ++k) {
    const int64_t q = p + k * g.stride;
    d[k] = closed ? in(q) : load(keep + q) * in(q);
    put(q, row + k, column, d[k]);
  }
  for (int64_t j = 1; j < g.W; ++j) {
    p += step, column += right;
    for (int k = 0; k < R; ++k) {
      const int64_t q = p + k * g.stride;
      d[k] += load(keep + q) * (in(q) - d[k]);
      put(q, row + k, column, d[k]);
    }
  }
}

// The two sweeps in the middle of a step at once, x backward and y forward, or, y_first, y backward and x
// forward. `before` and starts: of the sweep along x; between: where results of the first go, unless null.
template <int R, bool y_first, class T>
inline void sweep_twice(const Plane<T>& g, int64_t row, bool starts, bool closed, const T* from,
                        const FourPlanes<T>& keep, T* before, T* between, T* to) {
  constexpr int64_t L = LANES<T>;
  const int64_t down = y_first ? g.stride : -g.stride, first = y_first ? row : row + R - 1;
  const T *const keep_x = keep.of[y_first ? 0 : 1], *const keep_y = keep.of[y_first ? 3 : 2];
  Vec<T> e[R];
  auto column = [&](int64_t j, auto edge) FORCE_INLINE {
    int64_t p = g.at(first, j);
    Vec<T> d = starts ? Vec<T>{} : load(before + j * L);
    for (int k = 0; k < R; ++k, p += down) {
      const Vec<T> x = load(from + p);
      auto along = [&](Vec<T> given) FORCE_INLINE {
        if constexpr (decltype(edge)::value)
          e[k] = closed ? given : load(keep_y + p) * given;
        else
          e[k] += load(keep_y + p) * (given - e[k]);
        return e[k];
      };
      auto across = [&](Vec<T> given) FORCE_INLINE {
        if (k == 0 && starts && closed)
          d = given;
        else
          d += load(keep_x + p) * (given - d);
        return d;
      };
      const Vec<T> middle = y_first ? along(x) : across(x);
      if (between) store(between + p, middle);
      store(to + p, y_first ? across(middle) : along(middle));
    }
    store(before + j * L, d);
  };
  if (y_first) {
    column(g.W - 1, True{});
    for (int64_t j = g.W - 2; j >= 0; --j) column(j, False{});
  } else {
    column(0, True{});
    for (int64_t j = 1; j < g.W; ++j) column(j, False{});
  }
}

template <class T>
NOINLINE void sweep_rows_twice(const Plane<T> g, bool y_first, bool closed, int64_t begin, int64_t end,
                               const FourPlanes<T>& keep, const FourPlanes<T>& stage, T* before) {
  T* const between = stage.of[1] == stage.of[2] ? nullptr : stage.of[1];
  each_group(begin, end, !y_first, [&](auto R_, int64_t row) FORCE_INLINE {
    constexpr int R = decltype(R_)::value;
    if (y_first)
      sweep_twice<R, true>(g, row, row == 0, closed, stage.of[0], keep, before, between, stage.of[2]);
    else
      sweep_twice<R, false>(g, row, row + R == g.H, closed, stage.of[0], keep, before, between, stage.of[2]);
  });
}

// A sweep through the rows [begin, end).
template <class T, class In, class Put>
NOINLINE void sweep_rows(const Plane<T> g, Sweep s, bool closed, int64_t begin, int64_t end, const In in,
                         const T* keep, T* before, const Put put) {
  each_group(begin, end, s.backward && !s.along_y, [&](auto R_, int64_t row) FORCE_INLINE {
    constexpr int R = decltype(R_)::value;
    if (s.along_y)
      sweep_along<R>(g, row, s.backward, closed, in, keep, put);
    else
      sweep_across<R>(g, row, s.backward, s.backward ? row + R == g.H : row == 0, closed, in, keep, before,
                      put);
  });
}

// The elements of a line in the order of a sweep, as chains: each is every `spacing`th element, or, on a
// periodic map, a ring.
template <class T>
struct Lines {
  int64_t count, from_line, from_element, n, spacing, chains;
  bool ring;
  int64_t origin;
  Lines(const Plane<T>& g, const Pde& pde, Sweep s) {
    constexpr int64_t L = LANES<T>;
    count = s.along_y ? g.H : g.W, n = s.along_y ? g.W : g.H;
    from_line = s.along_y ? g.stride : L;
    const int64_t step = s.along_y ? L : g.stride;
    from_element = s.backward ? -step : step;
    origin = g.at(0, 0) + (s.backward ? (n - 1) * step : 0);
    spacing = s.along_y ? pde.dy : pde.dx;
    ring = pde.boundary == Boundary::periodic;
    if (ring) spacing %= n;
    int64_t a = n, b = spacing;  // the greatest common divisor
    while (b) {
      const int64_t rest = a % b;
      a = b, b = rest;
    }
    chains = ring ? a : spacing < n ? spacing : n;
  }
  int64_t length(int64_t chain) const { return ring ? n / chains : (n - chain + spacing - 1) / spacing; }
  // the offset of element k of a chain
  int64_t at(int64_t line, int64_t chain, int64_t k) const {
    const int64_t i = chain + k * spacing;
    return origin + line * from_line + (ring ? i % n : i) * from_element;
  }
};

// Gates of 1 all around a ring would leave its level open: they count as slightly less.
template <class T>
inline Vec<T> ring_keep(const T* keep) {
  return max<T>(load(keep), sizeof(T) == 4 ? T(1.1920929e-07) : T(2.220446049250313e-16));
}

// 1 - the product of all gates of a ring, without cancellation.
template <class T>
inline Vec<T> opening_of_ring(const Lines<T>& lines, int64_t line, int64_t chain, const T* keep) {
  Vec<T> t{};
  for (int64_t k = 0; k < lines.length(chain); ++k)
    t += ring_keep<T>(keep + lines.at(line, chain, k)) * (T(1) - t);
  return t;
}

// A sweep for any spacing and boundary. May work in place.
template <class T>
NOINLINE void sweep_lines(const Plane<T> g, const Pde& pde, Sweep s, const T* x, const T* keep, T* out) {
  const Lines<T> lines(g, pde, s);
  const bool closed = pde.boundary == Boundary::neumann;
  for (int64_t line = 0; line < lines.count; ++line)
    for (int64_t chain = 0; chain < lines.chains; ++chain) {
      const int64_t length = lines.length(chain);
      Vec<T> d{};
      if (lines.ring) {
        for (int64_t k = 0; k < length; ++k) {
          const int64_t p = lines.at(line, chain, k);
          d += ring_keep<T>(keep + p) * (load(x + p) - d);
        }
        d = d / opening_of_ring(lines, line, chain, keep);
      }
      for (int64_t k = 0; k < length; ++k) {
        const int64_t p = lines.at(line, chain, k);
        const Vec<T> here = load(x + p);
        if (k == 0 && closed)
          d = here;
        else
          d += (lines.ring ? ring_keep<T>(keep + p) : load(keep + p)) * (here - d);
        store(out + p, d);
      }
    }
}

// A function of the rows [begin, end), called once a strip: no template needs to know it.
struct RowsFunction {
  void (*call)(const void*, int64_t, int64_t);
  const void* with;
  void operator()(int64_t begin, int64_t end) const { call(with, begin, end); }
};

template <class Body>
RowsFunction rows_function(const Body& body) {
  return {[](const void* with, int64_t begin, int64_t end) { (*static_cast<const Body*>(with))(begin, end); },
          &body};
}

inline RowsFunction no_rows_function() {
  return {[](const void*, int64_t, int64_t) {}, nullptr};
}

// One step. `prepare(begin, end)` computes `keep` in rows, from the top. Results of the four sweeps go to
// `stage`, which may be one plane, those of the last through `put`. before: a row. swept: `prepare` does the
// first sweep too.
template <class T, class In, class Put>
void sweep_step(const Plane<T>& g, const Pde& pde, const FourPlanes<T>& keep, const FourPlanes<T>& stage,
                T* before, const RowsFunction& prepare, bool swept, const In& in, const Put& put) {
  const bool closed = pde.boundary == Boundary::neumann;
  if (!between_edges(pde)) {
    prepare(0, g.H);
    g.each([&](int64_t p) { store(stage.of[0] + p, in(p)); });
    for (int i = 0; i < 4; ++i) {
      const Sweep s = sweep_number(pde, i);
      sweep_lines(g, pde, s, stage.of[i ? i - 1 : 0], keep.of[s.place()], stage.of[i]);
    }
    for (int64_t row = 0; row < g.H; ++row)
      for (int64_t j = 0; j < g.W; ++j) put(g.at(row, j), row, j, load(stage.of[3] + g.at(row, j)));
    return;
  }
  auto first = [&](int64_t begin, int64_t end) {
    const Sweep s = sweep_number(pde, 0);
    sweep_rows(g, s, closed, begin, end, in, keep.of[s.place()], before, ToPlane<T>{stage.of[0]});
  };
  auto middle = [&](int64_t begin, int64_t end) {
    sweep_rows_twice(g, pde.y_first, closed, begin, end, keep, stage, before);
  };
  auto last = [&](int64_t begin, int64_t end) {
    const Sweep s = sweep_number(pde, 3);
    sweep_rows(g, s, closed, begin, end, FromPlane<T>{stage.of[2]}, keep.of[s.place()], before, put);
  };
  if (swept && !pde.y_first)
    prepare(0, g.H);
  else
    each_strip(g, false, [&](int64_t begin, int64_t end) {
      prepare(begin, end);
      if (!swept) first(begin, end);
      if (pde.y_first) middle(begin, end);
    });
  each_strip(g, true, [&](int64_t begin, int64_t end) {
    if (!pde.y_first) middle(begin, end);
    last(begin, end);
  });
}

// The first sweep of a plane as its coefficients are computed, in the order of the pixels: `at(p, keep, x)`
// once for each. Its `keep` is not stored: for a single step. What flows into the first element of a chain is
// that element itself, or zero: it stands in the halo of `level`. As the first gate then counts where it is
// not a number, maps of one row or column, whose coefficients are seen nowhere else, are left out.
template <class T>
struct FirstSweep {
  T* level;
  int64_t distance;
  T factor;
  int place;

  FirstSweep() = default;
  static bool possible(const Plane<T>& g, const Pde& pde, const T* h, const T* f, bool source) {
    return pde.steps == 1 && between_edges(pde) && (!source || f == h) && g.px > 0 && g.H > 1 && g.W > 1;
  }
  FirstSweep(const Plane<T>& g, const Pde& pde, const T* h, bool source, T* to)
      : level(to),
        distance(pde.y_first ? g.block : g.stride),
        factor(FromStart<T, false>(h, nullptr, pde, source).factor),
        place(sweep_number(pde, 0).place()) {
    const int64_t count = pde.y_first ? g.H : g.W, step = pde.y_first ? g.stride : g.block;
    const bool closed = pde.boundary == Boundary::neumann;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t p = g.at(0, 0) + i * step;
      store(level + p - distance, closed ? load(h + p) * factor : Vec<T>{});
    }
  }
  inline FORCE_INLINE void at(int64_t p, Vec<T> keep, Vec<T> h) const {
    const Vec<T> before = load(level + p - distance);
    store(level + p, before + keep * (h * factor - before));
  }
};

// The K steps of a plane, K >= 1, from h; f is h where they are one. `level`: a plane for what lies between.
// swept: `prepare` does the first sweep, of the only step.
template <class T, class Put>
void sweep_steps(const Plane<T>& g, const Pde& pde, const FourPlanes<T>& keep, T* level, T* before,
                 const RowsFunction& prepare, bool swept, const T* h, const T* f, bool source,
                 const Put& put) {
  const FourPlanes<T> stage{{level, level, level, level}};
  const T* state = h;
  auto step = [&](int64_t k, const auto& in) {
    const RowsFunction given = k == 0 ? prepare : no_rows_function();
    if (k + 1 == pde.steps)
      sweep_step(g, pde, keep, stage, before, given, swept && k == 0, in, put);
    else
      sweep_step(g, pde, keep, stage, before, given, swept && k == 0, in, ToPlane<T>{level});
  };
  for (int64_t k = 0; k < pde.steps; ++k, state = level) {
    if (source && f != state)
      step(k, FromStart<T, true>(state, f, pde, true));
    else
      step(k, FromStart<T, false>(state, f, pde, source));
  }
}

}  // namespace
}  // namespace globalcnn
