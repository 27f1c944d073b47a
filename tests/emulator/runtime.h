// What a kernel compiled for the host asks of the runtime (runtime.cpp).
//
// No standard header: it is part of every instance, and an instance must compile in a fraction of a second.
#pragma once

struct uint3 {
  unsigned x, y, z;
};

namespace emulator {

using Bytes = __SIZE_TYPE__;

// A call in the kernel's source, as error messages name it. One call is told from another by its line.
struct Site {
  const char* what;
  const char* file;
  int line;
};

// Ends the launch with an error.
[[noreturn]] void fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Barrier `id` of the block, complete when `count` threads have arrived; `wait` is false to arrive only.
void barrier(unsigned id, unsigned count, bool wait, Site site);

// An operation of the lanes of a warp: every lane hands in its operand and waits. The last one to arrive
// calls `perform` with all of them, indexed by lane, which leaves each lane's result in its operand.
void gather(unsigned lanes, Site site, void* operand, void (*perform)(unsigned lanes, void* const* operands));

unsigned lane();
unsigned live_lanes();  // of the calling thread's warp

void* dynamic_shared(Bytes alignment);

// Asynchronous copies of the calling thread. Their bytes arrive when they are waited for and not before;
// until then the destination is poisoned.
void copy_later(void* to, const void* bytes, unsigned size);
void commit_copies();
void wait_copies(unsigned groups_left);
void wait_copies();

// Tells those who count traffic of an access that no hook tells of: what a wrapper of PTX does for its lane.
enum Kind { READ, WRITE, COPY };  // COPY: an asynchronous copy's read
void access(const void* address, unsigned bytes, Kind kind);

// c += a b, of row-major matrices: a is m by k, b is k by n. In double precision every product and every sum is
// rounded, in the order of k. In single precision it is as tensor cores do it, `step` of k at a time: the products
// and c are cut off 24 bits below the first bit of the largest of them, added exactly, and their sum is cut off to
// a float. Nothing is rounded, so sums err towards zero; infinities and NaN are IEEE's.
void add_product(int m, int n, int k, const double* a, const double* b, double* c);
void add_product(int m, int n, int k, int step, const float* a, const float* b, float* c);

}  // namespace emulator
