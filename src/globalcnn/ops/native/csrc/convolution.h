// Depthwise convolutions of one plane, several of them sharing their loads.
#pragma once
#include "halo.h"

namespace globalcnn {
namespace {

// Memory that will be needed next (`a` and `b`, or null): prefetched a little in every unrolled block of the
// convolution, because the processor's own prefetching ends at the end of a page, where a plane of 32 x 32
// ends.
struct Prefetch {
  const void *a, *b;
  int64_t bytes;  // from one vector to the next
  // the places of `count` vectors from number `from` on
  void touch(int64_t from, int64_t count) const {
    for (int64_t i = from; i < from + count; ++i) {
      if (a) __builtin_prefetch(static_cast<const char*>(a) + i * bytes);
      if (b) __builtin_prefetch(static_cast<const char*>(b) + i * bytes);
    }
  }
};

// An unrolled block of `convolve`: N vectors from p on.
template <int G, int K, int N, class T, class Then>
inline FORCE_INLINE void convolve_block(const Plane<T>& g, const T* z, const T* weight, const T* bias,
                                        int64_t any_k, int64_t p, const Then& then) {
  constexpr int64_t L = LANES<T>;
  const int64_t k = K ? K : any_k, radius = k / 2;
  Vec<T> sum[G][N];
  for (int i = 0; i < G; ++i)
    for (int r = 0; r < N; ++r) sum[i][r] = load(bias + i * L);
  auto tap = [&](int64_t a, int64_t b) FORCE_INLINE {
    const T* from = z + p + (a - radius) * g.stride + (b - radius) * g.block;
    Vec<T> in[N];
    for (int r = 0; r < N; ++r) in[r] = load_to_register(from + r * L);
    for (int i = 0; i < G; ++i) {
      const Vec<T> w = load_to_register(weight + (i * k * k + a * k + b) * L);
      for (int r = 0; r < N; ++r) sum[i][r] += in[r] * w;
    }
  };
  if constexpr (K == 3) {
#pragma GCC unroll 9
    for (int t = 0; t < 9; ++t) tap(t / 3, t % 3);
  } else {
    for (int64_t a = 0; a < k; ++a)
      for (int64_t b = 0; b < k; ++b) tap(a, b);
  }
  for (int r = 0; r < N; ++r) {
    Vec<T> values[G];
    for (int i = 0; i < G; ++i) values[i] = sum[i][r];
    then(p + r * L, values);
  }
}

// G depthwise convolutions of one plane z, which has zeros for a halo. K = 3 is unrolled; K = 0 stands for
// any odd k. weight (G, k, k) and bias (G) of this block of channels, in vectors. `then(p, results)` gets the
// G results at p.
template <int G, int K, class T, class Then>
NOINLINE void convolve_k(const Plane<T> g, const T* z, const T* weight, const T* bias, int64_t k,
                         const Prefetch prefetch, const Then then) {
  constexpr int64_t L = LANES<T>;
  // Each weight is loaded once for N vectors. Their inputs, G N sums and a weight must fit into the
  // registers, 16 of them or 32.
  constexpr int N = VECTOR_BYTES == 64 ? 4 : G == 4 ? 3 : 5;
  int64_t done = 0;
  for (int64_t run = g.begin; run < g.begin + g.runs * g.stride; run += g.stride) {
    int64_t p = run;
    for (; p + (N - 1) * L < run + g.length; p += N * L) {
      prefetch.touch(done, N);
      done += N;
      convolve_block<G, K, N>(g, z, weight, bias, k, p, then);
    }
    for (; p + L < run + g.length; p += 2 * L) convolve_block<G, K, 2>(g, z, weight, bias, k, p, then);
    for (; p < run + g.length; p += L) convolve_block<G, K, 1>(g, z, weight, bias, k, p, then);
  }
}

template <int G, class T, class Then>
inline void convolve(const Plane<T>& g, int64_t k, const T* z, const T* weight, const T* bias,
                     const Prefetch& prefetch, const Then& then) {
  if (k == 3)
    convolve_k<G, 3>(g, z, weight, bias, 3, prefetch, then);
  else
    convolve_k<G, 0>(g, z, weight, bias, k, prefetch, then);
}

// Two coefficients, u and v or Dx and Dy, from what their activation follows. product: both are
// act(x act(y)), else act(x) and act(y).
template <class T, bool relu>
inline void activate_pair(Vec<T>& x, Vec<T>& y, Act act, bool product) {
  y = activate<T, relu>(y, act);
  x = activate<T, relu>(!relu && product ? x * y : x, act);
  if (!relu && product) y = x;
}

template <class T, bool relu>
inline void store_pair(Vec<T> x, Vec<T> y, T* to_x, T* to_y, Act act, bool product) {
  activate_pair<T, relu>(x, y, act, product);
  store(to_x, x);
  store(to_y, y);
}

// Its adjoint: from the gradients of the two coefficients to those of x and y.
template <class T, bool relu>
inline FORCE_INLINE void adjoint_of_pair(Vec<T> g_first, Vec<T> g_second, Vec<T> x, Vec<T> y, Vec<T>& gx,
                                         Vec<T>& gy, Act act, bool product) {
  if (!relu && product) {
    const Vec<T> s = activate<T, relu>(y, act);
    const Vec<T> g = activation_backward<T, relu>(g_first + g_second, x * s, act);
    gx = g * s;
    gy = activation_backward<T, relu>(g * x, y, act);
  } else {
    gx = activation_backward<T, relu>(g_first, x, act);
    gy = activation_backward<T, relu>(g_second, y, act);
  }
}

}  // namespace
}  // namespace globalcnn
