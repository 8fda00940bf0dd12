/* Gradients of the experts and of the routing weights. */
#ifndef CONDCONV_GRADIENT
#define CONDCONV_GRADIENT

#include "pixels.h"

/* Gradients of the experts and the routing weights, of `count` examples' kernel gradients g[b][k] over n numbers:
 * grads[e][k] (+)= sum over b of routing[b][e] * g[b][k], partial[b][e] += sum over k of g[b][k] * experts[e][k]. */
INLINE void spread(
    int count, const struct problem *p, const float *g, int64_t stride, const float *routing, int64_t n, int64_t at,
    int add, float *partial
) {
    for (int64_t e = 0; e < p->experts; e++) {
        const float *expert = (const float *)p->weight + e * p->expert_numbers + at;
        float *grad = p->grad_weight + e * p->expert_numbers + at;
        vector dot[EXAMPLES];
#pragma GCC unroll 4
        for (int b = 0; b < count; b++) dot[b] = (vector){0};
        for (int64_t k = 0; k < n; k += VECTOR) {
            const int64_t width = least(n - k, VECTOR);
            const vector kernel = width == VECTOR ? load(expert + k) : load_some(expert + k, width);
            vector sum = !add ? (vector){0} : width == VECTOR ? load(grad + k) : load_some(grad + k, width);
#pragma GCC unroll 4
            for (int b = 0; b < count; b++) {
                const vector value = load(g + b * stride + k);
                sum += value * routing[b * p->experts + e];
                dot[b] += value * kernel;
            }
            if (width == VECTOR) store(grad + k, sum);
            else store_some(grad + k, sum, width);
        }
        for (int b = 0; b < count; b++) {
            float total = 0;
            for (int j = 0; j < VECTOR; j++) total += dot[b][j];
            partial[b * p->experts + e] += total;
        }
    }
}

INLINE void spread_some(
    int64_t count, const struct problem *p, const float *g, int64_t stride, const float *routing, int64_t n, int64_t at,
    int add, float *partial
) {
    switch (count) {
        case 1: spread(1, p, g, stride, routing, n, at, add, partial); break;
        case 2: spread(2, p, g, stride, routing, n, at, add, partial); break;
        case 3: spread(3, p, g, stride, routing, n, at, add, partial); break;
        default: spread(4, p, g, stride, routing, n, at, add, partial); break;
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
    float *g = scratch(EXAMPLES * size + 2 * pixels);
    if (g == NULL) {
        *p->failed = 1;
        return;
    }
    const float **places = (const float **)(g + EXAMPLES * size);
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
                    int64_t n = 0;
                    for (int64_t row = 0; row < p->out_height; row++)
                        for (int64_t column = 0; column < p->out_width; column++)
                            places[n++] = source_pixel(
                                p, row, column, tap / p->kernel_width, tap % p->kernel_width, x, inputs
                            );
                    for (int64_t m = 0; m < rows; m += ROWS)
                        CORRELATIONS[least(rows - m, ROWS) - 1][columns - 1](
                            pixels, dy + m, outputs, places, g + i * size + m * PANEL, channels % VECTOR
                        );
                }
                for (int64_t m = 0; m < rows; m++)
                    spread_some(
                        count, p, g + m * PANEL, size, p->routing + b * p->experts, channels,
                        ((group * p->outputs + m0 + m) * taps + tap) * p->channels + c0, b > 0,
                        partial + b * p->experts
                    );
            }
    }
}

static int64_t depthwise_weight_tasks(const struct problem *p) { return (p->groups + PANEL - 1) / PANEL; }

/* A task owns the experts' gradients of PANEL channels over the whole batch. */
static void depthwise_weight_range(int64_t begin, int64_t end, void *context) {
    const struct problem *p = context;
    const int64_t taps = p->kernel_height * p->kernel_width, pixels = p->out_height * p->out_width;
    const int64_t size = (taps * PANEL + VECTOR - 1) / VECTOR * VECTOR;
    float *turned = scratch((EXAMPLES + 1) * size);
    if (turned == NULL) {
        *p->failed = 1;
        return;
    }
    float *g = turned + EXAMPLES * size;
    for (int64_t task = begin; task < end; task++) {
        const int64_t c0 = task * PANEL, channels = least(p->groups - c0, PANEL);
        float *partial = p->partial + task * p->batch * p->experts;
        memset(partial, 0, (size_t)(p->batch * p->experts) * 4);
        for (int64_t b = 0; b < p->batch; b += EXAMPLES) {
            const int64_t count = least(p->batch - b, EXAMPLES);
            for (int64_t i = 0; i < count; i++) {
                const float *x = p->x + (b + i) * p->height * p->width * p->groups + c0;
                const float *dy = p->grad_output + (b + i) * pixels * p->groups + c0;
                memset(g, 0, (size_t)size * 4);
                for (int64_t row = 0, n = 0; row < p->out_height; row++)
                    for (int64_t column = 0; column < p->out_width; column++, n++)
                        for (int64_t tap = 0; tap < taps; tap++) {
                            const float *place = source_pixel(
                                p, row, column, tap / p->kernel_width, tap % p->kernel_width, x, p->groups
                            );
                            float *sum = g + tap * PANEL;
                            for (int64_t c = 0; c < channels; c += VECTOR) {
                                const int64_t width = least(channels - c, VECTOR);
                                const float *here = place + c, *there = dy + n * p->groups + c;
                                const vector one = width == VECTOR ? load(here) : load_some(here, width);
                                const vector other = width == VECTOR ? load(there) : load_some(there, width);
                                store(sum + c, load(sum + c) + one * other);
                            }
                        }
                for (int64_t tap = 0; tap < taps; tap++)
                    for (int64_t c = 0; c < channels; c++) turned[i * size + c * taps + tap] = g[tap * PANEL + c];
                for (int64_t k = channels * taps; k < size; k++) turned[i * size + k] = 0;
            }
            spread_some(
                count, p, turned, size, p->routing + b * p->experts, channels * taps, c0 * taps, b > 0,
                partial + b * p->experts
            );
        }
    }
}

#endif
