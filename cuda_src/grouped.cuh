// Convolution and its gradients where groups have few channels, on tensor cores: 16-bit numbers, planes.
//
//   fprop  y[n, k, p] = sum over c, r of  x[n, c, p s - a + r d] w[k, c, r]           of one group
//   dgrad  dx[n, c, h] = sum over k, r with p s - a + r d = h of  dy[n, k, p] w[k, c, r]
//   wgrad  dw[k, c, r] = sum over n, p of  dy[n, k, p] x[n, c, p s - a + r d]
//
// A block has a set of groups and goes over tiles of pixels, each of one image. It brings the cells that a tile meets
// to shared memory, each one once, a plane for each octet of eight channels, and the next tile's while one is
// multiplied. An ldmatrix takes 16 pixels of two octets from there wherever taps say, so that no cell is there twice.
//
//   fprop, dgrad  gemm_k is octets of taps, two of them a step; gemm_n the results of a bundle, a few fragments
//   wgrad         gemm_m is pairs of taps of an octet, gemm_n octets of filters, gemm_k pixels
//
// Groups of four channels, or filters, come in bundles of two, as one with zeros where a filter has no channel. Zeros
// change no sum, but where they meet infinities of the other group: a warp that finds infinite sums, or NaN, does them
// again for one group after the other, with zeros for all the other has. In wgrad what channels and filters of
// different groups make is not stored.
//
// Of a layer with few channels, fprop and wgrad see taps of a line side by side in an octet (x is folded so: see
// folding.cuh; w and dw are not). What a line's last octet has too much is left out in the same way: w is zero there,
// infinite sums are done again without those cells, and wgrad does not store what they make.
//
// Of a layer with few channels, dgrad may do all residues of the stride together: places of dx, one cell of each residue,
// are its pixels, and their channels its results, side by side. Where the filter is no multiple of the stride some
// residues have one tap less, for which w has a zero; infinite sums are done again residue by residue.
//
// Of taps that do not exist, pixels beyond a tile and cells beside the source, zeros are multiplied by zeros. Tensor
// cores truncate: sums of 32 products start from zero, and are added with rounding. All orders are fixed.
//
// What launches say (cuda/grouped.py): digit[] counts sets of groups, or in wgrad of a single one's channels and
// filters, then in dgrad residues of w and h, in wgrad runs of taps; digit[3] says how many channels of a group are one
// tap's, and pixel[2] how many of them the last octet of a line has; digit[4] and digit[5] are a tile's pixels along the
// last axis and the one before; pixel[0] and pixel[1] count a plane's tiles; `group` is how many groups a set has;
// `chunk` is how many tiles a block does.
//
// Preconditions (cuda/grouped.py): the first axis has one cell; groups have 4, 8, 16 or 32 channels and filters, and
// all of them together whole octets, or there is a single one; channels of what is read in planes are contiguous, whole
// octets in memory, and so are all its other strides; coordinates fit 31 bits. It exists since tiles of mma.cuh are for
// 16 channels or more, and bring each cell once for each tap.
#pragma once
#include "mma.cuh"

// -- tiles ------------------------------------------------------------------------------------------

// A tile of pixels, in lines of whole octets of slots; and the cells that it meets, in lines of which each has the
// columns of one residue of the stride after the other: so an ldmatrix has neighbours, from different banks.
struct Halo {
  int high, wide, slots;
  int columns, apart, cells_wide, cells;  // of a line; from a residue's first to the next one's
  int row, row_tap, step, delta;          // from a pixel's line, and a tap's, to the next; of columns
  ShortDivisor by_step;

  __device__ Halo(const Params& p, const GatherAxis (&axis)[3])
      : high(int(p.digit[5].divisor)),
        wide(int(p.digit[4].divisor)),
        slots(round_up(wide, 8)),
        columns(reach(axis[2], wide)),
        step(axis[2].step),
        delta(axis[2].delta) {
    by_step = step == 1 ? ShortDivisor{1, 0, 0} : shortened(p.axis[2].by_stride);
    apart = (columns + step - 1) / step;
    cells_wide = apart * step;
    cells = cells_wide * reach(axis[1], high);
    row = axis[1].step * cells_wide;
    row_tap = axis[1].delta * cells_wide;
  }
  __device__ int count() const { return high * slots; }
  // How far a column's cell is from its line's first one.
  __device__ int place(int column) const {
    const int run = int(divide(unsigned(column), by_step));
    return (column - run * step) * apart + run;
  }
  __device__ int cell(int row_of_pixel, int column_of_pixel) const { return row_of_pixel * row + column_of_pixel; }
  // How far a tap's cell is from a pixel's.
  __device__ int tap(int r, int s) const { return r * row_tap + place(s * delta); }
  static __device__ int reach(const GatherAxis& axis, int pixels) {
    return (pixels - 1) * axis.step + max(axis.taps - 1, 0) * axis.delta + 1;
  }
};

// The first pixel of a tile.
struct TilePlace {
  Index image;
  int row, column;

  __device__ TilePlace(const Params& p, const Halo& halo, int number) {
    const int line = divide_small(number, p.pixel[0]), n = divide_small(line, p.pixel[1]);
    image = n;
    row = (line - n * int(p.pixel[1].divisor)) * halo.high;
    column = (number - line * int(p.pixel[0].divisor)) * halo.wide;
  }
};

__device__ inline int tile_count(const Params& p) { return int(p.batch * p.pixel[1].divisor * p.pixel[0].divisor); }

