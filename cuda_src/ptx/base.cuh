// PTX that every architecture has (sm_75 and up): conversions between half and single precision, and loads that a
// predicate guards.
//
// The conversions are written without .ftz, so subnormal halves are kept whatever the compiler's options
// say. Headers of this folder are the only places with inline PTX; the tests shadow them to run kernels on a
// CPU.
#pragma once

__device__ inline float half_to_float(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

// Rounds to the nearest half, ties to even.
__device__ inline unsigned short float_to_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

// What `global` points at, or zeros where it is not wanted, and then nothing is read. No branch: the compiler may
// move loads ahead of one another, of barriers and of stores, and has them under way together. Hence not
// volatile, and .nc: for inputs only, since nothing may write there while the kernel runs.
template <typename V>
__device__ inline V load_if(const V* global, bool wanted) {
  static_assert(alignof(V) == sizeof(V) && sizeof(V) <= 16, "one load has 1, 2, 4, 8 or 16 bytes, aligned to as many");
  unsigned words[(sizeof(V) + 3) / 4] = {};
  if constexpr (sizeof(V) == 16)
    asm("{.reg .pred p; setp.ne.s32 p, %5, 0; @p ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];}"
        : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3])
        : "l"(global), "r"(int(wanted)));
  else if constexpr (sizeof(V) == 8)
    asm("{.reg .pred p; setp.ne.s32 p, %3, 0; @p ld.global.nc.v2.b32 {%0, %1}, [%2];}"
        : "+r"(words[0]), "+r"(words[1])
        : "l"(global), "r"(int(wanted)));
  else if constexpr (sizeof(V) == 4)
    asm("{.reg .pred p; setp.ne.s32 p, %2, 0; @p ld.global.nc.b32 %0, [%1];}"
        : "+r"(words[0])
        : "l"(global), "r"(int(wanted)));
  else if constexpr (sizeof(V) == 2)
    asm("{.reg .pred p; setp.ne.s32 p, %2, 0; @p ld.global.nc.u16 %0, [%1];}"
        : "+r"(words[0])
        : "l"(global), "r"(int(wanted)));
  else
    asm("{.reg .pred p; setp.ne.s32 p, %2, 0; @p ld.global.nc.u8 %0, [%1];}"
        : "+r"(words[0])
        : "l"(global), "r"(int(wanted)));
  V value;
  memcpy(&value, words, sizeof value);
  return value;
}
