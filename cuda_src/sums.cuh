// Sums in a fixed order: over the threads of a block, over the parts of a split sum, and over dy for the bias.
//
//   conv_reduce     out[i] = sum over parts of  a[part, i]        (any op whose sums were split)
//   conv_bgrad_sum  db[k] = sum over n, z, p, q of  dy[n, k, z, p, q]
//
// Neither uses atomics: a block's threads are summed by a tree, parts one after the other.
#pragma once
#include "indexing.cuh"
#include "numerics.cuh"

// A thread owns one element of the result, of any strides. a has all elements of a part, of type Sum, in the order in
// which they are numbered here, and then those of the next part. What follows a sum, bias and activation, follows here.
template <typename T, typename Sum>
__device__ void conv_reduce(const void* a, const void*, const void* bias, void* out, const Params& p) {
  const Index index = Index(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= p.items) return;
  const auto* part = static_cast<const Sum*>(a) + index;
  Sum sum{};
  for (Index i = 0; i < p.splits; ++i) sum = sum + part[i * p.items];
  Index offset = p.out_start + index, channel = 0;
  bool alike = !bias;  // then nothing has to be known of the element but its number
  for (int i = 0; i < 5; ++i) alike = alike && p.out[i] == p.a[i];
  if (!alike) {
    Index element[5];
    digits_of(p, index, element);
    offset = offset_of(p.out_start, p.out, element);
    channel = element[1];
  }
  finish<T>(p, out, offset, Convert<Accumulator<T>, Sum>::from(sum), bias, channel);
}

// Add up what the threads of a block have left in `cell`, COUNT sums each: afterwards cell[.][i], i < lanes, has the
// sums over the threads whose number is i modulo `lanes`, a power of two.
template <int COUNT, int THREADS, typename Acc>
__device__ inline void block_sum(Acc (&cell)[COUNT][THREADS], int lanes) {
  const int thread = threadIdx.x;
  __syncthreads();  // all have left theirs
#pragma unroll 1
  for (int half = THREADS / 2; half >= lanes; half /= 2) {
    for (int i = 0; i < COUNT; ++i)
      if (thread < half) cell[i][thread] = cell[i][thread] + cell[i][thread + half];
    __syncthreads();  // the next round reads what this one has written
  }
}

// A block owns `lanes` channels (1, or 32 for channels-last arrays) of one of `splits` runs of `chunk` cells. It sums
// in double precision, integers apart, which costs little beside reading dy.
template <typename T, int THREADS>
__device__ void conv_bgrad_sum(const void* a, const void*, const void*, void* out, const Params& p) {
  using Sum = Double<T>;
  __shared__ Sum cell[1][THREADS];
  const int lanes = int(p.lanes);
  const Index filters = p.groups * p.filters;
  const unsigned blocks = unsigned(tiles(filters, lanes));  // of one part
  const Index part = blockIdx.x / blocks, k = Index(blockIdx.x % blocks) * lanes + threadIdx.x % lanes;
  const T* dy = static_cast<const T*>(a) + k * p.a[1];
  Sum sum{};
  if (k < filters) {
    const Index end = min_index((part + 1) * p.chunk, p.items);
    for (Index i = part * p.chunk + threadIdx.x / lanes; i < end; i += THREADS / lanes) {
      Index digit[3];
      const Index n = take_digits(p, i, digit);
      const auto value = widen(dy[n * p.a[0] + digit[2] * p.a[2] + digit[1] * p.a[3] + digit[0] * p.a[4]]);
      sum = sum + Convert<Sum, Accumulator<T>>::from(value);
    }
  }
  cell[0][threadIdx.x] = sum;
  block_sum(cell, lanes);
  if (int(threadIdx.x) >= lanes || k >= filters) return;
  const Sum total = cell[0][threadIdx.x];
  if (p.partial)
    static_cast<Sum*>(out)[part * filters + k] = total;
  else
    store<T>(p, out, p.out_start + k * p.out[0], Convert<Accumulator<T>, Sum>::from(total));
}
