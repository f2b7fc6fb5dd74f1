// Block-sparse attention, forward and backward, fp32 and bf16 with fp32 sums. What it computes, and the fields of
// Problem, stand in cpu/block_attention.py.
#include "block_backward.hpp"
#include "block_forward.hpp"

using namespace surgery;

SURGERY_EXPORT void forward_float(const Problem* p) { forward<float, Single>(*p); }
SURGERY_EXPORT void backward_float(const Problem* p) { backward<float, Single>(*p); }

// bf16 widened to fp32: for processors without products of bf16 pairs.
SURGERY_EXPORT void forward_bf16_widened(const Problem* p) { forward<bf16, Single>(*p); }
SURGERY_EXPORT void backward_bf16_widened(const Problem* p) { backward<bf16, Single>(*p); }

#if defined(__AVX512BF16__)
SURGERY_EXPORT void forward_bf16(const Problem* p) { forward<bf16, Pair>(*p); }
SURGERY_EXPORT void backward_bf16(const Problem* p) { backward<bf16, Pair>(*p); }
#else
SURGERY_EXPORT void forward_bf16(const Problem* p) { forward_bf16_widened(p); }
SURGERY_EXPORT void backward_bf16(const Problem* p) { backward_bf16_widened(p); }
#endif
