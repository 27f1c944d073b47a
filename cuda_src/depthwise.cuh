// Depthwise convolution and its gradients (groups == C) without a matrix product, by windows that slide in registers.
//
// Channel k = c m + j of y belongs to channel c of x, m = K / C being the multiplier:
//
//   fprop  y[n, k, p] = sum over r of  x[n, c, p s - a + r d] w[k, r]
//   dgrad  dx[n, c, h] = sum over j, r with p s - a + r d = h of  dy[n, c m + j, p] conj(w[c m + j, r])
//   wgrad  dw[k, r] = sum over n, p of  dy[n, k, p] conj(x[n, c, p s - a + r d])
//
// For every dtype, rank and layout, padded with zeros. One of the spatial axes, the second as the launch orders them,
// is the sliding one. On it a thread owns OUT results, a strip, so far apart that they read one column of cells: with
// stride s, dilation d and g = gcd(s, d), results d / g apart read every d-th cell, each of them s / g cells further
// than the one before, so that tap i of result o meets cell o * STEP + i, STEP = s / g. The column is read once into
// registers and used up to TAPS times over. More taps on that axis are done TAPS at a time; on the other axes taps are
// looped over.
//
// `lanes` neighbouring threads differ in their channels: 1, so that they differ in the last spatial axis, or 32 for
// channels-last arrays. In fprop and dgrad every element of the result has one thread; for channels-last arrays a
// thread also owns WIDE neighbouring channels, read as one vector. In wgrad a block sums over one part of dy for a
// patch of TAPS x ACROSS taps, by a tree in shared memory; parts are added by `conv_reduce`. All orders are fixed.
//
// Preconditions (cuda/depthwise.py): groups == C; coordinates, and the number of work items
// per image (in wgrad, of all images), fit 31 bits; OUT > 1 only for the STEP that the problem has; WIDE > 1 only for
// m == 1 and C a multiple of it. It exists since these are bound by memory: as a product they are one row thin.
#pragma once
#include "indexing.cuh"
#include "sums.cuh"

// Whether all packs of an array can be read as vectors: channels are contiguous, and all else is aligned.
template <typename T, int WIDE>
__device__ inline bool whole_packs(const T* data, const Index (&stride)[5], int channel_axis) {
  Index steps = 0;
  for (int i = 0; i < 5; ++i)
    if (i != channel_axis) steps |= stride[i];
  return stride[channel_axis] == 1 && steps % WIDE == 0 && reinterpret_cast<size_t>(data) % sizeof(Pack<T, WIDE>) == 0;
}

template <typename T, int WIDE>
__device__ inline Pack<T, WIDE> load_pack(const T* data, Index stride, bool whole) {
  if constexpr (WIDE > 1) {
    if (!whole) {
      Pack<T, WIDE> pack;
#pragma unroll
      for (int v = 0; v < WIDE; ++v) pack.value[v] = data[v * stride];
      return pack;
    }
  }
  return *reinterpret_cast<const Pack<T, WIDE>*>(data);
}

// A work item is a strip of OUT results of the sliding axis: which strip it is, its cells on the other two axes, and
// its pack of WIDE channels (in wgrad its image). digit[] has the divisors of the three fastest digits of an item's
// number.
struct Item {
  int outer, first, strip, last;
};

__device__ inline Item item_at(const Params& p, int index, bool outer_fastest) {
  Index found[3];
  const int rest = int(take_digits(p, index, found));
  const int digit[3] = {int(found[0]), int(found[1]), int(found[2])};
  return outer_fastest ? Item{digit[0], rest, digit[2], digit[1]} : Item{rest, digit[2], digit[1], digit[0]};
}

// Results of a strip are `apart` from one another, so that `apart` strips interleave.
__device__ inline int strip_start(int strip, int out, int apart) {
  return apart == 1 ? strip * out : strip / apart * (apart * out) + strip % apart;
}

