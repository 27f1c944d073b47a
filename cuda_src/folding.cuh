// Runs of taps of one axis as channels, for products of vectors of channels where channels are few:
//
//   out[n, d, h, q, i channels + c] = b[n, c, d, h, q stride - padding + i dilation]  for i < taps, c < channels
//
// with zeros where that is beside the axis, and for what fills `out`'s channels up to whole vectors. If a run has all
// taps, and `stride` is that of the convolution, a single tap of so many times the channels is left of the axis. If it
// has fewer, then runs and windows begin at multiples of `stride`, and a cell of `out` is of several windows. Filters are
// folded likewise, by windows that follow one another.
//
// A thread owns a vector of `out` in each of up to `chunk` lines, one below the other: it finds once where the V elements
// are that it gathers, and its neighbours read what lies beside them. Elements are copied whatever they mean. axis[2] is
// the window's, `filter` its taps, and axis[1].input counts a plane's lines; `group` divides by `channels`, digit[] by the
// vectors of a place, places on a line, runs of lines and planes. `b` has any strides, `out` is dense and channels-last.
// It exists since a first layer of one channel or three fills a vector of eight by less than half.
#pragma once
#include <ptx/base.cuh>

#include "transform.cuh"

template <typename Element>
__device__ void conv_folded(const void*, const void* b, const void*, void* out, const Params& p) {
  constexpr int V = 16 / sizeof(Element);
  struct alignas(16) Vector {
    Element value[V];
  };
  const Index index = Index(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= p.items) return;
  Index digit[4];
  const Index n = take_digits(p, index, digit);
  const int channels = int(p.channels), dilation = int(p.axis[2].dilation), input = int(p.axis[2].input);
  const int number = int(digit[0]) * V, tap = divide_small(number, p.group);
  int c = number - tap * channels, left = int(p.axis[2].filter) - tap;
  int w = int(digit[1] * p.axis[2].stride - p.axis[2].padding) + tap * dilation;
  Index offset[V];
  bool there[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    offset[i] = w * p.b[4] + c * p.b[1];
    there[i] = left > 0 && unsigned(w) < unsigned(input);
    if (++c < channels) continue;
    c = 0;
    if (--left > 0) w += dilation;
  }
  const int lines = int(p.axis[1].input), first = int(digit[2] * p.chunk), end = min(first + int(p.chunk), lines);
  const Index vectors = p.digit[0].divisor * p.digit[1].divisor;  // of a line
  const auto* line = static_cast<const Element*>(b) + p.b_start + n * p.b[0] + digit[3] * p.b[2] + first * p.b[3];
  Vector* to = static_cast<Vector*>(out) + ((n * p.digit[3].divisor + digit[3]) * lines + first) * vectors +
               digit[1] * p.digit[0].divisor + digit[0];
#pragma unroll 1
  for (int i = first; i < end; ++i, line += p.b[3], to += vectors) {
    Vector vector;
#pragma unroll
    for (int j = 0; j < V; ++j) vector.value[j] = load_if(line + offset[j], there[j]);
    *to = vector;
  }
}
