// The taps of one axis as channels, for products of vectors of channels where channels are few:
//
//   out[n, d, h, q, s channels + c] = b[n, c, d, h, q stride - padding + s dilation]  for s < S, c < channels
//
// with zeros where that is beside the axis, and for what fills `out`'s channels up to whole vectors. A convolution with
// S taps on its last axis is one with a single tap of S times the channels over `out`. Filters are folded likewise, by
// one window that has all of the axis.
//
// A thread owns a vector of `out`, V elements that it gathers: its neighbours read what lies beside that. Elements are
// copied whatever they mean. axis[2] is the window's, of `filter` taps; `group` divides by `channels`, digit[] by the
// vectors of a place, places on a line, lines and planes. `b` has any strides, `out` is dense and channels-last.
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
  const Element* from = static_cast<const Element*>(b) + p.b_start + n * p.b[0] + digit[3] * p.b[2] +
                        digit[2] * p.b[3] + c * p.b[1] + w * p.b[4];
  const Index next = dilation * p.b[4] - channels * p.b[1];
  Vector vector;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    vector.value[i] = load_if(from, left > 0 && unsigned(w) < unsigned(input));
    from += p.b[1];
    if (++c < channels) continue;
    c = 0;
    --left;
    w += dilation;
    from += next;
  }
  static_cast<Vector*>(out)[index] = vector;
}
