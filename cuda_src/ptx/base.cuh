// PTX that every architecture has (sm_75 and up): conversions between half and single precision.
//
// The instructions are written without .ftz, so subnormal halves are kept whatever the compiler's options
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
