// Convolution and its gradients where groups have one channel, or few, without a matrix product, by tiles in shared
// memory.
//
//   fprop  y[n, k, p] = sum over c, r of  x[n, c, p s - a + r d] w[k, c, r]           of one group
//   dgrad  dx[n, c, h] = sum over k, r with p s - a + r d = h of  dy[n, k, p] conj(w[k, c, r])
//   wgrad  dw[k, c, r] = sum over n, p of  dy[n, k, p] conj(x[n, c, p s - a + r d])
//
// For every dtype, rank, layout and padding mode. The launch orders the spatial axes: a block has a tile of rows and
// columns, the last two, of several channels, and goes over the first.
//
// A block brings the source cells that its tile meets to shared memory, each one once, widened to the accumulator's
// type, with zeros or what the padding mode says beside the source. A thread owns a strip of ROWS x OUT results of one
// channel of its group: it reads each line of cells once and adds what they contribute to all results of the strip, in
// registers, of one channel of the source after the other; then it does the same for the group's next results. All
// orders are fixed.
//
//   LAST   32 neighbouring threads have 32 channels, cells of neighbouring channels are neighbours in shared memory,
//          and global memory is read in vectors of 16 bytes of channels where it allows
//   else   neighbouring threads have neighbouring strips of a channel, or several channels of a group; cells of a line
//          are neighbours
//
// SEVERAL says that groups have several channels. With extents R x S as template arguments loops over taps are unrolled
// and a filter lies in registers; results are rounded, after relu at the most. R = 0 is any filter, in passes of as
// many taps as fit in shared memory, and all else that can be asked for; SHOWN, where padding shows cells.
//
// On an axis of stride s and dilation d, results d / g apart, g = gcd(s, d), read every d-th cell, each of them STEP =
// s / g cells further than the one before: a tile has such results only, so that in its own numbers no filter is
// dilated. dgrad is a gather with the filter reversed: of stride 1; with SPREAD = 2, where taps meet every second
// result, the first one or, ODD, the next; or of one residue of the stride.
//
// What launches say (cuda/depthwise.py): `channels` are a block's groups; digit[] counts tiles of columns, of rows, of
// groups and runs of their results, and the first axis's cells; digit[4] and digit[5] are a tile's strips along columns
// and rows; pixel[] how many passes a filter's columns and rows take (in wgrad tiles or passes of dy, and its first
// axis), and how many results of a group threads have at once; `filters` are a group's channels of the source, of which
// `splits` are brought at once, `items` those of the result, and `group` is how many runs they come in (in wgrad
// `filters` are those of dy, and `group` is how many pairs they make with those of x, of which a block does one, or all
// if SEVERAL); by_stride is of columns and rows how many results interleave, of the first axis how many cells a line of
// a tile has; `chunk` is how many images, or in wgrad tiles, a block does; `lanes`, a power of two, is how many
// neighbouring threads copy channels of one position.
//
// Preconditions (cuda/depthwise.py): groups have one channel of x, if not SEVERAL, which are not LAST; coordinates fit
// 31 bits; what a block needs fits shared memory. It exists since these are bound by memory: as a product they are a
// few rows thin.
#pragma once
#include "indexing.cuh"
#include "numerics.cuh"
#include "padding.cuh"

// A tile's share of one axis. Cell i of it is cell source + i * delta of the source, result i is result + i * apart.
struct Span {
  int source, delta, sources;
  int result, apart, results;
  int left;  // results from here on

  __device__ Index result_at(int i) const { return result + i * apart; }
};

// Tiles of `length` results follow one another, those of one `apart` from another interleaved.
__device__ inline Span span_of(const GatherAxis& axis, const Divisor& interleaved, int index, int length, int step,
                               int spread) {
  const int apart = int(interleaved.divisor), run = divide_small(index, interleaved), phase = index - run * apart;
  const int first = run * length, result = phase + first * apart;
  return {axis.start + phase * axis.step + first * step / spread * axis.delta,
          axis.delta,
          axis.sources,
          result,
          apart,
          axis.outputs,
          divide_small(max(axis.outputs - result + apart - 1, 0), interleaved)};
}

// A gather that the launch has described: see _axes in cuda/depthwise.py. With SPREAD = 2 result o and tap r meet where
// `begin` + o + r is even, in the cell that is half of it.
__device__ inline GatherAxis described_axis(const Axis& a, int spread, int odd) {
  const int taps = int(a.filter), begin = -int(a.padding);
  const bool reversed = a.period < 0;
  return {int(a.output),
          int(a.input),
          taps,
          int(a.stride),
          int(a.dilation),
          (begin - odd) / spread,
          0,
          1,
          reversed ? taps - 1 : 0,
          reversed ? -1 : 1};
}

// How many cells `count` results and `taps` taps meet.
template <int SPREAD = 1, int ODD = 0>
__device__ inline int cells_of(int count, int step, int taps) {
  return ((count - 1) * step + taps - 1 + ODD) / SPREAD + 1;
}

// Where cells, or results, of a block lie in shared memory.
template <typename Acc, bool LAST>
struct Shelf {
  static constexpr int CELL = LAST ? 32 : 1, BANKS = 128 / int(sizeof(Acc));
  Acc* data;
  int plane, line;  // from one channel, and one line, to the next

  // Lines of `width` cells, in whole vectors, and `lines` of them. If `apart` a line is never as long as all banks are
  // wide, in which strips of a column would meet.
  static __device__ Shelf of(Acc* data, int lines, int width, bool apart) {
    const int cells = (width + 3) / 4 * 4, line = LAST ? width * CELL : cells + (apart && cells % BANKS == 0 ? 4 : 0);
    return {data, LAST ? 1 : lines * line, line};
  }
  __device__ Acc* at(int channel, int row, int column) const {
    return data + channel * plane + row * line + column * CELL;
  }
};

// How many channels a tile has, and from one to the next in an array.
struct Channels {
  int count;
  Index step;
};

// A block's groups, from the first on, and a number that is left: of a run of results, in wgrad of a pair of channels.
struct GroupTile {
  int first, count, number;

  __device__ GroupTile(const Params& p, int index) {
    const int tile = divide_small(index, p.group);
    number = index - tile * int(p.group.divisor);
    first = tile * int(p.channels);
    count = min(int(p.channels), int(p.groups) - first);
  }
};

