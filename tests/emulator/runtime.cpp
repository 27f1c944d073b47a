// Runs a kernel's blocks one after another on the CPU, every thread of a block as a fiber.
//
// A fiber runs until it must wait, and then jumps straight to the next one that can go on; there is no
// preemption, so a launch is repeatable. All waiting is for an Event: whoever makes it true puts the waiting
// threads at the head of the queue, so that they run as far ahead of the others as the program's own barriers
// let them, which is what makes a missing barrier visible. A switch is a pair of __builtin_setjmp and
// __builtin_longjmp (a context of the C library would cost a system call); a fiber starts as a ucontext.
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
  uint64_t l1_bytes;
  emulator::Range operands[4];
  emulator::Tally (*tallies)[emulator::kinds][emulator::widths];  // null if nobody counts
  uint64_t *passes, code_bytes, *under_way;
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
  unsigned group;  // of the copies issued now
};

struct Event {
  Thread *first, *last;
};

struct Barrier {
  unsigned count, arrived;
  emulator::Site site;
  Event complete;
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
unsigned char* shared;                       // the region that dynamic shared memory is part of
unsigned char* dynamic;
size_t dynamic_slack;  // between its end and the guard page
emulator::Traffic traffic;
bool performing;  // what a warp does together; its accesses are those of the lanes, who have told of them

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

// Goes on with the thread whose turn it is, or ends the block. The caller has queued itself, or waits.
void switch_away() {
  Context& from = *current;
  if (queue.size == 0) {
    if (unfinished) report_deadlock();
    current = nullptr;
    switch_from(from, outside);
    return;
  }
  if (job->order == 2) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    const unsigned chosen = (queue.head + (random_state >> 33) % queue.size) % max_threads;
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

void run_thread() {
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
  for (;;) {
    job->entry(job->pointers, job->params);
    current->finished = true;
    unfinished--;
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
  unfinished = job->threads;
  if (traffic.tallies) traffic.begin_block(job->threads);
  for (unsigned i = 0; i < job->threads; i++) {
    Thread& thread = threads[job->order == 1 ? job->threads - 1 - i : i];
    thread.finished = false;
    thread.copies.clear();
    thread.group = 0;
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
  if (traffic.tallies && current && !performing)
    traffic.add(current->index, __builtin_return_address(0), address, bytes, kind);
}

void copy_later(void* to, const void* bytes, unsigned size) {
  Copy copy = {to, size, current->group, {}};
  memcpy(copy.bytes, bytes, size);
  current->copies.push_back(copy);
  if (traffic.tallies) {
    uint64_t bytes = 0;
    for (const Copy& other : current->copies) bytes += other.size;
    *traffic.under_way = std::max(*traffic.under_way, bytes);
  }
  auto* byte = static_cast<unsigned char*>(to);
  fill(byte, byte + size);
}

void commit_copies() { current->group++; }

static void finish_copies(unsigned groups) {
  auto& copies = current->copies;
  size_t done = 0;
  for (; done < copies.size() && copies[done].group < groups; done++)
    memcpy(copies[done].to, copies[done].bytes, copies[done].size);
  copies.erase(copies.begin(), copies.begin() + done);
}

void wait_copies(unsigned groups_left) {
  finish_copies(current->group > groups_left ? current->group - groups_left : 0);
}

void wait_copies() { finish_copies(current->group + 1); }

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
    if (traffic.tallies && current && !performing)                                                  \
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
  if (traffic.tallies && current && !performing) traffic.pass(__builtin_return_address(0));
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
