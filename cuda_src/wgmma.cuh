// Convolution and its gradients by products of warpgroups, for sm_90a alone: implicit GEMM, fed by asynchronous copies.
//
// The matrices are those of gather.cuh. A block stays on its multiprocessor and does one BM x BN tile of the product
// after the other. Three warpgroups share the work: two consumers multiply, BM / 2 rows of the tile each, and the last
// one, the producer, brings slices of both matrices, as deep as a line of 128 bytes is long, by copies of 16 bytes each,
// which take any stride and padding. Slices lie in a ring of STAGES; for each there is a barrier at which the copies of
// all producers arrive when they are done, and one at which all warps of consumers do when they have multiplied it. So
// the producer runs ahead of the consumers, into the next tile while they store the one before, and nobody ever waits
// for the whole block.
//
// A product of a warpgroup reads both operands from shared memory and runs on while the next one is put together. In a
// slice elements lie in lines of 128 bytes, along gemm_k or, MN-major, along the rows, whichever is contiguous in global
// memory, and the chunks of 16 bytes of a line are exchanged by its number, as the descriptors of products have it.
// Floats for TF32 have to lie along gemm_k and to be rounded: filters by the launch before, which exchanges channels and
// filters for dgrad, cells by the consumers where they lie.
//
// Tensor cores truncate sums. Those of 16 bits and TF32 are truncated all the way along gemm_k, since no registers are
// left to add them to others; what is lost grows with gemm_k, which the plan therefore cuts into parts. Floats by their
// parts (parts.cuh), made by the launches before (parted.cuh), have sums of a slice, which are added with rounding. See
// docs/accuracy.md.
//
// Preconditions (cuda/wgmma.py): those of mma.cuh, and no padding but zeros. Sums have one order, set by the plan: the
// bits are the same from run to run. It exists since mma.sync reaches some 60% of what these tensor cores can do.
#pragma once
#include <ptx/sm90.cuh>

#include "mma.cuh"
#include "parted.cuh"

constexpr int WARPGROUP = 128, CONSUMERS = 2;

// -- products ---------------------------------------------------------------------------------------

// What is multiplied, elements as they lie in shared memory, and what becomes of it.
template <typename T>
struct HalfGroupProduct {
  using Element = T;
  using Result = T;
  static constexpr int PARTS = 1;
  static constexpr bool ROUNDS = false;  // elements, to what is multiplied of them
};

struct Float16Group : HalfGroupProduct<float16> {
  template <bool A_K_MAJOR, bool B_K_MAJOR, int N>
  __device__ static void add(float (&sum)[N][4], unsigned long long a, unsigned long long b) {
    wgmma_k16_f16<A_K_MAJOR, B_K_MAJOR>(sum, a, b, true);
  }
};

struct Bfloat16Group : HalfGroupProduct<bfloat16> {
  template <bool A_K_MAJOR, bool B_K_MAJOR, int N>
  __device__ static void add(float (&sum)[N][4], unsigned long long a, unsigned long long b) {
    wgmma_k16_bf16<A_K_MAJOR, B_K_MAJOR>(sum, a, b, true);
  }
};

// Of floats rounded to 11 bits. Both matrices have to be K-major. Cells are rounded where they lie, filters before.
struct Tf32Group {
  using Element = float;
  using Result = float;
  static constexpr int PARTS = 1;
  static constexpr bool ROUNDS = true;
  template <bool A_K_MAJOR, bool B_K_MAJOR, int N>
  __device__ static void add(float (&sum)[N][4], unsigned long long a, unsigned long long b) {
    static_assert(A_K_MAJOR && B_K_MAJOR, "there is no other product of floats");
    wgmma_k8_tf32(sum, a, b, true);
  }
};

// Of floats by their parts, which lie in memory as parted.cuh has it.
struct Float32Group : Bfloat16Group {
  using Result = float;
  static constexpr int PARTS = ::PARTS;
};

// Of complex numbers, as real ones in twice the channels: see complex.cuh.
struct Complex64Group : Float32Group {
  using Result = complex64;
};

// -- slices in shared memory ------------------------------------------------------------------------

// A slice of one matrix: ROWS x BK in panels of lines. K-major, a line is a row, and there is one panel; otherwise it is
// a column of as many rows as a panel has.
template <typename T, int ROWS, bool K_MAJOR_>
struct Panels {
  static constexpr bool K_MAJOR = K_MAJOR_;
  static constexpr int LINE = 128, BK = LINE / sizeof(T), VECTOR = 16 / sizeof(T), CHUNKS = 8;
  static constexpr int COUNT = K_MAJOR ? 1 : ROWS * int(sizeof(T)) / LINE, LINES = K_MAJOR ? ROWS : BK;
  static constexpr int PANEL = LINES * LINE, BYTES = COUNT * PANEL;
  // The producer's threads bring so many lines at once, each a chunk of EACH lines of every panel.
  static constexpr int AT_ONCE = WARPGROUP / CHUNKS, EACH = LINES / AT_ONCE;
  static constexpr int ROWS_EACH = K_MAJOR ? EACH : COUNT, COLUMNS_EACH = K_MAJOR ? 1 : EACH;
  static_assert(ROWS % 64 == 0 && LINES % AT_ONCE == 0 && AT_ONCE % 8 == 0, "whole panels, lines and swizzles");

