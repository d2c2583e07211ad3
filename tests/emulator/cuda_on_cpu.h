// A CUDA device on the CPU: what kernels.cu needs in order to compile with g++, to run, and to be
// watched.
//
// The threads of a block are fibers: one thread of the machine runs them in turn. A fiber runs
// until it must wait, at __syncthreads or at an exchange of its warp; then the next one runs, in
// the order that a test asks for. g++'s -fsanitize=thread puts a call of __tsan_read4 and the like
// in front of every load and store. Its own library is left out: here these calls end in touch(),
// which knows all arrays and shared memory. The launch stops at the first access that would be
// wrong on a GPU:
//
//   outside of every array; at a misaligned address; a write to a const array; a read of shared
//   memory that nobody has written; a race, that is, two threads use one number, one of them writes
//   it, and no barrier lies between; a barrier or an exchange at which not all threads arrive.

#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <link.h>
#include <sys/mman.h>
#include <type_traits>
#include <ucontext.h>
#include <utility>

#define UNWATCHED __attribute__((no_sanitize("thread"), noinline))

struct dim3 { unsigned x, y, z; };

namespace emulator {

enum State { READY, AT_BARRIER, IN_EXCHANGE, DONE };  // what a fiber waits for
enum Kind { NONE, OUTSIDE, MISALIGNED, CONSTANT, UNWRITTEN, RACE, DIVERGED, UNMASKED };
const int THREADS = 1024, WARP = 32, STACK = 1 << 16, REGIONS = 32, GRAIN = 4;

struct Fiber {
    dim3 index;
    State state;
    int line, source;  // where it waits; the lane whose number it asks for, -1 if none
    unsigned mask;     // the lanes that take part
    char sent[8], received[8];
    bool begun;
    jmp_buf place;
    char* stack;
};

struct Stamp { int block, thread, epoch, warp_epoch; void* place; };  // who, when, at which code
struct Cell { Stamp write, read, earlier; bool ready; };  // the last writer, two readers

struct Array { char* start; size_t size; int grain, constant; };  // as Python passes it
struct Region : Array { bool shared; Cell* cells; };

struct Fault {  // as Python reads it
    int kind, block, thread, write, region, other_block, other_thread, other_write, line, ended;
    long offset, bytes, address, place, other_place;  // of addresses: from the library's start
};

struct Device {
    dim3 grid, block, block_index;
    int block_number, threads, epoch, warp_epoch[THREADS / WARP];
    Fiber fibers[THREADS], *self;
    int order[THREADS];
    jmp_buf scheduler;
    Region regions[REGIONS];
    int count;
    bool running;
    char *low, *high;  // this library's own memory, with its constants
    Fault fault, unwritten;  // a read of what nobody has written is told if no race explains it
    void (*kernel)(void**);
    void** arguments;
};
static Device device;

// Where the linker has put the variables that are __shared__.
extern "C" char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));

UNWATCHED static int number(const Fiber* f) { return f - device.fibers; }

// ---- every load and store ----------------------------------------------------------------------

UNWATCHED static Fault& fail(Kind kind, void* place) {
    Fault& f = device.fault;
    f.kind = kind, f.block = device.block_number, f.thread = number(device.self);
    f.place = place ? (char*)place - device.low : 0;
    return f;
}

UNWATCHED static void leave() { _longjmp(device.scheduler, 1); }

// Whether a barrier lies between the earlier access and the one now.
UNWATCHED static bool ordered(const Stamp& before, const Stamp& now) {
    if (before.thread < 0) return true;
    if (before.block != now.block) return false;
    if (before.thread == now.thread || before.epoch != now.epoch) return true;
    return before.thread / WARP == now.thread / WARP && before.warp_epoch != now.warp_epoch;
}

UNWATCHED static void look_for_race(Cell& cell, const Stamp& now, bool write) {
    const Stamp* before = nullptr;
    if (!ordered(cell.write, now)) before = &cell.write;
    else if (write && !ordered(cell.read, now)) before = &cell.read;
    else if (write && !ordered(cell.earlier, now)) before = &cell.earlier;
    if (before) {
        Fault& f = fail(RACE, now.place);
        f.other_block = before->block, f.other_thread = before->thread;
        f.other_write = before == &cell.write, f.other_place = (char*)before->place - device.low;
        leave();
    }
    if (write) {
        cell.write = now, cell.ready = true;
    } else {
        if (cell.read.thread != now.thread) cell.earlier = cell.read;
        cell.read = now;
    }
}

