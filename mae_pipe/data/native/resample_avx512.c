/* The passes of a resize with byte products (VNNI) and byte permutations (VBMI): Ice Lake, Zen 4 and later.
 *
 * A weight of 22 bits is three signed digits of base 256; four taps of a byte each are multiplied at once and added up in
 * 32 bits, which gives the same integers as the weights themselves. */
#include "native.h"

#if HAS_X86
#include <immintrin.h>
#include <string.h>

#define HALF (1 << 21)
#define GROUP 16 /* results of one register */

static int groups_of(const Weights *weights) { return (weights->count + GROUP - 1) / GROUP; }

size_t digits_room(const Weights *weights, int along) {
    size_t chunks = (size_t)weights->taps / 4;
    if (!along) return (size_t)weights->count * chunks * 12;
    return (size_t)groups_of(weights) * (64 + chunks * 4 * 64); /* an offset; then digits and places of each chunk */
}

static inline void split(int32_t value, int8_t *first, size_t step) {
    int8_t low = (int8_t)(value & 255);
    value = (value - low) >> 8;
    int8_t middle = (int8_t)(value & 255);
    first[0] = (int8_t)((value - middle) >> 8);
    first[step] = middle;
    first[2 * step] = low;
}

int make_digits(Weights *weights, int along) {
    int chunks = weights->taps / 4;
    int8_t *to = weights->digits;
    if (!along) { /* [result][chunk][digit][tap] */
        for (int i = 0; i < weights->count; i++)
            for (int chunk = 0; chunk < chunks; chunk++, to += 12)
                for (int tap = 0; tap < 4; tap++) split(weights->values[i * weights->taps + 4 * chunk + tap], to + tap, 4);
        return 1;
    }
    for (int group = 0; group < groups_of(weights); group++) { /* [group]: offset, [chunk][digits and place][result][tap] */
        int from = group * GROUP, to_result = from + GROUP < weights->count ? from + GROUP : weights->count;
        int base = weights->start[from], top = 0;
        for (int i = from; i < to_result; i++) {
            if (weights->start[i] < base) base = weights->start[i];
            if (weights->start[i] + weights->taps > top) top = weights->start[i] + weights->taps;
        }
        if (top - base > 64) return 0;
        memset(to, 0, 64);
        int offset = base - weights->first;
        memcpy(to, &offset, sizeof offset);
        to += 64;
        for (int chunk = 0; chunk < chunks; chunk++, to += 256) {
            memset(to, 0, 256);
            for (int i = from; i < to_result; i++)
                for (int tap = 0; tap < 4; tap++) {
                    int8_t *place = to + 4 * (i - from) + tap;
                    split(weights->values[i * weights->taps + 4 * chunk + tap], place, 64);
                    place[192] = (int8_t)(weights->start[i] - base + 4 * chunk + tap);
                }
        }
    }
    return 1;
}

/* The three sums -> results, not yet narrowed. */
AVX512 static inline __attribute__((always_inline)) __m512i combined(__m512i high, __m512i middle, __m512i low) {
    __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high, 16), _mm512_add_epi32(_mm512_slli_epi32(middle, 8), low));
    return _mm512_srai_epi32(sum, 22);
}

AVX512 void along_avx512(const Weights *weights, const uint8_t *in, uint8_t *out) {
    int chunks = weights->taps / 4;
    const int8_t *from = weights->digits;
    for (int i = 0; i < weights->count; i += GROUP) {
        int offset;
        memcpy(&offset, from, sizeof offset);
        from += 64;
        __m512i source = _mm512_loadu_si512(in + offset);
        __m512i high = _mm512_setzero_si512(), middle = high, low = _mm512_set1_epi32(HALF);
        for (int chunk = 0; chunk < chunks; chunk++, from += 256) {
            __m512i taps = _mm512_permutexvar_epi8(_mm512_load_si512(from + 192), source);
            high = _mm512_dpbusd_epi32(high, taps, _mm512_load_si512(from));
            middle = _mm512_dpbusd_epi32(middle, taps, _mm512_load_si512(from + 64));
            low = _mm512_dpbusd_epi32(low, taps, _mm512_load_si512(from + 128));
        }
        __m512i sums = _mm512_max_epi32(combined(high, middle, low), _mm512_setzero_si512());
        __mmask16 left = weights->count - i >= GROUP ? 0xffff : (__mmask16)((1 << (weights->count - i)) - 1);
        _mm512_mask_cvtusepi32_storeu_epi8(out + i, left, sums);
    }
}

AVX512 void down_avx512(const Weights *weights, int result, const uint8_t *in, size_t stride, size_t size, uint8_t *out) {
    int used = weights->used[result], chunks = (used + 3) / 4;
    const int8_t *digits = weights->digits + (size_t)result * (size_t)weights->taps * 3;
    in += (size_t)(weights->start[result] - weights->first) * stride;
    for (size_t x = 0; x < size; x += 64) {
        __mmask64 here = size - x >= 64 ? ~0ull : (1ull << (size - x)) - 1;
        __m512i high[4], middle[4], low[4];
        for (int i = 0; i < 4; i++) high[i] = middle[i] = _mm512_setzero_si512(), low[i] = _mm512_set1_epi32(HALF);
        for (int chunk = 0; chunk < chunks; chunk++) {
            const uint8_t *row = in + (size_t)(4 * chunk) * stride + x;
            __m512i rows[4];
            for (int i = 0; i < 4; i++) /* a row behind the last has no weight and is not read */
                rows[i] = 4 * chunk + i < used ? _mm512_maskz_loadu_epi8(here, row + (size_t)i * stride) : _mm512_setzero_si512();
            __m512i a = _mm512_unpacklo_epi8(rows[0], rows[1]), b = _mm512_unpackhi_epi8(rows[0], rows[1]);
            __m512i c = _mm512_unpacklo_epi8(rows[2], rows[3]), d = _mm512_unpackhi_epi8(rows[2], rows[3]);
            __m512i taps[4] = {_mm512_unpacklo_epi16(a, c), _mm512_unpackhi_epi16(a, c), _mm512_unpacklo_epi16(b, d),
                               _mm512_unpackhi_epi16(b, d)};
            int32_t digit[3];
            memcpy(digit, digits + 12 * chunk, 12);
            for (int i = 0; i < 4; i++) {
                high[i] = _mm512_dpbusd_epi32(high[i], taps[i], _mm512_set1_epi32(digit[0]));
                middle[i] = _mm512_dpbusd_epi32(middle[i], taps[i], _mm512_set1_epi32(digit[1]));
                low[i] = _mm512_dpbusd_epi32(low[i], taps[i], _mm512_set1_epi32(digit[2]));
            }
        }
        for (int i = 0; i < 4; i++) high[i] = combined(high[i], middle[i], low[i]);
        __m512i made = _mm512_packus_epi16(_mm512_packs_epi32(high[0], high[1]), _mm512_packs_epi32(high[2], high[3]));
        _mm512_mask_storeu_epi8(out + x, here, made);
    }
}
#endif
