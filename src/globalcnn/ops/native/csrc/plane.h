// Planes: maps in scratch memory, in channel-blocked layout with a halo.
//
// A plane holds one block of channels of one image: either `block` = 1 channel, or as many channels as a
// vector has lanes (nChw8c, nChw16c), so that a pixel is one vector. Around the H x W pixels lies a halo of
// px rows and py columns on each side:
//
//               py          W          py
//            +------+--------------+------+
//         px | halo |  halo rows   | halo |      x: row index (axis 2), neighbours are dx rows apart
//            +------+--------------+------+      y: column index (axis 3), neighbours are dy columns apart
//          H | halo |    pixels    | halo |      each pixel: `block` channels side by side
//            |      |              |      |      `stride` elements from row to row: (W + 2 py) block
//            +------+--------------+------+      `first`: a multiple of the vector
//         px | halo |  halo rows   | halo |
//            +------+--------------+------+
//
// The neighbours of every element are at the same distances: X = dx stride elements along x, Y = dy block
// along y. Loops know nothing else of the block size. With block = 1 they run over all rows at once, halo
// columns included (what they leave there is overwritten by the halo fill); else row by row over whole
// vectors.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace globalcnn {
namespace {

template <class T>
struct Plane {
  int64_t H, W, dx, dy, px, py, block, stride, X, Y;
  int64_t first;        // offset of the first interior row, with its halo column
  int64_t range;        // elements of all interior rows with their halo columns
  int64_t size;         // elements to allocate for one plane
  bool images = false;  // in training: the lanes of a block are images of one channel
  // what loops run over: `runs` stretches of `length` elements, the first at `begin`, `stride` apart
  int64_t runs, begin, length;

  Plane(const Shape& shape, const Pde& pde, int64_t kernel_radius, int64_t block_size)
      : H(shape.H), W(shape.W), dx(pde.dx), dy(pde.dy), block(block_size) {
    px = dx > kernel_radius ? dx : kernel_radius;
    py = dy > kernel_radius ? dy : kernel_radius;
    stride = (W + 2 * py) * block, X = dx * stride, Y = dy * block;
    constexpr int64_t L = LANES<T>;
    first = (px * stride + py * block + L - 1) / L * L;
    range = H * stride;
    // unrolled blocks of up to 4 vectors run over the end, and read px rows and py columns further
    size = (first + range + 4 * L + px * stride + py * block + L - 1) / L * L;
    runs = block == 1 ? 1 : H;
    begin = block == 1 ? first : first + py * block;
    length = block == 1 ? range : W * block;
  }
  int64_t at(int64_t row, int64_t column) const { return first + row * stride + (py + column) * block; }
  bool one_channel() const { return block == 1 || images; }
  int64_t line() const { return W * block; }  // elements of a row without its halo

  // Calls `body` with the offset of every vector, and before that `begin_run` with the first offset of each
  // run.
  template <class Body, class BeginRun>
  inline FORCE_INLINE void each(const Body& body, const BeginRun& begin_run) const {
    for (int64_t run = begin; run < begin + runs * stride; run += stride) {
      begin_run(run);
      for (int64_t p = run; p < run + length; p += LANES<T>) body(p);
    }
  }
  template <class Body>
  inline FORCE_INLINE void each(const Body& body) const {
    each(body, [](int64_t) {});
  }
};

// One unit of work: `count` channels of image n from channel c on, a block or what is left of the channels.
struct ChannelBlock {
  int64_t n, c, count;
};

// The blocks number [first, last), image by image.
struct ChannelBlocks {
  const Shape& shape;
  int64_t block, first, last;
  struct Iterator {
    const ChannelBlocks& blocks;
    int64_t i;
    bool operator!=(const Iterator& other) const { return i != other.i; }
    void operator++() { ++i; }
    ChannelBlock operator*() const {
      const int64_t per_image = (blocks.shape.C + blocks.block - 1) / blocks.block;
      const int64_t c = i % per_image * blocks.block, left = blocks.shape.C - c;
      return {i / per_image, c, left < blocks.block ? left : blocks.block};
    }
  };
  Iterator begin() const { return {*this, first}; }
  Iterator end() const { return {*this, last}; }
};

// Allocates planes in scratch memory, one after the other.
template <class T>
struct Arena {
  T* next;
  int64_t size;  // elements of a plane
  T* take(int64_t planes = 1) {
    T* taken = next;
    next += planes * size;
    return taken;
  }
};

inline bool same(const View& a, const View& b) {
  return a.data == b.data && a.n == b.n && a.c == b.c && a.h == b.h && a.w == b.w;
}

}  // namespace
}  // namespace globalcnn
