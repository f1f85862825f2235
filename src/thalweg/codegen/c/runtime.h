/* The thread pool that compiled programs run on.
 *
 * In: an array of phases, each a number of independent tasks; out: all tasks done, in phase order. runtime.c is built
 * once per machine (thalweg.runtime.pool) and loaded beside the programs, which call tw_run through a tw_run_function
 * pointer, because each library is loaded with its symbols kept to itself. Which thread runs a task is not defined;
 * programs whose tasks write disjoint memory therefore give the same bits for any number of threads.
 */
#ifndef TW_RUNTIME_H
#define TW_RUNTIME_H

#include <stdint.h>

/* Libraries are compiled with -fvisibility=hidden; this makes one function visible to the process that loads them. */
#if defined(_WIN32)
#define TW_EXPORT __declspec(dllexport)
#else
#define TW_EXPORT __attribute__((visibility("default")))
#endif

typedef struct tw_pool tw_pool;

/* task(context, index, thread) is called once for each index in 0 .. tasks-1. thread is below the number of threads of
 * the pool and differs between tasks that run at the same time: an index into scratch memory. A serial phase is run by
 * one thread, in order of index; between serial phases that follow each other there is no barrier. */
typedef struct {
    void (*task)(void *context, int64_t index, int32_t thread);
    int64_t tasks;
    int32_t serial; /* 1: run by one thread only */
} tw_phase;

/* A pool of `threads` threads, the caller of tw_run being one of them. NULL if there is no memory. Fewer threads than
 * asked for when the system refuses more; tw_pool_threads tells how many there are. */
TW_EXPORT tw_pool *tw_pool_create(int32_t threads);

TW_EXPORT int32_t tw_pool_threads(const tw_pool *pool);

/* Ends the workers. The pool stays valid: later runs take place in their callers alone. May be called during a run. */
TW_EXPORT void tw_pool_stop(tw_pool *pool);

/* Ends the workers and frees the pool, which nobody may be using. */
TW_EXPORT void tw_pool_destroy(tw_pool *pool);

/* Runs `count` phases in order, each after the one before is complete; returns when all are.
 *
 * Before each phase, if *error is not 0, the remaining phases are left out; *error is also the result (the caller
 * clears it before the run; error may be NULL). With pool NULL or of one thread, with no phase of more than one task, or
 * while another thread runs something on the same pool, all tasks run in the caller, with thread = 0.
 *
 * During the run floating-point arithmetic rounds to nearest, keeps subnormal numbers and does not trap, whatever the
 * caller has set; the caller's settings are restored. */
TW_EXPORT int32_t tw_run(
    tw_pool *pool, const tw_phase *phases, int32_t count, void *context, volatile int32_t *error);

typedef int32_t (*tw_run_function)(
    tw_pool *pool, const tw_phase *phases, int32_t count, void *context, volatile int32_t *error);

/* Reports an error, a code above 0, from a task. The smallest of several wins, so that the result does not depend on
 * timing. */
static inline void tw_fail(volatile int32_t *error, int32_t code) {
    int32_t found = __atomic_load_n(error, __ATOMIC_RELAXED);
    while ((found == 0 || code < found) &&
           !__atomic_compare_exchange_n(error, &found, code, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
}

#endif
