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
// addition that rounds: what is lost is 2^-23 of the slice's own terms, and no bias grows with gemm_k. Products of
// floats BY_PARTS are in parts.cuh: the copies land where only their own thread reads them, which makes the parts of the
// next slice while this one is multiplied.
//
// Preconditions (cuda/mma.py): channels are contiguous, and all else of both inputs a multiple of 16 bytes;
// coordinates and gemm_k fit 31 bits. Sums have one order, set by the plan: the bits are the same from run to run.
// It exists since tensor cores multiply many times faster than the ordinary ones.
#pragma once
#include <ptx/sm80.cuh>

#include "gather.cuh"
#include "parts.cuh"

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
  static_assert(CHUNKS % 8 == 0 || ((CHUNKS == 4 || CHUNKS == 2) && !ELEMENTWISE),
                "lines of 32 or 64 bytes, or of a multiple of 128");

  T* ring;
  int start;  // elements of the ring before the slice, whole lines of banks

  // A chunk, and one so many after it, if its number is a multiple of a greater power of two: of what is in the ring
  // only this much has to be known before the loop.
  __device__ T* chunk(int line, int chunk, int further = 0) const {
    const int swizzle = ELEMENTWISE ? 0 : CHUNKS == 2 ? line / 4 % 2 : CHUNKS == 4 ? line / 2 % 4 : line % 8;
    return ring + ((start + line * LINE + (chunk ^ swizzle) * VECTOR) ^ further * VECTOR);
  }
  // How far an element is from the first one where lines are not swizzled.
  __device__ static int offset(int row, int k) { return K_MAJOR ? row * LINE + k : k * LINE + row; }
  __device__ T* at(int row, int k, int further = 0) const {
    if (ELEMENTWISE) return ring + start + offset(row, k);
    const int line = K_MAJOR ? row : k, place = K_MAJOR ? k : row;
    return chunk(line, place / VECTOR, further) + place % VECTOR;
  }
  // The lines from one on, a multiple of 8, after which swizzles repeat.
  __device__ Slice from_line(int line) const { return {ring + line * LINE, start}; }
  // The i-th vector of a thread's share.
  template <typename Share>
  __device__ T* vector(int i) const {
    static_assert(ELEMENTWISE || Share::STEP % 8 == 0, "whole swizzles, or whole chunks");
    if (ELEMENTWISE || K_MAJOR) return at(Share::row(), Share::column()) + offset(i * Share::STEP, 0);
    return at(Share::row(), Share::column(), i * Share::STEP / VECTOR);
  }
};

// -- products ---------------------------------------------------------------------------------------

// Of elements of 16 bits: 16 of gemm_k at a time.
template <typename T>
struct HalfProduct {
  using Element = T;
  using Result = T;
  using Sum = float;
  using A = unsigned[4];
  using B = unsigned[2];
  static constexpr int K = 16;
  static constexpr bool TRUNCATES = true, BY_PARTS = false;
  template <int ROWS, int BK, bool K_MAJOR>
  using Slice = ::Slice<T, ROWS, BK, K_MAJOR, false>;

