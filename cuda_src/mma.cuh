// Convolution and its gradients on tensor cores: implicit GEMM by mma.sync, for sm_80 and newer.
//
// The matrices are those of gather.cuh. A block owns a BM x BN tile of their product, a warp WM x WN of it in
// registers. Slices of both matrices, BK deep, come by asynchronous copies of 16 bytes and lie in a ring of STAGES in
// shared memory, STAGES - 1 ahead of the one that is multiplied. What lies in a slice goes by lines, rows of the matrix
// or columns, whichever is contiguous in global memory; a line's chunks of 16 bytes are swizzled, or lines padded, so
// that neither the copies nor the loads of fragments meet in one bank. What columns, and rows of cells, contribute to
// places lies in tables in shared memory, which all threads fill together every few slices: sums leave few registers
// for anything else. If SHOWN there is one more, of what padding shows.
//
// A Product is a type of elements and the instruction that multiplies them; another one is another struct.
// Tensor cores truncate sums in single precision. So each slice is summed from zero and then added to the sum by an
// addition that rounds: what is lost is 2^-23 of the slice's own terms, and no bias grows with gemm_k.
//
// Preconditions (cuda/mma.py): channels are contiguous, and all else of both inputs a multiple of 16 bytes;
// coordinates and gemm_k fit 31 bits. Sums have one order, set by the plan: the bits are the same from run to run.
// It exists since tensor cores multiply many times faster than the ordinary ones.
#pragma once
#include <ptx/sm80.cuh>

#include "gather.cuh"

// -- slices in shared memory ------------------------------------------------------------------------

// ROWS x BK elements; a line is a row if K_MAJOR, otherwise a column. An ldmatrix reads a chunk of each of 8 lines,
// which are swizzled. ELEMENTWISE reads take 32 bytes of each of 4 lines at a time, which are padded.
template <typename T, int ROWS_, int BK_, bool K_MAJOR_, bool ELEMENTWISE>
struct Slice {
  static constexpr int ROWS = ROWS_, BK = BK_;
  static constexpr bool K_MAJOR = K_MAJOR_;
  static constexpr int VECTOR = 16 / sizeof(T), LENGTH = K_MAJOR ? BK : ROWS, CHUNKS = LENGTH / VECTOR;
  static constexpr int LINE = LENGTH + (ELEMENTWISE ? 2 * VECTOR : 0);
  static constexpr int BYTES = (K_MAJOR ? ROWS : BK) * LINE * int(sizeof(T));
  static_assert(CHUNKS % 8 == 0 || (CHUNKS == 4 && !ELEMENTWISE), "lines of 64 bytes, or of a multiple of 128");

  T* data;

  __device__ T* chunk(int line, int chunk) const {
    const int swizzle = ELEMENTWISE ? 0 : CHUNKS == 4 ? line / 2 % 4 : line % 8;
    return data + line * LINE + (chunk ^ swizzle) * VECTOR;
  }
  // How far an element is from the first one where lines are not swizzled.
  __device__ static int offset(int row, int k) { return K_MAJOR ? row * LINE + k : k * LINE + row; }
  __device__ T* at(int row, int k) const {
    if (ELEMENTWISE) return data + offset(row, k);
    const int line = K_MAJOR ? row : k, place = K_MAJOR ? k : row;
    return chunk(line, place / VECTOR) + place % VECTOR;
  }
};

// -- products ---------------------------------------------------------------------------------------

// Of elements of 16 bits: 16 of gemm_k at a time.
template <typename T>
struct HalfProduct {
  using Element = T;
  using Sum = float;
  using A = unsigned[4];
  using B = unsigned[2];
  static constexpr int K = 16;
  static constexpr bool TRUNCATES = true;
  __device__ static constexpr bool elementwise(bool) { return false; }

