/* A thread pool for short parallel phases: one fork, a barrier between phases, one join (see runtime.h).
 *
 * A phase ends when its *tasks* are done, not when its threads have arrived. A worker that sleeps, or that the system
 * has taken off its CPU, therefore holds nobody up unless it is in the middle of a task, and the caller alone can always
 * finish a run (also in a forked child, where there are no workers). Whoever finishes the last task of a phase opens
 * the next one, after running the serial phases in between.
 *
 * Claiming. Each thread has a lane: a contiguous range of the phase's tasks, and the number of them that are left. A
 * thread takes the tasks of its own lane, so that it meets the data that it wrote one phase earlier in its own cache, then
 * those left in others'. Only who has claimed a task reads the description of the phase: until that task is reported as
 * done the phase stays open and nobody changes it. The opener itself counts as one more unfinished task, so that a phase
 * cannot end, and the next begin, before all its lanes are written.
 *
 * Waiting. A short spin, then sleep (futex on Linux, mutex and condition elsewhere). `state` is written before
 * `sleepers` is read, and a thread that goes to sleep does it the other way round, all sequentially consistent; one of
 * the two sees the other, and no wake-up is lost.
 */
#define _GNU_SOURCE
#include "runtime.h"

#include <stdatomic.h>
#include <stdlib.h>

#if !defined(_WIN32)
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__) && !defined(TW_NO_FUTEX)
#define TW_FUTEX 1
#include <linux/futex.h>
#include <sys/syscall.h>
#endif
#endif

/* Where another thread may come in between: the tests put delays here, to see orders of events that are rare. */
#ifndef TW_BETWEEN
#define TW_BETWEEN()
#endif

/* --- floating-point settings --- */

#if defined(__SSE__)
static uint64_t float_control(void) { return __builtin_ia32_stmxcsr(); }
static void set_float_control(uint64_t control) { __builtin_ia32_ldmxcsr((uint32_t)control); }
#define FLOAT_CONTROL 0x1f80 /* round to nearest, keep subnormal numbers, exceptions masked */
#elif defined(__aarch64__)
static uint64_t float_control(void) {
    uint64_t control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    return control;
}
static void set_float_control(uint64_t control) { __asm__ volatile("msr fpcr, %0" : : "r"(control)); }
#define FLOAT_CONTROL 0
#else /* a processor whose settings this file does not know; the default is right unless somebody changed it */
static uint64_t float_control(void) { return 0; }
static void set_float_control(uint64_t control) { (void)control; }
#define FLOAT_CONTROL 0
#endif

/* --- without threads --- */

static int32_t code_of(volatile int32_t *error) { return error ? *error : 0; }

static void run_tasks(const tw_phase *phase, void *context, int32_t thread) {
    for (int64_t index = 0; index < phase->tasks; index++) {
        phase->task(context, index, thread);
    }
}

static void run_alone(const tw_phase *phases, int32_t count, void *context, volatile int32_t *error) {
    for (int32_t p = 0; p < count && code_of(error) == 0; p++) {
        run_tasks(&phases[p], context, 0);
    }
}

#if defined(_WIN32)

/* No threads on Windows yet: every run takes place in its caller. */
struct tw_pool {
    int32_t threads;
};

tw_pool *tw_pool_create(int32_t threads) {
    tw_pool *pool = malloc(sizeof(tw_pool));
    (void)threads;
    if (pool != NULL) {
        pool->threads = 1;
    }
    return pool;
}

void tw_pool_stop(tw_pool *pool) { (void)pool; }

void tw_pool_destroy(tw_pool *pool) { free(pool); }

static void run_phases(
    tw_pool *pool, const tw_phase *phases, int32_t count, void *context, volatile int32_t *error) {
    (void)pool;
    run_alone(phases, count, context, error);
}

#else

/* --- sleeping and waking --- */

#define CACHE_LINE 64

typedef struct {
    _Atomic uint32_t signal; /* raised by every wake-up */
    _Atomic int32_t sleepers;
#if !defined(TW_FUTEX)
    pthread_mutex_t mutex;
    pthread_cond_t condition;
#endif
} event;

#if defined(TW_FUTEX)

