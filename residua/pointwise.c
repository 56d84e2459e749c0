/* 1x1 convolutions, and what stands before them: y = a W', a = x or relu(norm(x)), for a map as a matrix [rows, channels].

     forward     y = a W' (+ bias, + beside, ReLU)                 a is made block by block in the cache and kept nowhere
     backward    da = dy W, dz = da where the ReLU was open;
                 sums of dz and of dz (x - mean)                   first pass: nothing is written
                 dx = scale dz + slope x + offset (+ past)         second pass: da is made again, for that costs less than keeping it
                 dW = dy' a                                        a is made again from x

   Maps are [images, height, width, channels] in bfloat16: rows = images * height * width; weights [outputs, inputs] in float, rounded to
   bfloat16 for the products; sums are in float. Channels come in eights. Each sum is taken in an order that the shapes decide, so results do
   not depend on the number of threads. */

#include "loops.h"

#define inlined static inline __attribute__((always_inline)) /* so that loops are made for each of what follows a product */

enum { ROWS = 24 };           /* rows come in such groups */
enum { SCRATCH = 128 << 10, WHOLE = 512 << 10 }; /* bytes of rows that a thread works on at once, and at the most: they are to stay in its cache */
enum { SIDE = 256, DEPTH = 64 };     /* for dW: outputs and inputs of a job, pairs of rows for one sum in registers */
enum { JOBS = 16, LEAST = 4 * DEPTH }; /* jobs where there are rows for them, and pairs of rows of one */

/* What becomes of a product's sums. */
enum { WRITTEN, SUMMED, NORMALIZED };

typedef struct {
    long rows, channels;
    bf16 *y;
    const float *bias;  /* may be NULL, as may `beside` */
    const bf16 *beside;
    long step;          /* from row to row of `beside` */
    int relu;
    const bf16 *x;      /* of the normalisation */
    const float *scale, *shift, *mean, *slope, *offset;
    float *first, *second;
    const char *ahead, *end; /* what is read next, to be brought near in portions of `portion` bytes */
    long portion;
} following;

/* With each product, so that memory is waited for less; where only its result goes through memory, for else there is enough to read. */
inlined void bring(following *f, int kind) {
    if (kind != WRITTEN) return;
    const char *until = f->ahead + f->portion < f->end ? f->ahead + f->portion : f->end;
    for (; f->ahead < until; f->ahead += 64) _mm_prefetch(f->ahead, _MM_HINT_T1);
}

/* Where not below zero; NaN stays. */
inlined __m512 open_only(__m512 v) { return _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ), _mm512_setzero_ps()); }

/* R rows' sums of 16 channels, `apart` vectors apart, of which `count` are rows of the map. */
inlined void finish_rows(const following *f, int kind, const __m512 *sums, int apart, int R, long count, long row, long k) {
    __mmask16 lanes = lanes_of(f->channels, k);
    long at = row * f->channels + k, next = f->channels, side = row * f->step + k;
    const __m512 zero = _mm512_setzero_ps();
    if (kind == WRITTEN) {
        __m512 bias = f->bias ? _mm512_maskz_loadu_ps(lanes, f->bias + k) : zero;
#pragma GCC unroll 24
        for (int r = 0; r < R; r++, at += next, side += f->step) {
            if (r >= count) continue;
            __m512 v = add(sums[r * apart], bias);
            if (f->beside) v = add(v, load_some(f->beside + side, lanes));
            if (f->relu) v = open_only(v);
            store_some(f->y + at, v, lanes);
        }
        return;
    }
    __m512 scale = _mm512_loadu_ps(f->scale + k), shift = _mm512_loadu_ps(f->shift + k);
    if (kind == SUMMED) {
        __m512 mean = _mm512_loadu_ps(f->mean + k), first = _mm512_loadu_ps(f->first + k), second = _mm512_loadu_ps(f->second + k);
#pragma GCC unroll 24
        for (int r = 0; r < R; r++, at += next, side += f->step) {
            if (r >= count) continue;
            __m512 x = load_some(f->x + at, lanes);
            __mmask16 open = _mm512_cmp_ps_mask(_mm512_fmadd_ps(x, scale, shift), zero, _CMP_NLE_UQ);
            __m512 dz = _mm512_maskz_mov_ps(open, sums[r * apart]);
            first = add(first, dz);
            second = _mm512_fmadd_ps(dz, sub(x, mean), second);
        }
        _mm512_storeu_ps(f->first + k, first);
        _mm512_storeu_ps(f->second + k, second);
        return;
    }
    __m512 slope = _mm512_loadu_ps(f->slope + k), offset = _mm512_loadu_ps(f->offset + k);
#pragma GCC unroll 24
    for (int r = 0; r < R; r++, at += next, side += f->step) {
        if (r >= count) continue;
        __m512 x = load_some(f->x + at, lanes);
        __mmask16 open = _mm512_cmp_ps_mask(_mm512_fmadd_ps(x, scale, shift), zero, _CMP_NLE_UQ);
        __m512 v = _mm512_fmadd_ps(x, slope, offset);
        v = _mm512_mask3_fmadd_ps(sums[r * apart], scale, v, open);
        if (f->beside) v = add(v, load_some(f->beside + side, lanes));
        store_some(f->y + at, v, lanes);
    }
}