  // 16 rows from `row` on, and 8, by the four tiles of 8x8 elements of an ldmatrix. Swizzles repeat every 8 lines.
  template <typename Slice>
  __device__ static void load(A& a, const Slice& slice, int row, int k) {
    const int lane = threadIdx.x % 32;
    if constexpr (Slice::K_MAJOR)
      ldmatrix(a, slice.chunk(lane % 16, k / 8 + lane / 16) + row * Slice::LINE);
    else
      ldmatrix_trans(a, slice.chunk(lane / 16 * 8 + lane % 8, row / 8 + lane / 8 % 2) + k * Slice::LINE);
  }
  template <typename Slice>
  __device__ static void load(B (&b)[2], const Slice& slice, int row, int k) {
    const int lane = threadIdx.x % 32;
    unsigned words[4];
    if constexpr (Slice::K_MAJOR)
      ldmatrix(words, slice.chunk(lane % 8, k / 8 + lane / 8) + row * Slice::LINE);
    else
      ldmatrix_trans(words, slice.chunk(lane, row / 8) + k * Slice::LINE);
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = words[i];
  }
};

struct Float16Product : HalfProduct<float16> {
  __device__ static void add(Sum (&sum)[4], const A& a, const B& b) { mma_m16n8k16_f16(sum, a, b); }
};

struct Bfloat16Product : HalfProduct<bfloat16> {
  __device__ static void add(Sum (&sum)[4], const A& a, const B& b) { mma_m16n8k16_bf16(sum, a, b); }
};

// Of floats, rounded to 11 bits: 8 of gemm_k at a time.
struct Tf32Product {
  using Element = float;
  using Sum = float;
  using A = unsigned[4];
  using B = unsigned[2];
  static constexpr int K = 8;
  static constexpr bool TRUNCATES = true;
  __device__ static constexpr bool elementwise(bool k_major) { return !k_major; }

  // An ldmatrix gives each thread the word it needs where a line runs along gemm_k.
  template <typename Slice>
  __device__ static void load(A& a, const Slice& slice, int row, int k) {
    const int lane = threadIdx.x % 32;
    if constexpr (Slice::K_MAJOR) {
      ldmatrix(a, slice.chunk(lane % 16, k / 4 + lane / 16) + row * Slice::LINE);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a[i] = __float_as_uint(slice.at(lane / 4, lane % 4)[Slice::offset(row + i % 2 * 8, k + i / 2 * 4)]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = float_to_tf32(__uint_as_float(a[i]));
  }
  template <typename Slice>
  __device__ static void load(B (&b)[2], const Slice& slice, int row, int k) {
    const int lane = threadIdx.x % 32;
    unsigned words[4];
    if constexpr (Slice::K_MAJOR) {
      ldmatrix(words, slice.chunk(lane % 8, k / 4 + lane / 8) + row * Slice::LINE);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        words[i] = __float_as_uint(slice.at(lane / 4, lane % 4)[Slice::offset(row, k + i * 4)]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = float_to_tf32(__uint_as_float(words[i]));
  }
  __device__ static void add(Sum (&sum)[4], const A& a, const B& b) { mma_m16n8k8_tf32(sum, a, b); }
};

// Of doubles, summed as IEEE has it: 16 of gemm_k at a time.
struct Float64Product {
  using Element = double;
  using Sum = double;
  using A = double[8];
  using B = double[4];
  static constexpr int K = 16;
  static constexpr bool TRUNCATES = false;
  __device__ static constexpr bool elementwise(bool) { return true; }

  template <typename Slice>
  __device__ static void load(A& a, const Slice& slice, int row, int k) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      a[i] = slice.at(lane / 4, lane % 4)[Slice::offset(row + i % 2 * 8, k + i / 2 * 4)];
  }
  template <typename Slice>
  __device__ static void load(B (&b)[1], const Slice& slice, int row, int k) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; ++i) b[0][i] = slice.at(lane / 4, lane % 4)[Slice::offset(row, k + i * 4)];
  }
  __device__ static void add(Sum (&sum)[4], const A& a, const B& b) { mma_m16n8k16_f64(sum, a, b); }
};

// -- the tile loop ----------------------------------------------------------------------------------

template <typename Product_, int BM_, int BN_, int BK_, int WM_, int WN_, int STAGES_, bool PLANAR_>
struct Tile {
  using Product = Product_;
  static constexpr bool PLANAR = PLANAR_;
  static constexpr int BM = BM_, BN = BN_, BK = BK_, WM = WM_, WN = WN_, STAGES = STAGES_;
  static constexpr int WARPS = (BM / WM) * (BN / WN), THREADS = 32 * WARPS;
  static constexpr int VECTOR = 16 / sizeof(typename Product::Element);
  static constexpr int STEPS = BK / Product::K;
  static_assert(BM % WM == 0 && BN % WN == 0, "whole warps");
  static_assert(WM % 16 == 0 && WN % 16 == 0 && BK % Product::K == 0, "whole fragments");

