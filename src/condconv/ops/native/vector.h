/* Vectors of VECTOR numbers, sizes of blocks, and memory to work in. */
#ifndef CONDCONV_VECTOR
#define CONDCONV_VECTOR

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "native.h"

typedef float vector __attribute__((vector_size(VECTOR * 4)));
typedef float unaligned __attribute__((vector_size(VECTOR * 4), aligned(4)));
typedef int64_t places __attribute__((vector_size(VECTOR * 4))); /* of PLACES pixels */
typedef int32_t lanes __attribute__((vector_size(VECTOR * 4)));
typedef uint16_t halves __attribute__((vector_size(VECTOR * 2)));
typedef uint16_t unaligned_halves __attribute__((vector_size(VECTOR * 2), aligned(2)));
typedef int8_t bytes __attribute__((vector_size(VECTOR)));
typedef int8_t unaligned_bytes __attribute__((vector_size(VECTOR), aligned(1)));

#define INLINE static inline __attribute__((always_inline))

enum {
    COLUMNS = VECTORS,         /* registers a row of the product takes */
    PANEL = COLUMNS * VECTOR,  /* output channels of a task */
    SUMS = 4 * COLUMNS,        /* registers that mixing sums up in, half of what there are */
    ROWS = 6,                  /* pixels of the product's block */
    PLACES = VECTOR / 2,       /* pixels whose sources are found at a time */
    ROOM = 8,                  /* for the sources of a block: ROWS, and what fills a vector */
    EXAMPLES = 4,              /* examples an expert is mixed for at a time */
    DEPTH = 2400,              /* kernel numbers of an output channel that are mixed at a time, about */
    SHALLOW = 1024,            /* the same for few pixels: mixed kernels stay in the cache, sums are fetched again */
    FEW_PIXELS = 8,            /* few pixels are at most so many for each expert: mixing is an eighth of the product */
    TILE = (1 << 17) / PANEL,  /* rows of PANEL numbers of all experts that are laid out at a time, half a megabyte */
    LEAST_TILE = 64,           /* of one expert; fewer would not outweigh the product's start and end */
    RUN = 256,                 /* of these, as many as are turned around at a time */
    RUN_OF_ONE = VECTOR == 8 ? 4 * RUN : RUN, /* for one example; longer ones were quicker with AVX2, not tried elsewhere */
    CHUNK = 256,               /* channels of a depthwise task */
    LINE = 64,                 /* bytes that memory gives at a time */
    LINE_NUMBERS = LINE / 4,
};

INLINE vector load(const float *p) { return *(const unaligned *)p; }
INLINE void store(float *p, vector v) { *(unaligned *)p = v; }
INLINE vector load_some(const float *p, int64_t count) {
    float edge[VECTOR] = {0};
    memcpy(edge, p, (size_t)count * 4);
    return load(edge);
}

INLINE void store_some(float *p, vector v, int64_t count) {
    float edge[VECTOR];
    store(edge, v);
    memcpy(p, edge, (size_t)count * 4);
}

/* Widen to 32 bits. Intrinsics, since GCC 12 takes ten instructions for what these do in one. */
INLINE lanes widen_bytes(bytes v) {
#if defined(__AVX512F__)
    return (lanes)_mm512_cvtepi8_epi32((__m128i)v);
#elif defined(__AVX2__)
    return (lanes)_mm256_cvtepi8_epi32((__m128i){(int64_t)v, 0});
#else
    return __builtin_convertvector(v, lanes);
#endif
}
INLINE lanes widen_halves(halves v) {
#if defined(__AVX512F__)
    return (lanes)_mm512_cvtepu16_epi32((__m256i)v);
#elif defined(__AVX2__)
    return (lanes)_mm256_cvtepu16_epi32((__m128i)v);
#else
    return __builtin_convertvector(v, lanes);
#endif
}