constexpr int OCTET = 16;  // bytes

// Cells of an image in global memory, strides in bytes.
struct Image {
  const char* data;
  Index row_stride, column_stride;
  int rows, columns, octets;
};

__device__ inline int logarithm(int power_of_two) { return __popc(power_of_two - 1); }

// The channels of a group as octets and shifts have them: of a single group, the next power of two.
__device__ inline int rounded(const Params& p, int channels) {
  int power = 8;
  while (power < channels) power *= 2;
  return p.groups == 1 ? power : channels;
}

// Bytes from a plane of so many cells to the next one, for neighbouring threads to write to different banks.
__device__ inline int plane_pitch(int cells, int planes) {
  const int rest = max(8 >> logarithm(planes), 1);
  return (round_up(cells - rest, 8) + rest) * OCTET;
}

// Which octets of lines of cells a thread copies: of one plane, every so many cells, a place and steps in lines.
struct CellShare {
  int plane, i, j, step_i, step_j, wide;

  __device__ CellShare(int threads, int planes, int wide) : plane(threadIdx.x & (planes - 1)), wide(wide) {
    const int cell = threadIdx.x >> logarithm(planes), step = threads >> logarithm(planes);
    i = cell / wide;
    j = cell - i * wide;
    step_i = step / wide;
    step_j = step - step_i * wide;
  }
};

// Brings lines of cells, the first of which is at (row, column), to a plane for each octet; zeros beside the image.
// place(i, j) says where a cell is in its plane.
template <typename Place>
__device__ inline void copy_cells(unsigned char* to, int pitch, CellShare share, const Image& from, int row, int column,
                                  int lines, Place place) {
  const char* const data = from.data + share.plane * OCTET;
  const bool exists = share.plane < from.octets;
  to += share.plane * pitch;
#pragma unroll 1
  while (share.i < lines) {
    const int h = row + share.i, w = column + share.j;
    const bool inside = exists & (unsigned(h) < unsigned(from.rows)) & (unsigned(w) < unsigned(from.columns));
    cp_async<OCTET>(to + place(share.i, share.j) * OCTET,
                    inside ? data + h * from.row_stride + w * from.column_stride : data, inside ? OCTET : 0);
    share.i += share.step_i;
    share.j += share.step_j;
    if (share.j >= share.wide) {
      share.j -= share.wide;
      ++share.i;
    }
  }
}

// Hands out shared memory, of which `_of_pixels` in cuda/grouped.py counts the bytes.
struct Memory {
  unsigned char* next;

  template <typename T>
  __device__ T* take(int count) {
    T* const taken = reinterpret_cast<T*>(next);
    next += (count * int(sizeof(T)) + 15) / 16 * 16;
    return taken;
  }
};

// -- fprop, and one residue of dgrad ------------------------------------------------------------------

// Where cells are: so far from a pixel's, or, if they are not there, from the start of shared memory, which is zeros.
struct alignas(8) CellPlace {
  int there, offset;
};

struct alignas(4) RowColumn {
  short row, column;
};

// A unit of gemm_k, an octet of a tap: where it is among cells, and in a filter; its first channel, and how many exist
// of each group; how many residues of dx's rows and columns have the tap.
struct UnitPlace {
  CellPlace cells;
  Index filter;
  struct alignas(4) {
    short first, existing;
  } channels;
  RowColumn residues;
};

// What of results shares no unit, or not all, with what is beside it: a group of a bundle, or a residue.
struct Portion {
  int group, row, column;
};

// A slot's pixel in the tile, and where its cell of the first tap is; where there is none, that of another, and row -1.
struct alignas(8) PixelPlace {
  int cell;
  RowColumn at;
};

// A tile's sums in shared memory: a line of all results for each pixel.
struct Lines {
  float* sums;
  int pitch;
};

// What a warp multiplies: a block of pixels, whose cells begin so many bytes from the start of shared memory, by
// fragments of a bundle's filters. The bundle's groups have `sources` channels.
struct Factors {
  const unsigned char* memory;
  const UnitPlace* units;
  const PixelPlace* pixels;
  const Pack<unsigned, 2>* filters;
  int cells, steps, sources;
};

// Which bits of a lane's word, of two neighbouring channels, a unit has for such a portion.
__device__ inline unsigned bits_of(const UnitPlace& unit, const Portion& portion, int sources) {
  const int channel = unit.channels.first + threadIdx.x % 4 * 2 - portion.group * sources;
  const int left = unit.channels.existing - channel;
  const bool none = channel < 0 || portion.row >= unit.residues.row || portion.column >= unit.residues.column;
  return none || left <= 0 ? 0 : left > 1 ? ~0u : 0xffffu;
}

