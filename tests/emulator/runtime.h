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
void copy_later(void* to, const void* bytes, unsigned size, Site site);
void commit_copies();
void wait_copies(unsigned groups_left);
void wait_copies();

// The offset of dynamic shared memory from where such addresses begin, a multiple of 1024: below 2^18.
unsigned shared_address(const void* shared, Site site);

// Barriers in shared memory. What the runtime knows of one is under its address; the word itself holds a token. The
// copies of arrive_after_copies arrive, and it does, when no thread can go on otherwise.
void init_mbarrier(unsigned long long* barrier, int arrivals, Site site);
void arrive(unsigned long long* barrier, Site site);
void arrive_after_copies(unsigned long long* barrier, Site site);
void wait_for_phase(unsigned long long* barrier, unsigned parity, Site site);

// What the calling warp's threads have of registers; the four warps of a warpgroup have to ask for the same.
void set_registers(unsigned count, bool more, Site site);

// From here on products of the calling thread's warp, once all of its lanes have called, may read what copies have
// written by now, and those of any warp what the thread's own copies have, if it has waited for them.
void fence_copies();

// A product of 64 rows by n columns, as one lane of the four warps hands it in. Elements are 32 / per_word bits wide.
// It is done when its warp waits for its group: until then the sums are poisoned, and the operands must not change.
struct Product {
  float* d;
  unsigned n, per_word;
  float (*element)(unsigned word, int i);
  const unsigned* a_registers;  // null if a is in shared memory
  unsigned long long a, b;      // descriptors
  bool a_k_major, b_k_major, add;
};
void multiply(const Product& product, Site site);
void fence_registers(Site site);
void commit_products(Site site);
void wait_products(unsigned groups_left, Site site);

// Tells those who count traffic of an access that no hook tells of: what a wrapper of PTX does for its lane.
enum Kind { READ, WRITE, COPY, PRODUCT };  // an asynchronous copy's read; that a product of warpgroups was begun
void access(const void* address, unsigned bytes, Kind kind);

// c += a b, of row-major matrices: a is m by k, b is k by n. In double precision every product and every sum is
// rounded, in the order of k. In single precision it is as tensor cores do it, `step` of k at a time: the products
// and c are cut off 24 bits below the first bit of the largest of them, added exactly, and their sum is cut off to
// a float. Nothing is rounded, so sums err towards zero; infinities and NaN are IEEE's.
void add_product(int m, int n, int k, const double* a, const double* b, double* c);
void add_product(int m, int n, int k, int step, const float* a, const float* b, float* c);

}  // namespace emulator
