// An operand made dense and channels-last, each group of its channels padded with zeros to whole vectors:
//
//   out[place, g * padded + c] = b[place, g * channels + c]  for c < channels, 0 for c beyond
//
// A place is a cell of an image, or a tap of a filter; they are numbered through all images. Elements are copied
// whatever they mean: Element is an unsigned integer of their size, or a Quad, and a vector, of V elements, has 16 bytes.
// Strides and start of `b` are arbitrary; the start is that of turned filters. `items` are the places, `group` divides by
// `padded`, and digit[] by width, height, depth, and all cells of an image.
//
// A block owns CELLS places of VECTORS vectors of channels. In general neighbouring threads read neighbouring places of
// one channel, V at once where these are a vector of the memory; the block turns its tile in shared memory, without
// conflicts of banks; and neighbouring threads write neighbouring vectors of one place. Where channels are neighbours
// in memory, or only one vector of them is there, a thread gathers the elements of its vector itself: its neighbours
// read those beside them, and the first-level cache has a sector until all of it is read.
//
// Elements may be rounded on the way, or stored by their parts: see Stored.
//
// Preconditions (cuda/transform.py): `padded` is a multiple of V; `out` is dense, channels-last and aligned to 16
// bytes; there are less than 2^31 blocks. Nothing is summed, and every vector has one thread. It exists since tensor
// cores are fed with vectors of channels: one more pass over memory costs less than products that read element by
// element.
#pragma once
#include "indexing.cuh"
#include "parted.cuh"

// An element of 16 bytes.
struct alignas(16) Quad {
  unsigned word[4];
};

// What becomes of elements: they are copied. `put` stores one vector of so many, and returns if it has a small number;
// `say` is for what is stored behind them all.
template <typename Element>
struct Stored {
  __device__ static void say(void*, Index, bool) {}
  template <typename Vector>
  __device__ static bool put(void* out, Index index, Index, const Vector& vector) {
    static_cast<Vector*>(out)[index] = vector;
    return false;
  }
};

// Floats that are rounded to TF32.
struct FloatAsTf32 {
  unsigned bits;
};
template <>
struct Stored<FloatAsTf32> {
  __device__ static void say(void*, Index, bool) {}
  template <typename Vector>
  __device__ static bool put(void* out, Index index, Index, Vector vector) {
#pragma unroll
    for (int i = 0; i < 4; ++i) vector.value[i].bits = float_to_tf32(__uint_as_float(vector.value[i].bits));
    static_cast<Vector*>(out)[index] = vector;
    return false;
  }
};

// Floats that are stored by their parts: see parted.cuh.
struct FloatInParts {
  unsigned bits;
};
template <>
struct Stored<FloatInParts> {
  __device__ static void say(void* out, Index elements, bool small) {
    const bool any = __any_sync(~0u, small);
    if (threadIdx.x % 32 == 0)
      static_cast<unsigned short*>(out)[PARTS * elements + (Index(blockIdx.x) * blockDim.x + threadIdx.x) / 32] = any;
  }
  template <typename Vector>
  __device__ static bool put(void* out, Index index, Index vectors, const Vector& vector) {
    unsigned low[PARTS], high[PARTS];
    const auto number = [&](int i) { return __uint_as_float(vector.value[i].bits); };
    const bool small_low = split_for_memory(number(0), number(1), low);
    const bool small_high = split_for_memory(number(2), number(3), high);
#pragma unroll
    for (int i = 0; i < PARTS; ++i)
      static_cast<Pack<unsigned, 2>*>(out)[index + i * vectors] = Pack<unsigned, 2>{low[i], high[i]};
    return small_low | small_high;
  }
};

// The source by its places.
template <typename Element>
struct Places {
  const Element* data;
  bool linear;  // all cells of an image are equally far from one another

  __device__ Places(const Params& p, const void* b) : data(static_cast<const Element*>(b) + p.b_start) {
    const Index width = p.digit[0].divisor, height = p.digit[1].divisor, depth = p.digit[2].divisor;
    linear = (height == 1 || p.b[3] == width * p.b[4]) && (depth == 1 || p.b[2] == width * height * p.b[4]);
  }
  // The first channel of a place.
  __device__ const Element* at(const Params& p, Index place) const {
    Index offset = 0;
    if (linear) {
      const Index image = divide(place, p.digit[3]);
      offset = (place - image * p.digit[3].divisor) * p.b[4];
      place = image;
    } else {
#pragma unroll 1
      for (int i = 0; i < 3; ++i) {
        const Index rest = divide(place, p.digit[i]);
        offset += (place - rest * p.digit[i].divisor) * p.b[4 - i];
        place = rest;
      }
    }
    return data + offset + place * p.b[0];
  }
  // Whether a channel's V places from a multiple of V on always are a vector of the memory.
  template <int V>
  __device__ bool whole_vectors(const Params& p) const {
    return linear && p.b[4] == 1 && (p.digit[3].divisor | p.b[0] | p.b[1]) % V == 0 &&
           reinterpret_cast<size_t>(data) % 16 == 0;
  }
};

// Where a channel of `out` is in the source, and how many there are from it to the end of its group: none if it only
// pads, and no more than a vector can have.
struct Run {
  Index offset;
  int count;
};

__device__ inline Run channels_from(const Params& p, Index channel) {
  const Index group = divide(channel, p.group), within = channel - group * p.group.divisor;
  return {(group * p.channels + within) * p.b[1], group < p.groups ? int(min_index(p.channels - within, 8)) : 0};
}

