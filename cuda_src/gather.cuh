// The matrices of implicit GEMM: where their elements are, for kernels that multiply tile by tile.
//
//   op     gemm_m, rows of A                      gemm_n, rows of B  gemm_k, columns of both
//   fprop  N Z P Q: cells of x                    K / groups: w      (T R S) C/groups
//   dgrad  N D H W of one residue: cells of dy    C / groups: w      (contributing T R S) K/groups
//   wgrad  K / groups: dy                         (T R S) C/groups: cells of x     N Z P Q
//
// The struct of an op has, for one block's tile, what a thread needs to bring its share: rows of both matrices by their
// numbers, a column from a counter of gemm_k, and an element's place is the sum of what a row and a column contribute.
// Cells in the padding, rows and columns that do not exist are not `there`; their place must not be read, and counts as
// zero. Nothing branches.
//
// gemm_k may be cut into parts of `chunk`, of which a block does one. LANES says which digits run fastest: channels
// (channels-last arrays), where VECTOR neighbouring ones are brought at once and each tap counts its channels rounded
// up to whole vectors; or taps and pixels (channels-first ones). Both are right for all strides, vectors apart. PLANAR
// is for problems whose first axis has one cell in every array: of two axes, or one. It takes fewer registers.
//
// Where padding shows cells of x their place is no such sum. A table in shared memory has it for each pixel of a tile,
// or of some slices, and each tap of the tile, in lines of SLOTS pixels. So in the loop over slices an offset is read,
// and no coordinate is compared with bounds. Where cells of the padding are zeros there is no table, and SLOTS is 0.
//
// Preconditions: coordinates on every axis, padding included, and gemm_k, but for wgrad's pixels, fit 31 bits.
// Offsets of elements have 64.
#pragma once
#include "indexing.cuh"
#include "numerics.cuh"
#include "padding.cuh"

enum Lanes { PIXEL_LANES, CHANNEL_LANES };

// -- counting ---------------------------------------------------------------------------------------

// A place in gemm_k, or a pixel: digits, the fastest first, and how many are left from here on.
struct Counter {
  int digit[4], left;
};

// What digits count to, the last one apart.
struct Radices {
  int extent[3];

  // The counter so much further.
  __device__ Counter after(const Counter& from, unsigned further) const {
    Counter to{{}, from.left - int(further)};
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      further += from.digit[i];
      to.digit[i] = further % unsigned(extent[i]);
      further /= unsigned(extent[i]);
    }
    to.digit[3] = from.digit[3] + int(further);
    return to;
  }
};

// The digits of a pixel's number, which may have any size, `left` of them being left.
template <bool PLANAR>
__device__ inline Counter pixel_at(const Params& p, Index number, int left) {
  Counter at{{}, left};
#pragma unroll
  for (int i = 0; i < (PLANAR ? 2 : 3); ++i) {
    const Index rest = divide(number, p.pixel[i]);
    at.digit[i] = int(number - rest * p.pixel[i].divisor);
    number = rest;
  }
  at.digit[3] = int(number);
  return at;
}

// How pixels are counted.
template <bool PLANAR>
__device__ inline Radices pixel_radices(const Params& p) {
  return {int(p.pixel[0].divisor), int(p.pixel[1].divisor), PLANAR ? 1 : int(p.pixel[2].divisor)};
}

// A tap of one channel.
struct Tap {
  int c, t, r, s;
};

template <Lanes LANES>
__device__ inline Tap tap_of(const Counter& at) {
  const int* digit = at.digit;
  return LANES == CHANNEL_LANES ? Tap{digit[0], digit[3], digit[2], digit[1]}
                                : Tap{digit[3], digit[2], digit[1], digit[0]};
}

// How taps are counted. Of nothing there is no number, and no division by zero either.
template <Lanes LANES>
__device__ inline Radices tap_radices(const GatherAxis (&axis)[3], int channels) {
  const int t = max(axis[0].taps, 1), r = max(axis[1].taps, 1), s = max(axis[2].taps, 1);
  return LANES == CHANNEL_LANES ? Radices{max(channels, 1), s, r} : Radices{s, r, t};
}

