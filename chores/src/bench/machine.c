/* Measures the limits of the CPU and its memory: `machine OPENBLAS-LIBRARY` prints one JSON object.
 * All figures are medians of five runs: bandwidth in bytes per second, arithmetic in floating-point
 * operations per second. Without a library it only prints how fast all threads read memory. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { RUNS = 5, LANES = 16, CHAINS = 12, STEPS = 20 * 1000 * 1000 };

/* Much larger than any cache. */
static const size_t BYTES = (size_t)1 << 30;

typedef float floats __attribute__((vector_size(LANES * sizeof(float))));
typedef uint64_t words __attribute__((vector_size(64)));

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

struct part {
    void *(*work)(struct part *);
    const words *memory;
    size_t count;
    uint64_t result;
};

static void *read_all(struct part *part) {
    words sums[8] = { 0 };
    for (size_t i = 0; i < part->count; i += 8)
        for (int j = 0; j < 8; j++) sums[j] ^= part->memory[i + j];
    for (int j = 1; j < 8; j++) sums[0] ^= sums[j];
    part->result = sums[0][0] ^ sums[0][7];
    return NULL;
}

/* Independent chains of multiply-adds in registers: more of them than the latency has cycles. */
static void *multiply_add(struct part *part) {
    floats chains[CHAINS], factor, term;
    for (int lane = 0; lane < LANES; lane++) {
        factor[lane] = 0.999f;
        term[lane] = 0.001f;
    }
    for (int j = 0; j < CHAINS; j++) chains[j] = term * (float)(j + 1);
    for (size_t i = 0; i < STEPS; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < CHAINS; j++) chains[j] = chains[j] * factor + term;
    }
    float sum = 0;
    for (int j = 0; j < CHAINS; j++)
        for (int lane = 0; lane < LANES; lane++) sum += chains[j][lane];
    memcpy(&part->result, &sum, sizeof sum);
    return NULL;
}

static void *begin(void *part) { return ((struct part *)part)->work(part); }

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values) {
    qsort(values, RUNS, sizeof *values, by_value);
    return values[RUNS / 2];
}

/* Returns the seconds that `threads` threads take in parallel, each with its part of the memory. */
static double seconds(void *(*work)(struct part *), const words *memory, int threads) {
    double times[RUNS];
    struct part *parts = calloc((size_t)threads, sizeof *parts);
    pthread_t *ids = calloc((size_t)threads, sizeof *ids);
    if (!parts || !ids) exit(1);
    size_t each = BYTES / sizeof(words) / (size_t)threads / 8 * 8;
    for (int run = 0; run < RUNS; run++) {
        double start = now();
        for (int i = 0; i < threads; i++) {
            parts[i] = (struct part){ work, memory + each * (size_t)i, each, 0 };
            if (pthread_create(&ids[i], NULL, begin, &parts[i])) exit(1);
        }
        for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL);
        times[run] = now() - start;
    }
    volatile uint64_t kept = parts[0].result; /* so that the work is not optimized away */
    (void)kept;
    free(parts);
    free(ids);
    return median(times);
}

/* Measures OpenBLAS with MLX's library, on the product of a 290-token prompt with a weight of the
 * MLP; 0 if it cannot be opened. */
static double sgemm(const char *library) {
    enum { ROW_MAJOR = 101, NO_TRANSPOSE = 111, TRANSPOSE = 112, M = 290, N = 14336, K = 4096 };
    typedef void gemm(int, int, int, int, int, int, float, const float *, int, const float *, int,
                      float, float *, int);
    void *handle = dlopen(library, RTLD_NOW);
    gemm *multiply = handle ? (gemm *)dlsym(handle, "scipy_cblas_sgemm") : NULL;
    if (!multiply) return 0;
    float *a = malloc(sizeof(float) * M * K), *b = malloc(sizeof(float) * N * (size_t)K),
          *c = malloc(sizeof(float) * M * (size_t)N);
    if (!a || !b || !c) exit(1);
    for (size_t i = 0; i < (size_t)M * K; i++) a[i] = (float)(i % 17) - 8;
    for (size_t i = 0; i < (size_t)N * K; i++) b[i] = (float)(i % 13) - 6;
    double times[RUNS];
    for (int run = -1; run < RUNS; run++) {
        double start = now();
        multiply(ROW_MAJOR, NO_TRANSPOSE, TRANSPOSE, M, N, K, 1, a, K, b, K, 0, c, N);
        if (run >= 0) times[run] = now() - start;
    }
    free(a);
    free(b);
    free(c);
    return 2.0 * M * N * K / median(times);
}

int main(int count, char **arguments) {
    int threads = (int)sysconf(_SC_NPROCESSORS_ONLN);
    words *memory = aligned_alloc(64, BYTES);
    if (!memory || count > 2) return 1;
    memset(memory, 1, BYTES);
    if (count == 1) {
        printf("%.4g\n", (double)BYTES / seconds(read_all, memory, threads));
        return 0;
    }
    double operations = 2.0 * STEPS * CHAINS * LANES;
    printf("{\"threads\": %d, \"read_1\": %.4g, \"read_all\": %.4g, ", threads,
           (double)BYTES / seconds(read_all, memory, 1),
           (double)BYTES / seconds(read_all, memory, threads));
    printf("\"fma_1\": %.4g, \"fma_all\": %.4g, \"sgemm\": %.4g}\n",
           operations / seconds(multiply_add, memory, 1),
           operations * threads / seconds(multiply_add, memory, threads), sgemm(arguments[1]));
    return 0;
}
