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
    int width, height; /* of what is resized */
    Box region; /* what of the image the view depends on */
} Resize;

/* `across` and `down` are of a part of the image that begins at (left, top), as Pillow crops before it resizes. */
static int begin(Scratch *scratch, const Cut *cut, Stretch across, Stretch down, int left, int top, Resize *resize) {
    if (make_weights(&resize->across, &scratch->across, cut->filter, across, cut->resized_width, cut->from_x, cut->width,
                     cut->mirrored, 1) ||
        make_weights(&resize->down, &scratch->down, cut->filter, down, cut->resized_height, cut->from_y, cut->height, 0, 0)) {
        scratch->problem = "no memory";
        return NO_MEMORY;
    }
    resize->width = across.high, resize->height = down.high;
    resize->region = (Box){left + resize->across.first, top + resize->down.first, left + resize->across.last,
                           top + resize->down.last};
    size_t area = (size_t)(resize->region.right - resize->region.left) * (size_t)(resize->region.bottom - resize->region.top);
    if (area > MOST_PIXELS) {
        scratch->problem = "a very large region";
        return UNSUPPORTED;
    }
    return FINE;
}

static int finish(Scratch *scratch, const Cut *cut, const Resize *resize, Rows *rows) {
    const Weights *across = &resize->across, *down = &resize->down;
    const Box *region = &resize->region;
    int bands = rows->bands, width = cut->width, count = region->bottom - region->top;
    size_t columns = (size_t)(region->right - region->left), plane = (size_t)width * (size_t)cut->height;
    size_t stride = (columns + (size_t)across->taps + SLACK + 63) / 64 * 64, whole = stride * (size_t)bands;
    size_t passed_row = (size_t)width * (size_t)bands;
    int shorter = resize->height - cut->resized_height, narrower = resize->width - cut->resized_width;
    int down_first = cut->tall_first && shorter > 0 && shorter > 2 * narrower;
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
        uint8_t *to = cut->out + (size_t)y * (size_t)width;
        if (down_first) {
            resize_down(down, y, lines, whole, whole, ready);
            resize_along(across, ready, stride, bands, to, plane);
        } else {
            resize_down(down, y, passed, passed_row, passed_row, ready);
            for (int band = 0; band < bands; band++) memcpy(to + band * plane, ready + band * width, (size_t)width);
        }
    }
    for (int band = bands; band < cut->channels; band++) memcpy(cut->out + (size_t)band * plane, cut->out, plane); /* grey */
    return FINE;
}

static Stretch whole(int size) { return (Stretch){0, size, 0, size}; }

static int inside(const Cut *cut, int width, int height) {
    const Box *box = &cut->box;
    return box->left >= 0 && box->top >= 0 && box->left < box->right && box->top < box->bottom && box->right <= width &&
           box->bottom <= height;
}

/* What of the image the views depend on, together. */
static Box joined(Box one, Box other) {
    if (other.left < one.left) one.left = other.left;
    if (other.top < one.top) one.top = other.top;
    if (other.right > one.right) one.right = other.right;
    if (other.bottom > one.bottom) one.bottom = other.bottom;
    return one;
}

static int begin_whole(Scratch *scratch, const Cut *cut, Resize *resize) {
    const Box *box = &cut->box;
    return begin(scratch, cut, whole(box->right - box->left), whole(box->bottom - box->top), box->left, box->top, resize);
}

int view_jpeg(Scratch *scratch, const uint8_t *data, size_t size, const uint8_t *marks, size_t marked, const Cut *cuts,
              int count) {
    Jpeg jpeg;
    Resize resize;
    Box region = {0};
    int how = jpeg_header(scratch, data, size, &jpeg);
    if (how) return how;
    for (int i = 0; i < count; i++) {
        if (jpeg.components == 3 && cuts[i].channels == 1) {
            scratch->problem = "colour where grey is wanted";
            return UNSUPPORTED;
        }
        int other = cuts[i].of_width && (cuts[i].of_width != jpeg.width || cuts[i].of_height != jpeg.height);
        if (other || !inside(&cuts[i], jpeg.width, jpeg.height)) {
            scratch->problem = "it has another size";
            return DAMAGED;
        }
        if ((how = begin_whole(scratch, &cuts[i], &resize))) return how;
        region = i ? joined(region, resize.region) : resize.region;
    }
    size_t area = (size_t)(region.right - region.left) * (size_t)(region.bottom - region.top);
    if (area > MOST_PIXELS) {
        scratch->problem = "a very large region";
        return UNSUPPORTED;
    }
    Rows rows = {.jpeg = &jpeg, .bands = jpeg.components};
    if ((how = jpeg_planes(scratch, &jpeg, data, region, marks, marked, rows.planes))) return how;
    for (int i = 0; i < count; i++) {
        if (count > 1 && (how = begin_whole(scratch, &cuts[i], &resize))) return how; /* the weights are the last view's */
        if ((how = finish(scratch, &cuts[i], &resize, &rows))) return how;
    }
    return FINE;
}

int view_pixels(Scratch *scratch, const uint8_t *pixels, int width, int height, int channels, const Cut *cut) {
    Resize resize;
    if (!inside(cut, width, height)) {
        scratch->problem = "it has another size";
        return DAMAGED;
    }
    int how = begin_whole(scratch, cut, &resize);
    if (how) return how;
    Rows rows = {.pixels = pixels, .width = width, .channels = channels, .bands = channels};
    return finish(scratch, cut, &resize, &rows);
}

int view_planar(Scratch *scratch, const uint8_t *planes, int width, int height, const Cut *cut) {
    size_t plane = (size_t)cut->width * (size_t)cut->height;
    const Box *box = &cut->box;
    if (!inside(cut, width, height)) {
        scratch->problem = "it has another size";
        return DAMAGED;
    }
    uint8_t *made = grown(&scratch->plane, 3 * plane);
    if (!made) {
        scratch->problem = "no memory";
        return NO_MEMORY;
    }
    for (int part = 0; part < 3; part++) {
        int each = part ? 2 : 1; /* pixels of a sample */
        Cut its = *cut;
        its.channels = 1, its.out = made + (size_t)part * plane;
        int left = box->left / each, top = box->top / each;
        Stretch across = {0, (box->right + each - 1) / each - left, (double)box->left / each - left,
                          (double)box->right / each - left};
        Stretch down = {0, (box->bottom + each - 1) / each - top, (double)box->top / each - top,
                        (double)box->bottom / each - top};
        Rows rows = {.pixels = planes, .width = (width + each - 1) / each, .channels = 1, .bands = 1};
        Resize resize;
        int how = begin(scratch, &its, across, down, left, top, &resize);
        if (!how) how = finish(scratch, &its, &resize, &rows);
        if (how) return how;
        planes += (size_t)rows.width * (size_t)((height + each - 1) / each);
    }
    colours(made, made + plane, made + 2 * plane, (int)plane, cut->out, cut->out + plane, cut->out + 2 * plane);
    return FINE;
}