// Which cells a thread copies: channels, rows and columns, each from its own on in steps.
struct Share {
  int channel, row, column;
  int channels, rows, columns;

  // Of `threads`, `lanes` neighbours, a power of two, copy one position; so many as there are columns a line; and if
  // lanes are not `all` channels, what is left copies others. A few threads may be left over: theirs is no column.
  __device__ Share(int threads, int lanes, bool all, int some, int width) {
    const int lines = max(some, 1);  // a residue without taps meets none
    const int lane_bits = __popc(lanes - 1), places = threads >> lane_bits, place = int(threadIdx.x) >> lane_bits;
    const int all_rows = max(places / width, 1), slot = place / width, groups = all ? 1 : max(all_rows / lines, 1);
    rows = min(all_rows, lines);
    row = slot % rows;
    column = slot / rows < groups ? place - slot * width : width;
    columns = places;
    channel = (int(threadIdx.x) & (lanes - 1)) + (slot / rows << lane_bits);
    channels = groups << lane_bits;
  }
};

template <typename T>
constexpr int VECTOR_OF = 16 / int(sizeof(T));

// Whether an array can be read in vectors of channels: they are contiguous, and all else is aligned.
template <typename T>
__device__ inline bool in_vectors(const void* data, const Index (&stride)[5], Index channels) {
  constexpr int VECTOR = VECTOR_OF<T>;
  const Index steps = stride[0] | stride[2] | stride[3] | stride[4] | channels;
  return stride[1] == 1 && steps % VECTOR == 0 && reinterpret_cast<size_t>(data) % (VECTOR * sizeof(T)) == 0;
}

// The cell that a coordinate shows, or -1.
template <bool SHOWN>
__device__ inline int shown(Index mode, int at, int sources) {
  const int cell = SHOWN ? near_source(mode, at, sources) : at;
  return unsigned(cell) < unsigned(sources) ? cell : -1;
}

// A part of an array on its way to shared memory: `lines` of cells from its spans on, of which the first `places` of
// each line are wanted, and elements from one row or column to the next.
struct Part {
  Span rows, columns;
  int lines, places;
  Index row_step, column_step;
};

// Put a vector of neighbouring channels down, widened, 16 bytes at once. Where these are two, every second position has
// the second one first: the threads of a request would otherwise meet in half of the banks.
template <typename T, int VECTOR>
__device__ inline void put_vector(const Pack<T, VECTOR>& pack, bool conjugate, Accumulator<T>* to) {
  using Acc = Accumulator<T>;
  constexpr int WIDE = VECTOR < 16 / int(sizeof(Acc)) ? VECTOR : 16 / int(sizeof(Acc)), COUNT = VECTOR / WIDE;
  const int swapped = COUNT == 2 ? int(threadIdx.x) / (32 / VECTOR) % 2 : 0;
  const auto& parts = reinterpret_cast<const Pack<T, WIDE>(&)[COUNT]>(pack);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    const Pack<T, WIDE> part = swapped ? parts[COUNT - 1 - i] : parts[i];
    Pack<Acc, WIDE> wide;
#pragma unroll
    for (int v = 0; v < WIDE; ++v) wide.value[v] = conjugate_if(conjugate, widen(part.value[v]));
    *reinterpret_cast<Pack<Acc, WIDE>*>(to + (swapped ? COUNT - 1 - i : i) * WIDE) = wide;
  }
}

// Bring a part's cells to shared memory, VECTOR channels at once, or zeros if all is beside the source. FEW says that
// there are few registers for it; vectors of 16-bit elements, and single ones, take more.
template <typename T, int THREADS, int VECTOR, bool LAST, bool SHOWN, bool FEW>
__device__ inline void bring(const T* source, bool beside, const Channels& channels, const Share& share,
                             const Part& part, Index mode, bool conjugate, const Shelf<Accumulator<T>, LAST>& to) {
  using Acc = Accumulator<T>;
  constexpr int AT_ONCE = (LAST ? VECTOR == 1 || VECTOR == 8 : FEW) ? 2 : 4;
  constexpr int LANES = 32 / VECTOR;
  const int columns = LAST ? THREADS / LANES : share.columns;
  const Index row_step = share.rows * part.rows.delta * part.row_step;
#pragma unroll 1
  for (int column = share.column; column < part.places; column += columns) {
    const int w = shown<SHOWN>(mode, part.columns.source + column * part.columns.delta, part.columns.sources);
    const T* place = source + w * part.column_step;
    if (!SHOWN) place += (part.rows.source + share.row * part.rows.delta) * part.row_step;
    Acc* cell = to.at(0, share.row, column);
    const int cell_step = share.rows * to.line;
#pragma unroll 1
    for (int row = share.row; row < part.lines; row += AT_ONCE * share.rows) {
      const T* from[AT_ONCE];
      bool inside[AT_ONCE];
#pragma unroll
      for (int u = 0; u < AT_ONCE; ++u) {
        const int at = part.rows.source + (row + u * share.rows) * part.rows.delta;
        const int h = shown<SHOWN>(mode, at, part.rows.sources);
        inside[u] = w >= 0 && h >= 0 && !beside && row + u * share.rows < part.lines;
        from[u] = SHOWN ? place + h * part.row_step : place + u * row_step;
      }
      if constexpr (LAST) {
        const int channel = int(threadIdx.x) % LANES * VECTOR;
        const Index offset = channel * channels.step;
        Pack<T, VECTOR> pack[AT_ONCE];
#pragma unroll
        for (int u = 0; u < AT_ONCE; ++u)
          pack[u] = load_if(reinterpret_cast<const Pack<T, VECTOR>*>(from[u] + offset),
                            inside[u] && channel < channels.count);
#pragma unroll
        for (int u = 0; u < AT_ONCE; ++u)
          if (row + u * share.rows < part.lines) put_vector(pack[u], conjugate, cell + u * cell_step + channel);
      } else {
        const Index channel_step = share.channels * channels.step;
        Acc* plane = cell + share.channel * to.plane;
#pragma unroll
        for (int u = 0; u < AT_ONCE; ++u) from[u] += share.channel * channels.step;
#pragma unroll 2
        for (int c = share.channel; c < channels.count; c += share.channels) {
          T value[AT_ONCE];
#pragma unroll
          for (int u = 0; u < AT_ONCE; ++u) {
            value[u] = load_if(from[u], inside[u]);
            from[u] += channel_step;
          }
#pragma unroll
          for (int u = 0; u < AT_ONCE; ++u)
            if (row + u * share.rows < part.lines) plane[u * cell_step] = conjugate_if(conjugate, widen(value[u]));
          plane += share.channels * to.plane;
        }
      }
      if (!SHOWN) place += AT_ONCE * row_step;
      cell += AT_ONCE * cell_step;
    }
  }
}

