/* Which variant is in use. */

#include <stdatomic.h>

#include "sparse_kernels.h"

static const char *const names[NUM_VARIANTS] = {"portable", "avx2", "avx512"};
static atomic_int chosen = -1;

static int is_supported(enum variant variant) {
#if HAS_X86_VARIANTS
    __builtin_cpu_init();
    if (variant == AVX2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (variant == AVX512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("fma");
#endif
    return variant == PORTABLE;
}

enum variant current_variant(void) {
    int variant = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (variant < 0) {
        variant = NUM_VARIANTS - 1;
        while (!is_supported((enum variant)variant))
            variant--;
        atomic_store_explicit(&chosen, variant, memory_order_relaxed);
    }
    return (enum variant)variant;
}

/* Use a variant by its name from now on, or the best one for NULL. Returns 0, or -1 where there is
   no such variant or the processor does not have it. */
EXPORT int optrial_set_variant(const char *name) {
    if (name == NULL) {
        atomic_store(&chosen, -1);
        return 0;
    }
    for (int variant = 0; variant < NUM_VARIANTS; variant++)
        if (strcmp(name, names[variant]) == 0 && is_supported((enum variant)variant)) {
            atomic_store(&chosen, variant);
            return 0;
        }
    return -1;
}

EXPORT const char *optrial_variant(void) { return names[current_variant()]; }

#ifndef SOURCE_HASH
#define SOURCE_HASH ""
#endif

/* What the library was built from, as the build says. */
EXPORT const char *optrial_source_hash(void) { return SOURCE_HASH; }