/* R rows of a [., 2 pairs], `step` apart, times b [pairs, 16 V, 2], and what follows; only `count` rows there are. */
#define PRODUCT(name, R, V)                                                                                                                 \
    inlined void name(const bf16 *restrict a, long step, const bf16 *restrict b, long pairs, following *f, int kind, long row, \
                             long count, long k) {                                                                                          \
        MULTIPLY(R, V, sum, a, step, b, pairs)                                                                                              \
        _Pragma("GCC unroll 4") for (int v = 0; v < V; v++)                                                                                 \
            if (count >= R)                                                                                                                 \
                finish_rows(f, kind, &sum[0][v], V, R, R, row, k + v * LANES);                                                              \
            else                                                                                                                            \
                finish_rows(f, kind, &sum[0][v], V, R, count, row, k + v * LANES);                                                          \
    }
PRODUCT(product_1, 24, 1)
PRODUCT(product_2, 12, 2)
PRODUCT(product_3, 8, 3)
PRODUCT(product_4, 6, 4)
PRODUCT(last_4, 2, 4) /* for one or two rows that are left over, which are many of the few of one small map */
#undef PRODUCT

/* The narrowest, which read most rows at once: a step that the compiler knows needs no registers for their places. */
inlined void narrow(const bf16 *a, long step, const bf16 *b, long pairs, following *f, int kind, long row, long count, long k) {
    switch (step) {
    case 32: for (long r = 0; r < count; r += 24, bring(f, kind)) product_1(a + r * 32, 32, b, pairs, f, kind, row + r, count - r, k); break;
    case 64: for (long r = 0; r < count; r += 24, bring(f, kind)) product_1(a + r * 64, 64, b, pairs, f, kind, row + r, count - r, k); break;
    default: for (long r = 0; r < count; r += 24, bring(f, kind)) product_1(a + r * step, step, b, pairs, f, kind, row + r, count - r, k);
    }
}

/* Rows row .. row + count of what follows, 16 * vectors channels from k on; a has ROWS-fold rows. */
inlined void products_of(const bf16 *a, long step, const bf16 *b, long pairs, following *f, int kind, long row, long count, long k,
                         int vectors) {
    switch (vectors) {
    case 1: narrow(a, step, b, pairs, f, kind, row, count, k); break;
    case 2: for (long r = 0; r < count; r += 12, bring(f, kind)) product_2(a + r * step, step, b, pairs, f, kind, row + r, count - r, k); break;
    case 3: for (long r = 0; r < count; r += 8, bring(f, kind)) product_3(a + r * step, step, b, pairs, f, kind, row + r, count - r, k); break;
    default:
        for (long r = 0; r < count; r += 6, bring(f, kind))
            if (count - r > 2)
                product_4(a + r * step, step, b, pairs, f, kind, row + r, count - r, k);
            else
                last_4(a + r * step, step, b, pairs, f, kind, row + r, count - r, k);
    }
}