// How a block brings cells: in vectors of channels if the array is `whole`, in lines of so many cells.
template <typename T, int THREADS, bool LAST, bool SHOWN, bool FEW>
struct Bring {
  bool whole;
  Share share;

  __device__ Bring(bool whole, int lanes, int lines, int width)
      : whole(whole), share(THREADS, whole ? 32 / VECTOR_OF<T> : lanes, LAST, lines, width) {}
  __device__ void operator()(const T* source, bool beside, const Channels& channels, const Part& part, Index mode,
                             bool conjugate, const Shelf<Accumulator<T>, LAST>& to) const {
    if constexpr (LAST) {
      if (whole) {
        bring<T, THREADS, VECTOR_OF<T>, LAST, SHOWN, FEW>(source, beside, channels, share, part, mode, conjugate, to);
        return;
      }
    }
    bring<T, THREADS, 1, LAST, SHOWN, FEW>(source, beside, channels, share, part, mode, conjugate, to);
  }
};

// Read cells[FIRST], ... of a line that begins at a whole vector of VECTOR of them.
template <bool LAST, int VECTOR, int FIRST = 0, int COUNT, typename Acc>
__device__ inline void read_line(const Acc* line, Acc (&cell)[COUNT]) {
  constexpr int WIDE = LAST || COUNT < VECTOR ? 1 : VECTOR;
#pragma unroll
  for (int i = FIRST; i < COUNT; i += WIDE) {
    const auto pack = *reinterpret_cast<const Pack<Acc, WIDE>*>(line + (i - FIRST) * (LAST ? 32 : 1));
#pragma unroll
    for (int v = 0; v < WIDE; ++v)
      if (i + v < COUNT) cell[i + v] = pack.value[v];
  }
}

// The largest vector in which lines can be read that begin at multiples of `apart` cells.
template <typename Acc>
__device__ constexpr int vector_of(int apart) {
  int vector = 16 / int(sizeof(Acc));
  while (apart % vector != 0) vector /= 2;
  return vector;
}

// How far apart neighbouring taps are in shared memory, where threads of 32 channels read them: 33, so that taps of one
// channel can be written at once, too.
template <bool LAST>
constexpr int TAP = LAST ? 33 : 1;

// Add what unrolled taps contribute to a strip: result (o, q) and tap (r, s) meet in cell ((o STEP + r + ODD) / SPREAD,
// (q STEP + s + ODD) / SPREAD), where that is one.
template <bool LAST, int R, int S, int STEP, int SPREAD, int ODD, int ROWS, int OUT, typename Acc>
__device__ inline void add_taps(Acc (&sum)[ROWS][OUT], const Acc* cells, int pitch, const Acc* weights) {
  constexpr int LINES = ((ROWS - 1) * STEP + R - 1 + ODD) / SPREAD + 1;
  constexpr int WIDTH = ((OUT - 1) * STEP + S - 1 + ODD) / SPREAD + 1;
  Acc weight[R][S];
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int s = 0; s < S; ++s) weight[r][s] = weights[(r * S + s) * TAP<LAST>];
#pragma unroll 32
  for (int i = 0; i < LINES; ++i) {
    Acc cell[WIDTH];
    read_line<LAST, vector_of<Acc>(OUT * STEP / SPREAD)>(cells + i * pitch, cell);
#pragma unroll
    for (int o = 0; o < ROWS; ++o) {
      const int r = i * SPREAD - ODD - o * STEP;
      if (r >= 0 && r < R) {
#pragma unroll
        for (int s = 0; s < S; ++s)
#pragma unroll
          for (int q = 0; q < OUT; ++q)
            if ((q * STEP + s + ODD) % SPREAD == 0)
              sum[o][q] = multiply_add(cell[(q * STEP + s + ODD) / SPREAD], weight[r][s], sum[o][q]);
      }
    }
  }
}

// A run of taps on an axis.
struct Run {
  int begin, end;
};

// Add to the results of a strip's rows that are `active` what COUNT taps contribute to them, whose first one meets
// cell[0]; taps of row o begin `line` elements before those of row o - 1.
template <bool LAST, int TAP_STEP, int COUNT, int ROWS, int OUT, int CELLS, typename Acc>
__device__ inline void add_some(Acc (&sum)[ROWS][OUT], const Acc (&cell)[CELLS], const Acc* weights, int line,
                                const bool (&active)[ROWS]) {
#pragma unroll
  for (int o = 0; o < ROWS; ++o, weights -= line) {
    if (!active[o]) continue;
    Acc weight[COUNT];
    if constexpr (LAST) {
#pragma unroll
      for (int u = 0; u < COUNT; ++u) weight[u] = weights[u * TAP_STEP];
    } else {
      read_line<false, 16 / int(sizeof(Acc))>(weights, weight);
    }
#pragma unroll
    for (int u = 0; u < COUNT; ++u)
#pragma unroll
      for (int q = 0; q < OUT; ++q) sum[o][q] = multiply_add(cell[q + u], weight[u], sum[o][q]);
  }
}

