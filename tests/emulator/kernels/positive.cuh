// Kernels that do what they should, each with one feature of the emulator.
#pragma once
#include <ptx/sm80.cuh>

#include "numerics.cuh"

// ---- shared memory and barriers: every block turns its part of the input around ----

template <int n>
__device__ void static_shared(const void* a, const void*, const void*, void* out, const Params&) {
  __shared__ float reversed[2][n];
  const int i = threadIdx.x;
  reversed[1][n - 1 - i] = static_cast<const float*>(a)[blockIdx.x * n + i];
  __syncthreads();
  static_cast<float*>(out)[blockIdx.x * n + i] = reversed[1][i];
}

template <typename T>
__device__ void dynamic_shared(const void* a, const void*, const void*, void* out, const Params&) {
  extern __shared__ __align__(128) unsigned char memory[];
  T* reversed = reinterpret_cast<T*>(memory);
  const int n = blockDim.x, i = threadIdx.x;
  reversed[n - 1 - i] = static_cast<const T*>(a)[blockIdx.x * n + i];
  __syncthreads();
  static_cast<T*>(out)[blockIdx.x * n + i] = reversed[i];
}

// One warp writes and goes on; the other waits for it.
template <int = 0>
__device__ void named_barrier(const void* a, const void*, const void*, void* out, const Params&) {
  __shared__ float reversed[32];
  const int lane = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    reversed[31 - lane] = static_cast<const float*>(a)[lane];
    barrier_arrive(1, 64);
  } else {
    barrier_sync(1, 64);
    static_cast<float*>(out)[lane] = reversed[lane];
  }
}

template <int rounds>
__device__ void many_barriers(const void* a, const void*, const void*, void* out, const Params&) {
  for (int i = 0; i < rounds; i++) __syncthreads();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  static_cast<float*>(out)[i] = static_cast<const float*>(a)[i];
}

// ---- loads that a predicate guards ----

// Every third lane wants nothing, and points far outside of all memory.
template <typename V>
__device__ void load_some(const void* a, const void*, const void*, void* out, const Params&) {
  const int i = threadIdx.x;
  const V* from = static_cast<const V*>(a) + (i % 3 == 0 ? size_t(1) << 40 : i);
  static_cast<V*>(out)[i] = load_if(from, i % 3 != 0);
}

// ---- warps ----

template <typename T, int which, int width>
__device__ void shuffle(const void* a, const void*, const void*, void* out, const Params&) {
  T value = static_cast<const T*>(a)[threadIdx.x];
  if constexpr (which == 0) value = __shfl_sync(~0u, value, 3, width);
  if constexpr (which == 1) value = __shfl_xor_sync(~0u, value, 5, width);
  if constexpr (which == 2) value = __shfl_up_sync(~0u, value, 3, width);
  if constexpr (which == 3) value = __shfl_down_sync(~0u, value, 3, width);
  static_cast<T*>(out)[threadIdx.x] = value;
}

// The two halves of a warp sum apart, and the odd one more often.
template <int = 0>
__device__ void half_warps(const void* a, const void*, const void*, void* out, const Params&) {
  float value = static_cast<const float*>(a)[threadIdx.x];
  const int lane = threadIdx.x % 32;
  if (lane < 16) {
    for (int i = 1; i < 16; i *= 2) value += __shfl_xor_sync(0x0000ffff, value, i);
  } else {
    for (int i = 1; i < 8; i *= 2) value += __shfl_xor_sync(0xffff0000, value, i);
  }
  __syncwarp();
  static_cast<float*>(out)[threadIdx.x] = value;
}

template <int = 0>
__device__ void votes(const void* a, const void*, const void*, void* out, const Params&) {
  const int value = static_cast<const int*>(a)[threadIdx.x];
  int* result = static_cast<int*>(out) + 4 * threadIdx.x;
  result[0] = __ballot_sync(~0u, value > 0);
  result[1] = __any_sync(~0u, value > 5);
  result[2] = __all_sync(~0u, value > -5);
  result[3] = __activemask() >> threadIdx.x % 32 & 1;
}

// ---- arithmetic ----

template <int = 0>
__device__ void integers(const void* a, const void*, const void*, void* out, const Params&) {
  const unsigned value = static_cast<const unsigned*>(a)[threadIdx.x];
  unsigned* result = static_cast<unsigned*>(out) + 4 * threadIdx.x;
  result[0] = __umulhi(value, 0x9e3779b9u);
  result[1] = __popc(value);
  result[2] = __ffs(value);
  result[3] = __clz(value);
}

template <int = 0>
__device__ void from_half(const void* a, const void*, const void*, void* out, const Params&) {
  const long long i = blockIdx.x * blockDim.x + threadIdx.x;
  static_cast<float*>(out)[i] = half_to_float(static_cast<const unsigned short*>(a)[i]);
}

template <int = 0>
__device__ void to_half(const void* a, const void*, const void*, void* out, const Params&) {
  const long long i = blockIdx.x * blockDim.x + threadIdx.x;
  static_cast<unsigned short*>(out)[i] = float_to_half(static_cast<const float*>(a)[i]);
}

template <int = 0>
__device__ void to_bfloat(const void* a, const void*, const void*, void* out, const Params&) {
  const long long i = blockIdx.x * blockDim.x + threadIdx.x;
  static_cast<bfloat16*>(out)[i] = Narrow<bfloat16>::from(static_cast<const float*>(a)[i]);
}

// ---- what a launch is told ----

template <int = 0>
__device__ void strided(const void* a, const void*, const void* bias, void* out, const Params& params) {
  const Index i = threadIdx.x;
  const float value = static_cast<const float*>(a)[i * params.a[0]];
  float& result = static_cast<float*>(out)[params.out_start + i * params.out[0]];
  const float before = params.accumulate ? result : 0.f;
  result = before + value * params.batch + (bias ? static_cast<const float*>(bias)[0] : 0.f);
}

template <typename T>
__device__ void copy(const void* a, const void*, const void*, void* out, const Params&) {
  const Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x;
  static_cast<T*>(out)[i] = static_cast<const T*>(a)[i];
}
