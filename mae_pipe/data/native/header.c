/* The header of a JPEG: what libjpeg would take it for, or that it is of a kind that is left to others.
 *
 * Read here are sequential Huffman-coded files of 8 bits with one scan, grey or YCbCr, whose chroma is sampled once or half as
 * often: all but a few of a thousand photos. ITU-T T.81. */
#include "huffman.h"

static int failed(Scratch *scratch, int how, const char *problem) {
    scratch->problem = problem;
    return how;
}

static int number(const uint8_t *bytes) { return bytes[0] << 8 | bytes[1]; }

/* Fills a table unless it holds the same already; 0: the codes contradict each other. */
static int build(Huffman *table, const uint8_t *counts, const uint8_t *symbols, int size, int is_dc) {
    if (table->ready && table->is_dc == is_dc && table->size == size && !memcmp(table->counts, counts, 16) &&
        !memcmp(table->symbols, symbols, (size_t)size))
        return 1;
    table->ready = 0;
    table->is_dc = is_dc;
    table->size = size;
    memcpy(table->counts, counts, 16);
    memcpy(table->symbols, symbols, (size_t)size);
    memset(table->fast, 0, sizeof table->fast);
    uint32_t code = 0;
    int place = 0;
    for (int length = 1; length <= 16; length++) {
        table->offset[length] = place - (int)code;
        for (int i = 0; i < counts[length - 1]; i++, code++, place++) {
            if (code + 1 >= 1u << length) return 0; /* the code of all ones is not to be used */
            if (is_dc && symbols[place] > 11) return 0;
            uint32_t entry = entry_of(symbols[place], length, is_dc);
            for (int j = 0; length <= LOOK && j < 1 << (LOOK - length); j++) table->fast[(code << (LOOK - length)) + (uint32_t)j] = entry;
        }
        table->limit[length] = code << (16 - length);
        code <<= 1;
    }
    table->ready = 1;
    return 1;
}

static int huffman_tables(Scratch *scratch, const uint8_t *at, const uint8_t *end, unsigned *defined) {
    while (at < end) {
        if (end - at < 17) return failed(scratch, DAMAGED, "a Huffman table is cut short");
        int kind = *at >> 4, slot = *at & 15, size = 0;
        for (int i = 1; i <= 16; i++) size += at[i];
        if (kind > 1 || slot > 3 || size > 256 || end - at < 17 + size)
            return failed(scratch, DAMAGED, "a Huffman table is not one");
        if (!build(&scratch->tables[4 * kind + slot], at + 1, at + 17, size, !kind))
            return failed(scratch, DAMAGED, "a Huffman table contradicts itself");
        *defined |= 1u << (4 * kind + slot);
        at += 17 + size;
    }
    return FINE;
}

static int quantisers(Scratch *scratch, const uint8_t *at, const uint8_t *end, uint16_t tables[4][64], unsigned *defined) {
    while (at < end) {
        int wide = *at >> 4, slot = *at & 15, size = 64 << wide;
        if (wide > 1 || slot > 3 || end - at < 1 + size) return failed(scratch, DAMAGED, "a quantiser is cut short");
        for (int i = 0; i < 64; i++)
            tables[slot][natural_order[i]] = (uint16_t)(wide ? number(at + 1 + 2 * i) : at[1 + i]);
        *defined |= 1u << slot;
        at += 1 + size;
    }
    return FINE;
}

/* A frame's sizes and sampling; `ids` and `slots` are its components' names and quantisers. */
static int frame(Scratch *scratch, const uint8_t *at, int length, Jpeg *jpeg, uint8_t ids[3], uint8_t slots[3]) {
    if (length < 9 || length < 6 + 3 * at[5]) return failed(scratch, DAMAGED, "the frame header is cut short");
    if (at[0] != 8 || (at[5] != 1 && at[5] != 3)) return failed(scratch, UNSUPPORTED, "not 8 bits of grey or colour");
    jpeg->height = number(at + 1), jpeg->width = number(at + 3), jpeg->components = at[5];
    if (!jpeg->height || !jpeg->width) return failed(scratch, UNSUPPORTED, "a size that is not known");
    for (int i = 0; i < jpeg->components; i++) {
        const uint8_t *part = at + 6 + 3 * i;
        ids[i] = part[0], slots[i] = part[2];
        if (slots[i] > 3) return failed(scratch, DAMAGED, "a component without a quantiser");
        if (i && part[1] != 0x11) return failed(scratch, UNSUPPORTED, "an unusual sampling");
    }
    int across = at[7] >> 4, down = at[7] & 15;
    if (jpeg->components == 1) across = down = 1; /* alone, a component is not interleaved */
    if (across < 1 || across > 2 || down < 1 || down > 2) return failed(scratch, UNSUPPORTED, "an unusual sampling");
    jpeg->across = across, jpeg->down = down;
    jpeg->mcu_width = 8 * across, jpeg->mcu_height = 8 * down;
    jpeg->mcus_x = (jpeg->width + jpeg->mcu_width - 1) / jpeg->mcu_width;
    jpeg->mcus_y = (jpeg->height + jpeg->mcu_height - 1) / jpeg->mcu_height;
    if (across == 2 && jpeg->width <= 4) return failed(scratch, UNSUPPORTED, "an image too small to interpolate chroma");
    return FINE;
}

