// Runs a kernel's blocks one after another on the CPU, every thread of a block as a fiber.
//
// A fiber runs until it must wait, and then jumps straight to the next one that can go on; there is no preemption, so a
// launch is repeatable. All waiting is for an Event: whoever makes it true puts the waiting threads at the head of the
// queue, so that they run as far ahead of the others as the program's own barriers let them, which is what makes a
// missing barrier visible. Asynchronous copies that are to arrive somewhere do so when there is nobody left to run. A
// switch is a pair of __builtin_setjmp and __builtin_longjmp (a context of the C library would cost a system call); a
// fiber starts as a ucontext.
//
// Errors, faults included, jump back to emulator_run, which reports them and abandons the fibers. When
// AddressSanitizer is loaded faults are left to it; its symbols are weak here, so one runtime serves both.
#include "runtime.h"
#include "traffic.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

extern "C" {
[[gnu::weak]] void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
[[gnu::weak]] void __asan_unpoison_memory_region(const volatile void* start, size_t size);

// The mirrors of these two are in runner.py.
struct Job {
  void (*entry)(const void* const* pointers, const void* params);
  const void* pointers[4];
  const void* params;
  unsigned char *statics, *statics_end;
  uint64_t shared_bytes, seed;
  unsigned threads, grid, first, blocks;
  unsigned order;   // of the threads: 0 forward, 1 reverse, 2 shuffled
  unsigned poison;  // the byte that memory holds before it is written
  unsigned low;     // dynamic shared memory lies against its lower guard page, not the upper
  unsigned registers;  // that each thread has at launch
  uint64_t l1_bytes;
  emulator::Range operands[4];
  emulator::Tally (*tallies)[emulator::kinds][emulator::widths];  // null if nobody counts
  uint64_t *passes, code_bytes, *under_way;
  unsigned counted_from, counted;  // of which threads
};

struct Report {
  char message[2048];
  char module[1024];  // of the faulting instruction, and its offset therein
  uint64_t offset;
  uint64_t address;  // that a fault was about
  int64_t block, thread;
  int fault;
};
}

uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

constexpr unsigned max_threads = 1024;
constexpr unsigned time_limit = 300;  // seconds; a launch of a test takes a fraction of one
constexpr size_t stack_bytes = 256 << 10;
constexpr size_t shared_bytes = 256 << 10;
constexpr size_t guard_bytes = 16 << 20;  // address space only

struct Context {
  void* registers[5];
  bool started;
  ucontext_t start;
  char* stack;
  size_t stack_size;
  void* fake_stack;
};

struct Copy {
  void* to;
  unsigned size, group;
  unsigned char bytes[16];
};

struct Thread : Context {
  unsigned index;
  bool finished;
  emulator::Site site;  // where it waits
  Thread* next;         // that waits for the same event
  std::vector<Copy> copies;
  unsigned group;   // of the copies issued now
  uint64_t copied;  // copies that are done, and no longer in the list
  uint64_t fenced;  // when it last called fence_copies
};

struct Event {
  Thread *first, *last;
};

struct Barrier {
  unsigned count, arrived;
  emulator::Site site;
  Event complete;
};

// In shared memory, where its word holds a token.
struct MBarrier {
  const unsigned long long* word;
  unsigned expected, pending;
  uint64_t phase;
  Event ended;
};
constexpr unsigned long long mbarrier_token = 0x6d62617272696572;

// That so many of the thread's copies are done, and what arrives then.
struct Delivery {
  Thread* thread;
  uint64_t copies;
  unsigned long long* barrier;
  emulator::Site site;
};

// 16 bytes of dynamic shared memory: when a copy last wrote there, and whose, if that thread has waited for it.
struct Chunk {
  uint64_t written;
  const Thread* writer;
};

struct Gathering {
  unsigned lanes, arrived;
  emulator::Site site;
  void* operands[32];
  Event complete;
};

// The threads that can go on: a ring that threads enter at either end.
struct Queue {
  Thread* ring[max_threads];
  unsigned head, size;

  void push_back(Thread* thread) { ring[(head + size++) % max_threads] = thread; }
  void push_front(Thread* thread) {
    head = (head - 1) % max_threads;
    size++;
    ring[head] = thread;
  }
  Thread* pop_front() {
    Thread* thread = ring[head];
    head = (head + 1) % max_threads;
    size--;
    return thread;
  }
};

const Job* job;
Report* report;
Context outside;
Thread threads[max_threads];
Thread* current;
unsigned unfinished;
Queue queue;
uint64_t random_state;
Barrier barriers[16];
struct Warp {
  unsigned open;  // which of the gatherings wait for more lanes
  Gathering gatherings[32];
};
Warp warps[max_threads / 32];
unsigned char* shared;  // the region that dynamic shared memory is part of; its addresses begin here
unsigned char* dynamic;
size_t dynamic_slack;  // between its end and the guard page
emulator::Traffic traffic;
bool performing;  // what a warp does together; its accesses are those of the lanes, who have told of them

// Whether what the running thread does is counted.
bool counting() {
  return traffic.tallies && current && !performing && current->index - job->counted_from < job->counted;
}
std::vector<MBarrier> mbarriers;
std::vector<Delivery> deliveries;
uint64_t now;  // counts what copies wrote and fences
Chunk chunks[shared_bytes / 16];
unsigned blocks_run, copied_in[shared_bytes / 4];  // by word: in which block a copy that is under way began

struct Call {
  emulator::Product product;
  emulator::Site site;
};

// An array of each lane's that products have used: sums, or fragments of a.
struct Registers {
  uint32_t* of[32];
  unsigned count;
  std::vector<uint32_t> known;  // what was there at the last fence, or what a product has left there since; by lane
  unsigned under_way;           // products that write there
  std::vector<float> sums;      // those of the products that are done, 16 rows of them
};

struct UnderWay {
  Call call;  // the first lane's
  unsigned group;
  size_t sums;  // the place in the warp's registers
  const uint32_t* fragments[32];
  uint32_t held[32][4];                 // by the fragments
  std::vector<unsigned> a, b;           // addresses of chunks
  std::vector<unsigned char> of_a, of_b;  // what was there
};

