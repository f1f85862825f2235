/* What a Cortex-M processor needs before and around main: a vector table, the start, memcpy and memset, and text and
 * exit through a debugger or QEMU (semihosting). No C library.
 */
#include <stddef.h>
#include <stdint.h>

extern uint32_t data_begin[], data_end[], data_source[], bss_begin[], bss_end[], stack_begin[], stack_end[];
int main(void);
void start(void);
void say(const char *text);
uint32_t stack_used(void);
void *memcpy(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);

#define STACK_MARK 0x5aa55aa5u

static int semihosting(int operation, const void *argument) {
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void say(const char *text) { semihosting(0x04, text); }

static void leave(int code) {
    const uint32_t how[2] = {0x20026, (uint32_t)code}; /* the application has ended, with this exit code */
    semihosting(0x20, how);
    for (;;) {
    }
}

void *memcpy(void *to, const void *from, size_t bytes) {
    unsigned char *a = to;
    const unsigned char *b = from;
    if ((((uintptr_t)a | (uintptr_t)b) & 3) == 0)
        for (; bytes >= 4; bytes -= 4, a += 4, b += 4) *(uint32_t *)(void *)a = *(const uint32_t *)(const void *)b;
    while (bytes--) *a++ = *b++;
    return to;
}

void *memset(void *to, int value, size_t bytes) {
    unsigned char *a = to;
    while (bytes--) *a++ = (unsigned char)value;
    return to;
}

/* Bytes of stack that have been used so far. */
uint32_t stack_used(void) {
    const uint32_t *p = stack_begin;
    while (p < stack_end && *p == STACK_MARK) p++;
    return (uint32_t)((stack_end - p) * 4);
}

void start(void) {
#ifdef __ARM_FP
    *(volatile uint32_t *)0xe000ed88 |= 0xfu << 20; /* the floating-point unit: full access */
    __asm__ volatile("dsb\nisb");
#endif
    for (uint32_t *p = stack_begin; p < (uint32_t *)__builtin_frame_address(0) - 16; p++) *p = STACK_MARK;
    memcpy(data_begin, data_source, (size_t)((char *)data_end - (char *)data_begin));
    memset(bss_begin, 0, (size_t)((char *)bss_end - (char *)bss_begin));
    leave(main());
}

static void fault(void) {
    say("fault\n");
    leave(3);
}

typedef void (*vector)(void);
__attribute__((section(".vectors"), used)) static const vector vectors[16] = {
    (vector)(uintptr_t)stack_end, start, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault, fault,
};
