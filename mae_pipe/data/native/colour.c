/* Chroma is interpolated ("fancy upsampling") and colours are made, exactly as libjpeg does both. */
#include <string.h>

#include "native.h"

/* Samples [from, to) of a row of chroma at twice its rate, from sums down a column (or a single row). libjpeg's jdsample.c: h2v1_fancy_upsample, h2v2_fancy_upsample. */
static inline __attribute__((always_inline)) void doubled(const uint16_t *restrict sums, int from, int to, int shift,
                                                          int bias_even, int bias_odd, uint8_t *restrict out) {
    /* The neighbours of both ends are set to the ends themselves, which gives what libjpeg has cases for. */
    for (int i = from; i < to; i++) {
        int here = 3 * sums[i];
        out[2 * (i - from)] = (uint8_t)((here + sums[i - 1] + bias_even) >> shift);
        out[2 * (i - from) + 1] = (uint8_t)((here + sums[i + 1] + bias_odd) >> shift);
    }
}

static inline __attribute__((always_inline)) void sums_of(const uint8_t *restrict near, const uint8_t *restrict far, int count,
                                                          uint16_t *restrict sums) {
    for (int i = 0; i < count; i++) sums[i] = (uint16_t)(3 * near[i] + far[i]);
}

static inline __attribute__((always_inline)) void widened(const uint8_t *restrict in, int count, uint16_t *restrict sums) {
    for (int i = 0; i < count; i++) sums[i] = in[i];
}

static inline __attribute__((always_inline)) void mixed(const uint8_t *restrict near, const uint8_t *restrict far, int count,
                                                        int bias, uint8_t *restrict out) {
    for (int i = 0; i < count; i++) out[i] = (uint8_t)((3 * near[i] + far[i] + bias) >> 2);
}

static inline __attribute__((always_inline)) uint8_t sample(int value) {
    return value < 0 ? 0 : value > 255 ? 255 : (uint8_t)value;
}

/* ITU-R BT.601 in 16 bits behind the point. */
static inline __attribute__((always_inline)) void to_rgb(const uint8_t *restrict y, const uint8_t *restrict cb,
                                                         const uint8_t *restrict cr, int count, uint8_t *restrict red,
                                                         uint8_t *restrict green, uint8_t *restrict blue) {
    for (int i = 0; i < count; i++) {
        int b = cb[i] - 128, r = cr[i] - 128;
        red[i] = sample(y[i] + ((91881 * r + 32768) >> 16));
        green[i] = sample(y[i] + ((-22554 * b - 46802 * r + 32768) >> 16));
        blue[i] = sample(y[i] + ((116130 * b + 32768) >> 16));
    }
}

#if HAS_X86
#include <immintrin.h>

/* The same in 16-bit lanes: 91881 = 65536 + 26345, 46802 = 65536 - 18734, 116130 = 2 * 65536 - 14942. */
AVX2 static int to_rgb_avx2(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, int count, uint8_t *red, uint8_t *green,
                            uint8_t *blue) {
#define BOTH(a, b) _mm256_set1_epi32((int)((uint16_t)(int16_t)(a) | ((uint32_t)(uint16_t)(int16_t)(b) << 16)))
#define TERM(u, v, a, b, more)                                                                                         \
    _mm256_packs_epi32(                                                                                                \
        _mm256_srai_epi32(_mm256_add_epi32(_mm256_madd_epi16(_mm256_unpacklo_epi16(u, v), BOTH(a, b)), more), 16),     \
        _mm256_srai_epi32(_mm256_add_epi32(_mm256_madd_epi16(_mm256_unpackhi_epi16(u, v), BOTH(a, b)), more), 16))
#define STORE(to, v) \
    _mm_storeu_si128((__m128i *)(to), _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi16(v, v), 0xd8)))
    const __m256i middle = _mm256_set1_epi16(128), half = _mm256_set1_epi32(32768), zero = _mm256_setzero_si256();
    int i = 0;
    for (; i + 16 <= count; i += 16) {
        __m256i luma = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(y + i)));
        __m256i b = _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(cb + i))), middle);
        __m256i r = _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(cr + i))), middle);
        __m256i red_ = _mm256_add_epi16(_mm256_add_epi16(luma, r), TERM(r, zero, 26345, 0, half));
        __m256i green_ = _mm256_add_epi16(_mm256_sub_epi16(luma, r), TERM(b, r, -22554, 18734, half));
        __m256i blue_ = _mm256_add_epi16(_mm256_add_epi16(luma, _mm256_add_epi16(b, b)), TERM(b, zero, -14942, 0, half));
        STORE(red + i, red_);
        STORE(green + i, green_);
        STORE(blue + i, blue_);
    }
    return i;
}

