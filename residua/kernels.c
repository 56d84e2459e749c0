/* Batch normalisation with what stands round it, in as few passes over memory as the statistics allow:

     y  = f(scale * x + shift [+ h])          scale = weight / sqrt(variance + eps), shift = bias - mean * scale

   with f nothing, ReLU or GELU.

   Maps are [rows, channels] in channels-last order, of one type (bfloat16 with -DBFLOAT16, else float); all arithmetic is in float, and
   sums over rows are taken block by block in float and over the blocks in double. The blocks depend on the shape alone, so the results do
   not depend on the number of threads. Comparisons are written so that NaN stays NaN.

   A wide row is as many rows as make some WIDE values, so that the inner loops are long and their sums lie in registers far apart; the
   parameters of a channel are repeated along it. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#ifdef BFLOAT16
typedef uint16_t stored;
static inline float load(stored v) {
    uint32_t bits = (uint32_t)v << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}
static inline stored rounded(float v) { /* to nearest, ties to even, as torch does */
    uint32_t bits;
    memcpy(&bits, &v, 4);
    uint32_t up = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return v != v ? 0x7fc0 : (stored)up;
}
#else
typedef float stored;
static inline float load(stored v) { return v; }
static inline stored rounded(float v) { return v; }
#endif

enum { NONE, RELU, GELU }; /* what f is */

/* The normal distribution Phi(v), and its density: Phi by Abramowitz and Stegun 7.1.26 (less than 1e-7 away), exp(-v^2 / 2) by a power of 2 and a
   polynomial (relative error below 1e-7). NaN gives NaN. */
static inline float normal(float v, float *density) {
    const float a1 = 0.254829592f, a2 = -0.284496736f, a3 = 1.421413741f, a4 = -1.453152027f, a5 = 1.061405429f;
    float u = 0.5f * v * v, z = fabsf(v) * 0.70710678f;
    u = u > 87 ? 87 : u;
    float n = rintf(-1.44269504f * u), r = -u - n * 0.693359375f + n * 2.12194440e-4f;
    float e = 1 + r * (1 + r * (0.5f + r * (0.16666667f + r * (0.041666655f + r * (0.0083333310f + r * 0.0013888397f)))));
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    e *= power;
    float t = 1 / (1 + 0.3275911f * z);
    float tail = 0.5f * e * t * (a1 + t * (a2 + t * (a3 + t * (a4 + t * a5))));
    *density = 0.39894228f * e;
    return v < 0 ? tail : 1 - tail;
}
static inline float gelu(float v) {
    float density;
    return v * normal(v, &density);
}
static inline float gelu_slope(float v) {
    float density, below = normal(v, &density);
    return below + v * density;
}

enum { WIDE = 512, BLOCK = 65536 }; /* values: of a wide row, about, and of a block, about */
enum { AHEAD = 1024 };              /* values: how long before it is read a row is asked for */

/* Asks for n values that are read later. By themselves processors look less far ahead where they write, too: the passes took up to twice as long. */
static inline void bring(const stored *from, long n) {
    for (long i = 0; i < n; i += 64 / (long)sizeof(stored)) __builtin_prefetch(from + AHEAD + i);
}

/* Zeros at the start of a line of the cache, so that no vector lies in two of them; to be freed. NULL if there is no memory. */
static float *zeros(long count) {
    size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
    float *found = aligned_alloc(64, bytes);
    return found ? memset(found, 0, bytes) : found;
}

typedef struct {
    long rows, channels, repeat, wide, block, blocks; /* rows a block, and how many blocks there are */
} shape;

static shape shape_of(long rows, long channels) {
    long repeat = channels < WIDE ? WIDE / channels : 1;
    shape s = {rows, channels, repeat, channels * repeat, 0, 0};
    s.block = repeat * (BLOCK / s.wide > 1 ? BLOCK / s.wide : 1);
    s.blocks = (rows + s.block - 1) / s.block;
    return s;
}

static void spread(const shape *s, float *wide) { /* repeats the first `channels` values along the wide row */
    for (long i = s->channels; i < s->wide; i++) wide[i] = wide[i - s->channels];
}

