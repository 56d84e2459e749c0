/* Convolutions of images, which have few channels, as sums over their taps.

     forward       y[o, k] = sum over taps r, s and channels c of x[stride o + (r, s) - margin, c] w[k, r, s, c]
     of weights    dw[k, r, s, c] = sum over images and o of dy[o, k] x[stride o + (r, s) - margin, c]

   Maps are [images, height, width, channels] in bfloat16, weights [outputs, high, wide, inputs] in float, rounded to bfloat16 for the products; sums are
   in float. A row of taps, channels and all, is one product of `wide` x inputs values, one zero more where that is odd. Other loops have channels of
   the input side by side in a vector; here these would leave most of it empty, so outputs are, for the gradient too. Each sum is taken in an order that
   the shapes decide, so results do not depend on the number of threads. */

#include "taps.h"

enum { CHUNKS = 16, TAPS = 11 }; /* for dw: sums of which each is one thread's; values of a row of taps at once, at most */
enum { HELD = 160 << 10 };       /* and bytes of rows that a thread works on at once, which are read in order */

/* Of a convolution: the sides of its window, how far apart two windows are, and rows and columns of zeros round the image. */
typedef struct {
    long images, height, width, inputs, outputs;
    long high, wide, stride, above, before;
} stem;

static long down_of(const stem *s) { return (s->height + 2 * s->above - s->high) / s->stride + 1; }
static long across_of(const stem *s) { return (s->width + 2 * s->before - s->wide) / s->stride + 1; }

/* w as `stems_convolve` reads it: [panels of outputs][rows of taps][pairs of values of a row][outputs of the panel][2]. */
void stems_weights(const float *restrict w, bf16 *restrict u, const stem *given) {
    const stem s = *given;
    long row = s.wide * s.inputs;
    for (long panel = 0; panel * PANEL * LANES < s.outputs; panel++) {
        long width = width_of(filled(s.outputs), panel);
        for (long r = 0; r < s.high; r++)
            for (long i = 0; i < row; i += 2, u += 2 * width)
                for (long l = 0; l < width; l += LANES) {
                    float both[2][LANES];
                    for (int b = 0; b < 2; b++)
                        for (long n = 0; n < LANES; n++) {
                            long out = panel * PANEL * LANES + l + n;
                            both[b][n] = out < s.outputs && i + b < row ? w[(out * s.high + r) * row + i + b] : 0;
                        }
                    store_pairs(u + 2 * l, _mm512_loadu_ps(both[0]), _mm512_loadu_ps(both[1]));
                }
    }
}

/* y [images, down, across, outputs] of x and u as `stems_weights` gives it, with bias [outputs] unless it is NULL, and ReLU if that is asked for.
   Returns 0, or 1 if there is no memory. */
int stems_convolve(const bf16 *restrict x, const bf16 *restrict u, bf16 *restrict y, const float *bias, int relu, const stem *given) {
    const stem s = *given;
    long down = down_of(&s), across = across_of(&s), pairs = (s.wide * s.inputs + 1) / 2;
    long line = (s.width + 2 * s.before) * s.inputs + 1; /* and what the odd value is multiplied with */
    long block = (SCRATCH / (line * (long)sizeof(bf16)) - s.high) / s.stride + 1;
    block = least(block < 1 ? 1 : block, down);
    long blocks = (down + block - 1) / block;
    block = (down + blocks - 1) / blocks;
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        bf16 *rows = aligned_alloc(64, (((block - 1) * s.stride + s.high) * line * sizeof(bf16) + 63) / 64 * 64);
        failed |= !rows;
#pragma omp for schedule(static)
        for (long job = 0; job < s.images * blocks; job++) {
            long n = job / blocks, first = job % blocks * block, last = least(first + block, down);
            if (failed || first >= last) continue;
            rows_in(x + n * s.height * s.width * s.inputs, s.height, s.width, s.inputs, s.before, first * s.stride - s.above,
                    (last - first - 1) * s.stride + s.high, line, rows);
            const bf16 *weights = u;
            for (long k = 0; k < s.outputs; k += PANEL * LANES) {
                int vectors = (int)(width_of(filled(s.outputs), k / (PANEL * LANES)) / LANES);
                segment part = {NULL, weights, s.stride * s.inputs, line, pairs, (int)s.high, NULL, NULL, bias ? bias + k : NULL, s.outputs,
                                0, lanes_of(s.outputs, k + (vectors - 1) * LANES), relu};
                for (long o = first; o < last; o++) {
                    part.a = rows + (o - first) * s.stride * line;
                    part.y = y + (n * down + o) * across * s.outputs + k;
                    positions(&part, across, vectors);
                }
                weights += s.high * pairs * 2 * vectors * LANES;
            }
        }
        free(rows);
    }
    return failed;
}

