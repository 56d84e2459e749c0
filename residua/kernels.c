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

/* Backward. y and dh are NULL unless a ReLU follows an addition, or GELU, to which h is given in place of y, or NULL; then dh [rows, channels]
   receives the gradient of h, or what would be that. dx, dweight, dbias receive theirs; `past`, unless it is NULL, is added to dx: the gradient of what goes past the normalisation, its rows `step` values apart. Returns 0, or
   1 if there is no memory. */
int norm_backward(const stored *restrict dy, const stored *restrict x, const stored *restrict y, const stored *restrict h,
                  stored *restrict dh, stored *restrict dx, const stored *restrict past, long step, const float *weight, const float *bias, const float *mean, const float *invstd,
                  float *dweight, float *dbias, long rows, long channels, int activation, int training) {
    shape s = shape_of(rows, channels);
    float *scale = zeros(5 * s.wide);
    double *parts = malloc(2 * (s.blocks + 1) * channels * sizeof(double)), *sums = parts + 2 * s.blocks * channels;
    int failed = !scale || !parts;
    float *shift = scale + s.wide, *centre = shift + s.wide, *slope = centre + s.wide, *offset = slope + s.wide;
    if (!failed) {
        for (long c = 0; c < channels; c++) {
            scale[c] = weight[c] * invstd[c];
            shift[c] = bias[c] - mean[c] * scale[c];
            centre[c] = mean[c];
        }
        spread(&s, scale);
        spread(&s, shift);
        spread(&s, centre);
#pragma omp parallel for schedule(static) reduction(| : failed)
        for (long b = 0; b < s.blocks; b++) {
            long start = b * s.block, end = start + s.block < rows ? start + s.block : rows, at = start * channels;
            float *first = zeros(2 * s.wide);
            if (!first) {
                failed |= 1;
                continue;
            }
            gradient_sums(&s, dy + at, x + at, y ? y + at : 0, h ? h + at : 0, dh ? dh + at : 0, (end - start) * channels, centre, scale, shift, activation,
                          first, first + s.wide);
            fold(&s, first, parts + 2 * b * channels);
            fold(&s, first + s.wide, parts + (2 * b + 1) * channels);
            free(first);
        }
    }
    if (!failed) total(&s, parts, sums, sums + channels);
    for (long c = 0; !failed && c < channels; c++) {
        double first = sums[c], second = sums[channels + c];
        dbias[c] = (float)first;
        dweight[c] = (float)(second * invstd[c]);
        /* dx = scale (dz - mean of dz - (x - mean) invstd^2 mean of dz (x - mean)) = scale dz + slope x + offset */
        double along = training ? -(double)scale[c] * invstd[c] * invstd[c] * second / rows : 0;
        slope[c] = (float)along;
        offset[c] = training ? (float)(-scale[c] * first / rows - along * mean[c]) : 0;
    }
    if (!failed) {
        const stored *restrict gradient = dh ? dh : dy;
        int masked = activation == RELU && !dh;
        spread(&s, slope);
        spread(&s, offset);
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
    }
    free(scale);
    free(parts);
    return failed;
}

/* Maxima of windows: x [images, height, width, channels] -> y [images, down, across, channels], with the place of each in its window,
   counted row by row (of at most 256 places). Beyond the border there is nothing, which is less than anything. The first of equals counts, and
   what is no number is greater than any number, as in torch. */
typedef struct {
    long images, height, width, channels, down, across;
    int high, wide, stride_down, stride_across, above, left; /* of the window; padding */
} pool;

enum { CHANNELS = 64 }; /* at once: maxima and places lie in registers */

