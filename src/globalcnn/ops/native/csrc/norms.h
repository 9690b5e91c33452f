// Batch norms of the coefficients in training: weights and statistics of one block of channels over all
// images.
#pragma once
#include "convolution.h"
#include "layout.h"

namespace globalcnn {
namespace {

// One number for each channel of a block.
template <class T>
struct PerChannel {
  double of[LANES<T>] = {};
  // adds what was summed up over a plane
  void add(const Plane<T>& g, Vec<T> x) {
    if (g.one_channel())
      of[0] += double(sum_of_lanes<T>(x));
    else
      for (int64_t e = 0; e < g.block; ++e) of[e] += double(x[e]);
  }
  Vec<T> vector(const Plane<T>& g) const {
    Vec<T> x{};
    for (int64_t e = 0; e < LANES<T>; ++e) x[e] = T(of[g.one_channel() ? 0 : e]);
    return x;
  }
};

// Convolutions with weights and biases, in vectors, and the affine part of the norms.
template <class T>
struct NormedConvolutions {
  static constexpr int64_t L = LANES<T>;
  alignas(64) T weight[4 * MAX_KERNEL * MAX_KERNEL * L];
  alignas(64) T bias[4 * L];
  Vec<T> gamma[4], beta[4];
};

// The channels [c, c + count) of all images: what one thread works on, since a norm needs its channel over
// the whole batch before any element can go on, and the channels do not meet.
template <class T>
struct BatchChannels {
  static constexpr int64_t L = LANES<T>;
  const EvolveArgs& a;
  const Plane<T>& g;
  int64_t c, count;

  // How many times `read` and `write` take to go through the batch: for each image, or each block of images.
  int64_t passes() const { return g.images ? (a.shape.N + L - 1) / L : a.shape.N; }
  // The images of pass n.
  int64_t images(int64_t n) const { return !g.images ? 1 : (n + 1) * L <= a.shape.N ? L : a.shape.N - n * L; }

  // The storage type is told apart here, plane by plane: compiling the operators for each would double the
  // time.
  void read(T* plane, const View& from, int64_t n) const {
    const Lanes to = lanes(from, n);
    if (g.images && to.count < L) std::memset(plane, 0, g.size * sizeof(T));
    if (a.shape.dtype == Dtype::bf16)
      read_planes<T, uint16_t>(plane, g, to.view, to.n, to.c, to.count);
    else
      read_planes<T, T>(plane, g, to.view, to.n, to.c, to.count);
  }
  void write(const View& view, const T* plane, int64_t n) const {
    const Lanes to = lanes(view, n);
    if (a.shape.dtype == Dtype::bf16)
      write_planes<T, uint16_t>(to.view, g, plane, to.n, to.c, to.count);
    else
      write_planes<T, T>(to.view, g, plane, to.n, to.c, to.count);
  }

  // The view of a tensor in which lanes are channels: with images for lanes the two are exchanged.
  struct Lanes {
    View view;
    int64_t n, c, count;
  };
  Lanes lanes(const View& v, int64_t n) const {
    if (!g.images) return {v, n, c, count};
    return {View{v.data, v.c, v.n, v.h, v.w}, c, n * L, images(n)};
  }

  // Where the plane of image n lies, to be prefetched; null if it does not lie in order.
  const void* address(const View& v, int64_t n) const {
    const bool pixels_in_order = v.w == 1 || v.c == 1;
    if (!v.data || g.images || n >= a.shape.N || !pixels_in_order || v.h != a.shape.W * v.w) return nullptr;
    return static_cast<const char*>(v.data) + (n * v.n + c * v.c) * element_size();
  }
  int64_t element_size() const { return a.shape.dtype == Dtype::bf16 ? 2 : int64_t(sizeof(T)); }
  Prefetch prefetch(const void* first, const void* second) const {
    return {first, second, (g.block > 1 && a.h.c == 1 ? a.h.w : L) * element_size()};
  }

  // Calls `body(index in the tensor, lane)` for these channels of a (G, C) tensor; a single one goes to all
  // lanes.
  template <class Body>
  void each_lane(int64_t i, const Body& body) const {
    for (int64_t e = 0; e < L; ++e)
      if (g.one_channel() || e < count) body(i * a.shape.C + c + (g.one_channel() ? 0 : e), e);
  }
  Vec<T> vector_of(int64_t i, const void* from) const {
    Vec<T> x{};
    each_lane(i, [&](int64_t at, int64_t e) { x[e] = static_cast<const T*>(from)[at]; });
    return x;
  }
  void put(int64_t i, void* to, const PerChannel<T>& values) const {
    for (int64_t e = 0; e < count; ++e) static_cast<T*>(to)[i * a.shape.C + c + e] = T(values.of[e]);
  }

  // The convolutions' weights as they are, in vectors.
  void load_weights(T* to) const {
    const int64_t kk = a.kernel * a.kernel;
    for (int64_t i = 0; i < a.fields; ++i)
      for (int64_t t = 0; t < kk; ++t) {
        Vec<T> x{};
        each_lane(i, [&](int64_t at, int64_t e) { x[e] = static_cast<const T*>(a.weight)[at * kk + t]; });
        store(to + (i * kk + t) * L, x);
      }
  }

