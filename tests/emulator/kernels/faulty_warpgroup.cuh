// Products of a warpgroup with one mistake each, for the emulator to find; warpgroup.cuh has the ring's.
#pragma once
#include "warpgroup.cuh"

// Does something with two operands, 64 rows by 32 halves each, the lines of which have 64 bytes.
template <typename Use>
__device__ inline void with_operands(const void* a, const Use& use) {
  extern __shared__ __align__(1024) unsigned char memory[];
  for (int i = threadIdx.x; i < 8192; i += 128) memory[i] = static_cast<const unsigned char*>(a)[i];
  fence_proxy_async();
  __syncthreads();
  use(memory, wgmma_operand(memory, 0, 512, SWIZZLE_64), wgmma_operand(memory + 4096, 0, 512, SWIZZLE_64));
}

using Descriptor = unsigned long long;

// Of both halves of k, added one after the other to sums that begin as zeros.
enum Fault {
  RIGHT,
  NO_FENCE,
  READ_EARLY,
  TOO_FEW_GROUPS_AWAITED,
  NO_COMMIT,
  NO_WAIT,
  WRITTEN_UNDER_WAY,
  WRITTEN_BETWEEN_PRODUCTS,
  WRITTEN_AFTER_FENCE,
  OPERAND_WRITTEN_UNDER_WAY,
  OTHER_SUMS,
};
template <Fault fault>
__device__ void two_products(const void* a, const void*, const void*, void* out, const Params&) {
  with_operands(a, [&](unsigned char* memory, Descriptor left, Descriptor right) {
    float d[16][4] = {};
    float(&sums)[8][4] = *reinterpret_cast<float(*)[8][4]>(d);
    if (fault != NO_FENCE) wgmma_fence();
    wgmma_k16_f16<true, true>(sums, left, right, true);
    if (fault == WRITTEN_BETWEEN_PRODUCTS) {
      sums[3][1] = 1.f;
      wgmma_k16_f16<true, true>(sums, left, right, false);
    }
    if (fault == OTHER_SUMS) wgmma_k16_f16<true, true>(d, left, left, true);
    wgmma_commit();
    if (fault == TOO_FEW_GROUPS_AWAITED) {
      wgmma_wait<1>();
      sums[0][0] += 1.f;
    }
    if (fault == READ_EARLY) store_sums(out, sums);
    if (fault == WRITTEN_UNDER_WAY) sums[7][3] = 0.f;
    if (fault == OPERAND_WRITTEN_UNDER_WAY && threadIdx.x == 127) memory[4096 + 64 * 63 + 48] ^= 1;
    wgmma_wait<0>();
    if (fault == WRITTEN_AFTER_FENCE) sums[7][3] *= 2.f;
    wgmma_k16_f16<true, true>(sums, left + 2, right + 2, true);
    if (fault != NO_COMMIT) wgmma_commit();
    if (fault != NO_WAIT) wgmma_wait<0>();
    if (fault != READ_EARLY) store_sums(out, sums);
  });
}

template <bool under_way>
__device__ void fragments_written(const void* a, const void*, const void*, void* out, const Params&) {
  with_operands(a, [&](unsigned char*, Descriptor, Descriptor right) {
    float d[8][4];
    unsigned fragments[4] = {1, 2, 3, threadIdx.x};
    wgmma_fence();
    wgmma_k16_f16<true>(d, fragments, right, false);
    wgmma_commit();
    if (under_way) fragments[3]++;
    wgmma_wait<0>();
    fragments[3]++;
    wgmma_k16_f16<true>(d, fragments, right, true);
    wgmma_commit();
    wgmma_wait<0>();
    store_sums(out, d);
  });
}

