/* 3x3 convolutions of stride 1 and padding 1 with 2.25 times fewer multiplications: Winograd's F(2x2, 3x3).

     Y = A' [ (G w G') * (B' d B) ] A       d a 4x4 tile of the input, Y a 2x2 tile of the output, * by elements, summed over channels

   (Lavin and Gray 2016, "Fast algorithms for convolutional neural networks", section 4.1.) The gradients are the same form turned
   round: that of the input is such a convolution with flipped weights, that of the weights G' [ (A dY A') * (B' d B) ] G, summed over
   the tiles. The 16 elements of a tile are its points.

   Maps are [images, height, width, channels] in bfloat16, weights [outputs, 3, 3, inputs] in float; tiles and transformed weights have their
   channels filled up to sixteens, C' and K' of them. Transforms and sums are in float; what is multiplied is rounded to bfloat16 once more than in a plain convolution. Each sum is taken in an
   order that the shapes decide, so results do not depend on the number of threads. */

#include "loops.h"

#define inlined static inline __attribute__((always_inline)) /* so that loops are made for full lanes, which need no masks, and for others */

enum { POINTS = 16, ROWS = 24 }; /* ROWS: tiles are multiplied in such groups */
enum { SCRATCH = 320 << 10 }; /* bytes of tiles and of products that a thread works on at once: they are to stay in its cache */
enum { PARTS = 16, FEW = 512, ROOM = 16 << 20 }; /* for the gradient: sums at most, pairs of tiles of one at least, bytes of all of them at most */
enum { CHUNK = 1 << 18, DEPTH = 64 }; /* for the gradient: bytes of tiles that all threads share, and pairs of them for one sum in registers */

/* ---- products ---- */

/* out [R, V*16] = sum over pairs of a [R, 2 pairs] b [pairs, V*16, 2] */
#define PRODUCT(R, V)                                                                                                     \
    inlined void product_##V(const bf16 *restrict a, long step, const bf16 *restrict b, float *restrict out, long pairs) { \
        MULTIPLY(R, V, sum, a, step, b, pairs)                                                                            \
        _Pragma("GCC unroll 24") for (int r = 0; r < R; r++)                                                              \
            _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) _mm512_storeu_ps(out + (r * V + v) * LANES, sum[r][v]);   \
    }
PRODUCT(24, 1)
PRODUCT(12, 2)
PRODUCT(8, 3)
PRODUCT(6, 4)
#undef PRODUCT

inlined void products_of(const bf16 *a, long step, const bf16 *b, float *out, long rows, long pairs, int vectors) {
    switch (vectors) {
    case 1: for (long r = 0; r < rows; r += 24) product_1(a + r * step, step, b, out + r * LANES, pairs); break;
    case 2: for (long r = 0; r < rows; r += 12) product_2(a + r * step, step, b, out + r * 2 * LANES, pairs); break;
    case 3: for (long r = 0; r < rows; r += 8) product_3(a + r * step, step, b, out + r * 3 * LANES, pairs); break;
    default: for (long r = 0; r < rows; r += 6) product_4(a + r * step, step, b, out + r * 4 * LANES, pairs);
    }
}

static void products(const bf16 *a, long step, const bf16 *b, float *out, long rows, long pairs, int vectors) {
    switch (step) { /* one that the compiler knows needs no registers */
    case 16: products_of(a, 16, b, out, rows, pairs, vectors); break;
    case 32: products_of(a, 32, b, out, rows, pairs, vectors); break;
    case 64: products_of(a, 64, b, out, rows, pairs, vectors); break;
    default: products_of(a, step, b, out, rows, pairs, vectors);
    }
}

/* ---- the map as tiles ---- */

/* The tiles of a map. Where the maxima of 2x2 windows follow (`pooled`), a tile of the output is a window, and there are no others. */
typedef struct {
    long images, height, width, channels, down, across, tiles;
} map;

static map map_of(long images, long height, long width, long channels, int pooled) {
    map m = {images, height, width, channels, (height + !pooled) / 2, (width + !pooled) / 2, 0};
    m.tiles = images * m.down * m.across;
    return m;
}

/* Where a tile lies: the image, the row and the column of tiles. Divisions take long, so one tile is found from the one before. */
typedef struct {
    long image, down, across;
} place;

