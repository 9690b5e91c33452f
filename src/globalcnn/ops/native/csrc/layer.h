// The operator `layer`: a whole Global layer in eval mode, block by block of channels. Coefficients by
// convolutions with the norms folded in, the scheme's steps, and the output's norm, activation and residual
// in the last step.
#pragma once
#include "convolution.h"
#include "layout.h"
#include "scheme.h"

namespace globalcnn {
namespace {

// `finish` of the last level: norm, activation, residual. Into the plane, or, with `to_tensor`, straight into
// a channels-last tensor of type T, pixel after pixel.
template <class T, bool relu, bool to_tensor>
struct NormActivation {
  Vec<T> scale, shift;
  const T* residual;
  Act act;
  T* next;
  int64_t pixel_stride;
  void operator()(T* to, Vec<T> x, int64_t p) {
    Vec<T> y = activate<T, relu>(x * scale + shift, act);
    if (residual) y += load(residual + p);
    if constexpr (to_tensor) {
      store(next, y);
      next += pixel_stride;
    } else {
      store(to, y);
    }
  }
};

template <class T, class Stored>
struct Layer {
  static constexpr int64_t PLANES = 3 + 4 + 5 + 2;  // h, f, out; fields; coefficients; levels
  static constexpr int64_t L = LANES<T>;

  // Vectors of a block's weights: of each field's convolution, and its bias; scale and shift.
  static int64_t weight_vectors(const LayerArgs& a) { return 4 * (a.kernel * a.kernel + 1) + 2; }

  // The blocks whose weights are kept: all of them; single channels one at a time.
  static int64_t weight_sets(const LayerArgs& a, int64_t block) {
    return block == 1 ? 1 : (a.shape.C + block - 1) / block;
  }

  static Plane<T> plane_of(const LayerArgs& a, int64_t block) {
    return Plane<T>(a.shape, a.pde, a.kernel / 2, block);
  }

  static int64_t scratch(const LayerArgs& a, int64_t block) {
    const int64_t weights = weight_sets(a, block) * weight_vectors(a) * L;
    return (PLANES * plane_of(a, block).size + weights) * int64_t(sizeof(T));
  }

  // The weights, biases, scale and shift of a block of channels, one vector each; those of field i times
  // factors[i].
  static NOINLINE void load_weights(const LayerArgs& a, const ChannelBlock& b, const T* factors, T* to) {
    const int64_t kk = a.kernel * a.kernel, C = a.shape.C;
    auto spread = [&](T* at, const void* from, int64_t first, int64_t stride, T factor) {
      const T* values = static_cast<const T*>(from) + first;
      if (b.count == 1)
        store(at, broadcast<T>(values[0] * factor));
      else
        for (int64_t e = 0; e < b.count; ++e) at[e] = values[e * stride] * factor;
    };
    T *bias = to + 4 * kk * L, *norm = bias + 4 * L;
    for (int64_t i = 0; i < a.fields; ++i) {
      for (int64_t t = 0; t < kk; ++t)
        spread(to + (i * kk + t) * L, a.weight, (i * C + b.c) * kk + t, kk, factors[i]);
      spread(bias + i * L, a.bias, i * C + b.c, 1, factors[i]);
    }
    spread(norm, a.scale, b.c, 1, T(1));
    spread(norm + L, a.shift, b.c, 1, T(1));
  }

  // The coefficient fields, by convolutions of h and of what the velocities come from (h or f).
  template <bool relu>
  static void compute_fields(const Plane<T>& g, const LayerArgs& a, const T* h, const T* velocity_from,
                             const T* weight, const Prefetch& prefetch, T* const* to) {
    const int64_t k = a.kernel, kk = k * k;
    const T* bias = weight + 4 * kk * L;
    const Act act = a.act;
    const bool product = a.shared_product;
    T *u = to[0], *v = to[1], *Dx = to[2], *Dy = to[3];
    auto velocity = [=](int64_t p, const Vec<T>* x) {
      store_pair<T, relu>(x[0], x[1], u + p, v + p, act, product);
    };
    if (a.fields == 4 && h == velocity_from) {
      convolve<4>(g, k, h, weight, bias, prefetch, [=](int64_t p, const Vec<T>* x) {
        store_pair<T, relu>(x[0], x[1], u + p, v + p, act, product);
        store_pair<T, relu>(x[2], x[3], Dx + p, Dy + p, act, product);
      });
      return;
    }
    convolve<2>(g, k, velocity_from, weight, bias, prefetch, velocity);
    if (a.fields == 4)
      convolve<2>(
          g, k, h, weight + 2 * kk * L, bias + 2 * L, Prefetch{nullptr, nullptr, 0},
          [=](int64_t p, const Vec<T>* x) { store_pair<T, relu>(x[0], x[1], Dx + p, Dy + p, act, product); });
  }

  // The block that is read next, and where this one will be written.
  static Prefetch prefetch_of(const LayerArgs& a, int64_t block, const ChannelBlock& b) {
    const Shape& s = a.shape;
    const int64_t size = int64_t(sizeof(Stored)), pixel = a.h.c == 1 && block > 1 ? a.h.w : L;
    const bool in_order = (a.h.w == 1 && a.h.h == s.W) || (a.h.c == 1 && block > 1);
    if (!in_order || a.out.w != a.h.w) return {nullptr, nullptr, 0};
    const bool last = b.c + block >= s.C;
    const int64_t n = last ? b.n + 1 : b.n, c = last ? 0 : b.c + block;
    const char* in = static_cast<const char*>(a.h.data) + (n * a.h.n + c * a.h.c) * size;
    const char* out = static_cast<const char*>(a.out.data) + (b.n * a.out.n + b.c * a.out.c) * size;
    return {n < s.N ? in : nullptr, out, pixel * size};
  }