UNWATCHED static long distance(char* a, const Region* r) {
    return a < r->start ? r->start - a : a - r->start - (long)r->size;
}

UNWATCHED static void touch(void* where, long bytes, bool write, void* place) {
    Device& d = device;
    char* a = (char*)where;
    if (!d.running || (a >= d.self->stack && a < d.self->stack + STACK)) return;
    if (a >= (char*)&device && a < (char*)(&device + 1)) return;  // threadIdx and the like
    Region *r = d.regions, *end = r + d.count, *nearest = r;
    for (; r < end && !(a >= r->start && a < r->start + r->size); r++)
        if (distance(a, r) < distance(a, nearest)) nearest = r;
    if (r == end && a >= d.low && a < d.high) return;
    Region& region = r == end ? *nearest : *r;
    long offset = a - region.start;
    Fault& f = d.fault;
    f.write = write, f.region = &region - d.regions, f.offset = offset, f.bytes = bytes;
    f.address = a - d.low;
    Kind kind = r == end || offset + bytes > (long)region.size ? OUTSIDE
              : (uintptr_t)a % bytes                           ? MISALIGNED
              : write && region.constant                       ? CONSTANT
                                                               : NONE;
    int me = number(d.self);
    Stamp now = {d.block_number, me, d.epoch, d.warp_epoch[me / WARP], place};
    if (kind) fail(kind, place), leave();
    for (long i = offset / region.grain; i <= (offset + bytes - 1) / region.grain; i++) {
        look_for_race(region.cells[i], now, write);
        if (write || region.cells[i].ready || d.unwritten.kind) continue;
        d.unwritten = fail(UNWRITTEN, place);
        f.kind = NONE;
    }
}

// ---- fibers ------------------------------------------------------------------------------------

UNWATCHED static void wait(State why, int line) {
    Fiber* self = device.self;
    self->state = why, self->line = line;
    if (!_setjmp(self->place)) _longjmp(device.scheduler, 1);
}

UNWATCHED static void body() {
    for (;;) {
        device.kernel(device.arguments);
        wait(DONE, 0);
    }
}

UNWATCHED static void resume(Fiber* f) {
    device.self = f;
    if (_setjmp(device.scheduler)) return;  // it waits, or has met a fault
    if (f->begun) _longjmp(f->place, 1);
    f->begun = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = f->stack, context.uc_stack.ss_size = STACK, context.uc_link = nullptr;
    makecontext(&context, body, 0);
    setcontext(&context);
}

// Let an exchange happen if all lanes of its mask have come to the same one.
UNWATCHED static bool exchanged(Fiber* warp, unsigned mask, int line) {
    for (int i = 0; i < WARP; i++) {
        if (!(mask >> i & 1)) continue;
        Fiber* f = warp + i;
        bool exists = number(f) < device.threads;
        if (!exists || f->state != IN_EXCHANGE || f->mask != mask || f->line != line) return false;
    }
    bool fence = false;
    for (int i = 0; i < WARP; i++) {
        if (!(mask >> i & 1)) continue;
        fence |= warp[i].source < 0;
        if (warp[i].source >= 0) memcpy(warp[i].received, warp[warp[i].source].sent, 8);
    }
    for (int i = 0; i < WARP; i++)
        if (mask >> i & 1) warp[i].state = READY;
    if (fence && mask == ~0u) device.warp_epoch[number(warp) / WARP]++;
    return true;
}

// Let those go on whose exchange or barrier is complete -> whether any were.
UNWATCHED static bool released() {
    bool any = false;
    int waiting = 0, ended = 0, line = 0;
    for (int i = 0; i < device.threads; i++) {
        Fiber* f = device.fibers + i;
        Fiber* warp = device.fibers + i / WARP * WARP;
        if (f->state == IN_EXCHANGE) any |= exchanged(warp, f->mask, f->line);
        if (f->state == AT_BARRIER && (!waiting || f->line == line)) line = f->line, waiting++;
        ended += f->state == DONE;
    }
    if (waiting == device.threads) {
        for (int i = 0; i < device.threads; i++) device.fibers[i].state = READY;
        device.epoch++;
        return true;
    }
    if (any || ended == device.threads) return any;
    device.self = device.fibers;
    while (device.self->state == DONE) device.self++;
    Fault& f = fail(DIVERGED, nullptr);
    f.line = device.self->line, f.ended = ended, f.write = device.self->state == AT_BARRIER;
    return false;
}

