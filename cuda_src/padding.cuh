// Padding modes other than zeros: the padded copy of x before an algorithm, the fold of its gradient after.
//
// Padded coordinate i on an axis, from -a on, shows the input cell source(i): i mod H (circular), the mirror
// image about the outermost cells (reflect) or about the edges beyond them (symmetric), or the outermost cell
// (replicate). `conv_pad` writes
//
//   padded[n, c, i] = x[n, c, source(i)]
//
// and `conv_fold`, its transpose, finishes what dgrad has made of the padded input,
//
//   dx[n, c, h] = sum over i with source(i) = h of  dpadded[n, c, i].
//
// In between every algorithm sees a problem without padding, and knows of zeros alone. A thread owns one
// element of the result; sums run in one order. In both, axis.input is H, axis.output the padded extent,
// axis.padding a, and axis.stride the period after which an axis repeats itself: H (circular), 2 (H - 1) and at
// least 1 (reflect), or 2 H (symmetric) (cuda/geometry.py). dpadded has the accumulator's type.
#pragma once
#include "elements.cuh"
#include "numerics.cuh"

// The order of PADDING_MODES in problem.py. One that a switch leaves out does not compile in the tests; zeros, and what
// is not here, end the launch.
enum PaddingMode : int { ZEROS, CIRCULAR, REFLECT, REPLICATE, SYMMETRIC };

__device__ inline Index modulo_period(Index i, const Axis& a) {
  const Index positive = i < 0 ? -1 - i : i;
  const Index rest = positive - divide(positive, a.by_stride) * a.stride;
  return i < 0 ? a.stride - 1 - rest : rest;
}

// The mirror image of a coordinate about the first cell, or about the edge before it.
__device__ inline Index mirror_image(Index mode, Index i) { return mode == SYMMETRIC ? -1 - i : -i; }

__device__ inline Index source(Index mode, Index i, const Axis& a) {
  if (i >= 0 && i < a.input) return i;
  const Index rest = modulo_period(i, a);
  switch (PaddingMode(mode)) {
    case ZEROS: break;
    case CIRCULAR: return rest;
    case REFLECT:
    case SYMMETRIC: return min_index(rest, a.stride + mirror_image(mode, rest));
    case REPLICATE: return i < 0 ? 0 : min_index(i, a.input - 1);
  }
  __trap();
  return 0;
}

// The padded coordinates that show one cell of an axis: those in one or two residue classes of the period or, where
// the outermost cell is replicated, all beyond it.
struct Images {
  Index first, count, second, more, step;

  __device__ Index total() const { return count + more; }
  __device__ Index at(Index i) const { return i < count ? first + i * step : second + (i - count) * step; }
};

// How many of first, first + step, ... are below end, the step being the axis's period.
__device__ inline Index count_to(Index first, Index end, const Axis& a) {
  return first < end ? divide(end - 1 - first, a.by_stride) + 1 : 0;
}

__device__ inline Images images_of(Index mode, const Axis& a, Index h) {
  const Index begin = -a.padding, end = a.output - a.padding, last = a.input - 1;
  const Index first = begin + modulo_period(h - begin, a), count = count_to(first, end, a);
  const Index mirrored = begin + modulo_period(mirror_image(mode, h) - begin, a);
  switch (PaddingMode(mode)) {
    case ZEROS: break;
    case CIRCULAR: return {first, count, 0, 0, a.stride};
    case REFLECT:  // where the outermost cells are their own images
    case SYMMETRIC: return {first, count, mirrored, mirrored == first ? 0 : count_to(mirrored, end, a), a.stride};
    case REPLICATE: {
      const Index from = h == 0 || h < begin ? begin : h, to = h == last ? end : min_index(h + 1, end);
      return {from, to > from ? to - from : 0, 0, 0, 1};
    }
  }
  __trap();
  return {};
}

// Elements are copied whatever they mean, as integers of their size.
template <int SIZE>
struct ElementOf {
  struct alignas(16) Type {
    unsigned word[4];
  };
};
template <>
struct ElementOf<2> {
  using Type = unsigned short;
};
template <>
struct ElementOf<4> {
  using Type = unsigned;
};
template <>
struct ElementOf<8> {
  using Type = unsigned long long;
};

template <int SIZE, int THREADS>
__device__ void conv_pad(const void* a, const void*, const void*, void* out, const Params& p) {
  using Element = typename ElementOf<SIZE>::Type;
  const auto at = [&](Index number, int first, int end) {
    Index place = 0;
    for_digits(p, number, first, end, [&](int axis, Index digit) {
      const Axis& spatial = p.axis[axis < 2 ? 0 : axis - 2];
      place += (axis < 2 ? digit : source(p.mode, digit - spatial.padding, spatial)) * p.a[axis];
    });
    return place;
  };
  copy_elements<Element, Element, THREADS>(p, static_cast<const Element*>(a), out, at, [](Element e) { return e; });
}

template <typename T>
__device__ void conv_fold(const void* a, const void*, const void* bias, void* out, const Params& p) {
  Index dx[5];
  if (!own_element(p, dx)) return;
  const auto* padded = static_cast<const Accumulator<T>*>(a) + dx[0] * p.a[0] + dx[1] * p.a[1];
  const Images d = images_of(p.mode, p.axis[0], dx[2]), h = images_of(p.mode, p.axis[1], dx[3]);
  const Images w = images_of(p.mode, p.axis[2], dx[4]);
  Accumulator<T> sum{};
  for (Index i = 0; i < d.total(); ++i)
    for (Index j = 0; j < h.total(); ++j)
#pragma unroll 1
      for (Index k = 0; k < w.total(); ++k)
        sum = sum + padded[(d.at(i) + p.axis[0].padding) * p.a[2] + (h.at(j) + p.axis[1].padding) * p.a[3] +
                           (w.at(k) + p.axis[2].padding) * p.a[4]];
  finish<T>(p, out, offset_of(p.out_start, p.out, dx), sum, bias, dx[1]);
}
