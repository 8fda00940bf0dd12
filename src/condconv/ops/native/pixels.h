/* Where the pixels of a result come from. */
#ifndef CONDCONV_PIXELS
#define CONDCONV_PIXELS

#include "vector.h"

static const float ZEROS[2 * DEPTH]; /* more than a task takes of the channels at a time */

/* Where some pixels of a result lie, and for each tap what it multiplies there; taps outside point to zeros. */
struct block {
    const float *x[MOST_TAPS][ROWS];
    float *y[ROWS];
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

/* The pixel of x that one tap of the convolution multiplies for a pixel of the output. */
INLINE const float *source_pixel(
    const struct problem *p, int64_t row, int64_t column, int64_t kh, int64_t kw, const float *x, int64_t channels
) {
    const int64_t h = source_place(0, row, kh, p->stride_height, p->pad_height, p->dilation_height, p->height);
    const int64_t w = source_place(0, column, kw, p->stride_width, p->pad_width, p->dilation_width, p->width);
    return h < 0 || w < 0 ? ZEROS : x + (h * p->width + w) * channels;
}

/* Find `count` pixels from `first` on; x and y start at an example's first pixel, at the channel of the task. */
INLINE void find_pixels(
    const struct problem *p, int back, const float *x, float *y, int64_t first, int count, struct block *block
) {
    const int64_t inputs = p->groups * p->channels, outputs = p->groups * p->outputs;
    const int64_t width = back ? p->width : p->out_width, there = back ? p->out_width : p->width;
    const int64_t from = back ? outputs : inputs, to = back ? inputs : outputs;
    int64_t row = first / width, column = first % width;
    for (int i = 0; i < count; i++) {
        int64_t tap = 0, columns[MOST_TAPS];
        for (int64_t kw = 0; kw < p->kernel_width; kw++)
            columns[kw] = source_place(back, column, kw, p->stride_width, p->pad_width, p->dilation_width, there);
        for (int64_t kh = 0; kh < p->kernel_height; kh++) {
            const int64_t h = source_place(
                back, row, kh, p->stride_height, p->pad_height, p->dilation_height, back ? p->out_height : p->height
            );
            const float *line = x + (h < 0 ? 0 : h) * there * from;
            for (int64_t kw = 0; kw < p->kernel_width; kw++, tap++)
                block->x[tap][i] = h < 0 || columns[kw] < 0 ? ZEROS : line + columns[kw] * from;
        }
        block->y[i] = y + (first + i) * to;
        if (++column == width) column = 0, row++;
    }
}

#endif