// Sum the strip of an item over the taps of `sources` source channels, and store it.
template <typename T, int OUT, int STEP, int TAPS, int WIDE>
__device__ inline void gather_strip(const void* a, const void* b, const void* bias, void* out, const Params& p,
                                    const GatherAxis (&axis)[3], Index n, const Item& item, int source_channel,
                                    int sources, int apart) {
  using Acc = Accumulator<T>;
  constexpr int CELLS = (OUT - 1) * STEP + TAPS;
  const int channel = item.outer * WIDE, start = strip_start(item.strip, OUT, apart);
  // Residues at the end, and strips that interleave, may have less than there are items for.
  if (item.first >= axis[0].outputs || start >= axis[1].outputs || item.last >= axis[2].outputs) return;
  Acc sum[OUT][WIDE];
#pragma unroll
  for (int o = 0; o < OUT; ++o)
#pragma unroll
    for (int v = 0; v < WIDE; ++v) sum[o][v] = Acc{};

  const T* const source = static_cast<const T*>(a);
  const T* const filters = static_cast<const T*>(b) + p.b_start;
  const bool whole_cells = whole_packs<T, WIDE>(source, p.a, 1), whole_taps = whole_packs<T, WIDE>(filters, p.b, 0);
  for (int j = 0; j < sources; ++j) {
    const int filter = sources == 1 ? channel : source_channel + j;
    const T* cells = source + n * p.a[0] + (source_channel + j) * p.a[1];
    const T* weights = filters + filter * p.b[0];
    for (int t = 0; t < axis[0].taps; ++t) {
      const int d = axis[0].source(item.first, t);
      for (int s = 0; s < axis[2].taps; ++s) {
        const int w = axis[2].source(item.last, s);
        // Beside the source all of the column is zeros, which are multiplied like any cell: 0 * infinity is NaN.
        const bool beside = unsigned(d) >= unsigned(axis[0].sources) || unsigned(w) >= unsigned(axis[2].sources);
        const int length = beside ? 0 : axis[1].sources;
        const T* column = cells + d * p.a[2] + w * p.a[4];
        const T* taps = weights + axis[0].filter_tap(t) * p.b[2] + axis[2].filter_tap(s) * p.b[4];
        for (int r = 0; r < axis[1].taps; r += TAPS) {
          Pack<T, WIDE> cell[CELLS];
#pragma unroll
          for (int i = 0; i < CELLS; ++i) {
            const int h = axis[1].source(start, r + i);
            cell[i] = unsigned(h) < unsigned(length)
                          ? load_pack<T, WIDE>(column + h * p.a[3], p.a[1], whole_cells)
                          : Pack<T, WIDE>{};
          }
#pragma unroll
          for (int i = 0; i < TAPS; ++i) {
            if (r + i >= axis[1].taps) break;
            const auto weight = load_pack<T, WIDE>(taps + axis[1].filter_tap(r + i) * p.b[3], p.b[0], whole_taps);
#pragma unroll
            for (int v = 0; v < WIDE; ++v) {
              const Acc factor = conjugate_if(p.conjugate, widen(weight.value[v]));
#pragma unroll
              for (int o = 0; o < OUT; ++o)
                sum[o][v] = multiply_add(widen(cell[o * STEP + i].value[v]), factor, sum[o][v]);
            }
          }
        }
      }
    }
  }

  const Index place = p.out_start + n * p.out[0] + channel * p.out[1] + axis[0].cell(item.first) * p.out[2] +
                      axis[2].cell(item.last) * p.out[4];
#pragma unroll
  for (int o = 0; o < OUT; ++o) {
    const int h = start + o * apart;
    if (h >= axis[1].outputs) break;
    const Index offset = place + axis[1].cell(h) * p.out[3];
#pragma unroll
    for (int v = 0; v < WIDE; ++v) finish<T>(p, out, offset + v * p.out[1], sum[o][v], bias, channel + v);
  }
}

// Blocks run over the `items` of an image, then over images.
template <typename T, int THREADS, int OUT, int STEP, int TAPS, int WIDE>
__device__ void conv_fprop_depthwise(const void* a, const void* b, const void* bias, void* out, const Params& p) {
  const Index blocks = tiles(p.items, THREADS);
  const Index index = blockIdx.x % blocks * THREADS + threadIdx.x;
  if (index >= p.items) return;
  const Item item = item_at(p, int(index), p.lanes > 1);
  const GatherAxis axis[3] = {forward_axis(p.axis[0]), forward_axis(p.axis[1]), forward_axis(p.axis[2])};
  const int channel = item.outer * WIDE, multiplier = int(p.filters);
  gather_strip<T, OUT, STEP, TAPS, WIDE>(a, b, bias, out, p, axis, blockIdx.x / blocks, item,
                                         multiplier == 1 ? channel : channel / multiplier, 1, int(p.axis[1].shift));
}

// Blocks run over the items of one image and one residue of the stride, then over residues, then over images.
template <typename T, int THREADS, int OUT, int STEP, int TAPS, int WIDE>
__device__ void conv_dgrad_depthwise(const void* a, const void* b, const void* bias, void* out, const Params& p) {
  const Index extents[5] = {0, p.axis[0].stride, p.axis[1].stride, p.axis[2].stride, tiles(p.items, THREADS)};
  Index digit[5];
  split(blockIdx.x, extents, digit);
  const Index index = digit[4] * THREADS + threadIdx.x;
  if (index >= p.items) return;
  const Item item = item_at(p, int(index), p.lanes > 1);
  const GatherAxis axis[3] = {residue_axis(p.axis[0], int(digit[1])), residue_axis(p.axis[1], int(digit[2])),
                              residue_axis(p.axis[2], int(digit[3]))};
  const int multiplier = int(p.filters);
  gather_strip<T, OUT, STEP, TAPS, WIDE>(a, b, bias, out, p, axis, digit[0], item, item.outer * WIDE * multiplier,
                                         multiplier, int(p.axis[1].shift));
}