  using Sums = typename Product::Sum[WM / 16][WN / 8][4];

  // The warp's own rows and columns begin here.
  __device__ static int warp_row() { return threadIdx.x / 32 / (BN / WN) * WM; }
  __device__ static int warp_column() { return threadIdx.x / 32 % (BN / WN) * WN; }
};

// Brings a thread's share of a matrix to a slice; `place` says where an element is that a row contributes to.
template <typename Share, typename Slice, typename Row, typename Place>
__device__ inline void copy_share(const Slice& slice, const Row (&row)[Share::COUNT], Place place) {
#pragma unroll
  for (int i = 0; i < Share::COUNT; ++i) {
    const auto from = place(row[i]);
    cp_async<16>(slice.at(Share::row() + i * Share::STEP, Share::column()), from.at, from.there ? 16 : 0);
  }
}

// sum += A B for one slice, by warps.
template <typename Tile, typename SliceA, typename SliceB>
__device__ inline void multiply_slice(const SliceA& slice_a, const SliceB& slice_b, typename Tile::Sums& sum) {
  using Product = typename Tile::Product;
  constexpr int M = Tile::WM / 16, N = Tile::WN / 8, STEPS = Tile::STEPS;
  typename Product::A a[M][STEPS];
  typename Product::B b[2][STEPS];  // of the columns that are multiplied, and of the next ones
  const int row = Tile::warp_row(), column = Tile::warp_column();
#pragma unroll
  for (int i = 0; i < M; ++i)
#pragma unroll
    for (int step = 0; step < STEPS; ++step) Product::load(a[i][step], slice_a, row + 16 * i, step * Product::K);
  Product::load(b[0], slice_b, column, 0);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    if (j + 1 < N) Product::load(b[(j + 1) % 2], slice_b, column + 8 * (j + 1), 0);
#pragma unroll
    for (int i = 0; i < M; ++i) {
      if constexpr (Product::TRUNCATES) {
        typename Product::Sum part[4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; ++step) Product::add(part, a[i][step], b[j % 2][step]);
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[i][j][e] += part[e];
      } else {
#pragma unroll
        for (int step = 0; step < STEPS; ++step) Product::add(sum[i][j], a[i][step], b[j % 2][step]);
      }
    }
  }
}

// What a block has in shared memory besides slices and columns, all of it made before there are sums: it would take
// registers that these need.
template <typename Tile>
struct Shared {
  Index rows[Tile::BM], columns[Tile::BN];                 // where the result is going to be
  Entry cells[Tile::BM > Tile::BN ? Tile::BM : Tile::BN];  // the rows of the matrix of cells
  Counter first;                                           // the beginning of gemm_k
  int channel;                                             // of the result, the tile's first column
};

// Where slices begin.
template <typename Tile>
constexpr int RING = (sizeof(Shared<Tile>) + 127) / 128 * 128;

