/* Runs a function of @name@ on files: `./@name@ --help`. This file is a hosted C99 program; model.c is not.
 *
 * A file of inputs is in idx format (MNIST's) or raw little-endian values; it is read batch by batch, and values beyond
 * the last whole batch are left out. Bytes of an idx file become (byte / 255 - mean) / std where the input is
 * floating-point.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

typedef struct {
    const char *name, *type; /* "f32", "i64", ... */
    size_t count, rows;      /* elements of one call; size of the first axis */
} argument;

typedef struct {
    const char *name;
    int (*call)(@name@ *m, void **in, void **out);
    int inputs, outputs;
    argument in[@most@], out[@most@];
} function;

@callers@

static const function functions[] = {
@table@
};

static @name@ memory;
static unsigned char saved[@NAME@_SAVED_BYTES];
static unsigned char input_bytes[@input_bytes@] @NAME@_ALIGNED, output_bytes[@output_bytes@] @NAME@_ALIGNED;

typedef struct {
    FILE *file;
    const char *path;
    int idx;     /* does it hold the bytes of an idx file? */
    long start;  /* of the values */
} source;

static void fail(const char *path, const char *what) {
    fprintf(stderr, "@name@: %s: %s\n", path, what);
    exit(1);
}

static size_t width(const argument *a) {
    return a->type[0] == 'b' && a->type[1] == 'o' ? 1 : (size_t)atoi(a->type + (a->type[0] == 'b' ? 2 : 1)) / 8;
}

static source open_source(const char *path) {
    source s = {fopen(path, "rb"), path, 0, 0};
    unsigned char head[4] = {1, 1, 1, 1};
    if (!s.file) fail(path, "cannot be opened");
    size_t got = fread(head, 1, 4, s.file);
    if (got >= 2 && head[0] == 0x1f && head[1] == 0x8b) fail(path, "is compressed; unpack it with gunzip first");
    if (got == 4 && head[0] == 0 && head[1] == 0 && head[2] == 8) s.idx = 1, s.start = 4 + 4 * (long)head[3];
    fseek(s.file, s.start, SEEK_SET);
    return s;
}

/* One batch from a file; the rows that were read. Rows that are missing are zero. */
static size_t read_batch(source *s, const argument *a, unsigned char *to, float mean, float std) {
    size_t row = a->count / (a->rows ? a->rows : 1), size = width(a), bytes = s->idx ? 1 : size;
    memset(to, 0, a->count * size);
    size_t got = fread(to, bytes, a->count, s->file) / (row ? row : 1);
    if (!s->idx) return got;
    for (size_t i = got * row; i-- > 0;) { /* from the end: the wider values overwrite only what has been read */
        const unsigned char byte = to[i];
        if (!strcmp(a->type, "f32")) {
            const float value = ((float)byte / 255.0f - mean) / std;
            memcpy(to + i * size, &value, size);
        } else if (a->type[0] == 'i' || a->type[0] == 'u') {
            memset(to + i * size, 0, size);
            to[i * size] = byte; /* little-endian */
        } else {
            fail(s->path, "is an idx file, which can stand for float32 and integer inputs only");
        }
    }
    return got;
}

static int64_t whole(const argument *a, const unsigned char *p, size_t i) {
    int64_t value = 0;
    memcpy(&value, p + i * width(a), width(a));
    return value;
}

/* How many rows of scores are highest at their label. */
static size_t right(const argument *a, const unsigned char *p, const unsigned char *labels, size_t rows) {
    size_t classes = a->count / a->rows, found = 0;
    for (size_t r = 0; r < rows; r++) {
        size_t best = 0;
        float most = 0, score;
        for (size_t c = 0; c < classes; c++) {
            memcpy(&score, p + (r * classes + c) * sizeof score, sizeof score);
            if (c == 0 || score > most) most = score, best = c;
        }
        found += best == labels[r];
    }
    return found;
}

static void print(const argument *a, const unsigned char *p) {
    printf("%s:", a->name);
    for (size_t i = 0; i < a->count && i < 16; i++) {
        float f;
        double d;
        if (!strcmp(a->type, "f32")) memcpy(&f, p + 4 * i, 4), printf(" %.9g", f);
        else if (!strcmp(a->type, "f64")) memcpy(&d, p + 8 * i, 8), printf(" %.17g", d);
        else printf(" %lld", (long long)whole(a, p, i));
    }
    printf(a->count > 16 ? " ...\n" : "\n");
}

/* FNV-1a over the state: two runs with the same bits print the same number. */
static uint64_t fingerprint(void) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < @NAME@_STATE_BYTES; i++) hash = (hash ^ memory.state[i]) * 0x100000001b3u;
    return hash;
}

static void load(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(path, "cannot be opened");
    size_t got = fread(saved, 1, sizeof saved, file);
    if (got != sizeof saved || fgetc(file) != EOF || @name@_load(&memory, saved, got)) fail(path, @name@_error(-1));
    fclose(file);
}

static void save(const char *path) {
    FILE *file = fopen(path, "wb");
    @name@_save(&memory, saved, sizeof saved);
    if (!file || fwrite(saved, 1, sizeof saved, file) != sizeof saved || fclose(file)) fail(path, "cannot be written");
}

