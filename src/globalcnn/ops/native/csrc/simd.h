// Vectors of VECTOR_BYTES: a thin wrapper around the vector types of GCC and Clang.
//
// The headers of the kernels are compiled once per instruction set (kernels_*.cpp). All they define is
// therefore in an unnamed namespace, and they use no templates of the standard library: the linker would
// merge instances that were compiled for different instruction sets, and an old processor would meet
// instructions it does not have.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

// Large functions with several callers are compiled once instead of being inlined: half the compile time.
#define NOINLINE __attribute__((noinline))
#define FORCE_INLINE __attribute__((always_inline))

namespace globalcnn {
namespace {

template <class T>
struct SignedOfSize;
template <>
struct SignedOfSize<float> {
  typedef int32_t type;
};
template <>
struct SignedOfSize<double> {
  typedef int64_t type;
};

template <class T>
struct VectorTypes {
  typedef T Vector __attribute__((vector_size(VECTOR_BYTES)));
  typedef T Unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(T)), may_alias));
  typedef typename SignedOfSize<T>::type Integers __attribute__((vector_size(VECTOR_BYTES)));
};

template <class T>
using Vec = typename VectorTypes<T>::Vector;
template <class T>
using IntVec = typename VectorTypes<T>::Integers;

template <class T>
constexpr int64_t LANES = VECTOR_BYTES / sizeof(T);

// Compile-time constants as arguments of generic lambdas.
template <class Type, Type number>
struct Constant {
  static constexpr Type value = number;
};
template <int number>
using Int = Constant<int, number>;
using True = Constant<bool, true>;
using False = Constant<bool, false>;

// Calls `body` with the two conditions as compile-time constants.
template <class Body>
inline void dispatch(bool a, bool b, const Body& body) {
  if (a && b)
    body(True{}, True{});
  else if (a)
    body(True{}, False{});
  else if (b)
    body(False{}, True{});
  else
    body(False{}, False{});
}

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}

// For a value that is used twice: GCC would otherwise read memory again rather than keep a register.
template <class T>
inline Vec<T> load_to_register(const T* p) {
  Vec<T> x = load(p);
#if defined(__GNUC__) && defined(__x86_64__)
#if defined(__AVX512F__)
  __asm__("" : "+v"(x));
#else
  __asm__("" : "+x"(x));
#endif
#endif
  return x;
}

template <class T>
inline void store(T* p, Vec<T> x) {
  *reinterpret_cast<typename VectorTypes<T>::Unaligned*>(p) = x;
}

// A streaming (non-temporal) store, at a multiple of the vector: for what has left the caches before it is
// read again.
template <class T>
inline void streaming_store(T* p, Vec<T> x) {
  if constexpr (sizeof(T) == 4) {
#if defined(__AVX512F__) && VECTOR_BYTES == 64
    return _mm512_stream_ps(p, __m512(x));
#elif defined(__AVX2__) && VECTOR_BYTES == 32
    return _mm256_stream_ps(p, __m256(x));
#endif
  }
  store(p, x);
}

template <class T>
inline Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

// max and min propagate NaN, as PyTorch does: the instructions return their second operand where one is NaN.
// They are written as intrinsics because GCC compiles the general form to a comparison and a blend.
template <class T>
inline Vec<T> max(Vec<T> x, T low) {
  Vec<T> l = broadcast<T>(low);
  if constexpr (sizeof(T) == 4) {
#if defined(__AVX512F__) && VECTOR_BYTES == 64
    return Vec<T>(_mm512_max_ps(__m512(l), __m512(x)));
#elif defined(__AVX2__) && VECTOR_BYTES == 32
    return Vec<T>(_mm256_max_ps(__m256(l), __m256(x)));
#elif defined(__SSE2__) && VECTOR_BYTES == 16
    return Vec<T>(_mm_max_ps(__m128(l), __m128(x)));
#endif
  }
  return l > x ? l : x;
}

template <class T>
inline Vec<T> min(Vec<T> x, T high) {
  Vec<T> l = broadcast<T>(high);
  if constexpr (sizeof(T) == 4) {
#if defined(__AVX512F__) && VECTOR_BYTES == 64
    return Vec<T>(_mm512_min_ps(__m512(l), __m512(x)));
#elif defined(__AVX2__) && VECTOR_BYTES == 32
    return Vec<T>(_mm256_min_ps(__m256(l), __m256(x)));
#elif defined(__SSE2__) && VECTOR_BYTES == 16
    return Vec<T>(_mm_min_ps(__m128(l), __m128(x)));
#endif
  }
  return l < x ? l : x;
}

// x where all bits of the mask are set, 0 where none is: unlike a product with 0 it drops NaN and infinity.
template <class T>
inline Vec<T> masked(Vec<T> x, Vec<T> mask) {
  return Vec<T>(IntVec<T>(x) & IntVec<T>(mask));
}

template <class T>
inline T sum_of_lanes(Vec<T> x) {
  T sum = 0;
  for (int i = 0; i < LANES<T>; ++i) sum += x[i];
  return sum;
}

}  // namespace
}  // namespace globalcnn