// A thread's rows, of cells and of the other matrix.
template <typename Share, typename Matrices>
__device__ inline void take_rows(const Matrices&, const Entry* cells, Site (&row)[Share::COUNT]) {
#pragma unroll
  for (int i = 0; i < Share::COUNT; ++i) row[i] = cells[Share::row() + i * Share::STEP].cell();
}
template <typename Share, typename Matrices>
__device__ inline void take_rows(const Matrices&, const Entry*, Slot (&row)[Share::COUNT]) {
#pragma unroll
  for (int i = 0; i < Share::COUNT; ++i) row[i] = {Share::row() + i * Share::STEP};
}
template <typename Share, typename Matrices>
__device__ inline void take_rows(const Matrices& matrices, const Entry*, PlainRow (&row)[Share::COUNT]) {
#pragma unroll
  for (int i = 0; i < Share::COUNT; ++i) row[i] = matrices.plain_row(Share::row() + i * Share::STEP);
}

// Both matrices' slices, and in the ring, behind STAGES of them, the tables.
template <typename Tile, bool A_K_MAJOR, bool B_K_MAJOR>
struct Ring {
  using Product = typename Tile::Product;
  using T = typename Product::Element;
  using A = Slice<T, Tile::BM, Tile::BK, A_K_MAJOR, Product::elementwise(A_K_MAJOR)>;
  using B = Slice<T, Tile::BN, Tile::BK, B_K_MAJOR, Product::elementwise(B_K_MAJOR)>;
  static constexpr int COLUMNS = Tile::STAGES * (A::BYTES + B::BYTES);
  static constexpr int SHOWN = COLUMNS + int(sizeof(Entry)) * Tile::THREADS;  // what padding shows
};

