/* Gradients of the experts and of the routing weights. */
#ifndef CONDCONV_GRADIENT
#define CONDCONV_GRADIENT

#include "pixels.h"

/* Kernel gradients g[b][row][k] of `count` examples, over `rows` pieces of n numbers, `g_apart` numbers from one to the
 * next and `apart` in an expert, become those of experts and routing weights:
 * grads[e][row][k] (+)= sum over b of routing[b][e] * g[b][row][k], dots[e][b] += sum over row and k of
 * g[b][row][k] * experts[e][row][k], which stays spread over the lanes of a vector until `sum_dots`. */
INLINE void spread(
    int count, const struct problem *p, const float *g, int64_t stride, int64_t g_apart, const float *routing, int64_t rows,
    int64_t n, int64_t at, int64_t apart, int add, vector *dots
) {
    for (int64_t e = 0; e < p->experts; e++, dots += EXAMPLES) {
        const float *expert = (const float *)p->weight + e * p->expert_numbers + at;
        float *grad = p->grad_weight + e * p->expert_numbers + at;
        vector dot[EXAMPLES];
        float weight[EXAMPLES];
#pragma GCC unroll 4
        for (int b = 0; b < count; b++) dot[b] = dots[b], weight[b] = routing[b * p->experts + e];
        for (int64_t row = 0; row < rows; row++, expert += apart, grad += apart) {
            const float *piece = g + row * g_apart;
            for (int64_t k = 0; k < n; k += VECTOR) {
                const int64_t width = least(n - k, VECTOR);
                const vector kernel = width == VECTOR ? load(expert + k) : load_some(expert + k, width);
                vector sum = !add ? (vector){0} : width == VECTOR ? load(grad + k) : load_some(grad + k, width);
#pragma GCC unroll 4
                for (int b = 0; b < count; b++) {
                    const vector value = load(piece + b * stride + k);
                    sum += value * weight[b];
                    dot[b] += value * kernel;
                }
                if (width == VECTOR) store(grad + k, sum);
                else store_some(grad + k, sum, width);
            }
        }
#pragma GCC unroll 4
        for (int b = 0; b < count; b++) dots[b] = dot[b];
    }
}

/* partial[b][e] += the lanes of dots[e][b], which are zero afterwards. */
INLINE void sum_dots(const struct problem *p, int64_t count, vector *dots, float *partial) {
    for (int64_t e = 0; e < p->experts; e++)
        for (int64_t b = 0; b < count; b++) {
            float total = 0;
            for (int j = 0; j < VECTOR; j++) total += dots[e * EXAMPLES + b][j];
            partial[b * p->experts + e] += total;
            dots[e * EXAMPLES + b] = (vector){0};
        }
}

INLINE void spread_some(
    int64_t count, const struct problem *p, const float *g, int64_t stride, int64_t g_apart, const float *routing,
    int64_t rows, int64_t n, int64_t at, int64_t apart, int add, vector *dots
) {
    switch (count) {
        case 1: spread(1, p, g, stride, g_apart, routing, rows, n, at, apart, add, dots); break;
        case 2: spread(2, p, g, stride, g_apart, routing, rows, n, at, apart, add, dots); break;
        case 3: spread(3, p, g, stride, g_apart, routing, rows, n, at, apart, add, dots); break;
        default: spread(4, p, g, stride, g_apart, routing, rows, n, at, apart, add, dots); break;
    }
}

/* g[i][:] += sum over pixels of dy[pixel][i] * x[pixel][:], for `rows` output channels and `columns` vectors of input
 * channels; the last vector of x may have `some` lanes. */
INLINE void correlate(
    int rows, int columns, int64_t pixels, const float *dy, int64_t apart, const float *const *x, float *g, int64_t some
) {
    vector sum[ROWS][COLUMNS];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) sum[i][j] = (vector){0};
    for (int64_t n = 0; n < pixels; n++) {
        vector value[COLUMNS];
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++)
            value[j] = some && j == columns - 1 ? load_some(x[n] + j * VECTOR, some) : load(x[n] + j * VECTOR);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            const float factor = dy[n * apart + i];
#pragma GCC unroll 4
            for (int j = 0; j < columns; j++) sum[i][j] += value[j] * factor;
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) store(g + i * PANEL + j * VECTOR, sum[i][j]);
}