// A block owns one tap of axis 0, a patch of taps of the other two, `lanes` channels of y, and `chunk` of the `items`,
// which here are strips of dy of one channel, of all images.
template <typename T, int THREADS, int OUT, int STEP, int TAPS, int ACROSS>
__device__ void conv_wgrad_depthwise(const void* a, const void* b, const void*, void* out, const Params& p) {
  using Acc = Accumulator<T>;
  constexpr int CELLS = (OUT - 1) * STEP + TAPS;
  __shared__ Acc total[TAPS * ACROSS][THREADS];
  const GatherAxis axis[3] = {forward_axis(p.axis[0]), forward_axis(p.axis[1]), forward_axis(p.axis[2])};
  const int lanes = int(p.lanes), filters = int(p.groups * p.filters), apart = int(p.axis[1].shift);
  const Index extents[5] = {0, tiles(filters, lanes), axis[0].taps, tiles(axis[1].taps, TAPS),
                            tiles(axis[2].taps, ACROSS)};
  Index digit[5];
  split(blockIdx.x, extents, digit);
  const int k = int(digit[1]) * lanes + threadIdx.x % lanes, t = int(digit[2]);
  const int r = int(digit[3]) * TAPS, s = int(digit[4]) * ACROSS;
  Acc sum[TAPS][ACROSS];
#pragma unroll
  for (int i = 0; i < TAPS; ++i)
#pragma unroll
    for (int j = 0; j < ACROSS; ++j) sum[i][j] = Acc{};

  const T* cells = static_cast<const T*>(a) + k / int(p.filters) * p.a[1];
  const T* grads = static_cast<const T*>(b) + p.b_start + k * p.b[1];
  const Index end = k < filters ? min_index((digit[0] + 1) * p.chunk, p.items) : 0;
  for (Index index = digit[0] * p.chunk + threadIdx.x / lanes; index < end; index += THREADS / lanes) {
    const Item item = item_at(p, int(index), false);
    const int n = item.outer, z = item.first, start = strip_start(item.strip, OUT, apart), q = item.last;
    const int d = axis[0].source(z, t);
    Acc grad[OUT];
#pragma unroll
    for (int o = 0; o < OUT; ++o) {
      const int h = start + o * apart;
      grad[o] = h < axis[1].outputs ? widen(grads[n * p.b[0] + z * p.b[2] + h * p.b[3] + q * p.b[4]]) : Acc{};
    }
#pragma unroll
    for (int j = 0; j < ACROSS; ++j) {
      const int w = axis[2].source(q, s + j);
      if (s + j >= axis[2].taps) break;
      const bool beside = unsigned(d) >= unsigned(axis[0].sources) || unsigned(w) >= unsigned(axis[2].sources);
      const int length = beside ? 0 : axis[1].sources;
      const T* column = cells + n * p.a[0] + d * p.a[2] + w * p.a[4];
      Acc cell[CELLS];
#pragma unroll
      for (int i = 0; i < CELLS; ++i) {
        const int h = axis[1].source(start, r + i);
        cell[i] = unsigned(h) < unsigned(length) ? conjugate_if(p.conjugate, widen(column[h * p.a[3]])) : Acc{};
      }
#pragma unroll
      for (int o = 0; o < OUT; ++o) {
        if (start + o * apart >= axis[1].outputs) break;  // an infinite cell must not meet a gradient that is not there
#pragma unroll
        for (int i = 0; i < TAPS; ++i) sum[i][j] = multiply_add(grad[o], cell[o * STEP + i], sum[i][j]);
      }
    }
  }

#pragma unroll
  for (int i = 0; i < TAPS; ++i)
#pragma unroll
    for (int j = 0; j < ACROSS; ++j) total[i * ACROSS + j][threadIdx.x] = sum[i][j];
  block_sum(total, lanes);
  const Index copy = p.out_start + digit[0] * filters * axis[0].taps * axis[1].taps * axis[2].taps;
#pragma unroll 1
  for (int cell = threadIdx.x / lanes; cell < TAPS * ACROSS; cell += THREADS / lanes) {
    const int i = r + cell / ACROSS, j = s + cell % ACROSS;
    if (k < filters && i < axis[1].taps && j < axis[2].taps)
      store<T>(p, out, copy + k * p.out[0] + t * p.out[2] + i * p.out[3] + j * p.out[4],
               total[cell][threadIdx.x % lanes]);
  }
}