// If MASKED, only what a portion of the results has.
template <typename Product, bool MASKED = false, int M, int FRAGMENTS>
__device__ inline void multiply_block(const Factors& factors, float (&sum)[M][FRAGMENTS][4],
                                      const Portion& portion = {}) {
  const int lane = threadIdx.x % 32, steps = factors.steps;
  int row[M];  // where the cells of the lane's row of an ldmatrix are
#pragma unroll
  for (int i = 0; i < M; ++i) row[i] = factors.pixels[16 * i + lane % 16].cell + factors.cells;
#pragma unroll
  for (int i = 0; i < M; ++i)
#pragma unroll
    for (int j = 0; j < FRAGMENTS; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[i][j][e] = 0;
#pragma unroll 1
  for (int slice = 0; slice < steps; slice += 2) {
    float part[M][FRAGMENTS][4] = {};
#pragma unroll
    for (int step = slice; step < slice + 2; ++step) {
      if (step == steps) break;
      const CellPlace unit = factors.units[2 * step + lane / 16].cells;
      const unsigned char* const place = factors.memory + unit.offset;
      typename Product::B b[FRAGMENTS];
#pragma unroll
      for (int j = 0; j < FRAGMENTS; ++j) {
        const Pack<unsigned, 2> words = factors.filters[(j * steps + step) * 32 + lane];
        b[j][0] = words.value[0];
        b[j][1] = words.value[1];
      }
      unsigned bits[2];
      if (MASKED)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          bits[half] = bits_of(factors.units[2 * step + half], portion, factors.sources);
#pragma unroll
      for (int i = 0; i < M; ++i) {
        typename Product::A a;
        ldmatrix(a, place + row[i] * unit.there);
        if (MASKED)
#pragma unroll
          for (int word = 0; word < 4; ++word) a[word] &= bits[word / 2];
#pragma unroll
        for (int j = 0; j < FRAGMENTS; ++j) Product::add(part[i][j], a, b[j]);
      }
    }
#pragma unroll
    for (int i = 0; i < M; ++i)
#pragma unroll
      for (int j = 0; j < FRAGMENTS; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[i][j][e] += part[i][j][e];
  }
}

// Leaves a block's sums in the tile's lines; if MASKED only those of the results first, first + 1, ..., end - 1.
// `result` is the lane's first one.
template <bool MASKED, int M, int FRAGMENTS>
__device__ inline void put_block(const float (&sum)[M][FRAGMENTS][4], float* line, int pitch, int result = 0,
                                 int first = 0, int end = 0) {
#pragma unroll
  for (int i = 0; i < M; ++i)
#pragma unroll
    for (int j = 0; j < FRAGMENTS; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float* const to = line + (16 * i + 8 * half) * pitch + 8 * j;
        if constexpr (MASKED) {
#pragma unroll
          for (int e = 0; e < 2; ++e)
            if (result + 8 * j + e >= first && result + 8 * j + e < end) to[e] = sum[i][j][2 * half + e];
        } else {
          const Pack<float, 2> two{sum[i][j][2 * half], sum[i][j][2 * half + 1]};
          *reinterpret_cast<Pack<float, 2>*>(to) = two;
        }
      }
}

// Calls put(pixel, channel, sums) for packs of V channels of a tile's pixels.
template <int V, int THREADS, typename Put>
__device__ inline void each_pack(const Lines& lines, int pixels, int columns, int existing, Put put) {
  const int packs = logarithm(columns / V), first = (threadIdx.x & ((1 << packs) - 1)) * V;
  if (first >= existing) return;
#pragma unroll 1
  for (int i = threadIdx.x >> packs; i < pixels; i += THREADS >> packs)
    put(i, first, reinterpret_cast<const Pack<float, 4>*>(lines.sums + i * lines.pitch + first));
}

// Whether nothing is asked of sums but to be rounded.
__device__ inline bool only_rounded(const Params& p, const void* bias) {
  return !bias && p.activation == IDENTITY && !p.accumulate && !p.partial;
}

// Stores a tile's lines of sums, `existing` of so many columns: octets of channels where these are neighbours in memory
// and sums are only rounded; fewer, where more is asked; or pixel by pixel.
template <typename T, int THREADS>
__device__ inline void store_lines(const Params& p, const GatherAxis (&axis)[3], const Lines& lines,
                                   const PixelPlace* pixels, int count, const TilePlace& tile, int columns,
                                   int existing, Index channel, void* out, const void* bias) {
  const Index start = p.out_start + tile.image * p.out[0] + channel * p.out[1];
  const auto place_of = [&](int i) -> Index {
    const RowColumn pixel = pixels[i].at;
    const int row = tile.row + pixel.row, column = tile.column + pixel.column;
    if (pixel.row < 0 || row >= axis[1].outputs || column >= axis[2].outputs) return NONE;
    return start + axis[1].cell(row) * p.out[3] + axis[2].cell(column) * p.out[4];
  };
  const Index strides = start | p.out[0] | p.out[3] | p.out[4];
  const bool octets = (reinterpret_cast<size_t>(out) | strides * int(sizeof(T))) % OCTET == 0;
  const bool plain = only_rounded(p, bias);
  if (p.out[1] == 1 && octets && existing % 8 == 0 && plain) {
    each_pack<8, THREADS>(lines, count, columns, existing, [&](int i, int first, const Pack<float, 4>* sums) {
      const Index at = place_of(i);
      if (at == NONE) return;
      const Pack<float, 4> half[2] = {sums[0], sums[1]};
      Pack<T, 8> pack;
#pragma unroll
      for (int v = 0; v < 8; ++v) pack.value[v] = Narrow<T>::from(half[v / 4].value[v % 4]);
      *reinterpret_cast<Pack<T, 8>*>(static_cast<T*>(out) + at + first) = pack;
    });
  } else if (p.out[1] == 1 && existing % 4 == 0) {
    each_pack<4, THREADS>(lines, count, columns, existing, [&](int i, int first, const Pack<float, 4>* sums) {
      const Index at = place_of(i), place[4] = {first, first + 1, first + 2, first + 3};
      if (at != NONE) finish_pack<T>(p, out, at, place, true, *sums, bias, channel + first, 1);
    });
  } else {
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += THREADS) {
      const Index at = place_of(i);
      if (at == NONE) continue;
      const float* const sums = lines.sums + i * lines.pitch;
      if (plain) {
        T* to = static_cast<T*>(out) + at;
#pragma unroll 4
        for (int j = 0; j < existing; ++j, to += p.out[1]) *to = Narrow<T>::from(sums[j]);
      } else {
#pragma unroll 1
        for (int j = 0; j < existing; ++j) finish<T>(p, out, at + j * p.out[1], sums[j], bias, channel + j);
      }
    }
  }
}

// All residues of dx at once. Outputs are places, numbered from the first that has a cell; `cell` is where the first
// residue has one. Taps are that residue's, last first.
__device__ inline GatherAxis axis_of_places(const Axis& a) {
  const int stride = int(a.stride), padding = int(a.padding), taps = int(a.filter + stride - 1) / stride;
  const auto place = [&](int cell) { return cell >= 0 ? cell / stride : -((stride - 1 - cell) / stride); };
  const int first = place(padding), dilation = int(a.dilation);
  return {place(int(a.input) - 1 + padding) - first + 1,
          int(a.output),
          taps,
          1,
          dilation,
          first - (taps - 1) * dilation,
          first * stride - padding,
          stride,
          (taps - 1) * stride,
          -stride};
}

// How many residues have a tap of such an axis: the first one may be beyond the filter.
__device__ inline int residues_of_tap(const Axis& a, int tap) {
  const int stride = int(a.stride);
  return tap > 0 ? stride : int(a.filter) - (int(a.filter) - 1) / stride * stride;
}

// The residues of dx's rows and columns, and the channels that each has.
struct Residues {
  int rows, columns, channels;
};

// Stores a tile's lines of sums where a line has all channels of a place's residues. Threads go along a line of dx: over
// its cells, and over channels too where these are neighbours in memory.
template <typename T, int THREADS>
__device__ inline void store_residues(const Params& p, const GatherAxis (&axis)[3], const Lines& lines,
                                      const PixelPlace* pixels, int count, const TilePlace& tile,
                                      const Residues& residues, void* out, const void* bias) {
  const int channels = residues.channels;
  const bool across = p.out[1] == 1 && p.out[4] == channels;
  const int unit = across ? channels : 1, length = residues.columns * unit;
  const bool plain = only_rounded(p, bias);
  const Index step = across ? 1 : p.out[4], end = p.axis[2].input * unit;
#pragma unroll 1
  for (int line = 0; line < residues.rows * channels / unit; ++line) {
    const int row = across ? line : line / channels, channel = across ? 0 : line - row * channels;
    const float* const sums = lines.sums + row * residues.columns * channels + channel;
    int i = int(threadIdx.x) / length, place = int(threadIdx.x) - i * length;
#pragma unroll 1
    while (i < count) {
      const RowColumn pixel = pixels[i].at;
      const Index h = axis[1].cell(tile.row + pixel.row) + row;
      const Index at_line = axis[2].cell(tile.column + pixel.column) * unit + place;
      if (pixel.row >= 0 && h >= 0 && h < p.axis[1].input && at_line >= 0 && at_line < end) {
        const Index at = p.out_start + tile.image * p.out[0] + channel * p.out[1] + h * p.out[3] + at_line * step;
        const float sum = sums[i * lines.pitch + (across ? place : place * channels)];
        if (plain)
          static_cast<T*>(out)[at] = Narrow<T>::from(sum);
        else
          finish<T>(p, out, at, sum, bias, across ? place % channels : channel);
      }
      i += THREADS / length;
      place += THREADS % length;
      if (place >= length) {
        place -= length;
        ++i;
      }
    }
  }
}

// The filters of a set in global memory, and their strides. `groups` exist, of whose `results` so many exist; octets have
// `sources` channels of each of the `bundled` groups, or `of_tap` of a tap and then those of the next.
template <typename T>
struct Filters {
  const T* data;
  Index group_stride, result_stride, channel_stride, row_stride, column_stride;
  int groups, results, existing, sources, bundled, of_tap;
  Residues residues;
};

// Brings an octet of a filter's channels, `existing` of which a group has; zeros for what is not there. WHOLE octets are
// so in memory, aligned; SIDE_BY_SIDE there may be channels of several taps.
template <bool WHOLE, bool SIDE_BY_SIDE, typename T>
__device__ inline Pack<unsigned, 4> filter_octet(const Filters<T>& w, const T* filter, int channel, int existing,
                                                 bool there) {
  if (WHOLE)
    return load_if(reinterpret_cast<const Pack<unsigned, 4>*>(filter + channel),
                   there && unsigned(channel) < unsigned(existing));
  Pack<unsigned, 4> octet{};
  int of_tap = channel;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const bool inside = there && unsigned(channel + i) < unsigned(existing);
    octet.value[i / 2] |= unsigned(load_if(filter + of_tap * w.channel_stride, inside).bits) << i % 2 * 16;
    if (++of_tap < w.of_tap || !SIDE_BY_SIDE) continue;
    of_tap = 0;
    filter += w.column_stride;
  }
  return octet;
}

