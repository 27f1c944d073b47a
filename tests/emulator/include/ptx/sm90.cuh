// The emulated twin of cuda_src/ptx/sm90.cuh: what it does is done, and checked, by the runtime.
//
// Barriers sleep until they have something to say. A product is done when it is waited for and not before; until then
// its sums are poisoned and its operands have to stay as they were. All of k is added in one step.
#pragma once
#include <ptx/sm80.cuh>

inline unsigned shared_address(const void* shared, CUDA_PLACE) {
  return emulator::shared_address(shared, {"shared_address", file, line});
}

// ---- barriers in shared memory ----

using MBarrier = unsigned long long;

__device__ inline void mbarrier_init(MBarrier* barrier, int arrivals, CUDA_PLACE) {
  emulator::init_mbarrier(barrier, arrivals, {"mbarrier.init", file, line});
}

__device__ inline void mbarrier_arrive(MBarrier* barrier, CUDA_PLACE) {
  emulator::arrive(barrier, {"mbarrier.arrive", file, line});
}

__device__ inline bool mbarrier_try_wait(MBarrier* barrier, int parity, CUDA_PLACE) {
  emulator::wait_for_phase(barrier, parity, {"mbarrier.try_wait", file, line});
  return true;
}

__device__ inline void cp_async_mbarrier_arrive_noinc(MBarrier* barrier, CUDA_PLACE) {
  emulator::arrive_after_copies(barrier, {"cp.async.mbarrier.arrive", file, line});
}

// ---- registers of a warpgroup's threads ----

template <int count>
__device__ inline void setmaxnreg_inc(CUDA_PLACE) {
  static_assert(count >= 24 && count <= 256 && count % 8 == 0, "registers are a multiple of 8 from 24 to 256");
  emulator::set_registers(count, true, {"setmaxnreg.inc", file, line});
}

template <int count>
__device__ inline void setmaxnreg_dec(CUDA_PLACE) {
  static_assert(count >= 24 && count <= 256 && count % 8 == 0, "registers are a multiple of 8 from 24 to 256");
  emulator::set_registers(count, false, {"setmaxnreg.dec", file, line});
}

// ---- order ----

__device__ inline void fence_proxy_async() { emulator::fence_copies(); }

__device__ inline void wgmma_fence(CUDA_PLACE) { emulator::fence_registers({"wgmma.fence", file, line}); }

__device__ inline void wgmma_commit(CUDA_PLACE) { emulator::commit_products({"wgmma.commit_group", file, line}); }

template <int groups_left>
__device__ inline void wgmma_wait(CUDA_PLACE) {
  static_assert(groups_left >= 0 && groups_left < 8, "wgmma.wait_group leaves 0 to 7 groups");
  emulator::wait_products(groups_left, {"wgmma.wait_group", file, line});
}

template <int N>
__device__ inline void wgmma_pin(float (&)[N][4]) {}

// ---- operands in shared memory ----

enum Swizzle { NO_SWIZZLE, SWIZZLE_128, SWIZZLE_64, SWIZZLE_32 };

__device__ inline unsigned long long wgmma_operand(const void* shared, int leading, int stride, Swizzle swizzle,
                                                   int base = 0, CUDA_PLACE) {
  const emulator::Site site = {"wgmma_operand", file, line};
  const unsigned address = emulator::shared_address(shared, site);
  const unsigned all[] = {address, unsigned(leading), unsigned(stride)};
  for (unsigned bytes : all)
    if (bytes % 16 || bytes >= 1 << 18) emulator::fail(site, "%u is not a multiple of 16 below 2^18", bytes);
  if (base < 0 || base > 7) emulator::fail(site, "a pattern cannot begin at line %d of 8", base);
  const auto field = [](unsigned bytes) { return static_cast<unsigned long long>(bytes >> 4); };
  return field(address) | field(leading) << 16 | field(stride) << 32 | static_cast<unsigned long long>(base) << 49 |
         static_cast<unsigned long long>(swizzle) << 62;
}

// ---- products ----

#define EMULATOR_SUMS static_assert(N8 == 8 || N8 == 16 || N8 == 32, "sums have 64, 128 or 256 columns")

#define EMULATOR_WGMMA_16(type)                                                                                    \
  template <bool A_K_MAJOR, bool B_K_MAJOR, int N8>                                                                \
  __device__ inline void wgmma_k16_##type(float (&d)[N8][4], unsigned long long a, unsigned long long b, bool add, \
                                          CUDA_PLACE) {                                                            \
    EMULATOR_SUMS;                                                                                                 \
    emulator::multiply({d[0], 8 * N8, 2, emulator_##type, nullptr, a, b, A_K_MAJOR, B_K_MAJOR, add},               \
                       {"wgmma", file, line});                                                                     \
  }                                                                                                                \
  template <bool B_K_MAJOR, int N8>                                                                                \
  __device__ inline void wgmma_k16_##type(float (&d)[N8][4], const unsigned (&a)[4], unsigned long long b,         \
                                          bool add, CUDA_PLACE) {                                                  \
    EMULATOR_SUMS;                                                                                                 \
    emulator::multiply({d[0], 8 * N8, 2, emulator_##type, a, 0, b, true, B_K_MAJOR, add}, {"wgmma", file, line});  \
  }
EMULATOR_WGMMA_16(f16)
EMULATOR_WGMMA_16(bf16)

template <int N8>
__device__ inline void wgmma_k8_tf32(float (&d)[N8][4], unsigned long long a, unsigned long long b, bool add,
                                     CUDA_PLACE) {
  EMULATOR_SUMS;
  emulator::multiply({d[0], 8 * N8, 1, emulator_tf32, nullptr, a, b, true, true, add}, {"wgmma", file, line});
}
template <int N8>
__device__ inline void wgmma_k8_tf32(float (&d)[N8][4], const unsigned (&a)[4], unsigned long long b, bool add,
                                     CUDA_PLACE) {
  EMULATOR_SUMS;
  emulator::multiply({d[0], 8 * N8, 1, emulator_tf32, a, 0, b, true, true, add}, {"wgmma", file, line});
}