  // 1 / sqrt(var + eps)
  Vec<T> inverse_deviation(int64_t i) const {
    Vec<T> x = broadcast<T>(T(1));
    each_lane(i, [&](int64_t at, int64_t e) {
      x[e] = T(1 / std::sqrt(double(static_cast<const T*>(a.var)[at]) + a.eps));
    });
    return x;
  }

  // The convolutions normalised, (z - mean) / sqrt(var + eps), as weights and biases.
  void load_normalised(NormedConvolutions<T>& to) const {
    const int64_t kk = a.kernel * a.kernel;
    load_weights(to.weight);
    for (int64_t i = 0; i < a.fields; ++i) {
      const Vec<T> factor = inverse_deviation(i);
      for (int64_t t = 0; t < kk; ++t) scale(to.weight + (i * kk + t) * L, factor);
      store(to.bias + i * L, -vector_of(i, a.mean) * factor);
      to.gamma[i] = vector_of(i, a.gamma);
      to.beta[i] = vector_of(i, a.beta);
    }
  }
  // The same with gamma and beta folded in.
  void load_folded(NormedConvolutions<T>& to) const {
    const int64_t kk = a.kernel * a.kernel;
    load_normalised(to);
    for (int64_t i = 0; i < a.fields; ++i) {
      for (int64_t t = 0; t < kk; ++t) scale(to.weight + (i * kk + t) * L, to.gamma[i]);
      store(to.bias + i * L, load(to.bias + i * L) * to.gamma[i] + to.beta[i]);
    }
  }
  static void scale(T* x, Vec<T> factor) { store(x, load(x) * factor); }

  // Mean and biased variance of every convolution of h over the batch, into a.mean and a.var.
  template <int G>
  NOINLINE void compute_statistics(T* h, const T* mask) const {
    alignas(64) T weight[G * MAX_KERNEL * MAX_KERNEL * L], bias[G * L] = {};
    load_weights(weight);
    PerChannel<T> mean[G], squares[G];
    double before = 0, size = 0;
    for (int64_t n = 0; n < passes(); ++n, before += size) {
      size = double(images(n) * g.H * g.W);
      read(h, a.h, n);
      Vec<T> sum[G] = {}, square[G] = {};
      const bool halo_columns = g.block == 1;
      convolve<G>(g, a.kernel, h, weight, bias, prefetch(address(a.h, n + 1), nullptr),
                  [&](int64_t p, const Vec<T>* z) FORCE_INLINE {
                    Vec<T> x[G];
                    for (int i = 0; i < G; ++i) x[i] = z[i];
                    if (halo_columns) {
                      const Vec<T> inside = load(mask + p);
                      for (int i = 0; i < G; ++i) x[i] = masked<T>(x[i], inside);
                    }
                    for (int i = 0; i < G; ++i) {
                      sum[i] += x[i];
                      square[i] += x[i] * x[i];
                    }
                  });
      for (int i = 0; i < G; ++i) join(mean[i], squares[i], sum[i], square[i], before, size);
    }
    for (int i = 0; i < G; ++i) {
      for (int64_t e = 0; e < L; ++e) {
        double &x = squares[i].of[e], &m = mean[i].of[e];
        x = (x < 0 ? 0 : x) / before;
        if (x != x) m = x;  // the mean of infinities is not a number either, as in PyTorch
      }
      put(i, a.mean, mean[i]);
      put(i, a.var, squares[i]);
    }
  }
  // Joins a plane's sums, which are exact enough in T, with those of the planes before, in double: Chan's
  // formula.
  void join(PerChannel<T>& mean, PerChannel<T>& squares, Vec<T> sum, Vec<T> square, double before,
            double size) const {
    PerChannel<T> s, q;
    s.add(g, sum), q.add(g, square);
    for (int64_t e = 0; e < count; ++e) {
      const double of_plane = s.of[e] / size, difference = of_plane - mean.of[e], all = before + size;
      squares.of[e] += q.of[e] - s.of[e] * of_plane + difference * difference * before * size / all;
      mean.of[e] += difference * size / all;
    }
  }
};

// All bits set at the pixels, none in the halo columns.
template <class T>
void make_mask(T* mask, const Plane<T>& g) {
  for (int64_t i = 0; i < g.H; ++i) std::memset(mask + g.at(i, 0), 0xFF, g.line() * sizeof(T));
}

template <class T>
Plane<T> training_plane(const EvolveArgs& a, int64_t block) {
  return Plane<T>(a.shape, a.pde, a.kernel / 2, block);
}

// Calls `body` with the channels of each unit [begin, end).
template <class T, class Body>
void each_block(const EvolveArgs& a, const Plane<T>& g, int64_t begin, int64_t end, const Body& body) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t block = g.one_channel() ? 1 : g.block, c = unit * block, left = a.shape.C - c;
    body(BatchChannels<T>{a, g, c, left < block ? left : block});
  }
}

// Calls `body` with the number of fields, and whether the activation is ReLU, as compile-time constants.
template <class Body>
void dispatch_fields(const EvolveArgs& a, const Body& body) {
  dispatch(a.fields == 4, a.act == Act::relu && !a.shared_product,
           [&](auto four, auto relu) { body(Int<decltype(four)::value ? 4 : 2>{}, relu); });
}

}  // namespace
}  // namespace globalcnn
