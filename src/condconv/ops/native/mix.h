/* Mixing experts, and laying the result out for the product. */
#ifndef CONDCONV_MIX
#define CONDCONV_MIX

#include "vector.h"

/* Mix n numbers of each expert from `at` on for `count` examples, whose weights start at `routing`:
 * out[b][k] = sum over e of routing[b][e] * experts[e][at + k]. Those that lie `next` numbers on are wanted after them:
 * eight short streams are too many for the machine to see coming. */
INLINE void mix(
    int count, int kind, const struct problem *p, int64_t at, const float *routing, int64_t n, int64_t next, float *out,
    int64_t stride
) {
    const int64_t apart = p->expert_numbers;
    const int columns = count * 4 <= SUMS ? 4 : SUMS / 4; /* more sums than registers would go through memory */
    int64_t k = 0;
    for (; k + columns * VECTOR <= n; k += columns * VECTOR) {
        vector sum[EXAMPLES][4];
#pragma GCC unroll 4
        for (int b = 0; b < count; b++)
#pragma GCC unroll 4
            for (int j = 0; j < columns; j++) sum[b][j] = (vector){0};
        for (int64_t e = 0; e < p->experts; e++) {
            const int64_t first = e * apart + at + k;
            vector expert[4];
#pragma GCC unroll 4
            for (int j = 0; j < columns; j++) {
                expert[j] = load_expert(kind, p->weight, first + j * VECTOR, VECTOR);
                if (j * VECTOR * width_of(kind) % LINE == 0)
                    __builtin_prefetch((const char *)p->weight + (first + j * VECTOR + next) * width_of(kind));
            }
#pragma GCC unroll 4
            for (int b = 0; b < count; b++) {
                const float weight = routing[b * p->routing_example + e * p->routing_expert];
#pragma GCC unroll 4
                for (int j = 0; j < columns; j++) sum[b][j] += expert[j] * weight;
            }
        }
#pragma GCC unroll 4
        for (int b = 0; b < count; b++)
#pragma GCC unroll 4
            for (int j = 0; j < columns; j++) store(out + b * stride + k + j * VECTOR, sum[b][j]);
    }
    /* The rest with the same operations, so that a result does not depend on where it stands. */
    for (; k < n; k += VECTOR) {
        const int64_t width = least(n - k, VECTOR);
        vector sum[EXAMPLES];
#pragma GCC unroll 4
        for (int b = 0; b < count; b++) sum[b] = (vector){0};
        for (int64_t e = 0; e < p->experts; e++) {
            const vector expert = load_expert(kind, p->weight, e * apart + at + k, width);
#pragma GCC unroll 4
            for (int b = 0; b < count; b++)
                sum[b] += expert * routing[b * p->routing_example + e * p->routing_expert];
        }
#pragma GCC unroll 4
        for (int b = 0; b < count; b++) {
            if (width == VECTOR) store(out + b * stride + k, sum[b]);
            else store_some(out + b * stride + k, sum[b], width);
        }
    }
}

/* Mix the kernels, from number `at` on, of `channels` <= PANEL output channels over the input channels from c0 to c1,
 * for `count` examples, and turn them around: panels[b][tap][c - c0][output channel], so that a number of x meets a row of the panel. */
INLINE void mix_panel(
    int count, int kind, const struct problem *p, int64_t at, const float *routing, int64_t channels, int64_t c0,
    int64_t c1, float *panels, int64_t stride
) {
    const int64_t taps = p->kernel_height * p->kernel_width, depth = p->channels * taps, wide = c1 - c0;
    /* The numbers of an output channel are one piece, or with the taps outside one for each tap. */
    const int64_t pieces = p->taps_outside ? taps : 1, within = p->taps_outside ? 1 : taps, n = wide * within;
    float mixed[EXAMPLES * VECTOR * RUN] __attribute__((aligned(64)));
    const int64_t longest = count == 1 ? RUN_OF_ONE : RUN;
    for (int64_t first = 0; first < channels; first += VECTOR) {
        const int64_t rows = least(channels - first, VECTOR);
        for (int64_t piece = 0; piece < pieces; piece++) {
            const int64_t start = at + first * depth + piece * p->channels + c0 * within;
            for (int64_t k0 = 0; k0 < n; k0 += longest) {
                const int64_t run = least(n - k0, longest);
                for (int64_t i = 0; i < rows; i++)
                    mix(
                        count, kind, p, start + i * depth + k0, routing + (first + i) * p->routing_output, run, depth,
                        mixed + i * longest, VECTOR * longest
                    );
                for (int b = 0; b < count; b++)
                    for (int64_t k = 0; k < run; k += VECTOR) {
                        vector turned[VECTOR];
#pragma GCC unroll 16
                        for (int i = 0; i < VECTOR; i++)
                            turned[i] = i < rows ? load(mixed + (b * VECTOR + i) * longest + k) : (vector){0};
                        transpose(turned);
                        float *panel = panels + b * stride + piece * wide * PANEL + first;
                        int64_t c = (k0 + k) / within, tap = (k0 + k) % within;
                        const int64_t end = least(run - k, VECTOR);
                        for (int64_t j = 0; j < end; j++) {
                            store(panel + (tap * wide + c) * PANEL, turned[j]);
                            if (++tap == within) tap = 0, c++;
                        }
                    }
            }
        }
    }
}

#endif
