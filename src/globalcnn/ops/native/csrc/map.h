// A tensor (N, C, H, W) as the kernels see it.
#pragma once
#include <cstdint>

namespace globalcnn {

enum class Dtype : int { f32, bf16, f64 };

// by address and strides in elements; null for an absent one
struct View {
  void* data;
  int64_t n, c, h, w;
};

struct Shape {
  int64_t N, C, H, W;
  Dtype dtype;
};

}  // namespace globalcnn
