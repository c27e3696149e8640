/* The Python module mae_pipe.data._native; every function lets other threads run while it works. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "native.h"

int vectors = PLAIN;

static int best_vectors(void) {
#if HAS_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("pclmul")) return PLAIN;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni"))
        return WITH_AVX512;
    return WITH_AVX2;
#else
    return PLAIN;
#endif
}

/* None, or raises; False: of a kind that is not read here. */
static PyObject *answer(const Scratch *scratch, int how) {
    if (how == FINE) return Py_NewRef(Py_True);
    if (how == UNSUPPORTED) return Py_NewRef(Py_False);
    if (how == NO_MEMORY) return PyErr_NoMemory();
    PyErr_SetString(PyExc_ValueError, scratch->problem);
    return NULL;
}

/* The cut of a view into `out`, [channels, height, width], or with an axis of several views before these; 0 with an
 * exception where it makes no sense. */
static int complete(Cut *cut, const Py_buffer *out, int several) {
    const Py_ssize_t most = 1 << 16, *shape = out->shape + several;
    if (out->ndim != 3 + several || out->itemsize != 1 || (shape[0] != 1 && shape[0] != 3) || shape[1] < 1 || shape[2] < 1 ||
        shape[1] >= most || shape[2] >= most) {
        PyErr_SetString(PyExc_ValueError, several ? "out must be [views, 1 or 3, height, width] of bytes"
                                                  : "out must be [1 or 3, height, width] of bytes");
        return 0;
    }
    cut->channels = (int)shape[0], cut->height = (int)shape[1], cut->width = (int)shape[2];
    if (cut->resized_width < 1 || cut->resized_height < 1 || cut->resized_width >= most || cut->resized_height >= most ||
        cut->from_x < 0 || cut->from_y < 0 || cut->from_x > cut->resized_width - cut->width ||
        cut->from_y > cut->resized_height - cut->height) {
        PyErr_SetString(PyExc_ValueError, "the view does not lie in the resized image");
        return 0;
    }
    if (cut->filter != BILINEAR && cut->filter != BICUBIC) {
        PyErr_SetString(PyExc_ValueError, "filter must be 0 (bilinear) or 1 (bicubic)");
        return 0;
    }
    return 1;
}

static int writable(PyObject *object, Py_buffer *out) {
    return !PyObject_GetBuffer(object, out, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS);
}

#define CUT "(iiii)(ii)(ii)pip"
#define CUT_PLACES(cut)                                                                                       \
    &(cut).box.left, &(cut).box.top, &(cut).box.right, &(cut).box.bottom, &(cut).resized_width,               \
        &(cut).resized_height, &(cut).from_x, &(cut).from_y, &(cut).mirrored, &(cut).filter, &(cut).tall_first

#define MOST_VIEWS 64

/* Several cuts, one after the other into the views of `out`: 0 with an exception where they make no sense. */
static int complete_all(Cut *cuts, PyObject *list, int *done, const Py_buffer *out) {
    int count = (int)PyTuple_Size(list);
    Py_ssize_t views = out->ndim == 4 ? out->shape[0] : 1;
    for (Py_ssize_t view = 0; view < views; view++) {
        if (*done == count) break;
        Cut *cut = &cuts[*done];
        if (!PyArg_ParseTuple(PyTuple_GetItem(list, *done), "(iiii)(ii)(ii)p", &cut->box.left, &cut->box.top, &cut->box.right,
                              &cut->box.bottom, &cut->resized_width, &cut->resized_height, &cut->from_x, &cut->from_y,
                              &cut->mirrored) ||
            !complete(cut, out, 1))
            return 0;
        cut->out = (uint8_t *)out->buf + (size_t)view * (size_t)(out->len / views);
        *done += 1;
    }
    return 1;
}

/* Of an `out`, [views, channels, height, width], or of a tuple of such, whose sizes may differ. */
static PyObject *py_view_jpeg(PyObject *self, PyObject *args) {
    Py_buffer data, marks = {0}, outs[MOST_VIEWS];
    Cut cuts[MOST_VIEWS];
    PyObject *made = NULL, *object, *list;
    int filter, tall_first, width = 0, height = 0; /* of the whole image; 0: not known */
    (void)self;
    if (!PyArg_ParseTuple(args, "y*z*OO!ip|ii", &data, &marks, &object, &PyTuple_Type, &list, &filter, &tall_first, &width,
                          &height))
        return NULL;
    int count = (int)PyTuple_Size(list), several = PyTuple_Check(object), done = 0, held = 0;
    Py_ssize_t groups = several ? PyTuple_Size(object) : 1, views = 0;
    int sensible = count > 0 && count <= MOST_VIEWS && groups <= count;
    for (int i = 0; sensible && i < count; i++)
        cuts[i].filter = filter, cuts[i].tall_first = tall_first, cuts[i].of_width = width, cuts[i].of_height = height;
    for (Py_ssize_t group = 0; sensible && group < groups; group++) {
        Py_buffer *out = &outs[group];
        sensible = writable(several ? PyTuple_GetItem(object, group) : object, out);
        if (!sensible) break;
        held++, views += out->ndim == 4 ? out->shape[0] : 1;
        sensible = complete_all(cuts, list, &done, out);
    }
    if (!PyErr_Occurred() && (!sensible || views != count)) {
        PyErr_SetString(PyExc_ValueError, "out must have 1 to 64 views, one for each cut");
        sensible = 0;
    }
    if (sensible) {
        Scratch *scratch;
        int how = NO_MEMORY;
        Py_BEGIN_ALLOW_THREADS;
        scratch = scratch_of_thread();
        if (scratch)
            how = view_jpeg(scratch, data.buf, (size_t)data.len, marks.buf, marks.buf ? (size_t)marks.len : 0, cuts, count);
        trim(scratch);
        Py_END_ALLOW_THREADS;
        made = answer(scratch, how);
    }
    PyBuffer_Release(&data);
    if (marks.obj) PyBuffer_Release(&marks);
    while (held) PyBuffer_Release(&outs[--held]);
    return made;
}

