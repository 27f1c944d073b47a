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
// In between an algorithm sees a problem without padding, and knows of zeros alone. A block owns elements of
// the result side by side, and finds their places by tables of its rows and columns (elements.cuh); sums run in
// one order. In both, axis.input is H, axis.output the padded extent, axis.padding a, and axis.stride the period
// after which an axis repeats itself: H (circular), 2 (H - 1) and at least 1 (reflect), or 2 H (symmetric)
// (cuda/geometry.py). dpadded has the accumulator's type, and no negative strides.
#pragma once
#include "elements.cuh"
#include "numerics.cuh"

// The order of PADDING_MODES in problem.py. One that a switch leaves out does not compile in the tests; zeros, and what
// is not here, end the launch.
enum PaddingMode : int { ZEROS, CIRCULAR, REFLECT, REPLICATE, SYMMETRIC };

// n >= 0 in whole periods and a rest. The loop is passed once at the most, and seldom that.
struct Periods {
  Index count, rest;
};

__device__ inline Periods periods(Index n, const Axis& a) {
  Periods found = {0, n};
#pragma unroll 1
  while (found.rest >= a.stride) {
    found.count = divide(n, a.by_stride);
    found.rest = n - found.count * a.stride;
  }
  return found;
}

__device__ inline Index modulo_period(Index i, const Axis& a) {
  const Index rest = periods(i < 0 ? -1 - i : i, a).rest;
  return i < 0 ? a.stride - 1 - rest : rest;
}

// The mirror image of a coordinate about the first cell, or about the edge before it.
__device__ inline Index mirror_image(Index mode, Index i) { return mode == SYMMETRIC ? -1 - i : -i; }

// The cell that a coordinate shows: most show their own, and the loop is passed once at the most.
__device__ inline Index source(Index mode, Index i, const Axis& a) {
  while (i < 0 || i >= a.input) {
    const Index rest = modulo_period(i, a);
    Index shown = -1;
    switch (PaddingMode(mode)) {
      case ZEROS: break;
      case CIRCULAR: shown = rest; break;
      case REFLECT:
      case SYMMETRIC: shown = min_index(rest, a.stride + mirror_image(mode, rest)); break;
      case REPLICATE: shown = i < 0 ? 0 : a.input - 1; break;
    }
    if (shown < 0) __trap();
    i = shown;
  }
  return i;
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

// Ends the launch where there is no such mode, or that of zeros. Best after the main loop: where a launch may have
// ended before, the compiler does not keep descriptors of memory in uniform registers, and the loop has more
// instructions.
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
  return first < end ? periods(end - 1 - first, a).count + 1 : 0;
}

