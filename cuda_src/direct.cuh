// Convolution and its gradients by the definition, for every dtype and every problem padded with zeros.
//
//   fprop  y[n, k, p] = sum over c, r of  x[n, c, p s - a + r d] w[k, c, r]
//   dgrad  dx[n, c, h] = sum over k, r with p s - a + r d = h of  dy[n, k, p] conj(w[k, c, r])
//   wgrad  dw[k, c, r] = sum over n, p of  dy[n, k, p] conj(x[n, c, p s - a + r d])
//
// A thread owns one element of the result and sums it in one order: no two threads share anything, and the
// bits are the same from run to run. All arithmetic on indices has 64 bits, so there is no precondition.
// It exists to take what no other algorithm takes, and as the oracle of the others on a device: it shares
// none of their geometry. As in the others, cells of the padding, and of dy beyond its ends, are zeros that are
// multiplied like any cell, so that zero times infinity is not a number.
//
// Neighbouring threads differ in the last spatial axis, or, where `lanes` is above 1, in the channel: that
// is for channels-last arrays.
#pragma once
#include "indexing.cuh"
#include "numerics.cuh"

constexpr Index OUTSIDE = -1, STEPPED_OVER = -2;

// The input cell that output p and tap r meet, or OUTSIDE in the padding.
__device__ inline Index input_cell(const Axis& a, Index p, Index r) {
  const Index cell = p * a.stride - a.padding + r * a.dilation;
  return cell >= 0 && cell < a.input ? cell : OUTSIDE;
}

// The output cell that input h and tap r meet in, OUTSIDE beyond the ends, or STEPPED_OVER by the stride, which is no
// product.
__device__ inline Index output_cell(const Axis& a, Index h, Index r) {
  const Index reach = h + a.padding - r * a.dilation, length = reach < 0 ? -reach : reach;
  const Index cell = divide(length, a.by_stride);
  if (cell * a.stride != length) return STEPPED_OVER;
  return reach >= 0 && cell < a.output ? cell : OUTSIDE;
}

// An element if it is inside of its array, or zero.
template <typename T>
__device__ inline Accumulator<T> read_if(bool inside, const T* element) {
  return inside ? widen(*element) : Accumulator<T>{};
}

template <typename T>
__device__ void conv_fprop_direct(const void* a, const void* b, const void* bias, void* out, const Params& p) {
  Index y[5];
  if (!own_element(p, y)) return;
  const Index channel = divide(y[1], p.group) * p.channels;
  const T* x = static_cast<const T*>(a) + y[0] * p.a[0] + channel * p.a[1];
  const T* w = static_cast<const T*>(b) + p.b_start + y[1] * p.b[0];
  Accumulator<T> sum{};
  for (Index t = 0; t < p.axis[0].filter; ++t) {
    const Index d = input_cell(p.axis[0], y[2], t);
    for (Index r = 0; r < p.axis[1].filter; ++r) {
      const Index h = input_cell(p.axis[1], y[3], r);
      for (Index s = 0; s < p.axis[2].filter; ++s) {
        const Index v = input_cell(p.axis[2], y[4], s);
        const bool inside = d >= 0 && h >= 0 && v >= 0;
        const T* cell = x + d * p.a[2] + h * p.a[3] + v * p.a[4];
        const T* weight = w + t * p.b[2] + r * p.b[3] + s * p.b[4];
#pragma unroll 1  // keeps all in registers on every architecture
        for (Index c = 0; c < p.channels; ++c)
          sum = multiply_add(read_if(inside, cell + c * p.a[1]),
                             conjugate_if(p.conjugate, widen(weight[c * p.b[1]])), sum);
      }
    }
  }
  finish<T>(p, out, offset_of(p.out_start, p.out, y), sum, bias, y[1]);
}

template <typename T>
__device__ void conv_dgrad_direct(const void* a, const void* b, const void* bias, void* out, const Params& p) {
  Index dx[5];
  if (!own_element(p, dx)) return;
  const Index group = divide(dx[1], p.group), filter = group * p.filters;
  const T* dy = static_cast<const T*>(a) + dx[0] * p.a[0] + filter * p.a[1];
  const T* w = static_cast<const T*>(b) + p.b_start + filter * p.b[0] + (dx[1] - group * p.channels) * p.b[1];
  Accumulator<T> sum{};
  for (Index t = 0; t < p.axis[0].filter; ++t) {
    const Index z = output_cell(p.axis[0], dx[2], t);
    if (z == STEPPED_OVER) continue;
    for (Index r = 0; r < p.axis[1].filter; ++r) {
      const Index pp = output_cell(p.axis[1], dx[3], r);
      if (pp == STEPPED_OVER) continue;
      for (Index s = 0; s < p.axis[2].filter; ++s) {
        const Index q = output_cell(p.axis[2], dx[4], s);
        if (q == STEPPED_OVER) continue;
        const bool inside = z >= 0 && pp >= 0 && q >= 0;
        const T* cell = dy + z * p.a[2] + pp * p.a[3] + q * p.a[4];
        const T* weight = w + t * p.b[2] + r * p.b[3] + s * p.b[4];
#pragma unroll 1
        for (Index k = 0; k < p.filters; ++k)
          sum = multiply_add(read_if(inside, cell + k * p.a[1]),
                             conjugate_if(p.conjugate, widen(weight[k * p.b[0]])), sum);
      }
    }
  }
  finish<T>(p, out, offset_of(p.out_start, p.out, dx), sum, bias, dx[1]);
}

template <typename T>
__device__ void conv_wgrad_direct(const void* a, const void* b, const void*, void* out, const Params& p) {
  Index dw[5];
  if (!own_element(p, dw)) return;
  const Index channel = divide(dw[0], p.group) * p.channels + dw[1];
  const T* x = static_cast<const T*>(a) + channel * p.a[1];
  const T* dy = static_cast<const T*>(b) + p.b_start + dw[0] * p.b[1];
  Accumulator<T> sum{};
  for (Index n = 0; n < p.batch; ++n) {
    for (Index z = 0; z < p.axis[0].output; ++z) {
      const Index d = input_cell(p.axis[0], z, dw[2]);
      for (Index pp = 0; pp < p.axis[1].output; ++pp) {
        const Index h = input_cell(p.axis[1], pp, dw[3]);
        const T* cells = x + n * p.a[0] + d * p.a[2] + h * p.a[3];
        const T* grads = dy + n * p.b[0] + z * p.b[2] + pp * p.b[3];
#pragma unroll 1
        for (Index q = 0; q < p.axis[2].output; ++q) {
          const Index v = input_cell(p.axis[2], q, dw[4]);
          const auto cell = read_if(d >= 0 && h >= 0 && v >= 0, cells + v * p.a[4]);
          sum = multiply_add(widen(grads[q * p.b[4]]), conjugate_if(p.conjugate, cell), sum);
        }
      }
    }
  }
  store<T>(p, out, offset_of(p.out_start, p.out, dw), sum);
}