// The same for any number of taps, TAP_STEP apart in shared memory, and their lines `line`. Lines of cells are read
// once, four taps at a time.
template <bool LAST, int TAP_STEP, int ROWS, int OUT, typename Acc>
__device__ inline void add_runs(Acc (&sum)[ROWS][OUT], const Acc* cells, int pitch, int step_h, int step_w,
                                const Acc* weights, int line, const Run& rows, const Run& columns) {
  constexpr int CELL = LAST ? 32 : 1, TAPS = 4, VECTOR = 16 / int(sizeof(Acc));
  if (columns.begin >= columns.end) return;
#pragma unroll 1
  for (int i = rows.begin; i < rows.end + (ROWS - 1) * step_h; ++i) {
    bool active[ROWS];
#pragma unroll
    for (int o = 0; o < ROWS; ++o) active[o] = i - o * step_h >= rows.begin && i - o * step_h < rows.end;
    const Acc* from = cells + i * pitch + columns.begin * CELL;
    const Acc* taps = weights + i * line + columns.begin * TAP_STEP;
    if (step_w == 1) {
      Acc cell[OUT + TAPS];
      read_line<LAST, VECTOR>(from, cell);
      int left = columns.end - columns.begin;
#pragma unroll 2
      for (; left >= TAPS; left -= TAPS) {
        add_some<LAST, TAP_STEP, TAPS>(sum, cell, taps, step_h * line, active);
        taps += TAPS * TAP_STEP;
        from += TAPS * CELL;
#pragma unroll
        for (int q = 0; q < OUT; ++q) cell[q] = cell[q + TAPS];
        read_line<LAST, VECTOR, OUT>(from + OUT * CELL, cell);
      }
      if (left == 3) add_some<LAST, TAP_STEP, 3>(sum, cell, taps, step_h * line, active);
      if (left == 2) add_some<LAST, TAP_STEP, 2>(sum, cell, taps, step_h * line, active);
      if (left == 1) add_some<LAST, TAP_STEP, 1>(sum, cell, taps, step_h * line, active);
    } else {
#pragma unroll 1
      for (int s = columns.begin; s < columns.end; ++s, from += CELL, taps += TAP_STEP) {
        Acc cell[OUT];
#pragma unroll
        for (int q = 0; q < OUT; ++q) cell[q] = from[q * step_w * CELL];
        add_some<LAST, TAP_STEP, 1>(sum, cell, taps, step_h * line, active);
      }
    }
  }
}

// Add up for each of R x S taps what a strip's gradients contribute, of its first `rows` and `columns`: those that do
// not exist must not meet a cell, which may be infinite.
template <bool LAST, int R, int S, int STEP, int ROWS, int OUT, typename Acc>
__device__ inline void add_pairs(Acc (&sum)[R][S], const Acc* cells, int pitch, const Acc* grads, int grad_pitch,
                                 int rows, int columns) {
  constexpr int LINES = (ROWS - 1) * STEP + R, WIDTH = (OUT - 1) * STEP + S;
  bool there[OUT];
#pragma unroll
  for (int q = 0; q < OUT; ++q) there[q] = q < columns;
  Acc grad[ROWS][OUT];
#pragma unroll 32
  for (int i = 0; i < LINES; ++i) {
    if (i % STEP == 0 && i / STEP < ROWS)
      read_line<LAST, vector_of<Acc>(OUT)>(grads + i / STEP * grad_pitch, grad[i / STEP]);
    Acc cell[WIDTH];
    read_line<LAST, vector_of<Acc>(OUT * STEP)>(cells + i * pitch, cell);
#pragma unroll
    for (int o = 0; o < ROWS; ++o) {
      const int r = i - o * STEP;
      if (r < 0 || r >= R || o >= rows) continue;
#pragma unroll
      for (int q = 0; q < OUT; ++q)
#pragma unroll
        for (int s = 0; s < S; ++s)
          if (there[q]) sum[r][s] = multiply_add(grad[o][q], cell[q * STEP + s], sum[r][s]);
    }
  }
}

// Where a thread is in its block's tile: strips along columns, rows and channels, or channels first, which read the
// same cells; `group` is what is left of their number, for blocks that have more threads than strips.
struct Strip {
  int row, column, channel, group;
  bool exists;  // a block may have more threads than that
};

template <bool LAST, bool SEVERAL>
__device__ inline Strip strip_of(const Params& p, int channels, int groups) {
  const int along = int(p.digit[4].divisor), across = int(p.digit[5].divisor), thread = int(threadIdx.x);
  const int beside = LAST ? 32 : SEVERAL ? channels : 1, number = thread / beside;
  const int strip = divide_small(number, p.digit[4]), rest = divide_small(strip, p.digit[5]);
  const int column = number - strip * along, row = strip - rest * across;
  if (LAST || SEVERAL) return {row, column, thread - number * beside, rest, rest < groups};
  const int group = groups == 1 ? rest >= channels : rest / channels;
  return {row, column, rest - group * channels, group, group < groups};
}

// Where filters are: those of one group after the other, of so many channels of the source in each, of so many results,
// which neighbouring threads read.
struct FilterPlanes {
  int groups, results, channels;
  Index group_step, result_step, channel_step;
};

// Bring filters of R x S taps, or of so many, to shared memory, `plane` apart, their lines `line`, their taps
// TAP_STEP; of each group's results only `existing`.
template <bool SEVERAL, int THREADS, int R, int S, int TAP_STEP, typename T>
__device__ inline void bring_taps(const T* filters, const FilterPlanes& planes, int existing, Index row_step,
                                  Index column_step, int rows, int columns, bool conjugate, Accumulator<T>* to,
                                  int plane, int line) {
  const int width = S ? S : columns, taps = R ? R * S : rows * columns;
  const int count = planes.groups * (SEVERAL ? planes.results * planes.channels : 1) * taps;
#pragma unroll 2
  for (int i = threadIdx.x; i < count; i += THREADS) {
    const int number = i / taps, tap = i - number * taps, r = tap / width, s = tap - r * width;
    Index place = number * planes.group_step;
    if constexpr (SEVERAL) {
      const int row = number / planes.results, group = row / planes.channels, result = number - row * planes.results;
      if (result >= existing) continue;
      place = group * planes.group_step + result * planes.result_step +
              (row - group * planes.channels) * planes.channel_step;
    }
    to[number * plane + r * line + s * TAP_STEP] =
        conjugate_if(conjugate, widen(filters[place + r * row_step + s * column_step]));
  }
}

// Where a strip's results belong in the result, and which of them do.
struct Target {
  Index place, row_step, column_step;
  int bottom, right;
};

// Round and store a strip, WIDE neighbours of a row at once.
template <typename T, int WIDE, int ROWS, int OUT>
__device__ inline void put_strip(void* out, const Target& target, const Accumulator<T> (&sum)[ROWS][OUT]) {
  bool wanted[OUT];
#pragma unroll
  for (int q = 0; q < OUT; ++q) wanted[q] = q < target.right;
  T* row = static_cast<T*>(out) + target.place;
#pragma unroll
  for (int o = 0; o < ROWS; ++o, row += target.row_step) {
    if (o >= target.bottom) continue;
    T* cell = row;
#pragma unroll
    for (int q = 0; q < OUT; q += WIDE, cell += WIDE > 1 ? WIDE : target.column_step) {
      Pack<T, WIDE> pack;
#pragma unroll
      for (int v = 0; v < WIDE; ++v) pack.value[v] = Narrow<T>::from(sum[o][q + v]);
      if (wanted[q]) *reinterpret_cast<Pack<T, WIDE>*>(cell) = pack;
    }
  }
}

