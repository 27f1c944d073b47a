// Products of warpgroups from every kind of operand, and a ring of stages that one warpgroup fills for another.
#pragma once
#include <ptx/sm90.cuh>

#include "params.cuh"

struct F16 {
  static constexpr int bytes = 2;
  template <bool a_k_major, bool b_k_major, int n>
  __device__ static void multiply(float (&d)[n][4], unsigned long long a, unsigned long long b, bool add) {
    wgmma_k16_f16<a_k_major, b_k_major>(d, a, b, add);
  }
  template <bool b_k_major, int n>
  __device__ static void multiply(float (&d)[n][4], const unsigned (&a)[4], unsigned long long b, bool add) {
    wgmma_k16_f16<b_k_major>(d, a, b, add);
  }
};
struct Bf16 {
  static constexpr int bytes = 2;
  template <bool a_k_major, bool b_k_major, int n>
  __device__ static void multiply(float (&d)[n][4], unsigned long long a, unsigned long long b, bool add) {
    wgmma_k16_bf16<a_k_major, b_k_major>(d, a, b, add);
  }
  template <bool b_k_major, int n>
  __device__ static void multiply(float (&d)[n][4], const unsigned (&a)[4], unsigned long long b, bool add) {
    wgmma_k16_bf16<b_k_major>(d, a, b, add);
  }
};
struct Tf32 {
  static constexpr int bytes = 4;
  template <bool, bool, int n>
  __device__ static void multiply(float (&d)[n][4], unsigned long long a, unsigned long long b, bool add) {
    wgmma_k8_tf32(d, a, b, add);
  }
  template <bool, int n>
  __device__ static void multiply(float (&d)[n][4], const unsigned (&a)[4], unsigned long long b, bool add) {
    wgmma_k8_tf32(d, a, b, add);
  }
};

// Where sum e of d[j] is, in 64 rows of `columns`.
__device__ inline int place_of_sum(int columns, int j, int e) {
  const int thread = threadIdx.x % 128, lane = thread % 32;
  return (thread / 32 * 16 + lane / 4 + e / 2 * 8) * columns + j * 8 + lane % 4 * 2 + e % 2;
}

template <int n>
__device__ inline void store_sums(void* out, const float (&d)[n][4]) {
  for (int j = 0; j < n; j++)
    for (int e = 0; e < 4; e++) static_cast<float*>(out)[place_of_sum(8 * n, j, e)] = d[j][e];
}

// One operand of the test: `start` bytes into the image, and for every step of 32 bytes of k `step` further on, but
// `block` after `steps` of them.
struct Place {
  Index start, leading, stride, swizzle, base, step, steps, block;
};
struct Settings {
  Place a, b;
  Index bytes, steps, add;
};

__device__ inline Index at_step(const Place& place, int step) {
  return place.start + step % place.steps * place.step + step / place.steps * place.block;
}

__device__ inline unsigned long long operand_at(const unsigned char* memory, const Place& place, int step) {
  return wgmma_operand(memory + at_step(place, step), place.leading, place.stride, Swizzle(place.swizzle), place.base);
}

enum Source { REGISTERS, K_MAJOR, MN_MAJOR };

