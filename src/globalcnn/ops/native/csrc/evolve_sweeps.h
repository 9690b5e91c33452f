// The operators `evolve` and `evolve_backward` for the scheme of gated sweeps, in training. The lanes of a
// block are channels of one image, or, where these would leave processors without work, images of one
// channel.
#pragma once
#include "evolve_backward.h"
#include "layer_sweeps.h"
#include "sweeps_adjoint.h"

namespace globalcnn {
namespace {

// block: as the operators count units of work, 1 for a channel.
template <class T>
Plane<T> sweep_training_plane(const EvolveArgs& a, int64_t block) {
  Plane<T> g = sweep_plane<T>(a.shape, a.kernel / 2);
  g.images = block == 1;
  return g;
}

// Calls `body` with the number of fields, and whether all fields are ReLUs in transport gates.
template <class Body>
void dispatch_gates(const EvolveArgs& a, const Body& body) {
  dispatch(a.fields == 4, a.act == Act::relu && !a.shared_product && a.pde.gate == Gate::transport,
           [&](auto four, auto relu) { body(Int<decltype(four)::value ? 4 : 2>{}, relu); });
}

inline Act coefficient_act(const EvolveArgs& a) {
  return a.pde.gate == Gate::transport ? a.act : Act::identity;
}

// From normed convolutions to fields, factors and activation: the affine part of the norms, times the
// factors from fields to transport numbers where these are ReLUs, which let a positive factor through.
template <class T, int G, bool relu>
struct FieldsOfNormed {
  Vec<T> gamma[G], beta[G];
  FieldsOfNormed(const NormedConvolutions<T>& k, const GateConstants<T>& s) {
    for (int i = 0; i < G; ++i) {
      const T factor = relu ? s.per_field[i] : T(1);
      gamma[i] = k.gamma[i] * factor, beta[i] = k.beta[i] * factor;
    }
  }
  inline FORCE_INLINE void operator()(const Vec<T>* normed, Vec<T>* field, Act act, bool product) const {
    for (int i = 0; i < G; ++i) field[i] = normed[i] * gamma[i] + beta[i];
    activate_pair<T, relu>(field[0], field[1], act, product);
    if constexpr (G == 4) activate_pair<T, relu>(field[2], field[3], act, product);
  }
};

template <class T>
struct EvolveSweeps {
  static constexpr int64_t PLANES = 3 + 4 + 1;  // h, f, level; keep; a row
  static constexpr int64_t L = LANES<T>;

  static int64_t scratch(const EvolveArgs& a, int64_t block) {
    return PLANES * sweep_training_plane<T>(a, block).size * int64_t(sizeof(T));
  }

  template <int G, bool relu>
  static void run_block(const BatchChannels<T>& channels, Arena<T> arena) {
    const EvolveArgs& a = channels.a;
    const Plane<T>& g = channels.g;
    const GateConstants<T> s(a.pde);
    T *h = arena.take(), *f = arena.take(), *level = arena.take(), *before = arena.take();
    const FourPlanes<T> keep = take_four(arena);
    channels.template compute_statistics<G>(h, nullptr);
    NormedConvolutions<T> k;
    channels.load_folded(k);
    if constexpr (relu)
      for (int i = 0; i < G; ++i) {
        const Vec<T> factor = broadcast<T>(s.per_field[i]);
        for (int64_t t = 0; t < a.kernel * a.kernel; ++t)
          BatchChannels<T>::scale(k.weight + (i * a.kernel * a.kernel + t) * L, factor);
        BatchChannels<T>::scale(k.bias + i * L, factor);
      }
    for (int64_t n = 0; n < channels.passes(); ++n) {
      channels.read(h, a.h, n);
      if (a.f.data) channels.read(f, a.f, n);
      const Prefetch prefetch = channels.prefetch(channels.address(a.h, n + 1), channels.address(a.out, n));
      const T* const source = a.f.data ? f : h;
      const bool at_once = relu && FirstSweep<T>::possible(g, a.pde, h, source, a.source);
      const FirstSweep<T> first = at_once ? FirstSweep<T>(g, a.pde, h, a.source, level) : FirstSweep<T>{};
      const auto prepare = [&](int64_t begin, int64_t end) {
        gates_by_one_convolution<G, relu>(rows_of(g, begin, end), s, a.kernel, h, k.weight, k.bias,
                                          prefetch_rows(prefetch, g, begin), keep, coefficient_act(a),
                                          a.shared_product, at_once ? &first : nullptr);
        if (!relu) keep_in_rows(g, s, G == 4, begin, end, keep, keep);
      };
      if (a.pde.steps > 0)
        sweep_steps(g, a.pde, keep, level, before, rows_function(prepare), at_once, h, source, a.source,
                    ToPlane<T>{level});
      channels.write(a.out, a.pde.steps > 0 ? level : h, n);
    }
  }

