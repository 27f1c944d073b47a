// Numbers: the types of elements, the type that each is summed in, and what is done to a finished sum.
//
// Half types are two bytes of storage that become float when read. Integers are unsigned, since their sums
// wrap modulo 2^32 or 2^64, which signed C++ arithmetic does not define.
#pragma once
#include "params.cuh"

#include <ptx/base.cuh>

struct float16 {
  unsigned short bits;
};

struct bfloat16 {
  unsigned short bits;
};

template <typename Real>
struct alignas(2 * sizeof(Real)) complex {
  Real re, im;
};

using complex64 = complex<float>;
using complex128 = complex<double>;
using int32 = unsigned int;
using int64 = unsigned long long;

// -- reading and writing: widen and narrow ----------------------------------------------------------

template <typename T>
struct AccumulatorOf {
  using Type = T;
};
template <>
struct AccumulatorOf<float16> {
  using Type = float;
};
template <>
struct AccumulatorOf<bfloat16> {
  using Type = float;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::Type;

// The type of sums that are bound by memory anyway, and so cost nothing in double precision.
template <typename T>
struct DoubleOf {
  using Type = T;
};
template <>
struct DoubleOf<float> {
  using Type = double;
};
template <>
struct DoubleOf<complex64> {
  using Type = complex128;
};
template <typename T>
using Double = typename DoubleOf<Accumulator<T>>::Type;

template <typename T>
__device__ inline T widen(T value) {
  return value;
}
__device__ inline float widen(float16 value) { return half_to_float(value.bits); }
__device__ inline float widen(bfloat16 value) {
  return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}

// Between the accumulator's type and its Double.
template <typename To, typename From>
struct Convert {
  static __device__ To from(From value) { return To(value); }
};
template <typename To, typename From>
struct Convert<complex<To>, complex<From>> {
  static __device__ complex<To> from(complex<From> value) { return {To(value.re), To(value.im)}; }
};

template <typename T>
struct Narrow {
  static __device__ T from(T sum) { return sum; }
};
template <>
struct Narrow<float16> {
  static __device__ float16 from(float sum) { return {float_to_half(sum)}; }
};
template <>
struct Narrow<bfloat16> {
  static __device__ bfloat16 from(float sum) {
    const unsigned bits = __float_as_uint(sum);
    if (sum != sum) return {static_cast<unsigned short>(bits >> 16 | 0x40)};
    const unsigned to_even = 0x7fff + (bits >> 16 & 1);
    return {static_cast<unsigned short>((bits + to_even) >> 16)};
  }
};

// -- arithmetic -------------------------------------------------------------------------------------

template <typename Real>
__device__ inline complex<Real> operator+(complex<Real> a, complex<Real> b) {
  return {a.re + b.re, a.im + b.im};
}

template <typename Acc>
__device__ inline Acc multiply_add(Acc a, Acc b, Acc sum) {
  return a * b + sum;
}
template <typename Real>
__device__ inline complex<Real> multiply_add(complex<Real> a, complex<Real> b, complex<Real> sum) {
  return {a.re * b.re + (sum.re - a.im * b.im), a.re * b.im + (a.im * b.re + sum.im)};
}

template <typename Acc>
__device__ inline Acc conjugate_if(bool, Acc value) {
  return value;
}
template <typename Real>
__device__ inline complex<Real> conjugate_if(bool wanted, complex<Real> value) {
  return {value.re, wanted ? -value.im : value.im};
}

// The offset of what does not exist.
constexpr Index NONE = Index(1) << 63;

// -- the end of a sum -------------------------------------------------------------------------------

// The order of ACTIVATIONS in problem.py. One that a switch leaves out does not compile in the tests; one that is not
// here ends the launch.
enum Activation : int { IDENTITY, RELU, SIGMOID, TANH, SILU, GELU };

template <typename Real>
__device__ inline Real sigmoid(Real x) {
  const Real small = exp(x < 0 ? x : -x);  // of -|x|, which cannot overflow
  return (x < 0 ? small : Real(1)) / (1 + small);
}

template <typename Real>
__device__ inline Real activate_real(Index activation, Real x) {
  switch (Activation(activation)) {
    case IDENTITY: return x;
    case RELU: return x < 0 ? Real(0) : x;  // NaN stays NaN
    case SIGMOID: return sigmoid(x);
    case TANH: return tanh(x);
    case SILU: return x * sigmoid(x);
    case GELU: return x / 2 * erfc(x * Real(-0.70710678118654752440));  // erfc keeps the small tail
  }
  __trap();
  return x;
}

__device__ inline float activate(Index activation, float x) { return activate_real(activation, x); }
__device__ inline double activate(Index activation, double x) { return activate_real(activation, x); }
template <typename Unsigned>
__device__ inline Unsigned activate(Index activation, Unsigned x) {
  if (activation == IDENTITY) return x;
  if (activation != RELU) __trap();
  const bool negative = x >> (8 * sizeof(Unsigned) - 1);
  return negative ? 0 : x;
}
template <typename Real>
__device__ inline complex<Real> activate(Index activation, complex<Real> x) {
  if (activation != IDENTITY) __trap();
  return x;
}

// All of `count` sums in shared memory, by the threads of a block.
template <typename Acc>
__device__ inline void activate_all(Index activation, Acc* sums, int count) {
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += blockDim.x) sums[i] = activate(activation, sums[i]);
}

