/* Antialiased resizing in integers, with the results of Pillow's Resample.c to the last bit. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"

#define POINT 22 /* bits of a weight behind the point; Pillow: 32 - 8 - 2 */
#define HALF (1 << (POINT - 1))

static double bicubic(double x) {
    if (x < 0.0) x = -x;
    if (x < 1.0) return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * -0.5;
    return 0.0;
}

static double bilinear(double x) {
    if (x < 0.0) x = -x;
    return x < 1.0 ? 1.0 - x : 0.0;
}

/* Pillow: precompute_coeffs, normalize_coeffs_8bpc. */
int make_weights(Weights *weights, Space *space, int filter, Stretch of, int resized, int from, int count, int reversed,
                 int along) {
    double scale = (of.end - of.begin) / resized, wide = scale < 1.0 ? 1.0 : scale;
    double reach = (filter == BICUBIC ? 2.0 : 1.0) * wide, narrow = 1.0 / wide;
    int most = 0;
    for (int i = 0; i < count; i++) {
        double centre = of.begin + (from + i + 0.5) * scale, first = centre - reach + 0.5;
        int used = (int)(centre + reach + 0.5) - (int)(first < 0 ? 0 : first);
        if (used > most) most = used;
    }
    int taps = (most + 7) / 8 * 8;
    size_t number = (size_t)count * (size_t)taps;
    weights->count = count, weights->taps = taps, weights->first = of.high, weights->last = 0;
    size_t room = (size_t)taps * sizeof(double) + number * sizeof(int32_t) + 2 * (size_t)count * sizeof(int);
    size_t more = 2 * number * sizeof(int16_t);
#if HAS_X86
    if (vectors == WITH_AVX512) more += digits_room(weights, along) + 64;
#endif
    double *exact = grown(space, room + more + 64);
    if (!exact) return NO_MEMORY;
    weights->values = (int32_t *)(void *)(exact + taps);
    weights->start = (int *)(void *)(weights->values + number);
    weights->used = weights->start + count;
    memset(weights->values, 0, number * sizeof(int32_t));
    for (int i = 0; i < count; i++) {
        double centre = of.begin + (from + i + 0.5) * scale, sum = 0.0;
        int first = (int)(centre - reach + 0.5), last = (int)(centre + reach + 0.5);
        if (first < of.low) first = of.low;
        if (last > of.high) last = of.high;
        int place = reversed ? count - 1 - i : i, used = last - first;
        for (int x = 0; x < used; x++) {
            double at = (x + first - centre + 0.5) * narrow;
            exact[x] = filter == BICUBIC ? bicubic(at) : bilinear(at);
            sum += exact[x];
        }
        int32_t *value = weights->values + (size_t)place * (size_t)taps;
        for (int x = 0; x < used; x++) {
            double share = sum != 0.0 ? exact[x] / sum : exact[x];
            value[x] = (int)(share < 0 ? -0.5 + share * (1 << POINT) : 0.5 + share * (1 << POINT));
        }
        weights->start[place] = first, weights->used[place] = used;
        if (first < weights->first) weights->first = first;
        if (last > weights->last) weights->last = last;
    }
    uint8_t *rest = (uint8_t *)(weights->used + count);
    weights->high = weights->low = NULL;
    weights->digits = NULL;
#if HAS_X86
    if (vectors == WITH_AVX512) {
        weights->digits = (int8_t *)(((uintptr_t)rest + 63) / 64 * 64);
        if (make_digits(weights, along)) return FINE;
        weights->digits = NULL;
    }
#else
    (void)along;
#endif
    weights->high = (int16_t *)(void *)rest;
    weights->low = weights->high + number;
    for (size_t i = 0; i < number; i++) {
        weights->high[i] = (int16_t)(weights->values[i] >> 11);
        weights->low[i] = (int16_t)(weights->values[i] & 2047);
    }
    return FINE;
}

static inline uint8_t clipped(uint32_t sum) {
    int32_t value = (int32_t)sum >> POINT;
    return value < 0 ? 0 : value > 255 ? 255 : (uint8_t)value;
}

static inline __attribute__((always_inline)) void along_from(const Weights *weights, int from, const uint8_t *restrict in,
                                                             uint8_t *restrict out) {
    for (int i = from; i < weights->count; i++) {
        const uint8_t *source = in + weights->start[i] - weights->first;
        const int32_t *value = weights->values + (size_t)i * (size_t)weights->taps;
        uint32_t sum = HALF;
        for (int x = 0; x < weights->used[i]; x++) sum += (uint32_t)(value[x] * source[x]);
        out[i] = clipped(sum);
    }
}

static inline __attribute__((always_inline)) void down_from(const Weights *weights, int result, const uint8_t *restrict in,
                                                            size_t stride, size_t from, size_t size, uint8_t *restrict out) {
    const int32_t *value = weights->values + (size_t)result * (size_t)weights->taps;
    in += (size_t)(weights->start[result] - weights->first) * stride;
    for (size_t x = from; x < size; x++) {
        uint32_t sum = HALF;
        for (int y = 0; y < weights->used[result]; y++) sum += (uint32_t)(value[y] * in[(size_t)y * stride + x]);
        out[x] = clipped(sum);
    }
}

#if HAS_X86
#include <immintrin.h>

