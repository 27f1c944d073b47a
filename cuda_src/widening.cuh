// Integers brought to the wider dtype that a result and its sums have, before any algorithm:
//
//   out[i] = b[i]        (x or w, turned filters where they are to be turned)
//
// From is a type of C++, of the operand's size and sign; To, as all integers that are computed with, is unsigned and
// holds every value of From modulo its range. A thread owns elements of out (elements.cuh); strides and start are those
// of `b`, whose start can lie anywhere in turned filters. Why it exists: a kernel then has one type of elements, and
// the copy of an image of bytes costs less than a quarter of what an image of 32 bits costs to be read.
#pragma once
#include "elements.cuh"
#include "numerics.cuh"

template <typename From, typename To, int THREADS>
__device__ void conv_widen(const void*, const void* b, const void*, void* out, const Params& p) {
  const auto at = [&](Index number, int first, int end) {
    Index place = 0;
    for_digits(p, number, first, end, [&](int axis, Index digit) { place += digit * p.b[axis]; });
    return place;
  };
  copy_elements<From, To, THREADS>(p, static_cast<const From*>(b) + p.b_start, out, at,
                                   [](From value) { return To(value); });
}
