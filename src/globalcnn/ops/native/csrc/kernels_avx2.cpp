// Compiled with the instruction set switched on (build.py); empty where the compiler does not know it.
#if defined(__AVX2__) && defined(__FMA__)
#define VECTOR_BYTES 32
#define ISA_NAME "avx2"
#define ISA_TABLE kernels_avx2
#include "kernel_table.h"
#else
#include "kernels.h"
namespace globalcnn {
const Kernels* kernels_avx2() { return nullptr; }
}  // namespace globalcnn
#endif
