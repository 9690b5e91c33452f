// Division, the exponential, activations and their derivatives, bfloat16.
#pragma once
#include <cmath>

#include "kernels.h"
#include "simd.h"

namespace globalcnn {
namespace {

// a / b. With AVX-512 by an approximate reciprocal (14 bits) and one Newton step: within about one unit in
// the last place, in a third of the time.
template <class T>
inline Vec<T> divide(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    Vec<T> r = Vec<T>(_mm512_rcp14_ps(__m512(b)));
    r = r + r * (T(1) - b * r);
    return a * r;
  }
#endif
  return a / b;
}

// e^x for x <= 0, to about one unit in the last place (Cody-Waite reduction, degree 6). Below the smallest
// normal number it is 0, which silu(-infinity) = NaN needs.
inline Vec<float> exp_of_negative(Vec<float> given) {
  const float lowest = -87.33654f;
  const Vec<float> x = max<float>(given, lowest);
  const Vec<float> magic = broadcast<float>(12582912.0f);  // adding it rounds to an integer
  Vec<float> n = (x * 1.44269504f + magic) - magic;
  Vec<float> r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  IntVec<float> bits = (__builtin_convertvector(n, IntVec<float>) + 127) << 23;
  Vec<float> two_to_n;
  std::memcpy(&two_to_n, &bits, sizeof two_to_n);
  return given < lowest ? Vec<float>{} : p * two_to_n;
}

inline Vec<double> exp_of_negative(Vec<double> x) {
  for (int i = 0; i < LANES<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// Activations and their derivatives treat NaN and infinity as PyTorch's do. The activation is a compile-time
// constant for `relu`; the others are selected per vector, which costs little and keeps the library small.
template <class T, bool relu>
inline Vec<T> activate(Vec<T> x, Act act) {
  if (relu || act == Act::relu) return max<T>(x, T(0));
  if (act == Act::relu6) return min<T>(max<T>(x, T(0)), T(6));
  if (act == Act::hardswish) return x * min<T>(max<T>(x + T(3), T(0)), T(6)) * T(1.0 / 6.0);
  if (act == Act::silu) {
    // x / (1 + e^-x) by way of e^-|x|, which does not overflow
    Vec<T> e = exp_of_negative(x < T(0) ? x : -x);
    return x * (x < T(0) ? e : broadcast<T>(T(1))) / (T(1) + e);
  }
  return x;
}

// The gradient of x, given that of activate(x). What the activation cuts off gets 0 even from an infinite
// gradient.
template <class T, bool relu>
inline Vec<T> activation_backward(Vec<T> gradient, Vec<T> x, Act act) {
  const Vec<T> zero{};
  if (relu || act == Act::relu) return x <= T(0) ? zero : gradient;
  if (act == Act::relu6) return x <= T(0) ? zero : (x >= T(6) ? zero : gradient);
  if (act == Act::hardswish)
    return x < T(-3) ? zero : (x > T(3) ? gradient : gradient * (x * T(1.0 / 3.0) + T(0.5)));
  if (act == Act::silu) {
    Vec<T> e = exp_of_negative(x < T(0) ? x : -x);
    Vec<T> s = (x < T(0) ? e : broadcast<T>(T(1))) / (T(1) + e);
    return gradient * (s * (T(1) + x * (T(1) - s)));
  }
  return gradient;
}

inline float float_of_bfloat16(uint16_t x) {
  uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Rounds to nearest, ties to even.
inline uint16_t bfloat16_of_float(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return x != x ? uint16_t(0x7FC0) : uint16_t(rounded);
}

inline void convert(float* to, const uint16_t* from) { *to = float_of_bfloat16(*from); }
inline void convert(uint16_t* to, const float* from) { *to = bfloat16_of_float(*from); }
inline void convert(double* to, const uint16_t* from) { *to = float_of_bfloat16(*from); }
inline void convert(uint16_t* to, const double* from) { *to = bfloat16_of_float(float(*from)); }
template <class T>
inline void convert(T* to, const T* from) {
  *to = *from;
}

template <class To, class From>
inline void convert_line(To* __restrict to, const From* __restrict from, int64_t count) {
  for (int64_t j = 0; j < count; ++j) convert(to + j, from + j);
}
// Whole vectors: the loop above, of numbers of two sizes, is not always compiled to them.
typedef uint16_t BFloat16s __attribute__((vector_size(LANES<float> * sizeof(uint16_t))));
inline FORCE_INLINE BFloat16s bfloat16s_of_floats(Vec<float> x) {
  typedef uint32_t Bits __attribute__((vector_size(VECTOR_BYTES)));
  const Bits bits = Bits(x), rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const Bits nan = Bits(x != x);
  return __builtin_convertvector((nan & 0x7FC0u) | (~nan & rounded), BFloat16s);
}
inline void convert_line(uint16_t* __restrict to, const float* __restrict from, int64_t count) {
  constexpr int64_t L = LANES<float>;
  int64_t j = 0;
  for (; j + L <= count; j += L) {
    const BFloat16s x = bfloat16s_of_floats(load(from + j));
    std::memcpy(to + j, &x, sizeof x);
  }
  for (; j < count; ++j) to[j] = bfloat16_of_float(from[j]);
}
// Lines are short: calling memcpy for each would cost as much as the copy.
inline void convert_line(float* __restrict to, const float* __restrict from, int64_t count) {
  constexpr int64_t L = LANES<float>;
  int64_t j = 0;
  for (; j + L <= count; j += L) store(to + j, load(from + j));
  for (; j < count; ++j) to[j] = from[j];
}
inline void convert_line(double* to, const double* from, int64_t count) {
  std::memcpy(to, from, count * sizeof(double));
}

}  // namespace
}  // namespace globalcnn
