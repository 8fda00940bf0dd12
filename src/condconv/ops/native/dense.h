/* Dense kernels: the convolution, and the gradient of x. */
#ifndef CONDCONV_DENSE
#define CONDCONV_DENSE

#include "mix.h"
#include "pixels.h"

/* y[i][:] (+)= sum over taps and input channels of x[tap][i][c] * panel[tap][c][:], for `rows` pixels and as many
 * output channels as `columns` vectors hold, of which the last has `some` (0: all of its) lanes. */
INLINE void multiply(
    int rows, int columns, int64_t taps, int64_t channels, const struct block *block, const float *panel, int add,
    int64_t some
) {
    vector sum[ROWS][COLUMNS];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) {
            const float *y = block->y[i] + j * VECTOR;
            sum[i][j] = !add ? (vector){0} : some && j == columns - 1 ? load_some(y, some) : load(y);
        }
    for (int64_t tap = 0; tap < taps; tap++) {
        const float *x[ROWS];
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) x[i] = block->x[tap][i];
        for (int64_t c = 0; c < channels; c++, panel += PANEL) {
            if (block->ahead && c % LINE_NUMBERS == 0)
#pragma GCC unroll 6
                for (int i = 0; i < rows; i++) __builtin_prefetch(x[i] + block->ahead + c);
            vector kernel[COLUMNS];
#pragma GCC unroll 4
            for (int j = 0; j < columns; j++) kernel[j] = load(panel + j * VECTOR);
#pragma GCC unroll 6
            for (int i = 0; i < rows; i++) {
                const float value = x[i][c];
#pragma GCC unroll 4
                for (int j = 0; j < columns; j++) sum[i][j] += kernel[j] * value;
            }
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) {
            float *y = block->y[i] + j * VECTOR;
            if (some && j == columns - 1) store_some(y, sum[i][j], some);
            else store(y, sum[i][j]);
        }
}

/* One function for each size of a block, so that the compiler keeps its sums in registers. */
typedef void multiply_fn(int64_t, int64_t, const struct block *, const float *, int, int64_t);
#define SIZE(rows, columns) \
    static void multiply_##rows##_##columns( \
        int64_t taps, int64_t channels, const struct block *block, const float *panel, int add, int64_t some \
    ) { \
        multiply(rows, columns, taps, channels, block, panel, add, some); \
    }
#if VECTORS == 4
#define SIZES(rows) SIZE(rows, 1) SIZE(rows, 2) SIZE(rows, 3) SIZE(rows, 4)
#define NAMES(rows) {multiply_##rows##_1, multiply_##rows##_2, multiply_##rows##_3, multiply_##rows##_4}
#else
#define SIZES(rows) SIZE(rows, 1) SIZE(rows, 2)
#define NAMES(rows) {multiply_##rows##_1, multiply_##rows##_2}
#endif
SIZES(1) SIZES(2) SIZES(3) SIZES(4) SIZES(5) SIZES(6)
static multiply_fn *const MULTIPLY[ROWS][COLUMNS] = {NAMES(1), NAMES(2), NAMES(3), NAMES(4), NAMES(5), NAMES(6)};

/* Multiply one example's source with its panel: x over the input channels from k0 to k1 for the output, or back, the
 * output's gradient over its channels for x's gradient. The result's channels in the group are `channels` from `start`
 * on. */
static void convolve(
    const struct problem *p, int back, int64_t example, int64_t group, int64_t start, int64_t channels, int64_t k0,
    int64_t k1, const float *panel
) {
    const int64_t inner = p->height * p->width, outer = p->out_height * p->out_width, pixels = back ? inner : outer;
    const float *x = back ? p->grad_output + (example * outer * p->groups + group) * p->outputs + k0
                          : p->x + (example * inner * p->groups + group) * p->channels + k0;
    float *y = back ? p->grad_x + (example * inner * p->groups + group) * p->channels + start
                    : p->y + (example * outer * p->groups + group) * p->outputs + start;
    const int64_t columns = (channels + VECTOR - 1) / VECTOR, taps = p->kernel_height * p->kernel_width;
    struct block block;
    /* Where there is one tap no pixel has been read before, and each row of x is too short to be seen coming. */
    block.ahead = taps == 1 ? ROWS * p->groups * (back ? p->outputs : p->channels) : 0;
    for (int64_t first = 0; first < pixels; first += ROWS) {
        const int count = (int)least(pixels - first, ROWS);
        find_pixels(p, back, x, y, first, count, &block);
        MULTIPLY[count - 1][columns - 1](taps, k1 - k0, &block, panel, k0 > 0, channels % VECTOR);
    }
}

