// Convolution and its gradients as tiled matrix products on the ordinary cores, without lowering: implicit GEMM.
//
//   op     gemm_m                                 gemm_n             gemm_k
//   fprop  N Z P Q                                K / groups         (T R S) C/groups
//   dgrad  N D H W of one residue of the stride   C / groups         (contributing T R S) K/groups
//   wgrad  K / groups                             (T R S) C/groups   N Z P Q, cut into `splits` parts
//
// For every dtype, rank and layout, padded with zeros. A block owns a BM x BN tile of the product, a thread TM x TN
// elements of it in registers. Slices of both operands, BK deep, go through two buffers in shared memory: while
// one is multiplied, the next is on its way from global memory in registers, so that one barrier per slice is
// enough. Indices of gemm_k are never divided: a thread keeps them as digits and carries.
//
// PIXEL_LANES and CHANNEL_LANES say what neighbouring threads read: neighbouring pixels (channels-first arrays),
// or neighbouring channels (channels-last ones). Both are right for all strides.
//
// Preconditions (`applies` in cuda/simt.py): coordinates on every axis, padding included, and gemm_k fit
// 32 bits. Offsets of elements have 64. Every element is summed in one order, set by the plan: the bits are the
// same from run to run. It exists as the floor for all that tensor cores do not take.
#pragma once
#include "indexing.cuh"
#include "numerics.cuh"

enum Lanes { PIXEL_LANES, CHANNEL_LANES };

// -- digits of gemm indices -------------------------------------------------------------------------

// An output pixel, q fastest.
struct Pixel {
  int n, z, p, q;
};

// The pixel `by` further than one in range, by division: for the rows of a tile.
__device__ inline Pixel pixel_after(Pixel from, int by, const int (&extent)[3]) {
  const unsigned q = unsigned(from.q) + by, p = from.p + q / extent[2], z = from.z + p / extent[1];
  return {from.n + int(z / extent[0]), int(z % extent[0]), int(p % extent[1]), int(q % extent[2])};
}

__device__ inline Pixel pixel_at(Index index, const int (&extent)[3]) {
  const Index extents[4] = {0, extent[0], extent[1], extent[2]};
  Index digits[4];
  split(index, extents, digits);
  return {int(digits[0]), int(digits[1]), int(digits[2]), int(digits[3])};
}

// The same by carrying, for the steps of gemm_k, where `by` is small.
__device__ inline void advance(Pixel& pixel, int by, const int (&extent)[3]) {
  pixel.q += by;
  while (pixel.q >= extent[2]) {
    pixel.q -= extent[2];
    if (++pixel.p < extent[1]) continue;
    pixel.p = 0;
    if (++pixel.z < extent[0]) continue;
    pixel.z = 0;
    ++pixel.n;
  }
}

// A tap of one channel. With pixel lanes the taps run fastest, as in a channels-first filter, otherwise the
// channels, as in a channels-last one.
struct Tap {
  int c, t, r, s;
};

template <Lanes LANES>
__device__ inline void advance(Tap& tap, int by, int channels, const int (&taps)[3]) {
  if (LANES == CHANNEL_LANES) {
    tap.c += by;
    while (tap.c >= channels) {
      tap.c -= channels;
      if (++tap.s < taps[2]) continue;
      tap.s = 0;
      if (++tap.r < taps[1]) continue;
      tap.r = 0;
      ++tap.t;
    }
  } else {
    tap.s += by;
    while (tap.s >= taps[2]) {
      tap.s -= taps[2];
      if (++tap.r < taps[1]) continue;
      tap.r = 0;
      if (++tap.t < taps[0]) continue;
      tap.t = 0;
      ++tap.c;
    }
  }
}

template <Lanes LANES>
__device__ inline Tap tap_at(int index, int channels, const int (&taps)[3]) {
  Tap tap;
  if (LANES == CHANNEL_LANES) tap.c = index % channels, index /= channels;
  tap.s = index % taps[2], index /= taps[2];
  tap.r = index % taps[1], index /= taps[1];
  if (LANES == CHANNEL_LANES) {
    tap.t = index;
  } else {
    tap.t = index % taps[0];
    tap.c = index / taps[0];
  }
  return tap;
}

// -- the operands -----------------------------------------------------------------------------------
//
// An operand of a tile is a matrix with one row per gemm_m (or gemm_n) and one column per gemm_k. A Row and a
// Column hold what their index contributes to the place of an element.

