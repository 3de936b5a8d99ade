/* Records what a process asks the kernel to keep, for the power-cut model (model.py).
 *
 * LD_PRELOAD=record.so RECORD_ROOT=/folder RECORD_LOG=/file: each call that changes a file or a name below RECORD_ROOT
 * is done, then logged by one O_APPEND write, so the order of the log is the order in which calls ended. A sync is
 * logged twice, when it begins and when it has ended well: what it covers was logged before it began.
 * It sits below Python, so liblmdb's and the native committer's calls are in it. Writes through a shared mapping are not seen:
 * IEMS maps nothing writable but the board and LMDB's lock file, and neither is read after a reboot.
 *
 * To show that a safety test can fail: RECORD_NO_SYNC=TEXT drops every sync of a file whose path holds TEXT, RECORD_LATE_SYNC=TEXT
 * answers it at once and does it 20 ms later.
 *
 * A record: struct head, then `path` octets of path, then `path2`, then `data` octets. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OP_WRITE = 1, OP_SYNC_BEGIN, OP_SYNC_END, OP_CREATE, OP_RENAME, OP_LINK, OP_UNLINK, OP_TRUNCATE, OP_MKDIR, OP_PUNCH, OP_ALLOCATE };
struct head { uint32_t magic, op; uint64_t inode; int64_t offset; uint64_t data; uint32_t path, path2; uint32_t durable, pid; };

static int log_fd = -1;
static char root[PATH_MAX];
static const char *no_sync, *late_sync;
static size_t root_len;

__attribute__((constructor)) static void begin(void) {
    const char *r = getenv("RECORD_ROOT"), *l = getenv("RECORD_LOG");
    if (!r || !l || !realpath(r, root)) return;
    root_len = strlen(root);
    no_sync = getenv("RECORD_NO_SYNC");
    late_sync = getenv("RECORD_LATE_SYNC");
    int fd = syscall(SYS_openat, AT_FDCWD, l, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return;
    /* out of the way of the descriptors a program counts or closes by number */
    log_fd = syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 900);
    syscall(SYS_close, fd);
}

static int below(const char *path) { return root_len && !strncmp(path, root, root_len) && (path[root_len] == '/' || !path[root_len]); }

static void emit(uint32_t op, uint64_t inode, int64_t offset, int durable, const char *path, const char *path2,
                 const struct iovec *data, int count, size_t total) {
    struct head h = {0x31435250, op, inode, offset, total, path ? strlen(path) : 0, path2 ? strlen(path2) : 0, durable, getpid()};
    struct iovec v[1030] = {{&h, sizeof h}, {(void *)path, h.path}, {(void *)path2, h.path2}};
    int n = 3;
    size_t left = total;
    for (int i = 0; i < count && left && n < 1030; i++) {
        size_t take = data[i].iov_len < left ? data[i].iov_len : left;
        v[n].iov_base = data[i].iov_base;
        v[n++].iov_len = take;
        left -= take;
    }
    int saved = errno;
    size_t want = sizeof h + h.path + h.path2 + total;
    if ((size_t)syscall(SYS_writev, log_fd, v, n) != want) { static const char m[] = "record: log write failed\n"; syscall(SYS_write, 2, m, sizeof m - 1); abort(); }
    errno = saved;
}

/* The file behind a descriptor, if it lies below the root. */
static int file_of(int fd, struct stat *st, char *path) {
    char link[40];
    if (log_fd < 0 || fd == log_fd || fstat(fd, st) || !(S_ISREG(st->st_mode) || S_ISDIR(st->st_mode))) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return below(path);
}

static void wrote(int fd, const struct iovec *v, int count, off_t offset, ssize_t done) {
    struct stat st;
    char path[PATH_MAX];
    if (done <= 0 || !file_of(fd, &st, path)) return;
    int flags = syscall(SYS_fcntl, fd, F_GETFL);
    if (offset < 0) offset = (flags & O_APPEND ? st.st_size : lseek(fd, 0, SEEK_CUR)) - done;
    emit(OP_WRITE, st.st_ino, offset, (flags & O_DSYNC) != 0, path, 0, v, count, done);
}

