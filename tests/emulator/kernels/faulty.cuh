// Kernels with one mistake each, for the emulator to find.
#pragma once
#include <ptx/sm80.cuh>

#include "params.cuh"

// ---- memory ----

// Thread 0 goes `offset` elements from the start of an array.
template <int offset>
__device__ void read_outside(const void* a, const void*, const void*, void* out, const Params&) {
  const float* from = static_cast<const float*>(a);
  static_cast<float*>(out)[threadIdx.x] = from[threadIdx.x ? Index(threadIdx.x) : Index(offset)];
}

template <int offset>
__device__ void write_outside(const void* a, const void*, const void*, void* out, const Params&) {
  static_cast<float*>(out)[threadIdx.x] = static_cast<const float*>(a)[threadIdx.x];
  if (threadIdx.x == 0) static_cast<float*>(out)[Index(offset)] = 1.f;
}

template <int = 0>
__device__ void write_input(const void* a, const void*, const void*, void* out, const Params&) {
  static_cast<float*>(out)[threadIdx.x] = static_cast<const float*>(a)[threadIdx.x];
  static_cast<float*>(const_cast<void*>(a))[threadIdx.x] = 0.f;
}

template <int = 0>
__device__ void read_null(const void* a, const void* b, const void*, void* out, const Params&) {
  static_cast<float*>(out)[threadIdx.x] = static_cast<const float*>(a)[0] + static_cast<const float*>(b)[0];
}

template <int = 0>
__device__ void write_some(const void* a, const void*, const void*, void* out, const Params&) {
  if (threadIdx.x != 5) static_cast<float*>(out)[threadIdx.x] = static_cast<const float*>(a)[threadIdx.x];
}

template <int = 0>
__device__ void static_shared_outside(const void* a, const void*, const void*, void* out, const Params&) {
  __shared__ float rows[2][32];
  const int i = threadIdx.x + (threadIdx.x == 31);
  rows[0][i] = static_cast<const float*>(a)[threadIdx.x];
  __syncthreads();
  static_cast<float*>(out)[threadIdx.x] = rows[0][threadIdx.x];
}

template <int offset>
__device__ void dynamic_shared_outside(const void* a, const void*, const void*, void* out, const Params&) {
  extern __shared__ float row[];
  row[threadIdx.x] = static_cast<const float*>(a)[threadIdx.x];
  __syncthreads();
  static_cast<float*>(out)[threadIdx.x] = row[threadIdx.x ? int(threadIdx.x) : offset];
}

template <int = 0>
__device__ void dynamic_shared_slack(const void* a, const void*, const void*, void* out, const Params&) {
  extern __shared__ __align__(128) float row[];
  row[threadIdx.x] = static_cast<const float*>(a)[threadIdx.x];
  __syncthreads();
  static_cast<float*>(out)[threadIdx.x] = row[threadIdx.x];
}

template <int = 0>
__device__ void unwritten_shared(const void* a, const void*, const void*, void* out, const Params&) {
  __shared__ float row[64];
  row[threadIdx.x] = static_cast<const float*>(a)[threadIdx.x];
  __syncthreads();
  static_cast<float*>(out)[threadIdx.x] = row[threadIdx.x == 7 ? 40 : int(threadIdx.x)];
}

template <int = 0>
__device__ void misaligned(const void* a, const void*, const void*, void* out, const Params&) {
  const float4* from = reinterpret_cast<const float4*>(static_cast<const float*>(a) + 1);
  static_cast<float*>(out)[threadIdx.x] = from->x;
}

template <int = 0>
__device__ void shared_misaligned(const void* a, const void*, const void*, void* out, const Params&) {
  __shared__ float row[32];
  row[threadIdx.x] = static_cast<const float*>(a)[threadIdx.x];
  __syncthreads();
  static_cast<float*>(out)[threadIdx.x] = reinterpret_cast<const float4*>(row)[threadIdx.x / 4].x;
}

// A write outside of a local array that the compiler cannot see, past the checks of its bounds.
__device__ __noinline__ void write_at(float* array, int i, float value) { array[i] = value; }

template <int = 0>
__device__ void local_outside(const void* a, const void*, const void*, void* out, const Params&) {
  float local[8] = {};
  write_at(local, 8 + int(threadIdx.x), static_cast<const float*>(a)[0]);
  static_cast<float*>(out)[threadIdx.x] = local[0];
}

// A pointer that goes past all addresses, and is used only back where it began.
template <int = 0>
__device__ void pointer_around(const void* a, const void*, const void*, void* out, const Params&) {
  const float* from = static_cast<const float*>(a);
  const volatile Index quarter = Index(1) << 60;
  for (int i = 0; i < 4; ++i) from += quarter;
  static_cast<float*>(out)[threadIdx.x] = from[threadIdx.x];
}

template <int = 0>
__device__ void shared_outside_unseen(const void* a, const void*, const void*, void* out, const Params&) {
  __shared__ float first[32], second[32];
  write_at(first, threadIdx.x + 8, static_cast<const float*>(a)[threadIdx.x]);
  second[threadIdx.x] = 0.f;
  __syncthreads();
  static_cast<float*>(out)[threadIdx.x] = first[threadIdx.x] + second[threadIdx.x];
}