/* Of pixels, or of planes where `planar`. */
static PyObject *uncompressed(PyObject *args, int planar) {
    Py_buffer data, out = {0};
    Cut cut;
    int width, height, channels = 3;
    PyObject *made = NULL, *object;
    int read = planar ? PyArg_ParseTuple(args, "y*iiO" CUT, &data, &width, &height, &object, CUT_PLACES(cut))
                      : PyArg_ParseTuple(args, "y*iiiO" CUT, &data, &width, &height, &channels, &object, CUT_PLACES(cut));
    if (!read) return NULL;
    const int most = 1 << 16;
    int sensible = width > 0 && height > 0 && width < most && height < most && (channels == 1 || channels == 3);
    Py_ssize_t wanted = 0, half = 0;
    if (sensible) {
        half = (Py_ssize_t)((width + 1) / 2) * ((height + 1) / 2);
        wanted = (Py_ssize_t)width * height;
        wanted = planar ? wanted + 2 * half : wanted * channels;
    }
    if (!sensible || data.len != wanted) {
        PyErr_SetString(PyExc_ValueError, "the image has another size in bytes");
    } else if (writable(object, &out) && complete(&cut, &out, 0)) {
        Scratch *scratch;
        int how = channels == 3 && cut.channels == 1 ? UNSUPPORTED : NO_MEMORY;
        cut.out = out.buf;
        Py_BEGIN_ALLOW_THREADS;
        scratch = scratch_of_thread();
        if (scratch && how != UNSUPPORTED)
            how = planar ? view_planar(scratch, data.buf, width, height, &cut)
                         : view_pixels(scratch, data.buf, width, height, channels, &cut);
        trim(scratch);
        Py_END_ALLOW_THREADS;
        made = answer(scratch, how);
    }
    PyBuffer_Release(&data);
    if (out.obj) PyBuffer_Release(&out);
    return made;
}

static PyObject *py_view_pixels(PyObject *self, PyObject *args) {
    (void)self;
    return uncompressed(args, 0);
}

static PyObject *py_view_planar(PyObject *self, PyObject *args) {
    (void)self;
    return uncompressed(args, 1);
}

static PyObject *py_marks(PyObject *self, PyObject *argument) {
    Py_buffer data;
    PyObject *made = NULL, *parts = NULL;
    Jpeg jpeg;
    (void)self;
    if (!PyArg_Parse(argument, "y*", &data)) return NULL;
    Scratch *scratch = scratch_of_thread();
    int how = scratch ? jpeg_header(scratch, data.buf, (size_t)data.len, &jpeg) : NO_MEMORY;
    if (how == FINE) {
        parts = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)jpeg.mcus_y * MARK_BYTES);
        if (!parts) {
            PyBuffer_Release(&data);
            return NULL;
        }
        uint8_t *bytes = (uint8_t *)PyBytes_AsString(parts);
        Py_BEGIN_ALLOW_THREADS;
        how = jpeg_marks(scratch, &jpeg, data.buf, bytes);
        trim(scratch);
        Py_END_ALLOW_THREADS;
    }
    if (how == FINE) {
        made = parts;
    } else {
        Py_XDECREF(parts);
        made = how == UNSUPPORTED ? Py_NewRef(Py_None) : answer(scratch, how);
    }
    PyBuffer_Release(&data);
    return made;
}

static PyObject *py_crc32(PyObject *self, PyObject *argument) {
    Py_buffer data;
    uint32_t crc;
    (void)self;
    if (!PyArg_Parse(argument, "y*", &data)) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    crc = crc32_of(0, data.buf, (size_t)data.len);
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(crc);
}

/* What is used from now on: at most the given one of 0 (none), 1 (AVX2) and 2 (AVX-512), and what the processor has. */
static PyObject *py_vectors(PyObject *self, PyObject *argument) {
    (void)self;
    long wanted = PyLong_AsLong(argument);
    if (wanted == -1 && PyErr_Occurred()) return NULL;
    vectors = best_vectors();
    if (wanted < vectors) vectors = wanted < 0 ? PLAIN : (int)wanted;
    return PyLong_FromLong(vectors);
}

static PyMethodDef methods[] = {
    {"view_jpeg", py_view_jpeg, METH_VARARGS, NULL}, {"view_pixels", py_view_pixels, METH_VARARGS, NULL},
    {"view_planar", py_view_planar, METH_VARARGS, NULL},
    {"marks", py_marks, METH_O, NULL},               {"crc32", py_crc32, METH_O, NULL},
    {"vectors", py_vectors, METH_O, NULL},           {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_native", "Decodes, crops and resizes images in C.", -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) {
    vectors = best_vectors();
    return PyModule_Create(&module);
}
