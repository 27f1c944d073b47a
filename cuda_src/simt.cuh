// Convolution and its gradients as tiled matrix products on the ordinary cores, without lowering: implicit GEMM.
//
// The matrices are those of gather.cuh, for every dtype, rank and layout; what padding shows of x if SHOWN, otherwise
// padded with zeros. A block owns a BM x BN
// tile of their product, a thread TM x TN elements of it in registers. Slices of both matrices, BK deep, go through two
// buffers in shared memory: while one is multiplied, the next is on its way from global memory in registers, so that
// one barrier per slice is enough. What columns contribute to places is computed by all threads together, one each, and
// lies in a table in shared memory: nothing is counted or divided in the loop over slices, and nothing branches there.
//
// Each thread brings elements of one column of a slice, VECTOR neighbours at once: channels of channels-last arrays
// (CHANNEL_LANES), or one, where these do not go by vectors and in channels-first arrays (PIXEL_LANES).
//
// Preconditions (`applies` in cuda/simt.py): coordinates on every axis, padding included, and gemm_k fit 32 bits; where
// VECTOR is more than one, channels are contiguous, and all else of both inputs a multiple of VECTOR elements. Every
// element is summed in one order, set by the plan: the bits are the same from run to run. It exists as the floor for
// all that tensor cores do not take.
#pragma once
#include "gather.cuh"

// -- tiles ------------------------------------------------------------------------------------------

// The extents of a tile and of a thread's part of it, and where the part lies.
template <typename T_, int BM_, int BN_, int BK_, int TM_, int TN_>
struct Tile {
  using T = T_;
  using Acc = Accumulator<T>;
  using Sums = Acc[TM_][TN_];
  static constexpr int BM = BM_, BN = BN_, BK = BK_, TM = TM_, TN = TN_;
  static constexpr int THREADS = (BM / TM) * (BN / TN);
  static constexpr int V = 16 / sizeof(Acc);  // elements that shared memory gives at once
  // A warp owns a patch of 32 / WARP_N x WARP_N threads, which spreads its reads of both matrices.
  static constexpr int WARP_N = BN / TN < 8 ? BN / TN : 8, WARP_M = 32 / WARP_N;
  static_assert(THREADS % 32 == 0 && BM / TM % WARP_M == 0 && BN / TN % WARP_N == 0, "whole warps");
  static_assert(TM % V == 0 && TN % V == 0, "whole vectors");

  int m, n;  // of the thread, in vectors

  // Lanes i and i ^ 1 are in one row of the patch, i and i ^ 2 in one column: shared memory serves all 32 lanes of
  // a read of 16 bytes each in two turns where such pairs read the same.
  __device__ Tile() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps_n = BN / TN / WARP_N, rest = lane / 4;
    m = warp / warps_n * WARP_M + rest / (WARP_N / 2) * 2 + lane / 2 % 2;
    n = warp % warps_n * WARP_N + rest % (WARP_N / 2) * 2 + lane % 2;
  }
  // Row i, or column j, of the thread's part, within the tile: vectors of neighbours, spread over the tile.
  __device__ int row(int i) const { return (i / V * (BM / TM) + m) * V + i % V; }
  __device__ int column(int j) const { return (j / V * (BN / TN) + n) * V + j % V; }
};

// ROWS x BK elements of a matrix in shared memory, column by column, a vector more in each against conflicts of banks.
template <typename Acc, int ROWS, int BK>
struct Slice {
  static constexpr int PITCH = ROWS + 16 / sizeof(Acc);
  Acc column[BK][PITCH];
};

// The rows of a thread's share, STEP apart; use(i, place) is called with the place in each of them. Cells' rows stay in
// shared memory, but for a single one.
template <typename Row, int COUNT, int STEP>
struct Rows {
  const Entry* first;
  Site row;

