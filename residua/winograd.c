/* 3x3 convolutions of stride 1 and padding 1 with 2.25 times fewer multiplications: Winograd's F(2x2, 3x3).

     Y = A' [ (G w G') * (B' d B) ] A       d a 4x4 tile of the input, Y a 2x2 tile of the output, * by elements, summed over channels

   (Lavin and Gray 2016, "Fast algorithms for convolutional neural networks", section 4.1.) The gradients are the same form turned
   round: that of the input is such a convolution with flipped weights, that of the weights G' [ (A dY A') * (B' d B) ] G, summed over
   the tiles. The 16 elements of a tile are its points.

   Where a side of the map is odd, the last row (or column) of tiles has one row of outputs, for which two multiplications do, x0 w0 + x1 w1, in place of
   four: such tiles have 8 points, or 4 in the corner, and the weights a fifth row and column of them, which are w1 itself.

   Maps are [images, height, width, channels] in bfloat16, weights [outputs, 3, 3, inputs] in float; tiles and transformed weights have their
   channels filled up to sixteens, C' and K' of them. Transforms and sums are in float; what is multiplied is rounded to bfloat16 once more than in a plain convolution. Each sum is taken in an
   order that the shapes decide, so results do not depend on the number of threads. */

#include "loops.h"

#define inlined static inline __attribute__((always_inline)) /* so that loops are made for full lanes, which need no masks, and for others */

enum { POINTS = 16, EDGED = 25, ROWS = 24 }; /* points of a tile, of weights for odd sides; ROWS: tiles are multiplied in such groups */
enum { SCRATCH = 320 << 10 }; /* bytes of tiles and of products that a thread works on at once: they are to stay in its cache */
enum { TOGETHER = 96 }; /* so few tiles are transformed once for all threads, which divide the outputs between them: weights are most of what is read */
enum { PARTS = 16, FEW = 512, ROOM = 16 << 20 }; /* for the gradient: sums at most, pairs of tiles of one at least, bytes of all of them at most */
enum { CHUNK = 1 << 18, DEPTH = 64 }; /* and of a chunk half the bytes of transformed tiles, and pairs of them for one sum in registers */

/* ---- products ---- */

/* out [R, V*16] = sum over pairs of a [R, 2 pairs] b [pairs, V*16, 2] */
#define PRODUCT(name, R, V)                                                                                               \
    inlined void name(const bf16 *restrict a, long step, const bf16 *restrict b, float *restrict out, long pairs) { \
        MULTIPLY(R, V, sum, a, step, b, pairs)                                                                            \
        _Pragma("GCC unroll 24") for (int r = 0; r < R; r++)                                                              \
            _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) _mm512_storeu_ps(out + (r * V + v) * LANES, sum[r][v]);   \
    }
PRODUCT(product_1, 24, 1)
PRODUCT(product_2, 12, 2)
PRODUCT(product_3, 8, 3)
PRODUCT(product_4, 6, 4)
PRODUCT(last_4, 2, 4) /* for one or two tiles that are left over: of a map of 14 x 14 one of 49 is */
#undef PRODUCT

