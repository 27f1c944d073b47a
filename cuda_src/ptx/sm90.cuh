// PTX of sm_90a alone: barriers in shared memory, products of warpgroups (wgmma), and what orders them.
//
// One wrapper per instruction, under the instruction's own name. A warpgroup is four warps, the first of which has a
// number that is a multiple of four. d[j][e] of m64nN is row 16 w + g + 8 (e / 2), column 8 j + 2 t + e % 2, with w the
// warp in its group, g = lane / 4 and t = lane % 4; a[i] is, as for mma.sync, row 16 w + g + 8 (i % 2), word
// t + 4 (i / 2) of k. Operands in shared memory are given by descriptors. Products run on while their warps do:
//
//   wgmma_fence      before the first product, and whenever registers that products use have been written otherwise
//   wgmma_commit     makes a group of the products since the last one
//   wgmma_wait<N>    until all groups but the last N are done: their sums may be read, their operands overwritten
//   fence_proxy_async  what this thread knows to be in shared memory, however it was written, is there for products
#pragma once
#include <ptx/sm80.cuh>

// ---- barriers in shared memory: a phase ends when all that are expected have arrived ----

using MBarrier = unsigned long long;

// By one thread; others may use the barrier once they have met this one.
__device__ inline void mbarrier_init(MBarrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

__device__ inline void mbarrier_arrive(MBarrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Whether the phase of that parity has ended, that before the first one counting as odd: to be asked until it has. The
// thread may sleep in between.
__device__ inline bool mbarrier_try_wait(MBarrier* barrier, int parity) {
  int done;
  asm volatile(
      "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.s32 %0, 1, 0, p;}"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done;
}

// Arrives, one of those that are expected, once all asynchronous copies that the thread has begun are done.
__device__ inline void cp_async_mbarrier_arrive_noinc(MBarrier* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// ---- registers of a warpgroup's threads: a multiple of 8, from 24 to 256; all of them have to call ----

template <int count>
__device__ inline void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
__device__ inline void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

// ---- order ----

__device__ inline void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int groups_left>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(groups_left) : "memory");
}

// Keeps the compiler from moving what reads or writes sums across this place.
template <int N>
__device__ inline void wgmma_pin(float (&d)[N][4]) {
#pragma unroll
  for (int j = 0; j < N; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(d[j][e])::"memory");
}

// ---- operands in shared memory: rows by k, in 8 rows by 16 bytes of k or, MN-major, 8 of k by 16 bytes of rows ----

enum Swizzle { NO_SWIZZLE, SWIZZLE_128, SWIZZLE_64, SWIZZLE_32 };

// Swizzled lines have so many bytes, 8 of them a pattern, in which chunks of 16 bytes are exchanged by their line's
// number: bits 4 to 6 of an address by its bits 7 to 9, less `base`, what these are where the pattern begins. K-major:
// `stride` is from 8 rows to the next; `leading`, if not swizzled, from 16 bytes of k to the next. MN-major: swizzled,
// `stride` is from 8 of k to the next and `leading` from a line's rows to the next ones; otherwise the other way round.
// All in bytes, multiples of 16 below 2^18.
__device__ inline unsigned long long wgmma_operand(const void* shared, int leading, int stride, Swizzle swizzle,
                                                   int base = 0) {
  const auto field = [](unsigned bytes) { return static_cast<unsigned long long>(bytes >> 4 & 0x3fff); };
  return field(shared_address(shared)) | field(leading) << 16 | field(stride) << 32 |
         static_cast<unsigned long long>(base) << 49 | static_cast<unsigned long long>(swizzle) << 62;
}

// ---- products: d = a b, to which the former d is added if `add` ----

#define CUCONV_TEN(t) "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9"
#define CUCONV_LIST_8 CUCONV_TEN() ", " CUCONV_TEN(1) ", " CUCONV_TEN(2) ", %30, %31"
#define CUCONV_LIST_16                                                                                     \
  CUCONV_TEN() ", " CUCONV_TEN(1) ", " CUCONV_TEN(2) ", " CUCONV_TEN(3) ", " CUCONV_TEN(4) ", " CUCONV_TEN(5) \
  ", %60, %61, %62, %63"
#define CUCONV_LIST_32                                                                                          \
  CUCONV_TEN() ", " CUCONV_TEN(1) ", " CUCONV_TEN(2) ", " CUCONV_TEN(3) ", " CUCONV_TEN(4) ", " CUCONV_TEN(5) ", " \
  CUCONV_TEN(6) ", " CUCONV_TEN(7) ", " CUCONV_TEN(8) ", " CUCONV_TEN(9) ", " CUCONV_TEN(10) ", " CUCONV_TEN(11)   \
  ", %120, %121, %122, %123, %124, %125, %126, %127"
#define CUCONV_SUM(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define CUCONV_SUMS(j)                                                                                      \
  CUCONV_SUM(j), CUCONV_SUM(j + 1), CUCONV_SUM(j + 2), CUCONV_SUM(j + 3), CUCONV_SUM(j + 4), CUCONV_SUM(j + 5), \
      CUCONV_SUM(j + 6), CUCONV_SUM(j + 7)
#define CUCONV_SUMS_8 CUCONV_SUMS(0)
#define CUCONV_SUMS_16 CUCONV_SUMS(0), CUCONV_SUMS(8)
#define CUCONV_SUMS_32 CUCONV_SUMS(0), CUCONV_SUMS(8), CUCONV_SUMS(16), CUCONV_SUMS(24)

// N8 eighths of N columns; A, B and C number the operands behind the sums.
#define CUCONV_WGMMA_16(type, N8, N, A, B, C, TA, TB)                                                              \
  template <bool A_K_MAJOR, bool B_K_MAJOR>                                                                        \
  __device__ inline void wgmma_k16_##type(float (&d)[N8][4], unsigned long long a, unsigned long long b, bool add) { \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" #C ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #type   \
                 "." #type " {" CUCONV_LIST_##N8 "}, %" #A ", %" #B ", p, 1, 1, %" #TA ", %" #TB ";}"                \
                 : CUCONV_SUMS_##N8                                                                                \
                 : "l"(a), "l"(b), "r"(int(add)), "n"(int(!A_K_MAJOR)), "n"(int(!B_K_MAJOR))                       \
                 : "memory");                                                                                      \
  }
