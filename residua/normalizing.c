/* Bytes of images to normalised floats, cropped from their padded selves and mirrored on the way: one pass, a look into a table for each value.

   Images are [images, channels, height, width], or with `last` [images, height, width, channels]; the result is laid out as they are. */

#include <stdint.h>
#include <stdlib.h>

/* Where position `at` of a padded line of `size` is in the line; -1 where the padding has a colour of its own. */
static long source(long at, long size, int reflected) {
    if (at >= 0 && at < size) return at;
    if (!reflected) return -1;
    return at < 0 ? -at : 2 * (size - 1) - at;
}

/* y of x: tables [channels, 256]; `outside` [channels] is what padding becomes, NULL where it reflects; top, left [images] count from the padding's corner,
   NULL for no crop; mirrored [images] may be NULL. Returns 0, or 1 if there is no memory. */
int normalize(const uint8_t *restrict x, float *restrict y, const float *restrict tables, const float *outside, const int64_t *top, const int64_t *left,
              const uint8_t *mirrored, long images, long channels, long height, long width, long pad, int last) {
    long size = channels * height * width, from_pixel = last ? channels : 1, from_channel = last ? 1 : height * width;
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        long *columns = malloc(width * sizeof(long));
        failed |= !columns;
#pragma omp for schedule(static)
        for (long n = 0; n < images; n++) {
            if (failed) continue;
            for (long j = 0; j < width; j++)
                columns[j] = source((left ? left[n] - pad : 0) + (mirrored && mirrored[n] ? width - 1 - j : j), width, !outside);
            for (long i = 0; i < height; i++) {
                long row = source((top ? top[n] - pad : 0) + i, height, !outside);
                const uint8_t *from = x + n * size + row * width * from_pixel;
                float *to = y + n * size + i * width * from_pixel;
                if (last && channels == 3 && row >= 0) {
                    for (long j = 0; j < width; j++, to += 3) {
                        const uint8_t *at = from + 3 * columns[j];
                        int here = columns[j] >= 0;
                        to[0] = here ? tables[at[0]] : outside[0];
                        to[1] = here ? tables[256 + at[1]] : outside[1];
                        to[2] = here ? tables[512 + at[2]] : outside[2];
                    }
                    continue;
                }
                for (long c = 0; c < channels; c++) {
                    const float *table = tables + 256 * c;
                    for (long j = 0; j < width; j++)
                        to[c * from_channel + j * from_pixel] =
                            row >= 0 && columns[j] >= 0 ? table[from[c * from_channel + columns[j] * from_pixel]] : outside[c];
                }
            }
        }
        free(columns);
    }
    return failed;
}