inlined place place_of(const map *m, long tile) {
    long row = tile / m->across;
    return (place){row / m->down, row % m->down, tile % m->across};
}

inlined void advance(const map *m, place *at) {
    if (++at->across < m->across) return;
    at->across = 0;
    if (++at->down < m->down) return;
    at->down = 0;
    at->image++;
}

/* The four rows of the map that the tile at `at` and its neighbours in the row read, from channel c on; NULL outside. A map that is the gradient of one of which
   the maxima of 2x2 windows were taken is given as theirs and their places (0 to 3, row by row): all else of it is zero. */
typedef struct {
    const bf16 *rows[4];
    const uint8_t *places[4];
} lines;

inlined lines lines_of(const map *m, const bf16 *x, const uint8_t *places, const place *tile, long c) {
    lines l;
    long n = tile->image, top = 2 * tile->down - 1;
    for (int i = 0; i < 4; i++) {
        long r = top + i, at = ((n * (m->height / 2) + r / 2) * (m->width / 2)) * m->channels + c;
        int inside = r >= 0 && r < (places ? m->height / 2 * 2 : m->height);
        l.rows[i] = !inside ? 0 : places ? x + at : x + (n * m->height + r) * m->width * m->channels + c;
        l.places[i] = inside && places ? places + at : 0;
    }
    return l;
}

/* Which of the lanes have their maximum at `place`. */
inlined __mmask16 placed(const uint8_t *places, int place, __mmask16 lanes) {
    __m128i found = lanes == 0xFFFF ? _mm_loadu_si128((const __m128i *)places) : _mm_maskz_loadu_epi8(lanes, places);
    return _mm_mask_cmpeq_epi8_mask(lanes, found, _mm_set1_epi8((char)place));
}

/* B' d of one column of pixels; `whole`: it is known to be inside, and all four rows are. */
inlined void column(const map *m, const lines *l, int pooled, long at, int whole, __mmask16 lanes, __m512 out[4]) {
    __m512 d[4];
    int inside = whole || (at >= 0 && at < (pooled ? m->width / 2 * 2 : m->width));
    for (int i = 0; i < 4; i++) { /* the first row is odd */
        long from = (pooled ? at / 2 : at) * m->channels;
        int here = whole || (inside && l->rows[i]);
        d[i] = here ? load_some(l->rows[i] + from, lanes) : _mm512_setzero_ps();
        if (pooled && here) d[i] = _mm512_maskz_mov_ps(placed(l->places[i] + from, (i & 1 ? 0 : 2) + (int)(at & 1), lanes), d[i]);
    }
    out[0] = sub(d[0], d[2]);
    out[1] = add(d[1], d[2]);
    out[2] = sub(d[2], d[1]);
    out[3] = sub(d[1], d[3]);
}

/* B' d B of `run` tiles of a row from tile `left` on: 16 channels of each, `step` apart, its points `plane` apart. Neighbours share
   two columns. */
inlined void run_in(const map *m, const lines *l, int pooled, long left, long run, __mmask16 lanes, bf16 *to, long step, long plane) {
    __m512 k[4][4];
    column(m, l, pooled, 2 * left - 1, 0, lanes, k[0]);
    column(m, l, pooled, 2 * left, 0, lanes, k[1]);
    for (long i = left; i < left + run; i++, to += step) {
        column(m, l, pooled, 2 * i + 1, 0, lanes, k[2]);
        column(m, l, pooled, 2 * i + 2, 0, lanes, k[3]);
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) {
            store(to + (4 * r + 0) * plane, sub(k[0][r], k[2][r]));
            store(to + (4 * r + 1) * plane, add(k[1][r], k[2][r]));
            store(to + (4 * r + 2) * plane, sub(k[2][r], k[1][r]));
            store(to + (4 * r + 3) * plane, sub(k[1][r], k[3][r]));
            k[0][r] = k[2][r];
            k[1][r] = k[3][r];
        }
    }
}