// What a warp has to do with its warpgroup.
struct Member {
  bool fenced;
  unsigned group, issued;  // of the products issued now, and how many there have been
  std::vector<Registers> registers;
  std::vector<UnderWay> under_way;
  unsigned has, wants, set;  // registers of a thread, and how often it has asked for another number
};
Member members[max_threads / 32];

struct Setting {
  unsigned count;
  bool more;
  emulator::Site site;
};
struct Warpgroup {  // what its warps do, by the first one that does it
  std::vector<Call> calls;
  std::vector<Setting> settings;
};
Warpgroup warpgroups[max_threads / 128];
unsigned free_registers;
Event registers_given;

// Whole pages of memory between pages that cannot be accessed.
char* guarded_region(size_t size) {
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* region = mmap(nullptr, size + 2 * guard_bytes, PROT_NONE, flags, -1, 0);
  if (region == MAP_FAILED) return nullptr;
  char* start = static_cast<char*>(region) + guard_bytes;
  mprotect(start, size, PROT_READ | PROT_WRITE);
  return start;
}

// Not memset: the sanitizer would check it, and red zones between variables are to be filled like the rest.
emulator::Range range_of(const void* begin, const void* end) {
  return {reinterpret_cast<uint64_t>(begin), reinterpret_cast<uint64_t>(end)};
}

void fill(unsigned char* start, const unsigned char* end) {
  const unsigned char poison = job->poison;
  for (; start < end; start++) *start = poison;
}

bool same(const emulator::Site& a, const emulator::Site& b) { return a.file == b.file && a.line == b.line; }

// ---- switching ----

[[noreturn, gnu::noinline, gnu::no_sanitize_address]] void jump(Context& to) {
  if (!to.started) {
    to.started = true;
    setcontext(&to.start);
  }
  __builtin_longjmp(to.registers, 1);
}

[[gnu::noinline]] void switch_from(Context& from, Context& to) {
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_size);
  if (__builtin_setjmp(from.registers) == 0) jump(to);
  if (__sanitizer_finish_switch_fiber) {
    Context& here = current ? static_cast<Context&>(*current) : outside;
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(here.fake_stack, &bottom, &size);
  }
}

[[noreturn]] void leave() {
  current = nullptr;
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(nullptr, outside.stack, outside.stack_size);
  jump(outside);
}

[[noreturn]] void fail_here(const char* format, va_list arguments) {
  vsnprintf(report->message, sizeof report->message, format, arguments);
  report->block = blockIdx.x;
  report->thread = current ? int64_t(current->index) : -1;
  leave();
}

[[noreturn, gnu::format(printf, 1, 2)]] void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fail_here(format, arguments);
}

[[noreturn]] void report_deadlock() {
  char text[1800];
  int length = 0;
  const unsigned count = job->threads;
  auto alike = [](const Thread& a, const Thread& b) {
    return a.finished == b.finished && (a.finished || same(a.site, b.site));
  };
  for (unsigned first = 0, last; first < count && length < int(sizeof text) - 400; first = last + 1) {
    for (last = first; last + 1 < count && alike(threads[first], threads[last + 1]); last++) {
    }
    const emulator::Site& site = threads[first].site;
    char* end = text + length;
    const size_t left = sizeof text - length;
    length += snprintf(end, left, "%sthreads %u to %u ", first ? "; " : "", first, last);
    end = text + length;
    length += threads[first].finished
                  ? snprintf(end, left, "have exited")
                  : snprintf(end, left, "wait at %s (%s:%d)", site.what, site.file, site.line);
  }
  current = nullptr;
  fail("deadlock: %s", text);
}

unsigned random_below(unsigned count) {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (random_state >> 33) % count;
}

void deliver();

// Goes on with the thread whose turn it is, or ends the block. The caller has queued itself, or waits.
void switch_away() {
  Context& from = *current;
  while (queue.size == 0 && unfinished && !deliveries.empty()) deliver();
  if (queue.size == 0) {
    if (unfinished) report_deadlock();
    current = nullptr;
    switch_from(from, outside);
    return;
  }
  if (job->order == 2) {
    const unsigned chosen = (queue.head + random_below(queue.size)) % max_threads;
    std::swap(queue.ring[queue.head], queue.ring[chosen]);
  }
  current = queue.pop_front();
  threadIdx.x = current->index;
  if (current != &from) switch_from(from, *current);
}

void add_to(Event& event) {
  current->next = nullptr;
  (event.last ? event.last->next : event.first) = current;
  event.last = current;
}

void notify_all(Event& event) {
  Thread* reversed = nullptr;
  for (Thread *thread = event.first, *next; thread; thread = next) {
    next = thread->next;
    thread->next = reversed;
    reversed = thread;
  }
  for (; reversed; reversed = reversed->next) queue.push_front(reversed);
  event = {};
}

// ---- copies and barriers in shared memory ----

// Copies arrive, the first ones that the thread has issued.
void finish_copies(Thread& thread, size_t count, const Thread* waiting) {
  for (size_t i = 0; i < count; i++) {
    const Copy& copy = thread.copies[i];
    memcpy(copy.to, copy.bytes, copy.size);
    const size_t offset = static_cast<unsigned char*>(copy.to) - shared;
    if (offset >= shared_bytes) continue;
    chunks[offset / 16] = {++now, waiting};
    for (unsigned word = 0; word < copy.size / 4; word++) copied_in[offset / 4 + word] = 0;
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + count);
  thread.copied += count;
}

MBarrier& find_mbarrier(const unsigned long long* word, emulator::Site site) {
  for (MBarrier& barrier : mbarriers) {
    if (barrier.word != word) continue;
    if (*word != mbarrier_token) emulator::fail(site, "the barrier has been overwritten");
    return barrier;
  }
  emulator::fail(site, "the barrier was never initialised");
}

void arrive_at(MBarrier& barrier) {
  if (--barrier.pending) return;
  barrier.pending = barrier.expected;
  barrier.phase++;
  notify_all(barrier.ended);
}