static void products(const bf16 *a, long step, const bf16 *b, long pairs, following *f, int kind, long row, long count, long k, int vectors) {
    switch (kind) {
    case WRITTEN: products_of(a, step, b, pairs, f, WRITTEN, row, count, k, vectors); break;
    case SUMMED: products_of(a, step, b, pairs, f, SUMMED, row, count, k, vectors); break;
    default: products_of(a, step, b, pairs, f, NORMALIZED, row, count, k, vectors);
    }
}

/* relu(scale x + shift), 16 channels from c on. */
inlined __m512 activated(const bf16 *x, const float *scale, const float *shift, long c, __mmask16 lanes) {
    return open_only(_mm512_fmadd_ps(load_some(x, lanes), _mm512_loadu_ps(scale + c), _mm512_loadu_ps(shift + c)));
}

/* The rows of a block from the one number `first` on, as products read them, filled up to ROWS-fold, in `aside`. */
static void rows_of(const bf16 *x, const float *scale, const float *shift, long first, long count, long C, bf16 *aside) {
    const bf16 *from = x + first * C;
    if (!scale) memcpy(aside, from, count * C * sizeof(bf16));
    for (long r = 0; scale && r < count; r++)
        for (long c = 0; c < C; c += LANES) {
            __mmask16 lanes = lanes_of(C, c);
            store_some(aside + r * C + c, activated(from + r * C + c, scale, shift, c, lanes), lanes);
        }
    memset(aside + count * C, 0, (ROWS - count % ROWS) % ROWS * C * sizeof(bf16));
}

static long up_to(long a, long step) { return (a + step - 1) / step * step; }

static long block_of(long rows, long C, long K) {
    long block = SCRATCH / (2 * (C + K)) / ROWS * ROWS;
    block = block < ROWS ? ROWS : block;
    return block < rows ? block : up_to(rows, ROWS);
}

/* Jobs of threads: blocks of rows, and where rows are few parts of the outputs, `share` of them each. */
typedef struct {
    long block, blocks, share, parts;
} division;

/* So that the thread which has most to do has little: rows go in groups, as many as products read at once, outputs in panels. */
static division divided(long rows, long C, long K) {
    long threads = omp_get_max_threads(), outputs = filled(K), group = ROWS / (width_of(outputs, 0) / LANES), panels = (outputs + PANEL * LANES - 1) / (PANEL * LANES);
    long usual = (rows + block_of(rows, C, K) * threads - 1) / (block_of(rows, C, K) * threads), turns = usual, block = 0; /* of each thread */
    for (long t = (usual + 1) / 2; t <= 2 * usual; t++) {
        long size = up_to((rows + t * threads - 1) / (t * threads), group);
        if (!block || t * size < turns * block) turns = t, block = size;
    }
    long of_thread = (panels + threads - 1) / threads;
    if (rows * C * (long)sizeof(bf16) <= WHOLE && up_to(rows, group) * of_thread < turns * block * panels)
        return (division){up_to(rows, group), 1, of_thread * PANEL * LANES, (panels + of_thread - 1) / of_thread};
    return (division){block, (rows + block - 1) / block, panels * PANEL * LANES, 1};
}

