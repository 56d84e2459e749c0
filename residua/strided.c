/* 3x3 convolutions of stride 2 with a margin of 1, as sums over their nine taps.

     forward       y[o, k] = sum over taps r, s and inputs c of x[2 o + (r, s) - 1, c] w[k, r, s, c]
     of the input  dx[h, c] = sum of dy[o, k] w[k, r, s, c] over what has 2 o + (r, s) - 1 = h: a row or a column has one tap where it is even and two
                   where it is odd, which makes four kinds of positions
     of weights    dw[k, r, s, c] = sum over images and o of dy[o, k] x[2 o + (r, s) - 1, c]

   Maps are [images, height, width, channels] in bfloat16, weights [outputs, 3, 3, inputs] in float, rounded to bfloat16 for the products; sums are in
   float. Channels come in eights. Taps that are neighbours in a row lie side by side in memory, channels and all, so that a row of taps is one
   product; rows are copied into the cache first, with their margin. Each sum is taken in an order that the shapes decide, so results do not depend on
   the number of threads. */

#include "taps.h"

enum { CHUNKS = 16, SIDE = 8 }; /* for dw: sums of which each is one thread's; outputs at once */

/* ---- the taps of one kind of positions ---- */

/* Of the taps of a row or a column: the first, how far to the next, and how many; positions begin at `start` and are `step` apart. */
typedef struct {
    int first, next, count, start, step;
} taps;

/* Forward all three. Backward the middle one for even positions, the last and the first for odd ones. */
static taps taps_of(int backward, int kind) {
    if (!backward) return (taps){0, 1, 3, 0, 1};
    return kind ? (taps){2, -2, 2, 1, 2} : (taps){1, 0, 1, 0, 2};
}

/* w as `strided_convolve` reads it: for each kind of positions [panels of outputs][rows of taps][taps of a row * inputs / 2][outputs of the panel][2]. */
void strided_weights(const float *restrict w, bf16 *restrict u, long C, long K, int backward) {
    long inputs = backward ? K : C, outputs = backward ? C : K, kinds = backward ? 2 : 1;
    for (int down = 0; down < kinds; down++)
        for (int across = 0; across < kinds; across++) {
            taps v = taps_of(backward, down), h = taps_of(backward, across);
            for (long panel = 0; panel * PANEL * LANES < outputs; panel++) {
                long width = width_of(filled(outputs), panel);
                for (int i = 0; i < v.count; i++)
                    for (int j = 0; j < h.count; j++) {
                        int at = 3 * (v.first + i * v.next) + h.first + j * h.next;
                        for (long pair = 0; pair < inputs / 2; pair++, u += 2 * width)
                            for (long l = 0; l < width; l += LANES) {
                                __m512 both[2];
                                for (int b = 0; b < 2; b++) {
                                    float column[LANES];
                                    for (int n = 0; n < LANES; n++) {
                                        long in = 2 * pair + b, out = panel * PANEL * LANES + l + n;
                                        column[n] = out < outputs ? backward ? w[(in * 9 + at) * C + out] : w[(out * 9 + at) * C + in] : 0;
                                    }
                                    both[b] = _mm512_loadu_ps(column);
                                }
                                store_pairs(u + 2 * l, both[0], both[1]);
                            }
                    }
            }
        }
}

/* ---- maps ---- */

/* y [images, (height + 1) / 2, (width + 1) / 2, K] of x [images, height, width, C] and u as `strided_weights` gives it, then bias [K] and beside (as y)
   where they are given. `backward`: x is the gradient of the result, [images, (height + 1) / 2, .., C], and y that of the input, [images, height,
   width, K]. With `thin`, `beside` is [images, (height + 1) / 2, .., thin] and added where rows and columns are even, the first K of its channels.
   Returns 0, or 1 if there is no memory. */