// A place in a source, or a part of one: coordinates, and the offset that they make.
struct Site {
  int d, h, w;
  Index offset;
};

// Far enough out that the sum with any part is outside: the site of a row or column that does not exist.
constexpr int NOWHERE = -(1 << 30);

// Cells of a source (x, or dy for dgrad), where pixels and taps meet; zero outside.
template <typename T>
struct Source {
  const T* data;
  GatherAxis axis[3];
  const Index* stride;
  bool conjugate;

  __device__ Site pixel_site(const Pixel& at) const {
    const int d = axis[0].source(at.z, 0), h = axis[1].source(at.p, 0), w = axis[2].source(at.q, 0);
    return {d, h, w, at.n * stride[0] + d * stride[2] + h * stride[3] + w * stride[4]};
  }
  __device__ Site tap_site(const Tap& at) const {
    const int d = at.t * axis[0].delta, h = at.r * axis[1].delta, w = at.s * axis[2].delta;
    return {d, h, w, at.c * stride[1] + d * stride[2] + h * stride[3] + w * stride[4]};
  }
  __device__ Accumulator<T> at(const Site& pixel, const Site& tap) const {
    const bool inside = unsigned(pixel.d + tap.d) < unsigned(axis[0].sources) &&
                        unsigned(pixel.h + tap.h) < unsigned(axis[1].sources) &&
                        unsigned(pixel.w + tap.w) < unsigned(axis[2].sources);
    return inside ? conjugate_if(conjugate, widen(data[pixel.offset + tap.offset])) : Accumulator<T>{};
  }
};

// Columns of fprop and dgrad.
template <Lanes LANES>
struct TapColumns {
  int taps[3];
  int channels, columns;

  struct Column {
    Tap tap;
    int index;
  };
  __device__ Column column(int index) const { return {tap_at<LANES>(index, channels, taps), index}; }
  __device__ void step(Column& column, int by) const {
    column.index += by;
    advance<LANES>(column.tap, by, channels, taps);
  }
  __device__ bool has(const Column& column) const { return column.index < columns; }
};

// Columns of wgrad.
struct PixelColumns {
  Pixel first;  // of the part of the sum
  int outputs[3];
  int columns;

  struct Column {
    Pixel pixel;
    int index;
  };
  __device__ Column column(int index) const { return {pixel_after(first, index, outputs), index}; }
  __device__ void step(Column& column, int by) const {
    column.index += by;
    advance(column.pixel, by, outputs);
  }
  __device__ bool has(const Column& column) const { return column.index < columns; }
};

// A row of an operand that is not a gather.
struct PlainRow {
  Index offset;
  bool exists;
};

// A of fprop and dgrad: rows are pixels, columns taps.
template <typename T, Lanes LANES>
struct PixelRows : TapColumns<LANES> {
  Source<T> source;
  Pixel first;  // of the tile
  int outputs[3];
  int rows;

  using Row = Site;
  using Column = typename TapColumns<LANES>::Column;
  __device__ Row row(int local) const {
    if (local >= rows) return {NOWHERE, 0, 0, 0};
    return source.pixel_site(pixel_after(first, local, outputs));
  }
  __device__ Accumulator<T> at(const Row& row, const Column& column) const {
    return this->has(column) ? source.at(row, source.tap_site(column.tap)) : Accumulator<T>{};
  }
};

// B of wgrad: rows are taps, columns pixels.
template <typename T, Lanes LANES>
struct TapRows : PixelColumns {
  Source<T> source;
  int taps[3];
  int begin, rows, channels;

  using Row = Site;
  __device__ Row row(int local) const {
    if (begin + local >= rows) return {NOWHERE, 0, 0, 0};
    return source.tap_site(tap_at<LANES>(begin + local, channels, taps));
  }
  __device__ Accumulator<T> at(const Row& row, const Column& column) const {
    return has(column) ? source.at(source.pixel_site(column.pixel), row) : Accumulator<T>{};
  }
};

// B of fprop and dgrad: rows are the result's channels, columns taps.
template <typename T, Lanes LANES>
struct FilterRows : TapColumns<LANES> {
  const T* data;
  GatherAxis axis[3];
  const Index* stride;
  Index row_stride, channel_stride;
  int rows;
  bool conjugate;

