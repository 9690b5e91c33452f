// The operator `evolve`: the evolution of a Global layer in training, from h to H, with the batch norms of
// its coefficients. A thread goes twice over its channels in all images: statistics, then everything else.
#pragma once
#include "norms.h"
#include "scheme.h"

namespace globalcnn {
namespace {

template <class T>
struct Evolve {
  static constexpr int64_t PLANES = 4 + 4 + 5 + 2;  // mask, h, f, out; fields; coefficients; levels

  static int64_t scratch(const EvolveArgs& a, int64_t block) {
    return PLANES * training_plane<T>(a, block).size * int64_t(sizeof(T));
  }

  template <int G, bool relu>
  static void run_block(const BatchChannels<T>& channels, Arena<T> arena) {
    const EvolveArgs& a = channels.a;
    const Plane<T>& g = channels.g;
    const SchemeConstants<T> s(a.pde);
    T *mask = arena.take(), *h = arena.take(), *f = arena.take(), *out = arena.take();
    T *u = arena.take(), *v = arena.take(), *Dx = arena.take(), *Dy = arena.take();
    T *stream = arena.take(5), *levels = arena.take(2);
    make_mask(mask, g);
    channels.template compute_statistics<G>(h, mask);
    NormedConvolutions<T> k;
    channels.load_folded(k);
    const bool f_is_h = !a.f.data, product = a.shared_product;
    const Act act = a.act;
    for (int64_t n = 0; n < a.shape.N; ++n) {
      channels.read(h, a.h, n);
      if (!f_is_h) channels.read(f, a.f, n);
      const Prefetch prefetch = channels.prefetch(channels.address(a.h, n + 1), channels.address(a.out, n));
      convolve<G>(g, a.kernel, h, k.weight, k.bias, prefetch, [=](int64_t p, const Vec<T>* x) {
        store_pair<T, relu>(x[0], x[1], u + p, v + p, act, product);
        if constexpr (G == 4) store_pair<T, relu>(x[2], x[3], Dx + p, Dy + p, act, product);
      });
      fill_halo_rows(u, g, a.pde.boundary, true);
      fill_halo_columns(v, g, a.pde.boundary, true);
      fill_halo(h, g, a.pde.boundary);
      const T* f_plane = f_is_h ? h : f;
      const T* h_old = a.start_from_h ? h : f_plane;
      const Fields<T> d{u, v, Dx, Dy, f_plane};
      auto run = [&](auto with_f) {
        run_steps<T, G == 4, decltype(with_f)::value, false>(g, a.pde, s, d, stream, h, h_old, levels, out,
                                                             StoreLevel<T>{});
      };
      a.source ? run(True{}) : run(False{});
      clear_halo(h, g, a.pde.boundary);
      channels.write(a.out, out, n);
    }
  }

  static void run(const EvolveArgs& a, int64_t block, int64_t begin, int64_t end, T* scratch) {
    const Plane<T> g = training_plane<T>(a, block);
    std::memset(scratch, 0, PLANES * g.size * sizeof(T));
    each_block(a, g, begin, end, [&](const BatchChannels<T>& channels) {
      dispatch_fields(a, [&](auto G, auto relu) {
        run_block<decltype(G)::value, decltype(relu)::value>(channels, Arena<T>{scratch, g.size});
      });
    });
  }
};

}  // namespace
}  // namespace globalcnn
