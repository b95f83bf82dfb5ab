/*
 * Reads an object through `extmem serve`, by the protocol of sources/PROTOCOL.md, part 2.
 *
 *   cc -O2 -o extmem_client extmem_client.c
 *   extmem serve --dir /var/cache/extmem --unix /tmp/extmem.sock &
 *   ./extmem_client /tmp/extmem.sock s3://bucket/key > key
 *
 * An answer brings the descriptor of a file that has the bytes, and usually many more: they are
 * read from there, and never cross the socket. A server without files sends bytes instead.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { HELLO = 1, OPEN = 2, READ = 3, WELCOME = 129, OPENED = 130, BYTES = 131, AT_FILE = 132,
       FAILED = 255 };
enum { BODY_MAX = 4 << 20, REQUEST_MAX = 16 << 10 };

static unsigned char body[BODY_MAX];
static int file = -1; /* the latest descriptor that came */

static void die(const char *what)
{
    fprintf(stderr, "extmem_client: %s\n", what);
    exit(1);
}

static uint64_t number(const unsigned char *at, int bytes)
{
    uint64_t value = 0;
    while (bytes-- > 0)
        value = value << 8 | at[bytes];
    return value;
}

static unsigned char *put(unsigned char *at, uint64_t value, int bytes)
{
    for (; bytes > 0; bytes--, value >>= 8)
        *at++ = value & 0xff;
    return at;
}

static void put_all(int fd, const void *bytes, size_t count)
{
    const char *at = bytes;
    while (count > 0) {
        ssize_t done = write(fd, at, count);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            die(strerror(errno));
        at += done;
        count -= done;
    }
}

/* Receives exactly `count` bytes, and keeps a descriptor that comes along. */
static void take(int sock, void *into, size_t count)
{
    char *at = into;
    while (count > 0) {
        union { struct cmsghdr align; char space[CMSG_SPACE(sizeof(int))]; } control;
        struct iovec part = { at, count };
        struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1,
            .msg_control = control.space, .msg_controllen = sizeof control.space };
        ssize_t got = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            die("the server left");
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
            if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
                if (file >= 0)
                    close(file);
                memcpy(&file, CMSG_DATA(c), sizeof file);
            }
        }
        at += got;
        count -= got;
    }
}

/* Sends a request; returns the kind of its answer, whose body is in `body`. */
static int ask(int sock, int kind, const unsigned char *request, size_t bytes, size_t *got)
{
    static uint64_t id;
    unsigned char head[16];
    put(put(put(head, bytes, 4), kind, 4), ++id, 8);
    put_all(sock, head, sizeof head);
    put_all(sock, request, bytes);
    take(sock, head, sizeof head);
    *got = number(head, 4);
    if (*got > BODY_MAX || number(head + 8, 8) != id)
        die("this is no answer");
    take(sock, body, *got);
    if (head[4] == FAILED && *got >= 8) {
        size_t text = number(body + 6, 2);
        if (text > *got - 8)
            text = *got - 8;
        fprintf(stderr, "extmem_client: error %u: %.*s\n", (unsigned)number(body, 2), (int)text,
                (char *)body + 8);
        exit(1);
    }
    return head[4];
}

int main(int argc, char **argv)
{
    unsigned char request[REQUEST_MAX], *at;
    struct sockaddr_un place = { .sun_family = AF_UNIX };
    size_t got;

    if (argc != 3 || strlen(argv[1]) >= sizeof place.sun_path || strlen(argv[2]) > 8192)
        die("usage: extmem_client SOCKET ADDRESS > FILE");
    strcpy(place.sun_path, argv[1]);
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (sock < 0 || connect(sock, (struct sockaddr *)&place, sizeof place) < 0)
        die(strerror(errno));

    memcpy(request, "extmem-1", 8);
    at = put(put(request + 8, 1, 4), 0, 2);
    if (ask(sock, HELLO, request, at - request, &got) != WELCOME || got != 16)
        die("no welcome");
    uint64_t most = number(body + 8, 8);

    at = put(put(request, 0, 1), strlen(argv[2]), 2);
    memcpy(at, argv[2], strlen(argv[2]));
    if (ask(sock, OPEN, request, at - request + strlen(argv[2]), &got) != OPENED || got < 31)
        die("not opened");
    uint64_t handle = number(body, 4), length = number(body + 4, 8);

    for (uint64_t offset = 0; offset < length;) {
        uint64_t wanted = length - offset < most ? length - offset : most;
        at = put(put(put(put(request, handle, 4), offset, 8), wanted, 8), 1, 1);
        int kind = ask(sock, READ, request, at - request, &got);
        if (kind == BYTES && got == wanted) {
            put_all(STDOUT_FILENO, body, got);
            offset += got;
        } else if (kind == AT_FILE && got == 16 && file >= 0) {
            uint64_t position = number(body, 8), good = number(body + 8, 8);
            while (good > 0 && offset < length) {
                size_t count = good < sizeof body ? good : sizeof body;
                ssize_t done = pread(file, body, count, position);
                if (done <= 0)
                    die("a file that is shorter than the server said");
                put_all(STDOUT_FILENO, body, done);
                position += done, offset += done, good -= done;
            }
        } else {
            die("an answer to another question");
        }
    }
    return 0;
}
