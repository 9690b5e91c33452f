// Layout conversion: between tensors of any strides (contiguous, channels-last) and planes.
#pragma once
#include "maths.h"
#include "plane.h"

namespace globalcnn {
namespace {

// Transposes L x L elements: rows of `from` (stride from_stride) become columns of `to` (stride to_stride).
template <class T>
inline void transpose(T* to, int64_t to_stride, const T* from, int64_t from_stride) {
  constexpr int L = LANES<T>;
#if defined(__clang__)
  for (int i = 0; i < L; ++i)
    for (int j = 0; j < L; ++j) to[j * to_stride + i] = from[i * from_stride + j];
#else
  Vec<T> x[L], y[L];
  for (int i = 0; i < L; ++i) x[i] = load(from + i * from_stride);
  // log2(L) stages, each swaps two blocks of `side` x `side` in every square of 2 `side` x 2 `side`
  auto swap_blocks = [&](auto side_) FORCE_INLINE {
    constexpr int side = decltype(side_)::value;
    if constexpr (side < L) {
      IntVec<T> low, high;
      for (int j = 0; j < L; ++j) {
        low[j] = j & side ? L + j - side : j;
        high[j] = j & side ? L + j : j + side;
      }
      for (int i = 0; i < L; ++i) {
        if (i & side) continue;
        y[i] = __builtin_shuffle(x[i], x[i + side], low);
        y[i + side] = __builtin_shuffle(x[i], x[i + side], high);
      }
      for (int i = 0; i < L; ++i) x[i] = y[i];
    }
  };
  swap_blocks(Int<1>{}), swap_blocks(Int<2>{}), swap_blocks(Int<4>{}), swap_blocks(Int<8>{});
  for (int i = 0; i < L; ++i) store(to + i * to_stride, x[i]);
#endif
}

// Calls `body(offset in the tensor, offset in the plane)` for all pixels of `count` channels.
template <class T, class Body>
inline void each_element(const Plane<T>& g, const View& v, int64_t count, const Body& body) {
  for (int64_t i = 0; i < g.H; ++i)
    for (int64_t j = 0; j < g.W; ++j)
      for (int64_t k = 0; k < count; ++k) body(i * v.h + j * v.w + k * v.c, g.at(i, j) + k);
}

// Whether each channel's pixels lie without gaps, so that L x L elements can be transposed whatever the rows
// are.
template <class T>
inline bool transposable(const Plane<T>& g, const View& v) {
  return v.w == 1 && v.h == g.W;
}

// The offsets in a plane of its pixels, in order.
template <class T>
struct PixelWalk {
  const Plane<T>& g;
  int64_t row = 0, column = 0;
  int64_t next() {
    const int64_t here = g.at(row, column);
    if (++column == g.W) column = 0, ++row;
    return here;
  }
};

template <class T, class Stored>
inline void read_transposed(T* plane, const Plane<T>& g, const View& from, const Stored* base,
                            int64_t count) {
  constexpr int64_t L = LANES<T>;
  PixelWalk<T> walk{g};
  int64_t pixel = 0;
  for (; pixel + L <= g.H * g.W; pixel += L) {
    T rows[L * L], transposed[L * L];
    if (count < L) std::memset(rows, 0, sizeof rows);
    for (int64_t k = 0; k < L; ++k)
      if (k < count) convert_line(rows + k * L, base + k * from.c + pixel, L);
    transpose<T>(transposed, L, rows, L);
    for (int64_t k = 0; k < L; ++k) store(plane + walk.next(), load(transposed + k * L));
  }
  for (; pixel < g.H * g.W; ++pixel) {
    T* to = plane + walk.next();
    for (int64_t k = 0; k < count; ++k) convert(to + k, base + k * from.c + pixel);
  }
}

// Fewer numbers than a vector has, in parts of fixed sizes: a loop over so few would cost more than the copy.
template <class To, class From>
inline FORCE_INLINE void convert_few(To* __restrict to, const From* __restrict from, int64_t count) {
  auto part = [&](auto size_) FORCE_INLINE {
    constexpr int64_t size = decltype(size_)::value;
    if (!(count & size)) return;
    for (int64_t k = 0; k < size; ++k) convert(to + k, from + k);
    to += size, from += size;
  };
  part(Int<8>{}), part(Int<4>{}), part(Int<2>{}), part(Int<1>{});
}

// The first `count` < LANES<T> lanes of a pixel of a plane, from and to a tensor. Other lanes of the pixel
// may become 0.
template <class T, class Stored>
inline FORCE_INLINE void read_few(T* pixel, const Stored* from, int64_t count) {
  convert_few(pixel, from, count);
}
template <class T, class Stored>
inline FORCE_INLINE void write_few(Stored* to, const T* pixel, int64_t count) {
  convert_few(to, pixel, count);
}
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && VECTOR_BYTES == 64
inline __mmask16 first_lanes(int64_t count) { return __mmask16((1u << count) - 1); }
inline FORCE_INLINE void read_few(float* pixel, const float* from, int64_t count) {
  _mm512_storeu_ps(pixel, _mm512_maskz_loadu_ps(first_lanes(count), from));
}
inline FORCE_INLINE void read_few(float* pixel, const uint16_t* from, int64_t count) {
  const __m256i bits = _mm256_maskz_loadu_epi16(first_lanes(count), from);
  _mm512_storeu_si512(pixel, _mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline FORCE_INLINE void write_few(float* to, const float* pixel, int64_t count) {
  _mm512_mask_storeu_ps(to, first_lanes(count), _mm512_loadu_ps(pixel));
}
inline FORCE_INLINE void write_few(uint16_t* to, const float* pixel, int64_t count) {
  _mm256_mask_storeu_epi16(to, first_lanes(count), __m256i(bfloat16s_of_floats(load(pixel))));
}
#endif

// Reads `count` channels of image n, from channel c on, into a plane.
template <class T, class Stored>
NOINLINE void read_planes(T* plane, const Plane<T>& g, const View& from, int64_t n, int64_t c,
                          int64_t count) {
  constexpr int64_t L = LANES<T>;
  const Stored* base = static_cast<const Stored*>(from.data) + n * from.n + c * from.c;
  if (g.block == 1 && from.w == 1) {
    for (int64_t i = 0; i < g.H; ++i) convert_line(plane + g.at(i, 0), base + i * from.h, g.W);
  } else if (g.block > 1 && from.c == 1 && count == L) {
    for (int64_t i = 0; i < g.H; ++i) {
      T* to = plane + g.at(i, 0);
      const Stored* line = base + i * from.h;
      for (int64_t j = 0; j < g.W; ++j, to += L, line += from.w) convert_line(to, line, L);
    }
  } else if (g.block > 1 && from.c == 1) {
    for (int64_t i = 0; i < g.H; ++i) {
      T* to = plane + g.at(i, 0);
      const Stored* line = base + i * from.h;
      for (int64_t j = 0; j < g.W; ++j, to += L, line += from.w) read_few(to, line, count);
    }
  } else if (g.block > 1 && transposable(g, from)) {
    read_transposed<T, Stored>(plane, g, from, base, count);
  } else {
    each_element(g, from, count, [&](int64_t t, int64_t p) { convert(plane + p, base + t); });
  }
}

template <class T, class Stored>
inline void write_transposed(const View& to, Stored* base, const Plane<T>& g, const T* plane, int64_t count) {
  constexpr int64_t L = LANES<T>;
  PixelWalk<T> walk{g};
  int64_t pixel = 0;
  for (; pixel + L <= g.H * g.W; pixel += L) {
    T rows[L * L], transposed[L * L];
    for (int64_t k = 0; k < L; ++k) store(rows + k * L, load(plane + walk.next()));
    transpose<T>(transposed, L, rows, L);
    for (int64_t k = 0; k < L; ++k)
      if (k < count) convert_line(base + k * to.c + pixel, transposed + k * L, L);
  }
  for (; pixel < g.H * g.W; ++pixel) {
    const T* from = plane + walk.next();
    for (int64_t k = 0; k < count; ++k) convert(base + k * to.c + pixel, from + k);
  }
}

template <class T, class Stored>
NOINLINE void write_planes(const View& to, const Plane<T>& g, const T* plane, int64_t n, int64_t c,
                           int64_t count) {
  constexpr int64_t L = LANES<T>;
  Stored* base = static_cast<Stored*>(to.data) + n * to.n + c * to.c;
  if (g.block == 1 && to.w == 1) {
    for (int64_t i = 0; i < g.H; ++i) convert_line(base + i * to.h, plane + g.at(i, 0), g.W);
  } else if (g.block > 1 && to.c == 1 && count == L) {
    for (int64_t i = 0; i < g.H; ++i) {
      const T* from = plane + g.at(i, 0);
      Stored* line = base + i * to.h;
      for (int64_t j = 0; j < g.W; ++j, from += L, line += to.w) convert_line(line, from, L);
    }
  } else if (g.block > 1 && to.c == 1) {
    for (int64_t i = 0; i < g.H; ++i) {
      const T* from = plane + g.at(i, 0);
      Stored* line = base + i * to.h;
      for (int64_t j = 0; j < g.W; ++j, from += L, line += to.w) write_few(line, from, count);
    }
  } else if (g.block > 1 && transposable(g, to)) {
    write_transposed<T, Stored>(to, base, g, plane, count);
  } else {
    each_element(g, to, count, [&](int64_t t, int64_t p) { convert(base + t, plane + p); });
  }
}

// From one memory format to another.
template <class T, class Stored>
struct Copy {
  static int64_t scratch(const CopyArgs& a, int64_t block) {
    return Plane<T>(a.shape, a.pde, 0, block).size * int64_t(sizeof(T));
  }
  static void run(const CopyArgs& a, int64_t block, int64_t begin, int64_t end, T* scratch) {
    const Plane<T> g(a.shape, a.pde, 0, block);
    for (const ChannelBlock b : ChannelBlocks{a.shape, block, begin, end}) {
      read_planes<T, Stored>(scratch, g, a.from, b.n, b.c, b.count);
      write_planes<T, Stored>(a.to, g, scratch, b.n, b.c, b.count);
    }
  }
};

}  // namespace
}  // namespace globalcnn