__device__ inline int round_up(int extent, int multiple) { return (extent + multiple - 1) / multiple * multiple; }

// -- places -----------------------------------------------------------------------------------------

// Where an element is, if it is there.
template <typename T>
struct Place {
  const T* at;
  bool there;

  __device__ Place(const T* data, Index row, Index column, bool there)
      : at(reinterpret_cast<const T*>(reinterpret_cast<const char*>(data) + row + column)), there(there) {}
  __device__ Place(Index address, bool there) : at(reinterpret_cast<const T*>(address)), there(there) {}
};

// What a row or a column contributes to the place of a cell: coordinates, and the offset in bytes that they make.
struct Site {
  int d, h, w;
  Index offset;
};

// Far enough out that the sum with any other site is outside: that of what does not exist.
constexpr int NOWHERE = -(1 << 30);

// What a column, or a row of cells, contributes to places, as it lies in shared memory: what cells take of it is
// read at once, and the first axis.
struct Entry {
  Pack<unsigned, 4> site;  // the offset, and two coordinates
  int d, there;
  Index plain;

  __device__ static Entry of(const Site& site, bool there, Index plain) {
    return {{unsigned(site.offset), unsigned(site.offset >> 32), unsigned(site.h), unsigned(site.w)},
            site.d,
            there,
            plain};
  }
  template <typename Column>
  __device__ static Entry of(const Column& column) {
    return of(column.cell, column.there, column.plain);
  }
  __device__ Site cell() const {
    const Pack<unsigned, 4> four = site;
    const auto offset = static_cast<unsigned long long>(four.value[1]) << 32 | four.value[0];
    return {d, int(four.value[2]), int(four.value[3]), Index(offset)};
  }
};

// A row of cells that is a pixel, where there is a table of these.
struct Slot {
  int number;
};

// What a row contributes to the place of an element that is no cell, in bytes.
struct PlainRow {
  Index offset;
  bool there;
};

// Cells of x, or of dy in dgrad, where pixels and taps meet. Vectors have their channels side by side. Here cells that
// padding shows, by a table: a pixel's site has its place in a line (w), a tap's its line (w) and the address of its
// channel in the first cell.
template <typename T, int VECTOR, bool PLANAR, int SLOTS>
struct Source {
  static constexpr Index BYTES = sizeof(T);
  using Pixel = Slot;
  const T* data;
  const GatherAxis (&axis)[3];
  const Index (&stride)[5];
  Index mode, *table;
  Tap first;  // in the first line
  int lines;

  // Fills a slot of the table. A pixel that does not exist is taken for one of the first image.
  __device__ Site pixel(const Counter& at, int slot) const {
    const Index image = at.left > 0 ? at.digit[3] * stride[0] : 0;
    Tap tap = first;
    Index line = 0;
#pragma unroll 1
    for (int i = 0; i < lines; ++i) {
      if (i == 0 || tap.s == 0)
        line = image + cell(0, at.digit[2], tap.t) * stride[2] + cell(1, at.digit[1], tap.r) * stride[3];
      table[i * SLOTS + slot] = BYTES * (line + cell(2, at.digit[0], tap.s) * stride[4]);
      if (++tap.s < axis[2].taps) continue;
      tap.s = 0;
      if (++tap.r < axis[1].taps) continue;
      tap.r = 0;
      ++tap.t;
    }
    return {0, 0, slot * int(sizeof(Index)), 0};
  }
  __device__ Site tap(const Tap& at) const {
    const int line = min(number(at) - number(first), lines - 1);
    return {0, 0, line * SLOTS * int(sizeof(Index)), start() + BYTES * (VECTOR > 1 ? at.c : at.c * stride[1])};
  }
  __device__ Place<T> operator()(const Slot& row, const Site& column) const {
    return {column.offset + at(row.number * int(sizeof(Index)) + column.w), column.h == 0};
  }
  __device__ Place<T> operator()(const Site& column, const Site& row) const {
    return {row.offset + at(column.w + row.w), column.h == 0};
  }
  __device__ Index at(int bytes) const {
    return *reinterpret_cast<const Index*>(reinterpret_cast<const char*>(table) + bytes);
  }
  // Of a column that does not exist nothing is there. A row that does not exist has the cells of another.
  __device__ void no_column(Site& column) const { column.h = NOWHERE; }
  __device__ void no_row(Site& row) const { row.offset = start(); }

