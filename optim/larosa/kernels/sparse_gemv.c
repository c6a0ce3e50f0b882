/* y = x @ wt + bias for a few rows of x, reading only the rows of wt that some row of x needs.

   Every output is one chain of multiply-adds over the active inputs of its row of x, in ascending
   order and from zero: it depends on nothing else. Threads divide the columns of the output. */

#include <stdatomic.h>
#include <stdlib.h>

#include "sparse_kernels.h"

enum {
    TILE = 16384,           /* columns at a time: with few pieces rows are read in long runs */
    TILE_OF_SEVERAL = 4096, /* for several rows of x: GROUP rows of the tile stay in the cache */
    GROUP = 32,             /* rows of wt that every row of x uses before the next are read */
    PASS = 8,               /* rows of wt that are added to the sums at a time */
    BLOCK = 256,            /* bytes of each between two looks ahead */
    AHEAD = 4096,           /* bytes: how far that is */
    COLUMNS = 16,           /* threads divide columns by this many: a cache line of sums */
    THREAD_BYTES = 1 << 20, /* of weights, below which a thread costs more than it brings */
};

struct entry {
    int32_t input;
    float value;
};

struct product {
    const void *wt;       /* [inputs, outputs] */
    const void *bias;     /* [outputs] or NULL */
    void *y;              /* [rows, outputs] */
    float *sums;          /* [rows, outputs] */
    struct entry *active; /* [rows, inputs]: the inputs of each row that are not zero, in order */
    int32_t *starts;      /* [rows, stride]: where the entries of each group of inputs begin */
    int64_t rows, inputs, outputs, groups, stride, chunk;
    enum number type;
    atomic_llong next; /* the first column that nobody has claimed */
};

INLINE float multiply_add(float a, float b, float c, int fused) {
    return fused ? __builtin_fmaf(a, b, c) : a * b + c;
}

/* Add `count` rows of wt, each times its value, to the sums of columns [begin, end). */
INLINE void add_columns(float *restrict sums, const char *const *w, const float *values, int count,
                        int64_t begin, int64_t end, enum number type, int fused) {
    for (int64_t i = begin; i < end; i++) {
        float sum = sums[i];
        for (int r = 0; r < count; r++)
            sum = multiply_add(values[r], get(w[r], i, type), sum, fused);
        sums[i] = sum;
    }
}

/* The same for all columns of a tile. Meanwhile the memory is asked for what lies ahead in these
   rows, and at their end for the `next` ones. */
INLINE void add_rows(float *restrict sums, const char *const *w, const float *values,
                     const char *const *next, int count, int64_t width, enum number type,
                     int fused) {
    int64_t size = size_of(type), block = BLOCK / size, whole = width - width % block;
    int64_t ahead = AHEAD / size < whole ? AHEAD / size : whole;
    for (int64_t i = 0; i < whole; i += block) {
        int64_t at = i + ahead;
        for (int r = 0; r < count; r++) {
            const char *from = at < whole ? w[r] + at * size : next[r] + (at - whole) * size;
            for (int line = 0; line < BLOCK; line += 64)
                __builtin_prefetch(from + line, 0, 2);
        }
        add_columns(sums, w, values, count, i, i + block, type, fused);
    }
    add_columns(sums, w, values, count, whole, width, type, fused);
}

/* Add the rows of wt of the first `count` of some entries, of which there are `available`, to the
   sums of the columns from `first` on. */
INLINE void add_entries(const struct product *p, float *sums, const struct entry *entries,
                        int64_t count, int64_t available, int64_t first, int64_t width,
                        enum number type, int fused) {
    const char *column = (const char *)p->wt + first * size_of(type);
    int64_t stride = p->outputs * size_of(type);
    const char *w[PASS], *next[PASS];
    float values[PASS];
    for (int64_t done = 0, pass = PASS; done < count; done += pass) {
        while (pass > count - done)
            pass /= 2;
        for (int64_t r = 0; r < pass; r++) {
            int64_t later = done + pass + r < available ? done + pass + r : available - 1;
            w[r] = column + entries[done + r].input * stride;
            next[r] = column + entries[later].input * stride;
            values[r] = entries[done + r].value;
        }
        switch (pass) {
        case 8: add_rows(sums, w, values, next, 8, width, type, fused); break;
        case 4: add_rows(sums, w, values, next, 4, width, type, fused); break;
        case 2: add_rows(sums, w, values, next, 2, width, type, fused); break;
        default: add_rows(sums, w, values, next, 1, width, type, fused);
        }
    }
}

INLINE void multiply_tile(const struct product *p, int64_t first, int64_t width, enum number type,
                          int fused) {
    for (int64_t row = 0; row < p->rows; row++)
        memset(p->sums + row * p->outputs + first, 0, (size_t)width * sizeof(float));
    for (int64_t group = 0; group < p->groups; group++)
        for (int64_t row = 0; row < p->rows; row++) {
            const int32_t *starts = p->starts + row * p->stride;
            int32_t start = starts[group], stop = starts[group + 1];
            add_entries(p, p->sums + row * p->outputs + first, p->active + row * p->inputs + start,
                        stop - start, starts[p->groups] - start, first, width, type, fused);
        }
    for (int64_t row = 0; row < p->rows; row++)
        for (int64_t i = first; i < first + width; i++) {
            float sum = p->sums[row * p->outputs + i];
            put(p->y, row * p->outputs + i, type,
                p->bias == NULL ? sum : sum + get(p->bias, i, type));
        }
}

