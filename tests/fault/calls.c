/*
 * Counts the system calls of a process that change files below a folder, and lets the n-th fail or kill the process.
 * Preloaded, it sees Python's calls and SQLite's alike, and needs no right to trace other processes.
 *
 *   calls_arm(below, log, at, mode): count from now on, in all threads. mode 0: only count; 1: SIGKILL before call `at`;
 *   2: it fails with EIO; 3: it and all later ones fail with EIO. A line a call goes to the file `log`.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

enum { COUNT, KILL, FAIL, FAIL_ON };

static char below[PATH_MAX];
static int log_file = -1, mode;
static long at;
static atomic_long calls;

void calls_arm(const char *folder, const char *log, long n, int how) {
    snprintf(below, sizeof below, "%s", folder);
    log_file = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    at = n;
    mode = how;
    atomic_store(&calls, 0);
}

/* Whether this call is one of those counted and is to fail. Where the process is to die, it does not return. */
static int hit(const char *name, const char *path) {
    if (log_file < 0 || strncmp(path, below, strlen(below)) != 0)
        return 0;
    long n = atomic_fetch_add(&calls, 1) + 1;
    char line[PATH_MAX + 64];
    int size = snprintf(line, sizeof line, "%ld %s %s\n", n, name, path + strlen(below));
    syscall(SYS_write, log_file, line, size);
    if (n == at && mode == KILL)
        syscall(SYS_kill, getpid(), SIGKILL);
    if ((n == at && mode == FAIL) || (n >= at && mode == FAIL_ON)) {
        errno = EIO;
        return 1;
    }
    return 0;
}

static const char *path_of(int file, char *room) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, room, PATH_MAX - 1);
    room[size < 0 ? 0 : size] = 0;
    return room;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) \
        real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name);

#define CALL(name, path, ...) \
    REAL(name) \
    return hit(#name, path) ? -1 : real(__VA_ARGS__);

#define ON_PATH(name, declared, path, ...) \
    int name declared { CALL(name, path, __VA_ARGS__) }
#define ON_FILE(type, name, declared, file, ...) \
    type name declared { \
        char room[PATH_MAX]; \
        CALL(name, path_of(file, room), __VA_ARGS__) \
    }

ON_FILE(ssize_t, write, (int f, const void *data, size_t n), f, f, data, n)
ON_FILE(ssize_t, pwrite, (int f, const void *data, size_t n, off_t o), f, f, data, n, o)
ON_FILE(ssize_t, pwrite64, (int f, const void *data, size_t n, off64_t o), f, f, data, n, o)
ON_FILE(int, fsync, (int f), f, f)
ON_FILE(int, fdatasync, (int f), f, f)
ON_FILE(int, syncfs, (int f), f, f)
ON_FILE(int, ftruncate, (int f, off_t n), f, f, n)
ON_FILE(int, ftruncate64, (int f, off64_t n), f, f, n)
ON_FILE(int, fchmod, (int f, mode_t m), f, f, m)
ON_FILE(int, futimens, (int f, const struct timespec t[2]), f, f, t)
ON_PATH(rename, (const char *a, const char *b), b, a, b)
ON_PATH(link, (const char *a, const char *b), b, a, b)
ON_PATH(linkat, (int d, const char *a, int e, const char *b, int flags), b, d, a, e, b, flags)
ON_PATH(renameat2, (int d, const char *a, int e, const char *b, unsigned int flags), b, d, a, e, b, flags)
ON_PATH(symlink, (const char *a, const char *b), b, a, b)
ON_PATH(unlink, (const char *a), a, a)
ON_PATH(rmdir, (const char *a), a, a)
ON_PATH(mkdir, (const char *a, mode_t m), a, a, m)
ON_PATH(chmod, (const char *a, mode_t m), a, a, m)
ON_PATH(utimensat, (int f, const char *a, const struct timespec t[2], int flags), a, f, a, t, flags)

/* Opening a file to write to it, or anew. */
#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name) \
        mode_t m = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list rest; \
            va_start(rest, flags); \
            m = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        if ((flags & O_ACCMODE) == O_RDONLY && !(flags & O_CREAT)) \
            return real(path, flags, m); \
        return hit(#name, path) ? -1 : real(path, flags, m); \
    }

OPENS(open)
OPENS(open64)