/* All rows of a W' and what follows. In each block's turn `sums`, unless it is NULL, receives its two sums, [blocks][2][K']. */
static int convolve(const bf16 *x, const float *scale, const float *shift, const bf16 *w, following *f, int kind, long C, division d, float *sums) {
    long rows = f->rows, outputs = filled(f->channels), panels = (outputs + PANEL * LANES - 1) / (PANEL * LANES), group = ROWS / (width_of(outputs, 0) / LANES);
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        bf16 *aside = aligned_alloc(64, up_to(up_to(d.block, ROWS) * C * sizeof(bf16), 64));
        failed |= !aside;
#pragma omp for schedule(static)
        for (long job = 0; job < d.blocks * d.parts; job++) {
            if (failed) continue;
            long b = job / d.parts, row = b * d.block, count = least(rows - row, d.block), first = job % d.parts * d.share;
            following here = *f;
            if (sums) {
                here.first = sums + b * 2 * outputs, here.second = here.first + outputs;
                memset(here.first, 0, 2 * outputs * sizeof(float));
            }
            /* What is as it is to be, and brought near, is read where it lies, but for rows that fill no product. */
            long there = scale || kind != WRITTEN ? 0 : count / ROWS * ROWS;
            long calls = (count + group - 1) / group * panels;
            here.ahead = (const char *)(x + (row + count) * C), here.end = (const char *)(x + least(row + count + d.block, rows) * C);
            here.portion = d.parts > 1 || C < 64 ? 0 : (d.block * C * (long)sizeof(bf16) / calls + 63) / 64 * 64;
            rows_of(x, scale, shift, row + there, count - there, C, aside);
            for (long k = first; k < least(first + d.share, f->channels); k += PANEL * LANES) {
                int vectors = (int)(width_of(outputs, k / (PANEL * LANES)) / LANES);
                if (there) products(x + row * C, C, w + k * C, C / 2, &here, kind, row, there, k, vectors);
                if (there < count) products(aside, C, w + k * C, C / 2, &here, kind, row + there, count - there, k, vectors);
            }
        }
        free(aside);
    }
    return failed;
}

/* w [K, C] as products read it: [panels of outputs][inputs / 2][outputs of the panel][2], the last panel filled up to sixteens.
   `turned`: for da = dy W, whose inputs are the K and whose outputs are the C. */
void pointwise_weights(const float *restrict w, bf16 *restrict u, long C, long K, int turned) {
    long inputs = turned ? K : C, outputs = filled(turned ? C : K);
#pragma omp parallel for schedule(static)
    for (long k = 0; k < outputs; k += LANES) {
        long panel = k / (PANEL * LANES), start = panel * PANEL * LANES, width = width_of(outputs, panel);
        bf16 *to = u + start * inputs + (k - start) * 2;
        if (turned) {
            __mmask16 lanes = lanes_of(C, k);
            for (long i = 0; i < inputs; i += 2) {
                __builtin_prefetch(w + (i + 16) * C + k), __builtin_prefetch(w + (i + 17) * C + k);
                store_pairs(to + i * width, _mm512_maskz_loadu_ps(lanes, w + i * C + k), _mm512_maskz_loadu_ps(lanes, w + (i + 1) * C + k));
            }
        } else
            for (long c = 0; c < C; c += LANES) {
                bf16 square[LANES][LANES]; /* [outputs][inputs], to be turned */
                for (long l = 0; l < LANES; l++) {
                    __builtin_prefetch(w + (k + l) * C + c + 2 * LANES);
                    store(square[l], _mm512_maskz_loadu_ps(k + l < K ? lanes_of(C, c) : 0, w + (k + l) * C + c));
                }
                turn(square, LANES / 2, to + c * width, width, (C - c < LANES ? C - c : LANES) / 2);
            }
    }
}

/* The normalisation before a convolution: scale = weight invstd, shift = bias - mean scale; [6][C'], with zeros. NULL if there is no memory. */
static float *affine(const float *weight, const float *bias, const float *mean, const float *invstd, long C) {
    long wide = filled(C);
    float *s = calloc(6 * wide, sizeof(float));
    for (long c = 0; s && c < C; c++) {
        s[c] = weight[c] * invstd[c];
        s[wide + c] = bias[c] - mean[c] * s[c];
        s[2 * wide + c] = mean[c];
    }
    return s;
}

/* y [rows, K] of x [rows, C]: a W' + added [K] + beside, then ReLU if `relu`; a = relu(norm(x)) if `weight` is given. y may be `beside`. Returns 0, or 1
   if there is no memory. */
