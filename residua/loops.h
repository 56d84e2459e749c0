/* What the loops for AVX-512 BF16 share: sixteen values at a time, and sums of products of pairs of bfloat16. */

#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef uint16_t bf16;

enum { LANES = 16, PANEL = 4 }; /* PANEL: vectors of columns at once */

/* Memory that many loops go over, to be freed; in pages of 2 MiB if the system gives them. Small pages lie in the cache by chance, in some processes
   so that they drive each other out: sums over them then took 1.6 times as long, for as long as the process lived. */
static inline void *room(size_t bytes) {
    const size_t page = 2 << 20;
    if (bytes < page / 2) return aligned_alloc(64, (bytes + 63) / 64 * 64);
    void *found = aligned_alloc(page, (bytes + page - 1) / page * page);
#ifdef MADV_HUGEPAGE
    if (found) madvise(found, (bytes + page - 1) / page * page, MADV_HUGEPAGE); /* or not, and all goes on as it is */
#endif
    return found;
}

/* Asks for one of so many parts of memory that is read, or written, later. While products are made memory has nothing to do, and what comes in whole
   blocks between them is not foreseen by the processor: convolutions took up to twice as long. */
static inline void ask(const void *from, long bytes, long part, long parts) {
    for (long i = bytes * part / parts; i < bytes * (part + 1) / parts; i += 64) __builtin_prefetch((const char *)from + i);
}

static inline __m512 load(const bf16 *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
static inline void store(bf16 *p, __m512 v) { _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh(v)); }
/* The lanes of channels c, c + 1, .. that there are, and what lies in them; nothing beyond is read or written. Masks cost time, so
   they are left out where all lanes are there, which is nearly always. */
static inline __mmask16 lanes_of(long channels, long c) { return channels - c >= LANES ? 0xFFFF : (__mmask16)((1u << (channels - c)) - 1); }
static inline __m512 load_some(const bf16 *p, __mmask16 lanes) {
    if (lanes == 0xFFFF) return load(p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, p)), 16));
}
static inline void store_some(bf16 *p, __m512 v, __mmask16 lanes) {
    if (lanes == 0xFFFF)
        store(p, v);
    else
        _mm256_mask_storeu_epi16(p, lanes, (__m256i)_mm512_cvtneps_pbh(v));
}
static inline long filled(long channels) { return (channels + LANES - 1) / LANES * LANES; } /* with zeros */

static inline long least(long a, long b) { return a < b ? a : b; }
static inline __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
static inline __m512 sub(__m512 a, __m512 b) { return _mm512_sub_ps(a, b); }

static const uint16_t INTERLEAVE[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};

/* Pairs (even[i], odd[i]) side by side: 32 values. */
static inline void store_pairs(bf16 *p, __m512 even, __m512 odd) {
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi16(_mm512_loadu_si512(INTERLEAVE), both));
}

/* 16 rows of 8 pairs, `step` pairs apart, turned: column i goes to `to`, i times `apart` pairs on. */
static inline void turn_8(const int32_t *from, long step, int32_t *to, long apart) {
    const __m512i even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), odd = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    __m512i rows[8], twos[8], fours[8]; /* a row and the eighth after it */
#pragma GCC unroll 8
    for (int r = 0; r < 8; r++) {
        __m512i first = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(from + r * step)));
        rows[r] = _mm512_inserti64x4(first, _mm256_loadu_si256((const __m256i *)(from + (r + 8) * step)), 1);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 8; r += 2) {
        twos[r] = _mm512_unpacklo_epi32(rows[r], rows[r + 1]);
        twos[r + 1] = _mm512_unpackhi_epi32(rows[r], rows[r + 1]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) { /* columns 2 (r % 2) and the next, and those four on */
        int of = r / 2 * 4 + r % 2;
        fours[r / 2 * 4 + r % 2 * 2] = _mm512_unpacklo_epi64(twos[of], twos[of + 2]);
        fours[r / 2 * 4 + r % 2 * 2 + 1] = _mm512_unpackhi_epi64(twos[of], twos[of + 2]);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        _mm512_storeu_si512(to + c * apart, _mm512_permutex2var_epi64(fours[c], even, fours[c + 4]));
        _mm512_storeu_si512(to + (c + 4) * apart, _mm512_permutex2var_epi64(fours[c], odd, fours[c + 4]));
    }
}

