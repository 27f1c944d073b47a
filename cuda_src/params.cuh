// What every kernel is told: one struct by value, the mirror of PARAMS in cuda/kernel.py.
//
// All members are 64 bits wide, so that there is no padding to agree on. Lengths and strides are in elements.
// A canonical array has five axes: (N, C, D, H, W) for x and dx, (N, K, Z, P, Q) for y and dy, and
// (K, C/groups, T, R, S) for w and dw. Layout, rank, batch and flip are strides and a start, nothing else.
//
// Offsets of elements are 64 bits wide everywhere; `simt` and `depthwise` hold coordinates, which stay below
// the extent of an axis, in 32 bits.
#pragma once

using Index = long long;

// For 0 <= n < 2^63, n / divisor is (n * multiplier >> 64) >> shift, or n itself where the divisor is 1: a real
// division of 64 bits is a call, around which registers would be spilled.
struct Divisor {
  Index divisor;
  unsigned long long multiplier;
  Index shift;
};

// One spatial axis. `padding` is that before the first cell; `period` is stride / g and `shift` dilation / g,
// g being their greatest common divisor: see residue_axis in indexing.cuh.
struct Axis {
  Index input, filter, output, stride, dilation, padding, period, shift;
  Divisor by_stride;
};

struct Params {
  Index batch, groups;
  Index channels, filters;  // C and K of one group
  Axis axis[3];
  Index a[5], b[5], out[5];  // strides of the two inputs and of the result
  Index b_start, out_start;  // of turned filters; all else starts where it points
  Index bias;                // its stride
  Index items;          // how many elements, cells or work items there are to be spread over the threads,
  Divisor digit[6];     // and how to take their numbers, or those of blocks, apart, the fastest digit first
  Divisor group;        // the result's channels in a group
  Divisor pixel[3];     // the spatial extents of dy, or in dgrad those of a residue of dx, the last axis first
  Index mode;           // PaddingMode, see padding.cuh
  Index activation;     // Activation, see numerics.cuh
  Index accumulate;     // add the result to what is there
  Index conjugate;      // conjugate the second factor of every product, and if 2 their sum: that leaves the first so
  Index partial;        // write plain sums in the accumulator's type, for a later launch to finish
  Index splits, chunk;  // how many parts a long sum is cut into, and the length of each
  Index lanes;          // how many neighbouring threads differ in their channels
};
