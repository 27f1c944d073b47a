// Padding modes other than zeros: the padded copy of x before an algorithm, the fold of its gradient after; and
// `near_source`, by which kernels read what padding shows without a copy.
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
// In between an algorithm sees a problem without padding, and knows of zeros alone. A thread owns one
// element of the result; sums run in one order. In both, axis.input is H, axis.output the padded extent,
// axis.padding a, and axis.stride the period after which an axis repeats itself: H (circular), 2 (H - 1) and at
// least 1 (reflect), or 2 H (symmetric) (cuda/geometry.py). dpadded has the accumulator's type.
#pragma once
#include "indexing.cuh"
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

// The same for coordinates at most one period away from the input (`padding_is_near` in cuda/schedule.py), of an axis
// of so many cells, with 32 bits or 64: nothing is divided. Who calls it calls `end_unless_shown` as well.
template <typename Int>
__device__ inline Int near_source(Index mode, Int i, Int extent) {
  const Int last = extent - 1;
  switch (PaddingMode(mode)) {
    case CIRCULAR: return i < 0 ? i + extent : i > last ? i - extent : i;
    case REFLECT: return i < 0 ? -i : i > last ? 2 * last - i : i;
    case SYMMETRIC: return i < 0 ? -1 - i : i > last ? last + extent - i : i;
    case ZEROS:
    case REPLICATE: break;
  }
  return i < 0 ? 0 : i > last ? last : i;
}

// Ends the launch where there is no such mode, or that of zeros. Best after the main loop: where a launch may have ended
// before, the compiler does not keep descriptors of memory in uniform registers, and the loop has more instructions.
__device__ inline void end_unless_shown(Index mode) {
  switch (PaddingMode(mode)) {
    case ZEROS: break;
    case CIRCULAR:
    case REFLECT:
    case REPLICATE:
    case SYMMETRIC: return;
  }
  __trap();
}

// Both at once.
template <typename Int>
__device__ inline Int padded_source(Index mode, Int i, Int extent) {
  end_unless_shown(mode);
  return near_source(mode, i, extent);
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

// Elements are copied whatever they mean; SIZE is theirs in bytes.
template <int SIZE>
__device__ void conv_pad(const void* a, const void*, const void*, void* out, const Params& p) {
  Index cell[5];
  if (!own_element(p, cell)) return;
  const Index to = offset_of(p.out_start, p.out, cell);
  for (int i = 0; i < 3; ++i)
    cell[2 + i] = source(p.mode, cell[2 + i] - p.axis[i].padding, p.axis[i]);
  struct alignas(SIZE) Element {
    unsigned char byte[SIZE];
  };
  static_cast<Element*>(out)[to] = static_cast<const Element*>(a)[offset_of(0, p.a, cell)];
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
