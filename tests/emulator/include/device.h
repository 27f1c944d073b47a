// A stand-in for CUDA's built-ins: included before every kernel that is compiled for the host.
//
// `__shared__` is not defined here: build.py replaces declarations of shared memory in the preprocessed source, where
// those of dynamic memory can be told from those of arrays. Only what kernels use is here; no standard header
// is included, so that an instance compiles quickly and a kernel cannot lean on one.
#pragma once
#include "../runtime.h"

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))

// A wrapper of PTX that tells of its accesses itself.
#ifdef EMULATOR_COUNTS
#define EMULATOR_UNCOUNTED __attribute__((no_sanitize_thread))
#else
#define EMULATOR_UNCOUNTED
#endif

// Constant as far as one thread can see, which lets the compiler keep it in a register.
extern const uint3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

using size_t = __SIZE_TYPE__;

// ---- vectors ----

#define CUDA_VECTOR(name, type)                                             \
  struct __align__(2 * sizeof(type)) name##2 {                              \
    type x, y;                                                              \
  };                                                                        \
  struct __align__(4 * sizeof(type) > 16 ? 16 : 4 * sizeof(type)) name##4 { \
    type x, y, z, w;                                                        \
  };                                                                        \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }          \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
CUDA_VECTOR(char, signed char)
CUDA_VECTOR(uchar, unsigned char)
CUDA_VECTOR(short, short)
CUDA_VECTOR(ushort, unsigned short)
CUDA_VECTOR(int, int)
CUDA_VECTOR(uint, unsigned)
CUDA_VECTOR(longlong, long long)
CUDA_VECTOR(ulonglong, unsigned long long)
CUDA_VECTOR(float, float)
CUDA_VECTOR(double, double)
#undef CUDA_VECTOR

// ---- arithmetic ----

#define CUDA_FUNCTION(name)        \
  extern "C" double name(double);  \
  extern "C" float name##f(float); \
  inline float name(float x) { return name##f(x); }
CUDA_FUNCTION(ceil)
CUDA_FUNCTION(cos)
CUDA_FUNCTION(erf)
CUDA_FUNCTION(erfc)
CUDA_FUNCTION(exp)
CUDA_FUNCTION(exp2)
CUDA_FUNCTION(expm1)
CUDA_FUNCTION(fabs)
CUDA_FUNCTION(floor)
CUDA_FUNCTION(log)
CUDA_FUNCTION(log1p)
CUDA_FUNCTION(rint)
CUDA_FUNCTION(sin)
CUDA_FUNCTION(sqrt)
CUDA_FUNCTION(tanh)
CUDA_FUNCTION(trunc)
#undef CUDA_FUNCTION

extern "C" double fma(double, double, double);
extern "C" float fmaf(float, float, float);
extern "C" double fmax(double, double);
extern "C" float fmaxf(float, float);
extern "C" double fmin(double, double);
extern "C" float fminf(float, float);
extern "C" double pow(double, double);
extern "C" float powf(float, float);
inline float fma(float x, float y, float z) { return fmaf(x, y, z); }
inline bool isnan(double x) { return __builtin_isnan(x); }
inline bool isinf(double x) { return __builtin_isinf(x); }

#define CUDA_ORDERED(type)                                    \
  inline type min(type x, type y) { return y < x ? y : x; }   \
  inline type max(type x, type y) { return x < y ? y : x; }
CUDA_ORDERED(int)
CUDA_ORDERED(unsigned)
CUDA_ORDERED(long long)
CUDA_ORDERED(unsigned long long)
#undef CUDA_ORDERED
inline float min(float x, float y) { return fminf(x, y); }
inline float max(float x, float y) { return fmaxf(x, y); }
inline double min(double x, double y) { return fmin(x, y); }
inline double max(double x, double y) { return fmax(x, y); }

inline unsigned __umulhi(unsigned x, unsigned y) { return static_cast<unsigned long long>(x) * y >> 32; }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return static_cast<unsigned __int128>(x) * y >> 64;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }

template <class To, class From>
inline To emulator_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}
inline int __float_as_int(float x) { return emulator_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulator_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulator_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulator_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulator_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulator_bits<double>(x); }

// ---- memory ----