/* B' d B of tiles first .. last: out [POINTS], `plane` apart, of [last - first, C']. `places` may be NULL. */
static void tiles_in(const map *m, const bf16 *x, const uint8_t *places, long first, long last, bf16 *out, long plane) {
    long C = m->channels, step = filled(C);
    for (long t = first; t < last;) {
        place at = place_of(m, t);
        long run = m->across - at.across < last - t ? m->across - at.across : last - t;
        for (long c = 0; c < C; c += LANES) {
            bf16 *to = out + (t - first) * step + c;
            __mmask16 lanes = lanes_of(C, c);
            lines l = lines_of(m, x, places, &at, c);
            if (places && lanes == 0xFFFF)
                run_in(m, &l, 1, at.across, run, 0xFFFF, to, step, plane);
            else if (places)
                run_in(m, &l, 1, at.across, run, lanes, to, step, plane);
            else if (lanes == 0xFFFF)
                run_in(m, &l, 0, at.across, run, 0xFFFF, to, step, plane);
            else
                run_in(m, &l, 0, at.across, run, lanes, to, step, plane);
        }
        t += run;
    }
}

/* What follows the sums: relu(sums + bias [+ beside]). bias and beside may be NULL. */
typedef struct {
    const float *bias;
    const bf16 *beside;
    int relu;
} epilogue;

inlined void finish(bf16 *y, long at, long k, __m512 v, const epilogue *then, __mmask16 lanes) {
    if (then && then->bias) v = add(v, _mm512_maskz_loadu_ps(lanes, then->bias + k));
    if (then && then->beside) v = add(v, load_some(then->beside + at, lanes));
    if (then && then->relu) v = _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ), _mm512_setzero_ps()); /* NaN stays */
    store_some(y + at, v, lanes);
}

/* The sums of one tile, 16 channels, from its points, `plane` apart: at the upper left, the upper right, the lower left, the lower right. */
inlined void sums_of(const float *from, long plane, __m512 sums[4]) {
    __m512 a[4], b[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m512 p0 = _mm512_loadu_ps(from + j * plane), p1 = _mm512_loadu_ps(from + (4 + j) * plane),
               p2 = _mm512_loadu_ps(from + (8 + j) * plane), p3 = _mm512_loadu_ps(from + (12 + j) * plane);
        a[j] = add(add(p0, p1), p2);
        b[j] = sub(sub(p1, p2), p3);
    }
    sums[0] = add(add(a[0], a[1]), a[2]);
    sums[1] = sub(sub(a[1], a[2]), a[3]);
    sums[2] = add(add(b[0], b[1]), b[2]);
    sums[3] = sub(sub(b[1], b[2]), b[3]);
}

/* One tile of the output. */
inlined void tile_out(const float *from, long plane, bf16 *y, long at, long row, long K, int right, int below, long channel,
                      const epilogue *then, __mmask16 lanes) {
    __m512 v[4];
    sums_of(from, plane, v);
    finish(y, at, channel, v[0], then, lanes);
    if (right) finish(y, at + K, channel, v[1], then, lanes);
    if (below) finish(y, at + row, channel, v[2], then, lanes);
    if (below && right) finish(y, at + row + K, channel, v[3], then, lanes);
}

/* The maximum of one tile, and its place. They are compared as they would be stored; the first of equals counts, and what is no number is
   greater than any number. */
inlined void maximum_out(const float *from, long plane, bf16 *y, uint8_t *places, __mmask16 lanes) {
    __m512 v[4], best;
    __m512i place = _mm512_setzero_si512();
    sums_of(from, plane, v);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        v[i] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v[i])), 16));
        __mmask16 more = i ? _mm512_cmp_ps_mask(v[i], best, _CMP_GT_OQ) | _mm512_cmp_ps_mask(v[i], v[i], _CMP_UNORD_Q) : 0xFFFF;
        best = i ? _mm512_mask_mov_ps(best, more, v[i]) : v[i];
        place = _mm512_mask_mov_epi32(place, more, _mm512_set1_epi32(i));
    }
    store_some(y, best, lanes);
    _mm_mask_storeu_epi8(places, lanes, _mm512_cvtepi32_epi8(place));
}

