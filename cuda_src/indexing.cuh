// Which cells meet: the one-dimensional geometry that fprop and dgrad share, and counters for linear indices.
#pragma once
#include "params.cuh"

// A gather along one axis: output o and tap i meet the source cell o * step + i * delta + start, delta > 0.
// Output o is cell out_first + o * out_step of the result, tap i is tap_first + i * tap_step of the filter.
struct GatherAxis {
  int outputs, sources, taps;
  int step, delta, start;
  int out_first, out_step, tap_first, tap_step;

  __device__ int source(int output, int tap) const { return output * step + tap * delta + start; }
  __device__ Index cell(int output) const { return out_first + output * Index(out_step); }
  __device__ Index filter_tap(int tap) const { return tap_first + tap * tap_step; }
};

// fprop: x is the source, y the result.
__device__ inline GatherAxis forward_axis(const Axis& a) {
  return {int(a.output), int(a.input), int(a.filter), int(a.stride), int(a.dilation), -int(a.padding), 0, 1, 0, 1};
}

// dgrad: dy is the source, dx the result. Input cell h, output cell p and tap r meet where
// p * stride = h + padding - r * dilation. All h with the same residue modulo the stride meet the same taps,
// every `period`-th one from the first that divides, and p falls by `shift` from one of them to the next:
// a dense gather with step 1. Taps are taken last first, so that delta is positive.
__device__ inline GatherAxis residue_axis(const Axis& a, int residue) {
  const int stride = int(a.stride), dilation = int(a.dilation), period = int(a.period), filter = int(a.filter);
  const int shift = int(a.shift), reach = residue + int(a.padding);
  int first = 0;
  while (first < period && first < filter && (reach - first * dilation) % stride != 0) ++first;
  const int taps = first < period && first < filter ? (filter - first - 1) / period + 1 : 0;
  const int last = first + (taps - 1) * period;
  return {(int(a.input) - residue + stride - 1) / stride,
          int(a.output),
          taps,
          1,
          shift,
          (reach - first * dilation) / stride - (taps - 1) * shift,
          residue,
          stride,
          last,
          -period};
}

__device__ inline Index divide(Index n, const Divisor& by) {
  return by.divisor == 1 ? n : Index(__umul64hi(n, by.multiplier) >> by.shift);
}

// The same in 32 bits, for n and a divisor below 2^31: the upper half of the multiplier, rounded up, is that of a
// quotient of 32 bits.
struct ShortDivisor {
  unsigned divisor, multiplier, shift;
};

__device__ inline ShortDivisor shortened(const Divisor& by) {
  return {unsigned(by.divisor), unsigned((by.multiplier - 1) >> 32) + 1, unsigned(by.shift)};
}

__device__ inline unsigned divide(unsigned n, const ShortDivisor& by) {
  return by.divisor == 1 ? n : __umulhi(n, by.multiplier) >> by.shift;
}

// The same for one that is divided by once.
__device__ inline int divide_small(int n, const Divisor& by) {
  return int(divide(unsigned(n), shortened(by)));
}

// What the first COUNT of `digit` take off a linear index, the fastest digit first, and the rest.
template <int COUNT>
__device__ inline Index take_digits(const Params& p, Index index, Index (&digits)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    const Index rest = divide(index, p.digit[i]);
    digits[i] = index - rest * p.digit[i].divisor;
    index = rest;
  }
  return index;
}

// The digits (outer, channel, three spatial ones) of an element's number.
__device__ inline void digits_of(const Params& p, Index index, Index (&digits)[5]) {
  Index found[4];
  digits[0] = take_digits(p, index, found);
  const bool channel_first = p.lanes > 1;
  digits[1] = channel_first ? found[0] : found[3];
  digits[2] = channel_first ? found[3] : found[2];
  digits[3] = channel_first ? found[2] : found[1];
  digits[4] = channel_first ? found[1] : found[0];
}

// Which axis of a canonical array digit i of an element's number counts, the fastest first; the rest is digit 4.
__device__ inline int axis_of(const Params& p, int i) {
  return p.lanes <= 1 || i == 4 ? 4 - i : i == 0 ? 1 : 5 - i;
}

// Call each(axis, digit) for the digits first, first + 1, ... of an element's number, of which `index` has these and
// what is slower. The loops are no longer than a digit, since few threads or few elements take their numbers apart.
template <typename Each>
__device__ inline void for_digits(const Params& p, Index index, int first, int end, const Each& each) {
  if (index >> 31) {
#pragma unroll 1
    for (int i = first; i < end; ++i) {
      const Index rest = i < 4 ? divide(index, p.digit[i]) : 0;
      each(axis_of(p, i), i < 4 ? index - rest * p.digit[i].divisor : index);
      index = rest;
    }
    return;
  }
  unsigned number = unsigned(index);
#pragma unroll 1
  for (int i = first; i < end; ++i) {
    const bool whole = i == 4 || p.digit[i].divisor >> 31;
    const unsigned rest = whole ? 0 : divide(number, shortened(p.digit[i]));
    each(axis_of(p, i), Index(whole ? number : number - rest * unsigned(p.digit[i].divisor)));
    number = rest;
  }
}

// Those of this thread's element, in kernels with one thread per element, or false if there is none.
__device__ inline bool own_element(const Params& p, Index (&digits)[5]) {
  const Index index = Index(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= p.items) return false;
  digits_of(p, index, digits);
  return true;
}

__device__ inline Index offset_of(Index start, const Index (&strides)[5], const Index (&digits)[5]) {
  for (int i = 0; i < 5; ++i) start += strides[i] * digits[i];
  return start;
}

// The digits of a linear index, the last axis fastest, for the few that a block has to take apart.
template <int DIGITS>
__device__ inline void split(Index index, const Index (&extents)[DIGITS], Index (&digits)[DIGITS]) {
  for (int i = DIGITS - 1; i > 0; --i) {
    digits[i] = index % extents[i];
    index /= extents[i];
  }
  digits[0] = index;
}

__device__ inline Index min_index(Index a, Index b) { return a < b ? a : b; }
__device__ inline Index magnitude(Index a) { return a < 0 ? -a : a; }

// How many tiles cover an extent.
__device__ inline Index tiles(Index extent, Index tile) { return (extent + tile - 1) / tile; }
