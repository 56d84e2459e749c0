/* The update of Muon: W <- kept W - scale P X (or X P), P the polynomial of X X' (or X' X) that makes X roughly orthogonal.

     G = X X' / |X|^2,  then five times  F = a + b G + c G^2,  P <- F P,  G <- F G F;  P / |X| at the end

   (Jordan et al. 2024, with his coefficients; all these matrices are polynomials of the first, so they are symmetric and commute.) The two
   products with X round it to bfloat16, as the published programs do with all; sums, and the products of the small square matrices,
   are in float: their least eigenvalues decide and would be lost to rounding.

   A square matrix [n, n] lies in panels of 64 columns, [n / 64][n][64] (the last may be narrower), so that the block of rows I and
   columns J of a product is a sum over k of products of row k of panels I and J. One triangle is computed and mirrored. Each sum is taken in an
   order that the shapes decide, so results do not depend on the number of threads. */

#include "loops.h"

#include <math.h>

/* Has a vector stay in a register: compilers would rather load it again for each product, and loads are what then bounds them. */
#define HELD(v) __asm__("" : "+v"(v))

enum { WIDTH = PANEL * LANES, DEPTH = 128 }; /* DEPTH: pairs summed up while their block of sums stays in registers and the nearest cache */
enum { ALONE = 64 };                         /* rows up to which one thread is faster than two that wait for each other after each product */
enum { AHEAD = 64 };                         /* values: how long before they are read those of a row are asked for; sixteen rows are too many for processors to follow */

/* sums [R, 16 V], rows `step` apart = a' b over k: R values of each row of a, `left` apart, 16 V of b, `right` apart */
#define PRODUCT(R, V)                                                                                                                    \
    static void square_##V(const float *restrict a, long left, const float *restrict b, long right, float *restrict sums, long step,     \
                           long count) {                                                                                                 \
        __m512 sum[R][V];                                                                                                                \
        _Pragma("GCC unroll 16") for (int r = 0; r < R; r++)                                                                             \
            _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) sum[r][v] = _mm512_setzero_ps();                                         \
        for (long k = 0; k < count; k++, a += left, b += right) {                                                                        \
            __m512 row[V];                                                                                                               \
            _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) { \
                row[v] = _mm512_loadu_ps(b + v * LANES); \
                HELD(row[v]); \
            } \
            _Pragma("GCC unroll 16") for (int r = 0; r < R; r++)                                                                         \
                _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) sum[r][v] = _mm512_fmadd_ps(_mm512_set1_ps(a[r]), row[v], sum[r][v]); \
        }                                                                                                                                \
        _Pragma("GCC unroll 16") for (int r = 0; r < R; r++)                                                                             \
            _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) _mm512_storeu_ps(sums + r * step + v * LANES, sum[r][v]);                \
    }
PRODUCT(16, 1)
PRODUCT(8, 2)
PRODUCT(8, 3)
PRODUCT(4, 4)
#undef PRODUCT

/* sums [16, 16 V] as above. */
static void square(const float *a, long left, const float *b, long right, float *sums, long step, long count, int vectors) {
    switch (vectors) {
    case 1: square_1(a, left, b, right, sums, step, count); break;
    case 2: for (int r = 0; r < LANES; r += 8) square_2(a + r, left, b, right, sums + r * step, step, count); break;
    case 3: for (int r = 0; r < LANES; r += 8) square_3(a + r, left, b, right, sums + r * step, step, count); break;
    default: for (int r = 0; r < LANES; r += 4) square_4(a + r, left, b, right, sums + r * step, step, count);
    }
}

static float *panel(const float *m, long n, long p) { return (float *)m + p * WIDTH * n; }

/* The panels I <= J of the block number `job`, in the order of J. */
static void block_of(long job, long *i, long *j) {
    for (*j = 0; job > *j; ++*j) job -= *j + 1;
    *i = job;
}

/* Writes the block of panels I < J, rows of I in panel J, also as rows of J in panel I. */
static void mirror(float *m, long n, long i, long j) {
    long high = width_of(n, i), wide = width_of(n, j);
    const float *from = panel(m, n, j) + i * WIDTH * wide;
    float *to = panel(m, n, i) + j * WIDTH * high;
    for (long r = 0; r < high; r += LANES)
        for (long c = 0; c < wide; c += LANES) turn(from + r * wide + c, wide, to + c * high + r, high, LANES);
}

/* out = a b, all symmetric. Within a parallel region. */
static void multiply(const float *a, const float *b, float *out, long n) {
    long panels = (n + WIDTH - 1) / WIDTH;
#pragma omp for schedule(dynamic)
    for (long job = 0; job < panels * (panels + 1) / 2; job++) {
        long i, j;
        block_of(job, &i, &j);
        long high = width_of(n, i), wide = width_of(n, j);
        for (long r = 0; r < high; r += LANES)
            square(panel(a, n, i) + r, high, panel(b, n, j), wide, panel(out, n, j) + (i * WIDTH + r) * wide, wide, n, (int)(wide / LANES));
        if (i < j) mirror(out, n, i, j);
    }
}