template <typename Element, int THREADS, int CELLS, int VECTORS>
struct Tile {
  static constexpr int V = 16 / sizeof(Element), CHANNELS = VECTORS * V;
  static constexpr Index NONE = Index(1) << 63;

  struct alignas(16) Vector {
    Element value[V];
  };
  struct alignas(16) Words {  // of which the compiler makes one load
    unsigned word[4];
  };
  Element (&cells)[CHANNELS][CELLS];
  const int thread;

  // A row's vectors of cells are swapped so that threads that read one cell of many rows find them in different banks.
  __device__ static int swapped(int row, int cell) { return cell ^ (row / V * (8 / VECTORS) * V); }

  // Read the tile, by cells or by vectors of them, all of which are under way at once. `source` is the thread's own
  // place, `offset` has the bytes from a place's first channel to those of the tile, or NONE.
  template <typename Unit>
  __device__ void fill(const Element* source, bool exists, const Index (&offset)[CHANNELS]) const {
    constexpr int WIDE = sizeof(Unit) / sizeof(Element), LANES = CELLS / WIDE, ROWS = THREADS / LANES;
    constexpr int EACH = CHANNELS / ROWS;
    static_assert(LANES <= THREADS && LANES % 8 == 0 && CHANNELS % ROWS == 0, "every thread reads as many");
    const int cell = thread % LANES * WIDE, first = thread / LANES;
    Unit unit[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      const Index bytes = offset[first + i * ROWS];
      unit[i] = Unit{};
      if (exists && bytes != NONE)
        unit[i] = *reinterpret_cast<const Unit*>(reinterpret_cast<const char*>(source) + bytes);
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      const int row = first + i * ROWS;
      *reinterpret_cast<Unit*>(&cells[row][swapped(row, cell)]) = unit[i];
    }
  }
};

// Whether the thread has stored a small number.
template <typename Element, int THREADS, int CELLS, int VECTORS>
__device__ inline bool store_channels_last(const void* b, void* out, const Params& p) {
  using Tile = ::Tile<Element, THREADS, CELLS, VECTORS>;
  using Vector = typename Tile::Vector;
  constexpr int V = Tile::V, CHANNELS = Tile::CHANNELS, ROWS = THREADS / VECTORS, EACH = CELLS / ROWS;
  static_assert(8 % VECTORS == 0 && CELLS % ROWS == 0, "every thread writes as many");
  const int thread = threadIdx.x % THREADS;  // which tells the compiler its range
  const Index channels = p.groups * p.group.divisor;
  const unsigned across = unsigned(tiles(channels, CHANNELS));
  const Index first_channel = Index(blockIdx.x % across) * CHANNELS, first = Index(blockIdx.x / across) * CELLS;
  const Places<Element> places(p, b);

  // What the thread writes: a vector of each ROWS-th place.
  const int own = thread / VECTORS, channel = thread % VECTORS * V;
  const Index end = first_channel + channel < channels ? p.items - first : 0, pitch = channels / V;
  const Index result = first * pitch + (first_channel + channel) / V, vectors = p.items * pitch;
  bool small = false;
  const auto gather = [&](int cell, const Run& run) {
    if (cell >= end) return;
    const Element* source = places.at(p, first + cell) + run.offset;
    Vector vector;
#pragma unroll
    for (int i = 0; i < V; ++i, source += p.b[1]) vector.value[i] = i < run.count ? *source : Element{};
    small = small | Stored<Element>::put(out, result + cell * pitch, vectors, vector);
  };

  if constexpr (VECTORS == 1) {
    const Run run = channels_from(p, first_channel);
#pragma unroll
    for (int i = 0; i < EACH; ++i) gather(own + i * ROWS, run);
  } else {
    const auto far = [](Index stride) { return stride < 0 ? -stride : stride; };
    if (far(p.b[1]) <= far(p.b[4])) {
      const Run run = channels_from(p, first_channel + channel);
#pragma unroll 1
      for (int i = 0; i < EACH; ++i) gather(own + i * ROWS, run);
      return small;
    }
    __shared__ Index offset[CHANNELS];
    alignas(16) __shared__ Element cells[CHANNELS][CELLS];
    if (thread < CHANNELS) {
      const Run run = channels_from(p, first_channel + thread);
      offset[thread] = run.count > 0 ? run.offset * Index(sizeof(Element)) : Tile::NONE;
    }
    const bool whole = places.template whole_vectors<V>(p);
    const Index place = first + (whole ? thread % (CELLS / V) * V : thread % CELLS);
    const bool exists = place < p.items;
    const Element* const source = places.at(p, exists ? place : 0);
    __syncthreads();  // all offsets are there
    const Tile tile{cells, thread};
    if (whole)
      tile.template fill<typename Tile::Words>(source, exists, offset);
    else
      tile.template fill<Element>(source, exists, offset);
    __syncthreads();  // the tile is complete
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      const int cell = own + i * ROWS;
      if (cell >= end) break;
      Vector vector;
#pragma unroll
      for (int j = 0; j < V; ++j) vector.value[j] = cells[channel + j][Tile::swapped(channel, cell)];
      small = small | Stored<Element>::put(out, result + cell * pitch, vectors, vector);
    }
  }
  return small;
}

template <typename Element, int THREADS, int CELLS, int VECTORS>
__device__ void conv_channels_last(const void*, const void* b, const void*, void* out, const Params& p) {
  const bool small = store_channels_last<Element, THREADS, CELLS, VECTORS>(b, out, p);
  Stored<Element>::say(out, p.items * p.groups * p.group.divisor, small);
}
