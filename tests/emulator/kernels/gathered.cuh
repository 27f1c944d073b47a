// The matrices of gather.cuh, written out element by element, as kernels bring them.
//
// A block has a tile of BM x BN and a part of gemm_k. out has, for each block, BM rows of A and BN of B: p.items
// columns and, last, where in the result the row of A, or what is a row of B and a column of the result, lies; -1 for
// nowhere.
#pragma once
#include "gather.cuh"

constexpr int BM = 64, BN = 32, BK = 8, THREADS = 64;

template <bool CELLS, typename Matrices>
__device__ inline auto row_of(const Matrices& matrices, int i) {
  if constexpr (CELLS)
    return matrices.row_of_cells(i);
  else
    return matrices.plain_row(i);
}

template <int ROWS, int VECTOR, bool K_MAJOR, bool CELLS, typename Matrices, typename Place>
__device__ inline void write_matrix(const Matrices& matrices, float* out, int columns, Place place) {
  using Part = Share<ROWS, BK, VECTOR, THREADS, K_MAJOR>;
  const Counter first = matrices.counter(0);
  for (int k = Part::column(); k < columns; k += BK) {
    const auto column = matrices.column(matrices.counter(first, k));
    for (int row = Part::row(); row < ROWS; row += Part::STEP) {
      const auto from = place(row_of<CELLS>(matrices, row), column);
      for (int v = 0; v < VECTOR; ++v) {
        const Index line = row + (K_MAJOR ? 0 : v), cell = k + (K_MAJOR ? v : 0);
        if (cell < columns) out[line * (columns + 1) + cell] = from.there ? from.at[v] : 0;
      }
    }
  }
}

template <int VECTOR, bool A_K_MAJOR, bool B_K_MAJOR, typename Matrices>
__device__ inline void write_matrices(const Matrices& matrices, void* out, const Params& p) {
  using RowA = typename Matrices::RowA;
  using RowB = typename Matrices::RowB;
  using Column = typename Matrices::Column;
  float* const a = static_cast<float*>(out) + Index(blockIdx.x) * (BM + BN) * (p.items + 1);
  float* const b = a + BM * (p.items + 1);
  write_matrix<BM, VECTOR, A_K_MAJOR, Matrices::CELLS_ARE_A>(
      matrices, a, int(p.items), [&](const RowA& row, const Column& column) { return matrices.a(row, column); });
  write_matrix<BN, VECTOR, B_K_MAJOR, !Matrices::CELLS_ARE_A>(
      matrices, b, int(p.items), [&](const RowB& row, const Column& column) { return matrices.b(row, column); });
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
      p, axis, a, b, channels, results, p.b[DGRAD], p.b[!DGRAD], digit[1], digit[0], digit[5] * BM,
      int(digit[6]) * BN, BM, BN);
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
                                                             int(digit[3]) * BN, BM);
  write_matrices<VECTOR, LANES == PIXEL_LANES, LANES == PIXEL_LANES>(matrices, out, p);
}