// sum = A B for this block's tile.
template <typename Tile, bool A_K_MAJOR, bool B_K_MAJOR, typename Matrices>
__device__ inline void multiply(const Matrices& matrices, const Shared<Tile>& shared, unsigned char* ring,
                                typename Tile::Sums& sum) {
  using T = typename Tile::Product::Element;
  using Ring = ::Ring<Tile, A_K_MAJOR, B_K_MAJOR>;
  using SliceA = typename Ring::A;
  using SliceB = typename Ring::B;
  using ShareA = Share<Tile::BM, Tile::BK, Tile::VECTOR, Tile::THREADS, A_K_MAJOR>;
  using ShareB = Share<Tile::BN, Tile::BK, Tile::VECTOR, Tile::THREADS, B_K_MAJOR>;
#pragma unroll
  for (int i = 0; i < Tile::WM / 16; ++i)
#pragma unroll
    for (int j = 0; j < Tile::WN / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[i][j][e] = 0;
  __syncthreads();  // what has been put down is there
  if (shared.first.left <= 0) return;

  const auto slice_a = [&](int stage) {
    return SliceA{reinterpret_cast<T*>(ring + stage * (SliceA::BYTES + SliceB::BYTES))};
  };
  const auto slice_b = [&](int stage) {
    return SliceB{reinterpret_cast<T*>(ring + stage * (SliceA::BYTES + SliceB::BYTES) + SliceA::BYTES)};
  };

  // What columns contribute lies in shared memory for SLICES slices, as many as the threads have columns for.
  constexpr bool ALIKE = A_K_MAJOR == B_K_MAJOR;  // both have one column
  constexpr int STEP_A = A_K_MAJOR ? Tile::VECTOR : 1, STEP_B = B_K_MAJOR ? Tile::VECTOR : 1;
  constexpr int COLUMNS_A = Tile::BK / STEP_A, COLUMNS_B = ALIKE ? 0 : Tile::BK / STEP_B;  // of a slice
  constexpr int SLICES = Tile::THREADS / (COLUMNS_A > COLUMNS_B ? COLUMNS_A : COLUMNS_B);
  static_assert(SLICES >= Tile::STAGES - 1, "the first slices take no more than one table");
  Entry* const columns_a = reinterpret_cast<Entry*>(ring + Ring::COLUMNS);
  Entry* const columns_b = columns_a + SLICES * COLUMNS_A;
  const auto put_columns = [&](int first) {
    for (int i = threadIdx.x; i < SLICES * COLUMNS_A; i += Tile::THREADS)
      columns_a[i] = Entry::of(matrices.column(matrices.counter(shared.first, first * Tile::BK + i * STEP_A), i));
    for (int i = threadIdx.x; i < SLICES * COLUMNS_B; i += Tile::THREADS)
      columns_b[i] = Entry::of(matrices.column(matrices.counter(shared.first, first * Tile::BK + i * STEP_B)));
    __syncthreads();  // the table is there
  };
  typename Matrices::RowA row_a[ShareA::COUNT];
  typename Matrices::RowB row_b[ShareB::COUNT];
  // Past the end of gemm_k nothing is there, and nothing but zeros is brought.
  const auto copy = [&](int slice, int stage) {
    using Column = typename Matrices::Column;
    const Entry* const entry_a = columns_a + slice % SLICES * COLUMNS_A + ShareA::column() / STEP_A;
    const Entry* const entry_b =
        ALIKE ? entry_a : columns_b + slice % SLICES * COLUMNS_B + ShareB::column() / STEP_B;
    Column column_a{}, column_b{};  // of which each matrix takes its part
    Column& of_cells = Matrices::CELLS_ARE_A ? column_a : column_b;
    Column& others = Matrices::CELLS_ARE_A ? column_b : column_a;
    of_cells.cell = (Matrices::CELLS_ARE_A ? entry_a : entry_b)->cell();
    others.plain = (Matrices::CELLS_ARE_A ? entry_b : entry_a)->plain;
    others.there = (Matrices::CELLS_ARE_A ? entry_b : entry_a)->there != 0;
    copy_share<ShareA>(slice_a(stage), row_a,
                       [&](const typename Matrices::RowA& row) { return matrices.a(row, column_a); });
    copy_share<ShareB>(slice_b(stage), row_b,
                       [&](const typename Matrices::RowB& row) { return matrices.b(row, column_b); });
    cp_async_commit();
  };

  const int slices = (shared.first.left + Tile::BK - 1) / Tile::BK;
  int stage = 0, free = Tile::STAGES - 1, next = 0;  // the slice that is multiplied, and the next one to be brought
#pragma unroll 1
  while (next < slices + Tile::STAGES - 1) {
    const int end = min(next + SLICES, slices + Tile::STAGES - 1);
    __syncthreads();  // nobody reads the table any more
    put_columns(next);
    take_rows<ShareA>(matrices, shared.cells, row_a);
    take_rows<ShareB>(matrices, shared.cells, row_b);
    if (next == 0) {
#pragma unroll
      for (; next < Tile::STAGES - 1; ++next) copy(next, next);
    }
#pragma unroll 1
    for (; next < end; ++next) {
      cp_async_wait<Tile::STAGES - 2>();
      __syncthreads();  // the slice is there for all, and nobody reads the one before any more
      copy(next, free);
      multiply_slice<Tile>(slice_a(stage), slice_b(stage), sum);
      free = stage;
      stage = stage + 1 == Tile::STAGES ? 0 : stage + 1;
    }
  }
  cp_async_wait_all();
  __syncthreads();  // shared memory may be used for something else
}

// -- the result -------------------------------------------------------------------------------------

// Hands a thread's pack of each line of a tile to put(line, place of the line, pack).
template <int LINES, int LENGTH, int THREADS, typename Sum, int PITCH, typename Put>
__device__ inline void each_line(const Index* lines, const Sum (*tile)[PITCH], Put put) {
  constexpr int V = 16 / sizeof(Sum), PACKS = LENGTH / V;
  static_assert(THREADS % PACKS == 0, "a thread has one place in all its lines");
#pragma unroll 1
  for (int line = threadIdx.x / PACKS; line < LINES; line += THREADS / PACKS) {
    const Index place = lines[line];
    const Pack<Sum, V> pack = *reinterpret_cast<const Pack<Sum, V>*>(&tile[line][threadIdx.x % PACKS * V]);
    if (place != NONE) put(line, place, pack);
  }
}

// Stores a tile. It goes through shared memory, so that a thread has V neighbours of the result: pixels of a channel if
// ROWS_FASTEST, otherwise channels of a pixel. They are stored at once where they are neighbours in memory too.
template <typename Tile, bool ROWS_FASTEST, typename Matrices>
__device__ inline void store_tile(const Matrices& matrices, const Shared<Tile>& shared, unsigned char* ring,
                                  const typename Tile::Sums& sum, void* out, const void* bias, Index channel) {
  using T = typename Tile::Product::Element;
  using Sum = typename Tile::Product::Sum;
  constexpr int V = 16 / sizeof(Sum), LINES = ROWS_FASTEST ? Tile::BN : Tile::BM;
  constexpr int LENGTH = ROWS_FASTEST ? Tile::BM : Tile::BN, PITCH = LENGTH + (ROWS_FASTEST ? 4 : 8);
  const Index* const lines = ROWS_FASTEST ? shared.columns : shared.rows;
  const Index* const places = ROWS_FASTEST ? shared.rows : shared.columns;
  const auto tile = reinterpret_cast<Sum(*)[PITCH]>(ring);
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < Tile::WM / 16; ++i)
#pragma unroll
    for (int j = 0; j < Tile::WN / 8; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = Tile::warp_row() + 16 * i + 8 * half + lane / 4;
        const int column = Tile::warp_column() + 8 * j + lane % 4 * 2;
        const Pack<Sum, 2> two{sum[i][j][2 * half], sum[i][j][2 * half + 1]};
        if (ROWS_FASTEST) {
          tile[column][row] = two.value[0];
          tile[column + 1][row] = two.value[1];
        } else {
          *reinterpret_cast<Pack<Sum, 2>*>(&tile[row][column]) = two;
        }
      }
  __syncthreads();  // the tile is there

  const int first = threadIdx.x % (LENGTH / V) * V;
  Index place[V];
#pragma unroll
  for (int v = 0; v < V; ++v) place[v] = places[first + v];
  const Params& p = matrices.p;
  const bool whole = reinterpret_cast<size_t>(out) % 16 == 0 && place[0] != NONE &&
                     place[V - 1] == place[0] + V - 1 && place[0] % V == 0 && matrices.neighbours(ROWS_FASTEST) &&
                     matrices.whole_packs(ROWS_FASTEST, V);
  if (whole && p.partial) {
    each_line<LINES, LENGTH, Tile::THREADS>(lines, tile, [&](int, Index start, Pack<Sum, V> sums) {
      *reinterpret_cast<Pack<Sum, V>*>(static_cast<Sum*>(out) + (start + place[0])) = sums;
    });
  } else if (whole && !bias && p.activation == IDENTITY && !p.accumulate) {
    each_line<LINES, LENGTH, Tile::THREADS>(lines, tile, [&](int, Index start, Pack<Sum, V> sums) {
      Pack<T, V> pack;
#pragma unroll
      for (int v = 0; v < V; ++v) pack.value[v] = Narrow<T>::from(sums.value[v]);
      *reinterpret_cast<Pack<T, V>*>(static_cast<T*>(out) + (start + place[0])) = pack;
    });
  } else {
    each_line<LINES, LENGTH, Tile::THREADS>(lines, tile, [&](int line, Index start, Pack<Sum, V> sums) {
      finish_pack<T>(p, out, start, place, whole, sums, bias, channel + (ROWS_FASTEST ? line : first),
                     ROWS_FASTEST ? 0 : 1);
    });
  }
}