// Brings all filters to shared memory, in the order in which lanes read fragments of them; rows are 2^rows results.
template <int THREADS, bool WHOLE, bool SIDE_BY_SIDE, bool TOGETHER, typename T>
__device__ inline void put_filters(Pack<unsigned, 2>* filters, const UnitPlace* units, int steps, int rows,
                                   const Filters<T>& w) {
  // A warp has many rows of a step, or eight of four, whichever are neighbours in w: rows go to different banks.
  const bool apart = WHOLE || w.result_stride >= w.channel_stride;
  const int all = round_up(steps, 4) << rows;
#pragma unroll 1
  for (int i = threadIdx.x; i < all; i += THREADS) {
    const int row = apart ? i % 8 | (i >> 5 & ((1 << rows) / 8 - 1)) * 8 : i & ((1 << rows) - 1);
    const int step = apart ? i / 8 % 4 | i >> (rows + 2) << 2 : i >> rows;
    if (step >= steps) continue;
    const int group = row >> logarithm(w.results), result = row & (w.results - 1);
    const int residue = TOGETHER ? result / w.residues.channels : 0;
    const int of_rows = TOGETHER ? residue / w.residues.columns : 0, of_columns = residue - of_rows * w.residues.columns;
    const T* const filter = w.data + group * w.group_stride + (result - residue * w.residues.channels) * w.result_stride +
                            (TOGETHER ? of_rows * w.row_stride + of_columns * w.column_stride : 0);
    Pack<unsigned, 4> octet[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const UnitPlace& unit = units[2 * step + half];
      const auto channels = unit.channels;
      bool there = unit.cells.there && group < w.groups && result < w.existing;
      if (TOGETHER) there = there && of_rows < unit.residues.row && of_columns < unit.residues.column;
      octet[half] = filter_octet<WHOLE, SIDE_BY_SIDE>(
          w, filter + unit.filter, channels.first - (group & (w.bundled - 1)) * w.sources, channels.existing, there);
    }
    auto* const to = reinterpret_cast<Pack<unsigned, 4>*>(filters + ((row / 8 * steps + step) * 8 + row % 8) * 4);
    const Pack<unsigned, 4> low{octet[0].value[0], octet[1].value[0], octet[0].value[1], octet[1].value[1]};
    const Pack<unsigned, 4> high{octet[0].value[2], octet[1].value[2], octet[0].value[3], octet[1].value[3]};
    to[0] = low;
    to[1] = high;
  }
}