static void fold(const shape *s, const float *wide, double *sums) {
    for (long c = 0; c < s->channels; c++) sums[c] = 0;
    for (long r = 0; r < s->repeat; r++)
        for (long c = 0; c < s->channels; c++) sums[c] += wide[r * s->channels + c];
}

/* Adds x - pivot and its square over one block of `count` values to first and second [wide]. */
static void moments(const shape *s, const stored *restrict x, long count, const float *restrict pivot, float *restrict first,
                    float *restrict second) {
    for (long i = 0; i < count; i += s->wide) {
        long n = count - i < s->wide ? count - i : s->wide;
        bring(x + i, n);
        for (long j = 0; j < n; j++) {
            float d = load(x[i + j]) - pivot[j];
            first[j] += d;
            second[j] += d * d;
        }
    }
}

/* The sums over all blocks, [channels] each, from the blocks' pairs. */
static void total(const shape *s, const double *parts, double *first, double *second) {
    long channels = s->channels;
    memset(first, 0, channels * sizeof(double));
    memset(second, 0, channels * sizeof(double));
    for (long b = 0; b < s->blocks; b++, parts += 2 * channels)
        for (long c = 0; c < channels; c++) {
            first[c] += parts[c];
            second[c] += parts[channels + c];
        }
}

/* Forward. h may be NULL. By `statistics` they are the batch's, and move the running ones (BATCH), or the running ones (RUNNING);
   then mean, invstd [channels] receive what was used and are kept for the backward pass. Or they are given in mean, invstd (GIVEN),
   and the result is the same to the bit as when they were taken. y may be NULL: then there are the statistics only. Returns 0, or 1 if there is
   no memory. */
enum { RUNNING, BATCH, GIVEN };

int norm_forward(const stored *restrict x, const stored *restrict h, stored *restrict y, const float *weight, const float *bias,
                 float *running_mean, float *running_var, float *mean, float *invstd, long rows, long channels, float eps,
                 float momentum, int activation, int statistics) {
    shape s = shape_of(rows, channels);
    float *scale = zeros(3 * s.wide), *shift = scale ? scale + s.wide : 0, *pivot = scale ? shift + s.wide : 0;
    double *parts = malloc(2 * (s.blocks + 1) * channels * sizeof(double)), *sums = parts + 2 * s.blocks * channels;
    int failed = !scale || !parts;
    if (!failed && statistics == BATCH) {
        for (long c = 0; c < channels; c++) pivot[c] = load(x[c]);
        spread(&s, pivot);
#pragma omp parallel for schedule(static) reduction(| : failed)
        for (long b = 0; b < s.blocks; b++) {
            long start = b * s.block, end = start + s.block < rows ? start + s.block : rows;
            float *first = zeros(2 * s.wide);
            if (!first) {
                failed |= 1;
                continue;
            }
            moments(&s, x + start * channels, (end - start) * channels, pivot, first, first + s.wide);
            fold(&s, first, parts + 2 * b * channels);
            fold(&s, first + s.wide, parts + (2 * b + 1) * channels);
            free(first);
        }
    }
    if (!failed && statistics == BATCH) total(&s, parts, sums, sums + channels);
    for (long c = 0; !failed && c < channels; c++) {
        if (statistics == BATCH) {
            double centre = sums[c] / rows, variance = sums[channels + c] / rows - centre * centre;
            variance = variance < 0 ? 0 : variance;
            mean[c] = (float)(centre + pivot[c]);
            invstd[c] = (float)(1 / sqrt(variance + eps));
            running_mean[c] += momentum * (mean[c] - running_mean[c]);
            running_var[c] += momentum * ((float)(variance * rows / (rows > 1 ? rows - 1 : 1)) - running_var[c]);
        } else if (statistics == RUNNING) {
            mean[c] = running_mean[c];
            invstd[c] = 1 / sqrtf(running_var[c] + eps);
        }
        scale[c] = weight[c] * invstd[c];
        shift[c] = bias[c] - mean[c] * scale[c];
    }
    if (!failed && y) {
        spread(&s, scale);
        spread(&s, shift);
#pragma omp parallel for schedule(static)
        for (long b = 0; b < s.blocks; b++) {
            long start = b * s.block, end = start + s.block < rows ? start + s.block : rows;
            for (long i = start; i < end; i += s.repeat) {
                long n = (end - i < s.repeat ? end - i : s.repeat) * channels;
                const stored *restrict in = x + i * channels, *restrict side = h + (h ? i * channels : 0);
                stored *restrict out = y + i * channels;
                bring(in, n);
                if (h) bring(side, n);
                if (activation == GELU && h)
                    for (long j = 0; j < n; j++) out[j] = rounded(gelu(load(in[j]) * scale[j] + shift[j] + load(side[j])));
                else if (activation == GELU)
                    for (long j = 0; j < n; j++) out[j] = rounded(gelu(load(in[j]) * scale[j] + shift[j]));
                else if (h && activation == RELU)
                    for (long j = 0; j < n; j++) {
                        float v = load(in[j]) * scale[j] + shift[j] + load(side[j]);
                        out[j] = rounded(v < 0 ? 0 : v);
                    }
                else if (h)
                    for (long j = 0; j < n; j++) out[j] = rounded(load(in[j]) * scale[j] + shift[j] + load(side[j]));
                else if (activation == RELU)
                    for (long j = 0; j < n; j++) {
                        float v = load(in[j]) * scale[j] + shift[j];
                        out[j] = rounded(v < 0 ? 0 : v);
                    }
                else
                    for (long j = 0; j < n; j++) out[j] = rounded(load(in[j]) * scale[j] + shift[j]);
            }
        }
    }
    free(scale);
    free(parts);
    return failed;
}

