// Compiled with the instruction set switched on (build.py); empty where the compiler does not know it.
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define ISA_NAME "avx512"
#define ISA_TABLE kernels_avx512
#include "kernel_table.h"
#else
#include "kernels.h"
namespace globalcnn {
const Kernels* kernels_avx512() { return nullptr; }
}  // namespace globalcnn
#endif