// -- the ops ----------------------------------------------------------------------------------------

// Pixels by channels of the result: fprop, or one residue of dgrad. Blocks run over gemm_n first, so that those that
// share pixels run together; then over gemm_m, then over groups and parts of gemm_k.
template <typename Tile, bool B_K_MAJOR, int SLOTS>
__device__ inline void pixels_by_channels(const void* a, const void* b, const void* bias, void* out, const Params& p,
                                          const GatherAxis (&axis)[3], int channels, int results, Index filter_stride,
                                          Index channel_stride, Index tile_m, Index tile_n, Index group, Index part) {
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<Tile>*>(memory);
  unsigned char* const ring = memory + RING<Tile>;
  const PixelsByChannels<typename Tile::Product::Element, CHANNEL_LANES, Tile::VECTOR, Tile::PLANAR, SLOTS> matrices(
      p, axis, a, b, channels, results, filter_stride, channel_stride, group, part, tile_m * Tile::BM,
      int(tile_n) * Tile::BN, Tile::BM, Tile::BN, reinterpret_cast<Index*>(ring + Ring<Tile, true, B_K_MAJOR>::SHOWN));
  put_places(matrices, shared.rows, shared.columns, shared.cells, shared.first);
  if (threadIdx.x == 0) shared.channel = matrices.channel;
  typename Tile::Sums sum;
  multiply<Tile, true, B_K_MAJOR>(matrices, shared, ring, sum);
  if (p.lanes > 1 || p.partial)
    store_tile<Tile, false>(matrices, shared, ring, sum, out, bias, shared.channel);
  else
    store_tile<Tile, true>(matrices, shared, ring, sum, out, bias, shared.channel);
  if (SLOTS > 0) end_unless_shown(p.mode);
}

