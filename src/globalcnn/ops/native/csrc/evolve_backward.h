// The operator `evolve_backward`: the gradients of `evolve`. Nothing but h (and f) is kept for it; it
// computes all else again. A thread goes twice over its channels in all images:
//
// 1. from the gradient of H to those of h, f and of what the norms give, which are kept for all images
// ("kept_gy"),
//    with their sums over the batch;
// 2. with these sums through the norms and convolutions.
#pragma once
#include "adjoint_single_step.h"
#include "convolution_backward.h"
#include "norms.h"

namespace globalcnn {
namespace {

// Takes the gradients of a pair of coefficients, u and v or Dx and Dy, to those of their norms' results, and
// keeps these side by side for every offset: they are the one thing that does not fit the caches.
template <class T, int G, bool relu>
struct PairGradients {
  const T *first_normed, *second_normed, *mask;
  T* kept;
  Vec<T> gamma[2], beta[2];
  int64_t first_offset;
  Act act;
  bool product, halo_columns, streaming;
  Vec<T> sum[2] = {}, dot[2] = {};  // over the plane: of the gradients, and of their products with the normed
  inline FORCE_INLINE void operator()(int64_t p, Vec<T> g_first, Vec<T> g_second) {
    const Vec<T> x[2] = {load_to_register(first_normed + p), load_to_register(second_normed + p)};
    Vec<T> gy[2];
    adjoint_of_pair<T, relu>(g_first, g_second, x[0] * gamma[0] + beta[0], x[1] * gamma[1] + beta[1], gy[0],
                             gy[1], act, product);
    T* const to = kept + (p - first_offset) * G;
    for (int i = 0; i < 2; ++i) {
      Vec<T> weighted = gy[i] * x[i];
      if (halo_columns) {
        const Vec<T> inside = load(mask + p);
        gy[i] = masked<T>(gy[i], inside), weighted = masked<T>(weighted, inside);
      }
      sum[i] += gy[i];
      dot[i] += weighted;
      streaming ? streaming_store(to + i * LANES<T>, gy[i]) : store(to + i * LANES<T>, gy[i]);
    }
  }
};

template <class T>
struct EvolveBackward {
  static constexpr int64_t L = LANES<T>;

  // The planes of the first pass.
  struct Planes {
    T *mask, *h, *f, *lambda, *carry, *g_f, *g_h, *u, *v, *Dx, *Dy, *g_Dx, *g_Dy, *normed[4];
    FieldGradients<T> to;
    StepPlanes<T> k, gk;
    Contributions<T> between;
    T* levels;
    Planes(Arena<T> arena, int64_t steps) {
      T** const all[] = {&mask, &h, &f, &lambda, &carry, &g_f, &g_h, &u, &v, &Dx, &Dy, &g_Dx, &g_Dy};
      for (T** plane : all) *plane = arena.take();
      for (T*& plane : normed) plane = arena.take();
      T *g_u = arena.take(), *g_v = arena.take(), *e = arena.take();
      to = {g_u, g_v, g_Dx, g_Dy, g_f, e};
      k = take_step_planes(arena), gk = take_step_planes(arena);
      between = take_contributions(arena);
      levels = arena.take(steps > 1 ? steps : 1);
    }
  };
  static int64_t planes(const EvolveArgs& a) {
    return 13 + 4 + 3 + 6 + 6 + 4 + (a.pde.steps > 1 ? a.pde.steps : 1);
  }

  // Elements kept per image and field between the two passes.
  static int64_t kept(const Plane<T>& g) { return (g.range + 4 * L + L - 1) / L * L; }

  // More kept bytes than this leave the caches before they are read again: they are written by streaming
  // stores.
  static constexpr int64_t STREAMING_ABOVE = int64_t(1) << 21;

  static int64_t scratch(const EvolveArgs& a, int64_t block) {
    const Plane<T> g = training_plane<T>(a, block);
    return (planes(a) * g.size + a.shape.N * a.fields * kept(g)) * int64_t(sizeof(T));
  }

  static bool is_single_step(const EvolveArgs& a) {
    return a.pde.dx == 1 && a.pde.dy == 1 && a.pde.steps == 1;
  }

