#define WITH_DOUBLE
#define VECTOR_BYTES 16
#define ISA_NAME "plain"
#define ISA_TABLE kernels_plain
#include "kernel_table.h"