  // 16 rows `further` than `row`, the warp's first one, and 8, by the four tiles of 8x8 elements of an ldmatrix. Apart,
  // since what is known when compiling needs no register.
  template <typename Slice>
  __device__ static void load(A& a, const Slice& slice, int row, int further, int k) {
    const int lane = threadIdx.x % 32;
    if constexpr (Slice::K_MAJOR)
      ldmatrix(a, slice.from_line(row).chunk(lane % 16, k / 8 + lane / 16) + further * Slice::LINE);
    else
      ldmatrix_trans(a, slice.chunk(k + lane / 16 * 8 + lane % 8, row / 8 + lane / 8 % 2, further / 8));
  }
  template <typename Slice>
  __device__ static void load(B& b, const Slice& slice, int row, int further, int k) {
    const int lane = threadIdx.x % 32;
    if constexpr (Slice::K_MAJOR)
      ldmatrix(b, slice.from_line(row).chunk(lane % 8, k / 8 + lane / 8 % 2) + further * Slice::LINE);
    else
      ldmatrix_trans(b, slice.chunk(k + lane % 16, row / 8, further / 8));
  }
  template <typename Slice>
  __device__ static void load(B (&b)[2], const Slice& slice, int row, int further, int k) {
    const int lane = threadIdx.x % 32;
    unsigned words[4];
    if constexpr (Slice::K_MAJOR)
      ldmatrix(words, slice.from_line(row).chunk(lane % 8, k / 8 + lane / 8) + further * Slice::LINE);
    else
      ldmatrix_trans(words, slice.chunk(k + lane, row / 8, further / 8));
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

// Of floats by parts: 16 of gemm_k at a time, which are a slice.
struct Float32Product {
  using Half = Bfloat16Product;
  using Element = float;
  using Result = float;
  using Sum = float;
  using A = Half::A[PARTS];
  using B = Half::B[PARTS];
  static constexpr int K = 16;
  static constexpr bool TRUNCATES = false, BY_PARTS = true;  // of itself
  template <int ROWS, int BK, bool K_MAJOR>
  using Slice = InParts<::Slice<bfloat16, ROWS, BK, K_MAJOR, false>>;

  template <typename Slice>
  __device__ static void load(A& a, const Slice& slice, int row, int further, int k) {
#pragma unroll
    for (int i = 0; i < PARTS; ++i) Half::load(a[i], slice.part(i), row, further, k);
  }
  template <typename Slice>
  __device__ static void load(B (&b)[1], const Slice& slice, int row, int further, int k) {
#pragma unroll
    for (int i = 0; i < PARTS; ++i) Half::load(b[0][i], slice.part(i), row, further, k);
  }
  __device__ static void add(Sum (&sum)[4], const A& a, const B& b) {
    float part[PARTS][4] = {};  // the sums of each power
#pragma unroll
    for (int power = PARTS - 1; power >= 0; --power)
#pragma unroll
      for (int i = 0; i <= power; ++i) Half::add(part[power], a[i], b[power - i]);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float total = part[PARTS - 1][e];
#pragma unroll
      for (int power = PARTS - 2; power >= 0; --power) total = multiply_add(total, 1 / PART, part[power][e]);
      sum[e] += total;
    }
  }
  // The products that are left out.
  __device__ static void add_rest(Sum (&sum)[4], const A& a, const B& b) {
    float part[2][4] = {};
    Half::add(part[1], a[2], b[2]);
    Half::add(part[0], a[1], b[2]);
    Half::add(part[0], a[2], b[1]);
#pragma unroll
    for (int e = 0; e < 4; ++e)
      sum[e] = multiply_add(multiply_add(part[1][e], 1 / PART, part[0][e]), 1 / (PART * PART * PART), sum[e]);
  }
};

// Of floats, rounded to 11 bits: 8 of gemm_k at a time.
struct Tf32Product {
  using Element = float;
  using Result = float;
  using Sum = float;
  using A = unsigned[4];
  using B = unsigned[2];
  static constexpr int K = 8;
  static constexpr bool TRUNCATES = true, BY_PARTS = false;
  template <int ROWS, int BK, bool K_MAJOR>
  using Slice = ::Slice<float, ROWS, BK, K_MAJOR, !K_MAJOR>;

