// Padding modes other than zeros: the padded copy of x before an algorithm, the fold of its gradient after.
//
// Padded coordinate i on an axis, from -a on, shows the input cell source(i): i mod H (circular), the mirror
// image about the outermost cells (reflect), or the outermost cell (replicate). `conv_pad` writes
//
//   padded[n, c, i] = x[n, c, source(i)]
//
// and `conv_fold`, its transpose, finishes what dgrad has made of the padded input,
//
//   dx[n, c, h] = sum over i with source(i) = h of  dpadded[n, c, i].
//
// In between every algorithm sees a problem without padding, and knows of zeros alone. A thread owns one
// element of the result; sums run in one order. In both, axis.input is H, axis.output the padded extent,
// axis.padding a, and axis.stride the period after which an axis repeats itself: H, or for the mirrored one
// 2 (H - 1) and at least 1. dpadded has the accumulator's type.
#pragma once
#include "direct.cuh"

enum PaddingMode { ZEROS, CIRCULAR, REFLECT, REPLICATE };  // the order of PADDING_MODES in problem.py

__device__ inline Index modulo_period(Index i, const Axis& a) {
  const Index positive = i < 0 ? -1 - i : i;
  const Index rest = positive - divide(positive, a.by_stride) * a.stride;
  return i < 0 ? a.stride - 1 - rest : rest;
}

__device__ inline Index source(Index mode, Index i, const Axis& a) {
  if (mode == REPLICATE) return i < 0 ? 0 : i < a.input ? i : a.input - 1;
  const Index rest = modulo_period(i, a);
  return mode == CIRCULAR ? rest : min_index(rest, a.stride - rest);
}

// Call visit(i) for the padded coordinates that show cell h of one axis: those in one or two residue classes,
// or, where the outermost cell is replicated, all beyond it.
template <typename Visit>
__device__ inline void for_each_image(Index mode, const Axis& a, Index h, Visit visit) {
  const Index begin = -a.padding, end = a.output - a.padding, last = a.input - 1;
  if (mode == REPLICATE) {
    const Index from = h == 0 ? begin : h < begin ? begin : h;
    const Index to = h == last ? end : min_index(h + 1, end);
    for (Index i = from; i < to; ++i) visit(i);
    return;
  }
  for (Index i = begin + modulo_period(h - begin, a); i < end; i += a.stride) visit(i);
  if (mode == REFLECT && h != 0 && h != last)
    for (Index i = begin + modulo_period(-h - begin, a); i < end; i += a.stride) visit(i);
}

template <typename T>
__device__ void conv_pad(const void* a, const void*, const void*, void* out, const Params& p) {
  Index cell[5];
  if (!own_element(p, cell)) return;
  const Index to = offset_of(p.out_start, p.out, cell);
  for (int i = 0; i < 3; ++i)
    cell[2 + i] = source(p.mode, cell[2 + i] - p.axis[i].padding, p.axis[i]);
  static_cast<T*>(out)[to] = static_cast<const T*>(a)[offset_of(p.a_start, p.a, cell)];
}

template <typename T>
__device__ void conv_fold(const void* a, const void*, const void* bias, void* out, const Params& p) {
  Index dx[5];
  if (!own_element(p, dx)) return;
  const auto* padded = static_cast<const Accumulator<T>*>(a) + p.a_start + dx[0] * p.a[0] + dx[1] * p.a[1];
  Accumulator<T> sum{};
  for_each_image(p.mode, p.axis[0], dx[2], [&](Index d) {
    for_each_image(p.mode, p.axis[1], dx[3], [&](Index h) {
      for_each_image(p.mode, p.axis[2], dx[4], [&](Index w) {
        sum = sum + padded[(d + p.axis[0].padding) * p.a[2] + (h + p.axis[1].padding) * p.a[3] +
                           (w + p.axis[2].padding) * p.a[4]];
      });
    });
  });
  finish<T>(p, out, offset_of(p.out_start, p.out, dx), sum, bias, dx[1]);
}