  using Row = PlainRow;
  using Column = typename TapColumns<LANES>::Column;
  __device__ Row row(int local) const { return {local * row_stride, local < rows}; }
  __device__ Accumulator<T> at(const Row& row, const Column& column) const {
    if (!row.exists || !this->has(column)) return Accumulator<T>{};
    const Tap& tap = column.tap;
    const Index offset = tap.c * channel_stride + axis[0].filter_tap(tap.t) * stride[2] +
                         axis[1].filter_tap(tap.r) * stride[3] + axis[2].filter_tap(tap.s) * stride[4];
    return conjugate_if(conjugate, widen(data[row.offset + offset]));
  }
};

// A of wgrad: rows are filters, columns pixels of dy.
template <typename T>
struct GradRows : PixelColumns {
  const T* data;
  const Index* stride;
  int rows;

  using Row = PlainRow;
  __device__ Row row(int local) const { return {local * stride[1], local < rows}; }
  __device__ Accumulator<T> at(const Row& row, const Column& column) const {
    if (!row.exists || !has(column)) return Accumulator<T>{};
    const Pixel& at = column.pixel;
    return widen(data[row.offset + at.n * stride[0] + at.z * stride[2] + at.p * stride[3] + at.q * stride[4]]);
  }
};

// -- the tile loop ----------------------------------------------------------------------------------

// The extents of a tile and of a thread's part of it, and where the part lies.
template <typename Acc, int BM_, int BN_, int BK_, int TM_, int TN_>
struct Tile {
  static constexpr int BM = BM_, BN = BN_, BK = BK_, TM = TM_, TN = TN_;
  static constexpr int THREADS = (BM / TM) * (BN / TN);
  static constexpr int VECTOR = 16 / sizeof(Acc);  // elements that shared memory gives at once
  // A warp owns a patch of 32 / WARP_N x WARP_N threads, which spreads its reads of both operands.
  static constexpr int WARP_N = BN / TN < 8 ? BN / TN : 8, WARP_M = 32 / WARP_N;
  static_assert(THREADS % 32 == 0 && BM / TM % WARP_M == 0 && BN / TN % WARP_N == 0, "whole warps");
  static_assert(TM % VECTOR == 0 && TN % VECTOR == 0, "whole vectors");

  int m, n;  // of the thread, in vectors

  __device__ Tile() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps_n = BN / TN / WARP_N;
    m = warp / warps_n * WARP_M + lane / WARP_N;
    n = warp % warps_n * WARP_N + lane % WARP_N;
  }
  // Row i, or column j, of the thread's part, within the tile: vectors of neighbours, spread over the tile.
  __device__ int row(int i) const { return (i / VECTOR * (BM / TM) + m) * VECTOR + i % VECTOR; }
  __device__ int column(int j) const { return (j / VECTOR * (BN / TN) + n) * VECTOR + j % VECTOR; }
};

template <typename Acc>
struct alignas(16) Vector {
  Acc value[16 / sizeof(Acc)];
};

// Brings one operand's slices to shared memory, element by element. ALONG_K threads of a row differ in gemm_k:
// each then has one column and several rows, otherwise one row and several columns.
template <typename Operand, typename Acc, int ROWS, int BK, int THREADS, bool ALONG_K>
struct Loader {
  static constexpr int LANES = ALONG_K ? BK : ROWS, STEP = THREADS / LANES, LOADS = ROWS * BK / THREADS;
  static constexpr int PITCH = ROWS + 16 / sizeof(Acc);  // a vector more, against conflicts of banks
  static_assert(THREADS % LANES == 0 && ROWS * BK % THREADS == 0, "every thread loads as many");

  const Operand& operand;
  typename Operand::Row row[ALONG_K ? LOADS : 1];
  typename Operand::Column column;
  Acc value[LOADS];

  __device__ explicit Loader(const Operand& operand)
      : operand(operand), column(operand.column(ALONG_K ? threadIdx.x % LANES : threadIdx.x / LANES)) {
#pragma unroll
    for (int i = 0; i < (ALONG_K ? LOADS : 1); ++i)
      row[i] = operand.row(ALONG_K ? threadIdx.x / LANES + i * STEP : threadIdx.x % LANES);
  }
  // Read the next slice into registers.
  __device__ void fetch() {
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
      value[i] = operand.at(row[ALONG_K ? i : 0], column);
      if (!ALONG_K) operand.step(column, STEP);
    }
    if (ALONG_K) operand.step(column, BK);
  }
  __device__ void put(Acc (&slice)[BK][PITCH]) const {
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
      const int lane = threadIdx.x % LANES, other = threadIdx.x / LANES + i * STEP;
      slice[ALONG_K ? lane : other][ALONG_K ? other : lane] = value[i];
    }
  }
};

