/* @name@: a program exported by Thalweg; see README.md.
 *
 * One file for every machine. TW_SCALAR=1 makes it plain C99; TW_SCALAR=0 takes the vector extensions of GCC and Clang.
 * Without a choice it takes vectors where compiler, dialect (-std=gnu99, not c99) and machine have them. Both give the
 * same bits, on all machines whose float and double are those of IEEE 754.
 */
#include "model.h"

#include <float.h>

#if defined __FAST_MATH__
#error "-ffast-math changes results; compile without it"
#endif
#if defined FLT_EVAL_METHOD && (FLT_EVAL_METHOD == 1 || FLT_EVAL_METHOD == 2)
#error "this compiler computes floats in a wider type; on x86 add -msse2 -mfpmath=sse"
#endif
#ifndef TW_SCALAR
#if defined __GNUC__ && !defined __STRICT_ANSI__ && (defined __SSE2__ || defined __aarch64__)
#define TW_SCALAR 0
#else
#define TW_SCALAR 1
#endif
#endif
#if defined __clang__
#pragma STDC FP_CONTRACT OFF
#elif defined __GNUC__ && !defined __STRICT_ANSI__ && defined __OPTIMIZE__
#pragma GCC optimize("fp-contract=off") /* a product and a sum are fused where the text says so, nowhere else */
#endif

@vector@
@mathematics@
/* ---- what the kernels work on, and how one reports an index out of range: the smallest code wins ---- */
@program@

static inline void tw_fail(volatile int32_t *error, int32_t code) {
    if (*error == 0 || code < *error) *error = code;
}

/* phases of a loop's body, run as `thalweg` runs them with one thread */
typedef struct tw_pool tw_pool;
typedef struct { void (*task)(void *context, int64_t index, int32_t thread); int64_t tasks; int32_t serial; } tw_phase;
typedef int32_t (*tw_run_function)(tw_pool *pool, const tw_phase *phases, int32_t count, void *context, volatile int32_t *error);

#ifdef __GNUC__
__attribute__((unused)) /* where no loop has phases of its own */
#endif
static inline int32_t tw_run_alone(tw_pool *pool, const tw_phase *phases, int32_t count, void *context, volatile int32_t *error) {
    (void)pool;
    for (int32_t p = 0; p < count && !*error; p++)
        for (int64_t task = 0; task < phases[p].tasks; task++) phases[p].task(context, task, 0);
    return *error;
}

static inline void copy(void *to, const void *from, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) ((unsigned char *)to)[i] = ((const unsigned char *)from)[i];
}

/* ---- kernels and phases ---- */
#ifdef __GNUC__ /* a kernel's loops may leave an index or a common expression unused */
#pragma GCC diagnostic ignored "-Wunused-variable"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
#endif
@kernels@
/* ---- the state: magic, digest of the layout, number of bytes, zero; then the bytes ---- */
static const uint64_t layout[4] = {0x316765776c616874u, @digest@, @NAME@_STATE_BYTES, 0};

int @name@_load(@name@ *m, const void *bytes, size_t count) {
    uint64_t header[4];
    if (count != @NAME@_SAVED_BYTES) return -1;
    copy(header, bytes, sizeof header);
    for (int i = 0; i < 4; i++)
        if (header[i] != layout[i]) return -1;
    copy(m->state, (const unsigned char *)bytes + sizeof header, @NAME@_STATE_BYTES);
    return 0;
}

int @name@_save(const @name@ *m, void *bytes, size_t room) {
    if (room < @NAME@_SAVED_BYTES) return -1;
    copy(bytes, layout, sizeof layout);
    copy((unsigned char *)bytes + sizeof layout, m->state, @NAME@_STATE_BYTES);
    return 0;
}
@init@
const char *@name@_error(int code) {
    switch (code) {
    case -1: return "these bytes are not the saved state of @name@";
    case 0: return "no error";
@errors@
    default: return "an unknown error";
    }
}

/* ---- functions ---- */
@entries@