// ---- a launch ----------------------------------------------------------------------------------

UNWATCHED static int find_library(dl_phdr_info* info, size_t, void*) {
    char *base = (char*)info->dlpi_addr, *low = nullptr, *high = nullptr;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        auto& part = info->dlpi_phdr[i];
        if (part.p_type != PT_LOAD) continue;
        if (!low) low = base + part.p_vaddr;
        high = base + part.p_vaddr + part.p_memsz;
    }
    if ((char*)&device < low || (char*)&device >= high) return 0;
    device.low = base, device.high = high;
    return 1;
}

UNWATCHED static void add_region(const Array& array, bool shared) {
    Region& r = device.regions[device.count++];
    (Array&)r = array;
    r.shared = shared;
    r.cells = (Cell*)malloc((array.size / array.grain + 1) * sizeof(Cell));
}

UNWATCHED static void forget(Region& r) {
    const Stamp never = {-1, -1, -1, -1, nullptr};
    for (size_t i = 0; i < r.size / r.grain + 1; i++) r.cells[i] = {never, never, never, !r.shared};
    if (r.shared) memset(r.start, 0xff, r.size);  // NaN
}

UNWATCHED static void make_fiber(int i) {
    Fiber& f = device.fibers[i];
    f.begun = false;  // a fault may have left it in the middle
    int access = PROT_READ | PROT_WRITE, own = MAP_PRIVATE | MAP_ANONYMOUS;
    if (!f.stack) f.stack = (char*)mmap(nullptr, STACK, access, own, -1, 0);
    unsigned x = device.block.x, y = device.block.y;
    f.index = {i % x, i / x % y, i / x / y};
}

UNWATCHED static void shuffle(unsigned& random) {
    for (int i = device.threads - 1; i > 0; i--) {
        random = random * 1664525u + 1013904223u;
        std::swap(device.order[i], device.order[(random >> 8) % (i + 1)]);
    }
}

UNWATCHED static void run_block(int order, unsigned& random) {
    Device& d = device;
    d.epoch = 0;
    memset(d.warp_epoch, 0, sizeof d.warp_epoch);
    for (int i = 0; i < d.count; i++)
        if (d.regions[i].shared) forget(d.regions[i]);
    for (int i = 0; i < d.threads; i++) d.fibers[i].state = READY;
    do {
        if (order > 1) shuffle(random);  // another order after every wait
        for (int i = 0; i < d.threads && !d.fault.kind; i++) {
            Fiber* f = d.fibers + d.order[i];
            if (f->state != READY) continue;
            d.running = true;
            resume(f);
            d.running = false;
        }
    } while (!d.fault.kind && released());
    if (!d.fault.kind) d.fault = d.unwritten;
}

// Run a kernel. order of threads and blocks: 0 ascending, 1 descending, n > 1 shuffled by this seed
UNWATCHED static int launch(void (*kernel)(void**), void** arguments, const unsigned* shape,
                            const Array* arrays, int count, int order, Fault* fault) {
    Device& d = device;
    if (!d.low) dl_iterate_phdr(find_library, nullptr);
    d.grid = {shape[0], shape[1], shape[2]}, d.block = {shape[3], shape[4], shape[5]};
    d.threads = shape[3] * shape[4] * shape[5];
    d.kernel = kernel, d.arguments = arguments, d.count = 0, d.fault = d.unwritten = {};
    for (int i = 0; i < count; i++) add_region(arrays[i], false);
    for (int i = 0; i < count; i++) forget(d.regions[i]);
    size_t shared = __stop_cuda_shared - __start_cuda_shared;
    if (shared) add_region({__start_cuda_shared, shared, GRAIN, 0}, true);
    for (int i = 0; i < d.threads; i++) {
        make_fiber(i);
        d.order[i] = order == 1 ? d.threads - 1 - i : i;
    }
    unsigned random = order, blocks = d.grid.x * d.grid.y * d.grid.z;
    for (unsigned k = 0; k < blocks && !d.fault.kind; k++) {
        unsigned b = order == 1 ? blocks - 1 - k : k;
        d.block_number = b;
        d.block_index = {b % d.grid.x, b / d.grid.x % d.grid.y, b / d.grid.x / d.grid.y};
        run_block(order, random);
    }
    for (int i = 0; i < d.count; i++) free(d.regions[i].cells);
    *fault = d.fault;
    return d.fault.kind;
}