  // Of a thread's rows and columns the i-th one, and where its first vector lies.
  __device__ static int row(int thread, int i) {
    return K_MAJOR ? thread / CHUNKS + i * AT_ONCE : i * BK + thread % CHUNKS * VECTOR;
  }
  __device__ static int column(int thread, int i) {
    return K_MAJOR ? thread % CHUNKS * VECTOR : thread / CHUNKS + i * AT_ONCE;
  }
  __device__ static int first(int thread) {
    const int line = thread / CHUNKS;
    return line * LINE + (thread % CHUNKS ^ line % 8) * 16;
  }
  // Rows from one on, a multiple of 64, and of gemm_k the step-th 32 bytes, or 16 lines, as products take them.
  __device__ static unsigned long long operand(const unsigned char* slice, int row, int step) {
    const int place = K_MAJOR ? row * LINE + step * 32 : row / BK * PANEL + step * 16 * LINE;
    return wgmma_operand(slice + place, K_MAJOR ? 0 : PANEL, 8 * LINE, SWIZZLE_128);
  }
};

// -- a block ----------------------------------------------------------------------------------------

template <typename Product_, int BM_, int BN_, int STAGES_>
struct GroupTile {
  using Product = Product_;
  using Element = typename Product::Element;
  using Result = typename Product::Result;
  static constexpr int BM = BM_, BN = BN_, STAGES = STAGES_, PARTS = Product::PARTS;
  static constexpr int BK = 128 / sizeof(Element), VECTOR = 16 / sizeof(Element);
  static constexpr int REALS = sizeof(Result) > sizeof(float) ? 2 : 1;  // in a number of the result
  static constexpr int STEPS = 4;  // products of 32 bytes of gemm_k
  static constexpr int WM = BM / CONSUMERS, M = WM / 64, WARPS = 4 * CONSUMERS;
  static_assert(WM % 64 == 0 && BN % 64 == 0, "whole products");
  // Registers of a producer's and of a consumer's threads, of 168 that all have at first.
  static constexpr int BRINGING = BM * BN > 128 * 128 ? 104 : PARTS > 1 ? 120 : 136;
  static constexpr int MULTIPLYING = (3 * 168 - BRINGING) / 2;

  using Sums = float[M][BN / 8][4];
};

// A place in the ring, and the parity of the rounds that have been made of it.
struct Turn {
  int stage, parity;
};
template <int STAGES>
__device__ inline Turn next(Turn turn) {
  const bool round = turn.stage == STAGES - 1;
  return {round ? 0 : turn.stage + 1, turn.parity ^ int(round)};
}

// Bytes of a Piece.
constexpr int PIECE = 3072;

// What a block has in shared memory behind the ring.
template <typename Tile>
struct GroupShared {
  MBarrier full[Tile::STAGES], empty[Tile::STAGES];
  Index small;  // whether a float is so small that no product of its parts may be left out
  GatherAxis axis[CONSUMERS + 1][3];  // of each warpgroup's tile
  // The producer's: rows of cells, of which its threads take theirs at the beginning of a tile, and then columns.
  union {
    Entry cells[Tile::BM];
    Entry columns[WARPGROUP];
  };
  // The consumers': where the result is going to be.
  Index rows[CONSUMERS][Tile::WM], places[CONSUMERS][Tile::BN];
  alignas(16) unsigned char piece[Tile::WARPS][PIECE];  // of a warp's sums
};

// What a column contributes, as it lies in shared memory.
template <typename Column>
__device__ inline Column column_of(const Entry& entry) {
  return {entry.cell(), entry.plain, entry.there != 0};
}

// The channel of the result that a tile's first column is, for the bias.
template <int REALS, typename Matrices>
__device__ inline Index channel_of(const Matrices& matrices) {
  if constexpr (Matrices::CELLS_ARE_A)
    return matrices.channel / REALS;
  else
    return 0;
}

// Where it lies: entries so many steps apart as a K-major matrix takes them beside one that is not are in different banks.
__device__ inline int slot(int column) { return column ^ column / 8 % 4; }

// The threads of the calling warpgroup.
__device__ inline void warpgroup_sync() { barrier_sync(1 + threadIdx.x / WARPGROUP, WARPGROUP); }

// -- the producer -----------------------------------------------------------------------------------

// A row of cells, or of the other matrix.
template <typename Matrices>
__device__ inline void take_row(const Matrices& matrices, int i, Site& row) {
  row = matrices.row_of_cells(i);
}
template <typename Matrices>
__device__ inline void take_row(const Matrices& matrices, int i, PlainRow& row) {
  row = matrices.plain_row(i);
}