template <class T>
inline T __ldg(const T* address) {
  return *address;
}
template <class T>
inline void __stcs(T* address, T value) {
  *address = value;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- blocks and warps: every call knows its place in the source ----

#define CUDA_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

[[noreturn]] inline void __trap(CUDA_PLACE) { emulator::fail({"__trap", file, line}, "called"); }

inline void __syncthreads(CUDA_PLACE) { emulator::barrier(0, 0, true, {"__syncthreads", file, line}); }

inline void __syncwarp(unsigned lanes = ~0u, CUDA_PLACE) {
  emulator::gather(lanes, {"__syncwarp", file, line}, nullptr, [](unsigned, void* const*) {});
}

inline unsigned __activemask() { return emulator::live_lanes(); }

inline unsigned __ballot_sync(unsigned lanes, int predicate, CUDA_PLACE) {
  struct Vote {
    bool predicate;
    unsigned ballot;
  } vote = {predicate != 0, 0};
  emulator::gather(lanes, {"warp vote", file, line}, &vote, [](unsigned lanes, void* const* operands) {
    unsigned ballot = 0;
    for (int i = 0; i < 32; i++)
      if (lanes >> i & 1) ballot |= unsigned(static_cast<Vote*>(operands[i])->predicate) << i;
    for (int i = 0; i < 32; i++)
      if (lanes >> i & 1) static_cast<Vote*>(operands[i])->ballot = ballot;
  });
  return vote.ballot;
}

inline int __any_sync(unsigned lanes, int predicate, CUDA_PLACE) {
  return __ballot_sync(lanes, predicate, file, line) != 0;
}

inline int __all_sync(unsigned lanes, int predicate, CUDA_PLACE) {
  return __ballot_sync(lanes, predicate, file, line) == lanes;
}

// The value that lane `source` hands in. A lane outside of the mask has none, whatever the hardware returns.
template <class T>
inline T emulator_shuffle(unsigned lanes, T value, int source, emulator::Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
  struct Shuffle {
    T value, result;
    int source;
  } shuffle = {value, value, source};
  if (!(lanes >> source & 1))
    emulator::fail(site, "lane %d, which is read, is not in mask %08x", source, lanes);
  emulator::gather(lanes, site, &shuffle, [](unsigned lanes, void* const* operands) {
    for (int i = 0; i < 32; i++) {
      if (!(lanes >> i & 1)) continue;
      Shuffle* self = static_cast<Shuffle*>(operands[i]);
      self->result = static_cast<Shuffle*>(operands[self->source])->value;
    }
  });
  return shuffle.result;
}

template <class T>
inline T __shfl_sync(unsigned lanes, T value, int source, int width = 32, CUDA_PLACE) {
  const int first = int(emulator::lane()) & ~(width - 1);
  return emulator_shuffle(lanes, value, first + (source & (width - 1)), {"__shfl_sync", file, line});
}

template <class T>
inline T __shfl_xor_sync(unsigned lanes, T value, int mask, int width = 32, CUDA_PLACE) {
  const int self = emulator::lane(), source = self ^ mask;
  return emulator_shuffle(lanes, value, source <= (self | (width - 1)) ? source : self,
                          {"__shfl_xor_sync", file, line});
}

template <class T>
inline T __shfl_up_sync(unsigned lanes, T value, unsigned delta, int width = 32, CUDA_PLACE) {
  const int self = emulator::lane(), source = self - int(delta);
  return emulator_shuffle(lanes, value, source >= (self & ~(width - 1)) ? source : self,
                          {"__shfl_up_sync", file, line});
}

template <class T>
inline T __shfl_down_sync(unsigned lanes, T value, unsigned delta, int width = 32, CUDA_PLACE) {
  const int self = emulator::lane(), source = self + int(delta);
  return emulator_shuffle(lanes, value, source <= (self | (width - 1)) ? source : self,
                          {"__shfl_down_sync", file, line});
}

// ---- the two symbols by which the runner reaches an instance ----

// The linker's names for the bounds of the variables that begin as zero. An instance has no others than its
// shared memory.
extern "C" __attribute__((visibility("hidden"))) unsigned char __bss_start[], _end[];

#define EMULATOR_ENTRY(kernel)                                                      \
  extern "C" void emulator_entry(const void* const* pointers, const void* params) { \
    kernel(pointers[0], pointers[1], pointers[2], const_cast<void*>(pointers[3]),   \
           *static_cast<const Params*>(params));                                    \
  }                                                                                 \
  extern "C" void emulator_statics(unsigned char** bounds) {                        \
    bounds[0] = __bss_start;                                                        \
    bounds[1] = _end;                                                               \
  }