/* Partial sums of results i and j, eight taps at a time: each in four lanes of its half. */
AVX2 static inline __attribute__((always_inline)) __m256i two(const Weights *weights, const uint8_t *in, int i, int j) {
    const uint8_t *a = in + weights->start[i] - weights->first, *b = in + weights->start[j] - weights->first;
    size_t taps = (size_t)weights->taps;
    const int16_t *ha = weights->high + (size_t)i * taps, *hb = weights->high + (size_t)j * taps;
    const int16_t *la = weights->low + (size_t)i * taps, *lb = weights->low + (size_t)j * taps;
    __m256i high = _mm256_setzero_si256(), low = high;
    for (size_t x = 0; x < taps; x += 8) {
        __m128i bytes = _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)(a + x)), _mm_loadl_epi64((const __m128i *)(b + x)));
        __m256i pixels = _mm256_cvtepu8_epi16(bytes);
        __m256i h = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(ha + x))),
                                            _mm_loadu_si128((const __m128i *)(hb + x)), 1);
        __m256i l = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(la + x))),
                                            _mm_loadu_si128((const __m128i *)(lb + x)), 1);
        high = _mm256_add_epi32(high, _mm256_madd_epi16(pixels, h));
        low = _mm256_add_epi32(low, _mm256_madd_epi16(pixels, l));
    }
    return _mm256_add_epi32(_mm256_slli_epi32(high, 11), low);
}

AVX2 static int along_avx2(const Weights *weights, const uint8_t *in, uint8_t *out) {
    const __m256i half = _mm256_set1_epi32(HALF);
    int i = 0;
    for (; i + 8 <= weights->count; i += 8) {
        __m256i a = two(weights, in, i, i + 4), b = two(weights, in, i + 1, i + 5);
        __m256i c = two(weights, in, i + 2, i + 6), d = two(weights, in, i + 3, i + 7);
        __m256i sums = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
        sums = _mm256_srai_epi32(_mm256_add_epi32(sums, half), POINT);
        __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        _mm_storel_epi64((__m128i *)(out + i), _mm_packus_epi16(words, words));
    }
    return i;
}

AVX2 static size_t down_avx2(const Weights *weights, int result, const uint8_t *in, size_t stride, size_t size, uint8_t *out) {
    const __m256i half = _mm256_set1_epi32(HALF), zero = _mm256_setzero_si256();
    const int16_t *high = weights->high + (size_t)result * (size_t)weights->taps;
    const int16_t *low = weights->low + (size_t)result * (size_t)weights->taps;
    int used = weights->used[result];
    in += (size_t)(weights->start[result] - weights->first) * stride;
    size_t x = 0;
    for (; x < size; x += 32) {
        __m256i h[4], l[4];
        for (int i = 0; i < 4; i++) h[i] = zero, l[i] = half;
        for (int y = 0; y < used; y += 2) {
            const uint8_t *row = in + (size_t)y * stride + x;
            __m256i a = _mm256_loadu_si256((const __m256i *)row);
            __m256i b = y + 1 < used ? _mm256_loadu_si256((const __m256i *)(row + stride)) : zero;
            int32_t pair;
            memcpy(&pair, high + y, 4); /* the weight behind the last is 0 */
            __m256i kh = _mm256_set1_epi32(pair);
            memcpy(&pair, low + y, 4);
            __m256i kl = _mm256_set1_epi32(pair);
            __m256i first = _mm256_unpacklo_epi8(a, b), second = _mm256_unpackhi_epi8(a, b);
            __m256i parts[4] = {_mm256_unpacklo_epi8(first, zero), _mm256_unpackhi_epi8(first, zero),
                                _mm256_unpacklo_epi8(second, zero), _mm256_unpackhi_epi8(second, zero)};
            for (int i = 0; i < 4; i++) {
                h[i] = _mm256_add_epi32(h[i], _mm256_madd_epi16(parts[i], kh));
                l[i] = _mm256_add_epi32(l[i], _mm256_madd_epi16(parts[i], kl));
            }
        }
        for (int i = 0; i < 4; i++) h[i] = _mm256_srai_epi32(_mm256_add_epi32(_mm256_slli_epi32(h[i], 11), l[i]), POINT);
        __m256i made = _mm256_packus_epi16(_mm256_packs_epi32(h[0], h[1]), _mm256_packs_epi32(h[2], h[3]));
        _mm256_storeu_si256((__m256i *)(out + x), made);
    }
    return x;
}
#endif

void resize_along(const Weights *weights, const uint8_t *in, size_t stride, int bands, uint8_t *out, size_t out_stride) {
    for (int band = 0; band < bands; band++, in += stride, out += out_stride) {
        int done = 0;
#if HAS_X86
        if (weights->digits) {
            along_avx512(weights, in, out);
            continue;
        }
        if (vectors) done = along_avx2(weights, in, out);
#endif
        along_from(weights, done, in, out);
    }
}

void resize_down(const Weights *weights, int result, const uint8_t *in, size_t stride, size_t size, uint8_t *out) {
    size_t done = 0;
#if HAS_X86
    if (weights->digits) {
        down_avx512(weights, result, in, stride, size, out);
        return;
    }
    if (vectors) done = down_avx2(weights, result, in, stride, size, out);
#endif
    if (done < size) down_from(weights, result, in, stride, done, size, out);
}
