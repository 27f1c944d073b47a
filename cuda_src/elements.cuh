// Copies of arrays element by element, without a division for each:
//
//   out[i] = convert(a[rows[i / columns] + places[i % columns]])
//
// i is an element's number, whose digits are the indices of a canonical array. The first `chunk` of them make its
// column, of at least 32 where there are so many, the others its row. What a digit adds to the place in `a` is any
// function of it: a stride times the cell that a padding mode shows, say. A block owns so many elements for each of its
// threads; it makes two tables in shared memory first, by divisions as many as it has rows and columns, and a thread
// writes 16 bytes at once, whose elements it reads one by one: neighbours share the sectors, and all loads are under
// way together.
//
// Preconditions (Draft.by_tables in cuda/schedule.py): `out` is dense, in the order of the numbers, and aligned to 16
// bytes; digit[4] divides by the columns. Nothing is computed, and every element has one thread: all orders of threads
// give the same. It exists since a copy of 16-bit elements is bound by memory only if one takes less than about 40
// instructions of a thread.
#pragma once
#include "indexing.cuh"

#include <ptx/base.cuh>

// How many elements a thread copies.
constexpr int COPIED = 16;

// The rows and columns of a block's COUNT elements, and what they add to an element's place. Of rows that are longer
// than that there are two at the most, and then columns count from the block's first element. Behind the last column
// the first ones follow once more, so that a vector's columns have numbers side by side; and behind the last row one
// more.
template <int THREADS, int EACH>
struct Elements {
  static constexpr int COUNT = THREADS * EACH, WRAP = 8, ROWS = COUNT / 32 + 3;

  struct Places {
    Index rows[ROWS], columns[(COUNT + WRAP) * 9 / 8 + 1];

    // Neighbouring threads, whose vectors are side by side, meet different banks.
    __device__ static unsigned slot(unsigned column) { return column + (column >> 3); }
  };
  // Elements side by side: the row and the column of the first, and how many are left in its row.
  struct Stretch {
    unsigned row, column;
    int in_row;
  };

  Index begin, row, column, columns;  // the block's first element, and its row and column, of how many
  ShortDivisor by_columns;
  int items;  // of the block
  bool wide;

  __device__ explicit Elements(const Params& p)
      : begin(Index(blockIdx.x) * COUNT),
        columns(p.digit[4].divisor),
        by_columns(shortened(p.digit[4])),
        items(int(min_index(p.items - begin, COUNT))),
        wide(columns > COUNT) {
    row = divide(begin, p.digit[4]);
    column = begin - row * columns;
  }
  // Call set(which, row or column, number, first, end) for each row and column: its number is what the digits first,
  // ... and all that are slower make, and its place depends on those before `end`.
  template <typename Set>
  __device__ void each(const Params& p, const Set& set) const {
    const int fast = int(p.chunk), high = wide ? 3 : int(divide(unsigned(column) + items - 1, by_columns)) + 2;
    const int all = high + (wide ? items : int(columns) + WRAP);
#pragma unroll 1
    for (int i = threadIdx.x; i < all; i += THREADS) {
      const bool is_row = i < high;
      Index number = is_row ? row + i : wide ? column + (i - high) : i - high;
      if (!is_row && number >= columns) number -= columns;
      set(is_row, is_row ? i : int(Places::slot(i - high)), number, is_row ? fast : 0, is_row ? 5 : fast);
    }
  }
  __device__ Stretch stretch(int first) const {
    const unsigned number = wide ? 0 : unsigned(column) + first, whole = divide(number, by_columns);
    const unsigned edge = unsigned(min_index(columns - column, COUNT));  // where the second of long rows begins
    if (wide) {
      const bool second = unsigned(first) >= edge;
      return {second, unsigned(first), second ? COUNT : int(edge) - first};
    }
    const unsigned own = number - whole * by_columns.divisor;
    return {whole, own, int(by_columns.divisor - own)};
  }
};

// at(number, first, end) is what the digits first, ... add to the place, if they, and all slower ones, make `number`.
template <typename From, typename To, int THREADS, typename At, typename Convert>
__device__ inline void copy_elements(const Params& p, const From* a, void* out, const At& at, const Convert& convert) {
  using Elements = ::Elements<THREADS, COPIED>;
  using Places = typename Elements::Places;
  constexpr int V = 16 / sizeof(To);
  struct alignas(16) Vector {
    To value[V];
  };
  __shared__ Places table[1];
  Places& places = table[0];
  const Elements elements(p);
  elements.each(p, [&](bool is_row, int i, Index number, int first, int end) {
    (is_row ? places.rows : places.columns)[i] = at(number, first, end);
  });
  __syncthreads();  // the tables are there
  To* const result = static_cast<To*>(out) + elements.begin;
  const int thread = threadIdx.x % THREADS;
  if (elements.items < Elements::COUNT) {  // the last block
#pragma unroll 1
    for (int i = thread; i < elements.items; i += THREADS) {
      const auto own = elements.stretch(i);
      result[i] = convert(a[places.rows[own.row] + places.columns[Places::slot(own.column)]]);
    }
    return;
  }
#pragma unroll 1
  for (int first = thread * V; first < Elements::COUNT; first += THREADS * V) {
    const auto own = elements.stretch(first);
    const From* const source = a + places.rows[own.row];
    const From* const next = a + places.rows[own.row + 1];
    From value[V];
#pragma unroll
    for (int i = 0; i < V; ++i)
      value[i] = load_if((i < own.in_row ? source : next) + places.columns[Places::slot(own.column + i)], true);
    Vector vector;
#pragma unroll
    for (int i = 0; i < V; ++i) vector.value[i] = convert(value[i]);
    *reinterpret_cast<Vector*>(result + first) = vector;
  }
}