// A thread's rows: of cells, by way of the table where they are many, or of the other matrix.
template <typename Panels, typename Matrices>
__device__ inline void take_rows(const Matrices& matrices, const Entry* cells, int thread,
                                 Site (&row)[Panels::ROWS_EACH]) {
#pragma unroll
  for (int i = 0; i < Panels::ROWS_EACH; ++i)
    if constexpr (Panels::K_MAJOR)
      row[i] = cells[Panels::row(thread, i)].cell();
    else
      take_row(matrices, Panels::row(thread, i), row[i]);
}
template <typename Panels, typename Matrices>
__device__ inline void take_rows(const Matrices& matrices, const Entry*, int thread,
                                 PlainRow (&row)[Panels::ROWS_EACH]) {
#pragma unroll
  for (int i = 0; i < Panels::ROWS_EACH; ++i) take_row(matrices, Panels::row(thread, i), row[i]);
}

// Brings a thread's share of a slice, of each of PARTS that are `set` elements behind one another; `place` says where the
// element of a row and a column is.
template <typename Panels, int PARTS, typename Row, typename Column, typename Place>
__device__ inline void copy_panels(unsigned char* first, Index set, const Row (&row)[Panels::ROWS_EACH],
                                   const Column (&column)[Panels::COLUMNS_EACH], Place place) {
#pragma unroll
  for (int i = 0; i < Panels::EACH; ++i)
#pragma unroll
    for (int panel = 0; panel < Panels::COUNT; ++panel) {
      const auto from = place(row[Panels::K_MAJOR ? i : panel], column[Panels::K_MAJOR ? 0 : i]);
      unsigned char* const to = first + i * Panels::AT_ONCE * Panels::LINE + panel * Panels::PANEL;
#pragma unroll
      for (int part = 0; part < PARTS; ++part)
        cp_async<16>(to + part * Panels::BYTES, from.at + part * set, from.there ? 16 : 0);
    }
}

// How many elements one set of parts has, of what is a matrix's.
struct Sets {
  Index a, b;
};

// Both matrices' slices of a stage.
template <typename Tile, bool A_K_MAJOR, bool B_K_MAJOR>
struct Stage {
  using A = Panels<typename Tile::Element, Tile::BM, A_K_MAJOR>;
  using B = Panels<typename Tile::Element, Tile::BN, B_K_MAJOR>;
  static constexpr int OF_A = Tile::PARTS * A::BYTES, BYTES = OF_A + Tile::PARTS * B::BYTES;
  static constexpr int RING = Tile::STAGES * BYTES;
};

// Brings all slices of a tile. What columns contribute to places lies in shared memory for some slices at a time.
template <typename Stage, typename Tile, typename Matrices>
__device__ inline void bring(const Matrices& matrices, const Sets& sets, GroupShared<Tile>& shared,
                             unsigned char* ring, Turn& turn) {
  using A = typename Stage::A;
  using B = typename Stage::B;
  using Column = typename Matrices::Column;
  constexpr int STEP = A::K_MAJOR && B::K_MAJOR ? Tile::VECTOR : 1, COLUMNS = Tile::BK / STEP;
  constexpr int SLICES = WARPGROUP / COLUMNS;
  const int thread = threadIdx.x % WARPGROUP, slices = (matrices.depth + Tile::BK - 1) / Tile::BK;
  if constexpr (A::K_MAJOR) {
    warpgroup_sync();  // nobody reads the columns of the tile before any more
#pragma unroll 1
    for (int i = thread; i < Tile::BM; i += WARPGROUP) shared.cells[i] = Entry::of(matrices.row_of_cells(i), true, 0);
    warpgroup_sync();  // the table is there
  }
  typename Matrices::RowA row_a[A::ROWS_EACH];
  typename Matrices::RowB row_b[B::ROWS_EACH];
  take_rows<A>(matrices, shared.cells, thread, row_a);
  take_rows<B>(matrices, shared.cells, thread, row_b);
#pragma unroll 1
  for (int begin = 0; begin < slices; begin += SLICES) {
    warpgroup_sync();  // nobody reads the table any more
    shared.columns[slot(thread)] = Entry::of(matrices.column(matrices.counter(begin * Tile::BK + thread * STEP)));
    warpgroup_sync();  // the table is there
    const int count = min(SLICES, slices - begin);
#pragma unroll 1
    for (int slice = 0; slice < count; ++slice) {
      const auto entry = [&](int column) { return column_of<Column>(shared.columns[slot(slice * COLUMNS + column / STEP)]); };
      Column column_a[A::COLUMNS_EACH], column_b[B::COLUMNS_EACH];
#pragma unroll
      for (int i = 0; i < A::COLUMNS_EACH; ++i) column_a[i] = entry(A::column(thread, i));
#pragma unroll
      for (int i = 0; i < B::COLUMNS_EACH; ++i) column_b[i] = entry(B::column(thread, i));
      while (!mbarrier_try_wait(&shared.empty[turn.stage], turn.parity ^ 1)) {
      }
      unsigned char* const stage = ring + turn.stage * Stage::BYTES;
      copy_panels<A, Tile::PARTS>(
          stage + A::first(thread), sets.a, row_a, column_a,
          [&](const typename Matrices::RowA& row, const Column& column) { return matrices.a(row, column); });
      copy_panels<B, Tile::PARTS>(
          stage + Stage::OF_A + B::first(thread), sets.b, row_b, column_b,
          [&](const typename Matrices::RowB& row, const Column& column) { return matrices.b(row, column); });
      cp_async_mbarrier_arrive_noinc(&shared.full[turn.stage]);
      turn = next<Tile::STAGES>(turn);
    }
  }
}