// `image` is what shared memory holds, byte by byte. From registers a is there row by row. The sums are added to
// their row less three times their column.
template <typename Format, int n, Source a_from, Source b_from>
__device__ void product(const void* image, const void* settings, const void*, void* out, const Params&) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const Settings& setting = *static_cast<const Settings*>(settings);
  for (int i = threadIdx.x; i < setting.bytes; i += 128) memory[i] = static_cast<const unsigned char*>(image)[i];
  fence_proxy_async();
  __syncthreads();

  float d[n][4];
  for (int j = 0; j < n; j++)
    for (int e = 0; e < 4; e++) {
      const int place = place_of_sum(8 * n, j, e);
      d[j][e] = place / (8 * n) - 3 * (place % (8 * n));
    }
  const int lane = threadIdx.x % 32;
  const auto* rows = reinterpret_cast<const unsigned*>(memory + setting.a.start);
  rows += (threadIdx.x / 32 * 16 + lane / 4) * 8 * setting.steps;
  unsigned fragments[4];
  wgmma_fence();
  for (int step = 0; step < setting.steps; step++) {
    const bool add = setting.add || step;
    const unsigned long long b = operand_at(memory, setting.b, step);
    if constexpr (a_from == REGISTERS) {
      for (int i = 0; i < 4; i++) fragments[i] = rows[i % 2 * 64 * setting.steps + step * 8 + lane % 4 + i / 2 * 4];
      wgmma_fence();
      Format::template multiply<b_from == K_MAJOR>(d, fragments, b, add);
      wgmma_commit();
      wgmma_wait<0>();
    } else {
      Format::template multiply<a_from == K_MAJOR, b_from == K_MAJOR>(d, operand_at(memory, setting.a, step), b, add);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  store_sums(out, d);
}

// What is wrong with the ring.
enum Mistake {
  NONE,
  FULL_NOT_AWAITED,
  EMPTY_NOT_AWAITED,
  FULL_OF_OTHER_PARITY,
  EMPTY_OF_OTHER_PARITY,
  EMPTIED_TOO_EARLY,
  NO_PROXY_FENCE,
  NOT_INITIALISED,
  INITIALISED_TWICE,
  NO_BARRIER_AFTER_INITIALISATION,
  TOO_MANY_EXPECTED,
  TOO_FEW_EXPECTED,
  BARRIER_OVERWRITTEN,
};

// The first warpgroup copies a, 64 rows of `slices` times 32 halves, and b, as many, slice by slice; the second one
// multiplies them.
template <int slices, int stages, Mistake mistake>
__device__ void ring(const void* a, const void* b, const void*, void* out, const Params&) {
  constexpr int operand = 64 * 64;  // bytes: 64 lines of 64
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ MBarrier full[stages], empty[stages];
  if (threadIdx.x == 0 && mistake != NOT_INITIALISED)
    for (int stage = 0; stage < stages; stage++) {
      mbarrier_init(&full[stage], mistake == TOO_MANY_EXPECTED ? 129 : mistake == TOO_FEW_EXPECTED ? 127 : 128);
      mbarrier_init(&empty[stage], 128);
      if (mistake == INITIALISED_TWICE) mbarrier_init(&full[stage], 128);
    }
  if (mistake != NO_BARRIER_AFTER_INITIALISATION) __syncthreads();

  const int thread = threadIdx.x % 128;
  if (threadIdx.x < 128) {
    for (int slice = 0; slice < slices; slice++) {
      const int stage = slice % stages, round = slice / stages;
      unsigned char* to = memory + stage * 2 * operand;
      if (mistake != EMPTY_NOT_AWAITED)
        while (!mbarrier_try_wait(&empty[stage], (round + (mistake != EMPTY_OF_OTHER_PARITY)) % 2)) {
        }
      if (mistake == BARRIER_OVERWRITTEN && slice == 1) full[stage] = 0;
      for (int i = thread; i < 512; i += 128) {
        const int row = i / 4 % 64, chunk = i % 4;
        const void* from = i < 256 ? a : b;
        cp_async<16>(to + i / 256 * operand + row * 64 + (chunk ^ row / 2 % 4) * 16,
                     static_cast<const unsigned char*>(from) + (row * slices + slice) * 64 + chunk * 16);
      }
      cp_async_mbarrier_arrive_noinc(&full[stage]);
    }
    return;
  }

  float d[8][4];
  wgmma_fence();
  for (int slice = 0; slice < slices; slice++) {
    const int stage = slice % stages, round = slice / stages;
    const unsigned char* from = memory + stage * 2 * operand;
    if (mistake != FULL_NOT_AWAITED)
      while (!mbarrier_try_wait(&full[stage], (round + (mistake == FULL_OF_OTHER_PARITY)) % 2)) {
      }
    if (mistake != NO_PROXY_FENCE) fence_proxy_async();
    for (int step = 0; step < 2; step++)
      wgmma_k16_f16<true, true>(d, wgmma_operand(from + 32 * step, 0, 512, SWIZZLE_64),
                                wgmma_operand(from + operand + 32 * step, 0, 512, SWIZZLE_64), slice || step);
    wgmma_commit();
    wgmma_wait<1>();
    if (mistake == EMPTIED_TOO_EARLY)
      mbarrier_arrive(&empty[stage]);
    else if (slice)
      mbarrier_arrive(&empty[(slice - 1) % stages]);
  }
  wgmma_wait<0>();
  store_sums(out, d);
}

// The copies' own threads wait for them. The fence is theirs, or comes after a barrier, or comes too early.
enum Fence { BEFORE_BARRIER, AFTER_BARRIER, BEFORE_WAIT, IN_ONE_WARP };
template <Fence fence>
__device__ void product_of_copies(const void* a, const void*, const void*, void* out, const Params&) {
  extern __shared__ __align__(1024) unsigned char memory[];
  for (int i = 16 * threadIdx.x; i < 8192; i += 16 * 128) cp_async<16>(memory + i, static_cast<const char*>(a) + i);
  if (fence == BEFORE_WAIT) fence_proxy_async();
  cp_async_wait_all();
  if (fence == BEFORE_BARRIER || (fence == IN_ONE_WARP && threadIdx.x < 32)) fence_proxy_async();
  __syncthreads();
  if (fence == AFTER_BARRIER) fence_proxy_async();
  float d[2][8][4];
  wgmma_fence();
  for (int step = 0; step < 2; step++)
    for (int i = 0; i < 2; i++) {
      wgmma_k16_f16<true, true>(d[i], wgmma_operand(memory + 32 * step, 0, 512, SWIZZLE_64),
                                wgmma_operand(memory + 4096 * i + 32 * step, 0, 512, SWIZZLE_64), step);
      wgmma_commit();
    }
  wgmma_wait<1>();
  store_sums(out, d[0]);
  wgmma_wait<0>();
  store_sums(static_cast<float*>(out) + 4096, d[1]);
}

// Copies that are waited for have arrived, whatever else they are to bring about, and those of a group that a barrier
// has seen arrive are waited for no longer.
template <int = 0>
__device__ void copies_of_two_kinds(const void* a, const void*, const void*, void* out, const Params&) {
  __shared__ MBarrier barriers[2];
  __shared__ __align__(16) float row[3][32][4];
  if (threadIdx.x == 0)
    for (int i = 0; i < 2; i++) mbarrier_init(&barriers[i], 32);
  __syncthreads();
  const int lane = threadIdx.x;
  for (int i = 0; i < 3; i++) {
    cp_async<16>(row[i][lane], static_cast<const float*>(a) + (i * 32 + lane) * 4);
    if (i < 2) cp_async_mbarrier_arrive_noinc(&barriers[i]);
    if (i != 1) cp_async_commit();
  }
  cp_async_wait<1>();  // for the first copy
  float* to = static_cast<float*>(out);
  for (int i = 0; i < 4; i++) to[lane * 4 + i] = row[0][lane][i];
  mbarrier_try_wait(&barriers[1], 0);
  for (int i = 0; i < 4; i++) to[(32 + lane) * 4 + i] = row[1][lane ^ 1][i];
  cp_async_wait<0>();
  for (int i = 0; i < 4; i++) to[(64 + lane) * 4 + i] = row[2][lane][i];
  cp_async<16>(row[0][lane], a);  // nobody waits for this one
  cp_async_mbarrier_arrive_noinc(&barriers[0]);
}

// The first warpgroup's threads give away registers, and those of the others take some.
template <int fewer, int more>
__device__ void registers(const void* a, const void*, const void*, void* out, const Params&) {
  if (threadIdx.x < 128)
    setmaxnreg_dec<fewer>();
  else
    setmaxnreg_inc<more>();
  static_cast<float*>(out)[threadIdx.x] = static_cast<const float*>(a)[threadIdx.x];
}

// A thread reads what others have written that it meets at one of four barriers and then at one of two. At the end of
// a round each half of the block waits until the other one has arrived, and has read what there was.
template <int rounds>
__device__ void named_barriers(const void* a, const void*, const void*, void* out, const Params&) {
  __shared__ float row[256];
  const int warp = threadIdx.x / 32, half = warp / 4;
  for (int round = 0; round < rounds; round++) {
    const int i = round * 256 + threadIdx.x;
    row[threadIdx.x] = static_cast<const float*>(a)[i];
    barrier_sync(1 + warp % 4, 64);
    const float other = row[threadIdx.x ^ 128];
    barrier_sync(5 + half, 128);
    static_cast<float*>(out)[i] = other + row[threadIdx.x ^ 64];
    barrier_sync(5 + half, 128);
    barrier_arrive(7 + half, 256);
    barrier_sync(8 - half, 256);
  }
}