// sum += A B for one slice.
template <typename Tile, typename Acc, int PITCH_A, int PITCH_B>
__device__ inline void multiply_slice(const Tile& tile, const Acc (&a)[Tile::BK][PITCH_A],
                                      const Acc (&b)[Tile::BK][PITCH_B], Acc (&sum)[Tile::TM][Tile::TN]) {
  constexpr int V = Tile::VECTOR;
#pragma unroll
  for (int k = 0; k < Tile::BK; ++k) {
    Vector<Acc> row[Tile::TM / V], column[Tile::TN / V];
#pragma unroll
    for (int i = 0; i < Tile::TM / V; ++i) row[i] = *reinterpret_cast<const Vector<Acc>*>(&a[k][tile.row(i * V)]);
#pragma unroll
    for (int j = 0; j < Tile::TN / V; ++j) column[j] = *reinterpret_cast<const Vector<Acc>*>(&b[k][tile.column(j * V)]);
#pragma unroll
    for (int i = 0; i < Tile::TM; ++i)
#pragma unroll
      for (int j = 0; j < Tile::TN; ++j)
        sum[i][j] = multiply_add(row[i / V].value[i % V], column[j / V].value[j % V], sum[i][j]);
  }
}

// sum = A B for this block's tile, over `depth` of gemm_k.
template <typename Tile, typename Acc, bool A_ALONG_K, bool B_ALONG_K, typename A, typename B>
__device__ inline void multiply(const Tile& tile, const A& a, const B& b, int depth, Acc (&sum)[Tile::TM][Tile::TN]) {
  using LoadA = Loader<A, Acc, Tile::BM, Tile::BK, Tile::THREADS, A_ALONG_K>;
  using LoadB = Loader<B, Acc, Tile::BN, Tile::BK, Tile::THREADS, B_ALONG_K>;
  alignas(16) __shared__ Acc As[2][Tile::BK][LoadA::PITCH];
  alignas(16) __shared__ Acc Bs[2][Tile::BK][LoadB::PITCH];
#pragma unroll
  for (int i = 0; i < Tile::TM; ++i)
#pragma unroll
    for (int j = 0; j < Tile::TN; ++j) sum[i][j] = Acc{};
  if (depth <= 0) return;

  LoadA load_a(a);
  LoadB load_b(b);
  int buffer = 0;
  // Slice k is multiplied while slice k + BK is fetched; the first round only fetches.
  for (int k = -Tile::BK; k < depth; k += Tile::BK) {
    const bool more = k + Tile::BK < depth;
    if (more) {
      load_a.fetch();
      load_b.fetch();
    }
    if (k >= 0) multiply_slice(tile, As[buffer], Bs[buffer], sum);
    buffer ^= 1;
    if (more) {
      load_a.put(As[buffer]);
      load_b.put(Bs[buffer]);
    }
    __syncthreads();  // the slice is complete for all, and nobody reads the other any more
  }
}

// The offset of a row or column that does not exist.
constexpr Index NONE = Index(1) << 63;

// Store a tile, patch by patch through shared memory: a thread's sums are spread over the tile, but neighbouring
// threads should write neighbouring elements, those of one column if ROWS_FASTEST, otherwise those of one row. An
// element is at row_place(i) + column_place(j), and put(place, sum, j) puts it there.
template <bool ROWS_FASTEST, typename Tile, typename Acc, typename RowPlace, typename ColumnPlace, typename Put>
__device__ inline void store_tile(const Tile& tile, const Acc (&sum)[Tile::TM][Tile::TN], RowPlace row_place,
                                  ColumnPlace column_place, Put put) {
  constexpr int V = Tile::VECTOR, ROWS = Tile::BM / Tile::TM * V, COLUMNS = Tile::BN / Tile::TN * V;
  __shared__ Index rows[Tile::BM], columns[Tile::BN];
  __shared__ Acc patch[ROWS][COLUMNS + 1];
  for (int i = threadIdx.x; i < Tile::BM; i += Tile::THREADS) rows[i] = row_place(i);
  for (int j = threadIdx.x; j < Tile::BN; j += Tile::THREADS) columns[j] = column_place(j);
#pragma unroll
  for (int i = 0; i < Tile::TM; i += V) {
#pragma unroll
    for (int j = 0; j < Tile::TN; j += V) {
#pragma unroll
      for (int v = 0; v < V * V; ++v) patch[tile.m * V + v / V][tile.n * V + v % V] = sum[i + v / V][j + v % V];
      __syncthreads();  // the patch, and before the first one the places, are there
#pragma unroll 1
      for (int cell = threadIdx.x; cell < ROWS * COLUMNS; cell += Tile::THREADS) {
        const int row = ROWS_FASTEST ? cell % ROWS : cell / COLUMNS;
        const int column = ROWS_FASTEST ? cell / ROWS : cell % COLUMNS;
        const int tile_column = j / V * COLUMNS + column;
        const Index m = rows[i / V * ROWS + row], n = columns[tile_column];
        if (m != NONE && n != NONE) put(m + n, patch[row][column], tile_column);
      }
      __syncthreads();  // the patch may be overwritten
    }
  }
}