// Whether rows of an array can be stored in vectors of that many neighbours.
template <typename T>
__device__ inline bool rows_in_vectors(const void* data, const Index (&stride)[5], Index columns, int vector) {
  const Index steps = stride[0] | stride[1] | stride[2] | stride[3] | columns;
  return stride[4] == 1 && steps % vector == 0 && reinterpret_cast<size_t>(data) % (vector * sizeof(T)) == 0;
}

// -- fprop and dgrad --------------------------------------------------------------------------------

// A block's tile of results, at the digits (columns, rows, channels, first axis) of its number, of images n to end.
template <typename T, int THREADS, bool LAST, bool SHOWN, bool SEVERAL, int ROWS, int OUT, int R, int S, int STEP,
          int SPREAD, int ODD>
__device__ inline void gather_tile(const void* a, const void* b, const void* bias, void* out, const Params& p,
                                   const GatherAxis (&axis)[3], bool backward, int step_h, int step_w, int n, int end,
                                   const int (&digit)[4]) {
  using Acc = Accumulator<T>;
  constexpr bool ANY = R == 0;
  extern __shared__ __align__(16) unsigned char memory[];
  Acc* const shared = reinterpret_cast<Acc*>(memory);
  const GroupTile groups(p, digit[2]);
  const int held = int(p.channels), count = groups.count, sources = int(p.filters), results = int(p.items);
  const int together = SEVERAL ? int(p.splits) : 1, aside = SEVERAL ? int(p.pixel[2].divisor) : 1;
  const int height = int(p.digit[5].divisor) * ROWS, width = int(p.digit[4].divisor) * OUT;
  const Span rows = span_of(axis[1], p.axis[1].by_stride, digit[1], height, step_h, SPREAD);
  const Span columns = span_of(axis[2], p.axis[2].by_stride, digit[0], width, step_w, SPREAD);
  if (rows.left <= 0 || columns.left <= 0) return;  // residues and tiles that interleave may have less than others
  const int lines = min(rows.left, height), places = min(columns.left, width);

  // A pass takes as many taps as the launch has found to fit.
  const int taps_r = ANY ? int(tiles(axis[1].taps, p.pixel[1].divisor)) : R;
  const int taps_s = ANY ? int(tiles(axis[2].taps, p.pixel[0].divisor)) : S;
  const int tap_line = ANY && !LAST ? (taps_s + 3) / 4 * 4 : taps_s * TAP<LAST>;
  const int tap_plane = LAST ? 1 : taps_r * tap_line | (ANY ? 0 : 1);
  const int weights = LAST ? taps_r * tap_line : held * aside * together * tap_plane;
  Acc* const after = shared + (weights + 3) / 4 * 4;
  const int wide = int(p.axis[0].by_stride.divisor);  // cells_of(width, step_w, taps_s)
  const auto cells = Shelf<Acc, LAST>::of(after, cells_of<SPREAD, ODD>(height, step_h, taps_r), wide, SEVERAL);
  const Strip strip = strip_of<LAST, SEVERAL>(p, held * aside, 1);
  const int group = SEVERAL ? strip.channel / aside : strip.channel, own_result = strip.channel - group * aside;
  const Bring<T, THREADS, LAST, SHOWN, SHOWN> bring(LAST && sources == 1 && in_vectors<T>(a, p.a, p.groups),
                                                    int(p.lanes), cells_of<SPREAD, ODD>(lines, step_h, taps_r), wide);
  const T* const source = static_cast<const T*>(a) + Index(groups.first) * sources * p.a[1];
  const int filters_of_group = backward ? sources : results;
  const FilterPlanes planes{count,           aside, together, filters_of_group * p.b[0], backward ? p.b[1] : p.b[0],
                            backward ? p.b[0] : p.b[1]};
  const int run = SEVERAL ? int(tiles(results, p.group.divisor)) : 1, begin = groups.number * run;
  const int end_of_run = SEVERAL ? min(run, results - begin) : 1;
  const T* const filters = static_cast<const T*>(b) + p.b_start + groups.first * planes.group_step +
                           begin * planes.result_step + axis[1].tap_first * p.b[3] + axis[2].tap_first * p.b[4];
  const Index row_step = axis[1].out_step * p.out[3], column_step = axis[2].out_step * p.out[4];
  const int top = rows.result + strip.row * ROWS * rows.apart,
            left = columns.result + strip.column * OUT * columns.apart;
  const int first_result = (groups.first + group) * results + begin + own_result;
  const Index place = p.out_start + first_result * p.out[1] + axis[0].cell(digit[3]) * p.out[2] +
                      (axis[1].out_first + top * axis[1].out_step) * p.out[3] +
                      (axis[2].out_first + left * axis[2].out_step) * p.out[4];
  const bool plain = !LAST && columns.apart == 1 && axis[2].out_step == 1 && axis[2].out_first == 0;
  const bool in_fours = plain && rows_in_vectors<T>(out, p.out, axis[2].outputs, 4);
  const int slices = sources / together * axis[0].taps;
  const bool biased = bias && !p.partial && group < count;
  Acc more = !SEVERAL && biased ? widen(static_cast<const T*>(bias)[first_result * p.bias]) : Acc{};
  const bool rounded = !ANY || (p.activation == IDENTITY && !p.partial && !p.accumulate && p.conjugate != 2);

  if (SHOWN) end_unless_shown(p.mode);
  // Whether all cells are there at once, and stay for the next result.
  const bool at_once = slices == 1 && (!ANY || (taps_r >= axis[1].taps && taps_s >= axis[2].taps));
  bool again = false;
#pragma unroll 1
  for (; n < end; ++n) {
#pragma unroll 1
    for (int result = 0; result < end_of_run; result += aside) {
      const bool exists = strip.exists && group < count && (!SEVERAL || result + own_result < end_of_run);
      if (SEVERAL)
        more = biased && exists ? widen(static_cast<const T*>(bias)[(first_result + result) * p.bias]) : Acc{};
      Acc sum[ROWS][OUT];
#pragma unroll
      for (int o = 0; o < ROWS; ++o)
#pragma unroll
        for (int q = 0; q < OUT; ++q) sum[o][q] = more;
      int r = 0, s = 0, j = 0, t = 0;
#pragma unroll 1
      for (int slice = 0; slice < slices;) {
        const int here_r = ANY ? min(taps_r, axis[1].taps - r) : R, here_s = ANY ? min(taps_s, axis[2].taps - s) : S;
        if (ANY && (here_r <= 0 || here_s <= 0)) break;  // a residue may have no taps
        if (again) __syncthreads();  // all have read what was there
        if (!again || !at_once || end_of_run > aside)
          bring_taps<SEVERAL, THREADS, R, S, TAP<LAST>>(
              filters + result * planes.result_step + j * planes.channel_step + axis[0].filter_tap(t) * p.b[2] +
                  axis[1].tap_step * r * p.b[3] + axis[2].tap_step * s * p.b[4],
              planes, end_of_run - result, axis[1].tap_step * p.b[3], axis[2].tap_step * p.b[4], here_r, here_s,
              p.conjugate, shared, tap_plane, tap_line);
        again = true;
        if (!at_once || result == 0) {
          const int brought = cells_of<SPREAD, ODD>(lines, step_h, here_r);
          Part part{rows, columns, brought, cells_of<SPREAD, ODD>(places, step_w, here_s), p.a[3], p.a[4]};
          part.rows.source += r * rows.delta;
          part.columns.source += s * columns.delta;
          const int d = shown<SHOWN>(p.mode, axis[0].source(digit[3], t), axis[0].sources);
          const Index apart = (together == 1 ? sources : 1) * p.a[1];
          bring(source + n * p.a[0] + j * p.a[1] + d * p.a[2], d < 0, Channels{count * together, apart}, part, p.mode,
                false, cells);
        }
        __syncthreads();  // all is there
#pragma unroll 1
        for (int i = 0; i < together; ++i) {
          if (!exists) break;
          const Acc* const corner =
              cells.at(group * together + i, strip.row * ROWS * step_h / SPREAD, strip.column * OUT * step_w / SPREAD);
          const Acc* const weight = shared + ((group * together + i) * aside + own_result) * tap_plane;
          if constexpr (ANY)
            add_runs<LAST, TAP<LAST>>(sum, corner, cells.line, step_h, step_w, weight, tap_line, {0, here_r},
                                      {0, here_s});
          else
            add_taps<LAST, R, S, STEP, SPREAD, ODD>(sum, corner, cells.line, weight);
        }
        if (ANY && (s += taps_s) < axis[2].taps) continue;
        s = 0;
        if (ANY && (r += taps_r) < axis[1].taps) continue;
        r = 0;
        ++slice;
        if (++t < axis[0].taps) continue;
        t = 0;
        j += together;
      }

      if (!rounded) __syncthreads();  // all have read what was there
      if (!exists) continue;
      const Target target{place + n * p.out[0] + result * p.out[1], row_step * rows.apart, column_step * columns.apart,
                          rows.left - strip.row * ROWS, columns.left - strip.column * OUT};
      if constexpr (ANY) {
        if (!rounded) {
          const auto place_of = [&](int i) {
            const int o = i / OUT, q = i % OUT;
            const bool there = o < target.bottom && q < target.right;
            return there ? target.place + o * target.row_step + q * target.column_step : NONE;
          };
          finish_each<T, THREADS>(p, out, reinterpret_cast<const Acc(&)[ROWS * OUT]>(sum), nullptr,
                                  first_result + result, after, place_of);
          continue;
        }
      } else if (p.activation == RELU) {
#pragma unroll
        for (int o = 0; o < ROWS; ++o)
#pragma unroll
          for (int q = 0; q < OUT; ++q) sum[o][q] = sum[o][q] < 0 ? 0 : sum[o][q];
      }
      if (in_fours)
        put_strip<T, LAST ? 1 : 4>(out, target, sum);
      else
        put_strip<T, 1>(out, target, sum);
    }
  }
}