/* One output's channels c .. c + n of the windows' maxima. */
static inline __attribute__((always_inline)) void maxima(const stored *restrict image, stored *restrict y, uint8_t *restrict places,
                                                          const pool *p, long top, long start, long c, long n) {
    float best[CHANNELS];
    int32_t place[CHANNELS];
    int found = 0;
    for (int i = 0; i < p->high; i++)
        for (int k = 0; k < p->wide; k++) {
            long h = top + i, w = start + k;
            if (h < 0 || h >= p->height || w < 0 || w >= p->width) continue;
            const stored *restrict from = image + (h * p->width + w) * p->channels + c;
            int here = i * p->wide + k;
            if (!found++)
                for (long j = 0; j < n; j++) {
                    best[j] = load(from[j]);
                    place[j] = here;
                }
            else
                for (long j = 0; j < n; j++) {
                    float v = load(from[j]);
                    int more = (v > best[j]) | (v != v);
                    best[j] = more ? v : best[j];
                    place[j] = more ? here : place[j];
                }
        }
    for (long j = 0; j < n; j++) y[j] = rounded(best[j]);
    for (long j = 0; j < n; j++) places[j] = (uint8_t)place[j];
}

void pool_forward(const stored *restrict x, stored *restrict y, uint8_t *restrict places, const pool *given) {
    const pool p = *given;
#pragma omp parallel for schedule(static)
    for (long row = 0; row < p.images * p.down; row++) {
        const stored *image = x + row / p.down * p.height * p.width * p.channels;
        long top = row % p.down * p.stride_down - p.above;
        for (long column = 0; column < p.across; column++) {
            long start = column * p.stride_across - p.left, at = (row * p.across + column) * p.channels;
            for (long c = 0; c < p.channels; c += CHANNELS)
                if (p.channels - c >= CHANNELS)
                    maxima(image, y + at + c, places + at + c, &p, top, start, c, CHANNELS);
                else
                    maxima(image, y + at + c, places + at + c, &p, top, start, c, p.channels - c);
        }
    }
}

/* The gradient of one value's n channels: those of rows top .. bottom and columns left .. right of the output whose place is here. */
static inline __attribute__((always_inline)) void taken(const stored *restrict dy, const uint8_t *restrict places, stored *restrict to,
                                                         const pool *p, long h, long w, long top, long bottom, long left, long right, long n) {
    float sum[CHANNELS];
    for (long k = 0; k < n; k++) sum[k] = 0;
    for (long i = top; i <= bottom; i++)
        for (long j = left; j <= right; j++) {
            long at = (i * p->across + j) * p->channels;
            int place = (int)((h - i * p->stride_down) * p->wide + w - j * p->stride_across);
            for (long k = 0; k < n; k++) sum[k] += places[at + k] == place ? load(dy[at + k]) : 0;
        }
    for (long k = 0; k < n; k++) to[k] = rounded(sum[k]);
}

/* dx of dy: each value takes the gradients of the windows of which it is the maximum, in the order of the windows. */
void pool_backward(const stored *restrict dy, const uint8_t *restrict places, stored *restrict dx, const pool *given) {
    const pool p = *given;
#pragma omp parallel for schedule(static)
    for (long row = 0; row < p.images * p.height; row++) {
        long first = row / p.height * p.down * p.across * p.channels, h = row % p.height + p.above;
        long top = h < p.high ? 0 : (h - p.high) / p.stride_down + 1, bottom = h / p.stride_down;
        bottom = bottom < p.down ? bottom : p.down - 1;
        for (long column = 0; column < p.width; column++) {
            long w = column + p.left, left = w < p.wide ? 0 : (w - p.wide) / p.stride_across + 1, right = w / p.stride_across;
            right = right < p.across ? right : p.across - 1;
            for (long c = 0; c < p.channels; c += CHANNELS) {
                const stored *from = dy + first + c;
                const uint8_t *marks = places + first + c;
                stored *to = dx + (row * p.width + column) * p.channels + c;
                if (p.channels - c >= CHANNELS)
                    taken(from, marks, to, &p, h, w, top, bottom, left, right, CHANNELS);
                else
                    taken(from, marks, to, &p, h, w, top, bottom, left, right, p.channels - c);
            }
        }
    }
}
