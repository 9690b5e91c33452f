// The function table of one instruction set, included by kernels_*.cpp, which define VECTOR_BYTES, ISA_NAME,
// ISA_TABLE and, where the kernels also compute in double, WITH_DOUBLE.
#pragma once
#include "evolve.h"
#include "evolve_backward.h"
#include "evolve_sweeps.h"
#include "kernels.h"
#include "layer.h"
#include "layer_sweeps.h"
#include "solve.h"
#include "solve_backward.h"
#include "solve_sweeps.h"

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
template <class T, class>
using EvolveSweepsAny = EvolveSweeps<T>;
template <class T, class>
using EvolveBackwardSweepsAny = EvolveBackwardSweeps<T>;

// An operator by the scheme's kernels.
template <template <class, class> class DuFortFrankel, template <class, class> class Sweeps>
struct ByScheme {
  template <class T, class Stored>
  struct Operator {
    template <class Args>
    static int64_t scratch(const Args& a, int64_t block) {
      return a.pde.scheme == Scheme::gated_sweeps ? Sweeps<T, Stored>::scratch(a, block)
                                                  : DuFortFrankel<T, Stored>::scratch(a, block);
    }
    template <class Args>
    static void run(const Args& a, int64_t block, int64_t begin, int64_t end, T* planes) {
      if (a.pde.scheme == Scheme::gated_sweeps)
        Sweeps<T, Stored>::run(a, block, begin, end, planes);
      else
        DuFortFrankel<T, Stored>::run(a, block, begin, end, planes);
    }
  };
};

int64_t lanes(Dtype dtype) { return dtype == Dtype::f64 ? LANES<double> : LANES<float>; }

const Kernels table = {
    ISA_NAME,
    lanes,
    scratch_of<ByScheme<Solve, SolveSweeps>::Operator, SolveArgs>,
    run<ByScheme<Solve, SolveSweeps>::Operator, SolveArgs>,
    scratch_of<ByScheme<SolveBackward, SolveBackwardSweeps>::Operator, SolveBackwardArgs>,
    run<ByScheme<SolveBackward, SolveBackwardSweeps>::Operator, SolveBackwardArgs>,
    scratch_of<ByScheme<Layer, LayerSweeps>::Operator, LayerArgs>,
    run<ByScheme<Layer, LayerSweeps>::Operator, LayerArgs>,
    scratch_of<Copy, CopyArgs>,
    run<Copy, CopyArgs>,
    scratch_of<ByScheme<EvolveAny, EvolveSweepsAny>::Operator, EvolveArgs>,
    run<ByScheme<EvolveAny, EvolveSweepsAny>::Operator, EvolveArgs>,
    scratch_of<ByScheme<EvolveBackwardAny, EvolveBackwardSweepsAny>::Operator, EvolveArgs>,
    run<ByScheme<EvolveBackwardAny, EvolveBackwardSweepsAny>::Operator, EvolveArgs>,
};

}  // namespace

const Kernels* ISA_TABLE() { return &table; }

}  // namespace globalcnn
