/* The inverse DCT of libjpeg's "islow" (Loeffler, Ligtenberg and Moschytz 1989, 12 multiplications), exactly.
 *
 * The constants have 13 bits behind the point; the first pass, down the columns, keeps 2 bits more than the samples. */
#include "native.h"

#define C0298 2446
#define C0390 3196
#define C0541 4433
#define C0765 6270
#define C0899 7373
#define C1175 9633
#define C1501 12299
#define C1847 15137
#define C1961 16069
#define C2053 16819
#define C2562 20995
#define C3072 25172

static inline void pass(const int32_t in[8], int32_t out[8], int shift) {
    int32_t z1 = (in[2] + in[6]) * C0541, round = 1 << (shift - 1);
    int32_t t2 = z1 - in[6] * C1847, t3 = z1 + in[2] * C0765;
    int32_t t0 = (in[0] + in[4]) * 8192, t1 = (in[0] - in[4]) * 8192;
    int32_t a0 = t0 + t3 + round, a3 = t0 - t3 + round, a1 = t1 + t2 + round, a2 = t1 - t2 + round;
    int32_t o0 = in[7], o1 = in[5], o2 = in[3], o3 = in[1];
    int32_t z5 = (o0 + o2 + o1 + o3) * C1175;
    int32_t z3 = z5 - (o0 + o2) * C1961, z4 = z5 - (o1 + o3) * C0390;
    int32_t y1 = (o0 + o3) * -C0899, y2 = (o1 + o2) * -C2562;
    o0 = o0 * C0298 + y1 + z3;
    o1 = o1 * C2053 + y2 + z4;
    o2 = o2 * C3072 + y2 + z3;
    o3 = o3 * C1501 + y1 + z4;
    out[0] = (a0 + o3) >> shift;
    out[7] = (a0 - o3) >> shift;
    out[1] = (a1 + o2) >> shift;
    out[6] = (a1 - o2) >> shift;
    out[2] = (a2 + o1) >> shift;
    out[5] = (a2 - o1) >> shift;
    out[3] = (a3 + o0) >> shift;
    out[4] = (a3 - o0) >> shift;
}

/* 16 bits, as vector code holds them: damaged files may have larger numbers. */
static inline int32_t narrowed(int32_t value) { return value < -32768 ? -32768 : value > 32767 ? 32767 : value; }

void idct_one(const int16_t *block, const uint16_t *quantiser, uint8_t *out, size_t stride) {
    int32_t between[64], in[8], made[8];
    for (int column = 0; column < 8; column++) {
        for (int i = 0; i < 8; i++) in[i] = (int16_t)(block[8 * i + column] * (int32_t)quantiser[8 * i + column]);
        pass(in, made, 11);
        for (int i = 0; i < 8; i++) between[8 * i + column] = narrowed(made[i]);
    }
    for (int row = 0; row < 8; row++) {
        pass(between + 8 * row, made, 18);
        for (int i = 0; i < 8; i++) {
            int32_t sample = made[i] + 128;
            out[row * stride + i] = sample < 0 ? 0 : sample > 255 ? 255 : (uint8_t)sample;
        }
    }
}

#if HAS_X86
#include <immintrin.h>

/* x, y interleaved in pairs -> x * a + y * b, in 32 bits. */
#define PAIR(a, b) _mm256_set1_epi32((int)((uint16_t)(int16_t)(a) | ((uint32_t)(uint16_t)(int16_t)(b) << 16)))
#define MUL(v, a, b) _mm256_madd_epi16(v, PAIR(a, b))
#define ADD _mm256_add_epi32
#define SUB _mm256_sub_epi32
#define LOW _mm256_unpacklo_epi16
#define HIGH _mm256_unpackhi_epi16