// The oldest delivery or, shuffled, the oldest of some thread. Errors are that thread's.
void deliver() {
  auto chosen = deliveries.begin();
  if (job->order == 2) {
    const Thread* thread = deliveries[random_below(deliveries.size())].thread;
    while (chosen->thread != thread) ++chosen;
  }
  const Delivery delivery = *chosen;
  deliveries.erase(chosen);
  Thread& thread = *delivery.thread;
  current = &thread;
  if (delivery.copies > thread.copied) finish_copies(thread, delivery.copies - thread.copied, nullptr);
  arrive_at(find_mbarrier(delivery.barrier, delivery.site));
}

// ---- products of warpgroups ----

// How a descriptor says that rows by k lie in shared memory, in bytes: see cuda_src/ptx/sm90.cuh.
struct Operand {
  unsigned start, leading, stride, base, line;  // lines that are not swizzled have 16 bytes
  bool k_major;

  Operand(unsigned long long descriptor, bool k_major, emulator::Site site) : k_major(k_major) {
    constexpr unsigned long long field = 0x3fff;
    if (descriptor & ~(field | field << 16 | field << 32 | 7ull << 49 | 3ull << 62))
      emulator::fail(site, "descriptor %016llx has bits that mean nothing", descriptor);
    constexpr unsigned lines[] = {16, 128, 64, 32};
    start = (descriptor & field) << 4;
    leading = (descriptor >> 16 & field) << 4;
    stride = (descriptor >> 32 & field) << 4;
    base = descriptor >> 49 & 7;
    line = lines[descriptor >> 62];
    if (line == 16 && base) emulator::fail(site, "an operand that is not swizzled has no pattern to begin at %u", base);
    if (line == 16) return;
    if ((start >> 7 & pattern()) != (base & pattern()) || start % 128 >= line)
      emulator::fail(site, "an operand at %#x begins inside its pattern of %u bytes, whose base is said to be %u",
                     start, 8 * line, base);
    if (start % line + (k_major ? 32 : line) > line)
      emulator::fail(site, "an operand at %#x leaves its line of %u bytes", start, line);
  }

  unsigned pattern() const { return line / 16 - 1; }

  // The address of the 16 bytes of k that begin with byte k of a row or, MN-major, of those rows for one k.
  unsigned chunk(unsigned row, unsigned k) const {
    if (line == 16 && k_major) return start + row % 8 * 16 + k / 16 * leading + row / 8 * stride;
    if (line == 16) return start + k % 8 * 16 + k / 8 * leading + row / 8 * stride;
    const unsigned rows = line / 2;  // of a line
    const unsigned address = start + (k_major ? row % 8 * line + row / 8 * stride + k
                                              : row % rows * 2 + k % 8 * line + row / rows * leading + k / 8 * stride);
    return address ^ (((address >> 7) - base) & pattern()) << 4;
  }

  // The chunks of 32 bytes of k of some rows: by row or, MN-major, by k.
  std::vector<unsigned> addresses(unsigned first, unsigned rows) const {
    std::vector<unsigned> all;
    for (unsigned i = 0; i < 2 * rows; i++)
      all.push_back(k_major ? chunk(first + i / 2, i % 2 * 16) : chunk(first + i % (rows / 8) * 8, i / (rows / 8)));
    return all;
  }
};

void check_whole(emulator::Site site) {
  if (current->index / 128 * 128 + 128 > job->threads) emulator::fail(site, "the warpgroup has not got four warps");
}

bool same(const Call& x, const Call& y) {
  const emulator::Product &a = x.product, &b = y.product;
  return same(x.site, y.site) && a.n == b.n && a.element == b.element && !a.a_registers == !b.a_registers &&
         a.a == b.a && a.b == b.b && a.a_k_major == b.a_k_major && a.b_k_major == b.b_k_major && a.add == b.add;
}

// The row and the column of lane's i-th sum, as a place in 16 rows of n.
unsigned place(unsigned lane, unsigned i, unsigned n) {
  return (lane / 4 + i % 4 / 2 * 8) * n + i / 4 * 8 + lane % 4 * 2 + i % 2;
}

// What is read of sums under way: NaN in one pass, and in the other a number below 1, which does not swallow what a
// thread adds to it.
uint32_t poisoned() { return job->poison == 0xff ? ~0u : 0x3f000000 | (job->poison & 0x7f) * 0x010101u; }

// Not memcpy: what was an array may be a part of the stack that the sanitizer has closed.
void remember(Registers& registers) {
  registers.known.resize(32 * registers.count);
  for (unsigned lane = 0; lane < 32; lane++)
    for (unsigned i = 0; i < registers.count; i++)
      registers.known[lane * registers.count + i] = registers.of[lane][i];
}

bool as_known(const Registers& registers) {
  for (unsigned lane = 0; lane < 32; lane++)
    for (unsigned i = 0; i < registers.count; i++)
      if (registers.of[lane][i] != registers.known[lane * registers.count + i]) return false;
  return true;
}

// The place of those registers among the ones that the warp is known to use.
size_t find_registers(Member& member, uint32_t* const (&of)[32], unsigned count, emulator::Site site) {
  auto& all = member.registers;
  size_t found = 0;
  while (found < all.size() && all[found].of[0] != of[0]) found++;
  if (found == all.size()) all.push_back({{}, 0, {}, 0, {}});
  Registers& registers = all[found];
  if (registers.count == count && std::equal(of, of + 32, registers.of)) return found;
  if (registers.under_way) emulator::fail(site, "products with other sums in the same registers are under way");
  std::copy(of, of + 32, registers.of);
  registers.count = count;
  remember(registers);
  return found;
}