/* One block of the first backward pass: the sums of dz and of dz (x - mean), dz being dy where the ReLU was open, or dy times the slope of GELU.
   The ReLU's state comes from y where an addition stood before it (then dz is also written to dh), and from x where none did. GELU's argument is
   made again from x and h, which may be NULL, and dz is written to dh. */
static void gradient_sums(const shape *s, const stored *restrict dy, const stored *restrict x, const stored *restrict y, const stored *restrict h,
                          stored *restrict dh, long count, const float *restrict mean, const float *restrict scale,
                          const float *restrict shift, int activation, float *restrict first, float *restrict second) {
#define EACH(GRADIENT, WRITE)                                                     \
    for (long i = 0; i < count; i += s->wide) {                               \
        long n = count - i < s->wide ? count - i : s->wide;                   \
        bring(x + i, n), bring(dy + i, n);                                    \
        if (y || h) bring(y ? y + i : h + i, n);                              \
        for (long j = 0; j < n; j++) {                                        \
            float v = load(x[i + j]), g = load(dy[i + j]);                    \
            g = GRADIENT;                                                     \
            WRITE;                                                            \
            first[j] += g;                                                    \
            second[j] += g * (v - mean[j]);                                   \
        }                                                                     \
    }
    if (y) {
        EACH(load(y[i + j]) <= 0 ? 0 : g, dh[i + j] = rounded(g))
    } else if (activation == GELU && h) {
        EACH(g * gelu_slope(v * scale[j] + shift[j] + load(h[i + j])), dh[i + j] = rounded(g))
    } else if (activation == GELU) {
        EACH(g * gelu_slope(v * scale[j] + shift[j]), dh[i + j] = rounded(g))
    } else if (activation == RELU) {
        EACH(v * scale[j] + shift[j] <= 0 ? 0 : g, )
    } else {
        EACH(g, )
    }
#undef EACH
}

/* The first backward pass: dweight and dbias of a normalisation by `mean` and `invstd`, and what the second pass needs of each channel, [5][wide]: scale,
   shift, mean, slope, offset, of dx = scale dz + slope x + offset. `whole`: rows that were normalised, of which those without a gradient need not be
   given. NULL if there is no memory; else to be freed. */