template <int = 0>
__device__ void stack_overflow(const void* a, const void*, const void*, void* out, const Params&) {
  float local[100000];
  write_at(local, threadIdx.x, static_cast<const float*>(a)[threadIdx.x]);
  static_cast<float*>(out)[threadIdx.x] = local[threadIdx.x];
}

// ---- arithmetic ----

template <int = 0>
__device__ void overflow(const void* a, const void*, const void*, void* out, const Params&) {
  static_cast<int*>(out)[threadIdx.x] = static_cast<const int*>(a)[threadIdx.x] + 0x7fffffff;
}

template <int = 0>
__device__ void divide_by_zero(const void* a, const void*, const void*, void* out, const Params&) {
  static_cast<int*>(out)[threadIdx.x] = 1 / static_cast<const int*>(a)[threadIdx.x];
}

template <int = 0>
__device__ void trap(const void*, const void*, const void*, void*, const Params&) {
  if (threadIdx.x == 3) __trap();
}

// ---- barriers ----

template <int = 0>
__device__ void missing_barrier(const void* a, const void*, const void*, void* out, const Params&) {
  __shared__ float row[64];
  row[threadIdx.x] = static_cast<const float*>(a)[threadIdx.x];
  static_cast<float*>(out)[threadIdx.x] = row[threadIdx.x ^ 32];
}

// Missing at the end of the loop: a thread may write while another still reads.
template <int = 0>
__device__ void missing_second_barrier(const void* a, const void*, const void*, void* out, const Params&) {
  __shared__ float row[64];
  for (int i = 0; i < 2; i++) {
    row[threadIdx.x] = static_cast<const float*>(a)[64 * i + threadIdx.x];
    __syncthreads();
    static_cast<float*>(out)[64 * i + threadIdx.x] = row[threadIdx.x ^ 32];
  }
}

template <int = 0>
__device__ void divergent_barriers(const void* a, const void*, const void*, void* out, const Params&) {
  static_cast<float*>(out)[threadIdx.x] = static_cast<const float*>(a)[threadIdx.x];
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

template <int = 0>
__device__ void barrier_after_exit(const void* a, const void*, const void*, void* out, const Params&) {
  static_cast<float*>(out)[threadIdx.x] = static_cast<const float*>(a)[threadIdx.x];
  if (threadIdx.x < 32) return;
  __syncthreads();
}

template <int = 0>
__device__ void named_barrier_counts(const void* a, const void*, const void*, void* out, const Params&) {
  static_cast<float*>(out)[threadIdx.x] = static_cast<const float*>(a)[threadIdx.x];
  barrier_sync(1, threadIdx.x < 32 ? 64 : 32);
}

// ---- warps ----

template <int = 0>
__device__ void shuffle_lanes_missing(const void* a, const void*, const void*, void* out, const Params&) {
  float value = static_cast<const float*>(a)[threadIdx.x];
  if (threadIdx.x % 32 < 16) value += __shfl_xor_sync(~0u, value, 1);
  static_cast<float*>(out)[threadIdx.x] = value;
}

template <int = 0>
__device__ void shuffle_from_outside(const void* a, const void*, const void*, void* out, const Params&) {
  float value = static_cast<const float*>(a)[threadIdx.x];
  if (threadIdx.x % 32 < 16) value += __shfl_xor_sync(0xffff, value, 16);
  static_cast<float*>(out)[threadIdx.x] = value;
}

template <int = 0>
__device__ void missing_syncwarp(const void* a, const void*, const void*, void* out, const Params&) {
  __shared__ float row[64];
  row[threadIdx.x] = static_cast<const float*>(a)[threadIdx.x];
  static_cast<float*>(out)[threadIdx.x] = row[threadIdx.x ^ 1];
}

// ---- asynchronous copies ----

template <int wait>
__device__ void copy_not_awaited(const void* a, const void*, const void*, void* out, const Params&) {
  __shared__ __align__(16) float row[32][4];
  cp_async<16>(row[threadIdx.x], static_cast<const float*>(a) + 4 * threadIdx.x);
  if (wait) cp_async_commit();
  if (wait) cp_async_wait<1>();
  for (int i = 0; i < 4; i++) static_cast<float*>(out)[4 * threadIdx.x + i] = row[threadIdx.x][i];
  cp_async_wait_all();
}

template <int = 0>
__device__ void copy_without_barrier(const void* a, const void*, const void*, void* out, const Params&) {
  __shared__ __align__(16) float row[32][4];
  cp_async<16>(row[threadIdx.x], static_cast<const float*>(a) + 4 * threadIdx.x);
  cp_async_wait_all();
  for (int i = 0; i < 4; i++) static_cast<float*>(out)[4 * threadIdx.x + i] = row[threadIdx.x ^ 1][i];
}

template <int = 0>
__device__ void copy_misaligned(const void* a, const void*, const void*, void* out, const Params&) {
  __shared__ __align__(16) float row[32][4];
  cp_async<16>(row[threadIdx.x], static_cast<const float*>(a) + 4 * threadIdx.x + 1);
  cp_async_wait_all();
  for (int i = 0; i < 4; i++) static_cast<float*>(out)[4 * threadIdx.x + i] = row[threadIdx.x][i];
}