static void event_create(event *e) { (void)e; }
static void event_destroy(event *e) { (void)e; }

/* Returns when the signal is no longer `seen`, or earlier. */
static void event_sleep(event *e, uint32_t seen) {
    syscall(SYS_futex, &e->signal, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void event_wake(event *e, int32_t most) {
    atomic_fetch_add(&e->signal, 1);
    syscall(SYS_futex, &e->signal, FUTEX_WAKE_PRIVATE, most, NULL, NULL, 0);
}

#else

static void event_create(event *e) {
    pthread_mutex_init(&e->mutex, NULL);
    pthread_cond_init(&e->condition, NULL);
}

static void event_destroy(event *e) {
    pthread_cond_destroy(&e->condition);
    pthread_mutex_destroy(&e->mutex);
}

static void event_sleep(event *e, uint32_t seen) {
    pthread_mutex_lock(&e->mutex);
    while (atomic_load(&e->signal) == seen) {
        pthread_cond_wait(&e->condition, &e->mutex);
    }
    pthread_mutex_unlock(&e->mutex);
}

static void event_wake(event *e, int32_t most) {
    pthread_mutex_lock(&e->mutex);
    atomic_fetch_add(&e->signal, 1);
    (void)most; /* all of them: with one signal per waiter a thread that comes late could take another's */
    pthread_cond_broadcast(&e->condition);
    pthread_mutex_unlock(&e->mutex);
}

#endif

/* --- the pool --- */

#define STACK_BYTES (8 << 20) /* also where the system's default is small (macOS: 512 KB) */
#ifndef SPIN_NANOSECONDS
#define SPIN_NANOSECONDS 40000
#define CROWDED_SPIN_NANOSECONDS 1000 /* more threads than CPUs: a spinning thread takes the place of a working one */
#endif

typedef struct {
    _Alignas(CACHE_LINE) _Atomic int64_t left; /* tasks not claimed; below 0 when several came for the last */
    int64_t end;                               /* index after the lane's last task */
} lane;

typedef struct {
    tw_pool *pool;
    pthread_t handle;
    int32_t thread;
} worker;

struct tw_pool {
    int32_t threads; /* workers + 1 */
    int32_t workers; /* not joined yet */
    int64_t spin_nanoseconds;
    pid_t process;
    lane *lanes;
    worker *crew; /* [threads - 1] */

    /* What a thread needs to take part in a phase, in one cache line. The plain fields describe the run and its open
     * phase: they are read and written by the opener and by holders of a task only. */
    _Alignas(CACHE_LINE) _Atomic uint64_t state; /* generation << 1 | a phase is open; written last by the opener */
    _Atomic int32_t stop;
    int32_t position;
    const tw_phase *phases;
    void *context;
    volatile int32_t *error;
    uint64_t generation;
    int32_t count;

    _Alignas(CACHE_LINE) _Atomic int64_t unfinished; /* tasks of the open phase, and its opener */
    _Alignas(CACHE_LINE) event idle; /* workers sleep here */
    _Alignas(CACHE_LINE) event join; /* the caller of tw_run sleeps here */
    _Alignas(CACHE_LINE) _Atomic int32_t busy;
};

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* yield is a no-op on most cores */
#endif
}

/* Waits until the state is no longer `seen`, or the pool stops: spins for a while, then sleeps. */
static void wait_for_change(tw_pool *pool, event *e, uint64_t seen) {
    int64_t deadline = now() + pool->spin_nanoseconds;
    do {
        for (int i = 0; i < 16; i++) {
            if (atomic_load_explicit(&pool->state, memory_order_acquire) != seen ||
                atomic_load_explicit(&pool->stop, memory_order_relaxed)) {
                return;
            }
            pause_briefly();
        }
    } while (now() < deadline);

    uint32_t signal = atomic_load(&e->signal);
    TW_BETWEEN();
    atomic_fetch_add(&e->sleepers, 1);
    if (atomic_load(&pool->state) == seen && !atomic_load(&pool->stop)) {
        TW_BETWEEN();
        event_sleep(e, signal);
    }
    atomic_fetch_sub(&e->sleepers, 1);
}

static void wake_sleepers(event *e, int32_t most) {
    TW_BETWEEN();
    if (most > 0 && atomic_load(&e->sleepers) > 0) {
        TW_BETWEEN();
        event_wake(e, most);
    }
}

static void open_phase(tw_pool *pool, const tw_phase *phase) {
    int64_t threads = pool->threads, tasks = phase->tasks;
    pool->generation++;
    atomic_store_explicit(&pool->unfinished, tasks + 1, memory_order_relaxed); /* 1: the opener */
    int64_t begin = 0;
    for (int64_t thread = 0; thread < threads; thread++) {
        /* tasks * (thread + 1) / threads, without overflow; rounded up, so that the caller's lane is never empty. */
        int64_t end = tasks / threads * (thread + 1) + (tasks % threads * (thread + 1) + threads - 1) / threads;
        lane *own = &pool->lanes[thread];
        own->end = end;
        atomic_store_explicit(&own->left, end - begin, memory_order_release);
        TW_BETWEEN();
        begin = end;
    }
    atomic_store(&pool->state, pool->generation << 1 | 1);
    wake_sleepers(&pool->join, 1);
    wake_sleepers(&pool->idle, (int32_t)(tasks < threads ? tasks - 1 : threads - 1));
}

/* Goes on to the next parallel phase (result 1), or ends the run (0). Called by one thread at a time: the caller at the
 * start, then the thread that has finished a phase's last task. */
static int advance(tw_pool *pool, int32_t thread) {
    while (++pool->position < pool->count && code_of(pool->error) == 0) {
        const tw_phase *phase = &pool->phases[pool->position];
        if (phase->tasks > 1 && !phase->serial) {
            open_phase(pool, phase);
            return 1;
        }
        run_tasks(phase, pool->context, thread);
    }
    TW_BETWEEN();
    atomic_store(&pool->state, pool->generation << 1);
    wake_sleepers(&pool->join, 1);
    return 0;
}

/* The next task of a lane, or -1. */
static int64_t claim(lane *own) {
    if (atomic_load_explicit(&own->left, memory_order_relaxed) <= 0) {
        return -1;
    }
    TW_BETWEEN();
    int64_t left = atomic_fetch_sub_explicit(&own->left, 1, memory_order_acquire);
    return left > 0 ? own->end - left : -1;
}

/* Runs what can be claimed and returns the number of tasks; all are of one phase, which the first of them keeps open. */
static int64_t run_claimed(tw_pool *pool, int32_t thread) {
    int64_t done = 0;
    for (int32_t i = 0; i < pool->threads; i++) {
        int32_t owner = thread + i < pool->threads ? thread + i : thread + i - pool->threads;
        for (int64_t task = claim(&pool->lanes[owner]); task >= 0; task = claim(&pool->lanes[owner])) {
            pool->phases[pool->position].task(pool->context, task, thread);
            done++;
        }
    }
    return done;
}

/* Takes part in the open phase, and while this thread is the one that completes a phase, opens the next and goes on.
 * is_opener: 1 if this thread has opened the phase that is open now. */
static void work(tw_pool *pool, int32_t thread, int is_opener) {
    for (;;) {
        int64_t done = run_claimed(pool, thread) + is_opener;
        TW_BETWEEN();
        if (done == 0 || atomic_fetch_sub_explicit(&pool->unfinished, done, memory_order_acq_rel) != done ||
            !advance(pool, thread)) {
            return;
        }
        is_opener = 1;
    }
}

static void *worker_main(void *argument) {
    const worker *self = argument;
    tw_pool *pool = self->pool;
    set_float_control(FLOAT_CONTROL);
    uint64_t state = 0;
    while (!atomic_load(&pool->stop)) {
        uint64_t found = atomic_load_explicit(&pool->state, memory_order_acquire);
        if (found == state) {
            wait_for_change(pool, &pool->idle, state);
        } else {
            state = found;
            if (found & 1) {
                work(pool, self->thread, 0);
            }
        }
    }
    return NULL;
}

static void run_phases(
    tw_pool *pool, const tw_phase *phases, int32_t count, void *context, volatile int32_t *error) {
    if (atomic_exchange_explicit(&pool->busy, 1, memory_order_acquire)) {
        run_alone(phases, count, context, error);
        return;
    }
    pool->phases = phases;
    pool->count = count;
    pool->position = -1;
    pool->context = context;
    pool->error = error;
    if (advance(pool, 0)) {
        work(pool, 0, 1);
    }
    uint64_t state = 0;
    for (;;) {
        uint64_t found = atomic_load_explicit(&pool->state, memory_order_acquire);
        if (!(found & 1)) {
            break;
        }
        if (found == state) {
            wait_for_change(pool, &pool->join, state);
        } else {
            state = found;
            work(pool, 0, 0);
        }
    }
    atomic_store_explicit(&pool->busy, 0, memory_order_release);
}

/* The CPUs that this process may use, as far as the system tells. */
static int32_t cpus(void) {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
        return CPU_COUNT(&set);
    }
#endif
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int32_t)online : 1;
}

