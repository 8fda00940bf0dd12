/* The library's functions: which instruction set it found, and the kernels of that set. */
#include "native.h"

#define DECLARE(suffix)                                                          \
    void condconv_forward_##suffix(struct problem *, int, parallel_for *);         \
    void condconv_input_gradient_##suffix(struct problem *, int, parallel_for *);  \
    void condconv_weight_gradient_##suffix(struct problem *, int, parallel_for *); \
    int64_t condconv_weight_tasks_##suffix(const struct problem *, int);
#define KERNELS(suffix)                                                                                        \
    {condconv_forward_##suffix, condconv_input_gradient_##suffix, condconv_weight_gradient_##suffix,           \
     condconv_weight_tasks_##suffix}

typedef void kernel(struct problem *, int, parallel_for *);
struct kernels {
    kernel *forward, *input_gradient, *weight_gradient;
    int64_t (*weight_tasks)(const struct problem *, int);
};

DECLARE(generic)
#if defined(__x86_64__)
DECLARE(avx2)
DECLARE(avx512)
static const struct kernels KERNELS_OF[] = {KERNELS(generic), KERNELS(avx2), KERNELS(avx512)};
#else
static const struct kernels KERNELS_OF[] = {KERNELS(generic)};
#endif

enum { GENERIC, AVX2, AVX512 };

static int best(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
        return AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
    return GENERIC;
}

/* Tests set it to try the others: 0 for the best, or one more than the set's number. */
static int forced;

int condconv_instruction_set(void) { return forced ? forced - 1 : best(); }

/* Return 0, or -1 where the machine does not have it. */
int condconv_force(int instruction_set) {
    if (instruction_set > best()) return -1;
    forced = instruction_set + 1;
    return 0;
}

static int serial(int64_t begin, int64_t end, int64_t grain, range_fn *body, void *context) {
    (void)grain;
    body(begin, end, context);
    return 0;
}

static int call(kernel *of, struct problem *p, int depthwise, parallel_for *run) {
    int failed = 0;
    p->failed = &failed;
    of(p, depthwise, run == 0 ? serial : run);
    return failed;
}

/* Of which sources this is made. */
const char *condconv_sources(void) {
    return SOURCES;
}

/* Each fills what its name says, and returns 0, or 1 where memory could not be had. */
int condconv_forward(struct problem *p, int depthwise, parallel_for *run) {
    return call(KERNELS_OF[condconv_instruction_set()].forward, p, depthwise, run);
}

int condconv_input_gradient(struct problem *p, int depthwise, parallel_for *run) {
    return call(KERNELS_OF[condconv_instruction_set()].input_gradient, p, depthwise, run);
}

int condconv_weight_gradient(struct problem *p, int depthwise, parallel_for *run) {
    return call(KERNELS_OF[condconv_instruction_set()].weight_gradient, p, depthwise, run);
}

int64_t condconv_weight_tasks(const struct problem *p, int depthwise) {
    return KERNELS_OF[condconv_instruction_set()].weight_tasks(p, depthwise);
}