static float *first_pass(const shape *s, const stored *restrict dy, const stored *restrict x, const stored *restrict y, const stored *restrict h,
                         stored *restrict dh, const float *weight, const float *bias, const float *mean, const float *invstd, float *dweight,
                         float *dbias, long whole, int activation, int training) {
    long channels = s->channels;
    float *scale = zeros(5 * s->wide);
    double *parts = malloc(2 * (s->blocks + 1) * channels * sizeof(double)), *sums = parts + 2 * s->blocks * channels;
    int failed = !scale || !parts;
    float *shift = scale + s->wide, *centre = shift + s->wide, *slope = centre + s->wide, *offset = slope + s->wide;
    if (!failed) {
        for (long c = 0; c < channels; c++) {
            scale[c] = weight[c] * invstd[c];
            shift[c] = bias[c] - mean[c] * scale[c];
            centre[c] = mean[c];
        }
        spread(s, scale);
        spread(s, shift);
        spread(s, centre);
#pragma omp parallel for schedule(static) reduction(| : failed)
        for (long b = 0; b < s->blocks; b++) {
            long start = b * s->block, end = start + s->block < s->rows ? start + s->block : s->rows, at = start * channels;
            float *first = zeros(2 * s->wide);
            if (!first) {
                failed |= 1;
                continue;
            }
            gradient_sums(s, dy + at, x + at, y ? y + at : 0, h ? h + at : 0, dh ? dh + at : 0, (end - start) * channels, centre, scale, shift, activation,
                          first, first + s->wide);
            fold(s, first, parts + 2 * b * channels);
            fold(s, first + s->wide, parts + (2 * b + 1) * channels);
            free(first);
        }
    }
    if (!failed) total(s, parts, sums, sums + channels);
    for (long c = 0; !failed && c < channels; c++) {
        double first = sums[c], second = sums[channels + c];
        dbias[c] = (float)first;
        dweight[c] = (float)(second * invstd[c]);
        /* dx = scale (dz - mean of dz - (x - mean) invstd^2 mean of dz (x - mean)) = scale dz + slope x + offset */
        double along = training ? -(double)scale[c] * invstd[c] * invstd[c] * second / whole : 0;
        slope[c] = (float)along;
        offset[c] = training ? (float)(-scale[c] * first / whole - along * mean[c]) : 0;
    }
    free(parts);
    if (failed) {
        free(scale);
        return NULL;
    }
    spread(s, slope);
    spread(s, offset);
    return scale;
}

/* Backward. y and dh are NULL unless a ReLU follows an addition, or GELU, to which h is given in place of y, or NULL; then dh [rows, channels]
   receives the gradient of h, or what would be that. dx, dweight, dbias receive theirs; `past`, unless it is NULL, is added to dx: the gradient of
   what goes past the normalisation, its rows `step` values apart. Returns 0, or 1 if there is no memory. */
int norm_backward(const stored *restrict dy, const stored *restrict x, const stored *restrict y, const stored *restrict h,
                  stored *restrict dh, stored *restrict dx, const stored *restrict past, long step, const float *weight, const float *bias,
                  const float *mean, const float *invstd, float *dweight, float *dbias, long rows, long channels, int activation, int training) {
    shape s = shape_of(rows, channels);
    float *scale = first_pass(&s, dy, x, y, h, dh, weight, bias, mean, invstd, dweight, dbias, rows, activation, training);
    if (!scale) return 1;
    float *shift = scale + s.wide, *slope = shift + 2 * s.wide, *offset = slope + s.wide;
    const stored *restrict gradient = dh ? dh : dy;
    int masked = activation == RELU && !dh;
#pragma omp parallel for schedule(static)
    for (long b = 0; b < s.blocks; b++) {
        long start = b * s.block, end = start + s.block < rows ? start + s.block : rows;
        for (long i = start; i < end; i += s.repeat) {
            long n = (end - i < s.repeat ? end - i : s.repeat) * channels;
            const stored *restrict g = gradient + i * channels, *restrict in = x + i * channels;
            stored *restrict out = dx + i * channels;
            bring(g, n), bring(in, n);
            stored aside[s.wide];
            const stored *restrict more = past + (past ? i * step : 0);
            if (past && step == channels) bring(more, n);
            if (past && step != channels) {
                for (long r = 0; r < n / channels; r++) memcpy(aside + r * channels, more + r * step, channels * sizeof(stored));
                more = aside;
            }
            if (masked && past)
                for (long j = 0; j < n; j++) {
                    float v = load(in[j]), dz = v * scale[j] + shift[j] <= 0 ? 0 : load(g[j]);
                    out[j] = rounded(dz * scale[j] + v * slope[j] + offset[j] + load(more[j]));
                }
            else if (past)
                for (long j = 0; j < n; j++) out[j] = rounded(load(g[j]) * scale[j] + load(in[j]) * slope[j] + offset[j] + load(more[j]));
            else if (masked)
                for (long j = 0; j < n; j++) {
                    float v = load(in[j]), dz = v * scale[j] + shift[j] <= 0 ? 0 : load(g[j]);
                    out[j] = rounded(dz * scale[j] + v * slope[j] + offset[j]);
                }
            else
                for (long j = 0; j < n; j++) out[j] = rounded(load(g[j]) * scale[j] + load(in[j]) * slope[j] + offset[j]);
        }
    }
    free(scale);
    return 0;
}

