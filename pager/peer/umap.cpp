// Reads a file through LLNL UMap, as often as it is told, and says what each pass took:
//
//   UMAP_PAGESIZE=2097152 UMAP_BUFSIZE=320 peer-umap FILE
//
//   a line in      one line out: sum of all words, nanoseconds of wall and of processor time
//   plain          over memory that holds the first bytes of the file already, at most 64 MiB
//   read           over a new mapping of the file, from the mapping on
//   announced      the same, after all pages were announced to UMap, which is on the clock too
//
// It ends with its input. Built by umap.sh, outside of the workspace; `make bench` runs it beside ours.

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <exception>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "umap/umap.h"

namespace {

const size_t PLAIN_MAX = 64 << 20;
// A fault on an announced page may still be on its way to UMap's thread when the page is there. Where the mapping
// is gone by then, UMap fills a page that is full, and ends the process.
const std::chrono::milliseconds FAULTS_SEEN(100);

uint64_t sum(const uint64_t *words, size_t count) {
    uint64_t total = 0;
    for (size_t at = 0; at < count; ++at)
        total += words[at];
    return total;
}

uint64_t processor_ns() {
    timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return uint64_t(now.tv_sec) * 1000000000 + uint64_t(now.tv_nsec);
}

// What a pass found and took.
class Pass {
  public:
    Pass() : wall_(std::chrono::steady_clock::now()), cpu_(processor_ns()) {}

    void end(uint64_t found) {
        auto wall = std::chrono::steady_clock::now() - wall_;
        cpu_ = processor_ns() - cpu_;
        ns_ = std::chrono::duration_cast<std::chrono::nanoseconds>(wall).count();
        found_ = found;
    }

    void tell() const {
        std::cout << found_ << ' ' << ns_ << ' ' << cpu_ << std::endl;
    }

  private:
    std::chrono::steady_clock::time_point wall_;
    uint64_t cpu_;
    int64_t ns_ = 0;
    uint64_t found_ = 0;
};

// The file, and what of it lies in memory.
struct Object {
    int fd;
    size_t len;
    std::vector<uint64_t> plain;
};

bool open_object(const char *path, Object &object) {
    struct stat found;
    object.fd = open(path, O_RDONLY | O_CLOEXEC);
    if (object.fd < 0 || fstat(object.fd, &found) != 0)
        return false;
    object.len = size_t(found.st_size);
    size_t bytes = object.len < PLAIN_MAX ? object.len : PLAIN_MAX;
    object.plain.resize(bytes / sizeof(uint64_t));
    char *into = reinterpret_cast<char *>(object.plain.data());
    for (size_t done = 0; done < bytes;) {
        ssize_t got = pread(object.fd, into + done, bytes - done, off_t(done));
        if (got <= 0)
            return false;
        done += size_t(got);
    }
    return true;
}

// Announces every page, in order.
void announce(char *bytes, size_t len) {
    size_t page = umapcfg_get_umap_page_size();
    std::vector<umap_prefetch_item> pages;
    for (size_t at = 0; at < len; at += page)
        pages.push_back({bytes + at});
    umap_prefetch(int(pages.size()), pages.data());
}

bool read_through_umap(const Object &object, bool announced) {
    Pass pass;
    void *bytes = umap(nullptr, object.len, PROT_READ, UMAP_PRIVATE, object.fd, 0);
    if (bytes == UMAP_FAILED)
        return false;
    if (announced)
        announce(static_cast<char *>(bytes), object.len);
    pass.end(sum(static_cast<const uint64_t *>(bytes), object.len / sizeof(uint64_t)));
    if (announced)
        std::this_thread::sleep_for(FAULTS_SEEN);
    // It leaves the memory mapped.
    if (uunmap(bytes, object.len) != 0 || munmap(bytes, object.len) != 0)
        return false;
    pass.tell();
    return true;
}

bool serve(const Object &object) {
    std::string command;
    while (std::getline(std::cin, command)) {
        if (command == "plain") {
            Pass pass;
            pass.end(sum(object.plain.data(), object.plain.size()));
            pass.tell();
        } else if (command != "read" && command != "announced") {
            std::cerr << "peer-umap: no command: " << command << '\n';
            return false;
        } else if (!read_through_umap(object, command == "announced")) {
            std::cerr << "peer-umap: " << strerror(errno) << '\n';
            return false;
        }
    }
    return true;
}

} // namespace

int main(int argc, char **argv) {
    Object object;
    if (argc != 2) {
        std::cerr << "usage: peer-umap FILE\n";
        return 2;
    }
    if (!open_object(argv[1], object)) {
        std::cerr << "peer-umap: " << argv[1] << ": " << strerror(errno) << '\n';
        return 1;
    }
    try {
        return serve(object) ? 0 : 1;
    } catch (const std::exception &error) {
        std::cerr << "peer-umap: " << error.what() << '\n';
        return 1;
    }
}
