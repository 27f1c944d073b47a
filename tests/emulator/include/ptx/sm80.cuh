// The emulated twin of cuda_src/ptx/sm80.cuh.
//
// A copy's source is read when it is issued, so that a fault names the right line, but its bytes arrive only
// when they are waited for. A product of floats is done in two steps, half of k each, as sm_80 does it; later
// architectures do it in one and keep a bit more, so tests of kernels must not expect the same bits of both.
#pragma once
#include <ptx/base.cuh>

template <int bytes>
__device__ inline EMULATOR_UNCOUNTED void cp_async(void* shared, const void* global, int source_bytes = bytes, CUDA_PLACE) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async moves 4, 8 or 16 bytes");
  const emulator::Site site = {"cp.async", file, line};
  if (source_bytes < 0 || source_bytes > bytes) emulator::fail(site, "%d bytes of %d", source_bytes, bytes);
  if ((size_t(shared) | size_t(global)) % bytes)
    emulator::fail(site, "addresses %p and %p are not multiples of %d bytes", shared, global, bytes);
  if (source_bytes) emulator::access(global, source_bytes, emulator::COPY);
  emulator::access(shared, bytes, emulator::WRITE);
  unsigned char source[bytes] = {};
  for (int i = 0; i < source_bytes; i++) source[i] = static_cast<const unsigned char*>(global)[i];
  emulator::copy_later(shared, source, bytes, site);
}

__device__ inline void cp_async_commit() { emulator::commit_copies(); }

template <int groups_left>
__device__ inline void cp_async_wait() {
  emulator::wait_copies(groups_left);
}

__device__ inline void cp_async_wait_all() { emulator::wait_copies(); }

template <int count>
__device__ inline void emulator_ldmatrix(unsigned (&d)[count], const void* row, bool transposed,
                                         emulator::Site site) {
  struct Load {
    const void* row;
    unsigned* d;
    bool transposed;
  } load = {row, d, transposed};
  if (emulator::lane() < 8 * count && size_t(row) % 16)
    emulator::fail(site, "address %p is not a multiple of 16 bytes", row);
  if (emulator::lane() < 8 * count) emulator::access(row, 16, emulator::READ);
  emulator::gather(~0u, site, &load, [](unsigned, void* const* operands) {
    for (int tile = 0; tile < count; tile++) {
      unsigned short rows[8][8];
      for (int r = 0; r < 8; r++)
        __builtin_memcpy(rows[r], static_cast<Load*>(operands[8 * tile + r])->row, sizeof rows[r]);
      for (int lane = 0; lane < 32; lane++) {
        const Load* self = static_cast<Load*>(operands[lane]);
        const int g = lane / 4, t = lane % 4;
        self->d[tile] = self->transposed ? rows[2 * t][g] | unsigned(rows[2 * t + 1][g]) << 16
                                         : rows[g][2 * t] | unsigned(rows[g][2 * t + 1]) << 16;
      }
    }
  });
}

template <int count>
__device__ inline void ldmatrix(unsigned (&d)[count], const void* row, CUDA_PLACE) {
  static_assert(count == 1 || count == 2 || count == 4, "ldmatrix loads 1, 2 or 4 tiles");
  emulator_ldmatrix(d, row, false, {"ldmatrix", file, line});
}

template <int count>
__device__ inline void ldmatrix_trans(unsigned (&d)[count], const void* row, CUDA_PLACE) {
  static_assert(count == 1 || count == 2 || count == 4, "ldmatrix loads 1, 2 or 4 tiles");
  emulator_ldmatrix(d, row, true, {"ldmatrix.trans", file, line});
}

// m16n8 with 8 words of k, each of which holds `per_word` elements.
template <int per_word, float (*element)(unsigned word, int i)>
__device__ inline void emulator_mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                    emulator::Site site) {
  struct Fragments {
    float* d;
    const unsigned *a, *b;
  } fragments = {d, a, b};
  emulator::gather(~0u, site, &fragments, [](unsigned, void* const* operands) {
    constexpr int depth = 8 * per_word;
    float left[16][depth], right[depth][8], sum[16][8];
    for (int lane = 0; lane < 32; lane++) {
      const Fragments& own = *static_cast<Fragments*>(operands[lane]);
      const int g = lane / 4, t = lane % 4;
      for (int j = 0; j < per_word; j++) {
        for (int i = 0; i < 4; i++)
          left[g + 8 * (i % 2)][per_word * (t + 4 * (i / 2)) + j] = element(own.a[i], j);
        for (int i = 0; i < 2; i++) right[per_word * (t + 4 * i) + j][g] = element(own.b[i], j);
      }
      for (int i = 0; i < 4; i++) sum[g + 8 * (i / 2)][2 * t + i % 2] = own.d[i];
    }
    emulator::add_product(16, 8, depth, depth / 2, left[0], right[0], sum[0]);
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++)
        static_cast<Fragments*>(operands[lane])->d[i] = sum[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
  });
}

