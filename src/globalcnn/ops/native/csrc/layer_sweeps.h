// The operator `layer` for the scheme of gated sweeps: coefficients, gates, sweeps, and the output's norm,
// activation and residual in the last sweep.
#pragma once
#include "layer.h"
#include "sweeps.h"

namespace globalcnn {
namespace {

// `put` of the last sweep: norm, activation, residual; into a plane, or straight into a channels-last tensor
// of type T.
template <class T, bool relu>
struct PutNormActivation {
  Vec<T> scale, shift;
  const T* residual;
  Act act;
  T* to;
  int64_t row_stride, column_stride;
  void operator()(int64_t p, int64_t row, int64_t column, Vec<T> x) const {
    Vec<T> y = activate<T, relu>(x * scale + shift, act);
    if (residual) y += load(residual + p);
    store(to + row * row_stride + column * column_stride, y);
  }
};

// The rows [begin, end) of a plane, for loops that run over all rows.
template <class T>
Plane<T> rows_of(Plane<T> g, int64_t begin, int64_t end) {
  g.begin += begin * g.stride, g.runs = end - begin;
  return g;
}

// Prefetch for these rows of a plane.
template <class T>
Prefetch prefetch_rows(const Prefetch& whole, const Plane<T>& g, int64_t begin) {
  auto at = [&](const void* p) -> const void* {
    return p ? static_cast<const char*>(p) + begin * g.W * whole.bytes : nullptr;
  };
  return {at(whole.a), at(whole.b), whole.bytes};
}

// The gates, `keep`, of the rows of g by G convolutions of one plane. relu: transport gates of ReLUs, and
// the weights hold the factors that make transport numbers of fields. first: the first sweep as well, or
// null; its own `keep` is not stored then. Otherwise what is stored are the fields, which keep_in_rows goes
// on from.
template <int G, bool relu, class T>
NOINLINE void gates_by_one_convolution(const Plane<T> g, const GateConstants<T>& s, int64_t kernel,
                                       const T* from, const T* weight, const T* bias,
                                       const Prefetch& prefetch, const FourPlanes<T> keep, Act act,
                                       bool product, const FirstSweep<T>* first) {
  auto fields_of = [=](const Vec<T>* x, Vec<T>* field) FORCE_INLINE {
    for (int i = 0; i < G; ++i) field[i] = x[i];
    activate_pair<T, relu>(field[0], field[1], act, product);
    if constexpr (G == 4) activate_pair<T, relu>(field[2], field[3], act, product);
  };
  if constexpr (!relu) {
    convolve<G>(g, kernel, from, weight, bias, prefetch, [=](int64_t p, const Vec<T>* x) FORCE_INLINE {
      Vec<T> field[4];
      fields_of(x, field);
      for (int i = 0; i < G; ++i) store(keep.of[i] + p, field[i]);
    });
  } else {
    auto with = [&](auto place_) FORCE_INLINE {
      constexpr int place = decltype(place_)::value;  // of the first sweep, -1 without
      const FirstSweep<T> sweep = place < 0 ? FirstSweep<T>{} : *first;
      convolve<G>(g, kernel, from, weight, bias, prefetch, [=](int64_t p, const Vec<T>* x) FORCE_INLINE {
        Vec<T> field[4], to[4];
        fields_of(x, field);
        keep_of_numbers<T, G == 4>(s, field, to);
        for (int i = 0; i < 4; ++i)
          if (i != place) store(keep.of[i] + p, to[i]);
        if constexpr (place >= 0) sweep.at(p, to[place], load(from + p));
      });
    };
    if (!first)
      with(Int<-1>{});
    else if (first->place == 0)
      with(Int<0>{});
    else
      with(Int<2>{});
  }
}

template <class T, class Stored>
struct LayerSweeps {
  using Of = Layer<T, Stored>;
  static constexpr int64_t PLANES = 3 + 4 + 1;  // h, f, level; keep; a row
  static constexpr int64_t L = LANES<T>;

  static Plane<T> plane_of(const LayerArgs& a) { return sweep_plane<T>(a.shape, a.kernel / 2); }

  static int64_t scratch(const LayerArgs& a, int64_t block) {
    const int64_t weights = Of::weight_sets(a, block) * Of::weight_vectors(a) * L;
    return (PLANES * plane_of(a).size + weights) * int64_t(sizeof(T));
  }

  struct Planes {
    T *h, *f, *level;
    FourPlanes<T> keep;
    T* before;
    explicit Planes(Arena<T>& arena)
        : h(arena.take()),
          f(arena.take()),
          level(arena.take()),
          keep(take_four(arena)),
          before(arena.take()) {}
  };

