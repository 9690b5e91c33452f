// From PyTorch's tensors to what the kernels see.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "map.h"

namespace globalcnn {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline View view(const Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

inline View view(const std::optional<Tensor>& t) { return t ? view(*t) : View{nullptr, 0, 0, 0, 0}; }

inline Shape shape(const Tensor& t) {
  const ScalarType type = t.scalar_type();
  const Dtype dtype = type == ScalarType::Double     ? Dtype::f64
                      : type == ScalarType::BFloat16 ? Dtype::bf16
                                                     : Dtype::f32;
  return {t.size(0), t.size(1), t.size(2), t.size(3), dtype};
}

// Parameters are read by address: `.to(memory_format=...)` may have changed their order.
inline Tensor packed(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

}  // namespace
}  // namespace globalcnn