static void maxima_out(const map *m, const float *in, long plane, long first, long last, bf16 *y, uint8_t *places, long k, int vectors) {
    long K = m->channels;
    for (long t = first; t < last; t++)
        for (int v = 0; v < vectors; v++) {
            long at = t * K + k + v * LANES;
            maximum_out(in + ((t - first) * vectors + v) * LANES, plane, y + at, places + at, lanes_of(K, k + v * LANES));
        }
}

/* Channels k, k + 1, .. (16 * vectors of them) of the output's tiles first .. last, from products [POINTS], `plane` apart, of
   [last - first, 16 * vectors]. `then` may be NULL. */
static void tiles_out(const map *m, const float *in, long plane, long first, long last, bf16 *y, long k, int vectors, const epilogue *then) {
    long K = m->channels, next = m->width * K;
    int full = k + vectors * LANES <= K;
    place tile = place_of(m, first);
    for (long t = first; t < last; t++, advance(m, &tile)) {
        long at = ((tile.image * m->height + 2 * tile.down) * m->width + 2 * tile.across) * K + k;
        int below = 2 * tile.down + 1 < m->height, right = 2 * tile.across + 1 < m->width;
        const float *from = in + (t - first) * vectors * LANES;
        if (full && !then)
            for (int v = 0; v < vectors; v++) tile_out(from + v * LANES, plane, y, at + v * LANES, next, K, right, below, 0, NULL, 0xFFFF);
        else
            for (int v = 0; v < vectors; v++)
                tile_out(from + v * LANES, plane, y, at + v * LANES, next, K, right, below, k + v * LANES, then, lanes_of(K, k + v * LANES));
    }
}

/* ---- weights ---- */

static inline __m512 halved(__m512 v) { return _mm512_mul_ps(_mm512_set1_ps(0.5f), v); }

/* G w G' for 16 inputs: w [3, 3], `step` apart, turned by half a turn if `flipped`; zero for lanes that are not. */
inlined void filter(const float *w, long step, __mmask16 lanes, int flipped, __m512 out[POINTS]) {
    __m512 h[4][3];
    for (int s = 0; s < 3; s++) {
        __m512 g[3];
        for (int r = 0; r < 3; r++) g[r] = _mm512_maskz_loadu_ps(lanes, w + (flipped ? 8 - 3 * r - s : 3 * r + s) * step);
        __m512 ends = add(g[0], g[2]);
        h[0][s] = g[0];
        h[1][s] = halved(add(ends, g[1]));
        h[2][s] = halved(sub(ends, g[1]));
        h[3][s] = g[2];
    }
    for (int r = 0; r < 4; r++) {
        __m512 ends = add(h[r][0], h[r][2]);
        out[4 * r] = h[r][0];
        out[4 * r + 1] = halved(add(ends, h[r][1]));
        out[4 * r + 2] = halved(sub(ends, h[r][1]));
        out[4 * r + 3] = h[r][2];
    }
}

/* G w G' of w [K, 3, 3, C], as `winograd_convolve` reads it: u [POINTS][panels of outputs][inputs / 2][outputs of the panel][2],
   with C' and K' of them.
   `flipped`: for the gradient of the input, whose inputs are the K and whose outputs are the C. */
void winograd_weights(const float *restrict w, bf16 *restrict u, long C, long K, int flipped) {
    long inputs = filled(flipped ? K : C), outputs = filled(flipped ? C : K), size = inputs * outputs;
    if (flipped) {
#pragma omp parallel for schedule(static)
        for (long c = 0; c < C; c += LANES) {
            long panel = c / (PANEL * LANES), start = panel * PANEL * LANES, width = width_of(outputs, panel);
            __mmask16 lanes = lanes_of(C, c);
            for (long k = 0; k < inputs; k += 2) {
                __m512 even[POINTS], odd[POINTS];
                filter(w + k * 9 * C + c, C, k < K ? lanes : 0, 1, even);
                filter(w + (k + 1) * 9 * C + c, C, k + 1 < K ? lanes : 0, 1, odd);
                bf16 *to = u + start * inputs + k * width + (c - start) * 2;
                for (int p = 0; p < POINTS; p++) store_pairs(to + p * size, even[p], odd[p]);
            }
        }
    } else {
#pragma omp parallel for schedule(static)
        for (long k = 0; k < K; k += LANES) {
            long panel = k / (PANEL * LANES), start = panel * PANEL * LANES, width = width_of(outputs, panel);
            for (long c = 0; c < C; c += LANES) {
                bf16 square[POINTS][LANES][LANES]; /* [outputs][inputs], to be turned */
                for (long l = 0; l < LANES; l++) {
                    __m512 points[POINTS];
                    filter(w + (k + l) * 9 * C + c, C, k + l < K ? lanes_of(C, c) : 0, 0, points);
                    for (int p = 0; p < POINTS; p++) store(square[p][l], points[p]);
                }
                for (int p = 0; p < POINTS; p++)
                    turn(square[p], LANES / 2, u + p * size + start * inputs + c * width + (k - start) * 2, width, LANES / 2);
            }
        }
    }
}

