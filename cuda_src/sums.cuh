// Sums in a fixed order: over the threads of a block, over the parts of a split sum, and over dy for the bias.
//
//   conv_reduce     out[i] = sum over parts of  a[part, i]        (any op whose sums were split)
//   conv_bgrad_sum  db[k] = sum over n, z, p, q of  dy[n, k, z, p, q]
//
// Neither uses atomics: a thread adds up what it reads in order, a block its threads by a tree, parts follow one
// another. Both are bound by memory, if vectors are read and several of them are under way at once.
#pragma once
#include "indexing.cuh"
#include "numerics.cuh"

// Vectors of sums are added element by element.
template <typename Sum, int V>
__device__ inline Pack<Sum, V> operator+(Pack<Sum, V> a, const Pack<Sum, V>& b) {
#pragma unroll
  for (int i = 0; i < V; ++i) a.value[i] = a.value[i] + b.value[i];
  return a;
}

// The sum of an element, or a pack of them, over all parts, one after the other; EACH are under way at once. Beyond the
// last one zeros are added, which change nothing.
template <typename Unit>
__device__ inline Unit sum_of_parts(const Params& p, const Unit* part, Index apart) {
  constexpr int EACH = sizeof(Unit) < 16 ? 16 : 8;
  Unit sum{};
#pragma unroll 1
  for (int left = int(p.splits); left > 0; left -= EACH) {
    Unit unit[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i, part += apart) unit[i] = load_if(part, i < left);
#pragma unroll
    for (int i = 0; i < EACH; ++i) sum = sum + unit[i];
  }
  return sum;
}

// A thread owns `chunk` elements of the result, one or as many as have 16 bytes of sums: neighbours, where these are
// the parts' too and nothing has to be known of them but their numbers, or else those of images or filters `batch`
// apart. The result has any strides. a has all elements of a part, `chunk` times `items`, of type Sum, in the order in
// which they are numbered here, and then those of the next part. What follows a sum, bias and activation, follows here.
template <typename T, typename Sum>
__device__ void conv_reduce(const void* a, const void*, const void* bias, void* out, const Params& p) {
  constexpr int V = 16 / sizeof(Sum);
  const Index index = Index(blockIdx.x) * blockDim.x + threadIdx.x, apart = p.items * p.chunk;
  if (index >= p.items) return;
  bool alike = !bias && p.chunk == V;
  for (int i = 0; i < 5; ++i) alike = alike && p.out[i] == p.a[i];
  if (alike) {
    const auto sum = sum_of_parts(p, static_cast<const Pack<Sum, V>*>(a) + index, p.items);
    Pack<Accumulator<T>, V> total;
#pragma unroll
    for (int i = 0; i < V; ++i) total.value[i] = Convert<Accumulator<T>, Sum>::from(sum.value[i]);
    store_neighbours<T>(p, out, p.out_start + index * V, total);
    return;
  }
  Index offset = p.out_start, channel = 0;
  for_digits(p, index, 0, 5, [&](int axis, Index digit) {
    offset += digit * p.out[axis];
    if (axis == 1) channel = digit;
  });
  const auto* part = static_cast<const Sum*>(a) + index;
#pragma unroll 1
  for (int i = 0; i < int(p.chunk); ++i, part += p.items, offset += p.batch * p.out[0])
    finish<T>(p, out, offset, Convert<Accumulator<T>, Sum>::from(sum_of_parts(p, part, apart)), bias, channel);
}

// Add up what the threads of a block have left in `cell`, `count` sums each: afterwards cell[.][i], i < lanes, has the
// sums over the threads whose number is i modulo `lanes`, a power of two.
template <int COUNT, int THREADS, typename Acc>
__device__ inline void block_sum(Acc (&cell)[COUNT][THREADS], int lanes, int count = COUNT) {
  const int thread = threadIdx.x;
  __syncthreads();  // all have left theirs
#pragma unroll 1
  for (int half = THREADS / 2; half >= lanes; half /= 2) {
    for (int i = 0; i < count; ++i)
      if (thread < half) cell[i][thread] = cell[i][thread] + cell[i][thread + half];
    __syncthreads();  // the next round reads what this one has written
  }
}

// Where the cells of one channel are, numbered through all images from the first cell of one of them.
struct Cells {
  ShortDivisor image;  // by the cells of one
  Index image_apart, apart;
  bool linear;  // all cells of an image are equally far from one another, and their numbers have 32 bits

  __device__ explicit Cells(const Params& p) : image(shortened(p.digit[3])), image_apart(p.a[0]) {
    const Index width = p.digit[0].divisor, height = p.digit[1].divisor, depth = p.digit[2].divisor;
    apart = width > 1 ? p.a[4] : height > 1 ? p.a[3] : p.a[2];
    linear = (height == 1 || p.a[3] == width * apart) && (depth == 1 || p.a[2] == width * height * apart) &&
             p.digit[3].divisor < 1 << 29;
  }
  __device__ Index offset(unsigned cell) const {
    const unsigned n = divide(cell, image);
    return n * image_apart + Index(cell - n * image.divisor) * apart;
  }
};

