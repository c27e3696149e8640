/* A view: the part of an image that is wanted, resized, in planes. */
#include <string.h>

#include "native.h"

#define MOST_PIXELS 64000000 /* of a region; larger ones are left to others */

/* Where rows of pixels come from. */
typedef struct {
    const Jpeg *jpeg; /* or NULL: from pixels */
    Plane planes[3];
    const uint8_t *pixels;
    int width, channels, bands;
    uint8_t *line;
} Rows;

/* Row y, x in [left, right), as bands `stride` apart. */
static void row_of(const Rows *rows, int y, int left, int right, uint8_t *out, size_t stride) {
    if (rows->jpeg) {
        colour_row(rows->jpeg, rows->planes, y, left, right, rows->line, out, stride);
        return;
    }
    const uint8_t *in = rows->pixels + ((size_t)y * (size_t)rows->width + (size_t)left) * (size_t)rows->channels;
    if (rows->channels == 1) {
        memcpy(out, in, (size_t)(right - left));
        return;
    }
    uint8_t *restrict red = out, *restrict green = out + stride, *restrict blue = out + 2 * stride;
    for (int x = 0; x < right - left; x++) red[x] = in[3 * x], green[x] = in[3 * x + 1], blue[x] = in[3 * x + 2];
}

typedef struct {
    Weights across, down;
    Box region; /* what of the image the view depends on */
} Resize;

static int begin(Scratch *scratch, const Cut *cut, Resize *resize) {
    int width = cut->box.right - cut->box.left, height = cut->box.bottom - cut->box.top;
    if (make_weights(&resize->across, &scratch->across, cut->filter, width, cut->resized_width, cut->from_x, cut->width,
                     cut->mirrored, 1) ||
        make_weights(&resize->down, &scratch->down, cut->filter, height, cut->resized_height, cut->from_y, cut->height, 0,
                     0)) {
        scratch->problem = "no memory";
        return NO_MEMORY;
    }
    resize->region = (Box){cut->box.left + resize->across.first, cut->box.top + resize->down.first,
                           cut->box.left + resize->across.last, cut->box.top + resize->down.last};
    size_t area = (size_t)(resize->region.right - resize->region.left) * (size_t)(resize->region.bottom - resize->region.top);
    if (area > MOST_PIXELS) {
        scratch->problem = "a very large region";
        return UNSUPPORTED;
    }
    return FINE;
}

static int finish(Scratch *scratch, const Cut *cut, const Resize *resize, Rows *rows, uint8_t *out) {
    const Weights *across = &resize->across, *down = &resize->down;
    const Box *region = &resize->region;
    int bands = rows->bands, width = cut->width, count = region->bottom - region->top;
    int in_width = cut->box.right - cut->box.left, in_height = cut->box.bottom - cut->box.top;
    size_t columns = (size_t)(region->right - region->left), plane = (size_t)width * (size_t)cut->height;
    size_t stride = (columns + (size_t)across->taps + SLACK + 63) / 64 * 64, whole = stride * (size_t)bands;
    size_t passed_row = (size_t)width * (size_t)bands;
    int tall = in_height > cut->resized_height && in_height - cut->resized_height > 2 * (in_width - cut->resized_width);
    int down_first = cut->tall_first && tall;
    uint8_t *lines = grown(&scratch->rows, down_first ? whole * (size_t)count + SLACK : whole + SLACK);
    uint8_t *passed = grown(&scratch->passed, passed_row * (size_t)(down_first ? 1 : count) + SLACK);
    uint8_t *ready = grown(&scratch->ready, (down_first ? whole : passed_row) + SLACK);
    rows->line = grown(&scratch->line, 8 * columns + 2048);
    if (!lines || !passed || !ready || !rows->line) {
        scratch->problem = "no memory";
        return NO_MEMORY;
    }
    for (int y = 0; y < count; y++) {
        uint8_t *line = down_first ? lines + (size_t)y * whole : lines;
        row_of(rows, region->top + y, region->left, region->right, line, stride);
        if (!down_first) resize_along(across, line, stride, bands, passed + (size_t)y * passed_row, (size_t)width);
    }
    for (int y = 0; y < cut->height; y++) {
        uint8_t *to = out + (size_t)y * (size_t)width;
        if (down_first) {
            resize_down(down, y, lines, whole, whole, ready);
            resize_along(across, ready, stride, bands, to, plane);
        } else {
            resize_down(down, y, passed, passed_row, passed_row, ready);
            for (int band = 0; band < bands; band++) memcpy(to + band * plane, ready + band * width, (size_t)width);
        }
    }
    for (int band = bands; band < cut->channels; band++) memcpy(out + (size_t)band * plane, out, plane); /* grey */
    return FINE;
}

static int inside(const Cut *cut, int width, int height) {
    const Box *box = &cut->box;
    return box->left >= 0 && box->top >= 0 && box->left < box->right && box->top < box->bottom && box->right <= width &&
           box->bottom <= height;
}

int view_jpeg(Scratch *scratch, const uint8_t *data, size_t size, const uint8_t *marks, size_t marked, const Cut *cut,
              uint8_t *out) {
    Jpeg jpeg;
    Resize resize;
    int how = jpeg_header(scratch, data, size, &jpeg);
    if (how) return how;
    if (!inside(cut, jpeg.width, jpeg.height)) {
        scratch->problem = "it has another size";
        return DAMAGED;
    }
    if (jpeg.components == 3 && cut->channels == 1) {
        scratch->problem = "colour where grey is wanted";
        return UNSUPPORTED;
    }
    if ((how = begin(scratch, cut, &resize))) return how;
    Rows rows = {.jpeg = &jpeg, .bands = jpeg.components};
    if ((how = jpeg_planes(scratch, &jpeg, data, resize.region, marks, marked, rows.planes))) return how;
    return finish(scratch, cut, &resize, &rows, out);
}

int view_pixels(Scratch *scratch, const uint8_t *pixels, int width, int height, int channels, const Cut *cut, uint8_t *out) {
    Resize resize;
    if (!inside(cut, width, height)) {
        scratch->problem = "it has another size";
        return DAMAGED;
    }
    int how = begin(scratch, cut, &resize);
    if (how) return how;
    Rows rows = {.pixels = pixels, .width = width, .channels = channels, .bands = channels};
    return finish(scratch, cut, &resize, &rows, out);
}
