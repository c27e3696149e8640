/* The memory of a thread, given back when the thread ends. */
#include <pthread.h>
#include <stdlib.h>

#include "native.h"

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void release(void *pointer) {
    Scratch *scratch = pointer;
    Space *spaces[] = {&scratch->stream,    &scratch->segments,  &scratch->coefficients, &scratch->last,
                       &scratch->planes[0], &scratch->planes[1], &scratch->planes[2],    &scratch->rows,
                       &scratch->passed,    &scratch->ready,     &scratch->across,       &scratch->down,
                       &scratch->line,      &scratch->plane};
    for (size_t i = 0; i < sizeof spaces / sizeof *spaces; i++) free(spaces[i]->bytes);
    free(scratch);
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
