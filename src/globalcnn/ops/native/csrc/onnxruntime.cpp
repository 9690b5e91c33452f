// A whole Global layer as an operator of ONNX Runtime, `globalcnn::GlobalLayer`.
//
// ONNX Runtime's packages come without its C header. What is needed of it is declared here: a table of
// functions by their places, which its rules never change (new functions are added at the end), and the
// struct of an operator, as both are since version 1.17.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <new>
#include <string>
#include <thread>

#include "numbers.h"
#include "running.h"

namespace globalcnn {
namespace {

constexpr uint32_t API_VERSION = 17;  // of ONNX Runtime 1.17

struct Status;
using Handle = void*;  // what ONNX Runtime owns

struct Api {
  const void* const functions[276];

  template <class Function>
  Function at(int place) const {
    return reinterpret_cast<Function>(const_cast<void*>(functions[place]));
  }
  Status* failed(const char* why) const { return at<Status* (*)(int, const char*)>(0)(2, why); }
  Status* domain(const char* name, Handle* made) const {
    return at<Status* (*)(const char*, Handle*)>(26)(name, made);
  }
  Status* add_operator(Handle domain, const void* op) const {
    return at<Status* (*)(Handle, const void*)>(27)(domain, op);
  }
  Status* add_domain(Handle options, Handle domain) const {
    return at<Status* (*)(Handle, Handle)>(28)(options, domain);
  }
  Status* data(Handle value, void** address) const {
    return at<Status* (*)(Handle, void**)>(51)(value, address);
  }
  Status* rank(Handle shape, size_t* count) const {
    return at<Status* (*)(Handle, size_t*)>(61)(shape, count);
  }
  Status* sizes(Handle shape, int64_t* each, size_t count) const {
    return at<Status* (*)(Handle, int64_t*, size_t)>(62)(shape, each, count);
  }
  Status* shape(Handle value, Handle* made) const {
    return at<Status* (*)(Handle, Handle*)>(65)(value, made);
  }
  Status* input(Handle context, size_t i, Handle* value) const {
    return at<Status* (*)(Handle, size_t, Handle*)>(90)(context, i, value);
  }
  Status* output(Handle context, size_t i, const int64_t* sizes, size_t count, Handle* value) const {
    return at<Status* (*)(Handle, size_t, const int64_t*, size_t, Handle*)>(91)(context, i, sizes, count,
                                                                                value);
  }
  void free_shape(Handle shape) const { at<void (*)(Handle)>(99)(shape); }
  // calls work(with, 0) to work(with, count - 1) on the session's threads
  Status* in_parallel(Handle context, void (*work)(void*, size_t), size_t count, void* with) const {
    return at<Status* (*)(Handle, void (*)(void*, size_t), size_t, size_t, void*)>(274)(context, work, count,
                                                                                        0, with);
  }
};

struct ApiBase {
  const Api* (*get)(uint32_t version);
  const char* (*version)();
};

constexpr int FLOAT = 1, DOUBLE = 11;  // types of elements
constexpr size_t INPUTS = 7;           // h, f, weight, bias, scale, shift, numbers

// An operator as ONNX Runtime is told of it.
struct Operator {
  uint32_t version;
  void* (*create)(const Operator*, const Api*, Handle);
  const char* (*name)(const Operator*);
  const char* (*provider)(const Operator*);
  int (*input_type)(const Operator*, size_t);
  size_t (*inputs)(const Operator*);
  int (*output_type)(const Operator*, size_t);
  size_t (*outputs)(const Operator*);
  void (*compute)(void*, Handle);
  void (*destroy)(void*);
  int (*input_characteristic)(const Operator*, size_t);
  int (*output_characteristic)(const Operator*, size_t);
  int (*input_memory)(const Operator*, size_t);
  int (*variadic_input_least)(const Operator*);
  int (*variadic_input_alike)(const Operator*);
  int (*variadic_output_least)(const Operator*);
  int (*variadic_output_alike)(const Operator*);
  Status* (*create_or_fail)(const Operator*, const Api*, Handle, void**);
  Status* (*compute_or_fail)(void*, Handle);
  Status* (*infer_shape)(const Operator*, Handle);
  int (*first_version)(const Operator*);
  int (*last_version)(const Operator*);
};

#define TRY(call)                               \
  do {                                          \
    if (Status* status = (call)) return status; \
  } while (false)

struct Input {
  void* data = nullptr;
  size_t rank = 0;
  int64_t size[4] = {1, 1, 1, 1};

  Status* read(const Api& api, Handle context, size_t i) {
    Handle value = nullptr, shape = nullptr;
    TRY(api.input(context, i, &value));
    TRY(api.data(value, &data));
    TRY(api.shape(value, &shape));
    Status* status = api.rank(shape, &rank);
    if (!status && rank <= 4) status = api.sizes(shape, size, rank);
    api.free_shape(shape);
    return status;
  }
  bool is(size_t wanted, const int64_t (&sizes)[4]) const {
    bool same = rank == wanted;
    for (size_t d = 0; d < wanted; ++d) same = same && size[d] == sizes[d];
    return same;
  }
};

View planes(void* data, const Shape& s) { return {data, s.C * s.H * s.W, s.H * s.W, s.W, 1}; }

// What one thread does, share after share.
struct Work {
  const Kernels& kernels;
  const LayerArgs& args;
  int64_t block, units, share, bytes;
  std::atomic<bool> failed;

