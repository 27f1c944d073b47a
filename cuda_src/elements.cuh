// Copies of arrays element by element, without a division for each:
//
//   out[i] = convert(a[rows[i / columns] + places[i % columns]])
//
// i is an element's number, whose digits are the indices of a canonical array. The first `chunk` of them make its column,
// of at least 32 where there are so many, the others its row. What a digit adds to the place in `a` is any function of
// it: a stride times the cell that a padding mode shows, say. A block owns 8 elements for each of its threads; it makes
// two tables in shared memory first, by divisions as many as it has rows and columns, and a thread writes 16 bytes at
// once, whose elements it reads one by one: neighbours share the sectors, and all loads are under way together.
//
// Preconditions (Draft.by_tables in cuda/schedule.py): `out` is dense, in the order of the numbers, and aligned to 16
// bytes; digit[4] divides by the columns. Nothing is computed, and every element has one thread: all orders of threads
// give the same. It exists since a copy is bound by memory only if an element takes less than about 20 instructions.
#pragma once
#include "indexing.cuh"

#include <ptx/base.cuh>

// The rows and columns of a block's COUNT elements. Of rows that are longer than that there are two at the most, and
// then columns count from the block's first element. Behind the last column the first ones follow once more, so that a
// vector's columns have numbers side by side.
template <int THREADS>
struct Tables {
  static constexpr int EACH = 8, COUNT = THREADS * EACH, ROWS = COUNT / 32 + 2;

  Index rows[ROWS + 1];
  Index places[(COUNT + EACH) * 9 / 8 + 1];

  // Where a column is in its table: neighbouring threads, whose vectors are side by side, meet different banks.
  __device__ static unsigned slot(unsigned column) { return column + (column >> 3); }
};

// What `number` has of a block's elements, the first of which has the number `begin`.
struct Grid {
  Index row, column, columns;  // those of the first one, and of how many
  bool wide;

  __device__ Grid(const Params& p, Index begin, int count) : columns(p.digit[4].divisor), wide(columns > count) {
    row = divide(begin, p.digit[4]);
    column = begin - row * columns;
  }
};

// at(number, first, end) is what the digits first, ... add to the place, if they, and all slower ones, make `number`.
template <typename From, typename To, int THREADS, typename At, typename Convert>
__device__ inline void copy_elements(const Params& p, const From* a, void* out, const At& at, const Convert& convert) {
  using Tables = ::Tables<THREADS>;
  constexpr int V = 16 / sizeof(To), COUNT = Tables::COUNT;
  struct alignas(16) Vector {
    To value[V];
  };
  __shared__ Tables table[1];
  Index(&rows)[Tables::ROWS + 1] = table[0].rows;
  auto& places = table[0].places;
  const int thread = threadIdx.x % THREADS, fast = int(p.chunk);
  const Index begin = Index(blockIdx.x) * COUNT;
  const int items = int(min_index(p.items - begin, COUNT));
  const Grid grid(p, begin, COUNT);
  const ShortDivisor columns = shortened(p.digit[4]);
  const int high = grid.wide ? 2 : int(divide(unsigned(grid.column) + items - 1, columns)) + 1;
  const int across = grid.wide ? items : int(grid.columns) + V;
#pragma unroll 1
  for (int i = thread; i < high + across; i += THREADS) {
    const bool is_row = i < high;
    Index number = is_row ? grid.row + i : grid.wide ? grid.column + (i - high) : i - high;
    if (!is_row && number >= grid.columns) number -= grid.columns;
    const Index place = at(number, is_row ? fast : 0, is_row ? 5 : fast);
    if (is_row)
      rows[i] = place;
    else
      places[Tables::slot(i - high)] = place;
  }
  __syncthreads();  // the tables are there
  const unsigned edge = unsigned(min_index(grid.columns - grid.column, COUNT));  // where the next of long rows begins
#pragma unroll
  for (int first = thread * V; first < COUNT; first += THREADS * V) {
    const unsigned number = grid.wide ? 0 : unsigned(grid.column) + first, whole = divide(number, columns);
    const unsigned row = grid.wide ? unsigned(first) >= edge : whole;
    const unsigned column = grid.wide ? first : number - whole * columns.divisor;
    const unsigned in_row = grid.wide ? (row ? COUNT : edge - first) : columns.divisor - column;  // so many elements
    const int left = items - first;
    const From* const source = a + (left > 0 ? rows[row] : 0);
    const From* const next = a + (left > int(in_row) ? rows[row + 1] : 0);
    From value[V];
#pragma unroll
    for (int i = 0; i < V; ++i)
      value[i] = load_if((i < int(in_row) ? source : next) + places[Tables::slot(column + i)], i < left);
    Vector vector;
#pragma unroll
    for (int i = 0; i < V; ++i) vector.value[i] = convert(value[i]);
    To* const result = static_cast<To*>(out) + begin + first;
    if (left >= V)
      *reinterpret_cast<Vector*>(result) = vector;
    else
#pragma unroll
      for (int i = 0; i < V; ++i)
        if (i < left) result[i] = vector.value[i];
  }
}
