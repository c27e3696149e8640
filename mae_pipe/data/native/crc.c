/* CRC-32 as zlib's (polynomial 0xEDB88320): eight tables, or carry-less multiplication where the processor has it.
 *
 * Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ" (Intel, 2009). */
#include <pthread.h>
#include <string.h>

#include "native.h"

static uint32_t tables[8][256];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_tables(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
        tables[0][i] = crc;
    }
    for (int t = 1; t < 8; t++)
        for (int i = 0; i < 256; i++) tables[t][i] = tables[t - 1][i] >> 8 ^ tables[0][tables[t - 1][i] & 255];
}

static uint32_t by_tables(uint32_t crc, const uint8_t *data, size_t size) {
    for (; size >= 8; data += 8, size -= 8) {
        crc ^= (uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
        crc = tables[7][crc & 255] ^ tables[6][crc >> 8 & 255] ^ tables[5][crc >> 16 & 255] ^ tables[4][crc >> 24] ^
              tables[3][data[4]] ^ tables[2][data[5]] ^ tables[1][data[6]] ^ tables[0][data[7]];
    }
    while (size--) crc = crc >> 8 ^ tables[0][(crc ^ *data++) & 255];
    return crc;
}

#if HAS_X86
#include <immintrin.h>

#define FOLD(x, k) _mm_xor_si128(_mm_clmulepi64_si128(x, k, 0x00), _mm_clmulepi64_si128(x, k, 0x11))

/* `size` is a multiple of 16, at least 64. */
__attribute__((target("pclmul,sse4.1"))) static uint32_t by_multiplying(uint32_t crc, const uint8_t *data, size_t size) {
    const __m128i k1k2 = _mm_set_epi64x(0x01c6e41596, 0x0154442bd4), k3k4 = _mm_set_epi64x(0x00ccaa009e, 0x01751997d0);
    const __m128i k5 = _mm_set_epi64x(0, 0x0163cd6124), poly = _mm_set_epi64x(0x01f7011641, 0x01db710641);
    const __m128i mask = _mm_setr_epi32(~0, 0, ~0, 0);
    const __m128i *at = (const __m128i *)(const void *)data;
    __m128i x[4];
    for (int i = 0; i < 4; i++) x[i] = _mm_loadu_si128(at++);
    x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128((int)crc));
    for (size -= 64; size >= 64; size -= 64)
        for (int i = 0; i < 4; i++) x[i] = _mm_xor_si128(FOLD(x[i], k1k2), _mm_loadu_si128(at++));
    __m128i y = x[0];
    for (int i = 1; i < 4; i++) y = _mm_xor_si128(FOLD(y, k3k4), x[i]);
    for (; size >= 16; size -= 16) y = _mm_xor_si128(FOLD(y, k3k4), _mm_loadu_si128(at++));
    y = _mm_xor_si128(_mm_srli_si128(y, 8), _mm_clmulepi64_si128(y, k3k4, 0x10));
    y = _mm_xor_si128(_mm_srli_si128(y, 4), _mm_clmulepi64_si128(_mm_and_si128(y, mask), k5, 0x00));
    __m128i z = _mm_clmulepi64_si128(_mm_and_si128(y, mask), poly, 0x10);
    z = _mm_clmulepi64_si128(_mm_and_si128(z, mask), poly, 0x00);
    return (uint32_t)_mm_extract_epi32(_mm_xor_si128(y, z), 1);
}
#endif

uint32_t crc32_of(uint32_t crc, const uint8_t *data, size_t size) {
    pthread_once(&once, make_tables);
    crc = ~crc;
#if HAS_X86
    if (vectors && size >= 64) {
        size_t whole = size / 16 * 16;
        crc = by_multiplying(crc, data, whole);
        data += whole, size -= whole;
    }
#endif
    return ~by_tables(crc, data, size);
}