/* ---- the gradient of the weights ---- */

/* Of dy [count][K] to [(count + 1) / 2][K'][2]: pairs of neighbours, zeros for what is beyond and for channels that there are not. */
static void neighbours(const bf16 *from, long count, long channels, bf16 *to) {
    const __m512i order = _mm512_loadu_si512(INTERLEAVE);
    for (long i = 0; i < count; i += 2, from += 2 * channels)
        for (long c = 0; c < channels; c += LANES, to += 2 * LANES) {
            __mmask16 lanes = lanes_of(channels, c);
            __m256i even = _mm256_maskz_loadu_epi16(lanes, from + c);
            __m256i odd = _mm256_maskz_loadu_epi16(i + 1 < count ? lanes : 0, from + c + channels);
            _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, _mm512_inserti64x4(_mm512_castsi256_si512(even), odd, 1)));
        }
}

/* A row with each value's partner in the next window, `apart` on: [count][2]. */
static void partners(const bf16 *from, long apart, long count, bf16 *to) {
    const __m512i order = _mm512_loadu_si512(INTERLEAVE);
    for (long i = 0; i < count; i += LANES) {
        __m256i even = _mm256_loadu_si256((const __m256i *)(from + i)), odd = _mm256_loadu_si256((const __m256i *)(from + i + apart));
        _mm512_storeu_si512(to + 2 * i, _mm512_permutexvar_epi16(order, _mm512_inserti64x4(_mm512_castsi256_si512(even), odd, 1)));
    }
}

/* What R values of a row of taps and V vectors of outputs have in common: sums [R][K'] += over rows and pairs of windows of dy [rows][pairs][K'][2] and x
   [rows, `line` apart][pairs, `step` apart][2]. */
typedef struct {
    const bf16 *dy, *x;
    long outputs, line, step, rows, pairs;
    const bf16 *ahead; /* what is read later, so many bytes: each row asks for a part of it */
    long bytes, part, parts;
} common;

#define SUMS(R, V)                                                                                                                       \
    static void sums_of_##R##_##V(const common *g, float *sums) {                                                                        \
        __m512 sum[R][V];                                                                                                                \
        _Pragma("GCC unroll 16") for (int r = 0; r < R; r++)                                                                             \
            _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) sum[r][v] = _mm512_loadu_ps(sums + r * g->outputs + v * LANES);          \
        const bf16 *dy = g->dy;                                                                                                          \
        for (long row = 0; row < g->rows; row++) {                                                                                       \
            const bf16 *x = g->x + row * g->line;                                                                                        \
            ask(g->ahead, g->bytes, g->part * g->rows + row, g->parts * g->rows);                                                        \
            for (long i = 0; i < g->pairs; i++, x += g->step, dy += 2 * g->outputs) {                                                    \
                __m512bh right[V];                                                                                                       \
                _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) right[v] = (__m512bh)_mm512_loadu_si512(dy + 2 * v * LANES);         \
                _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) {                                                                   \
                    int pair;                                                                                                            \
                    memcpy(&pair, x + 2 * r, 4);                                                                                         \
                    __m512bh left = (__m512bh)_mm512_set1_epi32(pair);                                                                   \
                    _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], left, right[v]);         \
                }                                                                                                                        \
            }                                                                                                                            \
        }                                                                                                                                \
        _Pragma("GCC unroll 16") for (int r = 0; r < R; r++)                                                                             \
            _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) _mm512_storeu_ps(sums + r * g->outputs + v * LANES, sum[r][v]);          \
    }
SUMS(11, 2)
SUMS(9, 2)
SUMS(5, 2)
SUMS(11, 1)
SUMS(9, 1)
SUMS(5, 1)
#undef SUMS

/* How many values of a row of taps are taken at once: so that few are taken in vain, and many where that leaves a choice. */
static long at_once(long row) {
    const long sizes[] = {TAPS, 9, 5};
    long best = TAPS;
    for (int i = 1; i < 3; i++)
        if ((row + sizes[i] - 1) / sizes[i] * sizes[i] < (row + best - 1) / best * best) best = sizes[i];
    return best;
}