  template <typename Matrices>
  __device__ Rows(const Matrices&, const Entry* sites, int first) : first(sites + first), row(sites[first].cell()) {}
  template <typename Place, typename Use>
  __device__ void each(Place place, Use use) const {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) use(i, place(COUNT == 1 ? row : first[i * STEP].cell()));
  }
};

// Of pixels with a table the first one's slot is enough.
template <int COUNT, int STEP>
struct Rows<Slot, COUNT, STEP> {
  int first;

  template <typename Matrices>
  __device__ Rows(const Matrices&, const Entry*, int first) : first(first) {}
  template <typename Place, typename Use>
  __device__ void each(Place place, Use use) const {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) use(i, place(Slot{first + i * STEP}));
  }
};

// Of plain rows the first one and the way to the next take least registers.
template <int COUNT, int STEP>
struct Rows<PlainRow, COUNT, STEP> {
  PlainRow first;
  Index step;
  int count;  // that exist

  template <typename Matrices>
  __device__ Rows(const Matrices& matrices, const Entry*, int row)
      : first(matrices.plain_row(row)), step(matrices.plain_row(row + STEP).offset - first.offset), count(0) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) count += matrices.plain_row(row + i * STEP).there;
  }
  template <typename Place, typename Use>
  __device__ void each(Place place, Use use) const {
    auto from = place(first);
    const bool there = from.there;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (i > 0) from.there = there & (i < count);
      use(i, from);
      from.at = reinterpret_cast<decltype(from.at)>(reinterpret_cast<const char*>(from.at) + step);
    }
  }
};

// A thread's share of a slice, on its way through registers. If K_MAJOR it is of one column, or of VECTOR neighbours:
// several rows, STEP apart. Otherwise it is of one row, or of VECTOR neighbours: several columns, STEP apart.
template <typename T, bool CELLS, int ROWS, int BK, int VECTOR, int THREADS, bool K_MAJOR>
struct Load {
  using Acc = Accumulator<T>;
  static constexpr int COUNT = ROWS * BK / VECTOR / THREADS, STEP = (K_MAJOR ? ROWS : BK) / COUNT;
  static constexpr int LANES = K_MAJOR ? BK / VECTOR : ROWS / VECTOR;  // threads along that go along gemm_k, or rows
  static_assert(COUNT * VECTOR * THREADS == ROWS * BK && STEP * COUNT == (K_MAJOR ? ROWS : BK), "all bring as much");

  int row, k;
  Pack<T, VECTOR> value[COUNT];

  __device__ Load() : Load(K_MAJOR) {}
  // Neighbouring threads run along gemm_k, or along the rows, where a plan does not know which are contiguous.
  __device__ explicit Load(bool along_k) {
    const int fast = threadIdx.x % (along_k == K_MAJOR ? LANES : STEP);
    const int slow = threadIdx.x / (along_k == K_MAJOR ? LANES : STEP);
    row = (along_k ? slow : fast) * (K_MAJOR ? 1 : VECTOR);
    k = (along_k ? fast : slow) * (K_MAJOR ? VECTOR : 1);
  }
  template <typename Row>
  using RowsOf = Rows<Row, K_MAJOR ? COUNT : 1, K_MAJOR ? STEP : 0>;

  template <typename Column, typename Row, typename Place>
  __device__ void fetch(const Entry* columns, const Rows<Row, K_MAJOR ? COUNT : 1, K_MAJOR ? STEP : 0>& rows,
                        Place place) {
#pragma unroll
    for (int i = 0; i < (K_MAJOR ? 1 : COUNT); ++i) {
      const Entry& entry = columns[k + i * STEP];
      Column column;
      if constexpr (CELLS)
        column.cell = entry.cell();
      else
        column.plain = entry.plain, column.there = entry.there;
      rows.each([&](const Row& row) { return place(row, column); }, [&](int j, const ::Place<T>& from) {
        value[K_MAJOR ? j : i] = load_if(reinterpret_cast<const Pack<T, VECTOR>*>(from.at), from.there);
      });
    }
  }
  __device__ void put(Slice<Acc, ROWS, BK>& slice, bool conjugate) const {
    constexpr int LENGTH = K_MAJOR ? 1 : VECTOR * sizeof(Acc) > 16 ? 16 / sizeof(Acc) : VECTOR;  // stored at once
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
#pragma unroll
      for (int v = 0; v < VECTOR; v += LENGTH) {
        Pack<Acc, LENGTH> wide;
#pragma unroll
        for (int j = 0; j < LENGTH; ++j) wide.value[j] = conjugate_if(conjugate, widen(value[i].value[v + j]));
        Acc* const at = K_MAJOR ? &slice.column[k + v][row + i * STEP] : &slice.column[k + i * STEP][row + v];
        *reinterpret_cast<Pack<Acc, LENGTH>*>(at) = wide;
      }
  }
};

