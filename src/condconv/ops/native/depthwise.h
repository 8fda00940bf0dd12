/* Depthwise kernels: the convolution, and the gradient of x. */
#ifndef CONDCONV_DEPTHWISE
#define CONDCONV_DEPTHWISE

#include "mix.h"
#include "pixels.h"

/* y[i][:] = sum over taps of x[tap][i][:] * kernel[tap][:], for `rows` pixels and `columns` vectors of channels. */
INLINE void multiply_channels(
    int rows, int columns, int64_t taps, const struct block *block, const float *kernel, int64_t c, int64_t some
) {
    vector sum[ROWS][COLUMNS];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) sum[i][j] = (vector){0};
    for (int64_t tap = 0; tap < taps; tap++) {
        vector weight[COLUMNS];
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) weight[j] = load(kernel + tap * CHUNK + c + j * VECTOR);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
            for (int j = 0; j < columns; j++) {
                const float *x = block->x[tap][i] + c + j * VECTOR;
                sum[i][j] += (some ? load_some(x, some) : load(x)) * weight[j];
            }
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) {
            float *y = block->y[i] + c + j * VECTOR;
            if (some) store_some(y, sum[i][j], some);
            else store(y, sum[i][j]);
        }
}

/* Mix VECTOR numbers of each of `rows` <= VECTOR channels from number `at` on, the next channel's where its own are fewer;
 * `whole` where there are so many. */
INLINE void mix_rows(
    int kind, int whole, const struct problem *p, int64_t at, int64_t taps, int64_t rows, const float *routing, vector *sum
) {
#pragma GCC unroll 16
    for (int i = 0; i < VECTOR; i++) sum[i] = (vector){0};
    for (int64_t e = 0; e < p->experts; e++, at += p->expert_numbers, routing += p->routing_expert)
#pragma GCC unroll 16
        for (int i = 0; i < VECTOR; i++) {
            if (!whole && i >= rows) continue;
            const int64_t first = at + i * taps;
            const int64_t width = whole ? VECTOR : least((e + 1) * p->expert_numbers - first, VECTOR);
            sum[i] += load_expert(kind, p->weight, first, width) * routing[i * p->routing_output];
        }
}

/* Mix the kernels of `channels` <= CHUNK channels from `first` on for one example, whose weights start at `routing`,
 * and turn them around: kernel[tap][channel]. */
INLINE void mix_channels(
    int kind, const struct problem *p, int64_t first, int64_t channels, const float *routing, float *kernel
) {
    const int64_t taps = p->kernel_height * p->kernel_width;
    for (int64_t c = 0; c < channels; c += VECTOR)
        for (int64_t tap = 0; tap < taps; tap += VECTOR) {
            const int64_t rows = least(channels - c, VECTOR), at = (first + c) * taps + tap;
            const float *weights = routing + c * p->routing_output;
            vector mixed[VECTOR];
            if (at + (VECTOR - 1) * taps + VECTOR <= p->expert_numbers && rows == VECTOR)
                mix_rows(kind, 1, p, at, taps, rows, weights, mixed);
            else mix_rows(kind, 0, p, at, taps, rows, weights, mixed);
            transpose(mixed);
            const int64_t end = least(taps - tap, VECTOR);
            for (int64_t j = 0; j < end; j++) store(kernel + (tap + j) * CHUNK + c, mixed[j]);
        }
}

/* One function for each number of pixels: for a whole panel of channels, and for a vector or less at the edge. */
typedef void channels_fn(int64_t, const struct block *, const float *, int64_t, int64_t);
#define PIXELS(rows) \
    static void panel_##rows(int64_t taps, const struct block *block, const float *kernel, int64_t c, int64_t some) { \
        (void)some; \
        multiply_channels(rows, COLUMNS, taps, block, kernel, c, 0); \
    } \
    static void edge_##rows(int64_t taps, const struct block *block, const float *kernel, int64_t c, int64_t some) { \
        multiply_channels(rows, 1, taps, block, kernel, c, some); \
    }
PIXELS(1) PIXELS(2) PIXELS(3) PIXELS(4) PIXELS(5) PIXELS(6)
static channels_fn *const PANELS[ROWS] = {panel_1, panel_2, panel_3, panel_4, panel_5, panel_6};
static channels_fn *const EDGES[ROWS] = {edge_1, edge_2, edge_3, edge_4, edge_5, edge_6};

INLINE void depthwise(const struct problem *p, int back, int kind, int64_t begin, int64_t end) {
    const int64_t taps = p->kernel_height * p->kernel_width, chunks = (p->groups + CHUNK - 1) / CHUNK;
    const int64_t inner = p->height * p->width, outer = p->out_height * p->out_width, pixels = back ? inner : outer;
    float *kernel = scratch(CHUNK * taps);
    if (kernel == NULL) {
        *p->failed = 1;
        return;
    }
    /* A pixel's channels are too short a row to be seen coming: fetch those that the next block is the first to meet. */
    const int64_t sources = back ? outer : inner, ahead = 2 * (back ? p->out_width : p->width) + ROWS;
    const int near = p->stride_height == 1 && p->stride_width == 1;
    struct block block;
    for (int64_t task = begin; task < end; task++) {
        const int64_t example = task / chunks, first = task % chunks * CHUNK;
        const int64_t channels = least(p->groups - first, CHUNK);
        const int64_t here = example * inner * p->groups + first, there = example * outer * p->groups + first;
        const float *x = back ? p->grad_output + there : p->x + here;
        float *y = back ? p->grad_x + here : p->y + there;
        const float *routing = p->routing + example * p->routing_example + first * p->routing_output;
        mix_channels(kind, p, first, channels, routing, kernel);
        for (int64_t pixel = 0; pixel < pixels; pixel += ROWS) {
            const int count = (int)least(pixels - pixel, ROWS);
            find_pixels(p, back, x, y, pixel, count, &block);
            for (int64_t i = pixel + ahead; near && i < least(pixel + ahead + ROWS, sources); i++)
                for (int64_t c = 0; c < channels; c += LINE_NUMBERS) __builtin_prefetch(x + i * p->groups + c);
            int64_t c = 0;
            for (; c + PANEL <= channels; c += PANEL) PANELS[count - 1](taps, &block, kernel, c, 0);
            for (; c < channels; c += VECTOR)
                EDGES[count - 1](taps, &block, kernel, c, channels - c < VECTOR ? channels - c : 0);
        }
    }
}

static void depthwise_range(int64_t begin, int64_t end, void *context) {
    const struct problem *p = context;
    switch (p->kind) {
        case BYTES: depthwise(p, 0, BYTES, begin, end); break;
        case BFLOATS: depthwise(p, 0, BFLOATS, begin, end); break;
        default: depthwise(p, 0, FLOATS, begin, end); break;
    }
}

static void depthwise_back_range(int64_t begin, int64_t end, void *p) { depthwise(p, 1, FLOATS, begin, end); }

#endif