#define CUCONV_WGMMA_16_REGISTERS(type, N8, N, A0, A1, A2, A3, B, C, TB)                                           \
  template <bool B_K_MAJOR>                                                                                        \
  __device__ inline void wgmma_k16_##type(float (&d)[N8][4], const unsigned (&a)[4], unsigned long long b,         \
                                          bool add) {                                                              \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" #C ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #type   \
                 "." #type " {" CUCONV_LIST_##N8 "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B                 \
                 ", p, 1, 1, %" #TB ";}"                                                                           \
                 : CUCONV_SUMS_##N8                                                                                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)), "n"(int(!B_K_MAJOR))         \
                 : "memory");                                                                                      \
  }
// Floats of which the last 13 bits are ignored; both operands are K-major.
#define CUCONV_WGMMA_TF32(N8, N, A, B, C)                                                                          \
  __device__ inline void wgmma_k8_tf32(float (&d)[N8][4], unsigned long long a, unsigned long long b, bool add) {  \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" #C ", 0; wgmma.mma_async.sync.aligned.m64n" #N                    \
                 "k8.f32.tf32.tf32 {" CUCONV_LIST_##N8 "}, %" #A ", %" #B ", p, 1, 1;}"                              \
                 : CUCONV_SUMS_##N8                                                                                \
                 : "l"(a), "l"(b), "r"(int(add))                                                                   \
                 : "memory");                                                                                      \
  }
#define CUCONV_WGMMA_TF32_REGISTERS(N8, N, A0, A1, A2, A3, B, C)                                                   \
  __device__ inline void wgmma_k8_tf32(float (&d)[N8][4], const unsigned (&a)[4], unsigned long long b, bool add) { \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" #C ", 0; wgmma.mma_async.sync.aligned.m64n" #N                    \
                 "k8.f32.tf32.tf32 {" CUCONV_LIST_##N8 "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B           \
                 ", p, 1, 1;}"                                                                                     \
                 : CUCONV_SUMS_##N8                                                                                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add))                               \
                 : "memory");                                                                                      \
  }

CUCONV_WGMMA_16(f16, 8, 64, 32, 33, 34, 35, 36)
CUCONV_WGMMA_16(f16, 16, 128, 64, 65, 66, 67, 68)
CUCONV_WGMMA_16(f16, 32, 256, 128, 129, 130, 131, 132)
CUCONV_WGMMA_16(bf16, 8, 64, 32, 33, 34, 35, 36)
CUCONV_WGMMA_16(bf16, 16, 128, 64, 65, 66, 67, 68)
CUCONV_WGMMA_16(bf16, 32, 256, 128, 129, 130, 131, 132)
CUCONV_WGMMA_16_REGISTERS(f16, 8, 64, 32, 33, 34, 35, 36, 37, 38)
CUCONV_WGMMA_16_REGISTERS(f16, 16, 128, 64, 65, 66, 67, 68, 69, 70)
CUCONV_WGMMA_16_REGISTERS(f16, 32, 256, 128, 129, 130, 131, 132, 133, 134)
CUCONV_WGMMA_16_REGISTERS(bf16, 8, 64, 32, 33, 34, 35, 36, 37, 38)
CUCONV_WGMMA_16_REGISTERS(bf16, 16, 128, 64, 65, 66, 67, 68, 69, 70)
CUCONV_WGMMA_16_REGISTERS(bf16, 32, 256, 128, 129, 130, 131, 132, 133, 134)
CUCONV_WGMMA_TF32(8, 64, 32, 33, 34)
CUCONV_WGMMA_TF32(16, 128, 64, 65, 66)
CUCONV_WGMMA_TF32(32, 256, 128, 129, 130)
CUCONV_WGMMA_TF32_REGISTERS(8, 64, 32, 33, 34, 35, 36, 37)
CUCONV_WGMMA_TF32_REGISTERS(16, 128, 64, 65, 66, 67, 68, 69)
CUCONV_WGMMA_TF32_REGISTERS(32, 256, 128, 129, 130, 131, 132, 133)
