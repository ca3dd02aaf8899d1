// Placeholder until the Hopper kernels stand: says that there are none.
#include "cuda/attention.h"

namespace q4::gpu {
bool sm90_flash_attention(const AttentionCall&, int, cudaStream_t, bool) { return false; }
bool sm90_flash_attention_backward(const AttentionBackwardCall&, int, cudaStream_t, bool) { return false; }
}  // namespace q4::gpu