/* Starts the workers, with all signals blocked: signals are the business of the application's own threads. */
static void start_workers(tw_pool *pool, int32_t wanted) {
    sigset_t blocked, before;
    sigfillset(&blocked);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    while (pool->workers < wanted) {
        worker *member = &pool->crew[pool->workers];
        member->pool = pool;
        member->thread = pool->workers + 1;
        if (pthread_create(&member->handle, &attributes, worker_main, member) != 0) {
            break;
        }
#if defined(__linux__)
        pthread_setname_np(member->handle, "thalweg");
#endif
        pool->workers++;
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void release(tw_pool *pool) {
    free(pool->lanes);
    free(pool->crew);
    free(pool);
}

static void *allocate_lines(size_t bytes) {
    void *memory = NULL;
    return posix_memalign(&memory, CACHE_LINE, bytes) == 0 ? memory : NULL;
}

tw_pool *tw_pool_create(int32_t threads) {
    threads = threads > 1 ? threads : 1;
    tw_pool *pool = allocate_lines(sizeof(tw_pool));
    if (pool == NULL) {
        return NULL;
    }
    *pool = (tw_pool){.threads = 1};
    pool->process = getpid();
    pool->spin_nanoseconds = threads > cpus() ? CROWDED_SPIN_NANOSECONDS : SPIN_NANOSECONDS;
    pool->lanes = allocate_lines(sizeof(lane) * (size_t)threads);
    pool->crew = calloc((size_t)threads, sizeof(worker));
    if (pool->lanes == NULL || pool->crew == NULL) {
        release(pool);
        return NULL;
    }
    for (int32_t thread = 0; thread < threads; thread++) {
        pool->lanes[thread] = (lane){0};
    }
    event_create(&pool->idle);
    event_create(&pool->join);
    start_workers(pool, threads - 1);
    pool->threads = pool->workers + 1;
    return pool;
}

/* In a forked child the workers do not exist: there is nothing to join. */
void tw_pool_stop(tw_pool *pool) {
    atomic_store(&pool->stop, 1);
    if (pool->process == getpid()) {
        event_wake(&pool->idle, INT32_MAX);
        for (int32_t i = 0; i < pool->workers; i++) {
            pthread_join(pool->crew[i].handle, NULL);
        }
    }
    pool->workers = 0;
}

void tw_pool_destroy(tw_pool *pool) {
    if (pool == NULL) {
        return;
    }
    tw_pool_stop(pool);
    if (pool->process == getpid()) {
        event_destroy(&pool->idle);
        event_destroy(&pool->join);
    }
    release(pool);
}

#endif

int32_t tw_pool_threads(const tw_pool *pool) { return pool->threads; }

static int is_parallel(const tw_phase *phases, int32_t count) {
    for (int32_t p = 0; p < count; p++) {
        if (phases[p].tasks > 1 && !phases[p].serial) {
            return 1;
        }
    }
    return 0;
}

int32_t tw_run(tw_pool *pool, const tw_phase *phases, int32_t count, void *context, volatile int32_t *error) {
    uint64_t control = float_control();
    set_float_control(FLOAT_CONTROL);
    if (pool == NULL || pool->threads == 1 || !is_parallel(phases, count)) {
        run_alone(phases, count, context, error);
    } else {
        run_phases(pool, phases, count, context, error);
    }
    set_float_control(control);
    return code_of(error);
}