/* Numbers of an expert from `at` on, `count` <= VECTOR of them, as floats. A bfloat16 is the upper half of one. */
INLINE vector load_expert(int kind, const void *numbers, int64_t at, int64_t count) {
    if (kind == FLOATS) {
        const float *first = (const float *)numbers + at;
        return count == VECTOR ? load(first) : load_some(first, count);
    }
    if (kind == BFLOATS) {
        const uint16_t *first = (const uint16_t *)numbers + at;
        halves some = {0};
        if (count == VECTOR) some = *(const unaligned_halves *)first;
        else memcpy(&some, first, (size_t)count * 2);
        return (vector)(widen_halves(some) << 16);
    }
    const int8_t *first = (const int8_t *)numbers + at;
    bytes some = {0};
    if (count == VECTOR) some = *(const unaligned_bytes *)first;
    else memcpy(&some, first, (size_t)count);
    return __builtin_convertvector(widen_bytes(some), vector);
}

/* Bytes of a number. */
INLINE int64_t width_of(int kind) { return kind == FLOATS ? 4 : kind == BFLOATS ? 2 : 1; }

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* A buffer of the running thread that grows and stays until the thread ends: memory asked for anew at each call would
   be paged in anew. The key's destructor is what frees it, also of threads that Python or torch start and end. */
static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;
static int scratch_is_freed; /* a process has so many keys; where none is left, the buffer outlives its thread */
static void make_scratch_key(void) { scratch_is_freed = pthread_key_create(&scratch_key, free) == 0; }

static float *scratch(int64_t numbers) {
    static _Thread_local float *buffer;
    static _Thread_local int64_t size;
    if (size < numbers) {
        pthread_once(&scratch_once, make_scratch_key);
        free(buffer);
        buffer = aligned_alloc(64, (size_t)((numbers * 4 + 63) / 64 * 64));
        size = buffer == NULL ? 0 : numbers;
        if (scratch_is_freed) pthread_setspecific(scratch_key, buffer);
    }
    return buffer;
}

/* Transpose VECTOR vectors in place, by exchanging blocks of 1, 2, 4, ... lanes between vectors as far apart. */
#define LOW(s, j) ((j) & (s) ? VECTOR + (j) - (s) : (j))
#define HIGH(s, j) ((j) & (s) ? VECTOR + (j) : (j) + (s))
#define FOUR(f, s, j) f(s, j), f(s, j + 1), f(s, j + 2), f(s, j + 3)
#if VECTOR == 16
#define EACH(f, s) FOUR(f, s, 0), FOUR(f, s, 4), FOUR(f, s, 8), FOUR(f, s, 12)
#elif VECTOR == 8
#define EACH(f, s) FOUR(f, s, 0), FOUR(f, s, 4)
#else
#define EACH(f, s) FOUR(f, s, 0)
#endif
#if defined(__clang__)
#define SHUFFLE(a, b, f, s) __builtin_shufflevector(a, b, EACH(f, s))
#else
#define SHUFFLE(a, b, f, s) __builtin_shuffle(a, b, (const lanes){EACH(f, s)})
#endif

INLINE void exchange(vector *v, int s) {
#pragma GCC unroll 16
    for (int i = 0; i < VECTOR; i++) {
        if (i & s) continue;
        vector a = v[i], b = v[i + s];
        switch (s) {
            case 1: v[i] = SHUFFLE(a, b, LOW, 1), v[i + s] = SHUFFLE(a, b, HIGH, 1); break;
            case 2: v[i] = SHUFFLE(a, b, LOW, 2), v[i + s] = SHUFFLE(a, b, HIGH, 2); break;
#if VECTOR > 4
            case 4: v[i] = SHUFFLE(a, b, LOW, 4), v[i + s] = SHUFFLE(a, b, HIGH, 4); break;
#endif
#if VECTOR > 8
            case 8: v[i] = SHUFFLE(a, b, LOW, 8), v[i + s] = SHUFFLE(a, b, HIGH, 8); break;
#endif
        }
    }
}

INLINE void transpose(vector *v) {
#pragma GCC unroll 4
    for (int s = 1; s < VECTOR; s *= 2) exchange(v, s);
}

#endif