int pointwise_convolve(const bf16 *x, const float *weight, const float *bias, const float *mean, const float *invstd, const bf16 *w, bf16 *y,
                       const float *added, const bf16 *beside, int relu, long rows, long C, long K) {
    following f = {.rows = rows, .channels = K, .y = y, .bias = added, .beside = beside, .step = K, .relu = relu};
    float *norm = weight ? affine(weight, bias, mean, invstd, C) : NULL;
    int failed = (weight && !norm) || convolve(x, norm, norm ? norm + filled(C) : NULL, w, &f, WRITTEN, C, divided(rows, C, K), NULL);
    free(norm);
    return failed;
}

/* Of y = relu(norm(x)) W': dx [rows, C] (+ past, its rows `step` apart), dweight and dbias [C] from dy [rows, K] and w as `turned` gives it. `training`: the statistics
   were those of x. Returns 0, or 1 if there is no memory. */
int pointwise_norm_gradient(const bf16 *restrict dy, const bf16 *restrict x, const float *weight, const float *bias, const float *mean,
                            const float *invstd, const bf16 *w, const bf16 *past, long step, bf16 *dx, float *dweight, float *dbias, long rows, long C, long K,
                            int training) {
    long wide = filled(C), block = block_of(rows, K, C), blocks = (rows + block - 1) / block;
    float *norm = affine(weight, bias, mean, invstd, C), *parts = malloc(blocks * 2 * wide * sizeof(float));
    following f = {.rows = rows, .channels = C, .y = dx, .beside = past, .step = step, .x = x, .scale = norm, .shift = norm + wide, .mean = norm + 2 * wide,
                   .slope = norm + 3 * wide, .offset = norm + 4 * wide};
    division alike = {block, blocks, wide, 1}; /* whatever the number of threads */
    int failed = !norm || !parts || convolve(dy, NULL, NULL, w, &f, SUMMED, K, alike, parts);
    for (long c = 0; !failed && c < C; c++) {
        double first = 0, second = 0;
        for (long b = 0; b < blocks; b++) {
            first += parts[b * 2 * wide + c];
            second += parts[(b * 2 + 1) * wide + c];
        }
        dbias[c] = (float)first;
        dweight[c] = (float)(second * invstd[c]);
        /* dx = scale (dz - mean of dz - (x - mean) invstd^2 mean of dz (x - mean)) = scale dz + slope x + offset */
        double along = training ? -(double)norm[c] * invstd[c] * invstd[c] * second / rows : 0;
        norm[3 * wide + c] = (float)along;
        norm[4 * wide + c] = training ? (float)(-norm[c] * first / rows - along * mean[c]) : 0;
    }
    failed = failed || convolve(dy, NULL, NULL, w, &f, NORMALIZED, K, alike, NULL);
    free(norm);
    free(parts);
    return failed;
}

/* ---- the gradient of the weights ---- */

inlined void interleave(bf16 *p, __m256i even, __m256i odd) {
    __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(even), odd, 1);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi16(_mm512_loadu_si512(INTERLEAVE), both));
}

/* Rows 2 i and 2 i + 1, channels c .. end, as pairs, [channels / 16][DEPTH pairs][16][2]; zero where there is none. */
inlined void pair_of(const bf16 *x, const float *scale, const float *shift, long i, long rows, long C, long c, long end, bf16 *to) {
    const bf16 *even = x + 2 * i * C, *odd = even + C;
    int one = 2 * i + 1 == rows;
    for (; c < end; c += LANES, to += DEPTH * 2 * LANES) {
        __mmask16 lanes = lanes_of(C, c);
        if (scale)
            store_pairs(to, activated(even + c, scale, shift, c, lanes), one ? _mm512_setzero_ps() : activated(odd + c, scale, shift, c, lanes));
        else if (lanes == 0xFFFF && !one)
            interleave(to, _mm256_loadu_si256((const __m256i *)(even + c)), _mm256_loadu_si256((const __m256i *)(odd + c)));
        else
            interleave(to, _mm256_maskz_loadu_epi16(lanes, even + c), one ? _mm256_setzero_si256() : _mm256_maskz_loadu_epi16(lanes, odd + c));
    }
}