// sum += A B for one slice.
template <typename Tile, typename SliceA, typename SliceB>
__device__ inline void multiply_slice(const Tile& tile, const SliceA& a, const SliceB& b, typename Tile::Sums& sum) {
  using Acc = typename Tile::Acc;
  constexpr int V = Tile::V;
#pragma unroll
  for (int k = 0; k < Tile::BK; ++k) {
    Pack<Acc, V> row[Tile::TM / V], column[Tile::TN / V];
#pragma unroll
    for (int i = 0; i < Tile::TM / V; ++i)
      row[i] = *reinterpret_cast<const Pack<Acc, V>*>(&a.column[k][tile.row(i * V)]);
#pragma unroll
    for (int j = 0; j < Tile::TN / V; ++j)
      column[j] = *reinterpret_cast<const Pack<Acc, V>*>(&b.column[k][tile.column(j * V)]);
#pragma unroll
    for (int i = 0; i < Tile::TM; ++i)
#pragma unroll
      for (int j = 0; j < Tile::TN; ++j)
        sum[i][j] = multiply_add(row[i / V].value[i % V], column[j / V].value[j % V], sum[i][j]);
  }
}

// What a block has in shared memory: slices and the table of columns, then patches of the result and their places.
template <typename Tile>
struct Shared {
  using Acc = typename Tile::Acc;
  static constexpr int PATCH_M = Tile::BM / Tile::TM * Tile::V, PATCH_N = Tile::BN / Tile::TN * Tile::V;
  Index rows[Tile::BM], columns[Tile::BN];  // where those of the result are
  Index packs[(Tile::BM > Tile::BN ? Tile::BM : Tile::BN) / Tile::V];  // and neighbours among them begin
  Acc bias[Tile::BN];
  Counter first;  // of gemm_k
  Entry rows_of_cells[Tile::BM > Tile::BN ? Tile::BM : Tile::BN];
  union {
    struct {
      Slice<Acc, Tile::BM, Tile::BK> a[2];
      Slice<Acc, Tile::BN, Tile::BK> b[2];
      Entry columns[Tile::THREADS + Tile::BK];
    } loop;
    Acc patch[PATCH_M * PATCH_N + Tile::V * (PATCH_M > PATCH_N ? PATCH_M : PATCH_N)];
  };
};

