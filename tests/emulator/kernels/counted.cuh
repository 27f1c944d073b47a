// Kernels whose requests, sectors, wavefronts and instructions are known by hand, for the cost model's tests.
#pragma once
#include <ptx/sm80.cuh>

#include "params.cuh"

__device__ inline int thread() { return blockIdx.x * blockDim.x + threadIdx.x; }

// out[i] = a[STEP i]: a warp reads the 32 elements of STEP times as many sectors, or one each.
template <typename T, int STEP>
__device__ void strided_copy(const void* a, const void*, const void*, void* out, const Params&) {
  static_cast<T*>(out)[thread()] = static_cast<const T*>(a)[STEP * thread()];
}

// Lane l reads word WAYS l of shared memory: WAYS lanes meet in a bank.
template <int WAYS>
__device__ void conflict(const void* a, const void*, const void*, void* out, const Params&) {
  __shared__ float words[32 * WAYS];
  words[threadIdx.x] = static_cast<const float*>(a)[threadIdx.x];
  __syncthreads();
  static_cast<float*>(out)[threadIdx.x] = words[threadIdx.x * WAYS];
}

// Every lane reads 16 bytes of shared memory: that of lane / SAME, so that SAME neighbours read the same.
template <int SAME>
__device__ void wide_reads(const void* a, const void*, const void*, void* out, const Params&) {
  __shared__ float4 vectors[32];
  vectors[threadIdx.x] = static_cast<const float4*>(a)[threadIdx.x];
  __syncthreads();
  static_cast<float4*>(out)[threadIdx.x] = vectors[threadIdx.x / SAME];
}

// A pass of the loop loads one element and multiplies COUNT times; p.items passes.
template <int COUNT>
__device__ void multiplications(const void* a, const void*, const void*, void* out, const Params& p) {
  float sum[COUNT] = {};
#pragma unroll 1
  for (Index i = 0; i < p.items; ++i) {
    const float x = static_cast<const float*>(a)[i * 32 + threadIdx.x];
#pragma unroll
    for (int j = 0; j < COUNT; ++j) sum[j] = sum[j] * x + x;
  }
  float total = 0;
#pragma unroll
  for (int j = 0; j < COUNT; ++j) total += sum[j];
  static_cast<float*>(out)[thread()] = total;
}

// Two loops, the inner one with nothing but products: p.items passes of p.chunk passes.
template <int = 0>
__device__ void products_inside(const void* a, const void*, const void*, void* out, const Params& p) {
  float sum = 0;
#pragma unroll 1
  for (Index i = 0; i < p.items; ++i) {
    const float x = static_cast<const float*>(a)[i * 32 + threadIdx.x];
#pragma unroll 1
    for (Index j = 0; j < p.chunk; ++j) sum = sum * x + x;
  }
  static_cast<float*>(out)[thread()] = sum;
}

// Two loops, the outer one with nothing to load: p.items passes of p.chunk passes.
template <int = 0>
__device__ void nested(const void* a, const void*, const void*, void* out, const Params& p) {
  float sum = 0;
#pragma unroll 1
  for (Index i = 0; i < p.items; ++i) {
    const float factor = float(i) * sum;
#pragma unroll 1
    for (Index j = 0; j < p.chunk; ++j) sum = sum * factor + static_cast<const float*>(a)[j * 32 + threadIdx.x];
  }
  static_cast<float*>(out)[thread()] = sum;
}

// A load that a branch jumps over, for some passes in some lanes.
template <int = 0>
__device__ void guarded(const void* a, const void*, const void*, void* out, const Params& p) {
  float sum = 1;
#pragma unroll 1
  for (Index i = 0; i < p.items; ++i) {
    if (((i ^ threadIdx.x) & 4) != 0) {
      const float x = static_cast<const float*>(a)[i * 32 + threadIdx.x];
#pragma unroll
      for (int j = 0; j < 200; ++j) sum = sum * x + x;
    }
  }
  static_cast<float*>(out)[thread()] = sum;
}

// The same by load_if: PASSES loads of a V each, the last of which no lane wants.
template <typename V, int PASSES>
__device__ void predicated(const void* a, const void*, const void*, void* out, const Params& p) {
  V loaded[PASSES];
#pragma unroll
  for (int i = 0; i < PASSES; ++i)
    loaded[i] = load_if(static_cast<const V*>(a) + i * 32 + threadIdx.x, i < p.items);
#pragma unroll
  for (int i = 0; i < PASSES; ++i) static_cast<V*>(out)[i * 32 + threadIdx.x] = loaded[i];
}

// STAGES asynchronous copies of BYTES by every lane are under way at once.
template <int BYTES, int STAGES>
__device__ void copies(const void* a, const void*, const void*, void* out, const Params& p) {
  __shared__ __align__(16) unsigned char stages[STAGES][32 * BYTES];
  const auto* source = static_cast<const unsigned char*>(a);
  for (Index i = 0; i < p.items; ++i) {
    cp_async<BYTES>(&stages[i % STAGES][BYTES * threadIdx.x], source + (i * 32 + threadIdx.x) * BYTES);
    cp_async_commit();
    cp_async_wait<STAGES - 1>();
  }
  cp_async_wait<0>();
  static_cast<float*>(out)[threadIdx.x] = *reinterpret_cast<const float*>(&stages[0][BYTES * threadIdx.x]);
}

// Four tiles by ldmatrix, from rows that are PITCH bytes apart.
template <int PITCH>
__device__ void load_matrix(const void* a, const void*, const void*, void* out, const Params&) {
  __shared__ __align__(16) unsigned char rows[32][PITCH];
  rows[threadIdx.x][0] = static_cast<const unsigned char*>(a)[threadIdx.x];
  __syncthreads();
  unsigned tile[4];
  ldmatrix(tile, rows[threadIdx.x]);
  static_cast<unsigned*>(out)[threadIdx.x] = tile[0] ^ tile[1] ^ tile[2] ^ tile[3];
}