  __device__ Index start() const { return Index(reinterpret_cast<size_t>(data)); }
  __device__ Index cell(int i, int output, int tap) const {
    return near_source(mode, axis[i].source(output, tap), axis[i].sources);
  }
  __device__ int number(const Tap& tap) const { return (tap.t * axis[1].taps + tap.r) * axis[2].taps + tap.s; }
};

// Where cells of the padding are zeros.
template <typename T, int VECTOR, bool PLANAR>
struct Source<T, VECTOR, PLANAR, 0> {
  static constexpr Index BYTES = sizeof(T);
  using Pixel = Site;
  const T* data;
  const GatherAxis (&axis)[3];
  const Index (&stride)[5];

  __device__ Source(const T* data, const GatherAxis (&axis)[3], const Index (&stride)[5], Index, Index*, Tap, int)
      : data(data), axis(axis), stride(stride) {}
  __device__ Site pixel(const Counter& at, int) const {
    const int d = PLANAR ? 0 : axis[0].source(at.digit[2], 0);
    const int h = axis[1].source(at.digit[1], 0), w = axis[2].source(at.digit[0], 0);
    return {d, h, w, BYTES * (at.digit[3] * stride[0] + d * stride[2] + h * stride[3] + w * stride[4])};
  }
  __device__ Site tap(const Tap& at) const {
    // Of taps past the last one coordinates may wrap around.
    const int d = PLANAR ? 0 : int(unsigned(at.t) * axis[0].delta), h = unsigned(at.r) * axis[1].delta;
    const int w = unsigned(at.s) * axis[2].delta;
    return {d, h, w, BYTES * ((VECTOR > 1 ? at.c : at.c * stride[1]) + d * stride[2] + h * stride[3] + w * stride[4])};
  }
  __device__ Place<T> operator()(const Site& pixel, const Site& tap) const {
    const bool inside = (PLANAR | (unsigned(pixel.d) + tap.d < unsigned(axis[0].sources))) &
                        (unsigned(pixel.h) + tap.h < unsigned(axis[1].sources)) &
                        (unsigned(pixel.w) + tap.w < unsigned(axis[2].sources));
    return {data, pixel.offset, tap.offset, inside};
  }
  __device__ void no_column(Site& column) const { column.h = NOWHERE; }
  __device__ void no_row(Site& row) const { row.h = NOWHERE; }
};

// -- fprop, and one residue of dgrad ----------------------------------------------------------------

// Pixels by channels of the result. The source has `channels` per group, the result `results`. Of a complex result each
// channel, or row of wgrad's, is REALS of the matrix, but one place.
template <typename T, Lanes LANES, int VECTOR, bool PLANAR, int SLOTS = 0, int REALS = 1>
struct PixelsByChannels {
  static constexpr Index BYTES = sizeof(T);
  struct Column {
    Site cell;
    Index plain;  // of a filter's element
    bool there;
  };
  using RowA = typename Source<T, VECTOR, PLANAR, SLOTS>::Pixel;
  using RowB = PlainRow;
  static constexpr bool CELLS_ARE_A = true;

  const Params& p;
  const GatherAxis (&axis)[3];
  int channels, padded, depth;  // of this part of gemm_k
  Radices taps;
  Source<T, VECTOR, PLANAR, SLOTS> source;
  const T* filters;
  Index filter_stride, channel_stride;  // of w, between the result's and the source's channels
  Counter first_tap;
  Index first_row;
  int rows, columns;  // of the tile, that exist, but for those at the ends of smaller residues
  int channel;        // of the tile's first column, in the result
  Index start;        // of the result, or of this part of it