/* y [images, height, width, K] of x [images, height, width, C] and u as `winograd_weights` gives it, then bias [K], beside (as y) and
   ReLU where they are given. With `from`, x is [images, height / 2, width / 2, C]: maxima of 2x2 windows that lay at the places `from`, and all
   else is zero. With `to` the maxima of 2x2 windows are taken: y and `to`, their places, are [images, height / 2, width / 2, K]. Returns 0, or 1
   if there is no memory. */
int winograd_convolve(const bf16 *restrict x, const uint8_t *restrict from, const bf16 *restrict u, bf16 *y, uint8_t *restrict to,
                      const float *bias, const bf16 *beside, int relu, long images, long height, long width, long C, long K) {
    map in = map_of(images, height, width, C, to != NULL), out = map_of(images, height, width, K, to != NULL);
    epilogue then = {bias, beside, relu};
    long inputs = filled(C), outputs = filled(K), widest = width_of(outputs, 0), threads = omp_get_max_threads();
    long block = SCRATCH / (POINTS * (2 * inputs + 4 * widest) * ROWS) * ROWS;
    block = block < ROWS ? ROWS : block;
    long blocks = ((in.tiles + block - 1) / block + threads - 1) / threads * threads; /* as many for each thread */
    block = (in.tiles + blocks - 1) / blocks;
    long rows = (block + ROWS - 1) / ROWS * ROWS;
    long left = rows * inputs + 32, right = rows * widest + 16; /* points a little apart: they are not to fall on the same lines of the cache */
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        bf16 *tiles = aligned_alloc(64, (POINTS * left * sizeof(bf16) + 63) / 64 * 64);
        float *sums = aligned_alloc(64, (POINTS * right * sizeof(float) + 63) / 64 * 64);
        failed |= !tiles || !sums;
        if (!failed) memset(tiles, 0, POINTS * left * sizeof(bf16)); /* rows after the last tile are multiplied, too */
#pragma omp for schedule(static)
        for (long b = 0; b < blocks; b++) {
            if (failed) continue;
            long first = b * block, last = first + block < in.tiles ? first + block : in.tiles;
            if (first >= last) continue;
            tiles_in(&in, x, from, first, last, tiles, left);
            for (long k = 0; k < K; k += PANEL * LANES) {
                int vectors = (int)(width_of(outputs, k / (PANEL * LANES)) / LANES);
                for (int p = 0; p < POINTS; p++)
                    products(tiles + p * left, inputs, u + (p * outputs + k) * inputs, sums + p * right, last - first, (C + 1) / 2, vectors); /* zeros beyond */
                if (to)
                    maxima_out(&out, sums, right, first, last, y, to, k, vectors);
                else
                    tiles_out(&out, sums, right, first, last, y, k, vectors, bias || beside || relu ? &then : NULL);
            }
        }
        free(tiles);
        free(sums);
    }
    return failed;
}

/* ---- the gradient of the weights ---- */

/* B' d B of a tile from its four columns. */
inlined void tile_of(__m512 k[][4], __m512 v[POINTS]) {
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
        v[4 * r + 0] = sub(k[0][r], k[2][r]);
        v[4 * r + 1] = add(k[1][r], k[2][r]);
        v[4 * r + 2] = sub(k[2][r], k[1][r]);
        v[4 * r + 3] = sub(k[1][r], k[3][r]);
    }
}

