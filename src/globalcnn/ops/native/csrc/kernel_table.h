// The function table of one instruction set, included by kernels_*.cpp, which define VECTOR_BYTES, ISA_NAME,
// ISA_TABLE and, where the kernels also compute in double, WITH_DOUBLE.
#pragma once
#include "evolve.h"
#include "evolve_backward.h"
#include "kernels.h"
#include "layer.h"
#include "solve.h"
#include "solve_backward.h"

namespace globalcnn {
namespace {

// double is for checks, not for speed: only the plain kernels compute it
template <template <class, class> class Operator, class Args>
int64_t scratch_of(const Args& a, int64_t block) {
#ifdef WITH_DOUBLE
  if (a.shape.dtype == Dtype::f64) return Operator<double, double>::scratch(a, block);
#endif
  return Operator<float, float>::scratch(a, block);
}

template <template <class, class> class Operator, class Args>
void run(const Args& a, int64_t block, int64_t begin, int64_t end, char* scratch) {
#ifdef WITH_DOUBLE
  if (a.shape.dtype == Dtype::f64)
    return Operator<double, double>::run(a, block, begin, end, reinterpret_cast<double*>(scratch));
#endif
  float* planes = reinterpret_cast<float*>(scratch);
  if (a.shape.dtype == Dtype::bf16) return Operator<float, uint16_t>::run(a, block, begin, end, planes);
  Operator<float, float>::run(a, block, begin, end, planes);
}

// these tell storage types apart themselves
template <class T, class>
using EvolveAny = Evolve<T>;
template <class T, class>
using EvolveBackwardAny = EvolveBackward<T>;

int64_t lanes(Dtype dtype) { return dtype == Dtype::f64 ? LANES<double> : LANES<float>; }

const Kernels table = {
    ISA_NAME,
    lanes,
    scratch_of<Solve, SolveArgs>,
    run<Solve, SolveArgs>,
    scratch_of<SolveBackward, SolveBackwardArgs>,
    run<SolveBackward, SolveBackwardArgs>,
    scratch_of<Layer, LayerArgs>,
    run<Layer, LayerArgs>,
    scratch_of<Copy, CopyArgs>,
    run<Copy, CopyArgs>,
    scratch_of<EvolveAny, EvolveArgs>,
    run<EvolveAny, EvolveArgs>,
    scratch_of<EvolveBackwardAny, EvolveArgs>,
    run<EvolveBackwardAny, EvolveArgs>,
};

}  // namespace

const Kernels* ISA_TABLE() { return &table; }

}  // namespace globalcnn