/* Maxima of windows: x [images, height, width, channels] -> y [images, down, across, channels], with the place of each in its window,
   counted row by row (of at most 256 places). Beyond the border there is nothing, which is less than anything. The first of equals counts, and
   what is no number is greater than any number, as in torch. */
typedef struct {
    long images, height, width, channels, down, across;
    int high, wide, stride_down, stride_across, above, left; /* of the window; padding */
} pool;

/* Sixteen channels at a time, in types of which any number of values can stay in registers while windows are gone through. */
typedef float lanes __attribute__((vector_size(64)));
typedef uint32_t whole __attribute__((vector_size(64)));
enum { LANES = 16, GROUPS = 4 }; /* groups of lanes at once */

#define inlined static inline __attribute__((always_inline)) /* so that loops are made for whole groups */

/* Of n values or places, then zeros; and n back. Compilers turn vectors of other sizes into each other one value at a time, hence the intrinsics. */
inlined whole widened(const void *p, int size) {
    uint16_t halves[LANES];
    uint8_t narrow[LANES];
    whole found;
    memcpy(size == 2 ? (void *)halves : narrow, p, LANES * size);
#ifdef __AVX512F__
    found = size == 2 ? (whole)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)halves)) : (whole)_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)narrow));
#else
    for (int i = 0; i < LANES; i++) found[i] = size == 2 ? halves[i] : narrow[i];
#endif
    return found;
}
inlined void narrowed(void *p, whole v, int size, long n) {
    uint16_t halves[LANES];
    uint8_t narrow[LANES];
#ifdef __AVX512F__
    if (size == 2)
        _mm256_storeu_si256((void *)halves, _mm512_cvtepi32_epi16((__m512i)v));
    else
        _mm_storeu_si128((void *)narrow, _mm512_cvtepi32_epi8((__m512i)v));
#else
    for (int i = 0; i < LANES; i++) halves[i] = (uint16_t)v[i], narrow[i] = (uint8_t)v[i];
#endif
    memcpy(p, size == 2 ? (void *)halves : narrow, n * size);
}
inlined whole places_in(const uint8_t *p, long n) {
    uint8_t some[LANES] = {0};
    return widened(n < LANES ? memcpy(some, p, n) : p, 1);
}
inlined lanes lanes_in(const stored *p, long n) {
    stored some[LANES] = {0};
    if (n < LANES) p = memcpy(some, p, n * sizeof(stored));
#ifdef BFLOAT16
    return (lanes)(widened(p, 2) << 16);
#else
    lanes found;
    memcpy(&found, p, sizeof found);
    return found;
#endif
}
inlined lanes chosen(whole mask, lanes a, lanes b) { return (lanes)((mask & (whole)a) | (~mask & (whole)b)); }
inlined void lanes_out(stored *p, lanes v, long n) {
#ifdef BFLOAT16
    whole bits = (whole)v, up = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, none = (whole)(v != v);
    narrowed(p, (none & 0x7fc0) | (~none & up), 2, n);
#else
    memcpy(p, &v, n * sizeof(stored));
#endif
}
inlined lanes floats_in(const float *p, long n) {
    lanes found = {0};
    memcpy(&found, p, n * sizeof(float));
    return found;
}

/* What follows the maxima: they are those of relu(scale x + shift), which is largest where x is, or least where the scale is below 0. `picked`, like y,
   receives x there, and places CLOSED where ReLU lets nothing pass. */
typedef struct {
    const float *scale, *shift, *sign; /* sign: of scale */
    stored *picked;
} following;

enum { CLOSED = 255 };