inlined void products_of(const bf16 *a, long step, const bf16 *b, float *out, long rows, long pairs, int vectors) {
    switch (vectors) {
    case 1: for (long r = 0; r < rows; r += 24) product_1(a + r * step, step, b, out + r * LANES, pairs); break;
    case 2: for (long r = 0; r < rows; r += 12) product_2(a + r * step, step, b, out + r * 2 * LANES, pairs); break;
    case 3: for (long r = 0; r < rows; r += 8) product_3(a + r * step, step, b, out + r * 3 * LANES, pairs); break;
    default:
        for (long r = 0; r < rows; r += 6)
            if (rows - r > 2)
                product_4(a + r * step, step, b, out + r * 4 * LANES, pairs);
            else
                last_4(a + r * step, step, b, out + r * 4 * LANES, pairs);
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

typedef struct {
    long images, height, width, channels;
} map;

/* Tiles of one kind: `high` rows and `wide` columns of them in each image from (down, across) on. `rows` and `columns` of points: 4; 2 where a tile has
   one row (column) of outputs; 1 where of its inputs the first only is not zero. */
typedef struct {
    long down, across, high, wide, tiles;
    int rows, columns;
} section;

/* How odd sides are dealt with: tiles are filled up with zeros; nothing but whole ones is asked for, since maxima of 2x2 windows follow; with two points;
   with one, since the map is the gradient of such maxima. */
enum { FILLED, WINDOWS, TWO_POINTS, ONE_POINT };

static int sections_of(long height, long width, int kind, section found[4]) {
    long down = (height + (kind == FILLED)) / 2, across = (width + (kind == FILLED)) / 2;
    int count = 0, points = kind == TWO_POINTS ? 2 : kind == ONE_POINT ? 1 : 0;
    for (int i = 0; i <= (points && height % 2); i++)
        for (int j = 0; j <= (points && width % 2); j++) {
            section s = {i ? down : 0, j ? across : 0, i ? 1 : down, j ? 1 : across, 0, i ? points : 4, j ? points : 4};
            s.tiles = s.high * s.wide;
            if (s.tiles) found[count++] = s;
        }
    return count;
}

/* Where in the weights point `index` of a section's tiles lies. */
static int point_of(const section *s, int index) {
    int row = index / s->columns, column = index % s->columns;
    row = s->rows == 4 ? row : 4 * row, column = s->columns == 4 ? column : 4 * column;
    return column < 4 ? 4 * row + column : 20 + row; /* the fifth row is at 16, the fifth column at 20 */
}

/* Calls `body` with the numbers of a section's points as constants. */
#define BY_POINTS(s, body)                            \
    switch (10 * (s)->rows + (s)->columns) {          \
    case 44: { enum { R = 4, Q = 4 }; body; } break;  \
    case 42: { enum { R = 4, Q = 2 }; body; } break;  \
    case 24: { enum { R = 2, Q = 4 }; body; } break;  \
    case 22: { enum { R = 2, Q = 2 }; body; } break;  \
    case 41: { enum { R = 4, Q = 1 }; body; } break;  \
    case 14: { enum { R = 1, Q = 4 }; body; } break;  \
    default: { enum { R = 1, Q = 1 }; body; }         \
    }

/* Where a tile lies: the image, the row and the column of tiles. Divisions take long, so one tile is found from the one before. */
typedef struct {
    long image, down, across;
} place;

inlined place place_of(const section *s, long tile) {
    long row = tile % s->tiles;
    return (place){tile / s->tiles, s->down + row / s->wide, s->across + row % s->wide};
}

inlined void advance(const section *s, place *at) {
    if (++at->across < s->across + s->wide) return;
    at->across = s->across;
    if (++at->down < s->down + s->high) return;
    at->down = s->down;
    at->image++;
}

/* Asks for a part of the memory of `tiles` tiles from `at` on, about: of [images, height, width, channels], or with `pooled` of one place a tile. */
inlined void ask_tiles(const map *m, const bf16 *x, int pooled, place at, long tiles, long part, long parts) {
    long high = pooled ? m->height / 2 : m->height, wide = pooled ? m->width / 2 : m->width, side = pooled ? 1 : 2;
    const bf16 *from = x + ((at.image * high + side * at.down) * wide + side * at.across) * m->channels;
    ask(from, tiles * side * side * m->channels * (long)sizeof(bf16), part, parts);
}

/* The four rows of the map that the tile at `tile` and its neighbours in the row read, from channel c on; NULL outside. A map that is the gradient of
   one of which the maxima of 2x2 windows were taken is given as theirs and their places (0 to 3, row by row): all else of it is zero. */
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

/* B' d of one column of pixels, of so many points; `whole`: it is known to be inside, and all four rows are. */
inlined void column(const map *m, const lines *l, int pooled, long at, int whole, int points, __mmask16 lanes, __m512 out[4]) {
    __m512 d[4];
    int inside = whole || (at >= 0 && at < (pooled ? m->width / 2 * 2 : m->width));
#pragma GCC unroll 4
    for (int i = 0; i < points; i++) { /* the first row is odd */
        long from = (pooled ? at / 2 : at) * m->channels;
        int here = whole || (inside && l->rows[i]);
        d[i] = here ? load_some(l->rows[i] + from, lanes) : _mm512_setzero_ps();
        if (pooled && here) d[i] = _mm512_maskz_mov_ps(placed(l->places[i] + from, (i & 1 ? 0 : 2) + (int)(at & 1), lanes), d[i]);
    }
    out[0] = points == 4 ? sub(d[0], d[2]) : d[0];
    if (points > 1) out[1] = points == 4 ? add(d[1], d[2]) : d[1];
    if (points == 4) out[2] = sub(d[2], d[1]), out[3] = sub(d[1], d[3]);
}

/* B' d B of a tile from its columns. */
inlined void tile_of(__m512 k[][4], int rows, int columns, __m512 v[POINTS]) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        if (columns == 4) {
            v[4 * r + 0] = sub(k[0][r], k[2][r]);
            v[4 * r + 1] = add(k[1][r], k[2][r]);
            v[4 * r + 2] = sub(k[2][r], k[1][r]);
            v[4 * r + 3] = sub(k[1][r], k[3][r]);
        } else {
            v[columns * r] = k[0][r];
            if (columns == 2) v[columns * r + 1] = k[1][r];
        }
}

/* B' d B of `run` tiles of a row from tile `left` on: 16 channels of each, `step` apart, its points `plane` apart. Neighbours share
   two columns; where there are fewer columns of points, a row has one such tile. */
inlined void run_in(const map *m, const lines *l, int pooled, int rows, int columns, long left, long run, __mmask16 lanes, bf16 *to, long step, long plane) {
    __m512 k[4][4], v[POINTS];
    column(m, l, pooled, 2 * left - 1, 0, rows, lanes, k[0]);
    if (columns > 1) column(m, l, pooled, 2 * left, 0, rows, lanes, k[1]);
    for (long i = left; i < left + run; i++, to += step) {
        if (columns == 4) {
            column(m, l, pooled, 2 * i + 1, 0, rows, lanes, k[2]);
            column(m, l, pooled, 2 * i + 2, 0, rows, lanes, k[3]);
        }
        tile_of(k, rows, columns, v);
#pragma GCC unroll 16
        for (int p = 0; p < rows * columns; p++) store(to + p * plane, v[p]);
#pragma GCC unroll 4
        for (int r = 0; r < rows && columns == 4; r++) {
            k[0][r] = k[2][r];
            k[1][r] = k[3][r];
        }
    }
}

/* B' d B of the section's tiles first .. last: its points, `plane` apart, of [last - first, C']. `places` may be NULL. */
static void tiles_in(const map *m, const section *s, const bf16 *x, const uint8_t *places, long first, long last, bf16 *out, long plane) {
    long C = m->channels, step = filled(C);
    for (long t = first; t < last;) {
        place at = place_of(s, t);
        long run = least(s->across + s->wide - at.across, last - t);
        for (long c = 0; c < C; c += LANES) {
            bf16 *to = out + (t - first) * step + c;
            __mmask16 lanes = lanes_of(C, c);
            lines l = lines_of(m, x, places, &at, c);
            if (places && lanes == 0xFFFF) {
                BY_POINTS(s, run_in(m, &l, 1, R, Q, at.across, run, 0xFFFF, to, step, plane))
            } else if (places) {
                BY_POINTS(s, run_in(m, &l, 1, R, Q, at.across, run, lanes, to, step, plane))
            } else if (lanes == 0xFFFF) {
                BY_POINTS(s, run_in(m, &l, 0, R, Q, at.across, run, 0xFFFF, to, step, plane))
            } else {
                BY_POINTS(s, run_in(m, &l, 0, R, Q, at.across, run, lanes, to, step, plane))
            }
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

/* Of a line of points the sums at the left and the right (or above and below); with fewer points than four there is one. */
inlined void sums_of_line(const __m512 *p, int step, int points, __m512 *first, __m512 *second) {
    *first = points == 4 ? add(add(p[0], p[step]), p[2 * step]) : points == 2 ? add(p[0], p[step]) : p[0];
    if (points == 4) *second = sub(sub(p[step], p[2 * step]), p[3 * step]);
}

/* The sums of one tile, 16 channels, from its points, `plane` apart: at the upper left, the upper right, the lower left, the lower right, as far as
   there are. */
inlined void sums_of(const float *from, long plane, int rows, int columns, __m512 sums[4]) {
    __m512 p[POINTS], lines[2][4];
#pragma GCC unroll 4
    for (int j = 0; j < columns; j++) {
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) p[i] = _mm512_loadu_ps(from + (columns * i + j) * plane);
        sums_of_line(p, 1, rows, &lines[0][j], &lines[1][j]);
    }
    sums_of_line(lines[0], 1, columns, &sums[0], &sums[1]);
    if (rows == 4) sums_of_line(lines[1], 1, columns, &sums[2], &sums[3]);
}

/* One tile of the output. */
inlined void tile_out(const float *from, long plane, int rows, int columns, bf16 *y, long at, long row, long K, int right, int below, long channel,
                      const epilogue *then, __mmask16 lanes) {
    __m512 v[4];
    sums_of(from, plane, rows, columns, v);
    finish(y, at, channel, v[0], then, lanes);
    if (columns == 4 && right) finish(y, at + K, channel, v[1], then, lanes);
    if (rows == 4 && below) finish(y, at + row, channel, v[2], then, lanes);
    if (rows == 4 && columns == 4 && below && right) finish(y, at + row + K, channel, v[3], then, lanes);
}

/* The maximum of one tile, and its place. They are compared as they would be stored; the first of equals counts, and what is no number is
   greater than any number. */
inlined void maximum_out(const float *from, long plane, bf16 *y, uint8_t *places, __mmask16 lanes) {
    __m512 v[4], best;
    __m512i place = _mm512_setzero_si512();
    sums_of(from, plane, 4, 4, v);
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

/* Channels k, k + 1, .. (16 * vectors of them) of the output's tiles first .. last of a section, from products [points], `plane` apart, of
   [last - first, 16 * vectors]. `then` may be NULL. */
inlined void tiles_out_of(const map *m, const section *s, int rows, int columns, const float *in, long plane, long first, long last, bf16 *y, long k,
                          int vectors, const epilogue *then) {
    long K = m->channels, next = m->width * K;
    int full = k + vectors * LANES <= K;
    place tile = place_of(s, first);
    for (long t = first; t < last; t++, advance(s, &tile)) {
        long at = ((tile.image * m->height + 2 * tile.down) * m->width + 2 * tile.across) * K + k;
        int below = 2 * tile.down + 1 < m->height, right = 2 * tile.across + 1 < m->width;
        const float *from = in + (t - first) * vectors * LANES;
        if (full && !then)
            for (int v = 0; v < vectors; v++)
                tile_out(from + v * LANES, plane, rows, columns, y, at + v * LANES, next, K, right, below, 0, NULL, 0xFFFF);
        else
            for (int v = 0; v < vectors; v++)
                tile_out(from + v * LANES, plane, rows, columns, y, at + v * LANES, next, K, right, below, k + v * LANES, then, lanes_of(K, k + v * LANES));
    }
}

static void tiles_out(const map *m, const section *s, const float *in, long plane, long first, long last, bf16 *y, long k, int vectors, const epilogue *then) {
    BY_POINTS(s, tiles_out_of(m, s, R, Q, in, plane, first, last, y, k, vectors, then))
}

/* ---- weights ---- */

static inline __m512 halved(__m512 v) { return _mm512_mul_ps(_mm512_set1_ps(0.5f), v); }

/* G w G' for 16 inputs: w [3, 3], `step` apart, turned by half a turn if `flipped`; zero for lanes that are not. With EDGED points the fifth row and
   column are those of w. */
inlined void filter(const float *w, long step, __mmask16 lanes, int flipped, int points, __m512 out[EDGED]) {
    __m512 h[5][3];
    for (int s = 0; s < 3; s++) {
        __m512 g[3];
        for (int r = 0; r < 3; r++) g[r] = _mm512_maskz_loadu_ps(lanes, w + (flipped ? 8 - 3 * r - s : 3 * r + s) * step);
        __m512 ends = add(g[0], g[2]);
        h[0][s] = g[0];
        h[1][s] = halved(add(ends, g[1]));
        h[2][s] = halved(sub(ends, g[1]));
        h[3][s] = g[2];
        h[4][s] = g[1];
    }
    for (int r = 0; r < (points == EDGED ? 5 : 4); r++) {
        __m512 ends = add(h[r][0], h[r][2]), *to = out + 4 * r; /* the fifth row is at 16 */
        to[0] = h[r][0];
        to[1] = halved(add(ends, h[r][1]));
        to[2] = halved(sub(ends, h[r][1]));
        to[3] = h[r][2];
        if (points == EDGED) out[20 + r] = h[r][1];
    }
}

/* Weights of one point, and a line of the cache, so that those of all points are not driven out of it by each other. */
static long of_point(long inputs, long outputs) { return inputs * outputs + 2 * LANES; }

/* G w G' of w [K, 3, 3, C], as `winograd_convolve` reads it: u [points][panels of outputs][inputs / 2][outputs of the panel][2],
   with C' and K' of them; EDGED points or POINTS.
   `flipped`: for the gradient of the input, whose inputs are the K and whose outputs are the C. */
void winograd_weights(const float *restrict w, bf16 *restrict u, long C, long K, int flipped, int edged) {
    long inputs = filled(flipped ? K : C), outputs = filled(flipped ? C : K), size = of_point(inputs, outputs);
    int points = edged ? EDGED : POINTS;
    if (flipped) {
#pragma omp parallel for schedule(static)
        for (long c = 0; c < C; c += LANES) {
            long panel = c / (PANEL * LANES), start = panel * PANEL * LANES, width = width_of(outputs, panel);
            __mmask16 lanes = lanes_of(C, c);
            for (long k = 0; k < inputs; k += 2) {
                __m512 even[EDGED], odd[EDGED];
                for (int tap = 0; tap < 18; tap++) __builtin_prefetch(w + ((k + 4) * 9 + tap) * C + c); /* those of more places than processors follow */
                filter(w + k * 9 * C + c, C, k < K ? lanes : 0, 1, points, even);
                filter(w + (k + 1) * 9 * C + c, C, k + 1 < K ? lanes : 0, 1, points, odd);
                bf16 *to = u + start * inputs + k * width + (c - start) * 2;
                for (int p = 0; p < points; p++) store_pairs(to + p * size, even[p], odd[p]);
            }
        }
    } else {
#pragma omp parallel for schedule(static)
        for (long k = 0; k < K; k += LANES) {
            long panel = k / (PANEL * LANES), start = panel * PANEL * LANES, width = width_of(outputs, panel);
            for (long c = 0; c < C; c += LANES) {
                bf16 square[EDGED][LANES][LANES]; /* [outputs][inputs], to be turned */
                for (long l = 0; l < LANES; l++) {
                    __m512 found[EDGED];
                    for (int tap = 0; tap < 9; tap++) __builtin_prefetch(w + ((k + l) * 9 + tap) * C + c + LANES);
                    filter(w + (k + l) * 9 * C + c, C, k + l < K ? lanes_of(C, c) : 0, 0, points, found);
                    for (int p = 0; p < points; p++) store(square[p][l], found[p]);
                }
                for (int p = 0; p < points; p++)
                    turn(square[p], LANES / 2, u + p * size + start * inputs + c * width + (k - start) * 2, width, LANES / 2);
            }
        }
    }
}

/* A convolution of one section. */
typedef struct {
    const map *in, *out;
    const section *s;
    const bf16 *x;
    const uint8_t *from;
    const bf16 *u;
    bf16 *y;
    uint8_t *to;
    const bf16 *tiles;
    float *sums;
    long left, right; /* from point to point of `tiles` and of `sums` */
    const epilogue *then;
    long inputs, outputs; /* filled */
} job;

/* A panel of outputs from k on, of the tiles first .. last, which are transformed. `asking`: for what is read and written next. */
static void outputs_of(const job *j, long first, long last, long k, int asking) {
    int vectors = (int)(width_of(j->outputs, k / (PANEL * LANES)) / LANES), parts = j->s->rows * j->s->columns;
    for (int p = 0; p < parts; p++) {
        if (asking) {
            place here = place_of(j->s, first), next = place_of(j->s, last);
            ask_tiles(j->in, j->x, !!j->from, next, last - first, p, parts);
            ask_tiles(j->out, j->y, !!j->to, here, last - first, p, parts);
            if (j->then && j->then->beside) ask_tiles(j->out, j->then->beside, 0, here, last - first, p, parts);
        }
        const bf16 *weights = j->u + point_of(j->s, p) * of_point(j->inputs, j->outputs) + k * j->inputs;
        products(j->tiles + p * j->left, j->inputs, weights, j->sums + p * j->right, last - first, (j->in->channels + 1) / 2, vectors); /* there are zeros beyond */
    }
    if (j->to)
        maxima_out(j->out, j->sums, j->right, first, last, j->y, j->to, k, vectors);
    else
        tiles_out(j->out, j->s, j->sums, j->right, first, last, j->y, k, vectors, j->then);
}

static long groups_of(long rows, long columns) { /* as `products_of` takes rows together */
    long vectors = columns / LANES, group = vectors == 1 ? 24 : vectors == 2 ? 12 : vectors == 3 ? 8 : 6;
    return (rows + group - 1) / group;
}

/* Blocks of at most `most` tiles, as many for each thread: so many that the fewest rows are multiplied beyond the last tile. */
static long blocks_of(long tiles, long most, long threads, long columns) {
    long least = (tiles + most * threads - 1) / (most * threads), best = least, rows = tiles;
    for (long n = least; n <= least + 4; n++) {
        long found = n * groups_of((tiles + n * threads - 1) / (n * threads), columns);
        if (n == least || found < rows) best = n, rows = found;
    }
    return best * threads;
}

/* y [images, height, width, K] of x [images, height, width, C] and u as `winograd_weights` gives it, `edged` or not, then bias [K], beside (as y) and
   ReLU where they are given. With `from`, x is [images, height / 2, width / 2, C]: maxima of 2x2 windows that lay at the places `from`, and all
   else is zero. With `to` the maxima of 2x2 windows are taken: y and `to`, their places, are [images, height / 2, width / 2, K]. Returns 0, or 1
   if there is no memory. */
int winograd_convolve(const bf16 *restrict x, const uint8_t *restrict from, const bf16 *restrict u, bf16 *y, uint8_t *restrict to,
                      const float *bias, const bf16 *beside, int relu, long images, long height, long width, long C, long K, int edged) {
    map in = {images, height, width, C}, out = {images, height, width, K};
    epilogue then = {bias, beside, relu};
    section sections[4];
    int count = sections_of(height, width, to ? WINDOWS : from ? ONE_POINT : edged ? TWO_POINTS : FILLED, sections);
    long inputs = filled(C), outputs = filled(K), widest = width_of(outputs, 0), threads = omp_get_max_threads();
    long blocks[4], sizes[4], most_left = 0, most_right = 0;
    int together = 1;
    for (int i = 0; i < count; i++) together &= images * sections[i].tiles <= TOGETHER;
    together &= (outputs + PANEL * LANES - 1) / (PANEL * LANES) >= threads && threads > 1;
    for (int i = 0; i < count; i++) {
        const section *s = &sections[i];
        long points = s->rows * s->columns, tiles = images * s->tiles, block = SCRATCH / (points * (2 * inputs + 4 * widest) * ROWS) * ROWS;
        blocks[i] = blocks_of(tiles, block < ROWS ? ROWS : block, threads, widest);
        sizes[i] = together ? tiles : (tiles + blocks[i] - 1) / blocks[i];
        long rows = (sizes[i] + ROWS - 1) / ROWS * ROWS;
        if (points * (rows * inputs + 32) > most_left) most_left = points * (rows * inputs + 32);
        if (points * (rows * widest + 16) > most_right) most_right = points * (rows * widest + 16);
    }
    long bytes = (most_left * sizeof(bf16) + 63) / 64 * 64;
    bf16 *shared = together ? aligned_alloc(64, bytes) : NULL;
    if (together && !shared) return 1;
    if (together) memset(shared, 0, bytes);
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        bf16 *tiles = together ? shared : aligned_alloc(64, bytes);
        float *sums = aligned_alloc(64, (most_right * sizeof(float) + 63) / 64 * 64);
        failed |= !tiles || !sums;
        if (!failed && !together) memset(tiles, 0, bytes); /* rows after the last tile are multiplied, too */
        for (int i = 0; i < count; i++) {
            const section *s = &sections[i];
            long rows = (sizes[i] + ROWS - 1) / ROWS * ROWS, all = images * s->tiles;
            long left = rows * inputs + 32, right = rows * widest + 16; /* points a little apart: they are not to fall on the same lines of the cache */
            job work = {&in, &out, s, x, from, u, y, to, tiles, sums, left, right, bias || beside || relu ? &then : NULL, inputs, outputs};
            if (together) {
#pragma omp for schedule(static)
                for (long part = 0; part < threads; part++)
                    tiles_in(&in, s, x, from, all * part / threads, all * (part + 1) / threads, tiles + all * part / threads * inputs, left);
#pragma omp for schedule(static)
                for (long k = 0; k < K; k += PANEL * LANES)
                    if (!failed) outputs_of(&work, 0, all, k, 0);
                continue;
            }
#pragma omp for schedule(static) nowait
            for (long b = 0; b < blocks[i]; b++) {
                long first = b * sizes[i], last = least(first + sizes[i], all);
                if (failed || first >= last) continue;
                tiles_in(&in, s, x, from, first, last, tiles, left);
                for (long k = 0; k < K; k += PANEL * LANES) outputs_of(&work, first, last, k, k == 0);
            }
        }
        if (!together) free(tiles);
        free(sums);
    }
    free(shared);
    return failed;
}

/* ---- the gradient of the weights ---- */

/* A dY A' of one tile, 16 channels from k on; zero for no tile. With `places` dy is that of maxima which lay there. */
inlined void tile_of_gradient(const map *m, const bf16 *dy, const uint8_t *places, const place *tile, int there, int rows, int columns, long k,
                              __mmask16 lanes, __m512 v[POINTS]) {
    const __m512 zero = _mm512_setzero_ps();
    if (!there) {
#pragma GCC unroll 16
        for (int p = 0; p < rows * columns; p++) v[p] = zero;
        return;
    }
    long K = m->channels;
    __m512 d[2][2], h[4][2];
    if (places) {
        long at = ((tile->image * (m->height / 2) + tile->down) * (m->width / 2) + tile->across) * K + k;
        __m512 all = load_some(dy + at, lanes);
        d[0][0] = _mm512_maskz_mov_ps(placed(places + at, 0, lanes), all), d[0][1] = _mm512_maskz_mov_ps(placed(places + at, 1, lanes), all);
        d[1][0] = _mm512_maskz_mov_ps(placed(places + at, 2, lanes), all), d[1][1] = _mm512_maskz_mov_ps(placed(places + at, 3, lanes), all);
    } else {
        const bf16 *at = dy + ((tile->image * m->height + 2 * tile->down) * m->width + 2 * tile->across) * K + k;
        int below = rows == 4 && 2 * tile->down + 1 < m->height, right = columns == 4 && 2 * tile->across + 1 < m->width;
        d[0][0] = load_some(at, lanes), d[0][1] = right ? load_some(at + K, lanes) : zero;
        d[1][0] = below ? load_some(at + m->width * K, lanes) : zero, d[1][1] = below && right ? load_some(at + (m->width + 1) * K, lanes) : zero;
    }
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
        h[0][j] = d[0][j];
        h[1][j] = rows == 4 ? add(d[0][j], d[1][j]) : d[0][j];
        h[2][j] = sub(d[0][j], d[1][j]);
        h[3][j] = sub(zero, d[1][j]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        __m512 *to = v + columns * r;
        to[0] = h[r][0];
        to[1] = columns == 4 ? add(h[r][0], h[r][1]) : h[r][0];
        if (columns == 4) to[2] = sub(h[r][0], h[r][1]), to[3] = sub(zero, h[r][1]);
    }
}

/* Two tiles, one after the other; the second may be beyond the last. */
typedef struct {
    place tiles[2];
    int there;  /* whether there is a second one */
    int beside; /* whether it is in the same row: then it shares two columns with the first */
    int whole;  /* whether all that they read lies within the map */
} two;

inlined two two_of(const map *m, const section *s, place *at, int there) {
    two t = {{*at, *at}, there, 0, 0};
    advance(s, at);
    t.tiles[1] = *at;
    advance(s, at);
    const place *first = &t.tiles[0];
    t.beside = there && s->columns == 4 && first->across + 1 < s->across + s->wide;
    t.whole = t.beside && first->down && first->across && 2 * first->down + 2 < m->height && 2 * first->across + 4 < m->width;
    return t;
}

/* Both transforms of two tiles, 16 channels from c on: pairs, points `plane` apart. */
inlined void pair_of_input(const map *m, const bf16 *x, const two *t, int rows, int columns, long c, __mmask16 lanes, bf16 *to, long plane) {
    __m512 even[POINTS], odd[POINTS], k[6][4];
    lines l = lines_of(m, x, NULL, &t->tiles[0], c);
    long left = 2 * t->tiles[0].across - 1;
    if (columns == 4 && t->whole) {
#pragma GCC unroll 6
        for (int j = 0; j < 6; j++) column(m, &l, 0, left + j, 1, rows, lanes, k[j]);
    } else {
#pragma GCC unroll 6
        for (int j = 0; j < 6; j++)
            if (j < 2 || columns == 4) column(m, &l, 0, left + j, 0, rows, lanes, k[j]);
    }
    tile_of(k, rows, columns, even);
    if (columns == 4 && t->beside)
        tile_of(k + 2, rows, columns, odd);
    else if (t->there) {
        l = lines_of(m, x, NULL, &t->tiles[1], c);
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) column(m, &l, 0, 2 * t->tiles[1].across - 1 + j, 0, rows, lanes, k[j]);
        tile_of(k, rows, columns, odd);
    } else
#pragma GCC unroll 16
        for (int p = 0; p < rows * columns; p++) odd[p] = _mm512_setzero_ps();
#pragma GCC unroll 16
    for (int p = 0; p < rows * columns; p++) store_pairs(to + p * plane, even[p], odd[p]);
}

inlined void pair_of_gradient(const map *m, const bf16 *dy, const uint8_t *places, const two *t, int rows, int columns, long k, __mmask16 lanes, bf16 *to,
                              long plane) {
    __m512 even[POINTS], odd[POINTS];
    tile_of_gradient(m, dy, places, &t->tiles[0], 1, rows, columns, k, lanes, even);
    tile_of_gradient(m, dy, places, &t->tiles[1], t->there, rows, columns, k, lanes, odd);
#pragma GCC unroll 16
    for (int p = 0; p < rows * columns; p++) store_pairs(to + p * plane, even[p], odd[p]);
}

/* What the gradient of the weights is made of: x and dy, and the sizes of what they become. */
typedef struct {
    map in, out;
    const bf16 *x, *dy;
    const uint8_t *places;   /* may be NULL */
    long group, left, right; /* of transformed values: from 16 channels to the next, from point to point, of dy and of x */
} factors;

/* Pairs from .. to of a section's tiles first .. last, transformed: [points][channels / 16][pairs][16][2]. */
inlined void chunk_in_of(const factors *f, const section *s, int rows, int columns, long first, long last, long from, long to, bf16 *gradient, bf16 *tiles) {
    long C = f->in.channels, K = f->out.channels;
    place at = place_of(s, first + 2 * from);
    for (long i = from; i < to; i++) {
        two t = two_of(&f->in, s, &at, first + 2 * i + 1 < last);
        for (long k = 0; k < K; k += LANES) {
            bf16 *pairs = gradient + k / LANES * f->group + i * 2 * LANES;
            if (f->places && K - k >= LANES)
                pair_of_gradient(&f->out, f->dy, f->places, &t, rows, columns, k, 0xFFFF, pairs, f->left);
            else if (f->places)
                pair_of_gradient(&f->out, f->dy, f->places, &t, rows, columns, k, lanes_of(K, k), pairs, f->left);
            else if (K - k >= LANES)
                pair_of_gradient(&f->out, f->dy, NULL, &t, rows, columns, k, 0xFFFF, pairs, f->left);
            else
                pair_of_gradient(&f->out, f->dy, NULL, &t, rows, columns, k, lanes_of(K, k), pairs, f->left);
        }
        for (long c = 0; c < C; c += LANES) {
            bf16 *pairs = tiles + c / LANES * f->group + i * 2 * LANES;
            if (C - c >= LANES)
                pair_of_input(&f->in, f->x, &t, rows, columns, c, 0xFFFF, pairs, f->right);
            else
                pair_of_input(&f->in, f->x, &t, rows, columns, c, lanes_of(C, c), pairs, f->right);
        }
    }
}

static void chunk_in(const factors *f, const section *s, long first, long last, long from, long to, bf16 *gradient, bf16 *tiles) {
    switch (10 * s->rows + s->columns) {
    case 44: chunk_in_of(f, s, 4, 4, first, last, from, to, gradient, tiles); break;
    case 42: chunk_in_of(f, s, 4, 2, first, last, from, to, gradient, tiles); break;
    case 24: chunk_in_of(f, s, 2, 4, first, last, from, to, gradient, tiles); break;
    default: chunk_in_of(f, s, 2, 2, first, last, from, to, gradient, tiles);
    }
}

/* Adds the product of a chunk to the sums [points][K'][C'], for 16 outputs of one point, the job. */
static void chunk_out(const factors *f, const section *s, long job, long pairs, const bf16 *gradient, const bf16 *tiles, float *sums) {
    long inputs = filled(f->in.channels), outputs = filled(f->out.channels), p = job / (outputs / LANES), k = job % (outputs / LANES);
    float *to = sums + (point_of(s, (int)p) * outputs + k * LANES) * inputs;
    for (long i = 0; i < pairs; i += DEPTH)
        for (long c = 0; c < inputs; c += PANEL * LANES)
            outer(gradient + p * f->left + k * f->group + i * 2 * LANES, tiles + p * f->right + c / LANES * f->group + i * 2 * LANES, f->group, to + c,
                  inputs, least(DEPTH, pairs - i), (int)(width_of(inputs, c / (PANEL * LANES)) / LANES));
}

/* dw [K, 3, 3, C] of x [images, height, width, C] and dy [images, height, width, K]; with `places`, of maxima of 2x2 windows that lay there,
   [images, height / 2, width / 2, K]. Returns 0, or 1 if there is no memory.

   Images come in parts, each with sums of its own, [points][K'][C'], which are added at the end; a part goes chunk by chunk: its tiles are
   transformed, then each point's product is added to its sums. Where there are parts enough, each is one thread's, which then shares nothing; else all
   threads transform a part's chunk, and each adds the rows that are its own. */
int winograd_gradient(const bf16 *restrict x, const bf16 *restrict dy, const uint8_t *restrict places, float *restrict dw, long images, long height, long width, long C,
                      long K) {
    factors f = {{images, height, width, C}, {images, height, width, K}, x, dy, places, 0, 0, 0};
    section sections[4];
    int count = sections_of(height, width, places ? WINDOWS : TWO_POINTS, sections), edged = !places && (height % 2 || width % 2);
    long inputs = filled(C), outputs = filled(K), size = inputs * outputs, points = edged ? EDGED : POINTS, whole = points * size;
    long all = 0, most = 0, threads = omp_get_max_threads(), parts = least(PARTS, images);
    for (int i = 0; i < count; i++) {
        all += images * sections[i].tiles / 2; /* pairs */
        if (sections[i].tiles > most) most = sections[i].tiles;
    }
    while (parts > 1 && (all < parts * FEW || parts * whole * (long)sizeof(float) > ROOM)) parts /= 2;
    long half = CHUNK / (POINTS * 2 * (inputs + outputs)) / (2 * DEPTH) * DEPTH;
    half = least(half < DEPTH ? DEPTH : half, ((images + parts - 1) / parts * most + 1) / 2);
    f.group = half * 2 * LANES, f.left = half * 2 * outputs + 32, f.right = half * 2 * inputs + 32;
    long transformed = (POINTS * (f.left + f.right) + 31) / 32 * 32, alone = threads <= parts;
    float *sums = room(parts * whole * sizeof(float) + (alone ? threads : 1) * transformed * sizeof(bf16));
    bf16 *chunks = (bf16 *)(sums + parts * whole);
    int failed = !sums;
#pragma omp parallel if (!failed)
    if (!failed) {
        long me = alone ? 0 : omp_get_thread_num(), together = alone ? 1 : omp_get_num_threads();
        bf16 *gradient = chunks + (alone ? omp_get_thread_num() * transformed : 0), *tiles = gradient + POINTS * f.left;
        if (alone) {
#pragma omp for schedule(static)
            for (long g = 0; g < parts; g++) {
                memset(sums + g * whole, 0, whole * sizeof(float));
                for (int n = 0; n < count; n++) {
                    const section *s = &sections[n];
                    long start = images * g / parts * s->tiles, last = images * (g + 1) / parts * s->tiles;
                    for (long first = start; first < last; first += 2 * half) {
                        long pairs = least(half, (last - first + 1) / 2);
                        chunk_in(&f, s, first, last, 0, pairs, gradient, tiles);
                        place next = place_of(s, first + 2 * pairs);
                        int jobs = (int)(s->rows * s->columns * (outputs / LANES));
                        for (int job = 0; job < jobs; job++) {
                            ask_tiles(&f.in, x, 0, next, 2 * pairs, job, jobs);
                            ask_tiles(&f.out, dy, !!places, next, 2 * pairs, job, jobs);
                            chunk_out(&f, s, job, pairs, gradient, tiles, sums + g * whole);
                        }
                    }
                }
            }
        } else {
#pragma omp for schedule(static)
            for (long p = 0; p < parts * points; p++) memset(sums + p * size, 0, size * sizeof(float));
            for (long g = 0; g < parts; g++)
                for (int n = 0; n < count; n++) {
                    const section *s = &sections[n];
                    long start = images * g / parts * s->tiles, last = images * (g + 1) / parts * s->tiles;
                    for (long first = start; first < last; first += 2 * half) {
                        long pairs = least(half, (last - first + 1) / 2);
                        chunk_in(&f, s, first, last, pairs * me / together, pairs * (me + 1) / together, gradient, tiles);
#pragma omp barrier
#pragma omp for schedule(static)
                        for (long job = 0; job < s->rows * s->columns * (outputs / LANES); job++)
                            chunk_out(&f, s, job, pairs, gradient, tiles, sums + g * whole);
                    }
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
                __m512 h[3][5], zero = _mm512_setzero_ps();
                for (int s = 0; s < 5; s++) { /* columns of points; the fifth is at 20, the fifth row at 16 */
                    const float *from = sums + ((s < 4 ? s : 20) * outputs + k) * inputs + c;
                    long next = (s < 4 ? 4 : 1) * size;
                    int there = s < 4 || edged;
                    __m512 q0 = there ? _mm512_loadu_ps(from) : zero, q1 = there ? _mm512_loadu_ps(from + next) : zero,
                           q2 = there ? _mm512_loadu_ps(from + 2 * next) : zero, q3 = there ? _mm512_loadu_ps(from + 3 * next) : zero,
                           q4 = edged ? _mm512_loadu_ps(from + 4 * next) : zero, both = halved(add(q1, q2));
                    h[0][s] = add(q0, both);
                    h[1][s] = add(halved(sub(q1, q2)), q4);
                    h[2][s] = add(both, q3);
                }
                for (int r = 0; r < 3; r++) {
                    __m512 both = halved(add(h[r][1], h[r][2]));
                    float *to = dw + (k * 9 + 3 * r) * C + c;
                    _mm512_mask_storeu_ps(to, lanes, add(h[r][0], both));
                    _mm512_mask_storeu_ps(to + C, lanes, add(halved(sub(h[r][1], h[r][2])), h[r][4]));
                    _mm512_mask_storeu_ps(to + 2 * C, lanes, add(both, h[r][3]));
                }
            }
    }
    free(sums);
    return failed;
}