// sum = A B for this block's tile.
template <typename Tile, int VECTOR, bool A_K_MAJOR, bool B_K_MAJOR, typename Matrices>
__device__ inline void multiply(const Tile& tile, const Matrices& matrices, bool b_along_k, Shared<Tile>& shared,
                                typename Tile::Sums& sum) {
  using T = typename Tile::T;
  using RowA = typename Matrices::RowA;
  using RowB = typename Matrices::RowB;
  using LoadA = Load<T, Matrices::CELLS_ARE_A, Tile::BM, Tile::BK, VECTOR, Tile::THREADS, A_K_MAJOR>;
  using LoadB = Load<T, !Matrices::CELLS_ARE_A, Tile::BN, Tile::BK, VECTOR, Tile::THREADS, B_K_MAJOR>;
  auto& s = shared.loop;
#pragma unroll
  for (int i = 0; i < Tile::TM; ++i)
#pragma unroll
    for (int j = 0; j < Tile::TN; ++j) sum[i][j] = {};

  LoadA load_a;
  LoadB load_b(b_along_k);
  const bool conjugate = matrices.p.conjugate != 0;

  // Past the end of gemm_k, and of the table, nothing is there.
  const auto put_column = [&](int place, const Counter& at) {
    const typename Matrices::Column column = matrices.column(at, place);
    s.columns[place] = Entry::of(column);
  };
  if (threadIdx.x < Tile::BK) put_column(Tile::THREADS + threadIdx.x, matrices.counter(max(matrices.depth, 0)));
  __syncthreads();  // what has been put down is there
  int buffer = 0;
#pragma unroll 1
  for (int begin = 0; begin < shared.first.left; begin += Tile::THREADS) {
    put_column(threadIdx.x, matrices.counter(shared.first, begin + threadIdx.x));
    __syncthreads();  // the table is there

    // Rows are taken up after the table, lest they take registers while it is filled.
    const typename LoadA::template RowsOf<RowA> rows_a(matrices, shared.rows_of_cells, load_a.row);
    const typename LoadB::template RowsOf<RowB> rows_b(matrices, shared.rows_of_cells, load_b.row);
    const auto fetch = [&](int k) {
      using Column = typename Matrices::Column;
      load_a.template fetch<Column>(s.columns + k, rows_a, [&](const RowA& row, const Column& column) {
        return matrices.a(row, column);
      });
      load_b.template fetch<Column>(s.columns + k, rows_b, [&](const RowB& row, const Column& column) {
        return matrices.b(row, column);
      });
    };
    fetch(0);
    const int end = min(shared.first.left - begin, Tile::THREADS);
#pragma unroll 1
    for (int k = 0; k < end; k += Tile::BK) {
      load_a.put(s.a[buffer], false);
      load_b.put(s.b[buffer], conjugate);
      __syncthreads();  // the slice is there for all, and nobody reads the one before any more
      fetch(k + Tile::BK);
      multiply_slice(tile, s.a[buffer], s.b[buffer], sum);
      buffer ^= 1;
    }
  }
  __syncthreads();  // shared memory may be used for something else
}

// -- the result -------------------------------------------------------------------------------------

