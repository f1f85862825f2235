/* A few predictions and training steps on a device: prints the bits of each result, so that machines can be compared.
 * `model.h` is that of `thalweg export lenet --embed`; compiled with -DHOST it runs on a PC.
 */
#include "model.h"

#ifndef STEPS
#define STEPS 1
#endif
#ifdef HOST
#include <stdio.h>
static void say(const char *text) { fputs(text, stdout); }
static uint32_t stack_used(void) { return 0; }
#else
void say(const char *text);
uint32_t stack_used(void);
#endif

static lenet memory;
static float scores[10];

static void say_number(uint32_t number, uint32_t base) {
    char text[11];
    int at = 10;
    text[at] = 0;
    do text[--at] = "0123456789abcdef"[number % base], number /= base;
    while (number);
    say(text + at);
}

static void say_bits(const char *name, const float *values, int count) {
    say(name);
    for (int i = 0; i < count; i++) {
        union { float value; uint32_t bits; } number = {values[i]};
        say(" ");
        say_number(number.bits, 16);
    }
    say("\n");
}

/* Strokes that differ from picture to picture. */
static void draw(float *pixels, int picture) {
    for (int i = 0; i < 784; i++) {
        const int row = i / 28 - 14, column = i % 28 - 14, far = row * row + column * column;
        pixels[i] = picture % 2 ? (far > 40 && far < 90 ? 2.8f : -0.42f) : (column * column < 4 + picture ? 2.8f : -0.42f);
    }
}

#ifdef LENET_BATCH
static float images[LENET_BATCH * 784], loss;
static int64_t labels[LENET_BATCH];
#else
static float images[784];
#endif

int main(void) {
    lenet_init(&memory);
    draw(images, 1);
    if (lenet_predict(&memory, images, scores)) return 1;
    say_bits("scores:", scores, 10);
#ifdef LENET_BATCH
    for (int step = 0; step < STEPS; step++) {
        for (int i = 0; i < LENET_BATCH; i++) draw(images + 784 * i, i + step), labels[i] = (i + step) % 2;
        if (lenet_train(&memory, images, labels, &loss)) return 1;
        say_bits("loss:", &loss, 1);
    }
    draw(images, 1);
    if (lenet_predict(&memory, images, scores)) return 1;
    say_bits("scores:", scores, 10);
#endif
    uint32_t hash = 2166136261u;
    for (uint32_t i = 0; i < LENET_STATE_BYTES; i++) hash = (hash ^ memory.state[i]) * 16777619u;
    say("state: ");
    say_number(hash, 16);
    say("\nstack: ");
    say_number(stack_used(), 10);
    say("\n");
    return 0;
}