// The source has `channels` in a group, `of_tap` of each tap where they are SIDE_BY_SIDE, and `last` in the last octet of a
// line; the result has `of_result`. filter_stride and channel_stride are those of w between the result's and the source's
// channels. Results may be those of all residues TOGETHER. A warp multiplies 16 M pixels at once.
template <typename Product, int M, int FRAGMENTS, bool SIDE_BY_SIDE, bool TOGETHER>
__device__ inline void grouped_pixels(const void* a, const void* b, const void* bias, void* out, const Params& p,
                                      const GatherAxis (&axis)[3], int channels, int of_tap, int last, int of_result,
                                      Index filter_stride, Index channel_stride, int set, Index run,
                                      const Residues& residues) {
  using T = typename Product::Element;
  constexpr int WARPS = 4, THREADS = 32 * WARPS, BLOCK = 16 * M;
  extern __shared__ __align__(128) unsigned char memory[];
  const int sources = rounded(p, channels), results = rounded(p, of_result);
  const Halo halo(p, axis);
  const int groups = int(p.group.divisor), first_group = set * groups;
  const int existing = min(groups, int(p.groups) - first_group);
  const int bundled = min(sources, results) < 8 ? 2 : 1, bundles = groups / bundled;  // groups
  const int octets = bundled * sources / 8, fragments = bundled * results / 8;        // of a bundle
  const int unit_count = axis[1].taps * axis[2].taps * octets, steps = (unit_count + 1) / 2;
  const int count = halo.count(), blocks = (count + BLOCK - 1) / BLOCK;
  const int planes = bundles * octets, pitch = plane_pitch(halo.cells, planes);
  const CellShare share(THREADS, planes, halo.columns);

  Memory room{memory};
  auto* const zero = room.take<Pack<unsigned, 4>>(1);
  auto* const units = room.take<UnitPlace>(2 * steps);
  auto* const pixels = room.take<PixelPlace>(blocks * BLOCK);
  auto* const filters = room.take<Pack<unsigned, 2>>(bundles * fragments * steps * 32);
  unsigned char* const cells = room.take<unsigned char>(2 * planes * pitch);  // of the tile, and the next one
  const Lines lines{room.take<float>(0), groups * results + (p.out[1] == 1 ? 8 : 2)};

  const int first = int(run * p.chunk), end = min(first + int(p.chunk), tile_count(p));
  const auto copy = [&](int number) {
    const TilePlace tile(p, halo, number);
    const T* const data = static_cast<const T*>(a) + tile.image * p.a[0] + Index(first_group) * channels;
    const Image image{reinterpret_cast<const char*>(data), p.a[3] * 2, p.a[4] * 2, axis[1].sources, axis[2].sources,
                      (existing * channels + 7) / 8};
    copy_cells(cells + (number - first) % 2 * planes * pitch, pitch, share, image, axis[1].source(tile.row, 0),
               axis[2].source(tile.column, 0), Halo::reach(axis[1], halo.high),
               [&](int i, int j) { return i * halo.cells_wide + halo.place(j); });
  };
  if (first < end) copy(first);
  cp_async_commit();

  if (threadIdx.x == 0) *zero = {};
  const int taps_of_unit = SIDE_BY_SIDE ? channels / of_tap : 1;
#pragma unroll 1
  for (int i = threadIdx.x; i < 2 * steps; i += THREADS) {
    const int tap = i >> logarithm(octets), octet = i & (octets - 1);
    const int r = tap / max(axis[2].taps, 1), s = tap - r * axis[2].taps;
    const Index filter = axis[1].filter_tap(r) * p.b[3] + axis[2].filter_tap(s) * taps_of_unit * p.b[4];
    const int cell = halo.tap(r, s) * OCTET + octet * pitch;
    const bool there = i < unit_count;
    const CellPlace place{there, there ? cell : 0};
    const short existing = short(s == axis[2].taps - 1 ? last : channels);
    const short of_rows = short(TOGETHER ? residues_of_tap(p.axis[1], r) : 1);
    const short of_columns = short(TOGETHER ? residues_of_tap(p.axis[2], s) : 1);
    const UnitPlace unit{place, filter, {short(octet * 8), existing}, {of_rows, of_columns}};
    units[i] = unit;
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < blocks * BLOCK; i += THREADS) {
    const int line = i / halo.slots, row = min(line, halo.high - 1), column = min(i - line * halo.slots, halo.wide - 1);
    const bool there = i < count && i - line * halo.slots < halo.wide;
    const PixelPlace pixel{halo.cell(row, column) * OCTET, {short(there ? row : -1), short(column)}};
    pixels[i] = pixel;
  }
  __syncthreads();  // the units are there
  const Filters<T> w{static_cast<const T*>(b) + p.b_start + first_group * p.filters * p.b[0],
                     p.filters * p.b[0], filter_stride, channel_stride, p.b[3], p.b[4], existing, results, of_result,
                     sources, bundled, of_tap, residues};
  const int rows = logarithm(groups * results);
  const Index strides = p.b[0] | p.b[3] | p.b[4];
  const bool whole = channel_stride == 1 && channels % 8 == 0 && of_tap == channels &&
                     (reinterpret_cast<size_t>(w.data) | strides * int(sizeof(T))) % OCTET == 0;
  if (SIDE_BY_SIDE && whole)  // as dgrad's octets, of filters, are nowhere
    put_filters<THREADS, true, false, false>(filters, units, steps, rows, w);
  else
    put_filters<THREADS, false, SIDE_BY_SIDE, TOGETHER>(filters, units, steps, rows, w);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, parts = fragments / FRAGMENTS;  // of a bundle
  // Whether portions of the results differ in their units, how many there are, and results of each.
  const bool differ = TOGETHER ? residues_of_tap(p.axis[1], 0) < residues.rows ||
                                     residues_of_tap(p.axis[2], 0) < residues.columns
                               : bundled > 1 || last < channels;
  const int portions = TOGETHER ? residues.rows * residues.columns : bundled;
  const int of_portion = TOGETHER ? residues.channels : results;
#pragma unroll 1
  for (int number = first; number < end; ++number) {
    cp_async_wait_all();
    __syncthreads();  // the tile is there, and nobody reads the other one or sums any more
    if (number + 1 < end) copy(number + 1);
    cp_async_commit();
    const int start = int(cells - memory) + (number - first) % 2 * planes * pitch;
#pragma unroll 1
    for (int i = warp; i < blocks * bundles * parts; i += WARPS) {
      const int part = i & (bundles * parts - 1), block = i >> logarithm(bundles * parts);
      const int bundle = part >> logarithm(parts);
      const Factors factors{memory,
                            units,
                            pixels + block * BLOCK,
                            filters + part * FRAGMENTS * steps * 32,
                            start + bundle * octets * pitch,
                            steps,
                            sources};
      const int result = (part - bundle * parts) * FRAGMENTS * 8 + lane % 4 * 2;
      float* const line = lines.sums + (block * BLOCK + lane / 4) * lines.pitch + bundle * bundled * results + result;
      float sum[M][FRAGMENTS][4];
      multiply_block<Product>(factors, sum);
      put_block<false>(sum, line, lines.pitch);
      if (differ && __any_sync(~0u, any_beyond(sum))) {
#pragma unroll 1
        for (int own = 0; own < portions; ++own) {
          const int row = TOGETHER ? own / residues.columns : 0, column = TOGETHER ? own % residues.columns : 0;
          multiply_block<Product, true>(factors, sum, {TOGETHER ? 0 : own, row, column});
          put_block<true>(sum, line, lines.pitch, result, own * of_portion, (own + 1) * of_portion);
        }
      }
    }
    __syncthreads();  // all sums are there
    const TilePlace tile(p, halo, number);
    if constexpr (TOGETHER)
      store_residues<T, THREADS>(p, axis, lines, pixels, count, tile, residues, out, bias);
    else
      store_lines<T, THREADS>(p, axis, lines, pixels, count, tile, groups * results, existing * of_result,
                              Index(first_group) * of_result, out, bias);
  }
}