  // An ldmatrix gives each thread the word it needs where a line runs along gemm_k.
  template <typename Slice>
  __device__ static void load(A& a, const Slice& slice, int row, int further, int k) {
    const int lane = threadIdx.x % 32;
    if constexpr (Slice::K_MAJOR) {
      ldmatrix(a, slice.from_line(row).chunk(lane % 16, k / 4 + lane / 16) + further * Slice::LINE);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a[i] = __float_as_uint(slice.at(row + lane / 4, lane % 4)[Slice::offset(further + i % 2 * 8, k + i / 2 * 4)]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = float_to_tf32(__uint_as_float(a[i]));
  }
  template <typename Slice>
  __device__ static void load(B (&b)[2], const Slice& slice, int row, int further, int k) {
    const int lane = threadIdx.x % 32;
    unsigned words[4];
    if constexpr (Slice::K_MAJOR) {
      ldmatrix(words, slice.from_line(row).chunk(lane % 8, k / 4 + lane / 8) + further * Slice::LINE);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        words[i] = __float_as_uint(slice.at(row + lane / 4, lane % 4)[Slice::offset(further, k + i * 4)]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = float_to_tf32(__uint_as_float(words[i]));
  }
  __device__ static void add(Sum (&sum)[4], const A& a, const B& b) { mma_m16n8k8_tf32(sum, a, b); }
};

// Of doubles, summed as IEEE has it: 16 of gemm_k at a time.
struct Float64Product {
  using Element = double;
  using Result = double;
  using Sum = double;
  using A = double[8];
  using B = double[4];
  static constexpr int K = 16;
  static constexpr bool TRUNCATES = false, BY_PARTS = false;
  template <int ROWS, int BK, bool K_MAJOR>
  using Slice = ::Slice<double, ROWS, BK, K_MAJOR, true>;

  template <typename Slice>
  __device__ static void load(A& a, const Slice& slice, int row, int further, int k) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      a[i] = slice.at(row + lane / 4, lane % 4)[Slice::offset(further + i % 2 * 8, k + i / 2 * 4)];
  }
  template <typename Slice>
  __device__ static void load(B (&b)[1], const Slice& slice, int row, int further, int k) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; ++i) b[0][i] = slice.at(row + lane / 4, lane % 4)[Slice::offset(further, k + i * 4)];
  }
  __device__ static void add(Sum (&sum)[4], const A& a, const B& b) { mma_m16n8k16_f64(sum, a, b); }
};

// Of complex numbers, as real ones in twice the channels: see complex.cuh.
struct Complex64Product : Float32Product {
  using Result = complex64;
};
struct Complex128Product : Float64Product {
  using Result = complex128;
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
  static constexpr int REALS = sizeof(typename Product::Result) / sizeof(typename Product::Element);
  static_assert(BM % WM == 0 && BN % WN == 0, "whole warps");
  static_assert(WM % 16 == 0 && WN % 16 == 0 && BK % Product::K == 0, "whole fragments");

  using Sums = typename Product::Sum[WM / 16][WN / 8][4];

  // The warp's own rows and columns begin here.
  __device__ static int warp_row() { return threadIdx.x / 32 / (BN / WN) * WM; }
  __device__ static int warp_column() { return threadIdx.x / 32 % (BN / WN) * WN; }
};

// Where the vectors of a thread's share of a slice land: in the slice itself, or where nobody else looks.
template <typename Share, typename Slice>
struct Landing : Slice {
  static constexpr int BYTES = Slice::BYTES;

  __device__ auto vector(int i) const { return Slice::template vector<Share>(i); }
};
template <typename Share, typename Slice>
struct Landing<Share, InParts<Slice>> {
  static constexpr int BYTES = Share::COUNT * Share::THREADS * 16;

  Pack<float, 4>* ring;
  int start;