/* A dY A' of one tile, 16 channels from k on; zero for no tile. With `places` dy is that of maxima which lay there. */
inlined void tile_of_gradient(const map *m, const bf16 *dy, const uint8_t *places, const place *tile, int there, long k, __mmask16 lanes, __m512 v[POINTS]) {
    const __m512 zero = _mm512_setzero_ps();
    if (!there) {
        for (int p = 0; p < POINTS; p++) v[p] = zero;
        return;
    }
    long K = m->channels;
    __m512 d00, d01, d10, d11;
    if (places) {
        long at = ((tile->image * m->down + tile->down) * m->across + tile->across) * K + k;
        __m512 d = load_some(dy + at, lanes);
        d00 = _mm512_maskz_mov_ps(placed(places + at, 0, lanes), d), d01 = _mm512_maskz_mov_ps(placed(places + at, 1, lanes), d);
        d10 = _mm512_maskz_mov_ps(placed(places + at, 2, lanes), d), d11 = _mm512_maskz_mov_ps(placed(places + at, 3, lanes), d);
    } else {
        const bf16 *at = dy + ((tile->image * m->height + 2 * tile->down) * m->width + 2 * tile->across) * K + k;
        int below = 2 * tile->down + 1 < m->height, right = 2 * tile->across + 1 < m->width;
        d00 = load_some(at, lanes), d01 = right ? load_some(at + K, lanes) : zero;
        d10 = below ? load_some(at + m->width * K, lanes) : zero, d11 = below && right ? load_some(at + (m->width + 1) * K, lanes) : zero;
    }
    __m512 h[4][2] = {{d00, d01}, {add(d00, d10), add(d01, d11)}, {sub(d00, d10), sub(d01, d11)}, {sub(zero, d10), sub(zero, d11)}};
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
        v[4 * r + 0] = h[r][0];
        v[4 * r + 1] = add(h[r][0], h[r][1]);
        v[4 * r + 2] = sub(h[r][0], h[r][1]);
        v[4 * r + 3] = sub(zero, h[r][1]);
    }
}

/* Two tiles, one after the other; the second may be beyond the last. */
typedef struct {
    place tiles[2];
    int there;   /* whether there is a second one */
    int beside;  /* whether it is in the same row: then it shares two columns with the first */
    int whole;   /* whether all that they read lies within the map */
} two;

inlined two two_of(const map *m, place *at, int there) {
    two t = {{*at, *at}, there, 0, 0};
    advance(m, at);
    t.tiles[1] = *at;
    advance(m, at);
    const place *first = &t.tiles[0];
    t.beside = there && first->across + 1 < m->across;
    t.whole = t.beside && first->down && first->across && 2 * first->down + 2 < m->height && 2 * first->across + 4 < m->width;
    return t;
}

/* Both transforms of two tiles, 16 channels from c on: pairs, points `plane` apart. */
inlined void pair_of_input(const map *m, const bf16 *x, const two *t, long c, __mmask16 lanes, bf16 *to, long plane) {
    __m512 even[POINTS], odd[POINTS], k[6][4];
    lines l = lines_of(m, x, NULL, &t->tiles[0], c);
    long left = 2 * t->tiles[0].across - 1;
    if (t->whole) {
#pragma GCC unroll 6
        for (int j = 0; j < 6; j++) column(m, &l, 0, left + j, 1, lanes, k[j]);
    } else {
#pragma GCC unroll 6
        for (int j = 0; j < 6; j++) column(m, &l, 0, left + j, 0, lanes, k[j]);
    }
    tile_of(k, even);
    if (t->beside)
        tile_of(k + 2, odd);
    else if (t->there) {
        l = lines_of(m, x, NULL, &t->tiles[1], c);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) column(m, &l, 0, 2 * t->tiles[1].across - 1 + j, 0, lanes, k[j]);
        tile_of(k, odd);
    } else
#pragma GCC unroll 16
        for (int p = 0; p < POINTS; p++) odd[p] = _mm512_setzero_ps();
#pragma GCC unroll 16
    for (int p = 0; p < POINTS; p++) store_pairs(to + p * plane, even[p], odd[p]);
}

