// The operator `solve`: the PDE solve, block by block of channels.
#pragma once
#include "solve_inputs.h"

namespace globalcnn {
namespace {

template <class T, class Stored>
struct Solve {
  using Inputs = SolveInputs<T, Stored, SolveArgs>;
  static constexpr int64_t PLANES = Inputs::PLANES + 1 + 5 + 2;  // output, coefficients, two levels

  static int64_t scratch(const SolveArgs& a, int64_t block) {
    return PLANES * Plane<T>(a.shape, a.pde, 0, block).size * int64_t(sizeof(T));
  }

  static void run(const SolveArgs& a, int64_t block, int64_t begin, int64_t end, T* scratch) {
    const Plane<T> g(a.shape, a.pde, 0, block);
    const SchemeConstants<T> s(a.pde);
    Arena<T> arena{scratch, g.size};
    const Inputs in(a, arena);
    std::memset(scratch, 0, Inputs::PLANES * g.size * sizeof(T));
    T *out = arena.take(), *stream = arena.take(5), *levels = arena.take(2);
    for (const ChannelBlock b : ChannelBlocks{a.shape, block, begin, end}) {
      in.read(g, b);
      dispatch(in.learned, in.source, [&](auto with_D, auto with_f) {
        run_steps<T, decltype(with_D)::value, decltype(with_f)::value, false>(
            g, a.pde, s, in.fields(), stream, in.h, in.level_before(), levels, out, StoreLevel<T>{});
      });
      write_planes<T, Stored>(a.out, g, out, b.n, b.c, b.count);
    }
  }
};

}  // namespace
}  // namespace globalcnn