/* Whether three components are YCbCr, by libjpeg's rules. */
static int is_ycbcr(const uint8_t ids[3], int jfif, int adobe) {
    if (jfif) return 1;
    if (adobe >= 0) return adobe == 1;
    return !(ids[0] == 'R' && ids[1] == 'G' && ids[2] == 'B');
}

static int begin_scan(Scratch *scratch, const uint8_t *at, int length, Jpeg *jpeg, const uint8_t ids[3], unsigned defined) {
    if (length < 1 || length != 4 + 2 * at[0]) return failed(scratch, DAMAGED, "the scan header is cut short");
    if (at[0] != jpeg->components) return failed(scratch, UNSUPPORTED, "several scans");
    for (int i = 0; i < jpeg->components; i++) {
        const uint8_t *part = at + 1 + 2 * i;
        int dc = part[1] >> 4, ac = part[1] & 15;
        if (part[0] != ids[i]) return failed(scratch, UNSUPPORTED, "components out of order");
        if (dc > 3 || ac > 3 || !(defined >> dc & 1) || !(defined >> (4 + ac) & 1))
            return failed(scratch, DAMAGED, "a scan without its Huffman tables");
        jpeg->dc[i] = &scratch->tables[dc], jpeg->ac[i] = &scratch->tables[4 + ac];
    }
    const uint8_t *rest = at + length - 3;
    if (rest[0] != 0 || rest[1] != 63 || rest[2] != 0) return failed(scratch, UNSUPPORTED, "a partial scan");
    return FINE;
}

int jpeg_header(Scratch *scratch, const uint8_t *data, size_t size, Jpeg *jpeg) {
    const uint8_t *at = data + 2, *end = data + size;
    uint16_t tables[4][64];
    uint8_t ids[3] = {0}, slots[3] = {0};
    unsigned huffman = 0, quantised = 0;
    int jfif = 0, adobe = -1, how;
    memset(jpeg, 0, sizeof *jpeg);
    if (size < 4 || data[0] != 0xff || data[1] != 0xd8) return failed(scratch, UNSUPPORTED, "not a JPEG");
    for (;;) {
        if (end - at < 4) return failed(scratch, DAMAGED, "its header is cut short");
        if (at[0] != 0xff) return failed(scratch, UNSUPPORTED, "stray bytes in its header");
        int marker = at[1], length;
        if (marker == 0xff) {
            at++;
            continue;
        }
        if (marker < 0xc0 || (marker >= 0xd0 && marker <= 0xd9)) return failed(scratch, UNSUPPORTED, "an odd marker");
        length = number(at + 2) - 2;
        at += 4;
        if (length < 0 || length > end - at) return failed(scratch, DAMAGED, "its header is cut short");
        how = FINE;
        if (marker == 0xc0 || marker == 0xc1) {
            if (jpeg->components) return failed(scratch, UNSUPPORTED, "several frames");
            how = frame(scratch, at, length, jpeg, ids, slots);
        } else if (marker == 0xc4) {
            how = huffman_tables(scratch, at, at + length, &huffman);
        } else if (marker >= 0xc2 && marker <= 0xcf) {
            return failed(scratch, UNSUPPORTED, "not a sequential Huffman-coded file");
        } else if (marker == 0xdb) {
            how = quantisers(scratch, at, at + length, tables, &quantised);
        } else if (marker == 0xdd) {
            if (length != 2) return failed(scratch, DAMAGED, "a restart interval of another length");
            jpeg->restart = number(at);
        } else if (marker == 0xe0 && length >= 12 && !memcmp(at, "JFIF", 5)) {
            jfif = 1;
        } else if (marker == 0xee && length >= 12 && !memcmp(at, "Adobe", 5)) {
            adobe = at[11];
        } else if (marker == 0xda) {
            if (!jpeg->components) return failed(scratch, DAMAGED, "a scan before its frame");
            how = begin_scan(scratch, at, length, jpeg, ids, huffman);
            if (how) return how;
            if (jpeg->components == 3 && !is_ycbcr(ids, jfif, adobe)) return failed(scratch, UNSUPPORTED, "not YCbCr");
            for (int i = 0; i < jpeg->components; i++) {
                if (!(quantised >> slots[i] & 1)) return failed(scratch, DAMAGED, "a component without a quantiser");
                memcpy(jpeg->quantiser[i], tables[slots[i]], sizeof tables[0]);
            }
            jpeg->scan = at + length, jpeg->end = end;
            return FINE;
        } else if (marker < 0xdb || (marker > 0xdd && marker < 0xe0)) {
            return failed(scratch, UNSUPPORTED, "an odd marker");
        }
        if (how) return how;
        at += length;
    }
}