// -- the consumers ----------------------------------------------------------------------------------

// Rounds the warpgroup's BYTES of a slice to TF32, in place.
template <int BYTES>
__device__ inline void round_rows(unsigned char* rows) {
  auto* const vectors = reinterpret_cast<Pack<unsigned, 4>*>(rows) + threadIdx.x % WARPGROUP;
#pragma unroll
  for (int i = 0; i < BYTES / 16; i += WARPGROUP) {
    Pack<unsigned, 4> four = vectors[i];
#pragma unroll
    for (int j = 0; j < 4; ++j) four.value[j] = float_to_tf32(__uint_as_float(four.value[j]));
    vectors[i] = four;
  }
}

template <int M, int N>
__device__ inline void zero(float (&sum)[M][N][4]) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int j = 0; j < N; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[m][j][e] = 0;
}

// What has arrived of a stage, for the products to come.
template <typename Stage, typename Tile>
__device__ inline unsigned char* await(GroupShared<Tile>& shared, unsigned char* ring, const Turn& turn) {
  using A = typename Stage::A;
  while (!mbarrier_try_wait(&shared.full[turn.stage], turn.parity)) {
  }
  unsigned char* const stage = ring + turn.stage * Stage::BYTES;
  if constexpr (Tile::Product::ROUNDS)
    round_rows<Tile::WM * A::LINE>(stage + threadIdx.x / WARPGROUP * Tile::WM * A::LINE);
  fence_proxy_async();  // products see no writes of copies or threads before
  if constexpr (Tile::Product::ROUNDS) warpgroup_sync();  // all rows have been rounded
  return stage;
}

// sum += A B for the warpgroup's rows of a slice; of the i-th parts of A, and the j-th of B.
template <typename Stage, typename Tile>
__device__ inline void multiply_parts(const unsigned char* stage, int i, int j, typename Tile::Sums& sum) {
  using A = typename Stage::A;
  using B = typename Stage::B;
  const int row = threadIdx.x / WARPGROUP * Tile::WM;
#pragma unroll
  for (int step = 0; step < Tile::STEPS; ++step)
#pragma unroll
    for (int m = 0; m < Tile::M; ++m)
      Tile::Product::template add<A::K_MAJOR, B::K_MAJOR>(
          sum[m], A::operand(stage + i * A::BYTES, row + 64 * m, step),
          B::operand(stage + Stage::OF_A + j * B::BYTES, 0, step));
}

__device__ inline void give_up(MBarrier* empty) {
  if (threadIdx.x % 32 == 0) mbarrier_arrive(empty);
}

// sum = A B for the warpgroup's rows, by slices as they come. A slice is given up when the products of the next one have
// been issued and its own are done.
template <typename Stage, typename Tile>
__device__ inline void multiply_slices(int slices, GroupShared<Tile>& shared, unsigned char* ring, Turn& turn,
                                       typename Tile::Sums& sum) {
  zero(sum);
  MBarrier* done = nullptr;
#pragma unroll 1
  for (int slice = 0; slice < slices; ++slice) {
    const unsigned char* const stage = await<Stage>(shared, ring, turn);
    wgmma_fence();
    multiply_parts<Stage, Tile>(stage, 0, 0, sum);
    wgmma_commit();
    wgmma_wait<1>();
    if (done) give_up(done);
    done = &shared.empty[turn.stage];
    turn = next<Tile::STAGES>(turn);
  }
  wgmma_wait<0>();
#pragma unroll
  for (int m = 0; m < Tile::M; ++m) wgmma_pin(sum[m]);
  if (done) give_up(done);
}

// part = part / 2^8 + the products of one power, the smaller ones having been added up before: see parts.cuh.
template <typename Stage, typename Tile, int POWER>
__device__ inline void multiply_power(const unsigned char* stage, typename Tile::Sums& part) {
#pragma unroll
  for (int m = 0; m < Tile::M; ++m)
#pragma unroll
    for (int j = 0; j < Tile::BN / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) part[m][j][e] *= 1 / PART;
#pragma unroll
  for (int m = 0; m < Tile::M; ++m) wgmma_pin(part[m]);
  wgmma_fence();
  constexpr int FIRST = POWER < PARTS ? 0 : POWER - PARTS + 1;
#pragma unroll
  for (int i = FIRST; i <= POWER - FIRST; ++i) multiply_parts<Stage, Tile>(stage, i, POWER - i, part);
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int m = 0; m < Tile::M; ++m) wgmma_pin(part[m]);
}

