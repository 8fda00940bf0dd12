/* Convolution of each example with its own mixture of expert kernels; fp32, channels innermost. Experts may be narrower:
 * they are widened as they are mixed.
 *
 * This file is compiled once for each instruction set, with VECTOR numbers in a vector register and SUFFIX at the end
 * of the names it exports; dispatch.c picks one when the library is loaded. GCC's and Clang's vector extensions stand
 * for intrinsics, so that one text serves all.
 *
 * Dense kernels: a panel of PANEL output channels is one task. Its experts are mixed for a few examples at a time and
 * multiplied at once, so that no mixed kernel reaches memory, and an expert's numbers are used for several examples
 * when they have been read. The product keeps ROWS pixels times PANEL channels in registers.
 * Depthwise kernels: a chunk of an example's channels is one task.
 */
#include "dense.h"
#include "depthwise.h"
#include "gradient.h"

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define EXPORT(name) JOIN(name, SUFFIX)

void EXPORT(condconv_forward)(struct problem *p, int depthwise, parallel_for *run) {
    if (depthwise) run(0, p->batch * ((p->groups + CHUNK - 1) / CHUNK), 1, depthwise_range, p);
    else run(0, dense_tasks(p, 0).number, 1, dense_range, p);
}

void EXPORT(condconv_input_gradient)(struct problem *p, int depthwise, parallel_for *run) {
    if (depthwise) run(0, p->batch * ((p->groups + CHUNK - 1) / CHUNK), 1, depthwise_back_range, p);
    else run(0, dense_tasks(p, 1).number, 1, dense_back_range, p);
}

void EXPORT(condconv_weight_gradient)(struct problem *p, int depthwise, parallel_for *run) {
    if (depthwise) run(0, depthwise_weight_tasks(p), 1, depthwise_weight_range, p);
    else run(0, weight_tasks(p), 1, weight_range, p);
}

/* Rows of p->partial: the tasks of the gradient of the experts. */
int64_t EXPORT(condconv_weight_tasks)(const struct problem *p, int depthwise) {
    return depthwise ? depthwise_weight_tasks(p) : weight_tasks(p);
}