static int absolute(int dir, const char *name, char *out) {
    char base[PATH_MAX];
    if (name[0] == '/') return snprintf(out, PATH_MAX, "%s", name) < PATH_MAX && below(out);
    if (dir == AT_FDCWD) { if (!getcwd(base, sizeof base)) return 0; }
    else {
        char link[40];
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, base, PATH_MAX - 1);
        if (n <= 0) return 0;
        base[n] = 0;
    }
    return snprintf(out, PATH_MAX, "%s/%s", base, name) < PATH_MAX && below(out);
}


ssize_t write(int fd, const void *b, size_t n) { ssize_t r = syscall(SYS_write, fd, b, n); struct iovec v = {(void *)b, n}; if (log_fd >= 0) wrote(fd, &v, 1, -1, r); return r; }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { ssize_t r = syscall(SYS_pwrite64, fd, b, n, o); struct iovec v = {(void *)b, n}; if (log_fd >= 0) wrote(fd, &v, 1, o, r); return r; }
ssize_t pwrite64(int fd, const void *b, size_t n, off_t o) { return pwrite(fd, b, n, o); }
ssize_t writev(int fd, const struct iovec *v, int c) { ssize_t r = syscall(SYS_writev, fd, v, c); if (log_fd >= 0) wrote(fd, v, c, -1, r); return r; }
ssize_t pwritev(int fd, const struct iovec *v, int c, off_t o) { ssize_t r = syscall(SYS_pwritev, fd, v, c, o, 0); if (log_fd >= 0) wrote(fd, v, c, o, r); return r; }
ssize_t pwritev64(int fd, const struct iovec *v, int c, off_t o) { return pwritev(fd, v, c, o); }

static int synced(int fd, long call);

struct late { int fd; long call; };

static void *do_late(void *given) {
    struct late *l = given;
    usleep(20000);
    late_sync = 0; /* this thread's look at it comes after the answer; one late sync at a time is enough to fail a test */
    synced(l->fd, l->call);
    late_sync = getenv("RECORD_LATE_SYNC");
    syscall(SYS_close, l->fd);
    free(l);
    return 0;
}

static int synced(int fd, long call) {
    struct stat st;
    char path[PATH_MAX];
    int ours = file_of(fd, &st, path);
    if (ours && no_sync && strstr(path, no_sync)) return 0;
    if (ours && late_sync && strstr(path, late_sync)) {
        struct late *l = malloc(sizeof *l);
        pthread_t thread;
        l->fd = syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 900);
        l->call = call;
        if (l->fd >= 0 && !pthread_create(&thread, 0, do_late, l)) { pthread_detach(thread); return 0; }
    }
    if (ours) emit(OP_SYNC_BEGIN, st.st_ino, 0, 0, path, 0, 0, 0, 0);
    int r = syscall(call, fd);
    if (ours && r == 0) emit(OP_SYNC_END, st.st_ino, 0, 0, path, 0, 0, 0, 0);
    return r;
}
int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

static int opened(int dir, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    int ours = log_fd >= 0 && absolute(dir, name, path), there = 0;
    if (ours && (flags & O_CREAT)) there = syscall(SYS_faccessat, AT_FDCWD, path, F_OK) == 0;
    int fd = syscall(SYS_openat, dir, name, flags, mode);
    struct stat st;
    if (ours && fd >= 0 && !fstat(fd, &st) && S_ISREG(st.st_mode)) {
        if ((flags & O_CREAT) && !there) emit(OP_CREATE, st.st_ino, 0, 0, path, 0, 0, 0, 0);
        else if (flags & O_TRUNC) emit(OP_TRUNCATE, st.st_ino, 0, 0, path, 0, 0, 0, 0);
    }
    return fd;
}
#define MODE mode_t m = 0; if (f & (O_CREAT | O_TMPFILE)) { va_list a; va_start(a, f); m = va_arg(a, int); va_end(a); }
int open(const char *p, int f, ...) { MODE return opened(AT_FDCWD, p, f, m); }
int open64(const char *p, int f, ...) { MODE return opened(AT_FDCWD, p, f, m); }
int openat(int d, const char *p, int f, ...) { MODE return opened(d, p, f, m); }
int openat64(int d, const char *p, int f, ...) { MODE return opened(d, p, f, m); }