// Add to a thread's sums its units of dy, the cells first, first + step, ... below end; EACH are under way at once.
// Beyond the last one zeros are added, which change nothing.
template <int EACH, typename T, int V, typename Sum>
__device__ inline void sum_units(const T* dy, const Cells& cells, unsigned first, unsigned end, unsigned step,
                                 Sum (&sum)[V]) {
  using Unit = Pack<T, V>;
#pragma unroll 1
  for (unsigned cell = first; cell < end; cell += EACH * step) {
    Unit unit[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      const unsigned own = cell + i * step;
      unit[i] = load_if(reinterpret_cast<const Unit*>(dy + cells.offset(own)), own < end);
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i)
#pragma unroll
      for (int j = 0; j < V; ++j)
        sum[j] = sum[j] + Convert<Sum, Accumulator<T>>::from(widen(unit[i].value[j]));
  }
}

// A block owns `lanes` channels, one or whole vectors of 16 bytes, of one of `splits` runs of `chunk` cells. Its
// threads take turns at the vectors: of cells where it has one channel, otherwise of channels. A vector is one load
// where dy has it whole and aligned; otherwise elements are read one by one, of one channel still without a division
// for each axis where its cells are equally far from one another. digit[] has width, height, depth, all cells of an
// image, and the blocks of one part; the chunk is whole vectors of cells. Sums are in double precision, integers apart,
// which costs little beside reading dy.
template <typename T, int THREADS>
__device__ void conv_bgrad_sum(const void* a, const void*, const void*, void* out, const Params& p) {
  using Sum = Double<T>;
  constexpr int V = 16 / sizeof(T), EACH = 4;
  __shared__ Sum cell[V][THREADS];
  const bool across = p.lanes > 1;
  const int lanes = across ? int(p.lanes) / V : 1, thread = threadIdx.x;
  const Index filters = p.groups * p.filters;
  const Index part = divide(blockIdx.x, p.digit[4]), tile = blockIdx.x - part * p.digit[4].divisor;
  const Index k = tile * p.lanes + (across ? thread % lanes * V : 0);
  const int count = int(min_index(filters - k, across ? V : 1));  // of channels, none or less beyond the last one
  const T* const dy = static_cast<const T*>(a) + k * p.a[1];
  const Cells cells(p);
  const Index begin = part * p.chunk, end = min_index(begin + p.chunk, p.items);
  const Index image = divide(begin, p.digit[3]), origin = image * p.digit[3].divisor;
  const unsigned first = unsigned(begin - origin), last = count > 0 ? unsigned(end - origin) : first;
  const unsigned own = unsigned(thread / lanes), step = THREADS / unsigned(lanes);
  const bool whole = cells.linear && reinterpret_cast<size_t>(a) % 16 == 0 &&
                     (across ? p.a[1] == 1 && (filters | p.a[0] | cells.apart) % V == 0
                             : cells.apart == 1 && (p.digit[3].divisor | p.a[0] | p.a[1]) % V == 0);
  Sum sum[V] = {};
  if (whole) {
    const int wide = across ? 1 : V;
    sum_units<EACH>(dy + image * p.a[0], cells, first + own * wide, last, step * wide, sum);
  } else if (cells.linear && !across) {
    Sum single[1] = {};
    sum_units<(V > 2 ? 2 * V : EACH)>(dy + image * p.a[0], cells, first + own, last, step, single);
    sum[0] = single[0];
  } else if (count > 0) {
#pragma unroll 1
    for (Index i = begin + own; i < end; i += step) {
      Index digit[3];
      const Index n = take_digits(p, i, digit);
      const T* const place = dy + n * p.a[0] + digit[2] * p.a[2] + digit[1] * p.a[3] + digit[0] * p.a[4];
#pragma unroll
      for (int j = 0; j < V; ++j)
        sum[j] = sum[j] + Convert<Sum, Accumulator<T>>::from(widen(load_if(place + j * p.a[1], j < count)));
    }
  }
  if (!across)
#pragma unroll
    for (int j = 1; j < V; ++j) sum[0] = sum[0] + sum[j];
#pragma unroll
  for (int j = 0; j < V; ++j) cell[j][thread] = sum[j];
  block_sum(cell, lanes, across ? V : 1);
  const int channels = int(min_index(filters - tile * p.lanes, p.lanes));
  for (int i = thread; i < channels; i += THREADS) {
    const Index channel = tile * p.lanes + i;
    const Sum total = cell[i % V][i / V];
    if (p.partial)
      static_cast<Sum*>(out)[part * filters + channel] = total;
    else
      store<T>(p, out, p.out_start + channel * p.out[0], Convert<Accumulator<T>, Sum>::from(total));
  }
}