inline float emulator_f16(unsigned word, int i) { return half_to_float(word >> 16 * i & 0xffff); }
inline float emulator_bf16(unsigned word, int i) { return __uint_as_float(word >> 16 * i << 16); }
inline float emulator_tf32(unsigned word, int) { return __uint_as_float(word & 0xffffe000); }

__device__ inline void mma_m16n8k16_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                        CUDA_PLACE) {
  emulator_mma<2, emulator_f16>(d, a, b, {"mma.sync", file, line});
}

__device__ inline void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                         CUDA_PLACE) {
  emulator_mma<2, emulator_bf16>(d, a, b, {"mma.sync", file, line});
}

__device__ inline void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                        CUDA_PLACE) {
  emulator_mma<1, emulator_tf32>(d, a, b, {"mma.sync", file, line});
}

__device__ inline unsigned float_to_tf32(float value) {
  const unsigned bits = __float_as_uint(value), magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7fffffff;
  return magnitude == 0x7f800000 ? bits : (bits + 0x1000) & 0xffffe000;
}

inline unsigned emulator_bfloat16(float value) {
  const unsigned bits = __float_as_uint(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

__device__ inline unsigned floats_to_bf16x2(float low, float high) {
  return emulator_bfloat16(low) | emulator_bfloat16(high) << 16;
}

__device__ inline void mma_m8n8k4_f64(double (&d)[2], double a, double b, CUDA_PLACE) {
  struct Fragments {
    double* d;
    double a, b;
  } fragments = {d, a, b};
  emulator::gather(~0u, {"mma.sync", file, line}, &fragments, [](unsigned, void* const* operands) {
    double left[8][4], right[4][8], sum[8][8];
    for (int lane = 0; lane < 32; lane++) {
      const Fragments& own = *static_cast<Fragments*>(operands[lane]);
      const int g = lane / 4, t = lane % 4;
      left[g][t] = own.a;
      right[t][g] = own.b;
      for (int i = 0; i < 2; i++) sum[g][2 * t + i] = own.d[i];
    }
    emulator::add_product(8, 8, 4, left[0], right[0], sum[0]);
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 2; i++)
        static_cast<Fragments*>(operands[lane])->d[i] = sum[lane / 4][2 * (lane % 4) + i];
  });
}

__device__ inline void mma_m16n8k16_f64(double (&d)[4], const double (&a)[8], const double (&b)[4], CUDA_PLACE) {
  struct Fragments {
    double* d;
    const double *a, *b;
  } fragments = {d, a, b};
  emulator::gather(~0u, {"mma.sync", file, line}, &fragments, [](unsigned, void* const* operands) {
    double left[16][16], right[16][8], sum[16][8];
    for (int lane = 0; lane < 32; lane++) {
      const Fragments& own = *static_cast<Fragments*>(operands[lane]);
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 8; i++) left[g + 8 * (i % 2)][t + 4 * (i / 2)] = own.a[i];
      for (int i = 0; i < 4; i++) right[t + 4 * i][g] = own.b[i];
      for (int i = 0; i < 4; i++) sum[g + 8 * (i / 2)][2 * t + i % 2] = own.d[i];
    }
    emulator::add_product(16, 8, 16, left[0], right[0], sum[0]);
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++)
        static_cast<Fragments*>(operands[lane])->d[i] = sum[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
  });
}

__device__ inline void barrier_sync(int id, int threads, CUDA_PLACE) {
  emulator::barrier(id, threads, true, {"bar.sync", file, line});
}

__device__ inline void barrier_arrive(int id, int threads, CUDA_PLACE) {
  emulator::barrier(id, threads, false, {"bar.arrive", file, line});
}
