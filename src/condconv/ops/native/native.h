/* What the kernels are told of a call, and how they ask for threads. */
#ifndef CONDCONV_NATIVE_H
#define CONDCONV_NATIVE_H

#include <stdint.h>

enum { MOST_TAPS = 64 }; /* of a kernel, 8 x 8 */
enum { FLOATS, BFLOATS, BYTES }; /* what an expert's numbers are: fp32, bfloat16, int8 */

/* Mirrored by condconv.ops.native.library.Problem, field by field. All sizes in numbers, not bytes. */
struct problem {
    int64_t batch, experts, groups, channels, outputs; /* channels and outputs of one group */
    int64_t height, width, out_height, out_width;
    int64_t kernel_height, kernel_width, stride_height, stride_width;
    int64_t pad_height, pad_width, dilation_height, dilation_width;
    int64_t expert_numbers, threads;
    int64_t taps_outside; /* weight is [experts, groups * outputs, kernel_height, kernel_width, channels] in memory */
    int64_t kind;         /* of the numbers of weight; FLOATS where gradients are computed */
    /* From one to the next in routing. With a scale for each expert and output channel each channel has weights of its
     * own; otherwise routing_output is 0. */
    int64_t routing_example, routing_expert, routing_output;
    const float *x;       /* [batch, height, width, groups * channels] */
    const void *weight;   /* [experts, groups * outputs, channels, kernel_height, kernel_width] */
    const float *routing; /* [batch, experts], or [batch, experts, groups * outputs] */
    float *y;             /* [batch, out_height, out_width, groups * outputs] */
    /* For gradients; there the taps of a dense kernel are outside. */
    const float *grad_output; /* as y */
    float *grad_x;            /* as x */
    float *grad_weight;       /* as weight */
    float *partial;           /* [tasks, batch, experts], to be summed for the gradient of the routing weights */
    int *failed;          /* set to 1 where memory could not be had */
};

typedef void range_fn(int64_t begin, int64_t end, void *context);
/* torch_parallel_for of torch's C interface, or a plain loop. */
typedef int parallel_for(int64_t begin, int64_t end, int64_t grain, range_fn *body, void *context);

#endif