// The same by parts: those of a slice are summed from zero, and added to the sum of all with rounding.
template <typename Stage, typename Tile>
__device__ inline void multiply_slices_by_parts(int slices, GroupShared<Tile>& shared, unsigned char* ring, Turn& turn,
                                                typename Tile::Sums& sum) {
  static_assert(PARTS == 3, "powers of three parts");
  zero(sum);
#pragma unroll 1
  for (int slice = 0; slice < slices; ++slice) {
    const unsigned char* const stage = await<Stage>(shared, ring, turn);
    typename Tile::Sums part;
    zero(part);
    if (shared.small) {
      multiply_power<Stage, Tile, 4>(stage, part);
      multiply_power<Stage, Tile, 3>(stage, part);
    }
    multiply_power<Stage, Tile, 2>(stage, part);
    multiply_power<Stage, Tile, 1>(stage, part);
    multiply_power<Stage, Tile, 0>(stage, part);
    give_up(&shared.empty[turn.stage]);
    turn = next<Tile::STAGES>(turn);
#pragma unroll
    for (int m = 0; m < Tile::M; ++m)
#pragma unroll
      for (int j = 0; j < Tile::BN / 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[m][j][e] += part[m][j][e];
  }
}

// Sums of a tile once more, of SIDE rows and columns from these on, by additions of single products.
template <int SIDE, typename Matrices>
__device__ inline void sum_plainly(const Matrices& matrices, const Sets& sets, int row, int column,
                                   float (&sum)[SIDE][SIDE]) {
  typename Matrices::RowA row_a[SIDE];
  typename Matrices::RowB row_b[SIDE];
#pragma unroll
  for (int i = 0; i < SIDE; ++i) {
    take_row(matrices, row + i, row_a[i]);
    take_row(matrices, column + i, row_b[i]);
#pragma unroll
    for (int j = 0; j < SIDE; ++j) sum[i][j] = 0;
  }
#pragma unroll 1
  for (int k = 0; k < matrices.depth; ++k) {
    const typename Matrices::Column at = matrices.column(matrices.counter(k));
    float a[SIDE], b[SIDE];
#pragma unroll
    for (int i = 0; i < SIDE; ++i) {
      const auto of_a = matrices.a(row_a[i], at);
      const auto of_b = matrices.b(row_b[i], at);
      a[i] = of_a.there ? join(of_a.at, sets.a) : 0.f;
      b[i] = of_b.there ? join(of_b.at, sets.b) : 0.f;
    }
#pragma unroll
    for (int i = 0; i < SIDE; ++i)
#pragma unroll
      for (int j = 0; j < SIDE; ++j) sum[i][j] = multiply_add(a[i], b[j], sum[i][j]);
  }
}

// A piece of a warp's sums on its way to memory: a line of columns of its 16 rows, as numbers of U in shared memory. Two
// neighbouring columns are one complex number; IN_SQUARES they are one with those of the next row.
template <typename Tile, typename U, bool ROWS_FASTEST, bool IN_SQUARES>
struct Piece {
  static constexpr int REALS = Tile::REALS, ROWS = IN_SQUARES ? 8 : 16, COLUMNS = 128 / sizeof(U), V = 16 / sizeof(U);
  static constexpr int ACROSS = Tile::BN / REALS / COLUMNS, COUNT = Tile::M * ACROSS;
  static constexpr int LINES = ROWS_FASTEST ? COLUMNS : ROWS, LENGTH = ROWS_FASTEST ? ROWS : COLUMNS;
  static constexpr int PITCH = LENGTH + (ROWS_FASTEST || sizeof(U) < 4 ? V : 2 * V);  // for distinct banks
  using Line = U[PITCH];
  static_assert(LINES * sizeof(Line) <= PIECE, "it fits");

  GroupShared<Tile>& shared;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  __device__ Line* lines() const { return reinterpret_cast<Line*>(shared.piece[warp]); }
  __device__ U& at(int row, int column) const { return ROWS_FASTEST ? lines()[column][row] : lines()[row][column]; }
  // The first ones among the warpgroup's.
  __device__ int row(int number) const { return number / ACROSS * 4 * ROWS + warp % 4 * ROWS; }
  __device__ int column(int number) const { return number % ACROSS * COLUMNS; }
  __device__ const Index* rows(int number) const { return &shared.rows[warp / 4][row(number)]; }
  __device__ const Index* columns(int number) const { return &shared.places[warp / 4][column(number)]; }
  // Where in the result its lines are, and what the lane has of each.
  __device__ const Index* lines_at(int number) const { return ROWS_FASTEST ? columns(number) : rows(number); }
  __device__ const Index* of_line(int number) const {
    return (ROWS_FASTEST ? rows(number) : columns(number)) + first();
  }
  __device__ int first() const { return lane % (LENGTH / V) * V; }
  template <typename Matrices>
  __device__ Neighbours<V> neighbours(const Matrices& matrices, int number, const void* out) const {
    return {matrices, of_line(number), ROWS_FASTEST, out};
  }
  // Whether packs are whole, or not there, in all pieces of the warp.
  template <typename Matrices>
  __device__ bool all_whole(const Matrices& matrices, const void* out) const {
    bool whole = reinterpret_cast<size_t>(out) % 16 == 0 && matrices.neighbours(ROWS_FASTEST) &&
                 matrices.whole_packs(ROWS_FASTEST, V);
#pragma unroll 1
    for (int number = 0; number < COUNT; ++number) {
      const Index* const places = of_line(number);
      const Index begin = places[0], end = places[V - 1];
      if (begin != NONE)
        whole = whole & (end == begin + V - 1) & (begin % V == 0);
      else
#pragma unroll 1
        for (int v = 1; v < V; ++v) whole = whole & (places[v] == NONE);
    }
    return __all_sync(~0u, whole);
  }
  // Of a product with a conjugate if so asked.
  __device__ static U square(float own, float next, float below, float across, bool conjugate) {
    return conjugate ? U{own + across, below - next} : U{own - across, below + next};
  }
  __device__ void put(const typename Tile::Sums& sum, int number, bool conjugate) const {
    constexpr int EIGHTS = COLUMNS * REALS / 8;
    __syncwarp();  // the one before has been read
#pragma unroll
    for (int j = 0; j < EIGHTS; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float(&both)[4] = sum[number / ACROSS][number % ACROSS * EIGHTS + j];
        const int row = 8 * half + lane / 4, column = 8 * j + lane % 4 * 2;
        const float own = both[2 * half], next = both[2 * half + 1];
        if constexpr (IN_SQUARES) {
          const float below = __shfl_xor_sync(~0u, own, 4), across = __shfl_xor_sync(~0u, next, 4);
          if (row % 2 == 0) at(row / 2, column / 2) = square(own, next, below, across, conjugate);
        } else if constexpr (REALS == 2) {
          at(row, column / 2) = U{own, next};
        } else if constexpr (ROWS_FASTEST) {
          at(row, column) = Narrow<U>::from(own);
          at(row, column + 1) = Narrow<U>::from(next);
        } else {
          *reinterpret_cast<Pack<U, 2>*>(&at(row, column)) = Pack<U, 2>{Narrow<U>::from(own), Narrow<U>::from(next)};
        }
      }
    __syncwarp();  // it is there
  }
  // Those that are no numbers, or infinite, once more, in case parts were: a lane has SIDE rows and columns of the matrix.
  template <typename Matrices>
  __device__ void mend(const Matrices& matrices, const Sets& sets, int number, bool conjugate) const {
    constexpr int SIDE = 4, AT_ONCE = IN_SQUARES ? 2 : 1;  // rows of one number
    const int own_row = lane / 8 * SIDE, own_column = lane % 8 * SIDE;
    float sum[SIDE][SIDE];
    sum_plainly(matrices, sets, warp / 4 * Tile::WM + row(number) * AT_ONCE + own_row,
                column(number) * REALS + own_column, sum);
#pragma unroll
    for (int i = 0; i < SIDE; i += AT_ONCE)
#pragma unroll
      for (int j = 0; j < SIDE; j += REALS) {
        U& found = at((own_row + i) / AT_ONCE, (own_column + j) / REALS);
        const float* const reals = reinterpret_cast<const float*>(&found);
        bool finite = true;
#pragma unroll
        for (int k = 0; k < REALS; ++k) finite = finite & (fabsf(reals[k]) < __uint_as_float(0x7f800000));
        if (finite) continue;
        if constexpr (IN_SQUARES)
          found = square(sum[i][j], sum[i][j + 1], sum[i + 1][j], sum[i + 1][j + 1], conjugate);
        else if constexpr (REALS == 2)
          found = U{sum[i][j], sum[i][j + 1]};
        else
          found = sum[i][j];
      }
    __syncwarp();  // they are there
  }
};

// Stores a warp's sums in whole packs of U.
template <typename Piece, typename Sums, typename U>
__device__ inline void store_packs(const Piece& piece, const Sums& sum, bool conjugate, U* out) {
  using Pack = ::Pack<U, Piece::V>;
#pragma unroll
  for (int i = 0; i < Piece::COUNT; ++i) {
    piece.put(sum, i, conjugate);
    const Index place = piece.of_line(i)[0];
    if (place == NONE) continue;
    each_line<Piece::LINES, Piece::LENGTH, 32>(
        piece.lane, piece.lines_at(i), piece.lines(),
        [&](int, Index line, Pack pack) { *reinterpret_cast<Pack*>(out + (line + place)) = pack; });
  }
}

// Stores a warp's sums. Those that are only rounded are so before they are packed, if packs are whole in all of them.
template <typename Tile, bool ROWS_FASTEST, typename Matrices>
__device__ inline void store_warp(const Matrices& matrices, const Sets& sets, GroupShared<Tile>& shared,
                                  const typename Tile::Sums& sum, void* out, const void* bias) {
  using T = typename Tile::Result;
  constexpr bool IN_SQUARES = Tile::REALS > 1 && !Matrices::CELLS_ARE_A;
  using Sums = Piece<Tile, Accumulator<T>, ROWS_FASTEST, IN_SQUARES>;
  const Piece<Tile, T, ROWS_FASTEST, IN_SQUARES> rounded{shared};
  const Sums sums{shared};
  const Params& p = matrices.p;
  const bool beyond = Tile::PARTS > 1 && __any_sync(~0u, any_beyond(sum));
  if (!beyond && finish_of<Tile::REALS>(p, true, bias) == ROUNDED && rounded.all_whole(matrices, out)) {
    store_packs(rounded, sum, p.conjugate, static_cast<T*>(out));
  } else if (!beyond && p.partial && sums.all_whole(matrices, out)) {
    store_packs(sums, sum, p.conjugate, static_cast<Accumulator<T>*>(out));
  } else {
#pragma unroll 1
    for (int number = 0; number < Sums::COUNT; ++number) {
#pragma unroll
      for (int i = 0; i < Sums::COUNT; ++i)
        if (i == number) sums.put(sum, i, p.conjugate);
      if constexpr (Tile::PARTS > 1)
        if (beyond) sums.mend(matrices, sets, number, p.conjugate);
      store_lines<ANYHOW, T, ROWS_FASTEST, Sums::LINES, Sums::LENGTH, 32>(
          p, sums.lane, sums.lines_at(number), sums.neighbours(matrices, number, out), sums.lines(), out, bias,
          channel_of<Tile::REALS>(matrices) + sums.column(number) + (ROWS_FASTEST ? 0 : sums.first()));
    }
  }
}

// -- the ops ----------------------------------------------------------------------------------------

// Of inputs by parts whether the launches that made these have found a small number.
__device__ inline bool any_small(const void* parts, Index set, Index count) {
  constexpr int VECTOR = 8;
  const auto* const flags = static_cast<const unsigned short*>(parts) + PARTS * set;
  const auto* const vectors = reinterpret_cast<const Pack<unsigned, 4>*>(flags);
  unsigned any = 0;
#pragma unroll 1
  for (Index i = threadIdx.x; i < count / VECTOR; i += blockDim.x) {
    const Pack<unsigned, 4> four = vectors[i];
    any |= four.value[0] | four.value[1] | four.value[2] | four.value[3];
  }
  const Index rest = count / VECTOR * VECTOR + threadIdx.x;
  return any != 0 || (rest < count && flags[rest] != 0);
}

// All tiles of a block: every gridDim.x-th one of those that COUNT digits and the parts of gemm_k count. make(tile, axes)
// has the matrices of a tile, for which it may put axes down; all threads of a warpgroup call it, with axes of their own.
// Of inputs by parts `mode` has how many numbers are behind those of `a`, and 2^32 times how many behind those of `b`.
template <typename Tile, int COUNT, bool A_K_MAJOR, bool B_K_MAJOR, bool WITH_PIXELS, typename Make>
__device__ inline void do_tiles(const Params& p, const void* a, const void* b, const void* bias, void* out,
                                const Make& make) {
  using Stage = ::Stage<Tile, A_K_MAJOR, B_K_MAJOR>;
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<GroupShared<Tile>*>(memory + Stage::RING);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Tile::STAGES; ++i) {
      mbarrier_init(&shared.full[i], WARPGROUP);
      mbarrier_init(&shared.empty[i], Tile::WARPS);
    }
    shared.small = 0;
  }
  __syncthreads();  // the barriers are there
  const Index of_cells = p.batch * p.a[0], others = (WITH_PIXELS ? p.groups * p.filters : p.batch) * p.b[0];
  const Sets sets = WITH_PIXELS ? Sets{of_cells, others} : Sets{others, of_cells};
  if constexpr (Tile::PARTS > 1) {
    if (any_small(a, of_cells, p.mode & 0xffffffff) || any_small(b, others, p.mode >> 32)) shared.small = 1;
    __syncthreads();  // all have looked
  }
  Index tiles = p.splits;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) tiles *= p.digit[i].divisor;
  const int group = threadIdx.x / WARPGROUP;
  Turn turn{};
  if (group == CONSUMERS) {
    setmaxnreg_dec<Tile::BRINGING>();
#pragma unroll 1
    for (Index tile = blockIdx.x; tile < tiles; tile += gridDim.x)
      bring<Stage>(make(tile, shared.axis[group]), sets, shared, memory, turn);
    cp_async_wait_all();  // no thread ends while its copies are under way
  } else {
    setmaxnreg_inc<Tile::MULTIPLYING>();
#pragma unroll 1
    for (Index tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const auto matrices = make(tile, shared.axis[group]);
      warpgroup_sync();  // nobody reads the places of the tile before any more
      constexpr int ROWS = WITH_PIXELS ? Tile::WM : Tile::WM / Tile::REALS;  // of the result
      for (int i = threadIdx.x % WARPGROUP; i < ROWS; i += WARPGROUP)
        shared.rows[group][i] = matrices.row_place(group * ROWS + i);
      for (int j = threadIdx.x % WARPGROUP; j < Tile::BN / Tile::REALS; j += WARPGROUP)
        shared.places[group][j] = matrices.column_place(j);
      warpgroup_sync();  // they are there
      typename Tile::Sums sum;
      const int slices = (matrices.depth + Tile::BK - 1) / Tile::BK;
      if constexpr (Tile::PARTS > 1)
        multiply_slices_by_parts<Stage>(slices, shared, memory, turn, sum);
      else
        multiply_slices<Stage>(slices, shared, memory, turn, sum);
      if (WITH_PIXELS && p.lanes <= 1 && !p.partial)
        store_warp<Tile, true>(matrices, sets, shared, sum, out, bias);
      else
        store_warp<Tile, false>(matrices, sets, shared, sum, out, bias);
    }
  }
}