static int help(void) {
    printf("@name@ FUNCTION FILE... [--load FILE] [--save FILE] [--epochs N] [--steps N] [--mean X] [--std X]\n"
           "      [--labels FILE] [--output FILE]\n\nfunctions:\n");
    for (size_t f = 0; f < sizeof functions / sizeof *functions; f++) {
        printf("  %s", functions[f].name);
        for (int i = 0; i < functions[f].inputs; i++)
            printf(" %s(%s, %lu values)", functions[f].in[i].name, functions[f].in[i].type,
                   (unsigned long)functions[f].in[i].count);
        printf("\n");
    }
    printf("\nA FILE per input: idx (not compressed) or raw values, any number of batches.\n"
           "--load, --save   the state before and after\n"
           "--epochs N       passes over the files (1); --steps N  calls at most in a pass\n"
           "--mean, --std    of the pixels of idx files (@mean@, @std@)\n"
           "--labels FILE    idx file of classes: how often the first output is highest there\n"
           "--output FILE    the outputs as raw values, call after call\n");
    return 0;
}

int main(int count, char **words) {
    const function *f = 0;
    source sources[@most@];
    source labels = {0, 0, 0, 0};
    const char *loaded = @weights@, *kept = 0;
    FILE *output = 0;
    float mean = @mean@f, std = @std@f;
    long epochs = 1, most = 0;
    int given = 0;
    @begin@
    if (count < 2 || !strcmp(words[1], "--help")) return help();
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (!strcmp(words[1], functions[i].name)) f = &functions[i];
    if (!f) fail(words[1], "there is no such function; see --help");
    for (int i = 2; i < count; i++) {
        const char *word = words[i], *value = i + 1 < count ? words[i + 1] : 0;
        if (strncmp(word, "--", 2)) {
            if (given == f->inputs) fail(word, "is one file too many; see --help");
            sources[given++] = open_source(word);
            continue;
        }
        if (!value) fail(word, "needs a value");
        i++;
        if (!strcmp(word, "--load")) loaded = value;
        else if (!strcmp(word, "--save")) kept = value;
        else if (!strcmp(word, "--epochs")) epochs = atol(value);
        else if (!strcmp(word, "--steps")) most = atol(value);
        else if (!strcmp(word, "--mean")) mean = (float)atof(value);
        else if (!strcmp(word, "--std")) std = (float)atof(value);
        else if (!strcmp(word, "--labels")) labels = open_source(value);
        else if (!strcmp(word, "--output")) output = fopen(value, "wb");
        else fail(word, "is no option; see --help");
    }
    if (given < f->inputs) fail(f->in[given].name, "no file given for this input; see --help");
    if (loaded) load(loaded);

    void *in[@most@], *out[@most@];
    unsigned char *at = input_bytes;
    for (int i = 0; i < f->inputs; i++) in[i] = at, at += (f->in[i].count * width(&f->in[i]) + 63) / 64 * 64;
    at = output_bytes;
    for (int i = 0; i < f->outputs; i++) out[i] = at, at += (f->out[i].count * width(&f->out[i]) + 63) / 64 * 64;
    const int scalar = f->outputs > 0 && f->out[0].count == 1 && !strcmp(f->out[0].type, "f32");
    for (long epoch = 1; epoch <= epochs; epoch++) {
        long steps = 0;
        size_t rows_seen = 0, rows_right = 0;
        double sum = 0;
        for (int i = 0; i < f->inputs; i++) fseek(sources[i].file, sources[i].start, SEEK_SET);
        if (labels.file) fseek(labels.file, labels.start, SEEK_SET);
        while (!most || steps < most) {
            size_t rows = f->inputs ? f->in[0].rows : 1;
            for (int i = 0; i < f->inputs; i++) {
                size_t got = read_batch(&sources[i], &f->in[i], in[i], mean, std);
                if (got * f->in[0].rows < rows * f->in[i].rows) rows = got;
            }
            /* a last batch with fewer rows is of use only where rows do not mix and are counted */
            if (rows == 0 || (f->inputs && rows < f->in[0].rows && !labels.file)) break;
            const int code = f->call(&memory, in, out);
            if (code) fail(f->name, @name@_error(code));
            steps++;
            if (scalar) {
                float value;
                memcpy(&value, out[0], sizeof value);
                sum += value;
            }
            for (int i = 0; output && i < f->outputs; i++) fwrite(out[i], width(&f->out[i]), f->out[i].count, output);
            if (labels.file) {
                static unsigned char classes[1 << 16];
                size_t got = fread(classes, 1, rows < sizeof classes ? rows : sizeof classes, labels.file);
                rows_seen += got;
                rows_right += right(&f->out[0], out[0], classes, got);
            }
            if (!f->inputs && !most) break;
        }
        if (!steps) fail(f->name, "the files hold no whole batch");
        printf("%s, pass %ld: %ld calls", f->name, epoch, steps);
        if (scalar) printf(", mean %s %.6f", f->out[0].name, sum / (double)steps);
        if (labels.file) printf(", %lu of %lu right", (unsigned long)rows_right, (unsigned long)rows_seen);
        printf("\n");
    }
    for (int i = 0; i < f->outputs; i++) print(&f->out[i], out[i]);
    printf("state: %016llx\n", (unsigned long long)fingerprint());
    if (output && fclose(output)) fail("--output", "cannot be written");
    if (kept) save(kept);
    return 0;
}