// -- the ops ----------------------------------------------------------------------------------------

// The tile of a gather (fprop, or one residue of dgrad): pixels of the result by its channels.
template <typename T, int BM, int BN, int BK, int TM, int TN, Lanes LANES, bool B_ALONG_K>
__device__ inline void gather(const void* a, const void* b, const void* bias, void* out, const Params& p,
                              const GatherAxis (&axis)[3], Index group, Index tile_m, Index tile_n,
                              int source_channels, int result_channels, Index row_stride, Index channel_stride) {
  using Acc = Accumulator<T>;
  using Tile = ::Tile<Acc, BM, BN, BK, TM, TN>;
  const int outputs[3] = {axis[0].outputs, axis[1].outputs, axis[2].outputs};
  const int taps[3] = {axis[0].taps, axis[1].taps, axis[2].taps};
  const Index pixels = p.batch * outputs[0] * outputs[1] * outputs[2];
  if (tile_m * BM >= pixels) return;  // residues at the end have fewer pixels than the first
  const int depth = taps[0] * taps[1] * taps[2] * source_channels;
  const Pixel first = pixel_at(tile_m * BM, outputs);
  const int rows = int(min_index(pixels - tile_m * BM, BM)), begin = int(tile_n) * BN;

  const T* source = static_cast<const T*>(a) + group * source_channels * p.a[1];
  const T* filter = static_cast<const T*>(b) + p.b_start + group * p.filters * p.b[0] + begin * row_stride;
  const TapColumns<LANES> columns{{taps[0], taps[1], taps[2]}, source_channels, depth};
  const PixelRows<T, LANES> pixel_rows{
      columns, {source, {axis[0], axis[1], axis[2]}, p.a, false}, first, {outputs[0], outputs[1], outputs[2]}, rows};
  const FilterRows<T, LANES> filter_rows{
      columns, filter, {axis[0], axis[1], axis[2]}, p.b, row_stride, channel_stride, result_channels - begin,
      p.conjugate != 0};

  const Tile tile;
  Acc sum[TM][TN];
  multiply<Tile, Acc, LANES == CHANNEL_LANES, B_ALONG_K>(tile, pixel_rows, filter_rows, depth, sum);

  const auto row_place = [&](int i) -> Index {
    if (i >= rows) return NONE;
    const Pixel at = pixel_after(first, i, outputs);
    return p.out_start + at.n * p.out[0] + axis[0].cell(at.z) * p.out[2] + axis[1].cell(at.p) * p.out[3] +
           axis[2].cell(at.q) * p.out[4];
  };
  const Index channel = group * result_channels + begin;
  const auto column_place = [&](int j) { return begin + j < result_channels ? (channel + j) * p.out[1] : NONE; };
  store_tile<LANES == PIXEL_LANES>(tile, sum, row_place, column_place, [&](Index place, Acc value, int j) {
    finish<T>(p, out, place, value, bias, channel + j);
  });
}

// Blocks run over gemm_n first, so that those that share pixels run together; then gemm_m, then groups.
template <typename T, int BM, int BN, int BK, int TM, int TN, Lanes LANES>
__device__ void conv_fprop_simt(const void* a, const void* b, const void* bias, void* out, const Params& p) {
  const GatherAxis axis[3] = {forward_axis(p.axis[0]), forward_axis(p.axis[1]), forward_axis(p.axis[2])};
  const Index tiles_n = tiles(p.filters, BN);
  const Index tiles_m = tiles(p.batch * p.axis[0].output * p.axis[1].output * p.axis[2].output, BM);
  const Index block = blockIdx.x, tile_n = block % tiles_n, tile_m = block / tiles_n % tiles_m;
  gather<T, BM, BN, BK, TM, TN, LANES, true>(a, b, bias, out, p, axis, block / tiles_n / tiles_m, tile_m, tile_n,
                                             int(p.channels), int(p.filters), p.b[0], p.b[1]);
}

