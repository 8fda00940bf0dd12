/* Where the pixels of a result come from. */
#ifndef CONDCONV_PIXELS
#define CONDCONV_PIXELS

#include "vector.h"

static const float ZEROS[2 * DEPTH]; /* more than a task takes of the channels at a time */

/* Where some pixels of a result lie, and for each tap what it multiplies there; taps outside point to zeros. */
struct block {
    const float *x[MOST_TAPS][ROOM] __attribute__((aligned(64)));
    float *y[ROWS];
    int64_t ahead; /* from these to the sources of the next pixels, to be fetched meanwhile; 0 for none */
};

/* Where the source of a result's pixel lies along one dimension for one tap of a convolution, or of the way back through
 * one; -1 where it is outside. */
INLINE int64_t source_place(
    int back, int64_t place, int64_t tap, int64_t stride, int64_t pad, int64_t dilation, int64_t size
) {
    if (!back) place = place * stride - pad + tap * dilation;
    else {
        place += pad - tap * dilation;
        if (stride > 1) {
            if (place % stride) return -1;
            place /= stride;
        }
    }
    return place < 0 || place >= size ? -1 : place;
}

/* The same as `find_pixels` for the way back through a convolution with a stride, where most taps meet nothing. */
INLINE void find_strided(
    const struct problem *p, places rows, places columns, const float *x, int64_t from, int i0, int count,
    struct block *block
) {
    for (int i = 0; i < count; i++)
        for (int64_t kh = 0, tap = 0; kh < p->kernel_height; kh++) {
            const int64_t h = source_place(
                1, rows[i], kh, p->stride_height, p->pad_height, p->dilation_height, p->out_height
            );
            for (int64_t kw = 0; kw < p->kernel_width; kw++, tap++) {
                const int64_t w = source_place(
                    1, columns[i], kw, p->stride_width, p->pad_width, p->dilation_width, p->out_width
                );
                block->x[tap][i0 + i] = h < 0 || w < 0 ? ZEROS : x + (h * p->out_width + w) * from;
            }
        }
}

/* Along one dimension, the places that one tap of a convolution multiplies for the results at `at`; the same, or of the
 * way back through a convolution of stride 1. */
INLINE places source_places(int back, places at, int64_t tap, int64_t stride, int64_t pad, int64_t dilation) {
    return back ? at + (pad - tap * dilation) : at * stride + (tap * dilation - pad);
}

/* Whether each pixel of the result has one source, which lies where it lies itself. */
INLINE int own_sources(const struct problem *p) {
    const int64_t taps = p->kernel_height * p->kernel_width, steps = p->stride_height * p->stride_width;
    return taps == 1 && steps == 1 && p->pad_height == 0 && p->pad_width == 0;
}

/* Find `count` pixels from `first` on; x and y start at an example's first pixel, at the channel of the task. */
INLINE void find_pixels(
    const struct problem *p, int back, const float *x, float *y, int64_t first, int count, struct block *block
) {
    const int64_t inputs = p->groups * p->channels, outputs = p->groups * p->outputs;
    const int64_t width = back ? p->width : p->out_width;
    const int64_t from = back ? outputs : inputs, to = back ? inputs : outputs;
    const int64_t high = back ? p->out_height : p->height, wide = back ? p->out_width : p->width;
    if (own_sources(p)) {
        for (int i = 0; i < count; i++) {
            block->x[0][i] = x + (first + i) * from;
            block->y[i] = y + (first + i) * to;
        }
        return;
    }
    int64_t row = first / width, column = first % width;
    for (int i0 = 0; i0 < count; i0 += PLACES) { /* one by one this takes as long as the product */
        places rows = {0}, columns = {0};
        for (int i = 0; i < PLACES && i0 + i < count; i++) {
            rows[i] = row, columns[i] = column;
            block->y[i0 + i] = y + (first + i0 + i) * to;
            if (++column == width) column = 0, row++;
        }
        if (back && (p->stride_height > 1 || p->stride_width > 1)) {
            find_strided(p, rows, columns, x, from, i0, (int)least(count - i0, PLACES), block);
            continue;
        }
        int64_t tap = 0;
        for (int64_t kh = 0; kh < p->kernel_height; kh++) {
            const places h = source_places(back, rows, kh, p->stride_height, p->pad_height, p->dilation_height);
            const places line = (int64_t)x + h * (wide * from * 4), inside = (h >= 0) & (h < high);
            for (int64_t kw = 0; kw < p->kernel_width; kw++, tap++) {
                const places w = source_places(back, columns, kw, p->stride_width, p->pad_width, p->dilation_width);
                const places here = inside & (w >= 0) & (w < wide);
                *(places *)(block->x[tap] + i0) = (here & (line + w * (from * 4))) | (~here & (int64_t)ZEROS);
            }
        }
    }
}

/* Find what one tap multiplies for every pixel of the output; x starts at an example's first pixel. `found` has room for
 * PLACES more than there are pixels. */
INLINE void find_tap(const struct problem *p, int64_t tap, const float *x, const float **found) {
    const int64_t from = p->groups * p->channels, kh = tap / p->kernel_width, kw = tap % p->kernel_width;
    if (own_sources(p)) {
        for (int64_t n = 0; n < p->out_height * p->out_width; n++) found[n] = x + n * from;
        return;
    }
    places lane;
    for (int i = 0; i < PLACES; i++) lane[i] = i;
    for (int64_t row = 0; row < p->out_height; row++, found += p->out_width) {
        const int64_t h = source_place(0, row, kh, p->stride_height, p->pad_height, p->dilation_height, p->height);
        const int64_t line = (int64_t)(x + (h < 0 ? 0 : h) * p->width * from);
        for (int64_t column = 0; column < p->out_width; column += PLACES) {
            const places w = source_places(0, lane + column, kw, p->stride_width, p->pad_width, p->dilation_width);
            const places inside = (w >= 0) & (w < p->width) & -(int64_t)(h >= 0);
            const places here = (inside & (line + w * (from * 4))) | (~inside & (int64_t)ZEROS);
            memcpy(found + column, &here, sizeof(here));
        }
    }
}

#endif