template <typename Product, int M, int FRAGMENTS>
__device__ void conv_fprop_grouped(const void* a, const void* b, const void* bias, void* out, const Params& p) {
  const GatherAxis axis[3] = {forward_axis(p.axis[0]), forward_axis(p.axis[1]), forward_axis(p.axis[2])};
  Index digit[1];  // set
  const Index run = take_digits(p, blockIdx.x, digit);
  grouped_pixels<Product, M, FRAGMENTS, true, false>(a, b, bias, out, p, axis, int(p.channels),
                                                     int(p.digit[3].divisor), int(p.pixel[2].divisor), int(p.filters),
                                                     p.b[0], p.b[1], int(digit[0]), run, {1, 1, int(p.filters)});
}

template <typename Product, int M, int FRAGMENTS, bool TOGETHER>
__device__ void conv_dgrad_grouped(const void* a, const void* b, const void* bias, void* out, const Params& p) {
  const int filters = int(p.filters), channels = int(p.channels);
  if constexpr (TOGETHER) {
    Index digit[1];  // of one set
    const Index run = take_digits(p, blockIdx.x, digit);
    const GatherAxis axis[3] = {axis_of_places(p.axis[0]), axis_of_places(p.axis[1]), axis_of_places(p.axis[2])};
    const Residues residues{int(p.axis[1].stride), int(p.axis[2].stride), channels};
    grouped_pixels<Product, M, FRAGMENTS, false, true>(a, b, bias, out, p, axis, filters, filters, filters,
                                                       residues.rows * residues.columns * channels, p.b[1], p.b[0], 0,
                                                       run, residues);
  } else {
    Index digit[3];  // set, residues of w and h
    const Index run = take_digits(p, blockIdx.x, digit);
    const GatherAxis axis[3] = {residue_axis(p.axis[0], 0), residue_axis(p.axis[1], int(digit[2])),
                                residue_axis(p.axis[2], int(digit[1]))};
    grouped_pixels<Product, M, FRAGMENTS, false, false>(a, b, bias, out, p, axis, filters, filters, filters, channels,
                                                        p.b[1], p.b[0], int(digit[0]), run, {1, 1, channels});
  }
}

