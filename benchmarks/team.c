/* The few functions of OpenMP's runtime that the kernels call, on plain threads: gcc's own runtime waits in
   ways that the thread sanitizer does not see, and every result would look like a race to it. */

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define MOST 64

typedef struct {
    void (*body)(void *);
    void *data;
    unsigned count;
    long taken; /* steps of the dynamic loop; a team runs one loop */
} team;

typedef struct {
    team *of;
    unsigned number;
    long start, end, step;
} member;

static _Thread_local member self;

int omp_get_thread_num(void) { return (int)self.number; }
int omp_get_num_threads(void) { return self.of ? (int)self.of->count : 1; }

static void *work(void *given) {
    self = *(member *)given;
    self.of->body(self.of->data);
    return 0;
}

static void run(team *t) {
    pthread_t threads[MOST];
    member members[MOST];
    if (t->count > MOST) t->count = MOST;
    for (unsigned i = 0; i < t->count; i++) {
        members[i] = (member){t, i, 0, 0, 0};
        pthread_create(threads + i, 0, work, members + i);
    }
    for (unsigned i = 0; i < t->count; i++) pthread_join(threads[i], 0);
}

void GOMP_parallel(void (*body)(void *), void *data, unsigned count, unsigned flags) {
    (void)flags;
    team t = {body, data, count, 0};
    run(&t);
}

bool GOMP_loop_nonmonotonic_dynamic_next(long *start, long *end) {
    const long taken = __atomic_fetch_add(&self.of->taken, 1, __ATOMIC_RELAXED);
    *start = self.start + taken * self.step;
    *end = *start + self.step < self.end ? *start + self.step : self.end;
    return *start < self.end;
}

bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long step, long chunk, long *first,
                                          long *last) {
    self.start = start, self.end = end, self.step = step * chunk;
    return GOMP_loop_nonmonotonic_dynamic_next(first, last);
}

void GOMP_loop_end_nowait(void) {}