  __device__ PixelsByChannels(const Params& p, const GatherAxis (&axis)[3], const void* a, const void* b, int channels,
                              int results, Index filter_stride, Index channel_stride, Index group, Index part,
                              Index first_row, int first_column, int bm, int bn, Index* table = nullptr)
      : p(p),
        axis(axis),
        channels(channels),
        padded(round_up(channels, VECTOR)),
        depth(axis[0].taps * axis[1].taps * axis[2].taps * padded),
        taps(tap_radices<LANES>(axis, padded)),
        source{static_cast<const T*>(a) + group * padded * p.a[1], axis, p.a, p.mode, table, {},
               axis[0].taps * axis[1].taps * axis[2].taps},
        filters(static_cast<const T*>(b) + p.b_start + group * p.filters * p.b[0] + first_column * filter_stride +
                axis[0].tap_first * p.b[2] + axis[1].tap_first * p.b[3] + axis[2].tap_first * p.b[4]),
        filter_stride(filter_stride),
        channel_stride(channel_stride),
        first_row(first_row),
        rows(int(min_index(p.batch * p.pixel[0].divisor * p.pixel[1].divisor * p.pixel[2].divisor - first_row, bm))),
        columns(int(min_index(results - first_column, bn))),
        channel(int(group) * results + first_column),
        start(p.out_start + part * p.items) {
    const int begin = int(part * p.chunk);
    depth = int(min_index(depth - begin, p.chunk));
    first_tap = taps.after({{}, depth + begin}, begin);
  }

  __device__ Counter counter(int k) const { return counter(first_tap, k); }
  __device__ Counter counter(const Counter& from, int k) const { return taps.after(from, k); }
  __device__ Column column(const Counter& at, int = 0) const {
    const Tap tap = tap_of<LANES>(at);
    Column column{source.tap(tap),
                  BYTES * (tap.c * channel_stride + (PLANAR ? 0 : tap.t * axis[0].tap_step * p.b[2]) +
                           tap.r * axis[1].tap_step * p.b[3] + tap.s * axis[2].tap_step * p.b[4]),
                  at.left > 0 && tap.c < channels};
    if (!column.there) source.no_column(column.cell);
    return column;
  }
  __device__ Site row_of_cells(int i) const {
    const Counter at = pixel(i);
    Site row = source.pixel(at, i);
    if (!exists(at)) source.no_row(row);
    return row;
  }
  __device__ PlainRow plain_row(int i) const { return {BYTES * (i * filter_stride), i < columns}; }
  __device__ Place<T> a(const RowA& row, const Column& column) const { return source(row, column.cell); }
  __device__ Place<T> b(const RowB& row, const Column& column) const {
    return {filters, row.offset, column.plain, bool(row.there & column.there)};
  }

  __device__ Counter pixel(int i) const { return pixel_at<PLANAR>(p, first_row + i, rows - i); }
  __device__ bool exists(const Counter& at) const {
    return at.left > 0 && at.digit[0] < axis[2].outputs && at.digit[1] < axis[1].outputs &&
           (PLANAR || at.digit[2] < axis[0].outputs);
  }

  // Where the result's elements are: at row_place(i) + column_place(j).
  __device__ Index row_place(int i) const {
    const Counter at = pixel(i);
    if (!exists(at)) return NONE;
    return start + at.digit[3] * p.out[0] + axis[0].cell(at.digit[2]) * p.out[2] +
           axis[1].cell(at.digit[1]) * p.out[3] + axis[2].cell(at.digit[0]) * p.out[4];
  }
  __device__ Index column_place(int j) const {
    return j * REALS < columns ? (channel / REALS + j) * p.out[1] : NONE;
  }
  // Whether rows, or columns, of which the last is as far from the first as neighbours would be, are neighbours.
  __device__ bool neighbours(bool rows) const {
    Index pixels = 1;
    bool dense = true;
#pragma unroll
    for (int i = 2; i >= 0; --i) {
      dense = dense && (axis[i].outputs == 1 || p.out[2 + i] == pixels);
      pixels *= axis[i].outputs;
    }
    return dense || !rows;
  }
  // Whether they are whole packs from those of all other lines, and parts.
  __device__ bool whole_packs(bool rows, int pack) const {
    const Index parts = p.splits > 1 ? p.items : 0;
    return (rows ? p.out[1] : parts | p.out_start | p.out[0] | p.out[2] | p.out[3] | p.out[4]) % pack == 0;
  }
};