// Store a tile, patch by patch through shared memory, so that neighbouring threads have neighbouring elements, those of
// one column if ROWS_FASTEST, otherwise those of one row: vectors of them, or one after the other where the result's
// are no neighbours.
template <bool ROWS_FASTEST, typename Tile, typename Matrices>
__device__ inline void store_tile(const Tile& tile, const Matrices& matrices, Shared<Tile>& shared,
                                  const typename Tile::Sums& sum, void* out) {
  using T = typename Tile::T;
  using Acc = typename Tile::Acc;
  constexpr int V = Tile::V, M = Shared<Tile>::PATCH_M, N = Shared<Tile>::PATCH_N;
  constexpr int LENGTH = ROWS_FASTEST ? M : N, PITCH = LENGTH + V;
  const Params& p = matrices.p;
  const Index* const lined = ROWS_FASTEST ? shared.rows : shared.columns;
  for (int i = threadIdx.x; i < (ROWS_FASTEST ? Tile::BM : Tile::BN) / V; i += Tile::THREADS) {
    bool neighbours = lined[i * V + V - 1] != NONE;
#pragma unroll
    for (int v = 1; v < V; ++v) neighbours = neighbours & (lined[i * V + v] == lined[i * V] + v);
    shared.packs[i] = neighbours ? lined[i * V] : NONE;
  }
  const int line = (ROWS_FASTEST ? tile.n : tile.m) * V, place = (ROWS_FASTEST ? tile.m : tile.n) * V;
#pragma unroll
  for (int i = 0; i < Tile::TM; i += V) {
#pragma unroll
    for (int j = 0; j < Tile::TN; j += V) {
#pragma unroll
      for (int l = 0; l < V; ++l) {
        Pack<Acc, V> vector;
#pragma unroll
        for (int v = 0; v < V; ++v) vector.value[v] = ROWS_FASTEST ? sum[i + v][j + l] : sum[i + l][j + v];
        *reinterpret_cast<Pack<Acc, V>*>(&shared.patch[(line + l) * PITCH + place]) = vector;
      }
      __syncthreads();  // the patch is there
      const Index* const starts = ROWS_FASTEST ? shared.columns + j / V * N : shared.rows + i / V * M;
      const Index* const along = ROWS_FASTEST ? shared.rows + i / V * M : shared.columns + j / V * N;
      if (p.activation != IDENTITY && !p.partial) {
        activate_all(p.activation, shared.patch, M * N / LENGTH * PITCH);
        __syncthreads();  // elements become vectors
      }
      if (matrices.neighbours(ROWS_FASTEST)) {
#pragma unroll 1
        for (int cell = threadIdx.x; cell < M * N / V; cell += Tile::THREADS) {
          const int line = cell / (LENGTH / V), pack = cell % (LENGTH / V);
          if (starts[line] == NONE) continue;
          const Index first = shared.packs[(ROWS_FASTEST ? i : j) / V * (LENGTH / V) + pack];
          Index place[V];
#pragma unroll
          for (int v = 0; v < V; ++v) place[v] = first == NONE ? along[pack * V + v] : first + v;
          store_pack<T>(p, out, starts[line], place, first != NONE,
                        *reinterpret_cast<const Pack<Acc, V>*>(&shared.patch[line * PITCH + pack * V]));
        }
      } else {
#pragma unroll 1
        for (int cell = threadIdx.x; cell < M * N; cell += Tile::THREADS) {
          const int line = cell / LENGTH, at = cell % LENGTH;
          if (starts[line] != NONE && along[at] != NONE)
            store<T>(p, out, starts[line] + along[at], shared.patch[line * PITCH + at]);
        }
      }
      __syncthreads();  // the patch may be overwritten
    }
  }
}

// -- the ops ----------------------------------------------------------------------------------------

// Pixels by channels of the result: fprop, or one residue of dgrad. Blocks run over gemm_n first, so that those that
// share pixels run together; then over gemm_m, then over groups and parts of gemm_k.
template <typename Tile, Lanes LANES, int VECTOR, bool PLANAR, bool B_K_MAJOR, int SLOTS>
__device__ inline void pixels_by_channels(const void* a, const void* b, const void* bias, void* out, const Params& p,
                                          const GatherAxis (&axis)[3], int channels, int results, Index filter_stride,
                                          Index channel_stride, Index tile_m, Index tile_n, Index group, Index part) {
  using T = typename Tile::T;
  using Matrices = PixelsByChannels<T, LANES, VECTOR, PLANAR, SLOTS>;
  extern __shared__ Index table[];
  __shared__ Shared<Tile> shared[1];
  const Matrices matrices(p, axis, a, b, channels, results, filter_stride, channel_stride, group, part,
                          tile_m * Tile::BM, int(tile_n) * Tile::BN, Tile::BM, Tile::BN, table);
  put_places(matrices, shared[0].rows, shared[0].columns, shared[0].rows_of_cells, shared[0].first);
  const bool biased = bias && !p.partial;
  for (int j = threadIdx.x; j < Tile::BN && biased; j += Tile::THREADS) {
    const T* const at = static_cast<const T*>(bias) + (matrices.channel + j) * p.bias;
    shared[0].bias[j] = widen(load_if(at, j < matrices.columns));
  }
  const Tile tile;
  typename Tile::Sums sum;
  // Of filters with their taps side by side neighbours run along gemm_k, whatever the matrix has elsewhere.
  const Index step = axis[2].taps > 1 ? p.b[4] : axis[1].taps > 1 ? p.b[3] : axis[0].taps > 1 ? p.b[2] : channel_stride;
  const bool b_along_k = LANES == CHANNEL_LANES ? B_K_MAJOR : magnitude(step) < magnitude(filter_stride);
  multiply<Tile, VECTOR, LANES == CHANNEL_LANES, LANES == PIXEL_LANES || B_K_MAJOR>(tile, matrices, b_along_k,
                                                                                    shared[0], sum);
  if (biased) {
#pragma unroll
    for (int j = 0; j < Tile::TN; ++j) {
      const auto value = shared[0].bias[tile.column(j)];
#pragma unroll
      for (int i = 0; i < Tile::TM; ++i) sum[i][j] = sum[i][j] + value;
    }
  }
  store_tile<LANES == PIXEL_LANES>(tile, matrices, shared[0], sum, out);
  if (SLOTS > 0) end_unless_shown(p.mode);
}

