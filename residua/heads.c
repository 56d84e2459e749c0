/* The head of a network: means over the positions of a map [images, positions, channels] in bfloat16, and scores of a few images by a linear
   layer, both in float. Sums are taken in an order that the shapes decide, so results do not depend on the number of threads. */

#include "loops.h"

enum { ROWS = 4, IMAGES = 4 }; /* weights' rows and images of one product, whose sums are kept in registers */

/* 16 V channels from c on. */
#define MEANS(V)                                                                                                                    \
    static inline void means_##V(const bf16 *x, float *y, long positions, long channels, long c) {                                  \
        __m512 sum[V];                                                                                                              \
        _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) sum[v] = _mm512_setzero_ps();                                           \
        for (long p = 0; p < positions; p++)                                                                                        \
            _Pragma("GCC unroll 4") for (int v = 0; v < V; v++)                                                                     \
                sum[v] = add(sum[v], load_some(x + p * channels + c + v * LANES, V > 1 ? 0xFFFF : lanes_of(channels, c)));          \
        _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) _mm512_mask_storeu_ps(y + c + v * LANES,                                \
            V > 1 ? 0xFFFF : lanes_of(channels, c), _mm512_div_ps(sum[v], _mm512_set1_ps((float)positions)));                       \
    }
MEANS(1)
MEANS(4)
#undef MEANS

void head_means(const bf16 *x, float *y, long images, long positions, long channels) {
    const long step = 4 * LANES, parts = (channels + step - 1) / step;
#pragma omp parallel for schedule(static)
    for (long job = 0; job < images * parts; job++) {
        const bf16 *map = x + job / parts * positions * channels;
        float *found = y + job / parts * channels;
        long c = job % parts * step;
        if (c + step <= channels)
            means_4(map, found, positions, channels, c);
        else
            for (; c < channels; c += LANES) means_1(map, found, positions, channels, c);
    }
}

/* R rows of the weights times N images, a vector of channels at a time. */
static inline __attribute__((always_inline)) void product(const float *restrict x, const float *restrict w, const float *bias, float *restrict y,
                                                          long channels, long outputs, int R, int N) {
    __m512 sum[ROWS][IMAGES];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) sum[r][n] = _mm512_setzero_ps();
    for (long c = 0; c < channels; c += LANES) {
        __mmask16 lanes = lanes_of(channels, c);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            __m512 weights = _mm512_maskz_loadu_ps(lanes, w + r * channels + c);
            __builtin_prefetch(w + (r + R) * channels + c); /* a row is short for the processor to foresee the next */
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) sum[r][n] = _mm512_fmadd_ps(weights, _mm512_maskz_loadu_ps(lanes, x + n * channels + c), sum[r][n]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) y[n * outputs + r] = _mm512_reduce_add_ps(sum[r][n]) + (bias ? bias[r] : 0);
}

/* y [images, outputs] = x [images, channels] W' + bias, which may be NULL. */
void head_scores(const float *x, const float *w, const float *bias, float *y, long images, long channels, long outputs) {
    long groups = (outputs + ROWS - 1) / ROWS;
#pragma omp parallel for schedule(static)
    for (long group = 0; group < groups; group++)
        for (long n = 0; n < images;) {
            long k = group * ROWS;
            const float *rows = w + k * channels, *offset = bias ? bias + k : NULL;
            int many = images - n >= IMAGES, whole = outputs - k >= ROWS;
            for (long r = 0; r < (whole ? 1 : outputs - k); r++) {
                const float *from = rows + r * channels, *past = offset ? offset + r : NULL;
                float *to = y + n * outputs + k + r;
                if (whole && many)
                    product(x + n * channels, from, past, to, channels, outputs, ROWS, IMAGES);
                else if (whole)
                    product(x + n * channels, from, past, to, channels, outputs, ROWS, 1);
                else if (many)
                    product(x + n * channels, from, past, to, channels, outputs, 1, IMAGES);
                else
                    product(x + n * channels, from, past, to, channels, outputs, 1, 1);
            }
            n += many ? IMAGES : 1;
        }
}
