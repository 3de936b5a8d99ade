/* Faults below Python and below the native code: LD_PRELOAD=shim.so FAULT_DIR=/folder.
 *
 * While FAULT_DIR/rule exists, calls on files whose path holds a word fail. It says, in one line:
 *     CALL ERRNO COUNT WORD       CALL: sync (fsync, fdatasync) or write (write, pwrite, writev, pwritev and their 64s)
 * COUNT 1: one call of all processes (who unlinks the rule first has it); 0: every call until the test removes the rule.
 * COUNT -1: the call is left out and said to have gone well (a disk that lies). FAULT_DIR/hits gets a line "PID CALL PATH"
 * for each. FAULT_DIR/clock, if it is there when a process starts, holds a signed 64-bit number of nanoseconds by which the wall
 * clock is off; other clocks are right. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static char rule_path[PATH_MAX], hits_path[PATH_MAX];
static const volatile int64_t *off_ns;

__attribute__((constructor)) static void begin(void) {
    const char *dir = getenv("FAULT_DIR");
    char path[PATH_MAX];
    if (!dir) return;
    snprintf(rule_path, sizeof rule_path, "%s/rule", dir);
    snprintf(hits_path, sizeof hits_path, "%s/hits", dir);
    snprintf(path, sizeof path, "%s/clock", dir);
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        void *at = mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
        if (at != MAP_FAILED) off_ns = at;
        syscall(SYS_close, fd);
    }
}

/* Whether this call is to fail: its errno, -1 to leave it out, 0 to do it. */
static int verdict(const char *call, int fd) {
    char text[256], wanted[16], word[128], link[40], path[PATH_MAX];
    int number, count, saved = errno, found = 0;
    if (!rule_path[0]) return 0;
    int rule = syscall(SYS_openat, AT_FDCWD, rule_path, O_RDONLY | O_CLOEXEC);
    if (rule < 0) { errno = saved; return 0; }
    ssize_t n = syscall(SYS_read, rule, text, sizeof text - 1);
    syscall(SYS_close, rule);
    if (n > 0) {
        text[n] = 0;
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t m = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
        if (m > 0 && sscanf(text, "%15s %d %d %127s", wanted, &number, &count, word) == 4 && !strcmp(wanted, call)) {
            path[m] = 0;
            if (strstr(path, word) && (count != 1 || syscall(SYS_unlinkat, AT_FDCWD, rule_path, 0) == 0)) {
                int hits = syscall(SYS_openat, AT_FDCWD, hits_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
                n = snprintf(text, sizeof text, "%d %s %.180s\n", (int)getpid(), call, path);
                if (hits >= 0) { syscall(SYS_write, hits, text, n); syscall(SYS_close, hits); }
                found = count == -1 ? -1 : number;
            }
        }
    }
    errno = saved;
    return found;
}

#define FAULT(call, fd, done) do { int v = verdict(call, fd); if (v > 0) { errno = v; return -1; } if (v < 0) return done; } while (0)

int fsync(int fd) { FAULT("sync", fd, 0); return syscall(SYS_fsync, fd); }
int fdatasync(int fd) { FAULT("sync", fd, 0); return syscall(SYS_fdatasync, fd); }
ssize_t write(int fd, const void *b, size_t n) { FAULT("write", fd, (ssize_t)n); return syscall(SYS_write, fd, b, n); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { FAULT("write", fd, (ssize_t)n); return syscall(SYS_pwrite64, fd, b, n, o); }
ssize_t pwrite64(int fd, const void *b, size_t n, off_t o) { return pwrite(fd, b, n, o); }
static ssize_t all(const struct iovec *v, int c) { ssize_t n = 0; for (int i = 0; i < c; i++) n += v[i].iov_len; return n; }
ssize_t writev(int fd, const struct iovec *v, int c) { FAULT("write", fd, all(v, c)); return syscall(SYS_writev, fd, v, c); }
ssize_t pwritev(int fd, const struct iovec *v, int c, off_t o) { FAULT("write", fd, all(v, c)); return syscall(SYS_pwritev, fd, v, c, o, 0); }
ssize_t pwritev64(int fd, const struct iovec *v, int c, off_t o) { return pwritev(fd, v, c, o); }

int clock_gettime(clockid_t clock, struct timespec *at) {
    int r = syscall(SYS_clock_gettime, clock, at);
    if (!r && off_ns && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t ns = at->tv_sec * 1000000000LL + at->tv_nsec + *off_ns;
        at->tv_sec = ns / 1000000000LL;
        at->tv_nsec = ns % 1000000000LL;
    }
    return r;
}
int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec t;
    (void)zone;
    int r = clock_gettime(CLOCK_REALTIME, &t);
    if (!r) { at->tv_sec = t.tv_sec; at->tv_usec = t.tv_nsec / 1000; }
    return r;
}
time_t time(time_t *out) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (out) *out = t.tv_sec;
    return t.tv_sec;
}
