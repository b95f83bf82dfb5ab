#!/usr/bin/env python3
"""Reads objects through `extmem serve` (sources/PROTOCOL.md, part 2). Standard library alone.

    extmem serve --dir /var/cache/extmem --unix /run/user/1000/extmem.sock
    extmem_client.py /run/user/1000/extmem.sock s3://bucket/key --range 0-99

As a module:

    with Client("/run/user/1000/extmem.sock") as client, client.open("s3://bucket/key") as object:
        head = object.read(0, 100)
"""

import argparse
import array
import os
import socket
import struct
import sys

HEAD = struct.Struct("<IB3xQ")
FILES = 1
BODY_BYTES_MAX = 4 << 20


class Failed(Exception):
    """The server's `FAILED`."""

    NAMES = {1: "not found", 2: "changed", 3: "throttled", 4: "denied", 5: "transient",
             6: "damaged", 7: "permanent", 8: "unauthorized", 9: "malformed"}

    def __init__(self, code, retry_after_ms, text):
        super().__init__(f"{self.NAMES.get(code, 'transient')}: {text}")
        self.code, self.retry_after_ms = code, retry_after_ms


def text(value):
    value = value.encode()
    return struct.pack("<H", len(value)) + value


class Client:
    """One connection: a Unix socket's path, or ("host", port) with a token. One request at a time."""

    def __init__(self, place, token="", timeout=60):
        family = socket.AF_UNIX if isinstance(place, str) else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        self.socket.connect(place)
        self.files, self.buffer, self.id = [], b"", 0
        wants = FILES if family == socket.AF_UNIX else 0
        body = self.ask(1, b"extmem-1" + struct.pack("<I", wants) + text(token), 129)
        self.has, _, self.read_bytes_max = struct.unpack("<IIQ", body)

    def ask(self, kind, body, *expected):
        """Sends a request and returns the body of its answer."""
        self.id += 1
        self.socket.sendall(HEAD.pack(len(body), kind, self.id) + body)
        length, kind, number = HEAD.unpack(self.take(HEAD.size))
        if length > BODY_BYTES_MAX or number != self.id:
            raise ConnectionError("this is no answer")
        body = self.take(length)
        if kind == 255:
            code, retry_after_ms, size = struct.unpack_from("<HIH", body)
            raise Failed(code, retry_after_ms, body[8:8 + size].decode())
        if kind not in expected:
            raise ConnectionError(f"an answer of kind {kind}")
        self.kind = kind
        return body

    def take(self, count):
        while len(self.buffer) < count:
            space = socket.CMSG_SPACE(16 * 4)
            data, control, flags, _ = self.socket.recvmsg(1 << 20, space)
            for level, kind, value in control:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds = array.array("i")
                    fds.frombytes(value[:len(value) - len(value) % fds.itemsize])
                    self.files.extend(fds)
            if not data or flags & socket.MSG_CTRUNC:
                raise ConnectionError("the server left")
            self.buffer += data
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def open(self, url):
        return Object(self, url)

    def close(self):
        self.socket.close()
        for fd in self.files:
            os.close(fd)
        self.files = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Object:
    """An open object, at the version that it had then."""

    def __init__(self, client, url):
        self.client = client
        body = client.ask(2, b"\0" + text(url), 130)
        self.handle, self.length, self.alignment, self.part = struct.unpack_from("<IQQQ", body)
        size, = struct.unpack_from("<H", body, 29)
        self.strong, self.version = body[28] == 1, body[31:31 + size].decode()
        self.part_of_file = None

    def read(self, offset, length):
        """Bytes from `offset` on, fewer only at the end of the object."""
        length = max(0, min(length, self.length - offset))
        parts = []
        while length > 0:
            part = self.read_some(offset, length)
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def read_some(self, offset, length):
        # A descriptor is good for all that its answer named: no question for that.
        if self.part_of_file:
            start, end, fd, position = self.part_of_file
            if start <= offset < end:
                count = min(length, end - offset)
                data = os.pread(fd, count, position + offset - start)
                if not data:
                    raise ConnectionError("a file that is shorter than the server said")
                return data
        length = min(length, self.client.read_bytes_max)
        wants_file = self.client.has & FILES
        body = self.client.ask(
            3, struct.pack("<IQQB", self.handle, offset, length, wants_file), 131, 132)
        if self.client.kind == 131:
            return body
        position, good = struct.unpack("<QQ", body)
        self.forget_file()
        self.part_of_file = (offset, offset + good, self.client.files.pop(0), position)
        return self.read_some(offset, length)

    def forget_file(self):
        if self.part_of_file:
            os.close(self.part_of_file[2])
            self.part_of_file = None

    def close(self):
        self.forget_file()
        self.client.ask(5, struct.pack("<I", self.handle), 133)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("place", help="path of the Unix socket, or host:port")
    parser.add_argument("url")
    parser.add_argument("--token", default="", help="of a TCP listener")
    parser.add_argument("--range", help="FIRST-LAST; without it, everything")
    parser.add_argument("--stat", action="store_true", help="print length and version instead")
    args = parser.parse_args()
    place = args.place
    if "/" not in place:
        host, port = place.rsplit(":", 1)
        place = (host, int(port))
    try:
        with Client(place, args.token) as client, client.open(args.url) as found:
            if args.stat:
                print(found.length, found.version)
                return
            first, last = 0, found.length - 1
            if args.range:
                first, last = (int(number) for number in args.range.split("-"))
            while first <= last:
                data = found.read(first, min(1 << 20, last + 1 - first))
                if not data:
                    break
                sys.stdout.buffer.write(data)
                first += len(data)
    except (Failed, OSError) as error:
        sys.exit(f"extmem_client: {error}")


if __name__ == "__main__":
    main()
