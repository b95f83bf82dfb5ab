/* Reads a database as programs of the first client do: the C library with its external protocol asks a
 * block server for the pages that it touches. Prints every event, for `interop --v000` to compare.
 *
 *   v000-c HOST PORT URL forwards|backwards
 *
 * First a line with the names of the fields. Then, for each trail, in the order of their numbers or in
 * the other one, a line with its number and UUID, and for each event a line with its time and its
 * values. Names and values are in hexadecimal, after a tab each. `make interop-v000` compiles it.
 */
#define _DEFAULT_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <traildb.h>

static void check(tdb_error error, const char *what)
{
    if (error) {
        fprintf(stderr, "v000-c: %s: %s\n", what, tdb_error_str(error));
        exit(1);
    }
}

static void hex(const void *bytes, uint64_t len)
{
    static const char digits[] = "0123456789abcdef";
    const unsigned char *at = bytes;
    for (uint64_t i = 0; i < len; i++) {
        putchar_unlocked(digits[at[i] >> 4]);
        putchar_unlocked(digits[at[i] & 15]);
    }
}

static void print_trail(tdb *db, tdb_cursor *cursor, uint64_t trail)
{
    const tdb_event *event;
    printf("trail %" PRIu64 " ", trail);
    hex(tdb_get_uuid(db, trail), 16);
    putchar('\n');
    check(tdb_get_trail(cursor, trail), "a trail");
    while ((event = tdb_cursor_next(cursor))) {
        printf("%" PRIu64, event->timestamp);
        for (uint64_t i = 0; i < event->num_items; i++) {
            uint64_t len;
            const char *value = tdb_get_item_value(db, event->items[i], &len);
            if (!value) {
                fprintf(stderr, "v000-c: an item of trail %" PRIu64 " has no value\n", trail);
                exit(1);
            }
            putchar('\t');
            hex(value, len);
        }
        putchar('\n');
    }
}

int main(int argc, char **argv)
{
    if (argc != 5 || (strcmp(argv[4], "forwards") && strcmp(argv[4], "backwards"))) {
        fputs("usage: v000-c HOST PORT URL forwards|backwards\n", stderr);
        return 2;
    }
    tdb *db = tdb_init();
    tdb_opt_value value;
    value.ptr = argv[1];
    check(tdb_set_opt(db, TDB_OPT_EXTERNAL_HOST, value), "the host");
    value.ptr = argv[2];
    check(tdb_set_opt(db, TDB_OPT_EXTERNAL_PORT, value), "the port");
    /* A fault that the server cannot serve for so many milliseconds ends the program. */
    value.value = 60000;
    check(tdb_set_opt(db, TDB_OPT_EXTERNAL_RETRY_TIMEOUT, value), "the time limit");
    check(tdb_open(db, argv[3]), argv[3]);

    fputs("fields", stdout);
    for (uint64_t field = 1; field < tdb_num_fields(db); field++) {
        const char *name = tdb_get_field_name(db, (tdb_field)field);
        putchar('\t');
        hex(name, strlen(name));
    }
    putchar('\n');
    tdb_cursor *cursor = tdb_cursor_new(db);
    uint64_t trails = tdb_num_trails(db);
    for (uint64_t i = 0; i < trails; i++)
        print_trail(db, cursor, strcmp(argv[4], "backwards") ? i : trails - 1 - i);
    tdb_cursor_free(cursor);
    tdb_close(db);
    if (fflush(stdout) || ferror(stdout)) {
        perror("v000-c: stdout");
        return 1;
    }
    return 0;
}