/* Has rows first .. last, channels c .. end, brought near while something else is computed. */
inlined void fetch(const bf16 *x, long first, long last, long C, long c, long end) {
    for (long r = first; r < last; r++)
        for (const char *at = (const char *)(x + r * C + c), *to = (const char *)(x + r * C + end); at < to; at += 64) _mm_prefetch(at, _MM_HINT_T1);
}

/* dw [K, C] = dy' a of x [rows, C] and dy [rows, K], with a = relu(norm(x)) if `weight` is given. Returns 0, or 1 if there is no memory.

   The result is divided into squares of SIDE by SIDE and the rows into parts, so that there are JOBS of them if rows are many; each turns its rows into pairs,
   DEPTH at a time, and adds them to the sums [parts][K'][C']. */
int pointwise_gradient(const bf16 *restrict x, const float *weight, const float *bias, const float *mean, const float *invstd,
                       const bf16 *restrict dy, float *restrict dw, long rows, long C, long K) {
    long inputs = filled(C), outputs = filled(K), size = inputs * outputs, all = (rows + 1) / 2;
    long across = (inputs + SIDE - 1) / SIDE, down = (outputs + SIDE - 1) / SIDE, squares = across * down;
    long parts = least((JOBS + squares - 1) / squares, (all + LEAST - 1) / LEAST), share = ((all + parts - 1) / parts + DEPTH - 1) / DEPTH * DEPTH;
    float *sums = room(parts * size * sizeof(float)), *norm = weight ? affine(weight, bias, mean, invstd, C) : NULL;
    const float *scale = norm, *shift = norm ? norm + inputs : NULL;
    int failed = !sums || (weight && !norm);
#pragma omp parallel reduction(| : failed)
    {
        bf16 *left = aligned_alloc(64, 2 * SIDE * DEPTH * 2 * sizeof(bf16)), *right = left + SIDE * DEPTH * 2;
        failed |= !left;
#pragma omp for schedule(static)
        for (long job = 0; job < parts * squares; job++) {
            if (failed) continue;
            long part = job / squares, k = job % squares / across * SIDE, c = job % squares % across * SIDE;
            long last = least(k + SIDE, outputs), end = least(c + SIDE, inputs), until = least((part + 1) * share, all);
            float *to = sums + part * size + k * inputs + c;
            for (long r = k; r < last; r++) memset(to + (r - k) * inputs, 0, (end - c) * sizeof(float));
            for (long first = part * share; first < until; first += DEPTH) {
                long pairs = least(DEPTH, until - first);
                for (long i = 0; i < pairs; i++) {
                    pair_of(dy, NULL, NULL, first + i, rows, K, k, last, left + i * 2 * LANES);
                    pair_of(x, scale, shift, first + i, rows, C, c, end, right + i * 2 * LANES);
                }
                /* Each product fetches its share of the rows that come next. */
                long next = 2 * (first + DEPTH), there = least(2 * least(until, first + 2 * DEPTH), rows);
                long calls = (last - k) / LANES * ((end - c + PANEL * LANES - 1) / (PANEL * LANES)), some = (2 * DEPTH + calls - 1) / calls;
                for (long j = 0; j < end - c; j += PANEL * LANES)
                    for (long r = 0; r < last - k; r += LANES, next += some) {
                        fetch(dy, next, least(next + some, there), K, k, least(last, K));
                        fetch(x, next, least(next + some, there), C, c, least(end, C));
                        outer(left + r * DEPTH * 2, right + j * DEPTH * 2, DEPTH * 2 * LANES, to + r * inputs + j, inputs, pairs,
                              (int)(least(PANEL * LANES, end - c - j) / LANES));
                    }
            }
        }
        free(left);
#pragma omp for schedule(static)
        for (long k = 0; k < K; k++)
            for (long c = 0; c < C; c++) {
                float sum = 0;
                for (long part = 0; part < parts; part++) sum += sums[(part * outputs + k) * inputs + c];
                dw[k * C + c] = sum;
            }
    }
    free(sums);
    free(norm);
    return failed;
}