// Put a sum in its place: add it to what is there if so wanted, and round it once. Where the launch makes parts
// of sums, they are stored as they are.
template <typename T>
__device__ inline void store(const Params& p, void* out, Index offset, Accumulator<T> sum) {
  if (p.partial) {
    static_cast<Accumulator<T>*>(out)[offset] = sum;
    return;
  }
  sum = conjugate_if(p.conjugate == 2, sum);
  T& cell = static_cast<T*>(out)[offset];
  if (p.accumulate) sum = sum + widen(cell);
  cell = Narrow<T>::from(sum);
}

// A sum after bias and activation; `channel` counts the result's channels.
template <typename T>
__device__ inline Accumulator<T> finished(const Params& p, Accumulator<T> sum, const void* bias, Index channel) {
  if (p.partial) return sum;
  if (bias) sum = sum + widen(static_cast<const T*>(bias)[channel * p.bias]);
  return activate(p.activation, sum);
}

template <typename T>
__device__ inline void finish(const Params& p, void* out, Index offset, Accumulator<T> sum, const void* bias,
                              Index channel) {
  store<T>(p, out, offset, finished<T>(p, sum, bias, channel));
}

// Finish a thread's sums one after the other, by code that is there once, for which they have to be in memory: what a
// kernel that unrolls its stores does where more is asked than to round and store them. place(i) may be NONE.
template <typename T, int THREADS, int COUNT, typename Place>
__device__ inline void finish_each(const Params& p, void* out, const Accumulator<T> (&sums)[COUNT], const void* bias,
                                   Index channel, Accumulator<T>* shared, Place place) {
  auto* const own = shared + threadIdx.x;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) own[i * THREADS] = sums[i];
#pragma unroll 1
  for (int i = 0; i < COUNT; ++i) {
    const Index offset = place(i);
    if (offset != NONE) finish<T>(p, out, offset, own[i * THREADS], bias, channel);
  }
}

// COUNT neighbours, read or written at once.
template <typename T, int COUNT>
struct alignas(COUNT * sizeof(T)) Pack {
  T value[COUNT];
};

// Put several sums in their places, start + place[i] where that is not NONE, at once if they are `neighbours` in memory
// and aligned.
template <typename T, int COUNT>
__device__ inline void store_pack(const Params& p, void* out, Index start, const Index (&place)[COUNT], bool neighbours,
                                  Pack<Accumulator<T>, COUNT> sums) {
  using Sums = Pack<Accumulator<T>, COUNT>;
  const Index first = neighbours ? start + place[0] : 0;
  auto* const partial = static_cast<Accumulator<T>*>(out) + first;
  auto* const cell = static_cast<T*>(out) + first;
  if (neighbours && p.partial && reinterpret_cast<size_t>(partial) % sizeof(Sums) == 0) {
    *reinterpret_cast<Sums*>(partial) = sums;
  } else if (neighbours && !p.partial && reinterpret_cast<size_t>(cell) % sizeof(Pack<T, COUNT>) == 0) {
    auto& cells = *reinterpret_cast<Pack<T, COUNT>*>(cell);
    Pack<T, COUNT> pack;
    if (p.accumulate) pack = cells;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      auto sum = conjugate_if(p.conjugate == 2, sums.value[i]);
      if (p.accumulate) sum = sum + widen(pack.value[i]);
      pack.value[i] = Narrow<T>::from(sum);
    }
    cells = pack;
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
      if (place[i] != NONE) store<T>(p, out, start + place[i], sums.value[i]);
  }
}

// The same after bias and activation; the sums differ by `apart` in their channels.
template <typename T, int COUNT>
__device__ inline void finish_pack(const Params& p, void* out, Index start, const Index (&place)[COUNT],
                                   bool neighbours, Pack<Accumulator<T>, COUNT> sums, const void* bias, Index channel,
                                   int apart) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i)
    if (place[i] != NONE) sums.value[i] = finished<T>(p, sums.value[i], bias, channel + i * apart);
  store_pack<T>(p, out, start, place, neighbours, sums);
}

// Put neighbouring sums in their places from `start` on, after the activation, at once if they are aligned.
template <typename T, int COUNT>
__device__ inline void store_neighbours(const Params& p, void* out, Index start,
                                        Pack<Accumulator<T>, COUNT> sums) {
  Index place[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) place[i] = i;
  finish_pack<T>(p, out, start, place, true, sums, nullptr, 0, 0);
}
