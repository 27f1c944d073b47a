// Integers brought to the wider dtype that a result and its sums have, before any algorithm:
//
//   out[i] = b[i]        (x or w, turned filters where they are to be turned)
//
// From is a type of C++, of the operand's size and sign; To, as all integers that are computed with, is unsigned and
// holds every value of From modulo its range. A thread owns one element of out; strides and start are those of `b`,
// whose start can lie anywhere in turned filters. Why it exists: a kernel then has one type of elements, and the copy
// of an image of bytes costs less than a quarter of what an image of 32 bits costs to be read.
#pragma once
#include "indexing.cuh"
#include "numerics.cuh"

template <typename From, typename To>
__device__ void conv_widen(const void*, const void* b, const void*, void* out, const Params& p) {
  Index cell[5];
  if (!own_element(p, cell)) return;
  static_cast<To*>(out)[offset_of(p.out_start, p.out, cell)] =
      To(static_cast<const From*>(b)[offset_of(p.b_start, p.b, cell)]);
}
