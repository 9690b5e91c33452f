// The loops of the native kernels alone, on planes that stay in the caches; compiled by native_step.py, which gives
// the macros and the instruction set. Prints one line of JSON for every size of a map.
#include "../src/globalcnn/ops/native/csrc/kernel_table.h"

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <initializer_list>

using namespace globalcnn;

namespace {

constexpr int64_t L = LANES<float>;

double seconds() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

// Least nanoseconds of a run, over rounds of some hundred microseconds.
template <class Run>
double least(const Run& run) {
  double start = seconds();
  int64_t calls = 0;
  while (seconds() - start < 3e-4 || !calls) run(), ++calls;
  double best = 1e9;
  for (int round = 0; round < 200; ++round) {
    start = seconds();
    for (int64_t i = 0; i < calls; ++i) run();
    const double spent = (seconds() - start) / double(calls);
    if (spent < best) best = spent;
  }
  return 1e9 * best;
}

// Reads and writes what a step after the first does, and computes next to nothing.
__attribute__((noinline)) void memory_of_a_step(const Plane<float> g, const float* f, const float* kept, const float* h,
                                                const float* h_old, float* out) {
  typedef IntVec<float> I;
  auto bits = [](const float* p) { return I(load_to_register(p)); };
  RowReader<float, YNeighbours::in_registers> row(h, g);
  g.each([&](int64_t p) __attribute__((always_inline)) {
    row.advance(p);
    const float* k = kept + p * COEFFICIENTS<true>;
    I x = bits(k) ^ bits(k + L) ^ bits(k + 2 * L) ^ bits(k + 3 * L) ^ bits(k + 4 * L);
    x ^= bits(h + p - g.X) ^ bits(h + p + g.X) ^ I(row.minus(p)) ^ I(row.here) ^ I(row.plus(p));
    x ^= bits(h_old + p) ^ bits(f + p);
    store(out + p, Vec<float>(x & 0x3fffffff));
  }, [&](int64_t p) { row.begin_run(p); });
}

// The only step of K = 1 two rows at a time, which share the loads of h and u between them. H must be even.
__attribute__((noinline)) void two_rows(const Plane<float> g, const SchemeConstants<float> n, const Fields<float> d, const float* h,
                                        float* out) {
  typedef Vec<float> F;
  const int64_t X = g.X;
  for (int64_t run = g.begin; run < g.begin + g.runs * g.stride; run += 2 * g.stride) {
    F before[2] = {load(h + run - L), load(h + run + X - L)}, here[2] = {load(h + run), load(h + run + X)};
    for (int64_t p = run; p < run + g.length; p += L) {
      const F after[2] = {load(h + p + L), load(h + p + X + L)}, above = load(h + p - X), below = load(h + p + 2 * X);
      const F u[4] = {load(d.u + p - X), load_to_register(d.u + p), load_to_register(d.u + p + X), load(d.u + p + 2 * X)};
      auto row = [&](int i, F xm, F xp) __attribute__((always_inline)) {
        const int64_t q = p + i * X;
        const F two_E = (u[i] - u[i + 2]) + (load(d.v + q - L) - load(d.v + q + L));
        const F Bx = load_to_register(d.Dx + q), By = load_to_register(d.Dy + q), both = Bx + By;
        F H = (1.0f - both + n.two_dt - two_E) * here[i];
        H += Bx * (xm + xp) + u[i + 1] * (xp - xm);
        H += By * (before[i] + after[i]) + load(d.v + q) * (after[i] - before[i]);
        store(out + q, divide<float>(H, 1.0f + both));
      };
      row(0, above, here[1]);
      row(1, here[0], below);
      for (int i = 0; i < 2; ++i) before[i] = here[i], here[i] = after[i];
    }
  }
}

}  // namespace

int main() {
  for (const int64_t side : {4, 8, 16, 32, 56}) {
    const Shape shape{1, L, side, side, Dtype::f32};
    Pde pde{};
    pde.steps = 5, pde.dt = 0.2, pde.dx = pde.dy = 1;
    const Plane<float> g(shape, pde, 1, L);
    const SchemeConstants<float> n(pde);
    constexpr int64_t PLANES = 14;
    float* planes = static_cast<float*>(std::aligned_alloc(4096, (PLANES * g.size * 4 + 8191) / 4096 * 4096));
    for (int64_t i = 0; i < PLANES * g.size; ++i) planes[i] = 0.01f * float(i % 97);
    auto plane = [&](int64_t i) { return planes + i * g.size; };
    float *h = plane(4), *kept = plane(5), *level = plane(10), *other = plane(11), *to = plane(12);
    const Fields<float> d{plane(0), plane(1), plane(2), plane(3), h};
    LayerArgs args{};
    args.shape = shape, args.pde = pde, args.kernel = 3, args.fields = 4, args.act = Act::relu;
    float* weights = static_cast<float*>(std::aligned_alloc(64, 40 * L * sizeof(float)));
    for (int64_t i = 0; i < 40 * L; ++i) weights[i] = 0.01f * float(i % 13);
    float* fields[4] = {plane(0), plane(1), plane(2), plane(3)};
    typedef Layer<float, float> Whole;
    const StoreLevel<float> keep;
    const double vectors = double(side * side);
    const double convolution =
        least([&] { Whole::compute_fields<true>(g, args, h, h, weights, Prefetch{nullptr, nullptr, 0}, fields); });
    const double only = least([&] {
      single_step<float, true, true, YNeighbours::in_registers, true, true>(g, n, d, h, h, to, StoreLevel<float>{});
    });
    const double first = least([&] {
      one_of_several_steps<float, true, true, YNeighbours::in_registers, true, true>(g, n, d, kept, h, h, level, keep);
    });
    const double again = least([&] {
      one_of_several_steps<float, true, true, YNeighbours::in_registers, false, false>(g, n, d, kept, level, other,
                                                                                    other, keep);
    });
    const double memory = least([&] { memory_of_a_step(g, h, kept, level, other, other); });
    const double halo = least([&] { fill_halo(level, g, Boundary::periodic); });
    const double in_pairs = least([&] { two_rows(g, n, d, h, to); });
    // as it was before: six planes of coefficients, computed in a pass of their own
    const StepPlanes<float> apart{plane(5), plane(6), plane(7), plane(8), plane(9), plane(13)};
    const double preparing = least([&] { prepare_step<float, true, true>(g, n, d, apart); });
    const double from_planes = least(
        [&] { step_from_planes<float, true, true, YNeighbours::loaded>(g, n, apart, level, other, other); });
    std::printf(
        "{\"side\": %ld, \"bytes\": %ld, \"convolutions\": %.3f, \"only\": %.3f, \"first\": %.3f, \"again\": %.3f, "
        "\"memory\": %.3f, \"halo\": %.3f, \"two_rows\": %.3f, \"prepare\": %.3f, \"from_planes\": %.3f}\n",
        long(side), long(g.size * 4), convolution / vectors, only / vectors, first / vectors, again / vectors,
        memory / vectors, halo / vectors, in_pairs / vectors, preparing / vectors, from_planes / vectors);
    std::free(planes);
    std::free(weights);
  }
}
