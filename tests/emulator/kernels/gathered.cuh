// The matrices of gather.cuh, written out element by element, as kernels bring them.
//
// A block has a tile of BM x BN and a part of gemm_k. out has, for each block, BM rows of A and BN of B: p.items columns
// and, last, where in the result the row of A, or what is a row of B and a column of the result, lies; -1 for nowhere.
#pragma once
#include "gather.cuh"

constexpr int BM = 64, BN = 32, BK = 8, THREADS = 64;

template <int ROWS, int VECTOR, bool K_MAJOR, typename Row, typename Matrices, typename Rows, typename Place>
__device__ inline void write_matrix(const Matrices& matrices, float* out, Index columns, Rows rows, Place place) {
  using Part = Share<ROWS, BK, VECTOR, THREADS, K_MAJOR>;
  Row row[Part::COUNT];
  rows(row, Part::row(), Part::STEP);
  Counter at = matrices.counter(Part::column());
  for (Index k = 0; k < columns; k += BK) {
    const auto column = matrices.column(at);
    for (int i = 0; i < Part::COUNT; ++i) {
      const auto from = place(row[i], column);
      for (int v = 0; v < VECTOR; ++v) {
        const Index line = Part::row() + i * Part::STEP + (K_MAJOR ? 0 : v), cell = k + Part::column() + (K_MAJOR ? v : 0);
        if (cell < columns) out[line * (columns + 1) + cell] = from.there ? from.at[v] : 0;
      }
    }
    matrices.advance(at);
  }
}

template <int VECTOR, bool A_K_MAJOR, bool B_K_MAJOR, typename Matrices>
__device__ inline void write_matrices(const Matrices& matrices, void* out, const Params& p) {
  using RowA = typename Matrices::RowA;
  using RowB = typename Matrices::RowB;
  using Column = typename Matrices::Column;
  float* const a = static_cast<float*>(out) + Index(blockIdx.x) * (BM + BN) * (p.items + 1);
  float* const b = a + BM * (p.items + 1);
  constexpr int A = Share<BM, BK, VECTOR, THREADS, A_K_MAJOR>::COUNT, B = Share<BN, BK, VECTOR, THREADS, B_K_MAJOR>::COUNT;
  write_matrix<BM, VECTOR, A_K_MAJOR, RowA>(
      matrices, a, p.items, [&](RowA (&row)[A], int first, int step) { matrices.rows_a(row, first, step); },
      [&](const RowA& row, const Column& column) { return matrices.a(row, column); });
  write_matrix<BN, VECTOR, B_K_MAJOR, RowB>(
      matrices, b, p.items, [&](RowB (&row)[B], int first, int step) { matrices.rows_b(row, first, step); },
      [&](const RowB& row, const Column& column) { return matrices.b(row, column); });
  for (int i = threadIdx.x; i < BM + BN; i += THREADS) {
    const Index place = i < BM ? matrices.row_place(i) : matrices.column_place(i - BM);
    a[i * (p.items + 1) + p.items] = place == NONE ? -1 : place;
  }
}

// fprop, or dgrad: blocks are (part, group, residues, tile_m, tile_n).
template <bool DGRAD, Lanes LANES, int VECTOR, bool PLANAR>
__device__ void gathered_pixels(const void* a, const void* b, const void*, void* out, const Params& p) {
  const Axis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  const int channels = int(DGRAD ? p.filters : p.channels), results = int(DGRAD ? p.channels : p.filters);
  Index pixels = p.batch;
  for (int i = 0; i < 3; ++i) pixels *= DGRAD ? tiles(p.axis[i].input, p.axis[i].stride) : p.axis[i].output;
  const Index one = 1;
  const Index extents[7] = {0, p.groups, DGRAD ? d.stride : one, DGRAD ? h.stride : one, DGRAD ? w.stride : one,
                            tiles(pixels, BM), tiles(results, BN)};
  Index digit[7];
  split(blockIdx.x, extents, digit);
  const GatherAxis axis[3] = {DGRAD ? residue_axis(d, int(digit[2])) : forward_axis(d),
                              DGRAD ? residue_axis(h, int(digit[3])) : forward_axis(h),
                              DGRAD ? residue_axis(w, int(digit[4])) : forward_axis(w)};
  const PixelsByChannels<float, LANES, VECTOR, PLANAR> matrices(
      p, axis, a, b, channels, results, p.b[DGRAD], p.b[!DGRAD], digit[1], digit[0], digit[5] * BM, int(digit[6]) * BN, BM,
      BN, BK);
  write_matrices<VECTOR, LANES == CHANNEL_LANES, !DGRAD>(matrices, out, p);
}

// wgrad: blocks are (part, group, tile_m, tile_n).
template <Lanes LANES, int VECTOR, bool PLANAR>
__device__ void gathered_filters(const void* a, const void* b, const void*, void* out, const Params& p) {
  const GatherAxis axis[3] = {forward_axis(p.axis[0]), forward_axis(p.axis[1]), forward_axis(p.axis[2])};
  const int columns = axis[0].taps * axis[1].taps * axis[2].taps * round_up(int(p.channels), VECTOR);
  const Index extents[4] = {0, p.groups, tiles(p.filters, BM), tiles(columns, BN)};
  Index digit[4];
  split(blockIdx.x, extents, digit);
  const FiltersByTaps<float, LANES, VECTOR, PLANAR> matrices(p, axis, a, b, digit[1], digit[0], int(digit[2]) * BM,
                                                             int(digit[3]) * BN, BM, BN, BK);
  write_matrices<VECTOR, LANES == PIXEL_LANES, LANES == PIXEL_LANES>(matrices, out, p);
}