/* dw [outputs, high, wide, inputs] of x and dy. Returns 0, or 1 if there is no memory. Images come in CHUNKS, each with sums of its own, which are
   added at the end. */
int stems_gradient(const bf16 *restrict x, const bf16 *restrict dy, float *restrict dw, const stem *given) {
    const stem s = *given;
    long down = down_of(&s), across = across_of(&s), outputs = filled(s.outputs), pairs = (across + 1) / 2;
    long row = s.wide * s.inputs, group = at_once(row), groups = (row + group - 1) / group, size = s.high * groups * group * outputs;
    long apart = s.stride * s.inputs, line = filled((s.width + 2 * s.before) * s.inputs + apart), reach = line + TAPS; /* of pairs; taps in vain read on */
    long each = s.stride * reach * 2 + pairs * 2 * outputs, block = HELD / (each * (long)sizeof(bf16));
    block = least(block < 1 ? 1 : block, down);
    long held = (block - 1) * s.stride + s.high, chunks = least(CHUNKS, s.images);
    long passes = s.high * groups * ((outputs + 2 * LANES - 1) / (2 * LANES));
    void (*const sums_of[3][2])(const common *, float *) = {{sums_of_11_1, sums_of_11_2}, {sums_of_9_1, sums_of_9_2}, {sums_of_5_1, sums_of_5_2}};
    void (*const *of)(const common *, float *) = sums_of[group == 11 ? 0 : group == 9 ? 1 : 2];
    float *sums = room(chunks * size * sizeof(float));
    int failed = !sums;
#pragma omp parallel if (!failed) reduction(| : failed)
    {
        bf16 *plain = aligned_alloc(64, ((line + apart + LANES) * sizeof(bf16) + 63) / 64 * 64);
        bf16 *left = aligned_alloc(64, block * pairs * 2 * outputs * sizeof(bf16));
        bf16 *right = aligned_alloc(64, (held * reach * 2 * sizeof(bf16) + 63) / 64 * 64);
        failed |= !plain || !left || !right;
        if (!failed) memset(right, 0, held * reach * 2 * sizeof(bf16));
#pragma omp for schedule(static)
        for (long chunk = 0; chunk < chunks; chunk++) {
            if (failed) continue;
            float *own = sums + chunk * size;
            memset(own, 0, size * sizeof(float));
            for (long n = s.images * chunk / chunks; n < s.images * (chunk + 1) / chunks; n++)
                for (long first = 0; first < down; first += block) {
                    long count = least(block, down - first);
                    for (long i = 0; i < count; i++)
                        neighbours(dy + (n * down + first + i) * across * s.outputs, across, s.outputs, left + i * pairs * 2 * outputs);
                    for (long i = 0; i < (count - 1) * s.stride + s.high; i++) {
                        rows_in(x + n * s.height * s.width * s.inputs, s.height, s.width, s.inputs, s.before, first * s.stride - s.above + i, 1,
                                line + apart + LANES, plain);
                        partners(plain, apart, line, right + i * reach * 2);
                    }
                    const bf16 *ahead = dy + (n * down + first + count) * across * s.outputs;
                    common part = {NULL, NULL, outputs, s.stride * reach * 2, 4 * apart, count, pairs, ahead, count * across * s.outputs * 2, 0, passes};
                    for (long r = 0; r < s.high; r++)
                        for (long g = 0; g < groups; g++)
                            for (long k = 0; k < outputs; k += 2 * LANES) {
                                part.dy = left + 2 * k;
                                part.x = right + (r * reach + g * group) * 2;
                                of[outputs - k > LANES](&part, own + (r * groups + g) * group * outputs + k);
                                part.part++;
                            }
                }
        }
        free(plain);
        free(left);
        free(right);
#pragma omp for schedule(static)
        for (long at = 0; at < s.high * row; at++) {
            if (failed) continue;
            const float *from = sums + (at / row * groups * group + at % row) * outputs;
            for (long k = 0; k < s.outputs; k += LANES) {
                __m512 sum = _mm512_setzero_ps();
                for (long chunk = 0; chunk < chunks; chunk++) sum = add(sum, _mm512_loadu_ps(from + chunk * size + k));
                float found[LANES];
                _mm512_storeu_ps(found, sum);
                for (long i = 0; i < least(LANES, s.outputs - k); i++) dw[(k + i) * s.high * row + at] = found[i];
            }
        }
    }
    free(sums);
    return failed;
}