inlined void pair_of_gradient(const map *m, const bf16 *dy, const uint8_t *places, const two *t, long k, __mmask16 lanes, bf16 *to, long plane) {
    __m512 even[POINTS], odd[POINTS];
    tile_of_gradient(m, dy, places, &t->tiles[0], 1, k, lanes, even);
    tile_of_gradient(m, dy, places, &t->tiles[1], t->there, k, lanes, odd);
#pragma GCC unroll 16
    for (int p = 0; p < POINTS; p++) store_pairs(to + p * plane, even[p], odd[p]);
}

/* What the gradient of the weights is made of: x and dy, and the sizes of what they become. */
typedef struct {
    map in, out;
    const bf16 *x, *dy;
    const uint8_t *places; /* may be NULL */
    long group, left, right; /* of transformed values: from 16 channels to the next, from point to point, of dy and of x */
} factors;

/* Pairs from .. to of the chunk of tiles first .. last, transformed: [POINTS][channels / 16][pairs][16][2]. */
static void chunk_in(const factors *f, long first, long last, long from, long to, bf16 *gradient, bf16 *tiles) {
    long C = f->in.channels, K = f->out.channels;
    place at = place_of(&f->in, first + 2 * from);
    for (long i = from; i < to; i++) {
        two t = two_of(&f->in, &at, first + 2 * i + 1 < last);
        for (long k = 0; k < K; k += LANES) {
            bf16 *pairs = gradient + k / LANES * f->group + i * 2 * LANES;
            if (f->places && K - k >= LANES)
                pair_of_gradient(&f->out, f->dy, f->places, &t, k, 0xFFFF, pairs, f->left);
            else if (f->places)
                pair_of_gradient(&f->out, f->dy, f->places, &t, k, lanes_of(K, k), pairs, f->left);
            else if (K - k >= LANES)
                pair_of_gradient(&f->out, f->dy, NULL, &t, k, 0xFFFF, pairs, f->left);
            else
                pair_of_gradient(&f->out, f->dy, NULL, &t, k, lanes_of(K, k), pairs, f->left);
        }
        for (long c = 0; c < C; c += LANES) {
            bf16 *pairs = tiles + c / LANES * f->group + i * 2 * LANES;
            if (C - c >= LANES)
                pair_of_input(&f->in, f->x, &t, c, 0xFFFF, pairs, f->right);
            else
                pair_of_input(&f->in, f->x, &t, c, lanes_of(C, c), pairs, f->right);
        }
    }
}

/* Adds the product of a chunk to the sums [POINTS][K'][C'], for 16 outputs of one point, the job. */
static void chunk_out(const factors *f, long job, long pairs, const bf16 *gradient, const bf16 *tiles, float *sums) {
    long inputs = filled(f->in.channels), outputs = filled(f->out.channels), p = job / (outputs / LANES), k = job % (outputs / LANES);
    for (long i = 0; i < pairs; i += DEPTH)
        for (long c = 0; c < inputs; c += PANEL * LANES)
            outer(gradient + p * f->left + k * f->group + i * 2 * LANES, tiles + p * f->right + c / LANES * f->group + i * 2 * LANES, f->group,
                  sums + (p * outputs + k * LANES) * inputs + c, inputs, least(DEPTH, pairs - i), (int)(width_of(inputs, c / (PANEL * LANES)) / LANES));
}

/* dw [K, 3, 3, C] of x [images, height, width, C] and dy [images, height, width, K]; with `places`, of maxima of 2x2 windows that lay there,
   [images, height / 2, width / 2, K]. Returns 0, or 1 if there is no memory.

   Tiles come in parts, each with sums of its own, [POINTS][K'][C'], which are added at the end; a part goes chunk by chunk: its tiles are transformed,
   then each point's product is added to its sums. Where there are parts enough, each is one thread's, which then shares nothing; else all
   threads transform a part's chunk, and each adds the rows that are its own. */