template <typename Product, int BM, int BN, int BK, int WM, int WN, int STAGES, bool PLANAR, bool SHOWN = false>
__device__ void conv_fprop_mma(const void* a, const void* b, const void* bias, void* out, const Params& p) {
  const GatherAxis axis[3] = {forward_axis(p.axis[0]), forward_axis(p.axis[1]), forward_axis(p.axis[2])};
  Index digit[3];  // tile_n, tile_m, group
  const Index part = take_digits(p, blockIdx.x, digit);
  pixels_by_channels<Tile<Product, BM, BN, BK, WM, WN, STAGES, PLANAR>, true, SHOWN ? BM : 0>(
      a, b, bias, out, p, axis, int(p.channels), int(p.filters), p.b[0], 1, digit[1], digit[0], digit[2], part);
}

// As fprop, with one set of blocks per residue of the stride, each large enough for the first, largest one.
template <typename Product, int BM, int BN, int BK, int WM, int WN, int STAGES, bool PLANAR>
__device__ void conv_dgrad_mma(const void* a, const void* b, const void* bias, void* out, const Params& p) {
  Index digit[6];  // tile_n, tile_m, residues of w, h and d, group
  const Index part = take_digits(p, blockIdx.x, digit);
  __shared__ GatherAxis axis[3];
  put_axes(axis, p, digit + 2);
  pixels_by_channels<Tile<Product, BM, BN, BK, WM, WN, STAGES, PLANAR>, false, 0>(
      a, b, bias, out, p, axis, int(p.filters), int(p.channels), 1, p.b[0], digit[1], digit[0], digit[5], part);
}

template <typename Product, int BM, int BN, int BK, int WM, int WN, int STAGES, bool PLANAR, bool SHOWN = false>
__device__ void conv_wgrad_mma(const void* a, const void* b, const void*, void* out, const Params& p) {
  using Tile = ::Tile<Product, BM, BN, BK, WM, WN, STAGES, PLANAR>;
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<Tile>*>(memory);
  unsigned char* const ring = memory + RING<Tile>;
  const GatherAxis axis[3] = {forward_axis(p.axis[0]), forward_axis(p.axis[1]), forward_axis(p.axis[2])};
  Index digit[3];  // tile_n, tile_m, group
  const Index part = take_digits(p, blockIdx.x, digit);
  constexpr int SLOTS = SHOWN ? Tile::THREADS : 0;
  const FiltersByTaps<typename Product::Element, CHANNEL_LANES, Tile::VECTOR, PLANAR, SLOTS> matrices(
      p, axis, a, b, digit[2], part, int(digit[1]) * BM, int(digit[0]) * BN, BM, BN,
      reinterpret_cast<Index*>(ring + Ring<Tile, false, false>::SHOWN));
  put_places(matrices, shared.rows, shared.columns, shared.cells, shared.first);
  typename Tile::Sums sum;
  multiply<Tile, false, false>(matrices, shared, ring, sum);
  store_tile<Tile, false>(matrices, shared, ring, sum, out, nullptr, 0);
  if (SHOWN) end_unless_shown(p.mode);
}
