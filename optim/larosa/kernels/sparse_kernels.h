/* What the files of this library share: variants, numbers and the pool of threads.

   A variant is the same C, inlined into a function that the compiler vectorises for one instruction
   set; which one runs is chosen when it runs. Sums are chains of fused multiply-adds wherever the
   target has them, so that AVX2, AVX-512 and NEON give the same bits. The portable variant of
   x86-64 rounds each product first: there a fused one would be a call of the C library. */

#ifndef SPARSE_KERNELS_H
#define SPARSE_KERNELS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__)
#define HAS_X86_VARIANTS 1
#define TARGET_AVX2 __attribute__((target("avx2,fma")))
/* gcc keeps to 256 bits unless told; clang takes the width from the attribute of the function. */
#if defined(__clang__)
#define TARGET_AVX512 \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma"), min_vector_width(512)))
#else
#define TARGET_AVX512 \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,prefer-vector-width=512")))
#endif
#else
#define HAS_X86_VARIANTS 0
#endif

#if defined(FP_FAST_FMAF) || defined(__aarch64__)
#define PORTABLE_IS_FUSED 1
#else
#define PORTABLE_IS_FUSED 0
#endif

enum variant { PORTABLE, AVX2, AVX512, NUM_VARIANTS };

/* The variant in use: the best that the processor has unless another was set. */
enum variant current_variant(void);

enum number { FLOAT32, BFLOAT16 };

INLINE int64_t size_of(enum number type) { return type == FLOAT32 ? 4 : 2; }

INLINE float from_bfloat16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* To the nearest, ties to even; any NaN becomes the quiet one, as torch does it. */
INLINE uint16_t to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (uint16_t)rounded;
}

INLINE float get(const void *values, int64_t i, enum number type) {
    return type == FLOAT32 ? ((const float *)values)[i]
                           : from_bfloat16(((const uint16_t *)values)[i]);
}

INLINE void put(void *values, int64_t i, enum number type, float value) {
    if (type == FLOAT32)
        ((float *)values)[i] = value;
    else
        ((uint16_t *)values)[i] = to_bfloat16(value);
}

/* Call `run(argument)` in this thread and, when they are free, in up to `threads - 1` others, and
   return when every call has. `run` has to claim its parts of the work itself: it may be called
   only once. */
void pool_run(void (*run)(void *), void *argument, int threads);

#endif