int winograd_gradient(const bf16 *restrict x, const bf16 *restrict dy, const uint8_t *restrict places, float *restrict dw, long images, long height, long width, long C,
                      long K) {
    factors f = {map_of(images, height, width, C, places != NULL), map_of(images, height, width, K, places != NULL), x, dy, places, 0, 0, 0};
    long inputs = filled(C), outputs = filled(K), size = inputs * outputs, whole = POINTS * size, jobs = POINTS * (outputs / LANES);
    long count = (f.in.tiles + 1) / 2, parts = PARTS, threads = omp_get_max_threads(); /* count: pairs of tiles */
    while (parts > 1 && (count < parts * FEW || parts * whole * (long)sizeof(float) > ROOM)) parts /= 2;
    long half = CHUNK / (POINTS * 2 * (inputs + outputs)) / (2 * DEPTH) * DEPTH, part = (count + parts - 1) / parts;
    half = least(half < DEPTH ? DEPTH : half, part);
    f.group = half * 2 * LANES, f.left = half * 2 * outputs + 32, f.right = half * 2 * inputs + 32;
    long transformed = (POINTS * (f.left + f.right) + 31) / 32 * 32, alone = threads <= parts;
    float *sums = room(parts * whole * sizeof(float) + (alone ? threads : 1) * transformed * sizeof(bf16));
    bf16 *chunks = (bf16 *)(sums + parts * whole);
    int failed = !sums;
#pragma omp parallel if (!failed)
    if (!failed) {
        if (alone) {
            bf16 *gradient = chunks + omp_get_thread_num() * transformed, *tiles = gradient + POINTS * f.left;
#pragma omp for schedule(static)
            for (long g = 0; g < parts; g++) {
                memset(sums + g * whole, 0, whole * sizeof(float));
                for (long i = g * part; i < least(count, (g + 1) * part); i += half) {
                    long pairs = least(half, least(count, (g + 1) * part) - i);
                    chunk_in(&f, 2 * i, f.in.tiles, 0, pairs, gradient, tiles);
                    for (long job = 0; job < jobs; job++) chunk_out(&f, job, pairs, gradient, tiles, sums + g * whole);
                }
            }
        } else {
            bf16 *gradient = chunks, *tiles = gradient + POINTS * f.left;
            long me = omp_get_thread_num(), all = omp_get_num_threads();
#pragma omp for schedule(static)
            for (long p = 0; p < parts * POINTS; p++) memset(sums + p * size, 0, size * sizeof(float));
            for (long g = 0; g < parts; g++)
                for (long i = g * part; i < least(count, (g + 1) * part); i += half) {
                    long pairs = least(half, least(count, (g + 1) * part) - i);
                    chunk_in(&f, 2 * i, f.in.tiles, pairs * me / all, pairs * (me + 1) / all, gradient, tiles);
#pragma omp barrier
#pragma omp for schedule(static)
                    for (long job = 0; job < jobs; job++) chunk_out(&f, job, pairs, gradient, tiles, sums + g * whole);
                }
        }
        for (long g = 1; g < parts; g++) {
#pragma omp for schedule(static)
            for (long i = 0; i < whole; i += LANES) _mm512_storeu_ps(sums + i, add(_mm512_loadu_ps(sums + i), _mm512_loadu_ps(sums + g * whole + i)));
        }
#pragma omp for schedule(static)
        for (long k = 0; k < K; k++)
            for (long c = 0; c < C; c += LANES) {
                __mmask16 lanes = lanes_of(C, c);
                __m512 h[3][4];
                for (int s = 0; s < 4; s++) {
                    const float *from = sums + (s * outputs + k) * inputs + c;
                    __m512 q0 = _mm512_loadu_ps(from), q1 = _mm512_loadu_ps(from + 4 * size), q2 = _mm512_loadu_ps(from + 8 * size),
                           q3 = _mm512_loadu_ps(from + 12 * size), both = halved(add(q1, q2));
                    h[0][s] = add(q0, both);
                    h[1][s] = halved(sub(q1, q2));
                    h[2][s] = add(both, q3);
                }
                for (int r = 0; r < 3; r++) {
                    __m512 both = halved(add(h[r][1], h[r][2]));
                    float *to = dw + (k * 9 + 3 * r) * C + c;
                    _mm512_mask_storeu_ps(to, lanes, add(h[r][0], both));
                    _mm512_mask_storeu_ps(to + C, lanes, halved(sub(h[r][1], h[r][2])));
                    _mm512_mask_storeu_ps(to + 2 * C, lanes, add(both, h[r][3]));
                }
            }
    }
    free(sums);
    return failed;
}