  // The coefficients of one image, computed again: the normed convolutions, and the fields with their halos.
  // Dx and Dy are left out where the single step computes them from the normed ones.
  template <int G, bool relu>
  static inline FORCE_INLINE void compute_fields(const BatchChannels<T>& channels,
                                                 const NormedConvolutions<T>& k, const Planes& x,
                                                 const Prefetch& prefetch) {
    const EvolveArgs& a = channels.a;
    const bool product = a.shared_product, with_diffusion = !is_single_step(a);
    const Act act = a.act;
    T *const u = x.u, *const v = x.v, *const Dx = x.Dx, *const Dy = x.Dy;
    Vec<T> gamma[G], beta[G];
    T* to[G];
    for (int i = 0; i < G; ++i) gamma[i] = k.gamma[i], beta[i] = k.beta[i], to[i] = x.normed[i];
    convolve<G>(channels.g, a.kernel, x.h, k.weight, k.bias, prefetch, [=](int64_t p, const Vec<T>* z) {
      Vec<T> y[G];
      for (int i = 0; i < G; ++i) {
        store(to[i] + p, z[i]);
        y[i] = z[i] * gamma[i] + beta[i];
      }
      store_pair<T, relu>(y[0], y[1], u + p, v + p, act, product);
      if constexpr (G == 4)
        if (with_diffusion) store_pair<T, relu>(y[2], y[3], Dx + p, Dy + p, act, product);
    });
    fill_halo_rows(u, channels.g, a.pde.boundary, true);
    fill_halo_columns(v, channels.g, a.pde.boundary, true);
    fill_halo(x.h, channels.g, a.pde.boundary);
  }

  // From the gradient of H, lambda, to those of h and f (but for what comes through the coefficients, and
  // where f is h, together) and, through `of_v` and `of_D`, of the norms' results. For K = 1 with neighbours
  // at distance 1.
  template <int G, bool relu, class Pair>
  static inline FORCE_INLINE void back_single_step(const EvolveArgs& a, const Plane<T>& g,
                                                   const SchemeConstants<T>& s, const Fields<T>& d,
                                                   const Planes& x, const T* h_old, Pair& of_v, Pair& of_D) {
    const SingleStepGradients<T> grads{x.between, x.to.u, x.to.v, x.to.e, x.carry, x.g_f};
    auto diffusion = [normed_x = x.normed[G - 2], normed_y = x.normed[G - 1], gamma_x = of_D.gamma[0],
                      gamma_y = of_D.gamma[1], beta_x = of_D.beta[0], beta_y = of_D.beta[1], act = a.act,
                      product = a.shared_product](int64_t p, Vec<T>& Dx, Vec<T>& Dy) FORCE_INLINE {
      Dx = load(normed_x + p) * gamma_x + beta_x, Dy = load(normed_y + p) * gamma_y + beta_y;
      activate_pair<T, relu>(Dx, Dy, act, product);
    };
    const T two_dt = a.source ? s.two_dt : T(0);
    auto first = [&](auto f_is_h) {
      adjoint_of_single_step<T, G == 4, decltype(f_is_h)::value>(g, s, two_dt, d, x.h, h_old, a.start_from_h,
                                                                 x.lambda, grads, diffusion, of_D);
    };
    a.f.data ? first(False{}) : first(True{});
    fill_halo_of_contributions(g, a.pde.boundary, grads);
    g.each([=, g_h = x.g_h, &of_v](int64_t p) FORCE_INLINE {
      Vec<T> g_u = load(grads.u + p), g_v = load(grads.v + p);
      store(g_h + p, gather_at(g, s, p, grads, g_u, g_v));
      of_v(p, g_u, g_v);
    });
  }