typedef void correlate_fn(int64_t, const float *, int64_t, const float *const *, float *, int64_t);
#define CORRELATE(rows, columns) \
    static void correlate_##rows##_##columns( \
        int64_t pixels, const float *dy, int64_t apart, const float *const *x, float *g, int64_t some \
    ) { \
        correlate(rows, columns, pixels, dy, apart, x, g, some); \
    }
#if VECTORS == 4
#define CORRELATES(rows) CORRELATE(rows, 1) CORRELATE(rows, 2) CORRELATE(rows, 3) CORRELATE(rows, 4)
#define CORRELATED(rows) {correlate_##rows##_1, correlate_##rows##_2, correlate_##rows##_3, correlate_##rows##_4}
#else
#define CORRELATES(rows) CORRELATE(rows, 1) CORRELATE(rows, 2)
#define CORRELATED(rows) {correlate_##rows##_1, correlate_##rows##_2}
#endif
CORRELATES(1) CORRELATES(2) CORRELATES(3) CORRELATES(4) CORRELATES(5) CORRELATES(6)
static correlate_fn *const CORRELATIONS[ROWS][COLUMNS] = {
    CORRELATED(1), CORRELATED(2), CORRELATED(3), CORRELATED(4), CORRELATED(5), CORRELATED(6)};

enum { TALL = 4 * ROWS }; /* output channels of a task of the experts' gradient */

static int64_t weight_tasks(const struct problem *p) {
    return p->groups * ((p->outputs + TALL - 1) / TALL) * ((p->channels + PANEL - 1) / PANEL);
}

/* A task owns the experts' gradients of TALL output and PANEL input channels, tap by tap, over the whole batch. */
static void weight_range(int64_t begin, int64_t end, void *context) {
    const struct problem *p = context;
    const int64_t taps = p->kernel_height * p->kernel_width, pixels = p->out_height * p->out_width;
    const int64_t tall = (p->outputs + TALL - 1) / TALL, wide = (p->channels + PANEL - 1) / PANEL;
    const int64_t inputs = p->groups * p->channels, outputs = p->groups * p->outputs, size = TALL * PANEL;
    const int64_t dot_numbers = EXAMPLES * p->experts * VECTOR;
    float *dots = scratch(dot_numbers + EXAMPLES * size + 2 * (pixels + PLACES)), *g = dots + dot_numbers;
    if (dots == NULL) {
        *p->failed = 1;
        return;
    }
    memset(dots, 0, (size_t)dot_numbers * 4);
    const float **sources = (const float **)(g + EXAMPLES * size);
    for (int64_t task = begin; task < end; task++) {
        const int64_t c0 = task % wide * PANEL, m0 = task / wide % tall * TALL, group = task / wide / tall;
        const int64_t channels = least(p->channels - c0, PANEL), rows = least(p->outputs - m0, TALL);
        const int64_t columns = (channels + VECTOR - 1) / VECTOR;
        float *partial = p->partial + task * p->batch * p->experts;
        memset(partial, 0, (size_t)(p->batch * p->experts) * 4);
        for (int64_t tap = 0; tap < taps; tap++)
            for (int64_t b = 0; b < p->batch; b += EXAMPLES) {
                const int64_t count = least(p->batch - b, EXAMPLES);
                for (int64_t i = 0; i < count; i++) {
                    const float *x = p->x + (b + i) * p->height * p->width * inputs + group * p->channels + c0;
                    const float *dy = p->grad_output + (b + i) * pixels * outputs + group * p->outputs + m0;
                    find_tap(p, tap, x, sources);
                    for (int64_t m = 0; m < rows; m += ROWS)
                        CORRELATIONS[least(rows - m, ROWS) - 1][columns - 1](
                            pixels, dy + m, outputs, sources, g + i * size + m * PANEL, channels % VECTOR
                        );
                }
                spread_some(
                    count, p, g, size, PANEL, p->routing + b * p->experts, rows, channels,
                    ((group * p->outputs + m0) * taps + tap) * p->channels + c0, taps * p->channels, b > 0, (vector *)dots
                );
                sum_dots(p, count, (vector *)dots, partial + b * p->experts);
            }
    }
}

static int64_t depthwise_weight_tasks(const struct problem *p) { return (p->groups + PANEL - 1) / PANEL; }

enum { TOGETHER = 3 }; /* taps that a depthwise gradient is computed for at a time */

