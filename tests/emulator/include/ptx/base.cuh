// The emulated twin of cuda_src/ptx/base.cuh: half precision, bit by bit; loads are ordinary ones.
#pragma once

__device__ inline float half_to_float(unsigned short bits) {
  const unsigned sign = unsigned(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000 | fraction << 13);
  if (exponent == 0) return __uint_as_float(sign | __float_as_uint(float(fraction) * 0x1p-24f));
  return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}

__device__ inline unsigned short float_to_half(float value) {
  const unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7fff;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520 and above round to infinity
  // Below the smallest normal half the last place is 2^-24, the last place of a float in [0.5, 1): adding 0.5
  // rounds there.
  if (magnitude < 0x38800000)
    return sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - __float_as_uint(0.5f));
  const unsigned rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return sign | (rounded - (112u << 23)) >> 13;
}

template <typename V>
__device__ inline V load_if(const V* global, bool wanted) {
  static_assert(alignof(V) == sizeof(V) && sizeof(V) <= 16, "one load has 1, 2, 4, 8 or 16 bytes, aligned to as many");
  return wanted ? *global : V{};
}