// -- wgrad ------------------------------------------------------------------------------------------

// Filters by taps, summed over pixels.
template <typename T, Lanes LANES, int VECTOR, bool PLANAR, int SLOTS = 0, int REALS = 1>
struct FiltersByTaps {
  static constexpr Index BYTES = sizeof(T);
  struct Column {
    Site cell;
    Index plain;  // of an element of dy
    bool there;
  };
  using RowA = PlainRow;
  using RowB = Site;
  static constexpr bool CELLS_ARE_A = false;

  const Params& p;
  const GatherAxis (&axis)[3];
  int channels, padded, depth;
  Radices pixels;
  Index begin;  // of this part of gemm_k
  Source<T, VECTOR, PLANAR, SLOTS> source;
  const T* grads;
  int rows, columns, first_column;
  Index filter;  // of the tile's first row, in the result
  Index start;   // of this part of the result

  __device__ FiltersByTaps(const Params& p, const GatherAxis (&axis)[3], const void* a, const void* b, Index group,
                           Index part, int first_row, int first_column, int bm, int bn = 0, Index* table = nullptr)
      : p(p),
        axis(axis),
        channels(int(p.channels)),
        padded(round_up(channels, VECTOR)),
        depth(int(min_index(p.batch * axis[0].outputs * axis[1].outputs * axis[2].outputs - part * p.chunk, p.chunk))),
        pixels(pixel_radices<PLANAR>(p)),
        begin(part * p.chunk),
        source{static_cast<const T*>(a) + group * padded * p.a[1], axis, p.a, p.mode, table,
               first_tap(axis, first_column, padded), lines(axis, first_column, bn, padded)},
        grads(static_cast<const T*>(b) + p.b_start + (group * round_up(int(p.filters), VECTOR) + first_row) * p.b[1]),
        rows(int(min_index(p.filters - first_row, bm))),
        columns(axis[0].taps * axis[1].taps * axis[2].taps * padded),
        first_column(first_column),
        filter(group * p.filters + first_row),
        start(p.out_start + part * p.items) {}

  // The taps that a tile has, which all have lines: those of its channels, or all of them in turn.
  __device__ static Tap first_tap(const GatherAxis (&axis)[3], int first_column, int padded) {
    if (LANES == PIXEL_LANES) return {};
    const int tap = first_column / padded, r = tap / axis[2].taps;
    return {0, r / axis[1].taps, r % axis[1].taps, tap % axis[2].taps};
  }
  __device__ static int lines(const GatherAxis (&axis)[3], int first_column, int bn, int padded) {
    const int taps = axis[0].taps * axis[1].taps * axis[2].taps;
    return LANES == PIXEL_LANES ? taps : min((first_column + bn - 1) / padded + 1, taps) - first_column / padded;
  }

  __device__ Counter counter(int k) const { return pixel_at<PLANAR>(p, begin + k, depth - k); }
  __device__ Counter counter(const Counter& from, int k) const { return pixels.after(from, k); }
  // It takes a slot of the table, if there is one.
  __device__ Column column(const Counter& at, int slot = 0) const {
    Column column{source.pixel(at, slot),
                  BYTES * (at.digit[3] * p.b[0] + (PLANAR ? 0 : at.digit[2] * p.b[2]) + at.digit[1] * p.b[3] +
                           at.digit[0] * p.b[4]),
                  at.left > 0};
    if (!column.there) source.no_column(column.cell);
    return column;
  }
  __device__ Site row_of_cells(int j) const {
    const Counter at = tap(j);
    Site row = source.tap(tap_of<LANES>(at));
    if (at.left <= 0) source.no_row(row);
    return row;
  }
  __device__ PlainRow plain_row(int i) const { return {BYTES * (i * p.b[1]), i < rows}; }
  __device__ Place<T> a(const RowA& row, const Column& column) const {
    return {grads, row.offset, column.plain, bool(row.there & column.there)};
  }
  __device__ Place<T> b(const RowB& row, const Column& column) const { return source(column.cell, row); }