/* g[tap][:] = sum over pixels of dy[pixel][:] * x[tap][pixel][:], for `taps` <= TOGETHER taps, whose sources lie `far`
 * apart, and `columns` vectors of channels from `c` on, or for one of `some` lanes. */
INLINE void correlate_channels(
    int taps, int columns, int64_t pixels, const float *dy, int64_t apart, const float *const *x, int64_t far, float *g,
    int64_t c, int64_t some
) {
    vector sum[TOGETHER][COLUMNS];
#pragma GCC unroll 3
    for (int t = 0; t < taps; t++)
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) sum[t][j] = (vector){0};
    for (int64_t n = 0; n < pixels; n++)
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) {
            const float *other = dy + n * apart + c + j * VECTOR;
            const vector factor = some ? load_some(other, some) : load(other);
#pragma GCC unroll 3
            for (int t = 0; t < taps; t++) {
                const float *one = x[t * far + n] + c + j * VECTOR;
                sum[t][j] += (some ? load_some(one, some) : load(one)) * factor;
            }
        }
#pragma GCC unroll 3
    for (int t = 0; t < taps; t++)
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) store(g + t * PANEL + c + j * VECTOR, sum[t][j]);
}

/* The same for a panel of `channels` channels. */
INLINE void correlate_panel(
    int taps, int64_t channels, int64_t pixels, const float *dy, int64_t apart, const float *const *x, int64_t far, float *g
) {
    if (channels == PANEL) {
        correlate_channels(taps, COLUMNS, pixels, dy, apart, x, far, g, 0, 0);
        return;
    }
    for (int64_t c = 0; c < channels; c += VECTOR)
        correlate_channels(taps, 1, pixels, dy, apart, x, far, g, c, channels - c < VECTOR ? channels - c : 0);
}

/* A task owns the experts' gradients of PANEL channels over the whole batch. */
static void depthwise_weight_range(int64_t begin, int64_t end, void *context) {
    const struct problem *p = context;
    const int64_t taps = p->kernel_height * p->kernel_width, pixels = p->out_height * p->out_width;
    const int64_t size = (taps * PANEL + VECTOR - 1) / VECTOR * VECTOR;
    const int64_t dot_numbers = EXAMPLES * p->experts * VECTOR;
    const int64_t far = pixels + PLACES;
    float *dots = scratch(dot_numbers + (EXAMPLES + 1) * size + 2 * TOGETHER * far), *turned = dots + dot_numbers;
    if (dots == NULL) {
        *p->failed = 1;
        return;
    }
    memset(dots, 0, (size_t)dot_numbers * 4);
    float *g = turned + EXAMPLES * size;
    const float **sources = (const float **)(g + size);
    for (int64_t task = begin; task < end; task++) {
        const int64_t c0 = task * PANEL, channels = least(p->groups - c0, PANEL);
        float *partial = p->partial + task * p->batch * p->experts;
        memset(partial, 0, (size_t)(p->batch * p->experts) * 4);
        for (int64_t b = 0; b < p->batch; b += EXAMPLES) {
            const int64_t count = least(p->batch - b, EXAMPLES);
            for (int64_t i = 0; i < count; i++) {
                const float *x = p->x + (b + i) * p->height * p->width * p->groups + c0;
                const float *dy = p->grad_output + (b + i) * pixels * p->groups + c0;
                for (int64_t tap = 0; tap < taps; tap += TOGETHER) {
                    const int64_t now = least(taps - tap, TOGETHER);
                    float *found = g + tap * PANEL;
                    for (int64_t t = 0; t < now; t++) find_tap(p, tap + t, x, sources + t * far);
                    switch (now) {
                        case 1: correlate_panel(1, channels, pixels, dy, p->groups, sources, far, found); break;
                        case 2: correlate_panel(2, channels, pixels, dy, p->groups, sources, far, found); break;
                        default: correlate_panel(3, channels, pixels, dy, p->groups, sources, far, found); break;
                    }
                }
                for (int64_t tap = 0; tap < taps; tap++)
                    for (int64_t c = 0; c < channels; c++) turned[i * size + c * taps + tap] = g[tap * PANEL + c];
                for (int64_t k = channels * taps; k < size; k++) turned[i * size + k] = 0;
            }
            spread_some(
                count, p, turned, size, 0, p->routing + b * p->experts, 1, channels * taps, c0 * taps, 0, b > 0,
                (vector *)dots
            );
            sum_dots(p, count, (vector *)dots, partial + b * p->experts);
        }
    }
}

#endif