  static void run(const EvolveArgs& a, int64_t block, int64_t begin, int64_t end, T* scratch) {
    const Plane<T> g = sweep_training_plane<T>(a, block);
    std::memset(scratch, 0, PLANES * g.size * sizeof(T));
    each_block(a, g, begin, end, [&](const BatchChannels<T>& channels) {
      dispatch_gates(a, [&](auto G, auto relu) {
        run_block<decltype(G)::value, decltype(relu)::value>(channels, Arena<T>{scratch, g.size});
      });
    });
  }
};

template <class T>
struct EvolveBackwardSweeps {
  using Of = EvolveBackward<T>;
  static constexpr int64_t L = LANES<T>;

  // Of the first pass; the second takes 3 + G of the same memory.
  struct Planes {
    T *h, *f, *grad, *g_f, *row;
    FourPlanes<T> normed, keep, stage, sums;
    T* levels;
    Planes(Arena<T> arena, int64_t steps)
        : h(arena.take()),
          f(arena.take()),
          grad(arena.take()),
          g_f(arena.take()),
          row(arena.take()),
          normed(take_four(arena)),
          keep(take_four(arena)),
          stage(take_four(arena)),
          sums(steps > 1 ? take_four(arena) : stage),
          levels(arena.take(steps > 1 ? steps - 1 : 0)) {}
  };
  static int64_t planes(const EvolveArgs& a) { return 5 + 12 + (a.pde.steps > 1 ? 4 + a.pde.steps - 1 : 0); }

  static int64_t scratch(const EvolveArgs& a, int64_t block) {
    const Plane<T> g = sweep_training_plane<T>(a, block);
    const int64_t passes = block == 1 ? (a.shape.N + L - 1) / L : a.shape.N;
    return (planes(a) * g.size + passes * a.fields * Of::kept(g)) * int64_t(sizeof(T));
  }

  // The normed convolutions and gates of rows.
  template <int G, bool relu>
  static NOINLINE void gates_of_rows(const EvolveArgs& a, const Plane<T>& whole, const GateConstants<T>& s,
                                     const NormedConvolutions<T>& k, const Planes& x,
                                     const Prefetch& prefetch, int64_t begin, int64_t end) {
    const bool product = a.shared_product;
    const Act act = coefficient_act(a);
    const FieldsOfNormed<T, G, relu> fields(k, s);
    const Plane<T> g = rows_of(whole, begin, end);
    convolve<G>(g, a.kernel, x.h, k.weight, k.bias, prefetch_rows(prefetch, whole, begin),
                [=, normed = x.normed, keep = x.keep](int64_t p, const Vec<T>* z) FORCE_INLINE {
                  Vec<T> field[4], to[4];
                  for (int i = 0; i < G; ++i) store(normed.of[i] + p, z[i]);
                  fields(z, field, act, product);
                  if constexpr (relu)
                    keep_of_numbers<T, G == 4>(s, field, to);
                  else
                    for (int i = 0; i < G; ++i) to[i] = field[i];
                  for (int i = 0; i < (relu ? 4 : G); ++i) store(keep.of[i] + p, to[i]);
                });
    if constexpr (!relu) keep_in_rows(whole, s, G == 4, begin, end, x.keep, x.keep);
  }