  __device__ Counter tap(int j) const {
    return tap_radices<LANES>(axis, padded).after({{}, columns}, first_column + j);
  }

  __device__ Index row_place(int i) const {
    return i * REALS < rows ? start + (filter / REALS + i) * p.out[0] : NONE;
  }
  __device__ Index column_place(int j) const {
    const Counter at = tap(j * REALS);
    const auto [c, t, r, s] = tap_of<LANES>(at);
    if (at.left <= 0 || c >= channels) return NONE;
    return c / REALS * p.out[1] + t * p.out[2] + r * p.out[3] + s * p.out[4];
  }
  __device__ bool neighbours(bool) const { return true; }
  __device__ bool whole_packs(bool, int pack) const {
    return ((p.splits > 1 ? p.items : 0) | p.out_start | p.out[0]) % pack == 0;
  }
};

// -- what a block puts down ------------------------------------------------------------------------

// The axes of a residue of the stride, by one thread for the whole block, which may read them then. `residue` has that
// of w, of h and of d.
__device__ inline void put_axes(GatherAxis (&axis)[3], const Params& p, const Index* residue) {
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < 3; ++i) axis[i] = residue_axis(p.axis[i], int(residue[2 - i]));
  }
  __syncthreads();
}

// Where the result is going to be, the rows of the matrix of cells and the beginning of gemm_k, by all threads: what
// these are made of would take registers while slices are multiplied. Whoever reads them waits for the block first.
template <typename Matrices, int BM, int BN, typename Entries>
__device__ inline void put_places(const Matrices& matrices, Index (&rows)[BM], Index (&columns)[BN], Entries& cells,
                                  Counter& first) {
  if (threadIdx.x == 0) first = matrices.counter(0);
  for (int i = threadIdx.x; i < BM; i += blockDim.x) rows[i] = matrices.row_place(i);
  for (int j = threadIdx.x; j < BN; j += blockDim.x) columns[j] = matrices.column_place(j);
  for (int i = threadIdx.x; i < (Matrices::CELLS_ARE_A ? BM : BN); i += blockDim.x)
    cells[i] = Entry::of(matrices.row_of_cells(i), true, 0);
}

// -- a thread's share -------------------------------------------------------------------------------

// Which rows and which column of a slice, ROWS x BK elements, a thread brings, VECTOR at once. Neighbouring threads
// run along gemm_k if K_MAJOR, and along the rows otherwise; each has one column, or VECTOR of them, and COUNT rows.
template <int ROWS, int BK, int VECTOR, int THREADS_, bool K_MAJOR>
struct Share {
  static constexpr int THREADS = THREADS_;
  static constexpr int ACROSS = K_MAJOR ? THREADS * VECTOR / BK : THREADS / BK;
  static constexpr int STEP = K_MAJOR ? ACROSS : ACROSS * VECTOR, COUNT = ROWS / STEP;
  static_assert(THREADS % ACROSS == 0 && ROWS % STEP == 0, "all threads bring as much");

  __device__ static int row() { return K_MAJOR ? threadIdx.x / (BK / VECTOR) : threadIdx.x % ACROSS * VECTOR; }
  __device__ static int column() {
    if (K_MAJOR) return threadIdx.x % (BK / VECTOR) * VECTOR;
    // Where eight threads or sixteen have two columns, these are four apart, which swizzled shared memory tells apart.
    const int column = threadIdx.x / ACROSS;
    return ACROSS <= 8 ? column / 8 * 8 + column % 2 * 4 + column % 8 / 2 : column;
  }
};