// The first COUNT digits of a block's number, which is below 2^30, and the rest.
template <int COUNT>
__device__ inline int take_small_digits(const Params& p, int index, int (&digits)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    const int rest = divide_small(index, p.digit[i]);
    digits[i] = index - rest * int(p.digit[i].divisor);
    index = rest;
  }
  return index;
}

// fprop, and dgrad where the launch has described it as a gather. Blocks run over tiles of columns, of rows, of
// channels, over the first axis, then over runs of `chunk` images, which share the filters.
template <typename T, int THREADS, bool LAST, bool SHOWN, int ROWS, int OUT, int R, int S, int STEP, int SPREAD,
          int ODD, bool SEVERAL = false>
__device__ void conv_gather_depthwise(const void* a, const void* b, const void* bias, void* out, const Params& p) {
  int digit[4];
  const int chunk = int(p.chunk), n = take_small_digits(p, int(blockIdx.x), digit) * chunk;
  const GatherAxis axis[3] = {described_axis(p.axis[0], 1, 0), described_axis(p.axis[1], SPREAD, ODD),
                              described_axis(p.axis[2], SPREAD, ODD)};
  const bool backward = p.axis[2].period < 0;
  const int step_h = R ? STEP : backward ? 1 : int(p.axis[1].period);
  const int step_w = R ? STEP : backward ? 1 : int(p.axis[2].period);
  gather_tile<T, THREADS, LAST, SHOWN, SEVERAL, ROWS, OUT, R, S, STEP, SPREAD, ODD>(
      a, b, bias, out, p, axis, backward, step_h, step_w, n, min(n + chunk, int(p.batch)), digit);
}

// dgrad of any stride: a gather for each of its residues, which blocks run over after the first axis.
template <typename T, int THREADS, int ROWS, int OUT>
__device__ void conv_residues_depthwise(const void* a, const void* b, const void* bias, void* out, const Params& p) {
  int digit[4];
  const int rest = take_small_digits(p, int(blockIdx.x), digit);
  const int stride_h = int(p.axis[1].stride), stride_w = int(p.axis[2].stride), plane = stride_h * stride_w;
  const int run = rest / (int(p.axis[0].stride) * plane), residue = rest - run * (int(p.axis[0].stride) * plane);
  __shared__ GatherAxis axis[3];
  if (threadIdx.x == 0) axis[0] = residue_axis(p.axis[0], residue / plane);
  if (threadIdx.x == 32) axis[1] = residue_axis(p.axis[1], residue % plane / stride_w);
  if (threadIdx.x == 64) axis[2] = residue_axis(p.axis[2], residue % plane % stride_w);
  __syncthreads();
  if (digit[3] >= axis[0].outputs) return;
  const int chunk = int(p.chunk), n = run * chunk;
  gather_tile<T, THREADS, false, false, false, ROWS, OUT, 0, 0, 1, 1, 0>(a, b, bias, out, p, axis, true, 1, 1, n,
                                                                  min(n + chunk, int(p.batch)), digit);
}