/* One window's maxima, of `groups` times n channels. */
inlined void maxima(const stored *restrict image, stored *restrict y, uint8_t *restrict places, const float *scale, const float *shift, const float *sign,
                    stored *restrict picked, const pool *p, long top, long start, int groups, long n) {
    lanes best[GROUPS];
    whole place[GROUPS];
#pragma GCC unroll 4
    for (int g = 0; g < groups; g++) best[g] = (lanes){0}, place[g] = (whole){0};
    int found = 0;
    long above = top < 0 ? -top : 0, below = p->height - top < p->high ? p->height - top : p->high;
    long before = start < 0 ? -start : 0, behind = p->width - start < p->wide ? p->width - start : p->wide;
    for (long i = above; i < below; i++)
        for (long k = before; k < behind; k++) {
            const stored *restrict from = image + ((top + i) * p->width + start + k) * p->channels;
            uint32_t here = (uint32_t)(i * p->wide + k);
            int first = !found++;
#pragma GCC unroll 4
            for (int g = 0; g < groups; g++) {
                lanes v = lanes_in(from + g * LANES, n);
                if (picked) v *= floats_in(sign + g * LANES, n);
                whole more = first ? ~(whole){0} : (whole)(v > best[g]) | (whole)(v != v);
                best[g] = chosen(more, v, best[g]);
                place[g] = (more & here) | (~more & place[g]);
            }
        }
#pragma GCC unroll 4
    for (int g = 0; g < groups; g++) {
        if (picked) {
            lanes v = best[g] * floats_in(sign + g * LANES, n), z = v * floats_in(scale + g * LANES, n) + floats_in(shift + g * LANES, n);
            whole closed = (whole)(z <= 0);
            lanes_out(picked + g * LANES, v, n);
            best[g] = (lanes)(~closed & (whole)z);
            place[g] = (closed & CLOSED) | (~closed & place[g]);
        }
        lanes_out(y + g * LANES, best[g], n);
        narrowed(places + g * LANES, place[g], 1, n);
    }
}

inlined void all_maxima(const stored *restrict x, stored *restrict y, uint8_t *restrict places, const following *given_f, const pool *given) {
    const pool p = *given;
    const following f = given_f ? *given_f : (following){0};
#pragma omp parallel for schedule(static)
    for (long row = 0; row < p.images * p.down; row++) {
        const stored *image = x + row / p.down * p.height * p.width * p.channels;
        long top = row % p.down * p.stride_down - p.above;
        for (long column = 0; column < p.across; column++) {
            long start = column * p.stride_across - p.left, at = (row * p.across + column) * p.channels;
#define AT(c) image + c, y + at + c, places + at + c, f.scale + c, f.shift + c, f.sign + c, given_f ? f.picked + at + c : NULL, &p, top, start
            long c = 0;
            for (; c + GROUPS * LANES <= p.channels; c += GROUPS * LANES) maxima(AT(c), GROUPS, LANES);
            for (; c + LANES <= p.channels; c += LANES) maxima(AT(c), 1, LANES);
            if (c < p.channels) maxima(AT(c), 1, p.channels - c);
#undef AT
        }
    }
}

void pool_forward(const stored *restrict x, stored *restrict y, uint8_t *restrict places, const pool *p) { all_maxima(x, y, places, NULL, p); }

/* The maxima of relu(scale x + shift), a normalisation by `mean` and `invstd`, which itself is not written, in windows of at most CLOSED places. `picked`,
   like y, receives x where they are. Returns 0, or 1 if there is no memory. */
int norm_pool_forward(const stored *restrict x, stored *restrict y, uint8_t *restrict places, stored *restrict picked, const float *weight,
                      const float *bias, const float *mean, const float *invstd, const pool *p) {
    long channels = p->channels;
    float *scale = zeros(3 * channels);
    if (!scale) return 1;
    float *shift = scale + channels, *sign = shift + channels;
    for (long c = 0; c < channels; c++) {
        scale[c] = weight[c] * invstd[c];
        shift[c] = bias[c] - mean[c] * scale[c];
        sign[c] = scale[c] < 0 ? -1 : 1;
    }
    const following f = {scale, shift, sign, picked};
    all_maxima(x, y, places, &f, p);
    free(scale);
    return 0;
}

