// One tile's matrix product by every instruction for it, its operands loaded in every way there is.
//
// a is m by k, b is n by k, out is m by n (float, or double for f64), all row-major.
#pragma once
#include <ptx/sm80.cuh>

#include "params.cuh"

struct F16 {
  __device__ static void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    mma_m16n8k16_f16(d, a, b);
  }
};
struct Bf16 {
  __device__ static void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    mma_m16n8k16_bf16(d, a, b);
  }
};

__device__ inline void store_tile(float* out, const float (&d)[4]) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; i++) out[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = d[i];
}

// 16-bit operands in two stages of 8 columns of k, each an asynchronous copy into padded rows. b is loaded as
// it is, or transposed in shared memory first and then loaded by ldmatrix.trans.
template <typename Format, bool transposed>
__device__ void product_16bit(const void* a, const void* b, const void*, void* out, const Params&) {
  __shared__ __align__(16) unsigned short left[16][24], right[8][24], right_rows[16][8];
  const int lane = threadIdx.x;
  for (int half = 0; half < 2; half++) {
    const int start = 16 * lane + 8 * half;
    if (lane < 16) cp_async<16>(&left[lane][8 * half], static_cast<const unsigned short*>(a) + start);
    if (lane < 8) cp_async<16>(&right[lane][8 * half], static_cast<const unsigned short*>(b) + start);
    cp_async_commit();
  }
  cp_async_wait<0>();
  __syncthreads();
  for (int i = lane; i < 128; i += 32) right_rows[i / 8][i % 8] = right[i % 8][i / 8];
  __syncthreads();

  unsigned fragment_a[4], fragment_b[2];
  ldmatrix(fragment_a, &left[lane % 16][8 * (lane / 16)]);
  if constexpr (transposed)
    ldmatrix_trans(fragment_b, right_rows[lane % 16]);
  else
    ldmatrix(fragment_b, &right[lane % 8][8 * (lane / 8 % 2)]);
  float d[4] = {};
  Format::mma(d, fragment_a, fragment_b);
  store_tile(static_cast<float*>(out), d);
}

// The same from fragments that are put together element by element, by the formulas of the PTX ISA.
template <typename Format>
__device__ void product_by_formula(const void* a, const void* b, const void*, void* out, const Params&) {
  const auto* left = static_cast<const unsigned short*>(a);
  const auto* right = static_cast<const unsigned short*>(b);
  const int group = threadIdx.x >> 2, thread = threadIdx.x % 4;
  unsigned fragment_a[4] = {}, fragment_b[2] = {};
  for (int i = 0; i < 8; i++) {
    const int row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
    const int column = thread * 2 + (i & 1) + (i < 4 ? 0 : 8);
    fragment_a[i / 2] |= unsigned(left[row * 16 + column]) << 16 * (i % 2);
  }
  for (int i = 0; i < 4; i++) {
    const int row = thread * 2 + (i & 1) + (i < 2 ? 0 : 8);
    fragment_b[i / 2] |= unsigned(right[group * 16 + row]) << 16 * (i % 2);
  }
  float d[4] = {};
  Format::mma(d, fragment_a, fragment_b);
  store_tile(static_cast<float*>(out), d);
}

template <int = 0>
__device__ void product_tf32(const void* a, const void* b, const void*, void* out, const Params&) {
  const auto* left = static_cast<const float*>(a);
  const auto* right = static_cast<const float*>(b);
  const int group = threadIdx.x >> 2, thread = threadIdx.x % 4;
  unsigned fragment_a[4], fragment_b[2];
  for (int i = 0; i < 4; i++) {
    const int row = i == 0 || i == 2 ? group : group + 8, column = i < 2 ? thread : thread + 4;
    fragment_a[i] = float_to_tf32(left[row * 8 + column]);
  }
  for (int i = 0; i < 2; i++) fragment_b[i] = float_to_tf32(right[group * 8 + thread + 4 * i]);
  float d[4] = {};
  mma_m16n8k8_tf32(d, fragment_a, fragment_b);
  store_tile(static_cast<float*>(out), d);
}

