/* Which entries of a row are kept: the largest k, or those above a threshold; exact.

   A magnitude is compared by its bits as an integer, which order as the numbers do. */

#include <stdlib.h>

#include "sparse_kernels.h"

struct selection {
    const void *x; /* [rows, width] */
    void *y;       /* [rows, width] */
    int64_t rows, width;
    const float *score; /* [width], or NULL for ones: entries are ranked by |x| times it */
    double eps;        /* of the norm; negative for no norm */
    int64_t k;         /* how many are kept; negative for those above the threshold */
    float threshold;   /* not negative */
    enum number type;
};

/* The factor that gives a row a root mean square of 1. The order of the sum is the same for every
   variant: sixteen lanes, then one after the other. */
INLINE float norm_scale(const void *x, int64_t width, double eps, enum number type) {
    double lanes[16] = {0};
    int64_t i = 0;
    for (; i + 16 <= width; i += 16)
        for (int lane = 0; lane < 16; lane++) {
            double value = get(x, i + lane, type);
            lanes[lane] += value * value;
        }
    double sum = 0;
    for (int lane = 0; lane < 16; lane++)
        sum += lanes[lane];
    for (; i < width; i++) {
        double value = get(x, i, type);
        sum += value * value;
    }
    return 1.0f / sqrtf((float)(sum / (double)width) + (float)eps);
}

/* The row, over its root mean square where there is a norm. */
INLINE void scale_row(void *restrict y, const void *restrict x, const struct selection *s,
                      enum number type) {
    if (s->eps < 0)
        memcpy(y, x, (size_t)(s->width * size_of(type)));
    else {
        float scale = norm_scale(x, s->width, s->eps, type);
        for (int64_t i = 0; i < s->width; i++)
            put(y, i, type, get(x, i, type) * scale);
    }
}

/* Of a bfloat16 without scores only its upper half, so that a search has half as far to go. */
INLINE int32_t shift_of(enum number type, const float *score) {
    return type == FLOAT32 || score != NULL ? 0 : 16;
}

/* One above infinity: of every NaN, so that which bits it has does not matter. */
INLINE int32_t nan_key(int32_t shift) { return (0x7f800000 >> shift) + 1; }

INLINE int32_t key_of(float value, int32_t shift) {
    int32_t key;
    memcpy(&key, &value, sizeof key);
    key = (key & 0x7fffffff) >> shift;
    return key < nan_key(shift) ? key : nan_key(shift);
}

INLINE void find_keys(int32_t *restrict keys, const void *restrict y, const float *restrict score,
                      int64_t width, int32_t shift, enum number type) {
    if (score == NULL)
        for (int64_t i = 0; i < width; i++)
            keys[i] = key_of(get(y, i, type), shift);
    else
        for (int64_t i = 0; i < width; i++)
            keys[i] = key_of(get(y, i, type) * score[i], shift);
}

INLINE int64_t count_above(const int32_t *keys, int64_t width, int32_t bound) {
    int32_t count = 0;
    for (int64_t i = 0; i < width; i++)
        count += keys[i] > bound;
    return count;
}

/* A bound with at most k keys above it, and with k keys at least not below it; how many are above.
   By bisection, which ends early at a bound with exactly k above it. 0 <= k < width. */
INLINE int32_t find_bound(const int32_t *keys, int64_t width, int64_t k, int32_t shift,
                          int64_t *above) {
    int32_t low = -1, high = nan_key(shift); /* more than k are above low, at most k above high */
    *above = 0;
    while (high - low > 1 && *above < k) {
        int32_t middle = low + (high - low) / 2;
        int64_t count = count_above(keys, width, middle);
        if (count > k)
            low = middle;
        else {
            high = middle;
            *above = count;
        }
    }
    return high;
}

INLINE void keep_above(void *restrict y, const int32_t *restrict keys, int64_t width,
                       int32_t bound, enum number type) {
    for (int64_t i = 0; i < width; i++)
        if (type == FLOAT32)
            ((float *)y)[i] = keys[i] > bound ? ((float *)y)[i] : 0;
        else
            ((uint16_t *)y)[i] = keys[i] > bound ? ((uint16_t *)y)[i] : 0;
}

/* Of the keys equal to the bound only the first `count` stay. */
INLINE void keep_first(void *y, const int32_t *keys, int64_t width, int32_t bound, int64_t count,
                       enum number type) {
    for (int64_t i = 0; i < width; i++)
        if (keys[i] == bound && count-- <= 0)
            put(y, i, type, 0);
}

INLINE void select_row(const struct selection *s, int64_t row, int32_t *keys, enum number type) {
    int64_t offset = row * s->width * size_of(type);
    void *y = (char *)s->y + offset;
    scale_row(y, (const char *)s->x + offset, s, type);
    if (s->k >= s->width)
        return;
    int32_t shift = shift_of(type, s->score);
    find_keys(keys, y, s->score, s->width, shift, type);
    if (s->k < 0) {
        keep_above(y, keys, s->width, key_of(s->threshold, shift), type);
        return;
    }
    int64_t above;
    int32_t bound = find_bound(keys, s->width, s->k, shift, &above);
    int64_t ties = s->k - above;
    keep_above(y, keys, s->width, ties > 0 ? bound - 1 : bound, type);
    if (ties > 0)
        keep_first(y, keys, s->width, bound, ties, type);
}

INLINE void select_rows(const struct selection *s, int32_t *keys) {
    for (int64_t row = 0; row < s->rows; row++)
        if (s->type == FLOAT32)
            select_row(s, row, keys, FLOAT32);
        else
            select_row(s, row, keys, BFLOAT16);
}

static void select_portable(const struct selection *s, int32_t *keys) { select_rows(s, keys); }
#if HAS_X86_VARIANTS
TARGET_AVX2 static void select_avx2(const struct selection *s, int32_t *keys) {
    select_rows(s, keys);
}
TARGET_AVX512 static void select_avx512(const struct selection *s, int32_t *keys) {
    select_rows(s, keys);
}
#else
#define select_avx2 select_portable
#define select_avx512 select_portable
#endif

static void (*const variants[NUM_VARIANTS])(const struct selection *, int32_t *) = {
    select_portable, select_avx2, select_avx512};

/* y [rows, width]: x, over its root mean square where eps is not negative; of it the k entries of
   each row that are largest by |x| times score [width], or for k < 0 those above the threshold, and
   zeros. Returns 0, or -1 for want of memory. */
EXPORT int optrial_select(const void *x, void *y, int64_t rows, int64_t width, const float *score,
                          double eps, int64_t k, float threshold, int type) {
    struct selection s = {x, y, rows, width, score, eps, k, threshold, (enum number)type};
    int32_t *keys = malloc((size_t)width * sizeof *keys + 1);
    if (keys == NULL)
        return -1;
    variants[current_variant()](&s, keys);
    free(keys);
    return 0;
}