// What is at those addresses, for a product of lanes all of which have called fence_copies since `fenced`.
std::vector<unsigned char> read_chunks(const std::vector<unsigned>& addresses, uint64_t fenced, emulator::Site site) {
  std::vector<unsigned char> bytes(16 * addresses.size());
  for (size_t i = 0; i < addresses.size(); i++) {
    const unsigned address = addresses[i];
    if (!dynamic || shared + address < dynamic || shared + address + 16 > dynamic + job->shared_bytes)
      emulator::fail(site, "an operand is outside of dynamic shared memory, at %#x", address);
    for (unsigned word = address / 4; word < address / 4 + 4; word++)
      if (copied_in[word] == blocks_run) emulator::fail(site, "reads where an asynchronous copy has yet to arrive");
    // Ordinary stores are no less in want of a fence, but nobody tells of them.
    const Chunk& chunk = chunks[address / 16];
    if (chunk.written > fenced && !(chunk.writer && chunk.written < chunk.writer->fenced))
      emulator::fail(site, "reads what an asynchronous copy wrote after the last fence.proxy.async");
    memcpy(&bytes[16 * i], shared + address, 16);
  }
  return bytes;
}

void issue(const Call* const* calls) {
  const unsigned warp = current->index / 32;
  Member& member = members[warp];
  const Call& call = *calls[0];
  const emulator::Product& product = call.product;
  const emulator::Site site = call.site;
  for (int lane = 1; lane < 32; lane++)
    if (!same(*calls[lane], call)) emulator::fail(site, "lanes 0 and %d have different operands", lane);
  auto& issued = warpgroups[warp / 4].calls;
  if (member.issued == issued.size()) issued.push_back(call);
  const Call& first = issued[member.issued++];
  if (!same(first, call))
    emulator::fail(site, "another warp of the warpgroup has another product in its place (%s:%d)", first.site.file,
                   first.site.line);
  if (!member.fenced) emulator::fail(site, "there was no wgmma.fence before the first product");

  UnderWay under_way = {call, member.group, 0, {}, {}, {}, {}, {}, {}};
  uint64_t fenced = now;
  for (unsigned lane = 0; lane < 32; lane++) fenced = std::min(fenced, threads[warp * 32 + lane].fenced);
  under_way.b = Operand(product.b, product.b_k_major, site).addresses(0, product.n);
  under_way.of_b = read_chunks(under_way.b, fenced, site);
  uint32_t* of[32];
  if (product.a_registers) {
    for (unsigned lane = 0; lane < 32; lane++) {
      const unsigned* own = under_way.fragments[lane] = calls[lane]->product.a_registers;
      std::copy(own, own + 4, under_way.held[lane]);
      of[lane] = const_cast<unsigned*>(own);
    }
    if (!as_known(member.registers[find_registers(member, of, 4, site)]))
      emulator::fail(site, "fragments of a were written after the last wgmma.fence");
  } else {
    under_way.a = Operand(product.a, product.a_k_major, site).addresses(warp % 4 * 16, 16);
    under_way.of_a = read_chunks(under_way.a, fenced, site);
  }

  for (unsigned lane = 0; lane < 32; lane++) of[lane] = reinterpret_cast<uint32_t*>(calls[lane]->product.d);
  under_way.sums = find_registers(member, of, product.n / 2, site);
  Registers& sums = member.registers[under_way.sums];
  if (!as_known(sums) && sums.under_way) emulator::fail(site, "a sum was written while a product was under way");
  // Sums that are not added need not be known: the array may be new, where another one has been.
  if (!as_known(sums) && product.add) emulator::fail(site, "sums were written after the last wgmma.fence");
  if (!sums.under_way++) {
    sums.sums.assign(16 * product.n, 0);
    if (product.add)
      for (unsigned lane = 0; lane < 32; lane++)
        for (unsigned i = 0; i < sums.count; i++)
          memcpy(&sums.sums[place(lane, i, product.n)], &sums.of[lane][i], sizeof(float));
    for (uint32_t* own : sums.of) std::fill_n(own, sums.count, poisoned());
    remember(sums);
  }
  member.under_way.push_back(std::move(under_way));
}

// The bytes of an operand become a matrix: (row, k) goes to row * row_step + k * k_step.
void decode(const emulator::Product& product, bool k_major, const std::vector<unsigned char>& bytes, float* matrix,
            unsigned row_step, unsigned k_step) {
  const unsigned rows = bytes.size() / 32, width = 8 * product.per_word;
  for (unsigned i = 0; i < bytes.size() / 4; i++) {
    uint32_t word;
    memcpy(&word, &bytes[4 * i], sizeof word);
    for (unsigned j = 0; j < product.per_word; j++) {
      const unsigned number = i * product.per_word + j;
      const unsigned row = k_major ? number / width : number % rows, k = k_major ? number % width : number / rows;
      matrix[row * row_step + k * k_step] = product.element(word, j);
    }
  }
}

void finish_product(Member& member, const UnderWay& under_way) {
  const emulator::Product& product = under_way.call.product;
  const emulator::Site site = under_way.call.site;
  const unsigned n = product.n, depth = 8 * product.per_word;
  auto check = [&](const std::vector<unsigned>& addresses, const std::vector<unsigned char>& bytes) {
    for (size_t i = 0; i < addresses.size(); i++)
      if (memcmp(shared + addresses[i], &bytes[16 * i], 16))
        emulator::fail(site, "an operand was overwritten, or arrived, while the product was under way");
  };
  check(under_way.a, under_way.of_a);
  check(under_way.b, under_way.of_b);
  static float left[16 * 16], right[16 * 256];
  if (product.a_registers) {
    for (unsigned lane = 0; lane < 32; lane++)
      for (unsigned i = 0; i < 4; i++) {
        const uint32_t word = under_way.held[lane][i];
        if (under_way.fragments[lane][i] != word)
          emulator::fail(site, "fragments of a were written while the product was under way");
        float* to = left + (lane / 4 + i % 2 * 8) * depth + (lane % 4 + i / 2 * 4) * product.per_word;
        for (unsigned j = 0; j < product.per_word; j++) to[j] = product.element(word, j);
      }
  } else {
    decode(product, product.a_k_major, under_way.of_a, left, depth, 1);
  }
  decode(product, product.b_k_major, under_way.of_b, right, 1, n);

  Registers& sums = member.registers[under_way.sums];
  if (!as_known(sums)) emulator::fail(site, "a sum was written while the product was under way");
  if (!product.add) sums.sums.assign(16 * n, 0);
  emulator::add_product(16, n, depth, depth, left, right, sums.sums.data());
  if (--sums.under_way) return;
  for (unsigned lane = 0; lane < 32; lane++)
    for (unsigned i = 0; i < sums.count; i++)
      memcpy(&sums.of[lane][i], &sums.sums[place(lane, i, n)], sizeof(float));
  remember(sums);
}