AVX2 static void doubled_avx2(const uint16_t *sums, int from, int to, int shift, int bias_even, int bias_odd,
                              uint8_t *out) {
    doubled(sums, from, to, shift, bias_even, bias_odd, out);
}
AVX2 static void sums_avx2(const uint8_t *near, const uint8_t *far, int count, uint16_t *sums) {
    sums_of(near, far, count, sums);
}
AVX2 static void widened_avx2(const uint8_t *in, int count, uint16_t *sums) { widened(in, count, sums); }
AVX2 static void mixed_avx2(const uint8_t *near, const uint8_t *far, int count, int bias, uint8_t *out) {
    mixed(near, far, count, bias, out);
}
#define CHOSEN(name, ...) (vectors ? name##_avx2(__VA_ARGS__) : name##_c(__VA_ARGS__))
#else
#define CHOSEN(name, ...) name##_c(__VA_ARGS__)
#endif

static void doubled_c(const uint16_t *sums, int from, int to, int shift, int bias_even, int bias_odd, uint8_t *out) {
    doubled(sums, from, to, shift, bias_even, bias_odd, out);
}
static void sums_c(const uint8_t *near, const uint8_t *far, int count, uint16_t *sums) { sums_of(near, far, count, sums); }
static void widened_c(const uint8_t *in, int count, uint16_t *sums) { widened(in, count, sums); }
static void mixed_c(const uint8_t *near, const uint8_t *far, int count, int bias, uint8_t *out) {
    mixed(near, far, count, bias, out);
}

/* A row of one chroma component at the rate of luma, x in [left, right); `line` is room for it. */
static const uint8_t *chroma_row(const Jpeg *jpeg, const Plane *plane, int y, int left, int right, uint8_t *line) {
    int row = y / jpeg->down, other = row;
    if (jpeg->down == 2) {
        other = y & 1 ? row + 1 : row - 1;
        if (other < 0) other = 0;
        if (other >= plane->height) other = plane->height - 1;
    }
    const uint8_t *near = plane->data + (size_t)(row - plane->top) * plane->stride;
    const uint8_t *far = plane->data + (size_t)(other - plane->top) * plane->stride;
    if (jpeg->across == 1) {
        near += left - plane->left, far += left - plane->left;
        if (jpeg->down == 1) return near;
        CHOSEN(mixed, near, far, right - left, y & 1 ? 2 : 1, line);
        return line;
    }
    int from = left / 2, to = (right - 1) / 2 + 1;                                 /* samples asked for */
    int first = from ? from - 1 : 0, last = to < plane->width ? to + 1 : plane->width; /* and their neighbours */
    uint16_t *sums = (uint16_t *)(void *)(line + 2 * (size_t)(to - from) + SLACK) + 16; /* behind the row itself */
    uint16_t *at = sums - first;
    if (jpeg->down == 1) {
        CHOSEN(widened, near + first - plane->left, last - first, sums);
        at[first - 1] = at[first], at[last] = at[last - 1];
        CHOSEN(doubled, at, from, to, 2, 1, 2, line);
    } else {
        CHOSEN(sums, near + first - plane->left, far + first - plane->left, last - first, sums);
        at[first - 1] = at[first], at[last] = at[last - 1];
        CHOSEN(doubled, at, from, to, 4, 8, 7, line);
    }
    return line + (left & 1);
}

void colours(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, int count, uint8_t *red, uint8_t *green, uint8_t *blue) {
    int done = 0;
#if HAS_X86
    if (vectors) done = to_rgb_avx2(y, cb, cr, count, red, green, blue);
#endif
    to_rgb(y + done, cb + done, cr + done, count - done, red + done, green + done, blue + done);
}

void colour_row(const Jpeg *jpeg, const Plane planes[3], int y, int left, int right, uint8_t *line, uint8_t *out,
                size_t stride) {
    int count = right - left;
    const uint8_t *luma = planes[0].data + (size_t)(y - planes[0].top) * planes[0].stride + (left - planes[0].left);
    if (jpeg->components == 1) {
        memcpy(out, luma, (size_t)count);
        return;
    }
    size_t half = (size_t)count * 4 + 512; /* of `line`: a row, and its sums in 16 bits */
    const uint8_t *cb = chroma_row(jpeg, &planes[1], y, left, right, line);
    const uint8_t *cr = chroma_row(jpeg, &planes[2], y, left, right, line + half);
    colours(luma, cb, cr, count, out, out + stride, out + 2 * stride);
}
