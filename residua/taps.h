/* What convolutions share that are computed as sums over their taps. The taps of a row lie side by side in memory, channels and all, so that a row of
   them is one product; rows are copied into the cache first, with their margin. */

#include "loops.h"

#define inlined static inline __attribute__((always_inline)) /* so that loops are made for each number of taps */

enum { SCRATCH = 48 << 10 }; /* bytes of rows that a thread works on at once: they are to stay in its cache */

/* ---- positions of a row ---- */

typedef struct {
    const bf16 *a, *u;      /* of the first position, and the weights */
    long step, next, pairs; /* from position to position, from row to row of taps; pairs of a row */
    int rows;
    bf16 *y;
    const bf16 *beside; /* may be NULL */
    const float *bias;  /* may be NULL */
    long apart, aside;  /* from position to position of y, of `beside` */
    __mmask16 lanes;    /* of the last vector */
    int relu;           /* whether ReLU follows */
} segment;

#define POSITIONS(R, V)                                                                                                              \
    inlined void sums_##R##_##V(const segment *s, long at, long step) {                                                              \
        const bf16 *b = s->u;                                                                                                        \
        __m512 sum[R][V];                                                                                                            \
        ZERO(R, V, sum)                                                                                                              \
        for (int row = 0; row < s->rows; row++) {                                                                                    \
            const bf16 *a = s->a + at * step + row * s->next;                                                                        \
            ACCUMULATE(R, V, sum, a, step, b, s->pairs)                                                                              \
        }                                                                                                                            \
        _Pragma("GCC unroll 16") for (int r = 0; r < R; r++)                                                                         \
            _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) {                                                                    \
                long to = (at + r) * s->apart + v * LANES;                                                                           \
                __mmask16 lanes = v == V - 1 ? s->lanes : 0xFFFF;                                                                    \
                __m512 found = sum[r][v];                                                                                            \
                if (s->bias) found = add(found, _mm512_maskz_loadu_ps(lanes, s->bias + v * LANES));                                  \
                if (s->beside) found = add(found, load_some(s->beside + (at + r) * s->aside + v * LANES, lanes));                    \
                if (s->relu) found = _mm512_max_ps(_mm512_setzero_ps(), found); /* NaN stays NaN */                                  \
                store_some(s->y + to, found, lanes);                                                                                 \
            }                                                                                                                        \
    }                                                                                                                                \
    static void positions_##R##_##V(const segment *s, long at) { /* a step that the compiler knows needs no registers */             \
        switch (s->step) {                                                                                                           \
        case 32: sums_##R##_##V(s, at, 32); break;                                                                                   \
        case 64: sums_##R##_##V(s, at, 64); break;                                                                                   \
        case 128: sums_##R##_##V(s, at, 128); break;                                                                                 \
        default: sums_##R##_##V(s, at, s->step);                                                                                     \
        }                                                                                                                            \
    }
POSITIONS(16, 1)
POSITIONS(8, 1)
POSITIONS(4, 1)
POSITIONS(1, 1)
POSITIONS(8, 2)
POSITIONS(4, 2)
POSITIONS(1, 2)
POSITIONS(8, 3)
POSITIONS(4, 3)
POSITIONS(1, 3)
POSITIONS(4, 4)
POSITIONS(1, 4)
#undef POSITIONS

/* `count` positions, in groups as large as fit; the last group may take some of the one before once more. */
static void positions(const segment *s, long count, int vectors) {
    static void (*const groups[4][4])(const segment *, long) = {
        {positions_16_1, positions_8_1, positions_4_1, positions_1_1},
        {positions_8_2, positions_8_2, positions_4_2, positions_1_2},
        {positions_8_3, positions_8_3, positions_4_3, positions_1_3},
        {positions_4_4, positions_4_4, positions_4_4, positions_1_4},
    };
    const int largest = vectors == 1 ? 16 : vectors == 4 ? 4 : 8;
    long size = count >= largest ? largest : count >= 8 ? 8 : count >= 4 ? 4 : 1;
    void (*group)(const segment *, long) = groups[vectors - 1][size == 16 ? 0 : size == 8 ? 1 : size == 4 ? 2 : 3];
    for (long at = 0; at < count; at += size) group(s, least(at, count - size));
}

/* Rows first .. first + count of an image, `line` values each: `margin` columns of zeros, the row, zeros; rows that there are not are zeros. */
static void rows_in(const bf16 *x, long height, long width, long channels, long margin, long first, long count, long line, bf16 *to) {
    long before = margin * channels, row = width * channels;
    for (long i = first; i < first + count; i++, to += line) {
        if (i < 0 || i >= height) {
            memset(to, 0, line * sizeof(bf16));
            continue;
        }
        memset(to, 0, before * sizeof(bf16));
        memcpy(to + before, x + i * row, row * sizeof(bf16));
        memset(to + before + row, 0, (line - before - row) * sizeof(bf16));
    }
}