/* G = X X', n by n, of x packed as [n / 16][pairs][16][2]. Within a parallel region. */
static void gram(const bf16 *x, long n, long pairs, float *out) {
    long panels = (n + WIDTH - 1) / WIDTH, group = pairs * 2 * LANES;
#pragma omp for schedule(dynamic)
    for (long job = 0; job < panels * (panels + 1) / 2; job++) {
        long i, j;
        block_of(job, &i, &j);
        long high = width_of(n, i), wide = width_of(n, j);
        float *to = panel(out, n, j) + i * WIDTH * wide;
        memset(to, 0, high * wide * sizeof(float));
        for (long k = 0; k < pairs; k += DEPTH)
            for (long r = 0; r < high; r += LANES)
                outer(x + (i * PANEL + r / LANES) * group + k * 2 * LANES, x + j * PANEL * group + k * 2 * LANES, group, to + r * wide, wide,
                      pairs - k < DEPTH ? pairs - k : DEPTH, (int)(wide / LANES));
        if (i < j) mirror(out, n, i, j);
    }
}

/* 16 columns of rows r and r + 1 as pairs. */
static inline void pack_pairs(const float *x, long columns, long r, long c, bf16 *to) {
    store_pairs(to, _mm512_loadu_ps(x + r * columns + c), _mm512_loadu_ps(x + (r + 1) * columns + c));
}

/* 16 values of the update: x, or if there is a buffer of momentum m, which moves towards x, Nesterov's mixture of both. */
static inline __m512 mixed(const float *x, float *buffer, float m) {
    __m512 now = _mm512_loadu_ps(x);
    if (!buffer) return now;
    __m512 old = _mm512_loadu_ps(buffer), next = _mm512_fmadd_ps(_mm512_set1_ps(1 - m), sub(now, old), old);
    _mm512_storeu_ps(buffer, next);
    return _mm512_fnmadd_ps(_mm512_set1_ps(1 - m), sub(next, now), next);
}

/* w [R, 16 V] (rows `step` apart) = kept w - scale a b: a [R, 2 pairs] (rows `left` apart), b [pairs, 16 V, 2] */
#define PRODUCT(R, V)                                                                                                                    \
    static void apply_##V(const bf16 *restrict a, long left, const bf16 *restrict b, float *restrict w, long step, long pairs, float kept, \
                          float scale) {                                                                                                 \
        _Pragma("GCC unroll 16") for (int r = 0; r < R; r++)                                                                             \
            _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) __builtin_prefetch(w + r * step + v * LANES);                            \
        MULTIPLY(R, V, sum, a, left, b, pairs)                                                                                           \
        _Pragma("GCC unroll 16") for (int r = 0; r < R; r++)                                                                             \
            _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) {                                                                        \
            float *at = w + r * step + v * LANES;                                                                                        \
            __m512 old = kept != 0 ? _mm512_mul_ps(_mm512_set1_ps(kept), _mm512_loadu_ps(at)) : _mm512_setzero_ps();                     \
            _mm512_storeu_ps(at, _mm512_fnmadd_ps(_mm512_set1_ps(scale), sum[r][v], old));                                               \
        }                                                                                                                                \
    }
PRODUCT(16, 1)
PRODUCT(8, 2)
PRODUCT(8, 3)
PRODUCT(4, 4)
#undef PRODUCT

/* w [rows, columns] = kept w - scale a b: a [rows, 2 pairs], b in panels [pairs, 64, 2]. Within a parallel region. */
static void apply(const bf16 *a, const bf16 *b, float *w, long rows, long columns, long pairs, float kept, float scale) {
    long panels = (columns + WIDTH - 1) / WIDTH, parts = (rows + WIDTH - 1) / WIDTH;
#pragma omp for schedule(dynamic)
    for (long job = 0; job < panels * parts; job++) {
        long p = job / parts, first = job % parts * WIDTH, last = first + WIDTH < rows ? first + WIDTH : rows;
        const bf16 *right = b + p * WIDTH * 2 * pairs;
        for (long r = first; r < last; r += LANES) {
            const bf16 *left = a + r * 2 * pairs;
            float *to = w + r * columns + p * WIDTH;
            long step = 2 * pairs;
            switch (width_of(columns, p) / LANES) {
            case 1: apply_1(left, step, right, to, columns, pairs, kept, scale); break;
            case 2: for (int i = 0; i < LANES; i += 8) apply_2(left + i * step, step, right, to + i * columns, columns, pairs, kept, scale); break;
            case 3: for (int i = 0; i < LANES; i += 8) apply_3(left + i * step, step, right, to + i * columns, columns, pairs, kept, scale); break;
            default: for (int i = 0; i < LANES; i += 4) apply_4(left + i * step, step, right, to + i * columns, columns, pairs, kept, scale);
            }
        }
    }
}