  __device__ Pack<float, 4>* vector(int i) const { return ring + start + i * Share::THREADS + threadIdx.x; }
  // Whether one of the thread's is so small that no product of its parts may be left out.
  __device__ bool put_parts(const InParts<Slice>& slice) const {
    bool small = false;
#pragma unroll
    for (int i = 0; i < Share::COUNT; ++i) {
      const Pack<float, 4> floats = *vector(i);
      small = small | slice.put(slice.template vector<Share>(i), floats);
    }
    return small;
  }
};

// What lies so many bytes from the start of the ring.
template <typename Slice>
__device__ inline Slice in_ring(unsigned char* ring, int bytes) {
  Slice slice;
  slice.ring = reinterpret_cast<decltype(slice.ring)>(ring);
  slice.start = bytes / int(sizeof(*slice.ring));
  return slice;
}

// Brings a thread's share of a matrix; `place` says where an element is that a row contributes to.
template <typename Share, typename Landing, typename Row, typename Place>
__device__ inline void copy_share(const Landing& landing, const Row (&row)[Share::COUNT], Place place) {
#pragma unroll
  for (int i = 0; i < Share::COUNT; ++i) {
    const auto from = place(row[i]);
    cp_async<16>(landing.vector(i), from.at, from.there ? 16 : 0);
  }
}

// sum += A B for one slice, by warps; or the REST of that, which products by parts leave out.
template <typename Tile, bool REST = false, typename SliceA, typename SliceB>
__device__ inline void multiply_slice(const SliceA& slice_a, const SliceB& slice_b, typename Tile::Sums& sum) {
  using Product = typename Tile::Product;
  constexpr int M = Tile::WM / 16, N = Tile::WN / 8, STEPS = Tile::STEPS;
  typename Product::A a[M][STEPS];
  typename Product::B b[2][STEPS];  // of the columns that are multiplied, and of the next ones
  const int row = Tile::warp_row(), column = Tile::warp_column();
#pragma unroll
  for (int i = 0; i < M; ++i)
#pragma unroll
    for (int step = 0; step < STEPS; ++step) Product::load(a[i][step], slice_a, row, 16 * i, step * Product::K);
  Product::load(b[0], slice_b, column, 0, 0);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    if (j + 1 < N) Product::load(b[(j + 1) % 2], slice_b, column, 8 * (j + 1), 0);
#pragma unroll
    for (int i = 0; i < M; ++i) {
      if constexpr (REST) {
        Product::add_rest(sum[i][j], a[i][0], b[j % 2][0]);
      } else if constexpr (Product::TRUNCATES) {
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

// Entries of rows: those of every fourth one, which neighbouring threads read, are in different banks.
template <int COUNT>
struct Entries {
  Entry entry[COUNT];

  __device__ Entry& operator[](int row) { return entry[row ^ row / 4 % 4]; }
  __device__ const Entry& operator[](int row) const { return entry[row ^ row / 4 % 4]; }
};

// What a block has in shared memory besides slices and columns, all of it made before there are sums: it would take
// registers that these need.
template <typename Tile>
struct Shared {
  Index rows[Tile::BM], columns[Tile::BN];                     // where the result is going to be
  Entries<(Tile::BM > Tile::BN ? Tile::BM : Tile::BN)> cells;  // the rows of the matrix of cells
  Counter first;                                               // the beginning of gemm_k
  int channel;                                                 // of the result, the tile's first column
  int small[2];  // by stage the last slice with numbers of whose parts no product may be left out
};

// Where slices begin.
template <typename Tile>
constexpr int RING = (sizeof(Shared<Tile>) + 127) / 128 * 128;

// A row of the tile, of cells or of the other matrix.
template <typename Matrices, typename Cells>
__device__ inline void take_row(const Matrices&, const Cells& cells, int i, Site& row) {
  row = cells[i].cell();
}
template <typename Matrices, typename Cells>
__device__ inline void take_row(const Matrices&, const Cells&, int i, Slot& row) {
  row = {i};
}
template <typename Matrices, typename Cells>
__device__ inline void take_row(const Matrices& matrices, const Cells&, int i, PlainRow& row) {
  row = matrices.plain_row(i);
}

// Those of a thread's share.
template <typename Share, typename Matrices, typename Cells, typename Row>
__device__ inline void take_share(const Matrices& matrices, const Cells& cells, Row (&row)[Share::COUNT]) {
#pragma unroll
  for (int i = 0; i < Share::COUNT; ++i) take_row(matrices, cells, Share::row() + i * Share::STEP, row[i]);
}

// Both matrices' slices, and in the ring, behind STAGES of them, the tables. Copies land in the slices, or where parts
// are made from, in between.
template <typename Tile, bool A_K_MAJOR, bool B_K_MAJOR>
struct Ring {
  using Product = typename Tile::Product;
  using A = typename Product::template Slice<Tile::BM, Tile::BK, A_K_MAJOR>;
  using B = typename Product::template Slice<Tile::BN, Tile::BK, B_K_MAJOR>;
  using ShareA = Share<Tile::BM, Tile::BK, Tile::VECTOR, Tile::THREADS, A_K_MAJOR>;
  using ShareB = Share<Tile::BN, Tile::BK, Tile::VECTOR, Tile::THREADS, B_K_MAJOR>;
  using LandingA = Landing<ShareA, A>;
  using LandingB = Landing<ShareB, B>;
  static constexpr int STAGE = A::BYTES + B::BYTES, SLICES = Tile::STAGES * STAGE;
  static constexpr int COLUMNS = SLICES + (Product::BY_PARTS ? LandingA::BYTES + LandingB::BYTES : 0);
  static_assert(!Product::BY_PARTS || Tile::STAGES == 2, "a slice's parts are made while another is multiplied");
  static constexpr int SHOWN = COLUMNS + int(sizeof(Entry)) * Tile::THREADS;  // what padding shows
};

// The warp's sums of a tile once more, by additions of single products, in case parts were no numbers.
template <typename Tile, typename Matrices>
__device__ inline void multiply_plainly(const Matrices& matrices, const Shared<Tile>& shared, typename Tile::Sums& sum) {
  constexpr int M = Tile::WM / 16, N = Tile::WN / 8;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < M; ++i)
#pragma unroll
    for (int j = 0; j < N; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[i][j][e] = 0;
#pragma unroll 1
  for (int k = 0; k < shared.first.left; ++k) {
    const typename Matrices::Column column = matrices.column(matrices.counter(shared.first, k));
    float a[M][2];
#pragma unroll
    for (int i = 0; i < M; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        typename Matrices::RowA row;
        take_row(matrices, shared.cells, Tile::warp_row() + 16 * i + 8 * half + lane / 4, row);
        const auto from = matrices.a(row, column);
        a[i][half] = load_if(from.at, from.there);
      }
#pragma unroll
    for (int j = 0; j < N; ++j)
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        typename Matrices::RowB row;
        take_row(matrices, shared.cells, Tile::warp_column() + 8 * j + lane % 4 * 2 + side, row);
        const auto from = matrices.b(row, column);
        const float b = load_if(from.at, from.there);
#pragma unroll
        for (int i = 0; i < M; ++i)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            sum[i][j][2 * half + side] = multiply_add(a[i][half], b, sum[i][j][2 * half + side]);
      }
  }
}

// Whether a sum of the thread is infinite or no number.
template <int M, int N>
__device__ inline bool any_beyond(const float (&sum)[M][N][4]) {
  bool beyond = false;
#pragma unroll
  for (int i = 0; i < M; ++i)
#pragma unroll
    for (int j = 0; j < N; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) beyond = beyond | !(fabsf(sum[i][j][e]) < __uint_as_float(0x7f800000));
  return beyond;
}

// sum = A B for this block's tile.
template <typename Tile, bool A_K_MAJOR, bool B_K_MAJOR, typename Matrices>
__device__ inline void multiply(const Matrices& matrices, Shared<Tile>& shared, unsigned char* ring,
                                typename Tile::Sums& sum) {
  using Ring = ::Ring<Tile, A_K_MAJOR, B_K_MAJOR>;
  using ShareA = typename Ring::ShareA;
  using ShareB = typename Ring::ShareB;
  constexpr bool BY_PARTS = Tile::Product::BY_PARTS;
#pragma unroll
  for (int i = 0; i < Tile::WM / 16; ++i)
#pragma unroll
    for (int j = 0; j < Tile::WN / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[i][j][e] = 0;
  if (BY_PARTS && threadIdx.x < 2) shared.small[threadIdx.x] = -1;
  __syncthreads();  // what has been put down is there
  if (shared.first.left <= 0) return;

  const auto slice_a = [&](int stage) { return in_ring<typename Ring::A>(ring, stage * Ring::STAGE); };
  const auto slice_b = [&](int stage) { return in_ring<typename Ring::B>(ring, stage * Ring::STAGE + Ring::A::BYTES); };
  const auto landing_a = [&](int stage) {
    return in_ring<typename Ring::LandingA>(ring, BY_PARTS ? Ring::SLICES : stage * Ring::STAGE);
  };
  const auto landing_b = [&](int stage) {
    return in_ring<typename Ring::LandingB>(
        ring, (BY_PARTS ? Ring::SLICES : stage * Ring::STAGE) + Ring::LandingA::BYTES);
  };
  // The parts of what has landed, by the threads that brought it.
  const auto put_parts = [&](int slice, int stage) {
    if constexpr (BY_PARTS) {
      cp_async_wait_all();
      const bool small_a = landing_a(stage).put_parts(slice_a(stage));
      const bool small_b = landing_b(stage).put_parts(slice_b(stage));
      if (small_a | small_b) shared.small[stage] = slice;
    }
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
  const auto take_rows = [&] {
    take_share<ShareA>(matrices, shared.cells, row_a);
    take_share<ShareB>(matrices, shared.cells, row_b);
  };
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
    if (BY_PARTS) take_rows();  // sums and fragments leave no registers for them in between
    copy_share<ShareA>(landing_a(stage), row_a,
                       [&](const typename Matrices::RowA& row) { return matrices.a(row, column_a); });
    copy_share<ShareB>(landing_b(stage), row_b,
                       [&](const typename Matrices::RowB& row) { return matrices.b(row, column_b); });
    cp_async_commit();
  };

  // The next slice to be brought is STAGES - 1 after the one that is multiplied. How many there are is in no register.
  constexpr int FIRST = Tile::STAGES - 1;
  int next = 0;
#pragma unroll 1
  while ((next - FIRST) * Tile::BK < shared.first.left) {
    const int end = min(next + SLICES, FIRST + (shared.first.left + Tile::BK - 1) / Tile::BK);
    __syncthreads();  // nobody reads the table any more
    put_columns(next);
    if (!BY_PARTS) take_rows();
    if (next == 0) {
#pragma unroll
      for (; next < FIRST; ++next) copy(next, next);
      put_parts(0, 0);
    }
#pragma unroll 1
    for (; next < end; ++next) {
      const int stage = unsigned(next + 1) % Tile::STAGES, free = unsigned(next) % Tile::STAGES;
      if (!BY_PARTS) cp_async_wait<Tile::STAGES - 2>();
      __syncthreads();  // the slice is there for all, and nobody reads the one before any more
      copy(next, free);
      multiply_slice<Tile>(slice_a(stage), slice_b(stage), sum);
      if constexpr (BY_PARTS) {
        if (shared.small[stage] == next - FIRST) multiply_slice<Tile, true>(slice_a(stage), slice_b(stage), sum);
      }
      put_parts(next, free);
    }
  }
  cp_async_wait_all();
  __syncthreads();  // shared memory may be used for something else
  if constexpr (BY_PARTS) {
    if (__any_sync(~0u, any_beyond(sum))) multiply_plainly<Tile>(matrices, shared, sum);
  }
}

// -- the result -------------------------------------------------------------------------------------

// Hands a thread's pack of each line of a tile to put(line, place of the line, pack).
template <int LINES, int LENGTH, int THREADS, typename Sum, int PITCH, typename Put>
__device__ inline void each_line(int thread, const Index* lines, const Sum (*tile)[PITCH], Put put) {
  constexpr int V = 16 / sizeof(Sum), PACKS = LENGTH / V;
  static_assert(THREADS % PACKS == 0, "a thread has one place in all its lines");
#pragma unroll 1
  for (int line = thread / PACKS; line < LINES; line += THREADS / PACKS) {
    const Index place = lines[line];
    const Pack<Sum, V> pack = *reinterpret_cast<const Pack<Sum, V>*>(&tile[line][thread % PACKS * V]);
    if (place != NONE) put(line, place, pack);
  }
}

// Leaves a warp's sums in shared memory: in lines of rows if ROWS_FASTEST, otherwise of columns. Two neighbouring columns
// are one complex number; IN_SQUARES they are one with those of the next row, a product with a conjugate if so asked.
template <typename Tile, bool ROWS_FASTEST, bool IN_SQUARES, typename Sum, int PITCH>
__device__ inline void put_sums(const typename Tile::Sums& sum, Sum (*tile)[PITCH], bool conjugate) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < Tile::WM / 16; ++i)
#pragma unroll
    for (int j = 0; j < Tile::WN / 8; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = Tile::warp_row() + 16 * i + 8 * half + lane / 4;
        const int column = Tile::warp_column() + 8 * j + lane % 4 * 2;
        const auto own = sum[i][j][2 * half], next = sum[i][j][2 * half + 1];
        if constexpr (IN_SQUARES) {
          const auto below = __shfl_xor_sync(~0u, own, 4), across = __shfl_xor_sync(~0u, next, 4);
          if (row % 2 == 0)
            tile[row / 2][column / 2] =
                conjugate ? Sum{own + across, below - next} : Sum{own - across, below + next};
        } else if constexpr (Tile::REALS == 2) {
          *(ROWS_FASTEST ? &tile[column / 2][row] : &tile[row][column / 2]) = Sum{own, next};
        } else if (ROWS_FASTEST) {
          tile[column][row] = own;
          tile[column + 1][row] = next;
        } else {
          const Pack<Sum, 2> two{own, next};
          *reinterpret_cast<Pack<Sum, 2>*>(&tile[row][column]) = two;
        }
      }
}

// Where a thread's V neighbours of a line of the result are; whether they are a whole pack of it in memory, or none.
template <int V>
struct Neighbours {
  Index place[V];
  bool whole, none;

  template <typename Matrices>
  __device__ Neighbours(const Matrices& matrices, const Index* places, bool rows, const void* out) {
    none = true;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      place[v] = places[v];
      none = none & (place[v] == NONE);
    }
    whole = reinterpret_cast<size_t>(out) % 16 == 0 && place[0] != NONE && place[V - 1] == place[0] + V - 1 &&
            place[0] % V == 0 && matrices.neighbours(rows) && matrices.whole_packs(rows, V);
  }
};

// What is done with sums: whole packs of them are stored as they are or rounded, or else all that is asked for is done.
enum Finish { AS_SUMS, ROUNDED, ANYHOW };

template <int REALS>
__device__ inline Finish finish_of(const Params& p, bool whole, const void* bias) {
  if (whole && p.partial) return AS_SUMS;
  const bool plain = !bias && p.activation == IDENTITY && !p.accumulate && (REALS == 1 || p.conjugate != 2);
  return whole && plain ? ROUNDED : ANYHOW;
}

// Stores the LINES of a tile of sums; `channel` is that of the thread's first neighbour in the first line.
template <Finish FINISH, typename T, bool ROWS_FASTEST, int LINES, int LENGTH, int THREADS, int V, int PITCH>
__device__ inline void store_lines(const Params& p, int thread, const Index* lines, const Neighbours<V>& neighbours,
                                   const Accumulator<T> (*tile)[PITCH], void* out, const void* bias, Index channel) {
  using Sums = Pack<Accumulator<T>, V>;
  each_line<LINES, LENGTH, THREADS>(thread, lines, tile, [&](int line, Index start, Sums sums) {
    const Index first = start + neighbours.place[0];
    if constexpr (FINISH == AS_SUMS) {
      *reinterpret_cast<Sums*>(static_cast<Accumulator<T>*>(out) + first) = sums;
    } else if constexpr (FINISH == ROUNDED) {
      Pack<T, V> pack;
#pragma unroll
      for (int v = 0; v < V; ++v) pack.value[v] = Narrow<T>::from(sums.value[v]);
      *reinterpret_cast<Pack<T, V>*>(static_cast<T*>(out) + first) = pack;
    } else {
      finish_pack<T>(p, out, start, neighbours.place, neighbours.whole, sums, bias,
                     channel + (ROWS_FASTEST ? line : 0), ROWS_FASTEST ? 0 : 1);
    }
  });
}

// Stores a tile. It goes through shared memory, so that a thread has neighbours of the result: pixels of a channel if
// ROWS_FASTEST, otherwise channels of a pixel. They are stored at once where they are neighbours in memory too.
template <typename Tile, bool ROWS_FASTEST, bool IN_SQUARES = false, typename Matrices>
__device__ inline void store_tile(const Matrices& matrices, const Shared<Tile>& shared, unsigned char* ring,
                                  const typename Tile::Sums& sum, void* out, const void* bias, Index channel) {
  using T = typename Tile::Product::Result;
  using Sum = Accumulator<T>;
  constexpr int ROWS = IN_SQUARES ? Tile::BM / Tile::REALS : Tile::BM, COLUMNS = Tile::BN / Tile::REALS;
  constexpr int V = 16 / sizeof(Sum), LINES = ROWS_FASTEST ? COLUMNS : ROWS, LENGTH = ROWS_FASTEST ? ROWS : COLUMNS;
  constexpr int THREADS = Tile::THREADS, PITCH = LENGTH + (ROWS_FASTEST ? 4 : 8);
  const auto tile = reinterpret_cast<Sum(*)[PITCH]>(ring);
  put_sums<Tile, ROWS_FASTEST, IN_SQUARES>(sum, tile, matrices.p.conjugate);
  __syncthreads();  // the tile is there
  const int thread = threadIdx.x, first = thread % (LENGTH / V) * V;
  const Index* const lines = ROWS_FASTEST ? shared.columns : shared.rows;
  const Neighbours<V> mine(matrices, (ROWS_FASTEST ? shared.rows : shared.columns) + first, ROWS_FASTEST, out);
  if (mine.none) return;
  const Params& p = matrices.p;
  if (!ROWS_FASTEST) channel += first;
  switch (finish_of<Tile::REALS>(p, mine.whole, bias)) {
    case AS_SUMS:
      store_lines<AS_SUMS, T, ROWS_FASTEST, LINES, LENGTH, THREADS>(p, thread, lines, mine, tile, out, bias, channel);
      break;
    case ROUNDED:
      store_lines<ROUNDED, T, ROWS_FASTEST, LINES, LENGTH, THREADS>(p, thread, lines, mine, tile, out, bias, channel);
      break;
    default:
      store_lines<ANYHOW, T, ROWS_FASTEST, LINES, LENGTH, THREADS>(p, thread, lines, mine, tile, out, bias, channel);
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
  const PixelsByChannels<typename Tile::Product::Element, CHANNEL_LANES, Tile::VECTOR, Tile::PLANAR, SLOTS,
                         Tile::REALS>
      matrices(p, axis, a, b, channels, results, filter_stride, channel_stride, group, part, tile_m * Tile::BM,
               int(tile_n) * Tile::BN, Tile::BM, Tile::BN,
               reinterpret_cast<Index*>(ring + Ring<Tile, true, B_K_MAJOR>::SHOWN));
  put_places(matrices, shared.rows, shared.columns, shared.cells, shared.first);
  if (threadIdx.x == 0) shared.channel = matrices.channel / Tile::REALS;
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
  const FiltersByTaps<typename Product::Element, CHANNEL_LANES, Tile::VECTOR, PLANAR, SLOTS, Tile::REALS> matrices(
      p, axis, a, b, digit[2], part, int(digit[1]) * BM, int(digit[0]) * BN, BM, BN,
      reinterpret_cast<Index*>(ring + Ring<Tile, false, false>::SHOWN));
  put_places(matrices, shared.rows, shared.columns, shared.cells, shared.first);
  typename Tile::Sums sum;
  multiply<Tile, false, false>(matrices, shared, ring, sum);
  store_tile<Tile, false, (Tile::REALS > 1)>(matrices, shared, ring, sum, out, nullptr, 0);
  if (SHOWN) end_unless_shown(p.mode);
}