// As fprop, with one set of blocks per residue of the stride, each large enough for the first, largest one.
template <typename T, int BM, int BN, int BK, int TM, int TN, Lanes LANES>
__device__ void conv_dgrad_simt(const void* a, const void* b, const void* bias, void* out, const Params& p) {
  const Axis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  const Index pixels = p.batch * tiles(d.input, d.stride) * tiles(h.input, h.stride) * tiles(w.input, w.stride);
  const Index tiles_n = tiles(p.channels, BN), tiles_m = tiles(pixels, BM);
  const Index extents[6] = {0, d.stride, h.stride, w.stride, tiles_m, tiles_n};
  Index digit[6];  // group, residues, tile_m, tile_n
  split(blockIdx.x, extents, digit);
  const GatherAxis axis[3] = {residue_axis(d, int(digit[1])), residue_axis(h, int(digit[2])),
                              residue_axis(w, int(digit[3]))};
  gather<T, BM, BN, BK, TM, TN, LANES, false>(a, b, bias, out, p, axis, digit[0], digit[4], digit[5],
                                              int(p.filters), int(p.channels), p.b[1], p.b[0]);
}

template <typename T, int BM, int BN, int BK, int TM, int TN, Lanes LANES>
__device__ void conv_wgrad_simt(const void* a, const void* b, const void*, void* out, const Params& p) {
  using Acc = Accumulator<T>;
  using Tile = ::Tile<Acc, BM, BN, BK, TM, TN>;
  const GatherAxis axis[3] = {forward_axis(p.axis[0]), forward_axis(p.axis[1]), forward_axis(p.axis[2])};
  const int outputs[3] = {axis[0].outputs, axis[1].outputs, axis[2].outputs};
  const int taps[3] = {axis[0].taps, axis[1].taps, axis[2].taps};
  const int channels = int(p.channels), filters = int(p.filters), columns = taps[0] * taps[1] * taps[2] * channels;
  const Index pixels = p.batch * outputs[0] * outputs[1] * outputs[2];
  const Index extents[4] = {0, p.groups, tiles(filters, BM), tiles(columns, BN)};
  Index digit[4];  // part of the sum, group, tile_m, tile_n
  split(blockIdx.x, extents, digit);
  const Index part = digit[0], group = digit[1];
  const int begin_m = int(digit[2]) * BM, begin_n = int(digit[3]) * BN;
  const int depth = int(min_index(pixels - part * p.chunk, p.chunk));
  const Pixel first = depth > 0 ? pixel_at(part * p.chunk, outputs) : Pixel{};

  const T* x = static_cast<const T*>(a) + group * channels * p.a[1];
  const T* dy = static_cast<const T*>(b) + p.b_start + (group * filters + begin_m) * p.b[1];
  const PixelColumns of_pixels{first, {outputs[0], outputs[1], outputs[2]}, depth};
  const GradRows<T> grad_rows{of_pixels, dy, p.b, filters - begin_m};
  const TapRows<T, LANES> tap_rows{of_pixels, {x, {axis[0], axis[1], axis[2]}, p.a, p.conjugate != 0},
                                   {taps[0], taps[1], taps[2]}, begin_n, columns, channels};

  const Tile tile;
  Acc sum[TM][TN];
  multiply<Tile, Acc, LANES == PIXEL_LANES, LANES == PIXEL_LANES>(tile, grad_rows, tap_rows, depth, sum);

  const Index copy = p.out_start + part * p.groups * filters * columns;
  const auto row_place = [&](int i) {
    return begin_m + i < filters ? copy + (group * filters + begin_m + i) * p.out[0] : NONE;
  };
  const auto column_place = [&](int j) -> Index {
    if (begin_n + j >= columns) return NONE;
    const Tap at = tap_at<LANES>(begin_n + j, channels, taps);
    return at.c * p.out[1] + at.t * p.out[2] + at.r * p.out[3] + at.s * p.out[4];
  };
  store_tile<false>(tile, sum, row_place, column_place,
                    [&](Index place, Acc value, int) { store<T>(p, out, place, value); });
}
