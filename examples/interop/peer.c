/* Does through the C library, by its public interface alone, what `peer` of this project does
 * through ours, and prints the same figures: `make bench BENCH_ARGS="--only tdb"` runs both in turn.
 *
 *   peer-c write  EVENTS.csv OUT         events in, a database out; OUT.tdb must not exist
 *   peer-c scan   DB ROUNDS              every event of every trail
 *   peer-c values DB ROUNDS              the same, and the bytes of every value looked up
 *   peer-c filter DB ROUNDS FIELD VALUE [FIELD VALUE ...]
 *                                        events where all these are so
 *   peer-c uuids  DB ROUNDS COUNT        so many trails, chosen at random, by UUID
 *   peer-c items  DB ROUNDS FIELD COUNT  so many values of a field, chosen at random, by their bytes
 *
 * The CSV has commas, a header line that starts with uuid,time, and no quotes. Each prints one JSON
 * object. `make interop-peer` compiles it against an installed library.
 */
#define _DEFAULT_SOURCE
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include <traildb.h>

/* Lines parsed at a time, off the clock, before they are added on it. */
#define BATCH 65536

static void die(const char *text, ...)
{
    va_list list;
    va_start(list, text);
    fputs("peer-c: ", stderr);
    vfprintf(stderr, text, list);
    fputc('\n', stderr);
    va_end(list);
    exit(1);
}

