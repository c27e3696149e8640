/* Decodes the blocks of a region of a JPEG, and only those; what lies before them is stepped over, or jumped over by marks. */
#include <stdlib.h>

#include "huffman.h"

/* The entropy-coded bytes of a stretch of the file, without stuffing, and where each restart's begin. */
typedef struct {
    uint8_t *bytes;
    uint32_t *starts; /* in bytes, of each segment between restart markers */
    size_t size, segments;
    int ended; /* whether a marker other than a restart's came */
} Stream;

/* Where the decoder is. */
typedef struct {
    Bits bits;
    int dc[3];
    size_t segment;
    int until_restart;
} State;

static int failed(Scratch *scratch, int how, const char *problem) {
    scratch->problem = problem;
    return how;
}

static int clamped(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

/* Copy [from, end) up to a marker that is not a restart's. `removed`, unless NULL, gets the places in the stream before which
 * a byte was left out, two for a marker. */
static int clean(Scratch *scratch, const uint8_t *from, const uint8_t *end, int first_restart, Stream *stream,
                 uint32_t *removed, size_t *removals) {
    size_t size = (size_t)(end - from), room = scratch->segments.room / sizeof(uint32_t);
    uint8_t *to = stream->bytes = grown(&scratch->stream, size + GUARD);
    if (!to) return failed(scratch, NO_MEMORY, "no memory");
    if (!room) {
        if (!grown(&scratch->segments, 65536)) return failed(scratch, NO_MEMORY, "no memory");
        room = scratch->segments.room / sizeof(uint32_t);
    }
    stream->starts = (uint32_t *)(void *)scratch->segments.bytes;
    stream->starts[0] = 0;
    stream->segments = 1;
    stream->ended = 0;
    int expected = first_restart & 7;
    while (from < end) {
        const uint8_t *mark = memchr(from, 0xff, (size_t)(end - from));
        size_t run = (size_t)((mark ? mark : end) - from);
        memcpy(to, from, run);
        to += run;
        if (!mark || mark + 1 >= end) break;
        int code = mark[1];
        from = mark + 2;
        if (code == 0) {
            *to++ = 0xff;
            if (removed) removed[(*removals)++] = (uint32_t)(to - stream->bytes);
        } else if (code >= 0xd0 && code <= 0xd7) {
            if (code - 0xd0 != expected) return failed(scratch, DAMAGED, "restart markers out of order");
            expected = (expected + 1) & 7;
            if (stream->segments == room) { /* kept while growing */
                uint32_t *more = malloc(2 * room * sizeof *more + SLACK);
                if (!more) return failed(scratch, NO_MEMORY, "no memory");
                memcpy(more, stream->starts, room * sizeof *more);
                free(scratch->segments.bytes);
                scratch->segments.bytes = (uint8_t *)more;
                scratch->segments.room = 2 * room * sizeof *more;
                stream->starts = more;
                room *= 2;
            }
            stream->starts[stream->segments++] = (uint32_t)(to - stream->bytes);
            if (removed) {
                removed[(*removals)++] = (uint32_t)(to - stream->bytes);
                removed[(*removals)++] = (uint32_t)(to - stream->bytes);
            }
        } else if (code == 0xff) {
            from = mark + 1; /* padding before a marker */
            if (removed) removed[(*removals)++] = (uint32_t)(to - stream->bytes);
        } else {
            stream->ended = 1;
            break;
        }
    }
    stream->size = (size_t)(to - stream->bytes);
    memset(to, 0, GUARD);
    return FINE;
}

static void seek(State *state, const Stream *stream, size_t byte, int bit) {
    state->bits.next = stream->bytes + byte;
    state->bits.bits = 0;
    state->bits.count = 0;
    if (bit) {
        refill(&state->bits);
        drop(&state->bits, bit);
    }
}

/* The place of the next bit in the stream. */
static size_t place_of(const State *state, const Stream *stream) {
    return (size_t)(state->bits.next - stream->bytes) * 8 - (size_t)state->bits.count;
}

static int restart(Scratch *scratch, State *state, const Stream *stream, const Jpeg *jpeg) {
    if (++state->segment >= stream->segments) return failed(scratch, DAMAGED, "its data ends too soon");
    if (place_of(state, stream) > (size_t)stream->starts[state->segment] * 8)
        return failed(scratch, DAMAGED, "its data does not fit its restart markers");
    seek(state, stream, stream->starts[state->segment], 0);
    state->dc[0] = state->dc[1] = state->dc[2] = 0;
    state->until_restart = jpeg->restart;
    return FINE;
}

/* What is wanted of a row of MCUs. */
typedef struct {
    int first, last;             /* MCUs [first, last) are kept */
    int16_t *blocks[3];          /* by component: [rows of blocks][blocks across][64] */
    uint8_t *lasts[3];           /* of each block, the last place that is set */
    int blocks_across[3];
} Wanted;

/* Decode MCUs [0, stop) of a row; those that are wanted are kept. */
static inline __attribute__((always_inline)) int row_of_mcus(Scratch *scratch, State *state, const Stream *stream,
                                                             const Jpeg *jpeg, const Wanted *wanted, int stop) {
    const uint8_t *guard = stream->bytes + stream->size + 16;
    int wrong = 0;
    Bits bits = state->bits; /* here, so that it stays in registers */
    for (int mcu = 0; mcu < stop; mcu++) {
        if (jpeg->restart && !state->until_restart--) {
            state->bits = bits;
            int how = restart(scratch, state, stream, jpeg);
            if (how) return how;
            bits = state->bits;
            state->until_restart--;
        }
        int kept = wanted && mcu >= wanted->first && mcu < wanted->last;
        for (int part = 0; part < jpeg->components; part++) {
            int across = part ? 1 : jpeg->across, down = part ? 1 : jpeg->down;
            const Huffman *dc = jpeg->dc[part], *ac = jpeg->ac[part];
            for (int row = 0; row < down; row++)
                for (int column = 0; column < across; column++) {
                    state->dc[part] = (int16_t)(state->dc[part] + next_dc(&bits, dc, &wrong));
                    int last;
                    if (kept) {
                        int place = row * wanted->blocks_across[part] + (mcu - wanted->first) * across + column;
                        int16_t *block = wanted->blocks[part] + 64 * (size_t)place;
                        block[0] = (int16_t)state->dc[part];
                        last = next_ac(&bits, ac, block);
                        wanted->lasts[part][place] = (uint8_t)last;
                    } else {
                        last = next_ac(&bits, ac, NULL);
                    }
                    if (last < 0 || wrong || bits.next > guard)
                        return failed(scratch, DAMAGED, "its data is not what it says");
                }
        }
    }
    state->bits = bits;
    if (place_of(state, stream) > stream->size * 8) return failed(scratch, DAMAGED, "its data ends too soon");
    return FINE;
}

#if HAS_X86
__attribute__((target("bmi2"))) static int mcu_row_bmi2(Scratch *scratch, State *state, const Stream *stream, const Jpeg *jpeg,
                                                        const Wanted *wanted, int stop) {
    return row_of_mcus(scratch, state, stream, jpeg, wanted, stop);
}
#endif

static int mcu_row(Scratch *scratch, State *state, const Stream *stream, const Jpeg *jpeg, const Wanted *wanted, int stop) {
#if HAS_X86
    if (vectors) return mcu_row_bmi2(scratch, state, stream, jpeg, wanted, stop); /* AVX2 comes with it */
#endif
    return row_of_mcus(scratch, state, stream, jpeg, wanted, stop);
}

static void samples(const Jpeg *jpeg, const Wanted *wanted, int part, Plane *plane, int row_of_blocks) {
    int down = part ? 1 : jpeg->down, across = wanted->blocks_across[part];
    for (int row = 0; row < down; row++) {
        const int16_t *block = wanted->blocks[part] + 64 * (size_t)(row * across);
        const uint8_t *last = wanted->lasts[part] + row * across;
        uint8_t *out = plane->data + (size_t)(row_of_blocks + row) * 8 * plane->stride;
        for (int i = 0; i < across; i += 2, block += 128, out += 16) {
            int pair = i + 1 < across;
            if (!last[i] && (!pair || !last[i + 1])) { /* flat: what both passes make of them */
                for (int b = 0; b <= pair; b++) {
                    int value = (int16_t)(block[64 * b] * (int)jpeg->quantiser[part][0]) * 4;
                    value = ((clamped(value, -32768, 32767) + 16) >> 5) + 128;
                    value = clamped(value, 0, 255);
                    for (int y = 0; y < 8; y++) memset(out + y * plane->stride + 8 * b, value, 8);
                }
            } else if (pair) {
                idct_pair(block, jpeg->quantiser[part], out, plane->stride);
            } else {
                idct_one(block, jpeg->quantiser[part], out, plane->stride);
            }
        }
    }
}

static uint64_t mark_place(const uint8_t *mark) {
    uint64_t place = 0;
    for (int i = 4; i >= 0; i--) place = place << 8 | mark[i];
    return place;
}

int jpeg_planes(Scratch *scratch, const Jpeg *jpeg, const uint8_t *data, Box region, const uint8_t *marks, size_t marked,
                Plane planes[3]) {
    /* With chroma halved, interpolation asks for one more sample on each side. */
    int more_x = jpeg->across - 1, more_y = jpeg->down - 1;
    int left = clamped(region.left / 2 * 2 - 2 * more_x, 0, region.left) / jpeg->mcu_width;
    int top = clamped(region.top / 2 * 2 - 2 * more_y, 0, region.top) / jpeg->mcu_height;
    int right = clamped((region.right - 1) / 2 * 2 + 1 + 2 * more_x, 0, jpeg->width - 1) / jpeg->mcu_width + 1;
    int bottom = clamped((region.bottom - 1) / 2 * 2 + 1 + 2 * more_y, 0, jpeg->height - 1) / jpeg->mcu_height + 1;
    Wanted wanted = {.first = left, .last = right};
    size_t blocks = 0, at[3];
    for (int part = 0; part < jpeg->components; part++) {
        int across = part ? 1 : jpeg->across, down = part ? 1 : jpeg->down;
        wanted.blocks_across[part] = (right - left) * across;
        at[part] = blocks;
        blocks += (size_t)wanted.blocks_across[part] * (size_t)down;
        Plane *plane = &planes[part];
        plane->stride = ((size_t)wanted.blocks_across[part] * 8 + 63) / 64 * 64;
        plane->left = left * 8 * across, plane->top = top * 8 * down;
        plane->width = part ? (jpeg->width + jpeg->across - 1) / jpeg->across : jpeg->width;
        plane->height = part ? (jpeg->height + jpeg->down - 1) / jpeg->down : jpeg->height;
        plane->data = grown(&scratch->planes[part], plane->stride * (size_t)((bottom - top) * 8 * down));
        if (!plane->data) return failed(scratch, NO_MEMORY, "no memory");
    }
    int16_t *coefficients = grown(&scratch->coefficients, blocks * 64 * sizeof *coefficients);
    uint8_t *lasts = grown(&scratch->last, blocks);
    if (!coefficients || !lasts) return failed(scratch, NO_MEMORY, "no memory");
    for (int part = 0; part < jpeg->components; part++) {
        wanted.blocks[part] = coefficients + 64 * at[part];
        wanted.lasts[part] = lasts + at[part];
    }
    Stream stream;
    State state = {.until_restart = jpeg->restart};
    int how;
    if (marks && marked != (size_t)jpeg->mcus_y * MARK_BYTES) marks = NULL;
    if (!marks) {
        how = clean(scratch, jpeg->scan, jpeg->end, 0, &stream, NULL, NULL);
        if (how) return how;
        seek(&state, &stream, 0, 0);
        for (int row = 0; row < top; row++)
            if ((how = mcu_row(scratch, &state, &stream, jpeg, NULL, jpeg->mcus_x))) return how;
    }
    for (int row = top; row < bottom; row++) {
        int stop = jpeg->mcus_x;
        if (marks) {
            const uint8_t *mark = marks + (size_t)row * MARK_BYTES;
            uint64_t place = mark_place(mark);
            const uint8_t *from = data + place / 8, *end = jpeg->end;
            if (row + 1 < jpeg->mcus_y) {
                uint64_t next = mark_place(mark + MARK_BYTES);
                if (next < place || next / 8 >= (uint64_t)(jpeg->end - data))
                    return failed(scratch, DAMAGED, "its marks are not its own");
                end = data + next / 8 + 2; /* the byte that both rows share, and its stuffing */
                if (end > jpeg->end) end = jpeg->end;
            }
            if (place / 8 >= (uint64_t)(jpeg->end - data) || from < jpeg->scan || end < from)
                return failed(scratch, DAMAGED, "its marks are not its own");
            int done = jpeg->restart ? (int)((long long)row * jpeg->mcus_x % jpeg->restart) : 0;
            int restarts = jpeg->restart ? (int)((long long)row * jpeg->mcus_x / jpeg->restart) : 0;
            /* A mark stands behind the MCU before it, so in front of a restart marker that is due. */
            if (jpeg->restart && !done && row) done = jpeg->restart, restarts--;
            how = clean(scratch, from, end, restarts, &stream, NULL, NULL);
            if (how) return how;
            state.segment = 0;
            state.until_restart = jpeg->restart - done;
            for (int part = 0; part < 3; part++)
                state.dc[part] = (int16_t)(mark[5 + 2 * part] | mark[6 + 2 * part] << 8);
            seek(&state, &stream, 0, (int)(place % 8));
            stop = right;
        } else if (row == bottom - 1) {
            stop = right;
        }
        memset(coefficients, 0, blocks * 64 * sizeof *coefficients);
        if ((how = mcu_row(scratch, &state, &stream, jpeg, &wanted, stop))) return how;
        for (int part = 0; part < jpeg->components; part++)
            samples(jpeg, &wanted, part, &planes[part], (row - top) * (part ? 1 : jpeg->down));
    }
    return FINE;
}

int jpeg_marks(Scratch *scratch, const Jpeg *jpeg, const uint8_t *data, uint8_t *marks) {
    Stream stream;
    State state = {.until_restart = jpeg->restart};
    size_t size = (size_t)(jpeg->end - jpeg->scan), removals = 0, seen = 0;
    uint32_t *removed = malloc((size + 2) * sizeof *removed);
    if (!removed) return failed(scratch, NO_MEMORY, "no memory");
    int how = clean(scratch, jpeg->scan, jpeg->end, 0, &stream, removed, &removals);
    if (!how) seek(&state, &stream, 0, 0);
    for (int row = 0; row < jpeg->mcus_y && !how; row++, marks += MARK_BYTES) {
        size_t place = place_of(&state, &stream), byte = place / 8;
        while (seen < removals && removed[seen] <= byte) seen++;
        /* At the very end of a segment the place is still in front of the restart marker. */
        size_t skipped = seen;
        if (place % 8 == 0 && jpeg->restart && state.until_restart == 0)
            while (skipped >= 2 && removed[skipped - 1] == byte && removed[skipped - 2] == byte) skipped -= 2;
        uint64_t there = (uint64_t)((size_t)(jpeg->scan - data) + byte + skipped) * 8 + place % 8;
        for (int i = 0; i < 5; i++) marks[i] = (uint8_t)(there >> (8 * i));
        for (int part = 0; part < 3; part++) {
            marks[5 + 2 * part] = (uint8_t)state.dc[part];
            marks[6 + 2 * part] = (uint8_t)((uint16_t)state.dc[part] >> 8);
        }
        how = mcu_row(scratch, &state, &stream, jpeg, NULL, jpeg->mcus_x);
    }
    free(removed);
    return how;
}
