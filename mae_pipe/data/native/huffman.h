/* Reads Huffman codes of a JPEG from bytes whose stuffing is gone.
 *
 * An entry of Huffman.fast stands for the code that the next LOOK bits begin with: in bits 0-7 how many bits it and its value
 * take, 8-15 how many of them are the value's, 16-23 how many zeros come before it, 24-31 the code's own length. 0: the code
 * is longer. All that decides where the next code begins is one look and one shift; values are made beside that. */
#ifndef MAE_PIPE_HUFFMAN_H
#define MAE_PIPE_HUFFMAN_H

#include <string.h>

#include "native.h"

#define END_OF_BLOCK 128 /* as a number of zeros */
#define GUARD 512        /* zero bytes behind a stream: more than what a block of the longest codes takes */

typedef struct {
    const uint8_t *next;
    uint64_t bits; /* from the top; the first `count` are valid */
    int count;
} Bits;

/* The order in which a block's coefficients come. */
static const uint8_t natural_order[64] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

static inline void refill(Bits *bits) {
    uint64_t word;
    memcpy(&word, bits->next, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    bits->bits |= word >> bits->count;
    bits->next += (63 - bits->count) >> 3;
    bits->count |= 56;
}

static inline void drop(Bits *bits, int count) {
    bits->bits <<= count;
    bits->count -= count;
}

static inline uint32_t entry_of(int symbol, int length, int is_dc) {
    int size = is_dc ? symbol : symbol & 15, zeros = is_dc ? 0 : symbol >> 4;
    if (!is_dc && !size && zeros != 15) zeros = END_OF_BLOCK;
    return (uint32_t)length << 24 | (uint32_t)zeros << 16 | (uint32_t)size << 8 | (uint32_t)(length + size);
}

/* The entry that a code of more than LOOK bits would have; 0: there is no such code. */
static __attribute__((noinline)) uint32_t long_code(uint64_t bits, const Huffman *table) {
    uint32_t code = (uint32_t)(bits >> 48);
    for (int length = LOOK + 1; length <= 16; length++)
        if (code < table->limit[length]) {
            int place = (int)(code >> (16 - length)) + table->offset[length];
            return place >= 0 && place < table->size ? entry_of(table->symbols[place], length, table->is_dc) : 0;
        }
    return 0;
}

/* The signed value that an entry says, of the bits before the entry is dropped. */
static inline int value_of(uint64_t bits, uint32_t entry) {
    int size = (entry >> 8) & 0xff;
    int value = (int)(bits << (entry >> 24) >> 1 >> (63 - size)), half = (1 << size) >> 1;
    return value < half ? value - (1 << size) + 1 : value;
}

static inline uint32_t look(const Bits *bits, const Huffman *table) {
    uint32_t entry = table->fast[bits->bits >> (64 - LOOK)];
    return __builtin_expect(entry != 0, 1) ? entry : long_code(bits->bits, table);
}

/* The next DC difference; sets *wrong where there is none. */
static inline __attribute__((always_inline)) int next_dc(Bits *bits, const Huffman *table, int *wrong) {
    refill(bits);
    uint32_t entry = look(bits, table);
    *wrong |= !entry;
    int value = value_of(bits->bits, entry);
    drop(bits, entry & 63);
    return value;
}

/* The AC coefficients of a block, into `block` unless it is NULL. The last place that is set; -1: damage. */
static inline __attribute__((always_inline)) int next_ac(Bits *bits, const Huffman *table, int16_t *block) {
    int place = 1, last = 0;
    for (;;) {
        refill(bits);
        for (int twice = 0; twice < 2; twice++) { /* 56 bits are enough for a code of LOOK bits, and any other */
            uint32_t entry = look(bits, table);
            if (__builtin_expect(!entry, 0)) return -1;
            uint64_t before = bits->bits;
            drop(bits, entry & 63);
            place += (entry >> 16) & 0xff;
            if (place > 63) return place >= END_OF_BLOCK ? last : -1;
            if (block) block[natural_order[place]] = (int16_t)value_of(before, entry);
            last = place;
            if (++place > 63) return last;
            if ((entry >> 24) > LOOK) break;
        }
    }
}

#endif