// -- wgrad --------------------------------------------------------------------------------------------

// Leaves parts of sums. A set has a job for each of four warps: an octet of channels, and the filters of its groups;
// or, of a single group, FILTERS octets of these. The other four warps have every second slice of 32 pixels, if HALVES,
// or else every second run of FILTERS octets.
template <typename Product, int FILTERS, bool HALVES>
__device__ void conv_wgrad_grouped(const void* a, const void* b, const void*, void* out, const Params& p) {
  using T = typename Product::Element;
  constexpr int THREADS = 256, JOBS = 4, PAIRS = 5;  // of taps, in registers at once
  extern __shared__ __align__(128) unsigned char memory[];
  const GatherAxis axis[3] = {forward_axis(p.axis[0]), forward_axis(p.axis[1]), forward_axis(p.axis[2])};
  Index digit[2];  // set, run of taps
  const Index run = take_digits(p, blockIdx.x, digit);
  const Halo halo(p, axis);
  const int channels = rounded(p, int(p.channels)), filters = rounded(p, int(p.filters)), job = threadIdx.x / 32 % JOBS;
  const bool single = p.groups == 1;
  const int octets = single ? min(channels / 8, JOBS) : JOBS, octet = job & (octets - 1);
  const int set_filters = single ? JOBS / octets * FILTERS * 8 : JOBS * 8 / channels * filters;
  const int channel_sets = single ? max(channels / (JOBS * 8), 1) : 1, set = int(digit[0]) / channel_sets;
  const Index first_channel = (single ? digit[0] - set * channel_sets : set) * JOBS * 8,
              first_filter = set * set_filters;
  const int existing = int(min_index(p.groups * p.channels - first_channel, JOBS * 8));
  const int existing_filters = int(min_index(p.groups * p.filters - first_filter, set_filters));
  const int count = halo.count(), slices = (count + 31) / 32, planes = set_filters / 8;
  const int span = max(axis[1].taps - 1, 0) * halo.row_tap + halo.cells_wide;
  const int pitch = plane_pitch(halo.cells + span, octets), plane = plane_pitch(slices * 32, planes);
  const CellShare share_of_x(THREADS, octets, halo.columns), share_of_dy(THREADS, planes, halo.slots);

  Memory room{memory};
  const int of_cells = octets * pitch, of_grads = planes * plane;
  int* const tap_cells = room.take<int>(2 * PAIRS);
  // Of the tile, and the next one.
  int* const pixels = room.take<int>(2 * slices * 32);
  unsigned char* const cells = room.take<unsigned char>(2 * of_cells);
  unsigned char* const grads = room.take<unsigned char>(2 * of_grads);

  const int first = int(run * p.chunk), end = min(first + int(p.chunk), tile_count(p));
  const auto copy = [&](int number) {
    const TilePlace tile(p, halo, number);
    const int stage = (number - first) % 2;
    const T* const x = static_cast<const T*>(a) + tile.image * p.a[0] + first_channel;
    const T* const dy = static_cast<const T*>(b) + tile.image * p.b[0] + first_filter;
    const Image of_x{
        reinterpret_cast<const char*>(x), p.a[3] * 2, p.a[4] * 2, axis[1].sources, axis[2].sources, (existing + 7) / 8};
    const Image of_dy{reinterpret_cast<const char*>(dy),
                      p.b[3] * 2,
                      p.b[4] * 2,
                      axis[1].outputs,
                      min(axis[2].outputs, tile.column + halo.wide),
                      (existing_filters + 7) / 8};
    copy_cells(cells + stage * of_cells, pitch, share_of_x, of_x, axis[1].source(tile.row, 0),
               axis[2].source(tile.column, 0), Halo::reach(axis[1], halo.high),
               [&](int i, int j) { return i * halo.cells_wide + halo.place(j); });
    copy_cells(grads + stage * of_grads, plane, share_of_dy, of_dy, tile.row, tile.column, halo.high,
               [&](int i, int j) { return i * halo.slots + j; });
    const int pixel = threadIdx.x, row = pixel / halo.slots, column = pixel - row * halo.slots;
    if (pixel < slices * 32) {
      const bool there = pixel < count && column < halo.wide && tile.row + row < axis[1].outputs &&
                         tile.column + column < axis[2].outputs;
      pixels[stage * slices * 32 + pixel] = (there ? halo.cell(row, column) : halo.cells) * OCTET;
    }
  };
  // Zeros that no copy touches: cells of pixels that do not exist, wherever a tap looks, and their dy.
  const int rest = slices * 32 - count;
#pragma unroll 1
  for (int i = threadIdx.x; i < 2 * octets * span; i += THREADS)
    reinterpret_cast<Pack<unsigned, 4>*>(cells + i / span * pitch)[halo.cells + i % span] = {};
#pragma unroll 1
  for (int i = threadIdx.x; i < 2 * planes * rest; i += THREADS)
    reinterpret_cast<Pack<unsigned, 4>*>(grads + i / rest * plane)[count + i % rest] = {};
  if (first < end) copy(first);
  cp_async_commit();

  const int lane = threadIdx.x % 32, side = threadIdx.x / 32 / JOBS;
  const int first_octet = single ? (job >> logarithm(octets)) * FILTERS
                                 : octet * 8 / channels * filters / 8 + (HALVES ? 0 : side * FILTERS);
  const int taps = axis[1].taps * axis[2].taps, first_tap = int(digit[1]) * 2 * PAIRS;
  if (threadIdx.x < 2 * PAIRS) {
    const int tap = min(first_tap + int(threadIdx.x), max(taps - 1, 0)), r = tap / max(axis[2].taps, 1);
    tap_cells[threadIdx.x] = halo.tap(r, tap - r * axis[2].taps) * OCTET;
  }
  float sum[PAIRS][FILTERS][4] = {};
#pragma unroll 1
  for (int number = first; number < end; ++number) {
    cp_async_wait_all();
    __syncthreads();  // the tile is there, and nobody reads the other one any more
    if (number + 1 < end) copy(number + 1);
    cp_async_commit();
    const int stage = (number - first) % 2;
#pragma unroll 1
    for (int slice = HALVES ? side : 0; slice < slices; slice += HALVES ? 2 : 1) {
      typename Product::B grad[2][FILTERS];
      const unsigned char* cell[2];
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const int at = slice * 32 + step * 16;
        cell[step] =
            cells + stage * of_cells + octet * pitch + pixels[stage * slices * 32 + at + lane / 16 * 8 + lane % 8];
#pragma unroll
        for (int j = 0; j < FILTERS; ++j)
          ldmatrix_trans(grad[step][j],
                         grads + stage * of_grads + (first_octet + j) * plane + (at + lane % 16) * OCTET);
      }
#pragma unroll
      for (int i = 0; i < PAIRS; ++i) {
        if (first_tap + 2 * i >= taps) break;
        const int tap_cell = tap_cells[2 * i + lane / 8 % 2];  // for the lane's row of an ldmatrix
        float part[FILTERS][4] = {};
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          typename Product::A two_taps;
          ldmatrix_trans(two_taps, cell[step] + tap_cell);
#pragma unroll
          for (int j = 0; j < FILTERS; ++j) Product::add(part[j], two_taps, grad[step][j]);
        }
#pragma unroll
        for (int j = 0; j < FILTERS; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[i][j][e] += part[j][e];
      }
    }
  }
  cp_async_wait_all();
  if (HALVES) {
    constexpr int HALF = THREADS / 2;
    float* const others = reinterpret_cast<float*>(memory) + threadIdx.x % HALF;
    __syncthreads();  // nobody reads tiles any more
#pragma unroll
    for (int i = 0; i < PAIRS * FILTERS * 4; ++i)
      if (side == 1) others[i * HALF] = sum[i / (FILTERS * 4)][i / 4 % FILTERS][i % 4];
    __syncthreads();  // the other half's sums are there
    if (side == 1) return;
#pragma unroll
    for (int i = 0; i < PAIRS * FILTERS * 4; ++i) sum[i / (FILTERS * 4)][i / 4 % FILTERS][i % 4] += others[i * HALF];
  }
  const int channel = octet * 8 + lane / 4, of_group = int(first_channel + channel) & (channels - 1);
  const int taps_of_line = axis[2].taps - (of_group >= int(p.pixel[2].divisor));  // that have the channel
  float* const own = static_cast<float*>(out) + run * p.items + first_filter * p.out[0] + of_group;
#pragma unroll
  for (int i = 0; i < PAIRS; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int tap = first_tap + 2 * i + half, r = tap / max(axis[2].taps, 1), s = tap - r * axis[2].taps;
      if (tap >= taps || channel >= existing) break;
#pragma unroll
      for (int j = 0; j < FILTERS; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int filter = (first_octet + j) * 8 + lane % 4 * 2 + e;
          if (channel / channels == filter / filters && filter < existing_filters && s < taps_of_line)
            own[filter * p.out[0] + r * p.out[3] + s * p.channels] = sum[i][j][2 * half + e];
        }
    }
}