// A sum over `steps` instructions, in the instruction's accumulator or, staged, each from zero and added in float.
template <int steps, bool staged>
__device__ void long_sum_tf32(const void* a, const void* b, const void*, void* out, const Params&) {
  const int group = threadIdx.x >> 2, thread = threadIdx.x % 4;
  const auto* left = static_cast<const float*>(a) + group * 8 * steps + thread;
  const auto* right = static_cast<const float*>(b) + group * 8 * steps + thread;
  float d[4] = {};
  for (int step = 0; step < steps; step++) {
    unsigned fragment_a[4], fragment_b[2];
    for (int i = 0; i < 4; i++) fragment_a[i] = float_to_tf32(left[(i % 2 * 8 * steps + step) * 8 + i / 2 * 4]);
    for (int i = 0; i < 2; i++) fragment_b[i] = float_to_tf32(right[step * 8 + i * 4]);
    if constexpr (staged) {
      float part[4] = {};
      mma_m16n8k8_tf32(part, fragment_a, fragment_b);
      for (int i = 0; i < 4; i++) d[i] += part[i];
    } else {
      mma_m16n8k8_tf32(d, fragment_a, fragment_b);
    }
  }
  store_tile(static_cast<float*>(out), d);
}

template <int = 0>
__device__ void product_f64(const void* a, const void* b, const void*, void* out, const Params&) {
  const int group = threadIdx.x >> 2, thread = threadIdx.x % 4;
  double d[2] = {};
  mma_m8n8k4_f64(d, static_cast<const double*>(a)[group * 4 + thread],
                 static_cast<const double*>(b)[group * 4 + thread]);
  for (int i = 0; i < 2; i++) static_cast<double*>(out)[group * 8 + 2 * thread + i] = d[i];
}

template <int = 0>
__device__ void product_f64_k16(const void* a, const void* b, const void*, void* out, const Params&) {
  const auto* left = static_cast<const double*>(a);
  const auto* right = static_cast<const double*>(b);
  const int group = threadIdx.x >> 2, thread = threadIdx.x % 4;
  double fragment_a[8], fragment_b[4], d[4] = {};
  for (int i = 0; i < 8; i++) {
    const int row = i % 2 == 0 ? group : group + 8;
    const int column = i % 2 == 0 ? i * 2 + thread : i * 2 - 2 + thread;
    fragment_a[i] = left[row * 16 + column];
  }
  for (int i = 0; i < 4; i++) fragment_b[i] = right[group * 16 + thread + i * 4];
  for (int repeat = 0; repeat < 2; repeat++) mma_m16n8k16_f64(d, fragment_a, fragment_b);
  for (int i = 0; i < 4; i++) {
    const int row = i < 2 ? group : group + 8, column = thread * 2 + (i & 1);
    static_cast<double*>(out)[row * 8 + column] = d[i];
  }
}

// Tile `threadIdx.x / 8` of the input goes through ldmatrix of `count` tiles and out as it is held.
template <int count, bool transposed>
__device__ void load_tiles(const void* a, const void*, const void*, void* out, const Params&) {
  __shared__ __align__(16) unsigned short tiles[32][8];
  const int lane = threadIdx.x;
  for (int i = 0; i < 8; i++) tiles[lane][i] = static_cast<const unsigned short*>(a)[8 * lane + i];
  __syncwarp();
  unsigned fragment[count];
  if constexpr (transposed)
    ldmatrix_trans(fragment, tiles[lane]);
  else
    ldmatrix(fragment, tiles[lane]);
  for (int i = 0; i < count; i++) static_cast<unsigned*>(out)[32 * i + lane] = fragment[i];
}

// A pipeline of three stages over `steps` vectors of floats, the last of which has `tail` valid bytes.
template <int bytes, int steps, int tail>
__device__ void pipeline(const void* a, const void*, const void*, void* out, const Params&) {
  constexpr int width = bytes / 4;
  __shared__ __align__(16) float stage[3][32][width];
  const int lane = threadIdx.x;
  auto load = [&](int step) {
    const float* from = static_cast<const float*>(a) + (step * 32 + lane) * width;
    if (step < steps) cp_async<bytes>(stage[step % 3][lane], from, step == steps - 1 ? tail : bytes);
    cp_async_commit();
  };
  load(0);
  load(1);
  for (int step = 0; step < steps; step++) {
    cp_async_wait<1>();
    __syncthreads();
    load(step + 2);
    for (int i = 0; i < width; i++)
      static_cast<float*>(out)[(step * 32 + lane) * width + i] = stage[step % 3][31 - lane][i];
  }
}