template <typename Product, int BM, int BN, int STAGES>
__device__ void conv_fprop_wgmma(const void* a, const void* b, const void* bias, void* out, const Params& p) {
  using Tile = GroupTile<Product, BM, BN, STAGES>;
  const GatherAxis axis[3] = {forward_axis(p.axis[0]), forward_axis(p.axis[1]), forward_axis(p.axis[2])};
  do_tiles<Tile, 3, true, true, true>(p, a, b, bias, out, [&](Index tile, GatherAxis (&)[3]) {
    Index digit[3];  // tile_n, tile_m, group
    const Index part = take_digits(p, tile, digit);
    return PixelsByChannels<typename Tile::Element, CHANNEL_LANES, Tile::VECTOR, false, 0, Tile::REALS>(
        p, axis, a, b, int(p.channels), int(p.filters), p.b[0], 1, digit[2], part, digit[1] * BM, int(digit[0]) * BN,
        BM, BN);
  });
}

// As fprop, with one set of tiles per residue of the stride, each large enough for the first, largest one. Of floats
// rounded to TF32 the filters come with channels and filters exchanged, each group of filters in whole vectors.
template <typename Product, int BM, int BN, int STAGES>
__device__ void conv_dgrad_wgmma(const void* a, const void* b, const void* bias, void* out, const Params& p) {
  using Tile = GroupTile<Product, BM, BN, STAGES>;
  using T = typename Tile::Element;
  constexpr bool EXCHANGED = Product::ROUNDS;
  do_tiles<Tile, 6, true, EXCHANGED, true>(p, a, b, bias, out, [&](Index tile, GatherAxis (&axis)[3]) {
    Index digit[6];  // tile_n, tile_m, residues of w, h and d, group
    const Index part = take_digits(p, tile, digit);
    warpgroup_sync();  // nobody reads the axes of the tile before any more
    if (threadIdx.x % WARPGROUP == 0)
#pragma unroll
      for (int i = 0; i < 3; ++i) axis[i] = residue_axis(p.axis[i], int(digit[4 - i]));
    warpgroup_sync();  // they are there
    const Index group = digit[5], filters = group * round_up(int(p.filters), Tile::VECTOR);
    return PixelsByChannels<T, CHANNEL_LANES, Tile::VECTOR, false, 0, Tile::REALS>(
        p, axis, a, static_cast<const T*>(b) + (EXCHANGED ? filters - group * p.filters * p.b[0] : 0), int(p.filters),
        int(p.channels), EXCHANGED ? p.b[0] : 1, EXCHANGED ? 1 : p.b[0], group, part, digit[1] * BM,
        int(digit[0]) * BN, BM, BN);
  });
}

template <typename Product, int BM, int BN, int STAGES>
__device__ void conv_wgrad_wgmma(const void* a, const void* b, const void*, void* out, const Params& p) {
  using Tile = GroupTile<Product, BM, BN, STAGES>;
  const GatherAxis axis[3] = {forward_axis(p.axis[0]), forward_axis(p.axis[1]), forward_axis(p.axis[2])};
  do_tiles<Tile, 3, false, false, false>(p, a, b, nullptr, out, [&](Index tile, GatherAxis (&)[3]) {
    Index digit[3];  // tile_n, tile_m, group
    const Index part = take_digits(p, tile, digit);
    return FiltersByTaps<typename Tile::Element, CHANNEL_LANES, Tile::VECTOR, false, 0, Tile::REALS>(
        p, axis, a, b, digit[2], part, int(digit[1]) * BM, int(digit[0]) * BN, BM, BN);
  });
}