  // The same for any K and distance.
  template <int G, class Pair>
  static inline FORCE_INLINE void back_steps(const EvolveArgs& a, const Plane<T>& g,
                                             const SchemeConstants<T>& s, const Fields<T>& d, const Planes& x,
                                             const T* h_old, Pair& of_v, Pair& of_D) {
    auto back = [&](auto with_f) {
      adjoint_of_steps<T, G == 4, decltype(with_f)::value>(g, a.pde, s, d, x.k, x.gk, x.h, h_old, x.lambda,
                                                           x.carry, x.between, x.levels, x.to);
    };
    a.source ? back(True{}) : back(False{});
    const bool f_is_h = !a.f.data, source = a.source, start_from_h = a.start_from_h;
    T *const lambda = x.lambda, *const carry = x.carry, *const to_h = x.g_h, *const to_f = x.g_f;
    g.each([=, to = x.to, &of_v, &of_D](int64_t p) FORCE_INLINE {
      of_v(p, load(to.u + p), load(to.v + p));
      if constexpr (G == 4) of_D(p, load(to.Dx + p), load(to.Dy + p));
      Vec<T> g_h = load(lambda + p), g_f = Vec<T>{};
      if (source) g_f += load(to_f + p);
      if (start_from_h)
        g_h += load(carry + p);
      else
        g_f += load(carry + p);
      store(to_h + p, f_is_h ? g_h + g_f : g_h);
      store(to_f + p, g_f);
    });
  }

  template <int G, bool relu>
  static NOINLINE void first_pass(const BatchChannels<T>& channels, const NormedConvolutions<T>& k,
                                  const Planes& x, T* gy, PerChannel<T>* sums, PerChannel<T>* dots) {
    const EvolveArgs& a = channels.a;
    const Plane<T> g = channels.g;
    const SchemeConstants<T> s(a.pde);
    const bool f_is_h = !a.f.data;
    const bool streaming = a.shape.N * G * kept(g) * int64_t(sizeof(T)) > STREAMING_ABOVE;
    for (int64_t n = 0; n < a.shape.N; ++n) {
      channels.read(x.h, a.h, n);
      channels.read(x.lambda, a.grad, n);
      if (!f_is_h) channels.read(x.f, a.f, n);
      const Prefetch prefetch =
          channels.prefetch(channels.address(a.h, n + 1), channels.address(a.grad, n + 1));
      compute_fields<G, relu>(channels, k, x, prefetch);
      clear_halo_columns(x.lambda, g);
      const T* f = f_is_h ? x.h : x.f;
      // without a source f is read, and multiplied by 0, all the same: h is finite where the result is
      const Fields<T> d{x.u, x.v, x.Dx, x.Dy, a.source ? f : x.h};
      auto pair = [&](int i) {
        return PairGradients<T, G, relu>{x.normed[i],
                                         x.normed[i + 1],
                                         x.mask,
                                         gy + n * G * kept(g) + i * L,
                                         {k.gamma[i], k.gamma[i + 1]},
                                         {k.beta[i], k.beta[i + 1]},
                                         g.first,
                                         a.act,
                                         a.shared_product,
                                         g.block == 1,
                                         streaming};
      };
      PairGradients<T, G, relu> of_v = pair(0), of_D = pair(G - 2);
      const T* h_old = a.start_from_h ? x.h : f;
      if (is_single_step(a))
        back_single_step<G, relu>(a, g, s, d, x, h_old, of_v, of_D);
      else
        back_steps<G>(a, g, s, d, x, h_old, of_v, of_D);
      for (int i = 0; i < 2; ++i) {
        sums[i].add(g, of_v.sum[i]), dots[i].add(g, of_v.dot[i]);
        if constexpr (G == 4) sums[2 + i].add(g, of_D.sum[i]), dots[2 + i].add(g, of_D.dot[i]);
      }
      clear_halo(x.h, g, a.pde.boundary);
      channels.write(a.g_h, x.g_h, n);
      if (!f_is_h) channels.write(a.g_f, x.g_f, n);
    }
  }

  // What the norms' backward subtracts: the means over the batch of the gradients (`mean`) and of their
  // products with the normed (`slope`); `factor` is gamma / sqrt(var + eps). Writes the gradients of beta and
  // gamma.
  template <int G>
  struct NormBackward {
    Vec<T> mean[G], slope[G], factor[G];
    NormBackward(const BatchChannels<T>& channels, const NormedConvolutions<T>& k, const PerChannel<T>* sums,
                 const PerChannel<T>* dots) {
      const EvolveArgs& a = channels.a;
      const T per_element = T(1 / double(a.shape.N * a.shape.H * a.shape.W));
      for (int i = 0; i < G; ++i) {
        mean[i] = sums[i].vector(channels.g) * per_element;
        slope[i] = dots[i].vector(channels.g) * per_element;
        factor[i] = k.gamma[i] * channels.inverse_deviation(i);
        channels.put(i, a.g_beta, sums[i]);
        channels.put(i, a.g_gamma, dots[i]);
      }
    }
  };