// What one warp, or one lane, does differently from the others of its warpgroup.
enum Difference {
  OTHER_OPERAND,
  OTHER_ADD,
  OTHER_PLACE,
  ONE_LESS,
  ONE_MORE,
  OTHER_OPERAND_OF_A_LANE,
  NO_PRODUCT_OF_A_LANE,
};
template <Difference difference>
__device__ void warps_differ(const void* a, const void*, const void*, void* out, const Params&) {
  with_operands(a, [&](unsigned char*, Descriptor left, Descriptor right) {
    const bool odd = threadIdx.x / 32 == 2, odd_lane = threadIdx.x == 40;
    if (difference == OTHER_OPERAND && odd) right += 2;
    if (difference == OTHER_OPERAND_OF_A_LANE && odd_lane) left += 2;
    float d[8][4] = {};
    wgmma_fence();
    if (difference == OTHER_PLACE && odd)
      wgmma_k16_f16<true, true>(d, left, right, true);
    else if (!(difference == ONE_LESS && odd) && !(difference == NO_PRODUCT_OF_A_LANE && odd_lane))
      wgmma_k16_f16<true, true>(d, left, right, difference != OTHER_ADD || !odd);
    if (difference == ONE_MORE && odd) wgmma_k16_f16<true, true>(d, left, right, true);
    wgmma_commit();
    wgmma_wait<0>();
    store_sums(out, d);
  });
}

// Products of an operand that is not where, or what, its descriptor says.
template <int start, int swizzle, int base, int stride>
__device__ void wrong_operand(const void* a, const void*, const void*, void* out, const Params&) {
  with_operands(a, [&](unsigned char* memory, Descriptor left, Descriptor) {
    float d[8][4];
    wgmma_fence();
    wgmma_k16_f16<true, true>(d, left, wgmma_operand(memory + start, 128, stride, Swizzle(swizzle), base), false);
    wgmma_commit();
    wgmma_wait<0>();
    store_sums(out, d);
  });
}

template <int offset>
__device__ void wrong_mn_major_operand(const void* a, const void*, const void*, void* out, const Params&) {
  with_operands(a, [&](unsigned char* memory, Descriptor left, Descriptor) {
    float d[8][4];
    wgmma_fence();
    wgmma_k16_f16<true, false>(d, left, wgmma_operand(memory + offset, 1024, 512, SWIZZLE_64), false);
    wgmma_commit();
    wgmma_wait<0>();
    store_sums(out, d);
  });
}

template <int = 0>
__device__ void operand_in_static_memory(const void* a, const void*, const void*, void* out, const Params&) {
  __shared__ __align__(1024) unsigned char memory[4096];
  with_operands(a, [&](unsigned char*, Descriptor left, Descriptor) {
    float d[8][4];
    wgmma_fence();
    wgmma_k16_f16<true, true>(d, left, wgmma_operand(memory, 0, 512, SWIZZLE_64), false);
    wgmma_commit();
    wgmma_wait<0>();
    store_sums(out, d);
  });
}

template <int = 0>
__device__ void undefined_bits(const void* a, const void*, const void*, void* out, const Params&) {
  with_operands(a, [&](unsigned char*, Descriptor left, Descriptor right) {
    float d[8][4];
    wgmma_fence();
    wgmma_k16_f16<true, true>(d, left, right | 1ull << 46, false);
    wgmma_commit();
    wgmma_wait<0>();
    store_sums(out, d);
  });
}

// ---- registers ----

template <int = 0>
__device__ void warps_differ_in_registers(const void*, const void*, const void*, void*, const Params&) {
  if (threadIdx.x < 96)
    setmaxnreg_dec<40>();
  else
    setmaxnreg_dec<48>();
}

template <int = 0>
__device__ void registers_of_three_warps(const void*, const void*, const void*, void*, const Params&) {
  if (threadIdx.x < 96) setmaxnreg_dec<40>();
}

template <int first, int then>
__device__ void registers_the_wrong_way(const void*, const void*, const void*, void*, const Params&) {
  setmaxnreg_dec<first>();
  if (then > first)
    setmaxnreg_dec<then>();
  else
    setmaxnreg_inc<then>();
}

// ---- barriers ----

template <int arrivals>
__device__ void expects(const void*, const void*, const void*, void*, const Params&) {
  __shared__ MBarrier barriers[1];
  if (threadIdx.x == 0) mbarrier_init(barriers, arrivals);
}

template <int = 0>
__device__ void barrier_elsewhere(const void*, const void*, const void*, void*, const Params&) {
  MBarrier barrier;
  mbarrier_init(&barrier, 1);
}

template <int parity>
__device__ void waits_for(const void*, const void*, const void*, void*, const Params&) {
  __shared__ MBarrier barriers[1];
  if (threadIdx.x == 0) mbarrier_init(barriers, 1);
  __syncthreads();
  mbarrier_try_wait(barriers, parity);
}
