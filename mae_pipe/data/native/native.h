/* What the parts of the image decoder share: memory of a thread, errors, a JPEG's header, weights of a resize. */
#ifndef MAE_PIPE_NATIVE_H
#define MAE_PIPE_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAS_X86 1 /* vector code is compiled in; whether the processor has it is asked at run time */
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")))
#else
#define HAS_X86 0
#endif

/* What the processor has, or a test allows; set when the module is loaded. */
enum { PLAIN = 0, WITH_AVX2, WITH_AVX512 };
extern int vectors;

enum { FINE = 0, DAMAGED, UNSUPPORTED, NO_MEMORY };

/* Memory that grows and is kept for the next image. */
typedef struct {
    uint8_t *bytes;
    size_t room;
} Space;

#define SLACK 64 /* bytes that vector code may read or write behind the end of a space */

void *grown(Space *space, size_t size); /* NULL: no memory; what it held is lost */

/* ---- entropy coding ---- */
#define LOOK 11 /* bits that one look into a table sees */

typedef struct {
    uint32_t fast[1 << LOOK]; /* huffman.h says what an entry is */
    uint32_t limit[18];       /* by length: the first code, left in 16 bits, that is longer */
    int32_t offset[17];       /* by length: what makes a code a place in symbols */
    uint8_t counts[16], symbols[256];
    int size, is_dc, ready;
} Huffman;

/* ---- a JPEG's header ---- */
typedef struct {
    int width, height, components; /* 1 or 3 */
    int across, down;              /* luma samples for one of chroma: 1 or 2 */
    int restart;                   /* MCUs between markers; 0: none */
    int mcu_width, mcu_height, mcus_x, mcus_y;
    const uint8_t *scan, *end;    /* entropy-coded bytes */
    uint16_t quantiser[3][64];     /* of each component, in the natural order */
    const Huffman *dc[3], *ac[3];
} Jpeg;

/* Where a row of MCUs begins, as stored: the place in the file in bits (5 bytes), then the sums of DC differences so far (of
 * three components, 2 bytes each); little-endian. */
#define MARK_BYTES 11

/* Pixels [left, right) x [top, bottom). */
typedef struct {
    int left, top, right, bottom;
} Box;

/* A component's samples around a region; sample (x, y) is at data[(y - top) * stride + x - left]. */
typedef struct {
    uint8_t *data;
    size_t stride;
    int left, top, width, height; /* width and height of the whole component */
} Plane;

/* All that a thread keeps from image to image. */
typedef struct {
    Huffman tables[8]; /* four of DC, four of AC */
    Space stream, segments, coefficients, last, planes[3], rows, passed, ready, across, down, line, plane;
    const char *problem;
} Scratch;

Scratch *scratch_of_thread(void); /* NULL: no memory */
void trim(Scratch *scratch);      /* give back what an unusually large image took */

int jpeg_header(Scratch *scratch, const uint8_t *data, size_t size, Jpeg *jpeg);
int jpeg_planes(Scratch *scratch, const Jpeg *jpeg, const uint8_t *data, Box region, const uint8_t *marks, size_t marked,
                Plane planes[3]);
int jpeg_marks(Scratch *scratch, const Jpeg *jpeg, const uint8_t *data, uint8_t *marks); /* MARK_BYTES for each row */

/* Inverse DCT of two neighbours of 64 coefficients each: 16 x 8 samples, as libjpeg's "islow". */
void idct_pair(const int16_t *blocks, const uint16_t *quantiser, uint8_t *out, size_t stride);
void idct_one(const int16_t *block, const uint16_t *quantiser, uint8_t *out, size_t stride);

/* One row of pixels, x in [left, right): red, green and blue (or the same grey) in three runs `stride` apart. */
void colour_row(const Jpeg *jpeg, const Plane planes[3], int y, int left, int right, uint8_t *line, uint8_t *out,
                size_t stride);

/* YCbCr -> red, green and blue. */
void colours(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, int count, uint8_t *red, uint8_t *green, uint8_t *blue);

/* ---- resizing, as Pillow does it ---- */
typedef struct {
    int count, taps;     /* results; taps of each, a multiple of 8 */
    int first, last;     /* the sources that are needed: [first, last) */
    int *start;          /* by result: its first source */
    int *used;           /* by result: how many of its taps are not padding */
    int32_t *values;     /* [result][taps], with 22 bits behind the point */
    int16_t *high, *low; /* the same as high * 2048 + low; NULL where digits are used */
    int8_t *digits;      /* the same as signed digits of base 256, as resample_avx512.c wants them; or NULL */
} Weights;

enum { BILINEAR = 0, BICUBIC = 1 };

/* Of samples [low, high) of which [begin, end), which need not be whole, becomes `resized` results; those from `from` on.
 * `along`: for resize_along, else for resize_down. */
typedef struct {
    int low, high;
    double begin, end;
} Stretch;
int make_weights(Weights *weights, Space *space, int filter, Stretch of, int resized, int from, int count, int reversed,
                 int along);

/* [rows][bands * stride] -> [rows][bands * weights.count] along rows, one band after the other. */
void resize_along(const Weights *weights, const uint8_t *in, size_t stride, int bands, uint8_t *out, size_t out_stride);
/* One row of results from rows `stride` apart, the first of them number weights.first; 31 bytes more may be read and written. */
void resize_down(const Weights *weights, int result, const uint8_t *in, size_t stride, size_t size, uint8_t *out);

/* ---- a view of an image ---- */
typedef struct {
    Box box;                        /* of the image: what is resized */
    int resized_width, resized_height;
    int from_x, from_y;             /* where the view begins in what was resized */
    int width, height, channels;    /* of the view */
    int of_width, of_height; /* of the whole image; 0: not known */
    int mirrored, filter;
    int tall_first;                 /* whether tall images are resized down first, as Pillow 13 does */
    uint8_t *out;                   /* [channels][height][width] */
} Cut;

/* `count` views of one decode. */
int view_jpeg(Scratch *scratch, const uint8_t *data, size_t size, const uint8_t *marks, size_t marked, const Cut *cuts,
              int count);
/* Of YCbCr planes, one after the other, those of chroma half as wide and high (rounded up). */
int view_planar(Scratch *scratch, const uint8_t *planes, int width, int height, const Cut *cut);
/* Of [height][width][channels] pixels. */
int view_pixels(Scratch *scratch, const uint8_t *pixels, int width, int height, int channels, const Cut *cut);

#if HAS_X86
/* resample_avx512.c */
size_t digits_room(const Weights *weights, int along);
int make_digits(Weights *weights, int along); /* 0: the sources of neighbours lie too far apart */
void along_avx512(const Weights *weights, const uint8_t *in, uint8_t *out);
void down_avx512(const Weights *weights, int result, const uint8_t *in, size_t stride, size_t size, uint8_t *out);
#endif

uint32_t crc32_of(uint32_t crc, const uint8_t *data, size_t size);

#endif