// ---- registers of a warpgroup's threads ----

// Warps that wait for registers get them, if there are enough for all that a warp wants.
void give_registers() {
  for (Member& member : members) {
    const unsigned wanted = 32 * (member.wants - member.has);
    if (!wanted || wanted > free_registers) continue;
    free_registers -= wanted;
    member.has = member.wants;
  }
  notify_all(registers_given);
}

void set_registers_of_warp(const Setting& setting) {
  const unsigned warp = current->index / 32;
  Member& member = members[warp];
  auto& settings = warpgroups[warp / 4].settings;
  if (member.set == settings.size()) settings.push_back(setting);
  const Setting& first = settings[member.set++];
  if (first.count != setting.count || first.more != setting.more)
    emulator::fail(setting.site, "another warp of the warpgroup has asked for %u registers at %s (%s:%d)", first.count,
                   first.site.what, first.site.file, first.site.line);
  if (setting.more ? setting.count < member.has : setting.count > member.has)
    emulator::fail(setting.site, "asks for %u registers where threads have %u", setting.count, member.has);
  member.wants = setting.count;
  if (!setting.more) {
    free_registers += 32 * (member.has - setting.count);
    member.has = setting.count;
  }
  give_registers();
}

// At the end of a block: all warps of a warpgroup have done the same.
void check_warpgroups() {
  for (unsigned warp = 0; warp < job->threads / 32; warp++) {
    const Member& member = members[warp];
    const Warpgroup& warpgroup = warpgroups[warp / 4];
    auto fail = [&](emulator::Site site) {
      emulator::fail(site, "warp %u has exited without it, others of its warpgroup have not", warp);
    };
    if (member.issued < warpgroup.calls.size()) fail(warpgroup.calls[member.issued].site);
    if (member.set < warpgroup.settings.size()) fail(warpgroup.settings[member.set].site);
  }
}

void run_thread() {
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
  for (;;) {
    job->entry(job->pointers, job->params);
    const Member& member = members[current->index / 32];
    if (!member.under_way.empty())
      emulator::fail(member.under_way.front().call.site, "exits while products are under way");
    current->finished = true;
    if (--unfinished == 0) check_warpgroups();
    switch_away();
  }
}

bool prepare(Thread& thread, unsigned index) {
  thread.index = index;
  if (!thread.stack) thread.stack = guarded_region(stack_bytes);
  if (!thread.stack) return false;
  // Stacks that all began at the same offset in a page would compete for the same lines of the cache.
  thread.stack_size = stack_bytes - (index * 320) % 4096;
  if (!thread.started) {
    if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(thread.stack, thread.stack_size);
    getcontext(&thread.start);
    thread.start.uc_stack.ss_sp = thread.stack;
    thread.start.uc_stack.ss_size = thread.stack_size;
    makecontext(&thread.start, run_thread, 0);
  }
  return true;
}

// Of the calling thread of the operating system, which the sanitizer wants to be told of.
void find_stack(Context& context) {
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  void* stack;
  pthread_attr_getstack(&attributes, &stack, &context.stack_size);
  pthread_attr_destroy(&attributes);
  context.stack = static_cast<char*>(stack);
}

// ---- faults ----

constexpr int fault_signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGALRM};
constexpr int signal_count = sizeof fault_signals / sizeof *fault_signals;

// The jump out of the handler is safe: signals come only from the kernel's own instructions, and SA_NODEFER
// leaves the signal mask as it was.
void handle_signal(int signal, siginfo_t* info, void* context) {
  if (signal == SIGALRM) fail("ran for more than %u seconds", time_limit);
  auto& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
  const char* access = "accesses";
#if defined(__x86_64__)
  void* at = reinterpret_cast<void*>(machine.gregs[REG_RIP]);
  access = machine.gregs[REG_ERR] & 2 ? "writes to" : "reads from";
#elif defined(__aarch64__)
  void* at = reinterpret_cast<void*>(machine.pc);
#else
  void* at = nullptr;
  (void)machine;
#endif
  Dl_info module;
  if (dladdr(at, &module) && module.dli_fname) {
    snprintf(report->module, sizeof report->module, "%s", module.dli_fname);
    report->offset = static_cast<char*>(at) - static_cast<char*>(module.dli_fbase);
  }
  if (signal != SIGSEGV && signal != SIGBUS) fail("%s", strsignal(signal));
  auto* address = static_cast<char*>(info->si_addr);
  if (current && address >= current->stack - guard_bytes && address < current->stack) fail("stack overflow");
  auto* byte = reinterpret_cast<unsigned char*>(address);
  if (dynamic && byte >= shared - guard_bytes && byte < shared + shared_bytes + guard_bytes) {
    const long long before = dynamic - byte, beyond = byte - (dynamic + job->shared_bytes);
    if (before > 0) fail("%s %lld bytes before the start of dynamic shared memory", access, before);
    fail("%s %lld bytes beyond the end of dynamic shared memory", access, beyond);
  }
  report->address = reinterpret_cast<uint64_t>(address);
  report->fault = 1;
  fail("%s", access);
}

struct Handlers {
  struct sigaction before[signal_count];
  stack_t stack_before;

  Handlers() {
    static char stack[64 << 10];
    stack_t alternate = {};
    alternate.ss_sp = stack;
    alternate.ss_size = sizeof stack;
    sigaltstack(&alternate, &stack_before);
    struct sigaction action = {};
    action.sa_sigaction = handle_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < signal_count; i++) sigaction(fault_signals[i], &action, &before[i]);
    alarm(time_limit);
  }
  ~Handlers() {
    alarm(0);
    for (int i = 0; i < signal_count; i++) sigaction(fault_signals[i], &before[i], nullptr);
    sigaltstack(&stack_before, nullptr);
  }
};