// -- wgrad ------------------------------------------------------------------------------------------

// Add up what the threads of a block have in registers, and store it: sum i of `place` is the sum over its `members`.
// A few sums at a time go through shared memory; eight threads add up a share of each, then one of them all.
template <typename T, int THREADS, int COUNT, typename Store>
__device__ inline void add_up(const Accumulator<T> (&sum)[COUNT], int places, int place_step, int members,
                              int member_step, Accumulator<T>* shared, Store store_sum) {
  using Acc = Accumulator<T>;
  constexpr int AT_ONCE = sizeof(Acc) > 8 ? 4 : 8;
  const int some = min(members, 8);
  Acc* const shares = shared + AT_ONCE * THREADS;
#pragma unroll
  for (int begin = 0; begin < COUNT; begin += AT_ONCE) {
    __syncthreads();  // shared memory has been read
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i)
      if (begin + i < COUNT) shared[i * THREADS + threadIdx.x] = sum[begin + i];
    __syncthreads();
    const int sums = min(AT_ONCE, COUNT - begin) * places;
#pragma unroll 1
    for (int e = threadIdx.x; e < sums * some; e += THREADS) {
      const int number = e / some, i = number / places, place = number - i * places;
      const Acc* const from = shared + i * THREADS + place * place_step;
      Acc total{};
      for (int member = e - number * some; member < members; member += some) total = total + from[member * member_step];
      shares[e] = total;
    }
    __syncthreads();
#pragma unroll 1
    for (int number = threadIdx.x; number < sums; number += THREADS) {
      Acc total = shares[number * some];
      for (int i = 1; i < some; ++i) total = total + shares[number * some + i];
      const int i = number / places;
      store_sum(number - i * places, begin + i, total);
    }
  }
}

// A block owns R x S taps, or a tile of all taps, at one cell of the first axis, of some channels, and one part of the
// tiles of dy. With R x S taps a thread goes over pixels: a strip of each tile. For any number of taps it is a gather
// again, of taps, with dy as the filter, and what threads there are more than strips share the pixels.
template <typename T, int THREADS, bool LAST, bool SHOWN, int ROWS, int OUT, int R, int S, int STEP,
          bool SEVERAL = false>