static void check(tdb_error error, const char *what)
{
    if (error)
        die("%s: %s", what, tdb_error_str(error));
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

/* The greatest resident size so far. */
static long rss_kib(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
}

/* Steele, Lea and Flood, 2014. The other side draws the same numbers. */
static uint64_t split_mix(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static tdb *open_db(const char *path)
{
    tdb *db = tdb_init();
    if (!db)
        die("no memory");
    check(tdb_open(db, path), path);
    return db;
}

static tdb_field field_of(const tdb *db, const char *name)
{
    tdb_field field;
    check(tdb_get_field(db, name, &field), name);
    return field;
}

/* Splits a line at its commas, in place. Returns the number of cells. */
static uint64_t split(char *line, char **cells, uint64_t max)
{
    uint64_t n = 0;
    while (line && n < max)
        cells[n++] = strsep(&line, ",");
    return n;
}

static void do_write(const char *csv, const char *out)
{
    static char buffer[1 << 20];
    char *line = NULL, *head[TDB_MAX_NUM_FIELDS + 2];
    size_t capacity = 0;
    ssize_t length;
    FILE *input = fopen(csv, "r");
    if (!input)
        die("%s: cannot be opened", csv);
    setvbuf(input, buffer, _IOFBF, sizeof(buffer));

    if ((length = getline(&line, &capacity, input)) < 1)
        die("%s: no header", csv);
    line[length - 1] = 0;
    char *names = strdup(line);
    uint64_t columns = split(names, head, TDB_MAX_NUM_FIELDS + 2);
    if (columns < 2 || strcmp(head[0], "uuid") || strcmp(head[1], "time"))
        die("%s: the header does not start with uuid,time", csv);
    uint64_t fields = columns - 2;

    /* One batch: the text of its lines, and where each cell starts in it and how long it is. */
    size_t room = 1 << 20, used;
    char *text = malloc(room);
    size_t *starts = malloc(BATCH * columns * sizeof(*starts));
    uint64_t *lengths = malloc(BATCH * (fields + 1) * sizeof(*lengths));
    uint64_t *times = malloc(BATCH * sizeof(*times));
    uint8_t (*uuids)[16] = malloc(BATCH * 16);
    const char **values = malloc((fields + 1) * sizeof(*values));
    char **cells = malloc(columns * sizeof(*cells));
    if (!text || !starts || !lengths || !times || !uuids || !values || !cells)
        die("no memory");

    double adding = 0, began = now();
    double clock = now();
    tdb_cons *cons = tdb_cons_init();
    check(tdb_cons_open(cons, out, (const char **)&head[2], fields), out);
    adding += now() - clock;

    uint64_t events = 0, n;
    do {
        for (n = 0, used = 0; n < BATCH; n++) {
            if ((length = getline(&line, &capacity, input)) < 1)
                break;
            if (line[length - 1] == '\n')
                line[--length] = 0;
            while (used + (size_t)length + 1 > room)
                if (!(text = realloc(text, room *= 2)))
                    die("no memory");
            memcpy(text + used, line, (size_t)length + 1);
            if (split(text + used, cells, columns) != columns)
                die("%s: event %" PRIu64 ": too few cells", csv, events + n);
            for (uint64_t k = 0; k < columns; k++)
                starts[n * columns + k] = (size_t)(cells[k] - text);
            if (tdb_uuid_raw((const uint8_t *)cells[0], uuids[n]))
                die("%s: event %" PRIu64 ": no UUID", csv, events + n);
            times[n] = strtoull(cells[1], NULL, 10);
            for (uint64_t k = 0; k < fields; k++)
                lengths[n * fields + k] = strlen(cells[k + 2]);
            used += (size_t)length + 1;
        }
        clock = now();
        for (uint64_t k = 0; k < n; k++) {
            for (uint64_t f = 0; f < fields; f++)
                values[f] = text + starts[k * columns + f + 2];
            check(tdb_cons_add(cons, uuids[k], times[k], values, &lengths[k * fields]), "add");
        }
        adding += now() - clock;
        events += n;
    } while (n == BATCH);

    clock = now();
    check(tdb_cons_finalize(cons), "finalize");
    double finishing = now() - clock;
    double total = now() - began;
    printf("{\"events\": %" PRIu64 ", \"seconds\": [%.6f], \"adding\": %.6f, \"finishing\": %.6f, "
           "\"total\": %.6f, \"cpu\": %.6f, \"rss_kib\": %ld}\n",
           events, adding + finishing, adding, finishing, total, cpu_seconds(), rss_kib());
    tdb_cons_close(cons);
}

/* One pass over everything. `check` depends on every event, and on every value if asked for. */
static uint64_t pass(const tdb *db, int values, uint64_t *check_sum)
{
    tdb_cursor *cursor = tdb_cursor_new(db);
    uint64_t events = 0, sum = 0, trails = tdb_num_trails(db);
    if (!cursor)
        die("no memory");
    for (uint64_t trail = 0; trail < trails; trail++) {
        const tdb_event *event;
        check(tdb_get_trail(cursor, trail), "trail");
        while ((event = tdb_cursor_next(cursor))) {
            events++;
            sum += event->timestamp;
            if (values) {
                for (uint64_t k = 0; k < event->num_items; k++) {
                    uint64_t length;
                    const char *value = tdb_get_item_value(db, event->items[k], &length);
                    sum += length;
                    if (length)
                        sum += (uint8_t)value[length - 1];
                }
            }
        }
    }
    tdb_cursor_free(cursor);
    *check_sum = sum;
    return events;
}

static void times_out(uint64_t count, uint64_t sum, const double *seconds, int rounds)
{
    printf("{\"events\": %" PRIu64 ", \"sum\": %" PRIu64 ", \"seconds\": [", count, sum);
    for (int k = 0; k < rounds; k++)
        printf("%s%.9f", k ? ", " : "", seconds[k]);
    printf("], \"cpu\": %.6f, \"rss_kib\": %ld}\n", cpu_seconds(), rss_kib());
}

static void do_scan(const tdb *db, int rounds, int values)
{
    double seconds[rounds];
    uint64_t sum, events = pass(db, values, &sum); /* warms the cache */
    for (int k = 0; k < rounds; k++) {
        double clock = now();
        events = pass(db, values, &sum);
        seconds[k] = now() - clock;
    }
    times_out(events, sum, seconds, rounds);
}

static void do_filter(tdb *db, int rounds, int count, char **terms)
{
    struct tdb_event_filter *filter = tdb_event_filter_new();
    tdb_opt_value option = {.ptr = filter};
    for (int k = 0; k + 1 < count; k += 2) {
        if (k)
            check(tdb_event_filter_new_clause(filter), "clause");
        tdb_item item = tdb_get_item(db, field_of(db, terms[k]), terms[k + 1], strlen(terms[k + 1]));
        check(tdb_event_filter_add_term(filter, item, 0), "term");
    }
    check(tdb_set_opt(db, TDB_OPT_EVENT_FILTER, option), "filter");
    do_scan(db, rounds, 0);
}

static void do_uuids(const tdb *db, int rounds, uint64_t count)
{
    double seconds[rounds];
    uint8_t (*uuids)[16] = malloc(16 * count);
    uint64_t state = 1, events = 0, sum = 0;
    for (uint64_t k = 0; k < count; k++)
        memcpy(uuids[k], tdb_get_uuid(db, split_mix(&state) % tdb_num_trails(db)), 16);
    for (int round = -1; round < rounds; round++) {
        double clock = now();
        tdb_cursor *cursor = tdb_cursor_new(db);
        events = sum = 0;
        for (uint64_t k = 0; k < count; k++) {
            const tdb_event *event;
            uint64_t trail;
            check(tdb_get_trail_id(db, uuids[k], &trail), "uuid");
            check(tdb_get_trail(cursor, trail), "trail");
            while ((event = tdb_cursor_next(cursor))) {
                events++;
                sum += event->timestamp;
            }
        }
        tdb_cursor_free(cursor);
        if (round >= 0)
            seconds[round] = now() - clock;
    }
    times_out(events, sum, seconds, rounds);
}

static void do_items(const tdb *db, int rounds, tdb_field field, uint64_t count)
{
    double seconds[rounds];
    const char **values = malloc(count * sizeof(*values));
    uint64_t *lengths = malloc(count * sizeof(*lengths)), state = 1, found = 0, sum = 0;
    for (uint64_t k = 0; k < count; k++) {
        tdb_val value = 1 + split_mix(&state) % (tdb_lexicon_size(db, field) - 1);
        values[k] = tdb_get_value(db, field, value, &lengths[k]);
    }
    for (int round = -1; round < rounds; round++) {
        double clock = now();
        found = sum = 0;
        for (uint64_t k = 0; k < count; k++) {
            tdb_item item = tdb_get_item(db, field, values[k], lengths[k]);
            found += item != 0;
            sum += tdb_item_val(item);
        }
        if (round >= 0)
            seconds[round] = now() - clock;
    }
    times_out(found, sum, seconds, rounds);
}

static int number(const char *text)
{
    int n = atoi(text);
    if (n < 1 || n > 1000000)
        die("%s: a number from 1 to 1000000 is wanted", text);
    return n;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "write") && argc == 4) {
        do_write(argv[2], argv[3]);
    } else if (!strcmp(what, "scan") && argc == 4) {
        do_scan(open_db(argv[2]), number(argv[3]), 0);
    } else if (!strcmp(what, "values") && argc == 4) {
        do_scan(open_db(argv[2]), number(argv[3]), 1);
    } else if (!strcmp(what, "filter") && argc >= 6 && argc % 2 == 0) {
        do_filter(open_db(argv[2]), number(argv[3]), argc - 4, argv + 4);
    } else if (!strcmp(what, "uuids") && argc == 5) {
        do_uuids(open_db(argv[2]), number(argv[3]), (uint64_t)number(argv[4]));
    } else if (!strcmp(what, "items") && argc == 6) {
        tdb *db = open_db(argv[2]);
        do_items(db, number(argv[3]), field_of(db, argv[4]), (uint64_t)number(argv[5]));
    } else {
        fputs("usage: peer-c write CSV OUT | scan DB ROUNDS | values DB ROUNDS |\n"
              "       filter DB ROUNDS FIELD VALUE... | uuids DB ROUNDS COUNT |\n"
              "       items DB ROUNDS FIELD COUNT\n", stderr);
        return 2;
    }
    return 0;
}