  // From the gradients of `keep` in rows to those of the norms' results.
  template <int G, bool relu, class Pair>
  static inline void take_rows(const EvolveArgs& a, const Plane<T>& g, const GateConstants<T>& s,
                               const NormedConvolutions<T>& k, const Planes& x, const FourPlanes<T>& g_keep,
                               int64_t begin, int64_t end, Pair& of_v, Pair& of_D) {
    const bool product = a.shared_product;
    const Act act = coefficient_act(a);
    const FieldsOfNormed<T, G, relu> fields(k, s);
    for (int64_t i = begin; i < end; ++i)
      for (int64_t p = g.at(i, 0); p < g.at(i, g.W); p += L) {
        Vec<T> g_of[4], keep[4], field[4], g_field[4];
        for (int j = 0; j < 4; ++j) {
          g_of[j] = load(g_keep.of[j] + p), keep[j] = load(x.keep.of[j] + p);
        }
        if constexpr (!relu) {
          Vec<T> normed[G];
          for (int j = 0; j < G; ++j) normed[j] = load(x.normed.of[j] + p);
          fields(normed, field, act, product);
        }
        fields_backward<T, relu>(s, G == 4, g_of, keep, field, g_field);
        of_v(p, g_field[0], g_field[1]);
        if constexpr (G == 4) of_D(p, g_field[2], g_field[3]);
      }
  }

  // The K steps of one pass over images, from the gradient of H in x.grad to that of the state, but for what
  // comes through the coefficients.
  template <int G, bool relu, class Pair>
  static inline void back_steps(const EvolveArgs& a, const Plane<T>& g, const GateConstants<T>& s,
                                const NormedConvolutions<T>& k, const Planes& x, const RowsFunction& prepare,
                                Pair& of_v, Pair& of_D) {
    const T* const f = a.f.data ? x.f : x.h;
    const int64_t steps = a.pde.steps;
    auto level = [&](int64_t i) { return i == 0 ? x.h : x.levels + (i - 1) * g.size; };
    if (steps > 1) std::memset(x.sums.of[0], 0, 4 * g.size * sizeof(T));
    Pde one = a.pde;
    one.steps = 1;
    for (int64_t i = 1; i < steps; ++i) {
      T* const to = x.levels + (i - 1) * g.size;
      sweep_steps(g, one, x.keep, to, x.row, i == 1 ? prepare : no_rows_function(), false, level(i - 1), f,
                  a.source, ToPlane<T>{to});
    }
    const FourPlanes<T> g_keep = in_order_of_keep(a.pde, x.stage);
    const T dt = T(a.pde.dt);
    auto back = [&](int64_t i, const auto& in) {
      sweep_step(g, a.pde, x.keep, x.stage, x.row, steps == 1 ? prepare : no_rows_function(), false, in,
                 ToPlane<T>{x.stage.of[3]});
      auto take = [&](int64_t begin, int64_t end) {
        if (a.source)
          for (int64_t row = begin; row < end; ++row)
            for (int64_t p = g.at(row, 0); p < g.at(row, g.W); p += L) {
              const Vec<T> more = load(x.grad + p) * dt;
              store(x.g_f + p, i + 1 == steps ? more : load(x.g_f + p) + more);
            }
        for (int64_t row = begin; row < end && steps > 1; ++row)
          for (int64_t p = g.at(row, 0); p < g.at(row, g.W); p += L)
            for (int j = 0; j < 4; ++j)
              store(x.sums.of[j] + p, load(x.sums.of[j] + p) + load(g_keep.of[j] + p));
        if (i == 0) take_rows<G, relu>(a, g, s, k, x, steps > 1 ? x.sums : g_keep, begin, end, of_v, of_D);
      };
      adjoint_of_sweep_step(g, a.pde, x.keep, x.stage, x.grad, x.row, in, take);
    };
    for (int64_t i = steps - 1; i >= 0; --i) {
      if (a.source && f != level(i))
        back(i, FromStart<T, true>(level(i), f, a.pde, true));
      else
        back(i, FromStart<T, false>(level(i), nullptr, a.pde, a.source));
    }
  }