// ---- a launch ----

void run_block(unsigned block) {
  blockIdx.x = block;
  fill(job->statics, job->statics_end);
  dynamic = nullptr;
  queue.head = queue.size = 0;
  memset(barriers, 0, sizeof barriers);
  for (Warp& warp : warps) warp.open = 0;
  performing = false;
  mbarriers.clear();
  deliveries.clear();
  now++;
  blocks_run++;
  for (Member& member : members) member = {false, 0, 0, {}, {}, job->registers, job->registers, 0};
  for (Warpgroup& warpgroup : warpgroups) warpgroup = {};
  free_registers = 0;
  registers_given = {};
  unfinished = job->threads;
  if (traffic.tallies) traffic.begin_block(job->threads);
  for (unsigned i = 0; i < job->threads; i++) {
    Thread& thread = threads[job->order == 1 ? job->threads - 1 - i : i];
    thread.finished = false;
    thread.copies.clear();
    thread.group = 0;
    thread.copied = 0;
    thread.fenced = now;
    queue.push_back(&thread);
  }
  current = queue.pop_front();
  threadIdx.x = current->index;
  switch_from(outside, *current);
  if (traffic.tallies) traffic.meet();
}

}  // namespace

// ---- what kernels call ----

namespace emulator {

void fail(Site site, const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  ::fail("%s: %s (%s:%d)", site.what, text, site.file, site.line);
}

void barrier(unsigned id, unsigned count, bool wait, Site site) {
  if (id >= 16) fail(site, "there is no barrier %u", id);
  if (count == 0) count = job->threads;
  if (id && (count % 32 || count > job->threads)) fail(site, "a barrier cannot wait for %u threads", count);
  Barrier& barrier = barriers[id];
  if (barrier.arrived == 0) {
    barrier.count = count;
    barrier.site = site;
  } else if (barrier.count != count) {
    fail(site, "expects %u threads at barrier %u, but those who wait expect %u", count, id, barrier.count);
  } else if (id == 0 && !same(site, barrier.site)) {
    const Site& other = barrier.site;
    fail(site, "other threads wait at another %s (%s:%d)", other.what, other.file, other.line);
  }
  barrier.arrived++;
  if (wait) {
    current->site = site;
    add_to(barrier.complete);
  }
  if (barrier.arrived == barrier.count) {
    barrier.arrived = 0;
    if (traffic.tallies && barrier.count == unfinished) traffic.meet();
    notify_all(barrier.complete);
  }
  if (wait) switch_away();
}

void gather(unsigned lanes, Site site, void* operand, void (*perform)(unsigned, void* const*)) {
  const unsigned self = lane();
  if (!(lanes >> self & 1)) fail(site, "lane %u is not in its own mask %08x", self, lanes);
  Warp& warp = warps[current->index / 32];
  unsigned slot = __builtin_ctz(~warp.open);
  for (unsigned open = warp.open; open; open &= open - 1) {
    const Gathering& other = warp.gatherings[__builtin_ctz(open)];
    if (other.lanes != lanes) continue;
    slot = __builtin_ctz(open);
    if (!same(site, other.site))
      fail(site, "other lanes wait at %s (%s:%d)", other.site.what, other.site.file, other.site.line);
  }
  Gathering& gathering = warp.gatherings[slot];
  if (!(warp.open >> slot & 1)) {
    warp.open |= 1u << slot;
    gathering = {lanes, 0, site, {}, {}};
  }
  gathering.arrived |= 1u << self;
  gathering.operands[self] = operand;
  current->site = site;
  add_to(gathering.complete);
  if (gathering.arrived == lanes) {
    warp.open &= ~(1u << slot);
    performing = true;
    perform(lanes, gathering.operands);
    performing = false;
    notify_all(gathering.complete);
  }
  switch_away();
}

unsigned lane() { return current->index % 32; }

unsigned live_lanes() {
  unsigned lanes = 0;
  const unsigned first = current->index / 32 * 32;
  for (unsigned i = first; i < first + 32 && i < job->threads; i++)
    lanes |= unsigned(!threads[i].finished) << i % 32;
  return lanes;
}

void* dynamic_shared(Bytes alignment) {
  if (!dynamic) {
    const size_t start = job->low ? 0 : (shared_bytes - job->shared_bytes) / alignment * alignment;
    dynamic = shared + start;
    dynamic_slack = job->low ? 0 : shared_bytes - job->shared_bytes - start;
    fill(dynamic, dynamic + job->shared_bytes + dynamic_slack);
    traffic.ranges[emulator::DYNAMIC] = range_of(dynamic, dynamic + job->shared_bytes);
  }
  return dynamic;
}

void access(const void* address, unsigned bytes, Kind kind) {
  if (counting()) traffic.add(current->index, __builtin_return_address(0), address, bytes, kind);
}

void copy_later(void* to, const void* bytes, unsigned size, Site site) {
  auto* byte = static_cast<unsigned char*>(to);
  const size_t offset = byte - shared;
  if (offset < shared_bytes)
    for (unsigned word = 0; word < size / 4; word++) {
      unsigned& began = copied_in[offset / 4 + word];
      if (began == blocks_run) fail(site, "writes to where another copy has yet to arrive");
      began = blocks_run;
    }
  Copy copy = {to, size, current->group, {}};
  memcpy(copy.bytes, bytes, size);
  current->copies.push_back(copy);
  if (counting()) {
    uint64_t bytes = 0;
    for (const Copy& other : current->copies) bytes += other.size;
    *traffic.under_way = std::max(*traffic.under_way, bytes);
  }
  fill(byte, byte + size);
}

void commit_copies() { current->group++; }

static void finish_groups(unsigned groups) {
  const auto& copies = current->copies;
  size_t done = 0;
  while (done < copies.size() && copies[done].group < groups) done++;
  ::finish_copies(*current, done, current);
}

void wait_copies(unsigned groups_left) {
  finish_groups(current->group > groups_left ? current->group - groups_left : 0);
}

void wait_copies() { finish_groups(current->group + 1); }

void init_mbarrier(unsigned long long* barrier, int arrivals, Site site) {
  const auto* byte = reinterpret_cast<unsigned char*>(barrier);
  const bool is_shared = (job->statics <= byte && byte < job->statics_end) ||
                         (dynamic && dynamic <= byte && byte + 8 <= dynamic + job->shared_bytes);
  if (!is_shared || reinterpret_cast<uint64_t>(barrier) % 8)
    fail(site, "there is no room for a barrier at %p", static_cast<void*>(barrier));
  if (arrivals < 1 || arrivals >= 1 << 20) fail(site, "a barrier cannot expect %d arrivals", arrivals);
  for (const MBarrier& other : mbarriers)
    if (other.word == barrier) fail(site, "the barrier has been initialised before");
  *barrier = mbarrier_token;
  mbarriers.push_back({barrier, unsigned(arrivals), unsigned(arrivals), 0, {}});
}

void arrive(unsigned long long* barrier, Site site) { arrive_at(find_mbarrier(barrier, site)); }

void arrive_after_copies(unsigned long long* barrier, Site site) {
  find_mbarrier(barrier, site);
  deliveries.push_back({current, current->copied + current->copies.size(), barrier, site});
}

// A phase that ends and is followed by the end of the next before the thread goes on is one that it has missed.
void wait_for_phase(unsigned long long* barrier, unsigned parity, Site site) {
  if (parity > 1) fail(site, "a phase cannot have parity %u", parity);
  while ((find_mbarrier(barrier, site).phase & 1) == parity) {
    current->site = site;
    add_to(find_mbarrier(barrier, site).ended);
    switch_away();
  }
}

void fence_copies() { current->fenced = ++now; }

unsigned shared_address(const void* address, Site site) {
  const auto* byte = static_cast<const unsigned char*>(address);
  if (!dynamic || byte < dynamic || byte > dynamic + job->shared_bytes)
    fail(site, "%p is not in dynamic shared memory", address);
  return byte - shared;
}

void multiply(const Product& product, Site site) {
  check_whole(site);
  access(dynamic, 16, PRODUCT);
  Call call = {product, site};
  gather(~0u, site, &call, [](unsigned, void* const* calls) {
    if (traffic.tallies)
      for (int lane = 0; lane < 32; lane++) {
        const Product& own = static_cast<Call*>(calls[lane])->product;
        std::fill_n(own.d, own.n / 2, 0.f);  // nobody asks what the sums are
      }
    else
      issue(reinterpret_cast<const Call* const*>(calls));
  });
}

void fence_registers(Site site) {
  check_whole(site);
  gather(~0u, site, nullptr, [](unsigned, void* const*) {
    Member& member = members[current->index / 32];
    member.fenced = true;
    for (Registers& registers : member.registers)
      if (!registers.under_way) remember(registers);
  });
}

void commit_products(Site site) {
  check_whole(site);
  gather(~0u, site, nullptr, [](unsigned, void* const*) { members[current->index / 32].group++; });
}

void wait_products(unsigned groups_left, Site site) {
  check_whole(site);
  gather(~0u, site, &groups_left, [](unsigned, void* const* left) {
    Member& member = members[current->index / 32];
    const unsigned groups_left = *static_cast<unsigned*>(left[0]);
    size_t done = 0;
    for (; done < member.under_way.size() && member.under_way[done].group + groups_left < member.group; done++)
      finish_product(member, member.under_way[done]);
    member.under_way.erase(member.under_way.begin(), member.under_way.begin() + done);
  });
}

void set_registers(unsigned count, bool more, Site site) {
  check_whole(site);
  Setting setting = {count, more, site};
  gather(~0u, site, &setting, [](unsigned, void* const* settings) {
    set_registers_of_warp(*static_cast<Setting*>(settings[0]));
  });
  const Member& member = members[current->index / 32];
  while (member.has != member.wants) {
    current->site = site;
    add_to(registers_given);
    switch_away();
  }
}

void add_product(int m, int n, int k, const double* a, const double* b, double* c) {
  for (int i = 0; i < m; i++)
    for (int l = 0; l < k; l++)
      for (int j = 0; j < n; j++) c[i * n + j] += a[i * k + l] * b[l * n + j];
}

// The float next to an exact sum, towards zero.
static float cut_off(double sum) {
  float value = sum;
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  bits -= std::abs(double(value)) > std::abs(sum) && std::abs(sum) < 0x1p128;
  memcpy(&value, &bits, sizeof bits);
  return value;
}

static double power_of_two(uint64_t biased_exponent) {
  const uint64_t bits = biased_exponent << 52;
  double power;
  memcpy(&power, &bits, sizeof power);
  return power;
}

void add_product(int m, int n, int k, int step, const float* a, const float* b, float* c) {
  constexpr int width = 8;  // columns at a time, which the compiler makes vectors of
  constexpr int most = 32;
  if (n % width || k % step || step > most) ::fail("a product of %d columns, %d of %d at a time", n, step, k);
  for (int row = 0; row < m; row++)
    for (int column = 0; column < n; column += width)
      for (int start = 0; start < k; start += step) {
        float* own = c + row * n + column;
        // Products of two floats are exact. The sum is there to be infinite or NaN if a term is.
        double terms[most + 1][width], largest[width], sum[width];
        for (int j = 0; j < width; j++) {
          sum[j] = terms[0][j] = own[j];
          largest[j] = std::max(std::abs(terms[0][j]), 0x1p-400);
        }
        for (int l = 0; l < step; l++)
          for (int j = 0; j < width; j++) {
            const double term = double(a[row * k + start + l]) * b[(start + l) * n + column + j];
            terms[l + 1][j] = term;
            sum[j] += term;
            largest[j] = std::max(largest[j], std::abs(term));
          }
        double units[width];  // in one
        for (int j = 0; j < width; j++) {
          uint64_t bits;
          memcpy(&bits, &largest[j], sizeof bits);
          units[j] = power_of_two(2 * 1023 + 24 - (bits >> 52));
        }
        unsigned cut[width] = {};  // signed numbers of less than 26 bits each
        for (int l = 0; l <= step; l++)
          for (int j = 0; j < width; j++) cut[j] += static_cast<int>(terms[l][j] * units[j]);
        for (int j = 0; j < width; j++)
          own[j] = std::isfinite(sum[j]) ? cut_off(static_cast<int>(cut[j]) / units[j]) : static_cast<float>(sum[j]);
      }
}

}  // namespace emulator