// ---- what a kernel calls -----------------------------------------------------------------------

UNWATCHED static int lane() { return number(device.self) % WARP; }

// The number that lane `source` sends.
template <class T> UNWATCHED static T exchange(unsigned mask, T value, int source, int line) {
    Fiber* self = device.self;
    if (!(mask >> lane() & 1) || !(mask >> source & 1)) {
        fail(UNMASKED, nullptr).line = line;
        leave();
    }
    memcpy(self->sent, &value, sizeof value);
    self->mask = mask, self->source = source;
    wait(IN_EXCHANGE, line);
    T answer;
    memcpy(&answer, device.self->received, sizeof answer);
    return answer;
}

UNWATCHED static void sync_warp(unsigned mask, int line) {
    device.self->mask = mask, device.self->source = -1;
    wait(IN_EXCHANGE, line);
}

// The types of a kernel's parameters, for Python to compare: "const f4*" is const float*.
template <class T> void describe(char*& at) {
    using P = std::remove_pointer_t<T>;
    using E = std::remove_const_t<P>;
    const char* kind = std::is_floating_point<E>::value ? "f" : std::is_same<E, bool>::value ? "b"
                     : std::is_signed<E>::value         ? "i" : "u";
    if (std::is_const<P>::value) at = stpcpy(at, "const ");
    at = stpcpy(at, kind);
    *at++ = '0' + sizeof(E);
    at = stpcpy(at, std::is_pointer<T>::value ? "*," : ",");
}

template <class F, F f> struct Entry;
template <class... P, void (*f)(P...)> struct Entry<void (*)(P...), f> {
    template <size_t... I> UNWATCHED static void spread(void** a, std::index_sequence<I...>) {
        f(*(P*)a[I]...);
    }
    UNWATCHED static void call(void** a) { spread(a, std::index_sequence_for<P...>()); }
    static void signature(char* out) {
        *out = 0;
        (describe<P>(out), ...);
    }
};

}  // namespace emulator

// What Python calls for kernel `name`.
#define KERNEL(name)                                                                               \
    extern "C" void signature_of_##name(char* out) {                                               \
        emulator::Entry<decltype(&name), &name>::signature(out);                                   \
    }                                                                                              \
    extern "C" int launch_##name(void** arguments, const unsigned* shape,                          \
                                 const emulator::Array* arrays, int count, int order,              \
                                 emulator::Fault* fault) {                                         \
        return emulator::launch(emulator::Entry<decltype(&name), &name>::call, arguments, shape,   \
                                arrays, count, order, fault);                                      \
    }

// What g++ puts in front of loads and stores.
#define HOOK(name, bytes, write)                                                                   \
    UNWATCHED void __tsan_##name(void* a) {                                                        \
        emulator::touch(a, bytes, write, __builtin_return_address(0));                             \
    }
#define HOOKS(n) HOOK(read##n, n, false) HOOK(write##n, n, true)                                   \
    HOOK(unaligned_read##n, n, false) HOOK(unaligned_write##n, n, true)
extern "C" {
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
UNWATCHED void __tsan_init() {}
UNWATCHED void __tsan_func_entry(void*) {}
UNWATCHED void __tsan_func_exit() {}
}

// CUDA's words.
#define __global__
#define __device__
#define __shared__ static __attribute__((section("cuda_shared")))
#define threadIdx (emulator::device.self->index)
#define blockIdx (emulator::device.block_index)
#define blockDim (emulator::device.block)
#define gridDim (emulator::device.grid)
#define __syncthreads() emulator::wait(emulator::AT_BARRIER, __LINE__)
#define __syncwarp() emulator::sync_warp(~0u, __LINE__)
#define __shfl_sync(mask, x, lane) emulator::exchange(mask, x, (lane) & 31, __LINE__)
#define __shfl_xor_sync(mask, x, bits) __shfl_sync(mask, x, emulator::lane() ^ (bits))
using std::exp, std::isfinite, std::log, std::nan, std::sqrt, std::tanh;
template <class T> static inline T max(T a, T b) { return std::fmax(a, b); }
template <> inline long long max(long long a, long long b) { return a > b ? a : b; }
static inline long long min(long long a, long long b) { return a < b ? a : b; }
