// The checks of the operators' arguments: exported graphs reach the operators without the Python package.
// What is allowed stands in ops/spec.py, from which calls.h calls these.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <cstring>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

namespace globalcnn {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The checks of one call; C, G and k are the sizes that the tensors share.
class Checks {
 public:
  Checks(const char* operator_name, const char* first_name, const Tensor& first)
      : operator_(operator_name), first_name_(first_name), first_(first) {
    map(first_name, first);
    C_ = first.size(1);
  }

  void map(const char* name, const Tensor& t) const {
    on_cpu(name, t);
    if (t.dim() != 4 || t.size(2) < 1 || t.size(3) < 1)
      refuse(name, shape_of(t), "of shape (N, C, H, W) with H, W >= 1");
    for (int64_t i = 0; i < 4; ++i)
      if (t.size(i) != first_.size(i))
        refuse(name, shape_of(t), std::string("of ") + first_name_ + "'s shape, " + sizes_of(first_));
    const ScalarType dtype = t.scalar_type();
    if (dtype != ScalarType::Float && dtype != ScalarType::BFloat16 && dtype != ScalarType::Double)
      refuse(name, "of another dtype", "float32, bfloat16 or float64 for the native kernels");
    if (dtype != first_.scalar_type())
      refuse(name, "of another dtype", std::string("of ") + first_name_ + "'s dtype");
  }

  void map(const char* name, const std::optional<Tensor>& t) const {
    if (t) map(name, *t);
  }

  // sizes: a letter for each dimension, of C, G and k
  void parameter(const char* name, const Tensor& t, const char* sizes, int64_t max_kernel) {
    on_cpu(name, t);
    if (t.dim() != static_cast<int64_t>(std::strlen(sizes))) refuse(name, shape_of(t), pattern(sizes));
    for (int64_t i = 0; i < t.dim(); ++i) {
      int64_t& known = sizes[i] == 'C' ? C_ : sizes[i] == 'G' ? G_ : k_;
      if (known < 0) known = t.size(i);
      if (known != t.size(i)) refuse(name, shape_of(t), pattern(sizes));
    }
    if (G_ >= 0 && G_ != 2 && G_ != 4) refuse(name, shape_of(t), pattern(sizes));
    if (std::strchr(sizes, 'k') && (k_ % 2 != 1 || k_ > max_kernel))
      refuse(name, shape_of(t), pattern(sizes) + ", where k is odd and <= " + std::to_string(max_kernel));
    const bool wide = first_.scalar_type() == ScalarType::Double;
    if (t.scalar_type() != (wide ? ScalarType::Double : ScalarType::Float))
      refuse(name, "of another dtype", wide ? "float64 for float64 maps" : "float32 for these maps");
  }

  void together(const char* one, const std::optional<Tensor>& a, const char* other,
                const std::optional<Tensor>& b) const {
    if (a.has_value() == b.has_value()) return;
    const char* there = a ? one : other;
    refuse(a ? other : one, "None",
           std::string("a tensor where ") + there + " is one, or " + there + " None too");
  }

  template <class T>
  void that(bool fits, const char* name, T value, const char* allowed) const {
    if (fits) return;
    std::ostringstream text;
    text << value;
    refuse(name, text.str(), allowed);
  }

 private:
  static std::string sizes_of(const Tensor& t) {
    std::string text = "(";
    for (int64_t i = 0; i < t.dim(); ++i) text += (i ? ", " : "") + std::to_string(t.size(i));
    return text + ")";
  }

  static std::string shape_of(const Tensor& t) { return "of shape " + sizes_of(t); }

  std::string pattern(const char* sizes) const {
    std::string text = "of shape (";
    for (const char* s = sizes; *s; ++s) text += (s == sizes ? "" : ", ") + std::string(1, *s);
    text += ") with C = " + std::to_string(C_);
    if (G_ == 2 || G_ == 4) return text + ", G = " + std::to_string(G_);
    return text + ", where G is 2 (u, v) or 4 (u, v, Dx, Dy)";
  }

  void on_cpu(const char* name, const Tensor& t) const {
    if (!t.defined()) refuse(name, "undefined", "a tensor");
    if (!t.is_cpu()) refuse(name, "on another device", "on the CPU as the other tensors are");
    if (t.numel() > 0 && !t.data_ptr()) refuse(name, "without memory", "a tensor whose storage is not freed");
  }

  [[noreturn]] void refuse(const char* name, const std::string& value, const std::string& allowed) const {
    throw std::runtime_error(std::string("globalcnn::") + operator_ + ": " + name + " is " + value +
                             "; it must be " + allowed);
  }

  const char* operator_;
  const char* first_name_;
  const Tensor& first_;
  int64_t C_ = -1, G_ = -1, k_ = -1;
};

}  // namespace
}  // namespace globalcnn