  template <bool relu>
  static void gates_of_rows(const LayerArgs& a, const Plane<T>& whole, const GateConstants<T>& s,
                            const Planes& to, const T* velocity_from, const T* weight,
                            const Prefetch& prefetch, const FirstSweep<T>* first, int64_t begin,
                            int64_t end) {
    const Plane<T> g = rows_of(whole, begin, end);
    const Prefetch next = prefetch_rows(prefetch, whole, begin);
    const bool one = to.h == velocity_from || a.fields == 2, learned = a.fields == 4;
    const Act act = s.gate == Gate::transport ? a.act : Act::identity;
    const int64_t kk = a.kernel * a.kernel;
    const T* const bias = weight + 4 * kk * L;
    const bool product = a.shared_product;
    auto convolve_once = [&](auto G) {
      gates_by_one_convolution<decltype(G)::value, relu>(g, s, a.kernel, velocity_from, weight, bias, next,
                                                         to.keep, act, product, first);
    };
    if constexpr (relu) {
      learned ? convolve_once(Int<4>{}) : convolve_once(Int<2>{});
    } else {
      if (one && learned) {
        convolve_once(Int<4>{});
      } else {
        convolve_once(Int<2>{});
        T *const Dx = to.keep.of[2], *const Dy = to.keep.of[3];
        if (learned)
          convolve<2>(g, a.kernel, to.h, weight + 2 * kk * L, bias + 2 * L, Prefetch{nullptr, nullptr, 0},
                      [=](int64_t p, const Vec<T>* x) {
                        store_pair<T, false>(x[0], x[1], Dx + p, Dy + p, act, product);
                      });
      }
      keep_in_rows(whole, s, learned, begin, end, to.keep, to.keep);
    }
  }

  template <bool relu>
  static void run_block(const LayerArgs& a, const Plane<T>& g, const GateConstants<T>& s, const Planes& x,
                        const ChannelBlock& b, const T* weight, bool f_is_h) {
    read_planes<T, Stored>(x.h, g, a.h, b.n, b.c, b.count);
    if (!f_is_h) read_planes<T, Stored>(x.f, g, a.f, b.n, b.c, b.count);
    const T *f = f_is_h ? x.h : x.f, *velocity_from = a.velocity_from_f ? f : x.h;
    const Prefetch prefetch = Of::prefetch_of(a, g.block, b);
    // where the convolutions read h
    const bool at_once = relu && velocity_from == x.h && FirstSweep<T>::possible(g, a.pde, x.h, f, a.source);
    const FirstSweep<T> first = at_once ? FirstSweep<T>(g, a.pde, x.h, a.source, x.level) : FirstSweep<T>{};
    const auto prepare = [&](int64_t begin, int64_t end) {
      gates_of_rows<relu>(a, g, s, x, velocity_from, weight, prefetch, at_once ? &first : nullptr, begin,
                          end);
    };
    const T* norm = weight + 4 * (a.kernel * a.kernel + 1) * L;
    const bool to_tensor = sizeof(Stored) == sizeof(T) && a.out.c == 1 && b.count == L;
    T* const to = to_tensor ? static_cast<T*>(a.out.data) + b.n * a.out.n + b.c : x.level + g.at(0, 0);
    const PutNormActivation<T, relu> put{load(norm),
                                         load(norm + L),
                                         a.residual ? f : nullptr,
                                         a.act,
                                         to,
                                         to_tensor ? a.out.h : g.stride,
                                         to_tensor ? a.out.w : L};
    if (a.pde.steps > 0)
      sweep_steps(g, a.pde, x.keep, x.level, x.before, rows_function(prepare), at_once, x.h, f, a.source,
                  put);
    else
      for (int64_t i = 0; i < g.H; ++i)
        for (int64_t j = 0; j < g.W; ++j) put(g.at(i, j), i, j, load(x.h + g.at(i, j)));
    if (!to_tensor) write_planes<T, Stored>(a.out, g, x.level, b.n, b.c, b.count);
  }

  template <bool relu>
  static void run_with(const LayerArgs& a, int64_t block, int64_t begin, int64_t end, T* scratch) {
    const Plane<T> g = plane_of(a);
    const GateConstants<T> s(a.pde);
    // h and f are read where nothing was written: zeros around h, and lanes without a channel
    std::memset(scratch, 0, 2 * g.size * sizeof(T));
    Arena<T> arena{scratch, g.size};
    const Planes x(arena);
    T* const weights = arena.next;
    std::memset(weights, 0, Of::weight_sets(a, block) * Of::weight_vectors(a) * L * sizeof(T));
    const T ones[4] = {T(1), T(1), T(1), T(1)};
    int64_t loaded = 0;
    for (const ChannelBlock b : ChannelBlocks{a.shape, block, begin, end}) {
      T* weight = weights + b.c / block * Of::weight_vectors(a) * L;
      // ReLU lets a positive factor through
      if (loaded++ < Of::weight_sets(a, block)) Of::load_weights(a, b, relu ? s.per_field : ones, weight);
      run_block<relu>(a, g, s, x, b, weight, same(a.f, a.h));
    }
  }

  static void run(const LayerArgs& a, int64_t block, int64_t begin, int64_t end, T* scratch) {
    const bool one_input = !a.velocity_from_f || same(a.f, a.h) || a.fields == 2;
    if (a.act == Act::relu && !a.shared_product && a.pde.gate == Gate::transport && one_input)
      run_with<true>(a, block, begin, end, scratch);
    else
      run_with<false>(a, block, begin, end, scratch);
  }
};

}  // namespace
}  // namespace globalcnn
