// Products of floats on tensor cores that multiply bfloat16: by parts, at the accuracy of single precision.
//
//   x   = x0 + x1 / 2^8 + x2 / 2^16
//   x y = x0 y0 + (x0 y1 + x1 y0) / 2^8 + (x0 y2 + x1 y1 + x2 y0) / 2^16 + what is left out
//
// A part is what those before it leave, times 2^8, rounded to the 8 bits of a bfloat16. Three of them are exact for
// every float that is finite as a bfloat16, of any size: since they are scaled, none is too small for one. What is
// left out, (x1 y2 + x2 y1) / 2^24 and less, is below 2^-24 of |x y|, and of either sign. Only of subnormal numbers the
// first part may have less of them than the second one: slices with any are multiplied by these products too.
//
// Tensor cores truncate sums. So products of each power of 2^8 are summed apart, from zero for each slice of 16, and
// then added with rounding, small ones first: the error of a long sum is that of a sixteenth of its additions.
// docs/accuracy.md has it measured and derived.
//
// Parts of infinities are no numbers, and neither are those of NaN and of what overflows as a bfloat16. Any of them
// shows in every sum that meets it, as does an overflow on the way. A warp that finds such a sum does its own once
// more, by plain additions: infinities and NaN come out as if there were no parts.
//
// Parts are made once a slice, by the threads that brought it: each reads its own vectors again, and puts down the
// parts of a slice in three slices of bfloat16, for ldmatrix to load whichever way they lie.
#pragma once
#include <ptx/sm80.cuh>

#include "numerics.cuh"

constexpr int PARTS = 3;
constexpr float PART = 256;  // how many times as large a part is as what it stands for in the one before

// The parts of two floats. Whether a second one is greater than the first one.
__device__ inline bool split(float x, float y, unsigned (&part)[PARTS]) {
  bool greater = false;
#pragma unroll
  for (int i = 0; i < PARTS; ++i) {
    part[i] = floats_to_bf16x2(x, y);
    const float of_x = __uint_as_float(part[i] << 16), of_y = __uint_as_float(part[i] & 0xffff0000);
    x = (x - of_x) * PART;
    y = (y - of_y) * PART;
    if (i == 0) greater = (fabsf(x) > fabsf(of_x)) | (fabsf(y) > fabsf(of_y));
  }
  return greater;
}

// A slice's parts: slices of bfloat16, one behind the other.
template <typename Slice>
struct InParts : Slice {
  static constexpr int BYTES = PARTS * Slice::BYTES;
  using T = bfloat16;

  __device__ Slice part(int i) const { return {this->ring + i * (Slice::BYTES / int(sizeof(T))), this->start}; }
  // Put down four neighbours of a line. Whether one is so small that no product of its parts may be left out.
  __device__ bool put(T* place, const Pack<float, 4>& vector) const {
    unsigned low[PARTS], high[PARTS];
    const bool small_low = split(vector.value[0], vector.value[1], low);
    const bool small_high = split(vector.value[2], vector.value[3], high);
#pragma unroll
    for (int i = 0; i < PARTS; ++i) {
      const Pack<unsigned, 2> words{low[i], high[i]};
      *reinterpret_cast<Pack<unsigned, 2>*>(place + i * (Slice::BYTES / int(sizeof(T)))) = words;
    }
    return small_low | small_high;
  }
};