static int named(uint32_t op, int d1, const char *a, int d2, const char *b, int r) {
    char x[PATH_MAX], y[PATH_MAX];
    if (r == 0 && log_fd >= 0) {
        int ours = absolute(d1, a, x), ours2 = b ? absolute(d2, b, y) : 0;
        struct stat st = {0};
        if (ours || ours2) {
            if (op != OP_UNLINK) lstat(b ? y : x, &st);
            emit(op, st.st_ino, 0, 0, x, b ? y : 0, 0, 0, 0);
        }
    }
    return r;
}
int rename(const char *a, const char *b) { return named(OP_RENAME, AT_FDCWD, a, AT_FDCWD, b, syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, 0)); }
int renameat(int d, const char *a, int e, const char *b) { return named(OP_RENAME, d, a, e, b, syscall(SYS_renameat2, d, a, e, b, 0)); }
int link(const char *a, const char *b) { return named(OP_LINK, AT_FDCWD, a, AT_FDCWD, b, syscall(SYS_linkat, AT_FDCWD, a, AT_FDCWD, b, 0)); }
int linkat(int d, const char *a, int e, const char *b, int f) { return named(OP_LINK, d, a, e, b, syscall(SYS_linkat, d, a, e, b, f)); }
int unlink(const char *a) { return named(OP_UNLINK, AT_FDCWD, a, 0, 0, syscall(SYS_unlinkat, AT_FDCWD, a, 0)); }
int unlinkat(int d, const char *a, int f) { return named(OP_UNLINK, d, a, 0, 0, syscall(SYS_unlinkat, d, a, f)); }
int rmdir(const char *a) { return named(OP_UNLINK, AT_FDCWD, a, 0, 0, syscall(SYS_unlinkat, AT_FDCWD, a, AT_REMOVEDIR)); }
int mkdir(const char *a, mode_t m) { return named(OP_MKDIR, AT_FDCWD, a, 0, 0, syscall(SYS_mkdirat, AT_FDCWD, a, m)); }
int mkdirat(int d, const char *a, mode_t m) { return named(OP_MKDIR, d, a, 0, 0, syscall(SYS_mkdirat, d, a, m)); }

static int cut(int fd, off_t n, int r) {
    struct stat st;
    char path[PATH_MAX];
    if (r == 0 && file_of(fd, &st, path)) emit(OP_TRUNCATE, st.st_ino, n, 0, path, 0, 0, 0, 0);
    return r;
}
int ftruncate(int fd, off_t n) { return cut(fd, n, syscall(SYS_ftruncate, fd, n)); }
int ftruncate64(int fd, off_t n) { return ftruncate(fd, n); }
int fallocate(int fd, int mode, off_t o, off_t n) {
    struct stat st;
    char path[PATH_MAX];
    int r = syscall(SYS_fallocate, fd, mode, o, n);
    if (r == 0 && (mode & 2) && file_of(fd, &st, path)) emit(OP_PUNCH, st.st_ino, o, (int)(n >> 9), path, 0, 0, 0, 0);
    if (r == 0 && !mode && file_of(fd, &st, path)) emit(OP_ALLOCATE, st.st_ino, o + n, 0, path, 0, 0, 0, 0);
    return r;
}
int fallocate64(int fd, int mode, off_t o, off_t n) { return fallocate(fd, mode, o, n); }
int posix_fallocate(int fd, off_t o, off_t n) { int before = errno, r = fallocate(fd, 0, o, n) ? errno : 0; errno = before; return r; }
int posix_fallocate64(int fd, off_t o, off_t n) { return posix_fallocate(fd, o, n); }