__device__ void conv_wgrad_depthwise(const void* a, const void* b, const void*, void* out, const Params& p) {
  using Acc = Accumulator<T>;
  constexpr bool ANY = R == 0;
  extern __shared__ __align__(16) unsigned char memory[];
  Acc* const shared = reinterpret_cast<Acc*>(memory);
  int digit[4];
  const int number = take_small_digits(p, int(blockIdx.x), digit);
  const GatherAxis axis[3] = {forward_axis(p.axis[0]), ANY ? described_axis(p.axis[1], 1, 0) : forward_axis(p.axis[1]),
                              ANY ? described_axis(p.axis[2], 1, 0) : forward_axis(p.axis[2])};
  const int step_h = ANY ? int(p.axis[1].period) : STEP, step_w = ANY ? int(p.axis[2].period) : STEP;
  const Divisor &apart_h = p.axis[1].by_stride, &apart_w = p.axis[2].by_stride;
  // Channels of a group, of which a block has all pairs; or there is one of x, and the block has its pair with one.
  const int of_y = int(p.filters), of_x = SEVERAL ? int(p.group.divisor) / of_y : 1, pairs = SEVERAL ? of_x * of_y : 1;
  const GroupTile tile(p, digit[2] * pairs);
  const int held = int(p.channels), count = tile.count, t = digit[3];
  const int along = int(p.digit[4].divisor), across = int(p.digit[5].divisor), strips = along * across;
  const int height = across * ROWS, width = along * OUT;
  const int groups = ANY ? THREADS / (strips * (LAST ? 32 : held * pairs)) : 1;
  // Tiles of dy: as many pixels as a pass takes, or those of the strips.
  const int grad_rows = ANY ? int(tiles(axis[1].taps, p.pixel[1].divisor)) : height;
  const int grad_columns = ANY ? int(tiles(axis[2].taps, p.pixel[0].divisor)) : width;
  const auto grads = Shelf<Acc, LAST>::of(shared, grad_rows, grad_columns, SEVERAL);
  Acc* const after = shared + (LAST ? grad_rows * grads.line : held * (SEVERAL ? of_y : 1) * grads.plane);
  const int wide = int(p.axis[0].by_stride.divisor);  // cells_of(width, step_w, taps)
  const auto cells = Shelf<Acc, LAST>::of(after, cells_of(height, step_h, ANY ? grad_rows : R), wide, SEVERAL);
  const Strip strip = strip_of<LAST, SEVERAL>(p, held * pairs, groups);
  const int group = SEVERAL ? strip.channel / pairs : 0, pair = strip.channel - group * pairs;
  const int x_plane = SEVERAL ? group * of_x + pair / of_y : strip.channel;
  const int y_plane = SEVERAL ? group * of_y + pair % of_y : strip.channel;
  constexpr bool FEW = SHOWN || R * S > 32;  // registers are left by sums
  const Bring<T, THREADS, LAST, SHOWN, FEW> bring_x(LAST && in_vectors<T>(a, p.a, p.groups), int(p.lanes),
                                                    cells_of(height, step_h, ANY ? grad_rows : R), wide);
  const Bring<T, THREADS, LAST, false, FEW> bring_dy(
      LAST && of_y == 1 && in_vectors<T>(b, p.b, p.groups), int(p.lanes), grad_rows, grad_columns);
  const T* const x = static_cast<const T*>(a) + Index(tile.first) * of_x * p.a[1];
  const T* const dy = static_cast<const T*>(b) + p.b_start + (tile.first * of_y + tile.number) * p.b[1];

  if (SHOWN) end_unless_shown(p.mode);
  constexpr int SUMS_R = ANY ? ROWS : R, SUMS_S = ANY ? OUT : S;
  Acc sum[SUMS_R][SUMS_S];
#pragma unroll
  for (int i = 0; i < SUMS_R; ++i)
#pragma unroll
    for (int j = 0; j < SUMS_S; ++j) sum[i][j] = Acc{};

  Span taps_h{}, taps_w{};  // of a tile of taps
  if constexpr (ANY) {
    taps_h = span_of(axis[1], apart_h, digit[1], height, step_h, 1);
    taps_w = span_of(axis[2], apart_w, digit[0], width, step_w, 1);
  }
  const int chunk = int(p.chunk), end = min((number + 1) * chunk, int(p.items));
#pragma unroll 1
  for (int index = number * chunk; index < end; ++index) {
    const int line = divide_small(index, p.pixel[0]), slice = divide_small(line, p.pixel[1]);
    const int n = divide_small(slice, p.pixel[2]), tile_w = index - line * int(p.pixel[0].divisor);
    const int tile_h = line - slice * int(p.pixel[1].divisor), z = slice - n * int(p.pixel[2].divisor);
    Part of_cells{{}, {}, 0, 0, p.a[3], p.a[4]}, of_dy{{}, {}, 0, 0, p.b[3], p.b[4]};
    if constexpr (ANY) {
      const int begin_h = tile_h * grad_rows, begin_w = tile_w * grad_columns;
      of_cells.rows = taps_h;
      of_cells.columns = taps_w;
      of_dy.lines = min(grad_rows, axis[1].taps - begin_h);
      of_dy.places = min(grad_columns, axis[2].taps - begin_w);
      of_dy.rows = {begin_h, 1, axis[1].taps};
      of_dy.columns = {begin_w, 1, axis[2].taps};
      of_cells.lines = cells_of(min(height, of_cells.rows.left), step_h, of_dy.lines);
      of_cells.places = cells_of(min(width, of_cells.columns.left), step_w, of_dy.places);
      of_cells.rows.source += begin_h * of_cells.rows.delta;
      of_cells.columns.source += begin_w * of_cells.columns.delta;
    } else {
      of_cells.rows = span_of(axis[1], apart_h, tile_h, height, STEP, 1);
      of_cells.columns = span_of(axis[2], apart_w, tile_w, width, STEP, 1);
      of_dy.lines = min(height, of_cells.rows.left);
      of_dy.places = min(width, of_cells.columns.left);
      of_dy.rows = {of_cells.rows.result, of_cells.rows.apart, of_cells.rows.results};
      of_dy.columns = {of_cells.columns.result, of_cells.columns.apart, of_cells.columns.results};
      of_cells.lines = cells_of(of_dy.lines, STEP, R);
      of_cells.places = cells_of(of_dy.places, STEP, S);
    }
    if (of_dy.lines <= 0 || of_dy.places <= 0 || of_cells.rows.left <= 0 || of_cells.columns.left <= 0) continue;
    const int d = shown<SHOWN>(p.mode, axis[0].source(z, t), axis[0].sources);
    const Channels of_groups = SEVERAL ? Channels{count * of_y, p.b[1]} : Channels{count, of_y * p.b[1]};
    bring_dy(dy + n * p.b[0] + z * p.b[2], false, of_groups, of_dy, ZEROS, false, grads);
    bring_x(x + n * p.a[0] + d * p.a[2], d < 0, Channels{count * of_x, p.a[1]}, of_cells, p.mode, p.conjugate, cells);
    __syncthreads();  // all is there
    if (strip.exists) {
      const Acc* const corner = cells.at(x_plane, strip.row * ROWS * step_h, strip.column * OUT * step_w);
      if constexpr (ANY) {
        // Threads of a group share lines of dy, or whole vectors of a single line.
        const bool by_line = grad_rows > 1;
        const int all = by_line ? of_dy.lines : of_dy.places, most = (all + groups - 1) / groups,
                  each = by_line ? most : (most + 3) / 4 * 4;
        const Run run{min(strip.group * each, all), min((strip.group + 1) * each, all)};
        add_runs<LAST, grads.CELL>(sum, corner, cells.line, step_h, step_w, grads.data + y_plane * grads.plane,
                                   grads.line, by_line ? run : Run{0, of_dy.lines},
                                   by_line ? Run{0, of_dy.places} : run);
      } else {
        const int row = strip.row * ROWS, column = strip.column * OUT;
        add_pairs<LAST, R, S, STEP, ROWS, OUT>(sum, corner, cells.line, grads.at(y_plane, row, column),
                                               grads.line, of_dy.lines - row, of_dy.places - column);
      }
    }
    __syncthreads();  // all have read it
  }

  const Index copy = p.out_start + Index(number) * p.groups * of_y * of_x * axis[0].taps *
                                       (ANY ? axis[1].outputs : axis[1].taps) * (ANY ? axis[2].outputs : axis[2].taps);
  const auto put = [&](int channel, Index r, Index s, Acc total) {
    const int group = SEVERAL ? channel / pairs : channel, pair = SEVERAL ? channel - group * pairs : 0;
    const int i = SEVERAL ? pair / of_y : 0, j = tile.first * of_y + tile.number + group * of_y + pair - i * of_y;
    if (group < count)
      store<T>(p, out, copy + j * p.out[0] + i * p.out[1] + t * p.out[2] + r * p.out[3] + s * p.out[4], total);
  };
  constexpr bool BESIDE = LAST || SEVERAL;  // neighbouring threads have neighbouring channels
  const int channels = LAST ? 32 : held * pairs;
  auto& sums = reinterpret_cast<Acc(&)[SUMS_R * SUMS_S]>(sum);
  if constexpr (ANY) {
    const int places = strips * channels;
    add_up<T, THREADS>(sums, places, 1, groups, places, shared, [&](int place, int i, Acc total) {
      const int channel = BESIDE ? place % channels : place / strips;
      const int number = BESIDE ? place / channels : place % strips;
      const int r = number / along * ROWS + i / OUT, s = number % along * OUT + i % OUT;
      if (r < taps_h.left && s < taps_w.left) put(channel, taps_h.result_at(r), taps_w.result_at(s), total);
    });
  } else {
    add_up<T, THREADS>(sums, LAST ? held : channels, BESIDE ? 1 : strips, strips, BESIDE ? channels : 1, shared,
                       [&](int place, int i, Acc total) { put(place, i / S, i % S, total); });
  }
}