INLINE void multiply_columns(struct product *p, enum number type, int fused) {
    for (;;) {
        int64_t first = atomic_fetch_add(&p->next, p->chunk);
        if (first >= p->outputs)
            return;
        int64_t last = first + p->chunk < p->outputs ? first + p->chunk : p->outputs;
        int64_t tile = p->rows == 1 ? TILE : TILE_OF_SEVERAL;
        for (; first < last; first += tile)
            multiply_tile(p, first, last - first < tile ? last - first : tile, type, fused);
    }
}

INLINE void multiply_any(struct product *p, int fused) {
    if (p->type == FLOAT32)
        multiply_columns(p, FLOAT32, fused);
    else
        multiply_columns(p, BFLOAT16, fused);
}

static void multiply_portable(void *p) { multiply_any(p, PORTABLE_IS_FUSED); }
#if HAS_X86_VARIANTS
TARGET_AVX2 static void multiply_avx2(void *p) { multiply_any(p, 1); }
TARGET_AVX512 static void multiply_avx512(void *p) { multiply_any(p, 1); }
#else
#define multiply_avx2 multiply_portable
#define multiply_avx512 multiply_portable
#endif

static void (*const variants[NUM_VARIANTS])(void *) = {multiply_portable, multiply_avx2,
                                                      multiply_avx512};

/* Whether an input is not zero. Its bits say so, but for the sign, whatever the processor makes of
   denormals; a NaN is not zero. */
INLINE int is_active(const void *x, int64_t i, enum number type) {
    float value = get(x, i, type);
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits << 1) != 0;
}

/* The active inputs of a row, in order. */
INLINE int32_t find_active(struct entry *restrict active, const void *restrict x, int64_t inputs,
                           enum number type) {
    int32_t count = 0;
    for (int64_t i = 0; i < inputs; i++) {
        active[count] = (struct entry){(int32_t)i, get(x, i, type)};
        count += is_active(x, i, type);
    }
    return count;
}

/* Begin a group with an input: in each row, behind the entries of all inputs before it. */
static void begin_group(struct product *p, int64_t input) {
    for (int64_t row = 0; row < p->rows; row++) {
        const struct entry *active = p->active + row * p->inputs;
        int32_t *starts = p->starts + row * p->stride;
        int32_t start = starts[p->groups - 1];
        while (start < starts[p->groups] && active[start].input < input)
            start++;
        starts[p->groups + 1] = starts[p->groups];
        starts[p->groups] = start;
    }
    p->groups++;
}

/* Fill in the active inputs and the groups; returns how many inputs some row uses. */
INLINE int64_t scan(struct product *p, const void *x, uint8_t *restrict used, enum number type) {
    p->groups = 1;
    for (int64_t row = 0; row < p->rows; row++) {
        const char *x_row = (const char *)x + row * p->inputs * size_of(type);
        int32_t *starts = p->starts + row * p->stride;
        starts[0] = 0;
        starts[1] = find_active(p->active + row * p->inputs, x_row, p->inputs, type);
        if (p->rows == 1)
            return starts[1];
        for (int64_t i = 0; i < p->inputs; i++)
            used[i] = (uint8_t)((row > 0 && used[i]) | is_active(x_row, i, type));
    }
    int64_t num_used = 0;
    for (int64_t input = 0; input < p->inputs; input++)
        if (used[input] && num_used++ % GROUP == 0 && num_used > 1)
            begin_group(p, input);
    return num_used;
}

static int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/* y [rows, outputs] = x [rows, inputs] @ wt [inputs, outputs] + bias [outputs]. Returns how many
   rows of wt were read, or -1 for want of memory. */
EXPORT int64_t optrial_sparse_linear(const void *x, const void *wt, const void *bias, void *y,
                                     int64_t rows, int64_t inputs, int64_t outputs, int threads,
                                     int type) {
    struct product p = {.wt = wt, .bias = bias, .y = y, .rows = rows, .inputs = inputs,
                        .outputs = outputs, .type = (enum number)type};
    p.stride = inputs / GROUP + 3;
    int64_t active_bytes = aligned(rows * inputs * (int64_t)sizeof(struct entry));
    int64_t starts_bytes = aligned(rows * p.stride * (int64_t)sizeof(int32_t));
    /* Sums of float32 are the output itself. */
    int64_t sums_bytes = type == FLOAT32 ? 0 : aligned(rows * outputs * (int64_t)sizeof(float));
    char *memory = aligned_alloc(
        64, (size_t)(active_bytes + starts_bytes + sums_bytes + aligned(inputs + 1)));
    if (memory == NULL)
        return -1;
    p.active = (struct entry *)memory;
    p.starts = (int32_t *)(memory + active_bytes);
    p.sums = type == FLOAT32 ? y : (float *)(memory + active_bytes + starts_bytes);
    uint8_t *used = (uint8_t *)memory + active_bytes + starts_bytes + sums_bytes;
    int64_t num_used =
        type == FLOAT32 ? scan(&p, x, used, FLOAT32) : scan(&p, x, used, BFLOAT16);
    int64_t useful = num_used * outputs * size_of(p.type) / THREAD_BYTES;
    if (threads > useful)
        threads = (int)useful;
    if (threads < 1)
        threads = 1;
    p.chunk = (outputs / threads / COLUMNS + 1) * COLUMNS;
    atomic_init(&p.next, 0);
    pool_run(variants[current_variant()], &p, threads);
    free(memory);
    return num_used;
}