/* How the channels of a result are shared out: panels of a group's channels, and parts of the batch where there are too
 * few panels to go around. Kernels are mixed `depth` channels at a time. Where they are `packed`, so much of all experts
 * is laid out once for all examples of a part: that reads the experts once, and turns them around once. */
struct tasks {
    int64_t panels, parts, number, depth;
    int packed;
};

static struct tasks dense_tasks(const struct problem *p, int back) {
    const int64_t channels = back ? p->channels : p->outputs, deep = back ? p->outputs : p->channels;
    const int64_t taps = p->kernel_height * p->kernel_width;
    const int64_t pixels = back ? p->height * p->width : p->out_height * p->out_width;
    struct tasks t = {.panels = (channels + PANEL - 1) / PANEL, .parts = 1};
    if (p->threads > 1) {
        const int64_t wanted = (2 * p->threads + p->groups * t.panels - 1) / (p->groups * t.panels);
        t.parts = least(wanted, (p->batch + EXAMPLES - 1) / EXAMPLES);
    }
    t.number = p->groups * t.panels * t.parts;
    const int few = pixels <= FEW_PIXELS * p->experts;
    const int64_t tile = least(TILE / p->experts, DEPTH);
    /* With scales each output channel has routing weights of its own, which a row of a tile cannot take. */
    const int many = few && p->batch >= 2 * p->experts && tile >= LEAST_TILE && p->routing_output == 0;
    t.packed = many && p->batch / t.parts >= p->experts;
    t.depth = (many ? tile : few ? SHALLOW : DEPTH) / taps; /* not by `parts`: a result is the same for any threads */
    if (t.depth < 1) t.depth = 1;
    if (deep <= t.depth + t.depth / 2) t.depth = deep; /* rather one long piece than a long and a short one */
    return t;
}

/* Mix the kernels of the output channels from m0 to m1 for `channels` <= PANEL input channels, to
 * panels[b][tap][m - m0][c]. The taps are outside in memory, so that nothing need be turned around. */
INLINE void mix_panel_back(
    int count, const struct problem *p, int64_t at, const float *routing, int64_t channels, int64_t m0, int64_t m1,
    float *panels, int64_t stride
) {
    const int64_t taps = p->kernel_height * p->kernel_width;
    for (int64_t m = m0; m < m1; m++)
        for (int64_t tap = 0; tap < taps; tap++)
            mix(
                count, FLOATS, p, at + (m * taps + tap) * p->channels, routing, channels, p->channels,
                panels + (tap * (m1 - m0) + m - m0) * PANEL, stride
            );
}

INLINE void mix_some(
    int count, int kind, const struct problem *p, int back, int64_t at, const float *routing, int64_t channels,
    int64_t k0, int64_t k1, float *panels, int64_t stride
) {
    if (back) mix_panel_back(count, p, at, routing, channels, k0, k1, panels, stride);
    else mix_panel(count, kind, p, at, routing, channels, k0, k1, panels, stride);
}

/* Lay out a tile of the experts: tile[e] is the panel that expert e alone, with weight one, would be mixed to. */
INLINE void pack(
    int kind, const struct problem *p, int back, int64_t at, int64_t channels, int64_t k0, int64_t k1, float *tile,
    int64_t stride
) {
    const float one = 1;
    struct problem alone = *p;
    alone.experts = 1;
    for (int64_t e = 0; e < p->experts; e++)
        mix_some(1, kind, &alone, back, at + e * p->expert_numbers, &one, channels, k0, k1, tile + e * stride, 0);
}