/* The gradient of one value, of `groups` times n channels: those of rows top .. bottom and columns left .. right of the output whose place is here. With x
   that of what was normalised to this value: scale times it + slope x + offset. */
inlined void taken(const stored *restrict dy, const uint8_t *restrict places, const stored *restrict x, const float *scale, const float *slope,
                   const float *offset, stored *restrict to, const pool *p, long h, long w, long top, long bottom, long left, long right, int groups,
                   long n) {
    lanes sum[GROUPS];
#pragma GCC unroll 4
    for (int g = 0; g < groups; g++) sum[g] = (lanes){0};
    for (long i = top; i <= bottom; i++)
        for (long j = left; j <= right; j++) {
            long at = (i * p->across + j) * p->channels;
            uint32_t place = (uint32_t)((h - i * p->stride_down) * p->wide + w - j * p->stride_across);
#pragma GCC unroll 4
            for (int g = 0; g < groups; g++) {
                whole here = (whole)(places_in(places + at + g * LANES, n) == place);
                sum[g] += (lanes)(here & (whole)lanes_in(dy + at + g * LANES, n));
            }
        }
#pragma GCC unroll 4
    for (int g = 0; g < groups; g++) {
        if (x) {
            sum[g] *= floats_in(scale + g * LANES, n);
            sum[g] += lanes_in(x + g * LANES, n) * floats_in(slope + g * LANES, n) + floats_in(offset + g * LANES, n);
        }
        lanes_out(to + g * LANES, sum[g], n);
    }
}

inlined void all_taken(const stored *restrict dy, const uint8_t *restrict places, const stored *restrict x, const float *restrict scale,
                       const float *restrict slope, const float *restrict offset, stored *restrict dx, const pool *given) {
    const pool p = *given;
#pragma omp parallel for schedule(static)
    for (long row = 0; row < p.images * p.height; row++) {
        long first = row / p.height * p.down * p.across * p.channels, h = row % p.height + p.above;
        long top = h < p.high ? 0 : (h - p.high) / p.stride_down + 1, bottom = h / p.stride_down;
        bottom = bottom < p.down ? bottom : p.down - 1;
        long left = 0, right = 0; /* windows that end at a column or behind it; that begin there or before it */
        for (long column = 0; column < p.width; column++) {
            long w = column + p.left, at = (row * p.width + column) * p.channels, c = 0;
            while (left * p.stride_across + p.wide <= w) left++;
            while (right + 1 < p.across && (right + 1) * p.stride_across <= w) right++;
            if (x) bring(x + at, p.channels);
#define AT(c) dy + first + c, places + first + c, x ? x + at + c : NULL, scale + c, slope + c, offset + c, dx + at + c, &p, h, w, top, bottom, left, right
            for (; c + GROUPS * LANES <= p.channels; c += GROUPS * LANES) taken(AT(c), GROUPS, LANES);
            for (; c + LANES <= p.channels; c += LANES) taken(AT(c), 1, LANES);
            if (c < p.channels) taken(AT(c), 1, p.channels - c);
#undef AT
        }
    }
}

/* dx of dy: each value takes the gradients of the windows of which it is the maximum, in the order of the windows. */
void pool_backward(const stored *restrict dy, const uint8_t *restrict places, stored *restrict dx, const pool *p) {
    all_taken(dy, places, NULL, NULL, NULL, NULL, dx, p);
}

/* Of what `norm_pool_forward` gave: dx, dweight, dbias. Only values that were picked have a gradient behind the normalisation, so its sums are over
   these. Returns 0, or 1 if there is no memory. */
int norm_pool_backward(const stored *restrict dy, const uint8_t *restrict places, const stored *restrict picked, const stored *restrict x,
                       stored *restrict dx, const float *weight, const float *bias, const float *mean, const float *invstd, float *dweight,
                       float *dbias, int training, const pool *p) {
    shape s = shape_of(p->images * p->down * p->across, p->channels);
    long whole = p->images * p->height * p->width;
    float *scale = first_pass(&s, dy, picked, 0, 0, 0, weight, bias, mean, invstd, dweight, dbias, whole, RELU, training);
    if (!scale) return 1;
    all_taken(dy, places, x, scale, scale + 3 * s.wide, scale + 4 * s.wide, dx, p);
    free(scale);
    return 0;
}