/* w, x and buffer [rows, columns], in sixteens; buffer may be NULL. Returns 0, or 1 if there is no memory. */
int muon_update(float *restrict w, const float *restrict x, float *restrict buffer, float m, long rows, long columns, float kept, float scale) {
    const float a = 3.4445f, b = -4.7750f, c = 2.0315f;
    int wide = rows <= columns;
    long n = wide ? rows : columns, length = wide ? columns : rows, size = n * n;
    float *squares = aligned_alloc(64, 5 * size * sizeof(float));
    bf16 *packed = aligned_alloc(64, rows * columns * sizeof(bf16)), *other = aligned_alloc(64, rows * columns * sizeof(bf16));
    bf16 *rounded = aligned_alloc(64, size * sizeof(bf16));
    int failed = !squares || !packed || !other || !rounded;
    float *g = squares, *s = g + size, *f = s + size, *p = f + size, *t = p + size;
    float norm = 0;
#pragma omp parallel if (!failed && n > ALONE)
    if (!failed) {
        /* For X X': [n / 16][pairs along the long side][16][2]. For the last product X in panels, or in rows where they are many. */
        if (wide) {
#pragma omp for schedule(static)
            for (long r = 0; r < rows; r += LANES)
                for (long k = 0; k < columns; k += LANES) {
                    long q = k / WIDTH, width = width_of(columns, q);
                    bf16 tile[LANES][LANES];
                    for (long l = 0; l < LANES; l += 2) {
                        long at = (r + l) * columns + k, later = at + AHEAD;
                        __builtin_prefetch(x + later), __builtin_prefetch(x + later + columns);
                        if (buffer) __builtin_prefetch(buffer + later), __builtin_prefetch(buffer + later + columns);
                        __m512 even = mixed(x + at, buffer ? buffer + at : NULL, m);
                        __m512 odd = mixed(x + at + columns, buffer ? buffer + at + columns : NULL, m);
                        store(tile[l], even), store(tile[l + 1], odd);
                        store_pairs(other + q * WIDTH * rows + (r + l) * width + k % WIDTH * 2, even, odd);
                    }
                    turn(tile, LANES / 2, packed + r * columns + k * LANES, LANES, LANES / 2);
                }
        } else {
#pragma omp for schedule(static)
            for (long r = 0; r < rows; r += 2)
                for (long k = 0; k < columns; k += LANES) {
                    long at = r * columns + k;
                    __m512 even = mixed(x + at, buffer ? buffer + at : NULL, m), odd = mixed(x + at + columns, buffer ? buffer + at + columns : NULL, m);
                    store(other + at, even), store(other + at + columns, odd);
                    store_pairs(packed + k * rows + r * LANES, even, odd);
                }
        }
        gram(packed, n, length / 2, g);
#pragma omp single
        {
            double trace = 0;
            for (long i = 0; i < n; i++) trace += panel(g, n, i / WIDTH)[i * width_of(n, i / WIDTH) + i % WIDTH];
            norm = (float)(1 / (sqrt(trace) + 1e-7));
        }
#pragma omp for schedule(static)
        for (long i = 0; i < size; i++) g[i] *= norm * norm;
        float *now = g, *square_of = s, *factor = f, *product = p, *next = t;
        for (int step = 0; step < 5; step++) {
            multiply(now, now, square_of, n);
            float *result = step ? factor : product;
#pragma omp for schedule(static)
            for (long i = 0; i < size; i++) result[i] = c * square_of[i] + b * now[i];
#pragma omp for schedule(static)
            for (long i = 0; i < n; i++) panel(result, n, i / WIDTH)[i * width_of(n, i / WIDTH) + i % WIDTH] += a;
            if (step < 4) { /* G <- F G F */
                multiply(result, now, square_of, n);
                multiply(square_of, result, next, n);
                float *old = now;
                now = next, next = old;
            }
            if (step) { /* P <- F P */
                multiply(factor, product, square_of, n);
                float *old = product;
                product = square_of, square_of = old;
            }
        }
        if (wide) { /* P in rows, X in panels */
#pragma omp for schedule(static)
            for (long r = 0; r < n; r++)
                for (long k = 0; k < n; k += LANES) store(rounded + r * n + k, _mm512_loadu_ps(panel(product, n, k / WIDTH) + r * width_of(n, k / WIDTH) + k % WIDTH));
            apply(rounded, other, w, rows, columns, n / 2, kept, scale * norm);
        } else { /* X in rows, P in panels */
#pragma omp for schedule(static)
            for (long r = 0; r < n; r += 2)
                for (long k = 0; k < n; k += LANES) {
                    long q = k / WIDTH, width = width_of(n, q);
                    pack_pairs(panel(product, n, q) + k % WIDTH, width, r, 0, rounded + q * WIDTH * n + r * width + k % WIDTH * 2);
                }
            apply(other, rounded, w, rows, columns, n / 2, kept, scale * norm);
        }
    }
    free(squares);
    free(packed);
    free(other);
    free(rounded);
    return failed;
}
