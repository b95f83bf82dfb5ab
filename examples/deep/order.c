/*
 * What ThreadSanitizer does not see of `std`, told to it.
 *
 * The standard library comes compiled, without the sanitizer: where a thread had to wait for a lock, the
 * steps that order it after the one that held it are taken in there. Each of these functions of `std` is called
 * through one here (`ld --wrap`), which tells the order. Its name, as it is mangled, is a macro: `sanitize.sh`
 * finds it in a program.
 *
 * The order told is the one that is there, but for a count of references: `Arc` goes by a fence, which the
 * sanitizer does not model, so each subtraction that releases is told as one that acquires too.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void __tsan_acquire(void *addr);
void __tsan_release(void *addr);

#define JOIN(a, b) a##b
#define NAME(prefix, name) JOIN(prefix, name)
#define REAL(name) NAME(__real_, name)
#define WRAP(name) NAME(__wrap_, name)

void REAL(MUTEX_LOCK)(void *mutex);
void WRAP(MUTEX_LOCK)(void *mutex)
{
    REAL(MUTEX_LOCK)(mutex);
    __tsan_acquire(mutex);
}

void REAL(RWLOCK_READ)(void *lock);
void WRAP(RWLOCK_READ)(void *lock)
{
    REAL(RWLOCK_READ)(lock);
    __tsan_acquire(lock);
}

void REAL(RWLOCK_WRITE)(void *lock);
void WRAP(RWLOCK_WRITE)(void *lock)
{
    REAL(RWLOCK_WRITE)(lock);
    __tsan_acquire(lock);
}

/* Both leave the lock, and take it again. */
void REAL(CONDVAR_WAIT)(void *condvar, void *mutex);
void WRAP(CONDVAR_WAIT)(void *condvar, void *mutex)
{
    __tsan_release(mutex);
    REAL(CONDVAR_WAIT)(condvar, mutex);
    __tsan_acquire(mutex);
}

bool REAL(CONDVAR_WAIT_TIMEOUT)(void *condvar, void *mutex, uint64_t secs, uint32_t nanos);
bool WRAP(CONDVAR_WAIT_TIMEOUT)(void *condvar, void *mutex, uint64_t secs, uint32_t nanos)
{
    __tsan_release(mutex);
    bool in_time = REAL(CONDVAR_WAIT_TIMEOUT)(condvar, mutex, secs, nanos);
    __tsan_acquire(mutex);
    return in_time;
}

/* `run` is a `&mut dyn FnMut(&OnceState)`: data, and the table of its functions. */
struct run {
    void *data;
    void **table;
    void *once;
};

/* The fourth of a table is the first method: after drop, size and alignment come call_once, call_mut. */
static void run_and_tell(void *data, void *state)
{
    struct run *run = data;
    ((void (*)(void *, void *))run->table[4])(run->data, state);
    __tsan_release(run->once);
}

void REAL(ONCE_CALL)(void *once, bool ignore_poison, void *data, void **table, const void *place);
void WRAP(ONCE_CALL)(void *once, bool ignore_poison, void *data, void **table, const void *place)
{
    struct run run = { data, table, once };
    void *told[5] = { NULL, (void *)sizeof run, (void *)_Alignof(struct run), NULL, (void *)run_and_tell };
    REAL(ONCE_CALL)(once, ignore_poison, &run, told, place);
    __tsan_acquire(once);
}

/* A thread of a scope ends; who waits for all looks at a count, one of the first words of this. */
void REAL(SCOPE_END)(void *scope, bool panicked);
void WRAP(SCOPE_END)(void *scope, bool panicked)
{
    for (int word = 0; word < 3; word++)
        __tsan_release((uint64_t *)scope + word);
    REAL(SCOPE_END)(scope, panicked);
}

enum { RELEASE = 3, ACQ_REL = 4 };

int64_t REAL(__tsan_atomic64_fetch_sub)(volatile int64_t *at, int64_t less, int order);
int64_t WRAP(__tsan_atomic64_fetch_sub)(volatile int64_t *at, int64_t less, int order)
{
    return REAL(__tsan_atomic64_fetch_sub)(at, less, order == RELEASE ? ACQ_REL : order);
}