__device__ inline Images images_of(Index mode, const Axis& a, Index h) {
  const Index after = a.output - a.input - a.padding;
  const Index near = magnitude(a.padding) > magnitude(after) ? magnitude(a.padding) : magnitude(after);
  if (near == 0 || (h > near && h < a.input - 1 - near)) return {h, 1, 0, 0, 1};  // far from either end
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

// The sum of all images of one element of dx, which `number` numbers.
template <typename T>
__device__ inline void fold_images(const Accumulator<T>* padded, const void* bias, void* out, const Params& p,
                                   Index number) {
  Images images[3];
  Index from = 0, to = p.out_start, channel = 0;
  for_digits(p, number, 0, 5, [&](int axis, Index digit) {
    to += digit * p.out[axis];
    if (axis == 1) channel = digit;
    if (axis < 2) from += digit * p.a[axis];
    const Images found = axis < 2 ? Images{} : images_of(p.mode, p.axis[axis - 2], digit);
    if (axis == 2) images[0] = found;  // registers have no index
    if (axis == 3) images[1] = found;
    if (axis == 4) images[2] = found;
  });
  const auto& [d, h, w] = images;
  Accumulator<T> sum{};
  for (Index i = 0; i < d.total(); ++i)
    for (Index j = 0; j < h.total(); ++j) {
      const Index row = from + (d.at(i) + p.axis[0].padding) * p.a[2] + (h.at(j) + p.axis[1].padding) * p.a[3];
      for (Index k = 0; k < w.total(); ++k) sum = sum + padded[row + (w.at(k) + p.axis[2].padding) * p.a[4]];
    }
  finish<T>(p, out, to, sum, bias, channel);
}

// A thread owns 8 elements of dx, in vectors. Most cells of an axis have one image, and those near its ends two: the
// block's tables have where both are. The few with more, or none, and those of the last block, are done one by one.
template <typename T, int THREADS>
__device__ void conv_fold(const void* a, const void*, const void* bias, void* out, const Params& p) {
  using Acc = Accumulator<T>;
  constexpr int EACH = 8, V = 16 / sizeof(Acc);
  using Elements = ::Elements<THREADS, EACH>;
  using Places = typename Elements::Places;
  constexpr Index OTHERS = -(Index(1) << 61);  // no second image; or, as the first, none, or more than two
  __shared__ Places table[3];
  Places &from = table[0], &second = table[1], &to = table[2];
  const auto* const padded = static_cast<const Acc*>(a);
  const Elements elements(p);
  elements.each(p, [&](bool is_row, int i, Index number, int first, int end) {
    Index source = 0, other = OTHERS, place = 0;
    for_digits(p, number, first, end, [&](int axis, Index digit) {
      place += digit * p.out[axis];
      const Axis& spatial = p.axis[axis < 2 ? 0 : axis - 2];
      const Images images = axis < 2 ? Images{digit, 1, 0, 0, 1} : images_of(p.mode, spatial, digit);
      const Index padding = axis < 2 ? 0 : spatial.padding, total = images.total();
      const Index before = source;
      source += (images.at(0) + padding) * p.a[axis];
      if (other >= 0) other += (images.at(0) + padding) * p.a[axis];
      if (total == 2 && other < 0)
        other = before + (images.at(1) + padding) * p.a[axis];
      else if (total != 1)
        source = other = OTHERS;
      if (before < 0) source = OTHERS;
    });
    (is_row ? from.rows : from.columns)[i] = source;
    (is_row ? second.rows : second.columns)[i] = other;
    (is_row ? to.rows : to.columns)[i] = place;
  });
  __syncthreads();  // the tables are there
  const bool whole = !bias && elements.items == Elements::COUNT;
#pragma unroll 1
  for (int first = int(threadIdx.x % THREADS) * V; first < elements.items; first += THREADS * V) {
    const auto own = elements.stretch(first);
    Pack<Acc, V> sum{};
    Index place[V];
    bool neighbours = true;
    unsigned others = 0;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const unsigned row = own.row + (whole && i >= own.in_row), slot = Places::slot(own.column + i);
      const bool done = whole && from.rows[row] >= 0 && from.columns[slot] >= 0;
      place[i] = done ? p.out_start + to.rows[row] + to.columns[slot] : NONE;
      neighbours = neighbours && done && place[i] == place[0] + i;
      if (!done) others |= 1u << i;
    }
    const unsigned next = own.row + (whole && own.in_row < V);
    const int images = 1 + (whole && (second.rows[own.row] >= 0 || second.rows[next] >= 0));
#pragma unroll 1
    for (int image = 0; image < images; ++image) {
      const Places& rows = image ? second : from;
      const Index own_row = rows.rows[own.row], next_row = rows.rows[next];
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const unsigned slot = Places::slot(own.column + i);
        const Index row = i < own.in_row ? own_row : next_row;
        const Index one = row + from.columns[slot], other = row + second.columns[slot];
        const bool wanted = place[i] != NONE && row >= 0, again = wanted && other >= 0;
        sum.value[i] = sum.value[i] + load_if(padded + (wanted ? one : 0), wanted);
        sum.value[i] = sum.value[i] + load_if(padded + (again ? other : 0), again);
      }
    }
    finish_pack<T>(p, out, 0, place, neighbours, sum, nullptr, 0, 0);
#pragma unroll 1
    for (int i = 0; others >> i; ++i)
      if (others >> i & 1 && first + i < elements.items)
        fold_images<T>(padded, bias, out, p, elements.begin + first + i);
  }
}
