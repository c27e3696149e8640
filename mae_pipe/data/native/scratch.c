/* The memory of a thread, given back when the thread ends. */
#include <pthread.h>
#include <stdlib.h>

#include "native.h"

#define KEPT (16u << 20) /* bytes of a space that are kept for the next image */

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Every space of a thread, in turn. */
static Space *space_of(Scratch *scratch, size_t number) {
    Space *spaces[] = {&scratch->stream,    &scratch->segments,  &scratch->coefficients, &scratch->last,
                       &scratch->planes[0], &scratch->planes[1], &scratch->planes[2],    &scratch->rows,
                       &scratch->passed,    &scratch->ready,     &scratch->across,       &scratch->down,
                       &scratch->line,      &scratch->plane};
    return number < sizeof spaces / sizeof *spaces ? spaces[number] : NULL;
}

static void release(void *pointer) {
    Space *space;
    for (size_t i = 0; (space = space_of(pointer, i)); i++) free(space->bytes);
    free(pointer);
}

void trim(Scratch *scratch) {
    Space *space;
    for (size_t i = 0; scratch && (space = space_of(scratch, i)); i++)
        if (space->room > KEPT) {
            free(space->bytes);
            *space = (Space){NULL, 0};
        }
}

static void make_key(void) { pthread_key_create(&key, release); }

Scratch *scratch_of_thread(void) {
    pthread_once(&once, make_key);
    Scratch *scratch = pthread_getspecific(key);
    if (!scratch) {
        scratch = calloc(1, sizeof *scratch);
        if (scratch && pthread_setspecific(key, scratch)) {
            free(scratch);
            scratch = NULL;
        }
    }
    return scratch;
}

void *grown(Space *space, size_t size) {
    if (space->room < size) {
        size_t room = (size + size / 4 + SLACK + 63) / 64 * 64;
        free(space->bytes);
        space->room = 0;
        space->bytes = aligned_alloc(64, room);
        if (!space->bytes) return NULL;
        space->room = room - SLACK;
    }
    return space->bytes;
}