  template <int G, bool relu>
  static NOINLINE void first_pass(const BatchChannels<T>& channels, const NormedConvolutions<T>& k,
                                  const Planes& x, T* gy, PerChannel<T>* sums, PerChannel<T>* dots) {
    const EvolveArgs& a = channels.a;
    const Plane<T> g = channels.g;
    const GateConstants<T> s(a.pde);
    const int64_t image = G * Of::kept(g);
    const bool streaming = channels.passes() * image * int64_t(sizeof(T)) > Of::STREAMING_ABOVE;
    for (int64_t n = 0; n < channels.passes(); ++n) {
      channels.read(x.h, a.h, n);
      channels.read(x.grad, a.grad, n);
      if (a.f.data) channels.read(x.f, a.f, n);
      const Prefetch prefetch =
          channels.prefetch(channels.address(a.h, n + 1), channels.address(a.grad, n + 1));
      auto pair = [&](int i) {
        return PairGradients<T, G, relu>{x.normed.of[i],
                                         x.normed.of[i + 1],
                                         nullptr,
                                         gy + n * image + i * L,
                                         {k.gamma[i], k.gamma[i + 1]},
                                         {k.beta[i], k.beta[i + 1]},
                                         g.first,
                                         coefficient_act(a),
                                         a.shared_product,
                                         false,
                                         streaming};
      };
      PairGradients<T, G, relu> of_v = pair(0), of_D = pair(G - 2);
      const auto prepare = [&](int64_t begin, int64_t end) {
        gates_of_rows<G, relu>(a, g, s, k, x, prefetch, begin, end);
      };
      if (a.pde.steps > 0)
        back_steps<G, relu>(a, g, s, k, x, rows_function(prepare), of_v, of_D);
      else
        std::memset(gy + n * image, 0, image * sizeof(T));
      for (int i = 0; i < 2; ++i) {
        sums[i].add(g, of_v.sum[i]), dots[i].add(g, of_v.dot[i]);
        if constexpr (G == 4) sums[2 + i].add(g, of_D.sum[i]), dots[2 + i].add(g, of_D.dot[i]);
      }
      if (!a.source || a.pde.steps == 0) std::memset(x.g_f, 0, g.size * sizeof(T));
      if (!a.f.data) g.each([&](int64_t p) { store(x.grad + p, load(x.grad + p) + load(x.g_f + p)); });
      channels.write(a.g_h, x.grad, n);
      if (a.f.data) channels.write(a.g_f, x.g_f, n);
    }
  }

  static void run(const EvolveArgs& a, int64_t block, int64_t begin, int64_t end, T* scratch) {
    const Plane<T> g = sweep_training_plane<T>(a, block);
    T* gy = scratch + planes(a) * g.size;
    each_block(a, g, begin, end, [&](const BatchChannels<T>& channels) {
      std::memset(scratch, 0, planes(a) * g.size * sizeof(T));
      const Arena<T> arena{scratch, g.size};
      const Planes x(arena, a.pde.steps);
      NormedConvolutions<T> k;
      channels.load_normalised(k);
      PerChannel<T> sums[4], dots[4];
      dispatch_gates(a, [&](auto G, auto relu) {
        constexpr int fields = decltype(G)::value;
        first_pass<fields, decltype(relu)::value>(channels, k, x, gy, sums, dots);
        Of::template second_pass<fields>(channels, k, arena, gy, sums, dots);
      });
    });
  }
};

}  // namespace
}  // namespace globalcnn