/* The same for any number of columns. */
static inline void turn(const void *from, long step, void *to, long apart, long columns) {
    const __m512i count = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i lanes = _mm512_mullo_epi32(count, _mm512_set1_epi32((int)step));
    long i = 0;
    for (; i + 8 <= columns; i += 8) turn_8((const int32_t *)from + i, step, (int32_t *)to + i * apart, apart);
    for (; i < columns; i++)
        _mm512_storeu_si512((int32_t *)to + i * apart, _mm512_i32gather_epi32(lanes, (const int32_t *)from + i, 4));
}

/* Columns come in panels of PANEL vectors; the last may be narrower. */
static inline long width_of(long columns, long panel) {
    long rest = columns - panel * PANEL * LANES;
    return rest < PANEL * LANES ? rest : PANEL * LANES;
}

#define ZERO(R, V, sum)                                                                                                             \
    _Pragma("GCC unroll 24") for (int r = 0; r < R; r++)                                                                            \
        _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) sum[r][v] = _mm512_setzero_ps();

/* sum [R][V] of vectors += R rows of a [R, 2 pairs], `step` apart, times b [pairs, 16 V, 2]; a and b move on. */
#define ACCUMULATE(R, V, sum, a, step, b, pairs)                                                                                    \
    for (long i = 0; i < pairs; i++, a += 2, b += V * 2 * LANES) {                                                                  \
        __m512bh right[V];                                                                                                          \
        _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) right[v] = (__m512bh)_mm512_loadu_si512(b + v * 2 * LANES);             \
        _Pragma("GCC unroll 24") for (int r = 0; r < R; r++) {                                                                      \
            int pair;                                                                                                               \
            memcpy(&pair, a + r * step, 4);                                                                                         \
            __m512bh left = (__m512bh)_mm512_set1_epi32(pair);                                                                      \
            _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], left, right[v]);            \
        }                                                                                                                           \
    }

/* sum [R][V] of vectors = such a product. Kept in registers. */
#define MULTIPLY(R, V, sum, a, step, b, pairs) \
    __m512 sum[R][V];                          \
    ZERO(R, V, sum)                            \
    ACCUMULATE(R, V, sum, a, step, b, pairs)

/* sums [R, 16 V] (rows `step` apart) += a' b over pairs: R of a [pairs, 16, 2], b [V] (`apart`) of [pairs, 16, 2] */
#define PRODUCT(R, V)                                                                                                                   \
    static inline void outer_##V(const bf16 *restrict a, const bf16 *restrict b, long apart, float *restrict sums, long step, long pairs) { \
        __m512 sum[R][V];                                                                                                               \
        _Pragma("GCC unroll 16") for (int r = 0; r < R; r++)                                                                            \
            _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) sum[r][v] = _mm512_loadu_ps(sums + r * step + v * LANES);               \
        for (long i = 0; i < pairs; i++, a += 2 * LANES, b += 2 * LANES) {                                                              \
            __m512bh right[V];                                                                                                          \
            _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) right[v] = (__m512bh)_mm512_loadu_si512(b + v * apart);                 \
            _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) {                                                                      \
                int pair;                                                                                                               \
                memcpy(&pair, a + 2 * r, 4);                                                                                            \
                __m512bh left = (__m512bh)_mm512_set1_epi32(pair);                                                                      \
                _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], left, right[v]);            \
            }                                                                                                                           \
        }                                                                                                                               \
        _Pragma("GCC unroll 16") for (int r = 0; r < R; r++)                                                                            \
            _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) _mm512_storeu_ps(sums + r * step + v * LANES, sum[r][v]);               \
    }
PRODUCT(16, 1)
PRODUCT(8, 2)
PRODUCT(8, 3)
PRODUCT(4, 4)
#undef PRODUCT

/* The same for all 16 rows. */
static inline void outer(const bf16 *a, const bf16 *b, long apart, float *sums, long step, long pairs, int vectors) {
    switch (vectors) {
    case 1: outer_1(a, b, apart, sums, step, pairs); break;
    case 2: for (int r = 0; r < LANES; r += 8) outer_2(a + 2 * r, b, apart, sums + r * step, step, pairs); break;
    case 3: for (int r = 0; r < LANES; r += 8) outer_3(a + 2 * r, b, apart, sums + r * step, step, pairs); break;
    default: for (int r = 0; r < LANES; r += 4) outer_4(a + 2 * r, b, apart, sums + r * step, step, pairs);
    }
}
