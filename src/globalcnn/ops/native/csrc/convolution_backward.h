// The adjoint of a depthwise convolution: the gradients of its input and of its weights.
#pragma once
#include "norms.h"

namespace globalcnn {
namespace {

// gz: gradient of one convolution's result, h: its input, both with zeros around. Adds to g_h what gz gives
// to the input, and to `g_weight` (k, k) what it gives to the weights, by the taps of some rows of the
// kernel from `top` on: both need the same values of gz.
template <int ROWS, int K, class T>
NOINLINE void back_taps(const Plane<T> g, int64_t top, const T* gz, const T* weight, const T* h, T* g_h,
                        PerChannel<T>* g_weight) {
  constexpr int64_t L = LANES<T>;
  Vec<T> dot[ROWS * K] = {};
  auto unrolled_block = [&](int64_t p, auto vectors) FORCE_INLINE {
    constexpr int N = decltype(vectors)::value;
    Vec<T> sum[N], x[N];
    for (int r = 0; r < N; ++r) sum[r] = load(g_h + p + r * L), x[r] = load_to_register(h + p + r * L);
#pragma GCC unroll 9
    for (int t = 0; t < ROWS * K; ++t) {
      const int64_t column = t % K - K / 2;
      const T* from = gz + p - (top + t / K - K / 2) * g.stride - column * g.block;
      const Vec<T> w = load_to_register(weight + (top * K + t) * L);
      for (int r = 0; r < N; ++r) {
        const Vec<T> z = load_to_register(from + r * L);
        sum[r] += z * w;
        dot[t] += z * x[r];
      }
    }
    for (int r = 0; r < N; ++r) store(g_h + p + r * L, sum[r]);
  };
  // the nine sums of a 3x3 kernel leave room for few more in 16 registers
  constexpr int N = VECTOR_BYTES == 64 ? 4 : 2;
  for (int64_t run = g.begin; run < g.begin + g.runs * g.stride; run += g.stride) {
    int64_t p = run;
    for (; p + (N - 1) * L < run + g.length; p += N * L) unrolled_block(p, Int<N>{});
    for (; p < run + g.length; p += L) unrolled_block(p, Int<1>{});
  }
  for (int t = 0; t < ROWS * K; ++t) g_weight[top * K + t].add(g, dot[t]);
}

template <class T>
void back_convolution(const Plane<T>& g, int64_t k, const T* gz, const T* weight, const T* h, T* g_h,
                      PerChannel<T>* g_weight) {
  if (k == 1) back_taps<1, 1>(g, 0, gz, weight, h, g_h, g_weight);
  if (k == 3) back_taps<3, 3>(g, 0, gz, weight, h, g_h, g_weight);
  for (int64_t row = 0; row < k && k > 3; ++row)
    k == 5 ? back_taps<1, 5>(g, row, gz, weight, h, g_h, g_weight)
           : back_taps<1, 7>(g, row, gz, weight, h, g_h, g_weight);
}

}  // namespace
}  // namespace globalcnn
