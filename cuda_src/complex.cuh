// Complex filters as real ones, for kernels that multiply real numbers: of twice the channels and twice the filters.
//
//   out[2 k,     2 c] = re w[k, c]    out[2 k,     2 c + 1] = -im w[k, c]
//   out[2 k + 1, 2 c] = im w[k, c]    out[2 k + 1, 2 c + 1] =  re w[k, c]
//
// A complex array whose channels are neighbours in memory is a real one of twice the channels: those of z are re z and
// im z. So a convolution with `out` is that with w, and the gradient of it, whose products are with out's columns, is
// that with the conjugate of w, as a complex gradient is. Nothing is multiplied in vain: a product of complex numbers is
// four of real ones. The weight gradient has x and dy as they lie, and makes one complex number of each 2 x 2 of its
// real ones: see put_sums in mma.cuh.
//
// A thread owns one element of w, or of the zeros that fill each filter's channels up to those of `out`. w has any
// strides, `out` is dense and channels-last. `conjugate` says whether w is to be conjugated first.
#pragma once
#include "indexing.cuh"
#include "numerics.cuh"

template <typename T, typename Real>
__device__ void conv_real_filters(const void*, const void* b, const void*, void* out, const Params& p) {
  const Index index = Index(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= p.items) return;
  Index from = p.b_start, to = 0, channel = 0;
  for_digits(p, index, 0, 5, [&](int axis, Index digit) {
    from += digit * p.b[axis];
    to += digit * p.out[axis] * (axis < 2 ? 2 : 1);
    if (axis == 1) channel = digit;
  });
  const T w = conjugate_if(p.conjugate, channel < p.channels ? static_cast<const T*>(b)[from] : T{});
  Real* const cell = static_cast<Real*>(out) + to;
  *reinterpret_cast<Pack<Real, 2>*>(cell) = Pack<Real, 2>{w.re, -w.im};
  *reinterpret_cast<Pack<Real, 2>*>(cell + p.out[0]) = Pack<Real, 2>{w.im, w.re};
}