/* Half of a pass: the columns that `part` (LOW or HIGH) takes of each block. */
#define HALF(part, made)                                                                                   \
    do {                                                                                                   \
        __m256i z = part(x[2], x[6]), zero = _mm256_setzero_si256();                                       \
        __m256i t2 = MUL(z, C0541, C0541 - C1847), t3 = MUL(z, C0541 + C0765, C0541);                      \
        __m256i t0 = ADD(_mm256_srai_epi32(part(zero, _mm256_add_epi16(x[0], x[4])), 3), round);           \
        __m256i t1 = ADD(_mm256_srai_epi32(part(zero, _mm256_sub_epi16(x[0], x[4])), 3), round);           \
        __m256i a0 = ADD(t0, t3), a3 = SUB(t0, t3), a1 = ADD(t1, t2), a2 = SUB(t1, t2);                    \
        __m256i s = part(_mm256_add_epi16(x[7], x[3]), _mm256_add_epi16(x[5], x[1]));                      \
        __m256i z3 = MUL(s, C1175 - C1961, C1175), z4 = MUL(s, C1175, C1175 - C0390);                      \
        __m256i p = part(x[7], x[1]), q = part(x[5], x[3]);                                                \
        __m256i o0 = ADD(MUL(p, C0298 - C0899, -C0899), z3), o3 = ADD(MUL(p, -C0899, C1501 - C0899), z4);  \
        __m256i o1 = ADD(MUL(q, C2053 - C2562, -C2562), z4), o2 = ADD(MUL(q, -C2562, C3072 - C2562), z3);  \
        made[0] = _mm256_srai_epi32(ADD(a0, o3), shift), made[7] = _mm256_srai_epi32(SUB(a0, o3), shift);  \
        made[1] = _mm256_srai_epi32(ADD(a1, o2), shift), made[6] = _mm256_srai_epi32(SUB(a1, o2), shift);  \
        made[2] = _mm256_srai_epi32(ADD(a2, o1), shift), made[5] = _mm256_srai_epi32(SUB(a2, o1), shift);  \
        made[3] = _mm256_srai_epi32(ADD(a3, o0), shift), made[4] = _mm256_srai_epi32(SUB(a3, o0), shift);  \
    } while (0)

AVX2 static inline __attribute__((always_inline)) void pass_pair(__m256i x[8], const int shift) {
    const __m256i round = _mm256_set1_epi32(1 << (shift - 1));
    __m256i left[8], right[8];
    HALF(LOW, left);
    HALF(HIGH, right);
    for (int i = 0; i < 8; i++) x[i] = _mm256_packs_epi32(left[i], right[i]);
}

AVX2 static inline __attribute__((always_inline)) void transpose(__m256i x[8]) {
    __m256i a[8], b[8];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = LOW(x[2 * i], x[2 * i + 1]);
        a[2 * i + 1] = HIGH(x[2 * i], x[2 * i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm256_unpacklo_epi32(a[i + j], a[i + j + 2]);
            b[i + 2 * j + 1] = _mm256_unpackhi_epi32(a[i + j], a[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) {
        x[2 * i] = _mm256_unpacklo_epi64(b[i], b[i + 4]);
        x[2 * i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 4]);
    }
}

AVX2 static void idct_pair_avx2(const int16_t *blocks, const uint16_t *quantiser, uint8_t *out, size_t stride) {
    __m256i x[8];
    for (int i = 0; i < 8; i++) {
        __m128i scale = _mm_loadu_si128((const __m128i *)(quantiser + 8 * i));
        __m128i first = _mm_mullo_epi16(_mm_loadu_si128((const __m128i *)(blocks + 8 * i)), scale);
        __m128i second = _mm_mullo_epi16(_mm_loadu_si128((const __m128i *)(blocks + 64 + 8 * i)), scale);
        x[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
    }
    pass_pair(x, 11);
    transpose(x);
    pass_pair(x, 18);
    transpose(x);
    const __m256i middle = _mm256_set1_epi8((char)128);
    for (int i = 0; i < 8; i += 2) {
        __m256i rows = _mm256_add_epi8(_mm256_packs_epi16(x[i], x[i + 1]), middle);
        rows = _mm256_permute4x64_epi64(rows, 0xd8); /* the two blocks' parts of a row side by side */
        _mm_storeu_si128((__m128i *)(out + i * stride), _mm256_castsi256_si128(rows));
        _mm_storeu_si128((__m128i *)(out + (i + 1) * stride), _mm256_extracti128_si256(rows, 1));
    }
}
#endif

void idct_pair(const int16_t *blocks, const uint16_t *quantiser, uint8_t *out, size_t stride) {
#if HAS_X86
    if (vectors) {
        idct_pair_avx2(blocks, quantiser, out, stride);
        return;
    }
#endif
    idct_one(blocks, quantiser, out, stride);
    idct_one(blocks + 64, quantiser, out + 8, stride);
}