  struct Planes {
    T *h, *f, *out, *fields[4], *stream, *levels;
  };

  // The steps, and what follows them. prescaled: the weights hold the scheme's factors.
  template <bool relu, class Finish>
  static void run_scheme(const LayerArgs& a, const Plane<T>& g, const SchemeConstants<T>& s, const Planes& to,
                         const T* f, bool prescaled, Finish finish) {
    const Fields<T> d{to.fields[0], to.fields[1], to.fields[2], to.fields[3], f};
    const T* h_old = a.start_from_h ? to.h : f;
    dispatch(a.fields == 4, a.source, [&](auto with_D, auto with_f) {
      constexpr bool learned = decltype(with_D)::value, source = decltype(with_f)::value;
      if constexpr (relu)
        if (prescaled)
          return run_steps<T, learned, source, true>(g, a.pde, s, d, to.stream, to.h, h_old, to.levels,
                                                     to.out, finish);
      run_steps<T, learned, source, false>(g, a.pde, s, d, to.stream, to.h, h_old, to.levels, to.out, finish);
    });
  }

  // One block of channels, from tensor to tensor.
  template <bool relu>
  static void run_block(const LayerArgs& a, const Plane<T>& g, const SchemeConstants<T>& s, const Planes& to,
                        const ChannelBlock& b, const T* weight, bool f_is_h) {
    read_planes<T, Stored>(to.h, g, a.h, b.n, b.c, b.count);
    if (!f_is_h) read_planes<T, Stored>(to.f, g, a.f, b.n, b.c, b.count);
    const T *f = f_is_h ? to.h : to.f, *velocity_from = a.velocity_from_f ? f : to.h;
    compute_fields<relu>(g, a, to.h, velocity_from, weight, prefetch_of(a, g.block, b), to.fields);
    fill_halo_rows(to.fields[0], g, a.pde.boundary, true);
    fill_halo_columns(to.fields[1], g, a.pde.boundary, true);
    // the convolutions needed zeros around h, the scheme needs the boundary's halo
    fill_halo(to.h, g, a.pde.boundary);
    const T* norm = weight + 4 * (a.kernel * a.kernel + 1) * L;
    const Vec<T> scale = load(norm), shift = load(norm + L);
    const T* residual = a.residual ? f : nullptr;
    const bool to_tensor = sizeof(Stored) == sizeof(T) && a.out.c == 1 && a.out.h == a.out.w * g.W &&
                           b.count == L && g.block > 1;
    if (to_tensor) {
      T* first = static_cast<T*>(a.out.data) + b.n * a.out.n + b.c;
      const NormActivation<T, relu, true> finish{scale, shift, residual, a.act, first, a.out.w};
      run_scheme<relu>(a, g, s, to, f, f_is_h, finish);
    } else {
      const NormActivation<T, relu, false> finish{scale, shift, residual, a.act, nullptr, 0};
      run_scheme<relu>(a, g, s, to, f, f_is_h, finish);
    }
    clear_halo(to.h, g, a.pde.boundary);
    if (!to_tensor) write_planes<T, Stored>(a.out, g, to.out, b.n, b.c, b.count);
  }

  template <bool relu>
  static void run_with(const LayerArgs& a, int64_t block, int64_t begin, int64_t end, T* scratch) {
    const Plane<T> g = plane_of(a, block);
    const SchemeConstants<T> s(a.pde);
    // h and f are read where nothing was written: zeros around h, and lanes without a channel
    std::memset(scratch, 0, 2 * g.size * sizeof(T));
    Arena<T> arena{scratch, g.size};
    const Planes to{arena.take(),  arena.take(),
                    arena.take(),  {arena.take(), arena.take(), arena.take(), arena.take()},
                    arena.take(5), arena.take(2)};
    T* const weights = arena.next;
    std::memset(weights, 0, weight_sets(a, block) * weight_vectors(a) * L * sizeof(T));
    const bool f_is_h = same(a.f, a.h);
    // ReLU lets a positive factor through: the scheme's factors go into the weights
    const T ones[4] = {T(1), T(1), T(1), T(1)};
    const T factors[4] = {s.Ax_per_u, s.Ay_per_v, s.two_Bx_per_Dx, s.two_By_per_Dy};
    int64_t loaded = 0;
    for (const ChannelBlock b : ChannelBlocks{a.shape, block, begin, end}) {
      T* weight = weights + (block == 1 ? 0 : b.c / block * weight_vectors(a) * L);
      if (block == 1 || loaded++ < weight_sets(a, block))
        load_weights(a, b, relu && f_is_h ? factors : ones, weight);
      run_block<relu>(a, g, s, to, b, weight, f_is_h);
    }
  }

  static void run(const LayerArgs& a, int64_t block, int64_t begin, int64_t end, T* scratch) {
    if (a.act == Act::relu && !a.shared_product)
      run_with<true>(a, block, begin, end, scratch);
    else
      run_with<false>(a, block, begin, end, scratch);
  }
};

}  // namespace
}  // namespace globalcnn