int strided_convolve(const bf16 *restrict x, const bf16 *restrict u, bf16 *y, const float *bias, const bf16 *beside, long thin, long images,
                     long height, long width, long C, long K, int backward) {
    long smaller_height = (height + 1) / 2, smaller_width = (width + 1) / 2;
    long high = backward ? smaller_height : height, wide = backward ? smaller_width : width; /* of x */
    long down = backward ? height : smaller_height, across = backward ? width : smaller_width; /* of y */
    int apart = backward ? 1 : 2, kinds = backward ? 2 : 1; /* of positions of y, in x; of rows and of columns */
    long units = smaller_height, line = (wide + 2) * C;     /* rows of y, or pairs of them */
    long block = SCRATCH / (apart * line * (long)sizeof(bf16)) - 2;
    block = least(block < 1 ? 1 : block, units);
    long blocks = (units + block - 1) / block;
    block = (units + blocks - 1) / blocks;
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        bf16 *rows = aligned_alloc(64, (((block - 1) * apart + 3) * line * sizeof(bf16) + 63) / 64 * 64);
        failed |= !rows;
#pragma omp for schedule(static)
        for (long job = 0; job < images * blocks; job++) {
            if (failed) continue;
            long n = job / blocks, first = job % blocks * block, last = least(first + block, units);
            if (first >= last) continue;
            rows_in(x + n * high * wide * C, high, wide, C, 1, first * apart - 1, (last - first - 1) * apart + 3, line, rows);
            const bf16 *weights = u;
            long passes = kinds * kinds * ((K + PANEL * LANES - 1) / (PANEL * LANES)) * (last - first), pass = 0;
            const bf16 *x_next = x + (n * high + last * apart) * wide * C, *y_here = y + (n * down + first * kinds) * across * K;
            for (int i = 0; i < kinds; i++)
                for (int j = 0; j < kinds; j++) {
                    taps v = taps_of(backward, i), h = taps_of(backward, j);
                    /* forward the taps begin one before their place, which is where x with its margin does; backward at their place */
                    long before = backward, count = (across - h.start + h.step - 1) / h.step;
                    for (long k = 0; k < K; k += PANEL * LANES) {
                        int vectors = (int)(width_of(filled(K), k / (PANEL * LANES)) / LANES);
                        segment s = {NULL, weights, apart * C, line, h.count * C / 2, v.count, NULL, NULL, bias ? bias + k : NULL, h.step * K,
                                     thin ? thin : h.step * K, lanes_of(K, k + (vectors - 1) * LANES), 0};
                        for (long o = first; o < last; o++) {
                            long to = o * v.step + v.start;
                            if (to >= down || count < 1) continue;
                            long at = ((n * down + to) * across + h.start) * K + k;
                            s.a = rows + ((o - first) * apart + before) * line + before * C;
                            s.y = y + at;
                            if (thin)
                                s.beside = i || j ? NULL : beside + (n * smaller_height + o) * smaller_width * thin + k;
                            else
                                s.beside = beside ? beside + at : NULL;
                            ask(x_next, (last - first) * apart * wide * C * (long)sizeof(bf16), pass, passes);
                            ask(y_here, (last - first) * kinds * across * K * (long)sizeof(bf16), pass++, passes);
                            positions(&s, count, vectors);
                        }
                        weights += v.count * h.count * C * vectors * LANES;
                    }
                }
        }
        free(rows);
    }
    return failed;
}

/* ---- the gradient of the weights ---- */

/* Pairs of neighbours, `apart` positions from one to the other: to [pairs][C'][2] from positions from, from + 2 apart, .. of which there are
   `count`; zeros for what is beyond, and for channels that there are not. */
static void pairs_in(const bf16 *from, long apart, long count, long channels, bf16 *to) {
    const __m512i order = _mm512_loadu_si512(INTERLEAVE);
    for (long i = 0; i < count; i += 2, from += 2 * apart * channels)
        for (long c = 0; c < channels; c += LANES, to += 2 * LANES) {
            __mmask16 lanes = lanes_of(channels, c);
            __m256i even = _mm256_maskz_loadu_epi16(lanes, from + c);
            __m256i odd = _mm256_maskz_loadu_epi16(i + 1 < count ? lanes : 0, from + c + apart * channels);
            _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, _mm512_inserti64x4(_mm512_castsi256_si512(even), odd, 1)));
        }
}

/* sums [SIDE][9][C'], 16 channels of three taps of a row, += over rows and pairs: SIDE outputs of dy [rows][pairs][K'][2], x [rows, `line` apart][3]
   [pairs][C'][2]. */