  template <int G>
  static NOINLINE void second_pass(const BatchChannels<T>& channels, const NormedConvolutions<T>& k,
                                   Arena<T> arena, const T* gy, const PerChannel<T>* sums,
                                   const PerChannel<T>* dots) {
    const EvolveArgs& a = channels.a;
    const Plane<T> g = channels.g;
    const int64_t kk = a.kernel * a.kernel;
    T *mask = arena.take(), *h = arena.take(), *g_h = arena.take();
    struct {
      T* of[G];
    } gz;
    for (T*& x : gz.of) {
      x = arena.take();
      std::memset(x, 0, g.size * sizeof(T));
    }
    std::memset(h, 0, g.size * sizeof(T));  // the first pass left the boundary's halo around it
    alignas(64) T weight[G * MAX_KERNEL * MAX_KERNEL * L];
    channels.load_weights(weight);
    const NormBackward<G> norm(channels, k, sums, dots);
    PerChannel<T> g_weight[G * MAX_KERNEL * MAX_KERNEL];
    const int64_t image = G * kept(g), first = g.first;
    const bool halo_columns = g.block == 1;
    for (int64_t n = 0; n < channels.passes(); ++n) {
      channels.read(h, a.h, n);
      channels.read(g_h, a.g_h, n);
      const T* kept_gy = gy + n * image;
      const Prefetch prefetch =
          channels.prefetch(channels.address(a.h, n + 1), channels.address(a.g_h, n + 1));
      convolve<G>(g, a.kernel, h, k.weight, k.bias, prefetch, [=](int64_t p, const Vec<T>* x) {
        for (int i = 0; i < G; ++i) {
          const Vec<T> y = load(kept_gy + (p - first) * G + i * L);
          Vec<T> z = (y - norm.mean[i] - x[i] * norm.slope[i]) * norm.factor[i];
          if (halo_columns) z = masked<T>(z, load(mask + p));
          store(gz.of[i] + p, z);
        }
      });
      for (int i = 0; i < G && a.pde.steps > 0; ++i)
        back_convolution(g, a.kernel, gz.of[i], weight + i * kk * L, h, g_h, g_weight + i * kk);
      channels.write(a.g_h, g_h, n);
    }
    put_weight_gradients(channels, g_weight, G, kk);
  }

  // The tap in the middle sees the whole map: if it is not a number, neither is one that lies in the padding
  // alone.
  static void put_weight_gradients(const BatchChannels<T>& channels, const PerChannel<T>* g_weight,
                                   int64_t fields, int64_t kk) {
    T* const to = static_cast<T*>(channels.a.g_weight);
    for (int64_t i = 0; i < fields; ++i)
      for (int64_t e = 0; e < channels.count; ++e) {
        const double middle = g_weight[i * kk + kk / 2].of[e];
        for (int64_t t = 0; t < kk; ++t)
          to[(i * channels.a.shape.C + channels.c + e) * kk + t] =
              T(middle != middle ? middle : g_weight[i * kk + t].of[e]);
      }
  }

  static void run(const EvolveArgs& a, int64_t block, int64_t begin, int64_t end, T* scratch) {
    const Plane<T> g = training_plane<T>(a, block);
    T* gy = scratch + planes(a) * g.size;
    each_block(a, g, begin, end, [&](const BatchChannels<T>& channels) {
      std::memset(scratch, 0, planes(a) * g.size * sizeof(T));
      const Arena<T> arena{scratch, g.size};
      const Planes x(arena, a.pde.steps);
      make_mask(x.mask, g);
      NormedConvolutions<T> k;
      channels.load_normalised(k);
      PerChannel<T> sums[4], dots[4];
      dispatch_fields(a, [&](auto G, auto relu) {
        constexpr int fields = decltype(G)::value;
        first_pass<fields, decltype(relu)::value>(channels, k, x, gy, sums, dots);
        // without a step the coefficients have no gradient, even where they are not numbers
        for (int i = 0; i < fields && a.pde.steps == 0; ++i) sums[i] = dots[i] = {};
        second_pass<fields>(channels, k, arena, gy, sums, dots);
      });
    });
  }
};

}  // namespace
}  // namespace globalcnn
