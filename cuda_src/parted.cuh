// Floats by their parts (parts.cuh) in memory: made by one launch, for others to multiply.
//
// The first parts of an array's elements lie in front of all second ones, and these in front of the third ones, each set
// in the array's own order. What overflows as a bfloat16, infinities and NaN have their first part, and in the place of
// the others the two halves of the float. Behind the parts is a number for each warp that made some, not 0 if one of its
// floats is so small that no product of its parts may be left out.
#pragma once
#include "parts.cuh"

__device__ inline bool beyond_bfloat16(unsigned part) { return (part & 0x7f80) == 0x7f80; }

// The parts of two floats, as they are in memory. Whether one of them is small.
__device__ inline bool split_for_memory(float x, float y, unsigned (&part)[PARTS]) {
  const bool small = split(x, y, part);
  const unsigned of_x = __float_as_uint(x), of_y = __float_as_uint(y);
  if (beyond_bfloat16(part[0])) {
    part[1] = (part[1] & 0xffff0000) | of_x >> 16;
    part[2] = (part[2] & 0xffff0000) | (of_x & 0xffff);
  }
  if (beyond_bfloat16(part[0] >> 16)) {
    part[1] = (part[1] & 0xffff) | (of_y & 0xffff0000);
    part[2] = (part[2] & 0xffff) | of_y << 16;
  }
  return small;
}

// The float whose first part this is; the others are so many elements further.
__device__ inline float join(const bfloat16* first, Index set) {
  const unsigned part[PARTS] = {first[0].bits, first[set].bits, first[2 * set].bits};
  if (beyond_bfloat16(part[0])) return __uint_as_float(part[1] << 16 | part[2]);
  const float small = multiply_add(__uint_as_float(part[2] << 16), 1 / (PART * PART),
                                   __uint_as_float(part[1] << 16) * (1 / PART));
  return __uint_as_float(part[0] << 16) + small;
}