template <typename T, int BM, int BN, int BK, int TM, int TN, Lanes LANES, int VECTOR, bool PLANAR, bool SHOWN = false>
__device__ void conv_fprop_simt(const void* a, const void* b, const void* bias, void* out, const Params& p) {
  const GatherAxis axis[3] = {forward_axis(p.axis[0]), forward_axis(p.axis[1]), forward_axis(p.axis[2])};
  Index digit[3];  // tile_n, tile_m, group
  const Index part = take_digits(p, blockIdx.x, digit);
  pixels_by_channels<Tile<T, BM, BN, BK, TM, TN>, LANES, VECTOR, PLANAR, true, SHOWN ? BM : 0>(
      a, b, bias, out, p, axis, int(p.channels), int(p.filters), p.b[0], p.b[1], digit[1], digit[0], digit[2], part);
}

// As fprop, with one set of blocks per residue of the stride, each large enough for the first, largest one.
template <typename T, int BM, int BN, int BK, int TM, int TN, Lanes LANES, int VECTOR, bool PLANAR>
__device__ void conv_dgrad_simt(const void* a, const void* b, const void* bias, void* out, const Params& p) {
  Index digit[6];  // tile_n, tile_m, residues of w, h and d, group
  const Index part = take_digits(p, blockIdx.x, digit);
  __shared__ GatherAxis axis[3];
  put_axes(axis, p, digit + 2);
  pixels_by_channels<Tile<T, BM, BN, BK, TM, TN>, LANES, VECTOR, PLANAR, false, 0>(
      a, b, bias, out, p, axis, int(p.filters), int(p.channels), p.b[1], p.b[0], digit[1], digit[0], digit[5], part);
}

template <typename T, int BM, int BN, int BK, int TM, int TN, Lanes LANES, int VECTOR, bool PLANAR, bool SHOWN = false>
__device__ void conv_wgrad_simt(const void* a, const void* b, const void*, void* out, const Params& p) {
  using Tile = ::Tile<T, BM, BN, BK, TM, TN>;
  using Matrices = FiltersByTaps<T, LANES, VECTOR, PLANAR, SHOWN ? Tile::THREADS + BK : 0>;
  extern __shared__ Index table[];
  __shared__ Shared<Tile> shared[1];
  const GatherAxis axis[3] = {forward_axis(p.axis[0]), forward_axis(p.axis[1]), forward_axis(p.axis[2])};
  Index digit[3];  // tile_n, tile_m, group
  const Index part = take_digits(p, blockIdx.x, digit);
  const Matrices matrices(p, axis, a, b, digit[2], part, int(digit[1]) * BM, int(digit[0]) * BN, BM, BN, table);
  put_places(matrices, shared[0].rows, shared[0].columns, shared[0].rows_of_cells, shared[0].first);
  const Tile tile;
  typename Tile::Sums sum;
  multiply<Tile, VECTOR, LANES == PIXEL_LANES, LANES == PIXEL_LANES>(tile, matrices, LANES == PIXEL_LANES, shared[0],
                                                                     sum);
  store_tile<false>(tile, matrices, shared[0], sum, out);
  if (SHOWN) end_unless_shown(p.mode);
}
