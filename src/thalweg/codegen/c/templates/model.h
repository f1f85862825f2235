/* @name@: a program exported by Thalweg. C99 and C++.
 *
 * No memory is allocated and no library is called: everything that a call needs lies in the struct, so that several
 * structs can be used side by side, also by several threads. Make it static, or allocate it at a multiple of 64 bytes.
 */
#ifndef @NAME@_MODEL_H
#define @NAME@_MODEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define @NAME@_STATE_BYTES @state_bytes@u     /* parameters, slots of the optimiser, ... */
#define @NAME@_ARENA_BYTES @arena_bytes@u     /* what phases of a call share */
#define @NAME@_SCRATCH_BYTES @scratch_bytes@u /* what stays inside a block of the batch */
#define @NAME@_SAVED_BYTES @saved_bytes@u     /* of the state as it is saved */

#ifdef __GNUC__
#define @NAME@_ALIGNED __attribute__((aligned(64)))
#else
#define @NAME@_ALIGNED
#endif
#define @NAME@_SIZE(bytes) ((bytes) ? (bytes) : 64)

typedef struct {
    unsigned char state[@NAME@_SIZE(@NAME@_STATE_BYTES)] @NAME@_ALIGNED;
    unsigned char arena[@NAME@_SIZE(@NAME@_ARENA_BYTES)] @NAME@_ALIGNED;
    unsigned char scratch[@NAME@_SIZE(@NAME@_SCRATCH_BYTES)] @NAME@_ALIGNED;
} @name@;
@init@
/* Takes the state from bytes that save() has written, here or in Python. 0, or -1 for bytes of another program. */
int @name@_load(@name@ *m, const void *bytes, size_t count);

/* Writes the state into at least @NAME@_SAVED_BYTES bytes. 0, or -1 where there is too little room. */
int @name@_save(const @name@ *m, void *bytes, size_t room);

/* The functions give 0, or a number that error() explains; then the state is as it was. */
const char *@name@_error(int code);

@functions@

#ifdef __cplusplus
}
#endif

#endif