static void three_taps(const bf16 *dy, long beside, const bf16 *x, long inputs, long line, long rows, long pairs, float *sums) {
    __m512 sum[SIDE][3];
#pragma GCC unroll 8
    for (int k = 0; k < SIDE; k++)
#pragma GCC unroll 3
        for (int s = 0; s < 3; s++) sum[k][s] = _mm512_loadu_ps(sums + (k * 9 + s) * inputs);
    for (long row = 0; row < rows; row++, x += line) {
        const bf16 *at = x;
        for (long i = 0; i < pairs; i++, at += 2 * inputs, dy += 2 * beside) {
            __m512bh right[3];
#pragma GCC unroll 3
            for (int s = 0; s < 3; s++) right[s] = (__m512bh)_mm512_loadu_si512(at + s * pairs * 2 * inputs);
#pragma GCC unroll 8
            for (int k = 0; k < SIDE; k++) {
                int pair;
                memcpy(&pair, dy + 2 * k, 4);
                __m512bh left = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 3
                for (int s = 0; s < 3; s++) sum[k][s] = _mm512_dpbf16_ps(sum[k][s], left, right[s]);
            }
        }
    }
#pragma GCC unroll 8
    for (int k = 0; k < SIDE; k++)
#pragma GCC unroll 3
        for (int s = 0; s < 3; s++) _mm512_storeu_ps(sums + (k * 9 + s) * inputs, sum[k][s]);
}

/* dw [K, 3, 3, C] of x [images, height, width, C] and dy [images, (height + 1) / 2, (width + 1) / 2, K]. Returns 0, or 1 if there is no memory. Images
   come in CHUNKS, each with sums of its own, which are added at the end. */
int strided_gradient(const bf16 *restrict x, const bf16 *restrict dy, float *restrict dw, long images, long height, long width, long C, long K) {
    long down = (height + 1) / 2, across = (width + 1) / 2, inputs = filled(C), outputs = filled(K), pairs = (across + 1) / 2;
    long line = (width + 2) * C, triple = 3 * pairs * 2 * inputs, chunks = least(CHUNKS, images), size = 9 * outputs * inputs;
    long block = SCRATCH / ((2 * triple + pairs * 2 * outputs) * (long)sizeof(bf16)) - 2;
    block = least(block < 1 ? 1 : block, down);
    float *sums = room(chunks * size * sizeof(float));
    int failed = !sums;
#pragma omp parallel if (!failed) reduction(| : failed)
    {
        long held = (block - 1) * 2 + 3;
        bf16 *row = aligned_alloc(64, ((line + 2 * C) * sizeof(bf16) + 63) / 64 * 64);
        bf16 *left = aligned_alloc(64, block * pairs * 2 * outputs * sizeof(bf16)), *right = aligned_alloc(64, held * triple * sizeof(bf16));
        failed |= !row || !left || !right;
        if (!failed) memset(row, 0, (line + 2 * C) * sizeof(bf16));
#pragma omp for schedule(static)
        for (long chunk = 0; chunk < chunks; chunk++) {
            if (failed) continue;
            float *own = sums + chunk * size;
            memset(own, 0, size * sizeof(float));
            for (long n = images * chunk / chunks; n < images * (chunk + 1) / chunks; n++)
                for (long first = 0; first < down; first += block) {
                    long count = least(block, down - first);
                    for (long i = 0; i < count; i++)
                        pairs_in(dy + (n * down + first + i) * across * K, 1, across, K, left + i * pairs * 2 * outputs);
                    for (long i = 0; i < (count - 1) * 2 + 3; i++) {
                        rows_in(x + n * height * width * C, height, width, C, 1, first * 2 - 1 + i, 1, line, row);
                        for (long s = 0; s < 3; s++) pairs_in(row + s * C, 2, across, C, right + i * triple + s * pairs * 2 * inputs);
                    }
                    long passes = 3 * ((K + SIDE - 1) / SIDE), pass = 0;
                    for (long r = 0; r < 3; r++)
                        for (long k = 0; k < K; k += SIDE, pass++) {
                            ask(x + (n * height + 2 * (first + count)) * width * C, 2 * count * width * C * (long)sizeof(bf16), pass, passes);
                            ask(dy + (n * down + first + count) * across * K, count * across * K * (long)sizeof(bf16), pass, passes);
                            for (long c = 0; c < C; c += LANES)
                                three_taps(left + 2 * k, outputs, right + r * triple + 2 * c, inputs, 2 * triple, count, pairs,
                                           own + (k * 9 + 3 * r) * inputs + c);
                        }
                }
        }
        free(row);
        free(left);
        free(right);
#pragma omp for schedule(static)
        for (long k = 0; k < K; k++) {
            if (failed) continue;
            for (long tap = 0; tap < 9; tap++)
                for (long c = 0; c < C; c += LANES) {
                    __m512 sum = _mm512_setzero_ps();
                    for (long chunk = 0; chunk < chunks; chunk++) sum = add(sum, _mm512_loadu_ps(sums + chunk * size + (k * 9 + tap) * inputs + c));
                    _mm512_mask_storeu_ps(dw + (k * 9 + tap) * C + c, lanes_of(C, c), sum);
                }
        }
    }
    free(sums);
    return failed;
}