  static void run(void* with, size_t i) {
    Work& w = *static_cast<Work*>(with);
    const int64_t begin = int64_t(i) * w.share, end = std::min(w.units, begin + w.share);
    try {
      w.kernels.layer(w.args, w.block, begin, end, scratch(w.bytes));
    } catch (const std::bad_alloc&) {  // it must not leave a thread of the session
      w.failed = true;
    }
  }
};

Status* run_layer(const Api& api, Handle context) {
  Input in[INPUTS];
  for (size_t i = 0; i < INPUTS; ++i) TRY(in[i].read(api, context, i));
  const Input &h = in[0], &f = in[1], &weight = in[2];
  if (h.rank != 4 || !f.is(4, h.size))
    return api.failed("GlobalLayer: h and f must be of one shape (N, C, H, W)");
  const int64_t C = h.size[1], G = weight.size[0], k = weight.size[2];
  const bool fit = weight.is(4, {G, C, k, k}) && (G == 2 || G == 4) && k % 2 == 1 && k <= MAX_LAYER_KERNEL &&
                   in[3].is(2, {G, C}) && in[4].is(1, {C}) && in[5].is(1, {C}) &&
                   in[6].is(1, {LAYER_NUMBERS});
  if (!fit) return api.failed("GlobalLayer: the shapes of its parameters do not fit");

  LayerArgs a{};
  if (const char* wrong = read(a, static_cast<const double*>(in[6].data))) return api.failed(wrong);
  a.shape = {h.size[0], C, h.size[2], h.size[3], Dtype::f32};
  Handle made = nullptr;
  void* out = nullptr;
  TRY(api.output(context, 0, h.size, 4, &made));
  TRY(api.data(made, &out));
  const Shape& s = a.shape;
  if (s.N * s.C * s.H * s.W == 0) return nullptr;
  a.h = planes(h.data, s), a.f = planes(f.data, s), a.out = planes(out, s);
  a.weight = weight.data, a.bias = in[3].data, a.scale = in[4].data, a.shift = in[5].data;
  a.fields = G, a.kernel = k;

  static const int64_t processors = std::max<int64_t>(1, std::thread::hardware_concurrency());
  const Kernels& best = kernels(s);
  const int64_t block = block_of(s, a.pde), units = s.N * blocks_of(C, block);
  // every share reads the weights anew: no more shares than keep all processors busy
  const int64_t share = std::max(grain_of(s, block, layer_cost(a.pde)), units / (4 * processors));
  Work work{best, a, block, units, share, best.layer_scratch(a, block), {false}};
  const int64_t shares = (units + share - 1) / share;
  if (shares > 1)
    TRY(api.in_parallel(context, &Work::run, size_t(shares), &work));
  else
    Work::run(&work, 0);
  return work.failed ? api.failed("GlobalLayer: no memory is left") : nullptr;
}

const Operator& global_layer() {
  static const Operator op = [] {
    Operator o{};
    o.version = API_VERSION;
    o.name = [](const Operator*) { return "GlobalLayer"; };
    o.provider = [](const Operator*) -> const char* { return nullptr; };  // the CPU's
    o.input_type = [](const Operator*, size_t i) { return i + 1 == INPUTS ? DOUBLE : FLOAT; };
    o.inputs = [](const Operator*) { return INPUTS; };
    o.output_type = [](const Operator*, size_t) { return FLOAT; };
    o.outputs = [](const Operator*) -> size_t { return 1; };
    o.destroy = [](void*) {};
    o.input_characteristic = o.output_characteristic = [](const Operator*, size_t) { return 0; };
    o.input_memory = [](const Operator*, size_t) { return 0; };
    o.variadic_input_least = o.variadic_output_least = [](const Operator*) { return 1; };
    o.variadic_input_alike = o.variadic_output_alike = [](const Operator*) { return 1; };
    o.create_or_fail = [](const Operator*, const Api* api, Handle, void** kernel) -> Status* {
      *kernel = const_cast<Api*>(api);  // it holds nothing else
      return nullptr;
    };
    o.compute_or_fail = [](void* kernel, Handle context) -> Status* {
      const Api& api = *static_cast<const Api*>(kernel);
      try {
        return run_layer(api, context);
      } catch (const std::exception& error) {  // no memory
        return api.failed(error.what());
      }
    };
    o.first_version = [](const Operator*) { return 1; };
    o.last_version = [](const Operator*) { return INT32_MAX; };
    return o;
  }();
  return op;
}

}  // namespace
}  // namespace globalcnn

// What ONNX Runtime calls when a session's options name this library.
extern "C" __attribute__((visibility("default"))) void* RegisterCustomOps(void* options,
                                                                          const globalcnn::ApiBase* base) {
  using namespace globalcnn;
  const Api* api = base->get(API_VERSION);
  if (!api) return base->get(1)->failed("globalcnn's operator needs ONNX Runtime 1.17 or newer");
  // a domain serves as long as there are sessions: one for the life of the process
  static Handle domain = nullptr;
  static std::mutex making;
  const std::lock_guard<std::mutex> alone(making);
  if (!domain) {
    Handle made = nullptr;
    TRY(api->domain("globalcnn", &made));
    TRY(api->add_operator(made, &global_layer()));
    domain = made;
  }
  return api->add_domain(options, domain);
}