// ---- what -fsanitize=thread calls ----

#define ACCESS(name, bytes, kind)                                                                   \
  extern "C" void __tsan_##name(const void* address) {                                              \
    if (counting())                                                                                 \
      traffic.add(current->index, __builtin_return_address(0), address, bytes, emulator::kind);     \
  }
#define ACCESSES(bytes)                    \
  ACCESS(read##bytes, bytes, READ)         \
  ACCESS(write##bytes, bytes, WRITE)       \
  ACCESS(unaligned_read##bytes, bytes, READ) \
  ACCESS(unaligned_write##bytes, bytes, WRITE)
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

extern "C" void __sanitizer_cov_trace_pc() {
  if (counting()) traffic.pass(__builtin_return_address(0));
}

// Of structs that are no vector; those in shared or global memory are read member by member.
extern "C" void __tsan_read_range(const void*, size_t) {}
extern "C" void __tsan_write_range(const void*, size_t) {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() {}

// ---- what -fsanitize=undefined calls; the data of every check begins with its place in the source ----

namespace {
struct Place {
  const char* file;
  unsigned line, column;
};
struct Type {
  uint16_t kind, info;
  char name[1];
};
struct Mismatch {
  Place place;
  const Type* type;
  unsigned char log_alignment, kind;
};
struct OutOfBounds {
  Place place;
  const Type *array, *index;
};
}  // namespace

#define UNDEFINED(name, text) \
  extern "C" void __ubsan_handle_##name(const Place* at) { fail(text " (%s:%u)", at->file, at->line); }
UNDEFINED(add_overflow_abort, "signed integer overflow")
UNDEFINED(sub_overflow_abort, "signed integer overflow")
UNDEFINED(mul_overflow_abort, "signed integer overflow")
UNDEFINED(negate_overflow_abort, "signed integer overflow")
UNDEFINED(divrem_overflow_abort, "integer division by zero or overflow")
UNDEFINED(shift_out_of_bounds_abort, "shift out of bounds")
UNDEFINED(pointer_overflow_abort, "pointer arithmetic overflow")
UNDEFINED(load_invalid_value_abort, "load of a value that its type does not have")
UNDEFINED(invalid_builtin_abort, "undefined argument of a built-in function")
UNDEFINED(builtin_unreachable, "reaches what is declared unreachable")
UNDEFINED(missing_return, "end of a function without return")

extern "C" void __ubsan_handle_out_of_bounds_abort(const OutOfBounds* data, uint64_t index) {
  fail("index %lld out of bounds of %s (%s:%u)", static_cast<long long>(index), data->array->name,
       data->place.file, data->place.line);
}

extern "C" void __ubsan_handle_type_mismatch_v1_abort(const Mismatch* data, uint64_t address) {
  const char* kind = !address ? "null pointer to"
                     : address & ((uint64_t(1) << data->log_alignment) - 1)
                         ? "misaligned address for"
                         : "address without space for an object of type";
  fail("%s %s (%s:%u)", kind, data->type->name, data->place.file, data->place.line);
}

// ---- what runner.py calls ----

extern "C" unsigned char* emulator_map(size_t size) {
  return reinterpret_cast<unsigned char*>(guarded_region(size));
}

extern "C" void emulator_unmap(unsigned char* start, size_t size) {
  munmap(start - guard_bytes, size + 2 * guard_bytes);
}

extern "C" void emulator_protect(unsigned char* start, size_t size, int writable) {
  mprotect(start, size, writable ? PROT_READ | PROT_WRITE : PROT_READ);
}

extern "C" int emulator_run(const Job* the_job, Report* the_report) {
  job = the_job;
  report = the_report;
  *report = {};
  report->block = report->thread = -1;
  if (!shared) shared = reinterpret_cast<unsigned char*>(guarded_region(shared_bytes));
  bool ready = shared && job->threads <= max_threads && job->shared_bytes <= shared_bytes;
  for (unsigned i = 0; ready && i < job->threads; i++) ready = prepare(threads[i], i);
  if (!ready) {
    snprintf(report->message, sizeof report->message,
             "cannot run %u threads with %llu bytes of shared memory", job->threads,
             static_cast<unsigned long long>(job->shared_bytes));
    return 1;
  }
  blockDim = {job->threads, 1, 1};
  gridDim = {job->grid, 1, 1};
  random_state = job->seed;
  traffic.tallies = job->tallies;
  traffic.l1_lines = job->l1_bytes / 128;
  traffic.passes = job->passes;
  traffic.code_bytes = job->code_bytes;
  traffic.under_way = job->under_way;
  Dl_info module;
  if (traffic.tallies && dladdr(reinterpret_cast<void*>(job->entry), &module))
    traffic.code = static_cast<const char*>(module.dli_fbase);
  std::copy(job->operands, job->operands + 4, traffic.ranges);
  traffic.ranges[emulator::SHARED] = range_of(job->statics, job->statics_end);
  traffic.ranges[emulator::DYNAMIC] = {};
  outside.started = true;
  std::optional<Handlers> handlers;
  if (__sanitizer_start_switch_fiber)
    find_stack(outside);
  else
    handlers.emplace();
  for (unsigned i = 0; i < job->blocks && !*report->message; i++) {
    run_block(job->first + i);
    if (*report->message || !dynamic) continue;
    for (const unsigned char* byte = dynamic + job->shared_bytes; dynamic_slack--; byte++)
      if (*byte != job->poison) {
        snprintf(report->message, sizeof report->message, "wrote beyond the end of dynamic shared memory");
        report->block = job->first + i;
        break;
      }
  }
  const bool failed = *report->message;
  if (failed)
    for (Thread& thread : threads) thread.started = false;
  return failed;
}