/* Mix `rows` rows of a tile for `count` examples: panels[b][row][:] = sum over e of routing[b][e] * tile[e][row][:]. */
INLINE void mix_tile(
    int count, const struct problem *p, const float *routing, int64_t rows, const float *tile, int64_t stride,
    float *panels
) {
    for (int64_t at = 0; at < rows * PANEL; at += PANEL) {
        vector sum[EXAMPLES][COLUMNS];
#pragma GCC unroll 4
        for (int b = 0; b < count; b++)
#pragma GCC unroll 4
            for (int j = 0; j < COLUMNS; j++) sum[b][j] = (vector){0};
        for (int64_t e = 0; e < p->experts; e++) {
            vector expert[COLUMNS];
#pragma GCC unroll 4
            for (int j = 0; j < COLUMNS; j++) expert[j] = load(tile + e * stride + at + j * VECTOR);
#pragma GCC unroll 4
            for (int b = 0; b < count; b++) {
                const float weight = routing[b * p->routing_example + e * p->routing_expert];
#pragma GCC unroll 4
                for (int j = 0; j < COLUMNS; j++) sum[b][j] += expert[j] * weight;
            }
        }
#pragma GCC unroll 4
        for (int b = 0; b < count; b++)
#pragma GCC unroll 4
            for (int j = 0; j < COLUMNS; j++) store(panels + b * stride + at + j * VECTOR, sum[b][j]);
    }
}

INLINE void dense(const struct problem *p, int back, int kind, int64_t begin, int64_t end) {
    const int64_t taps = p->kernel_height * p->kernel_width;
    const int64_t all = back ? p->channels : p->outputs, deep = back ? p->outputs : p->channels;
    const struct tasks t = dense_tasks(p, back);
    /* Not a power of two apart: a cache would have places for a few panels only. */
    const int64_t stride = t.depth * taps * PANEL + 5 * VECTOR;
    float *panel = scratch((EXAMPLES + (t.packed ? p->experts : 0)) * stride), *tile = panel + EXAMPLES * stride;
    if (panel == NULL) {
        *p->failed = 1;
        return;
    }
    for (int64_t task = begin; task < end; task++) {
        const int64_t part = task % t.parts, number = task / t.parts % t.panels, group = task / t.parts / t.panels;
        const int64_t start = number * PANEL, channels = least(all - start, PANEL);
        const int64_t from = p->batch * part / t.parts, to = p->batch * (part + 1) / t.parts;
        const int64_t at = group * p->outputs * p->channels * taps + (back ? start : start * p->channels * taps);
        const float *weights = p->routing + (back ? 0 : (group * p->outputs + start) * p->routing_output);
        for (int64_t k0 = 0; k0 < deep; k0 += t.depth) {
            const int64_t k1 = least(k0 + t.depth, deep), rows = (k1 - k0) * taps;
            if (t.packed) pack(kind, p, back, at, channels, k0, k1, tile, stride);
            for (int64_t b = from; b < to; b += EXAMPLES) {
                const float *routing = weights + b * p->routing_example;
                const int count = (int)least(to - b, EXAMPLES);
#define MIX(n) \
    if (t.packed) mix_tile(n, p, routing, rows, tile, stride, panel); \
    else mix_some(n, kind, p, back, at, routing, channels, k0, k1, panel, stride)
                switch (count) {
                    case 1: MIX(1); break;
                    case 2: MIX(2); break;
                    case 3: MIX(3); break;
                    default: MIX(4); break;
                }
#undef MIX
                for (int i = 0; i < count; i++)
                    convolve(p, back, b + i, group, start, channels, k0, k1, panel + i * stride);
            }
        }
    }
}

static void dense_range(int64_t begin, int64_t end, void *context) {
    const struct problem *p = context;
    switch (p->kind) {
        case BYTES: dense(p, 0, BYTES, begin, end); break;
        case BFLOATS: dense(p, 0, BFLOATS, begin, end); break;
        default: dense(p, 0, FLOATS, begin, end); break;
    }
}

static void dense_back_range(int64_t begin, int64_t end, void *p) { dense(p, 1, FLOATS, begin, end); }

#endif
