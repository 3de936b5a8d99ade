"""Group commit: a thread of its own writes records to one segment and flushes them, without the interpreter's lock.

Records are laid out here (docs/spool.md): header, payload, content, checksum. Offsets are given at `submit`, in order; when one
write fails every later one fails with it, so a record's neighbours are known before it is written. Nothing is copied: the
buffers are exported until `reap` hands the token back, so nobody can change what is being written.

While groups are small, zeros are written ahead of them, together with a group that leaves what was prepared: a flush of blocks that are
there already writes no inode, which is half of its time. Large groups are appended; sealing cuts the zeros off.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EINTR, EIO, ENOMEM, errno
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

cdef extern from "crc32c.h" nogil:
    uint32_t crc32c_update(uint32_t crc, const void *p, size_t n)

cdef extern from "<errno.h>" nogil:
    int ETIMEDOUT, ECANCELED

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t pwritev(int fd, const iovec *iov, int count, long offset)

cdef extern from "<unistd.h>" nogil:
    int fdatasync(int fd)
    int ftruncate(int fd, long length)
    ssize_t write(int fd, const void *p, size_t n)

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *at)
    int CLOCK_MONOTONIC

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_condattr_t:
        pass
    int pthread_create(pthread_t *thread, const void *attr, void *(*run)(void *) noexcept nogil, void *arg)
    int pthread_join(pthread_t thread, void **value)
    int pthread_mutex_init(pthread_mutex_t *m, const void *attr)
    int pthread_mutex_destroy(pthread_mutex_t *m)
    int pthread_mutex_lock(pthread_mutex_t *m)
    int pthread_mutex_unlock(pthread_mutex_t *m)
    int pthread_condattr_init(pthread_condattr_t *a)
    int pthread_condattr_setclock(pthread_condattr_t *a, int clock)
    int pthread_cond_init(pthread_cond_t *c, const pthread_condattr_t *a)
    int pthread_cond_destroy(pthread_cond_t *c)
    int pthread_cond_signal(pthread_cond_t *c)
    int pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m)
    int pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const timespec *at)

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t *s)
    int pthread_sigmask(int how, const sigset_t *fresh, sigset_t *old)
    int SIG_SETMASK

cdef enum:
    HEAD = 64
    FOOTER = 7
    MAX_PIECES = 256
    MAX_IOVECS = 1024
    MAX_GROUP = 8388608
    ZEROS = 65536
    BLOCK = 4096
    MAX_AHEAD = 4194304
    SMALL = 8                # a group is small up to this part of what is prepared at once

cdef unsigned char[ZEROS] zeros


cdef struct Entry:
    uint64_t offset
    uint64_t length          # with header, checksum and padding
    unsigned char head[HEAD]
    unsigned char tail[16]
    size_t tail_length
    int flush
    int failed
    int pieces
    Py_buffer *views         # the payload first
    PyObject *token
    Entry *next


cdef struct State:
    pthread_mutex_t mutex
    pthread_cond_t wake
    pthread_t thread
    Entry *first
    Entry *last
    Entry *done_first
    Entry *done_last
    unsigned char *heads     # headers of all records written, for the footer
    size_t heads_length
    size_t heads_room
    unsigned char nonce[8]
    uint64_t written
    uint64_t prepared        # end of the zeros written ahead; below `written` if there are none
    uint64_t ahead           # octets prepared at once; 0: none
    uint64_t flushed
    uint64_t flushes
    long dirty_s             # monotonic second by which unflushed octets must be flushed; 0: none are
    long dirty_ns
    long delay_ms
    int fd
    int notify
    int failed               # errno of the first failure
    int stop
    int seal
    int sealed


cdef inline void _put16(unsigned char *p, uint16_t v) noexcept nogil:
    p[0] = v & 255
    p[1] = v >> 8


cdef inline void _put32(unsigned char *p, uint32_t v) noexcept nogil:
    cdef int i
    for i in range(4):
        p[i] = (v >> (8 * i)) & 255


cdef inline void _put64(unsigned char *p, uint64_t v) noexcept nogil:
    cdef int i
    for i in range(8):
        p[i] = (v >> (8 * i)) & 255


cdef void _head(unsigned char *head, int kind, int flags, int generation, const unsigned char *nonce, uint64_t offset,
                const unsigned char *id, uint64_t queue_ms, uint32_t payload, uint32_t content) noexcept nogil:
    memcpy(head, b"IRec", 4)
    head[4] = kind
    head[5] = flags
    _put16(head + 6, generation)
    memcpy(head + 8, nonce, 8)
    _put64(head + 16, offset)
    memcpy(head + 24, id, 16)
    _put64(head + 40, queue_ms)
    _put32(head + 48, payload)
    _put32(head + 52, content)
    _put32(head + 56, 0)
    _put32(head + 60, crc32c_update(0, head, 60))


cdef inline void _tell(State *s) noexcept nogil:
    """With the lock held, but not while it tells: the loop wakes and asks for the lock at once, and would sleep again."""
    cdef uint64_t one = 1
    pthread_mutex_unlock(&s.mutex)
    while write(s.notify, &one, 8) < 0 and errno == EINTR:
        pass
    pthread_mutex_lock(&s.mutex)


cdef int _write_all(State *s, iovec *iov, int count, uint64_t offset) noexcept nogil:
    """Write every octet of iov[:count] at `offset`; 0 or an errno. Changes iov."""
    cdef ssize_t n
    cdef int first = 0
    while first < count:
        n = pwritev(s.fd, iov + first, min(count - first, MAX_IOVECS), <long> offset)
        if n < 0:
            if errno == EINTR:
                continue
            return errno
        if n == 0:
            return EIO
        offset += n
        while first < count and <size_t> n >= iov[first].iov_len:
            n -= iov[first].iov_len
            first += 1
        if n:
            iov[first].iov_base = <char *> iov[first].iov_base + n
            iov[first].iov_len -= n
    return 0


cdef void _prepare(State *s, uint64_t offset, iovec *iov) noexcept nogil:
    """Write zeros from `offset` on. If there is no room for them, records are appended from then on. Changes iov."""
    cdef uint64_t end = (offset + s.ahead + BLOCK - 1) // BLOCK * BLOCK
    cdef uint64_t left = end - offset
    cdef int n = 0
    while left and n < MAX_IOVECS:
        iov[n].iov_base = zeros
        iov[n].iov_len = min(left, <uint64_t> ZEROS)
        left -= iov[n].iov_len
        n += 1
    if _write_all(s, iov, n, offset):
        s.ahead = 0
    s.prepared = end


cdef int _flush(State *s) noexcept nogil:
    while fdatasync(s.fd) < 0:
        if errno != EINTR:
            return errno
    return 0


cdef int _remember(State *s, const unsigned char *head) noexcept nogil:
    cdef unsigned char *fresh
    if s.heads_length + HEAD > s.heads_room:
        fresh = <unsigned char *> realloc(s.heads, s.heads_room * 2 + 65536)
        if fresh == NULL:
            return ENOMEM
        s.heads = fresh
        s.heads_room = s.heads_room * 2 + 65536
    memcpy(s.heads + s.heads_length, head, HEAD)
    s.heads_length += HEAD
    return 0


cdef int _group(State *s, Entry *first, iovec *iov, int flush, uint64_t *written) noexcept nogil:
    """Checksum and write the list of entries, then flush if asked; 0 or an errno."""
    cdef Entry *e = first
    cdef int i, n = 0, error
    cdef uint32_t crc
    while e != NULL:
        crc = 0
        iov[n].iov_base = e.head
        iov[n].iov_len = HEAD
        n += 1
        for i in range(e.pieces):
            if e.views[i].len:
                crc = crc32c_update(crc, e.views[i].buf, e.views[i].len)
                iov[n].iov_base = e.views[i].buf
                iov[n].iov_len = e.views[i].len
                n += 1
        _put32(e.tail, crc)
        iov[n].iov_base = e.tail
        iov[n].iov_len = e.tail_length
        n += 1
        error = _remember(s, e.head)
        if error:
            return error
        written[0] = e.offset + e.length
        e = e.next
    error = _write_all(s, iov, n, first.offset)
    if not error and flush:
        if written[0] > s.prepared and (written[0] - first.offset) * SMALL <= s.ahead:
            _prepare(s, written[0], iov)
        error = _flush(s)
    return error


cdef int _footer(State *s, uint64_t offset, uint64_t *end) noexcept nogil:
    """Write the footer record (all headers) and the 32 octets that find it from the end, and flush; 0 or an errno."""
    cdef size_t pad = (8 - (s.heads_length + 4) % 8) % 8
    cdef size_t length = HEAD + s.heads_length + 4 + pad + 32
    cdef unsigned char *p = <unsigned char *> calloc(1, length)
    cdef unsigned char *tail
    cdef unsigned char zero[16]
    cdef iovec iov
    cdef int error
    if p == NULL:
        return ENOMEM
    memset(zero, 0, 16)
    _head(p, FOOTER, 0, 0, s.nonce, offset, zero, 0, s.heads_length, 0)
    if s.heads_length:
        memcpy(p + HEAD, s.heads, s.heads_length)
    _put32(p + HEAD + s.heads_length, crc32c_update(0, p + HEAD, s.heads_length))
    tail = p + length - 32
    memcpy(tail, b"IEMSend1", 8)
    memcpy(tail + 8, s.nonce, 8)
    _put64(tail + 16, offset)
    _put32(tail + 28, crc32c_update(0, tail, 28))
    iov.iov_base = p
    iov.iov_len = length
    error = 0
    # Before the footer, which is looked for at the end of the file.
    if s.prepared > offset and ftruncate(s.fd, <long> offset) < 0:
        error = errno
    if not error:
        error = _write_all(s, &iov, 1, offset)
    if not error:
        error = _flush(s)
    free(p)
    end[0] = offset + length
    return error


cdef void _idle(State *s) noexcept nogil:
    """With the lock held and nothing waiting: flush what was written without a flush, or seal. Tells the loop without the lock."""
    cdef uint64_t end = s.written
    cdef int error
    cdef int sealing = s.seal and not s.sealed
    if s.failed:
        s.dirty_s = 0
    elif sealing or s.dirty_s:
        pthread_mutex_unlock(&s.mutex)
        error = _footer(s, s.written, &end) if sealing else _flush(s)
        pthread_mutex_lock(&s.mutex)
        s.dirty_s = 0
        s.flushes += 1
        if error:
            s.failed = error
        else:
            s.written = end
            s.flushed = end
    if sealing:
        s.sealed = 1
    _tell(s)


cdef Entry *_take(State *s, int *flush) noexcept nogil:
    """With the lock held: the entries of one group, taken off the queue."""
    cdef Entry *first = s.first
    cdef Entry *last = first
    cdef uint64_t octets = first.length
    cdef int iovecs = first.pieces + 2
    flush[0] = first.flush
    while last.next != NULL:
        octets += last.next.length
        iovecs += last.next.pieces + 2
        if octets > MAX_GROUP or iovecs > MAX_IOVECS:
            break
        last = last.next
        flush[0] |= last.flush
    s.first = last.next
    if s.first == NULL:
        s.last = NULL
    last.next = NULL
    return first


cdef void _hand_over(State *s, Entry *first, int error) noexcept nogil:
    """With the lock held: put a finished group where `reap` finds it."""
    cdef Entry *last = first
    last.failed = error
    while last.next != NULL:
        last = last.next
        last.failed = error
    if s.done_last == NULL:
        s.done_first = first
    else:
        s.done_last.next = first
    s.done_last = last


cdef void *_run(void *argument) noexcept nogil:
    """The thread: gather what waits, write it, flush it, tell the loop; again, until told to stop."""
    cdef State *s = <State *> argument
    cdef Entry *first
    cdef uint64_t written
    cdef int flush, error
    cdef timespec at
    cdef iovec *iov = <iovec *> malloc((MAX_IOVECS + MAX_PIECES + 2) * sizeof(iovec))
    pthread_mutex_lock(&s.mutex)
    if iov == NULL:
        s.failed = ENOMEM
    while True:
        if s.first == NULL:
            if s.seal and not s.sealed:
                _idle(s)
            elif s.stop:
                if not s.dirty_s:
                    break
                _idle(s)
            elif s.dirty_s:
                at.tv_sec = s.dirty_s
                at.tv_nsec = s.dirty_ns
                if pthread_cond_timedwait(&s.wake, &s.mutex, &at) == ETIMEDOUT and s.first == NULL:
                    _idle(s)
            else:
                pthread_cond_wait(&s.wake, &s.mutex)
            continue
        first = _take(s, &flush)
        error = s.failed
        if not error:
            pthread_mutex_unlock(&s.mutex)
            written = 0
            error = _group(s, first, iov, flush, &written)
            pthread_mutex_lock(&s.mutex)
            s.flushes += flush
            if error and not s.failed:
                s.failed = error
            error = s.failed  # `fail` may have been called meanwhile
            if not error:
                s.written = written
                if flush:
                    s.flushed = written
                    s.dirty_s = 0
                elif not s.dirty_s:
                    clock_gettime(CLOCK_MONOTONIC, &at)
                    s.dirty_s = at.tv_sec + (at.tv_nsec // 1000000 + s.delay_ms) // 1000
                    s.dirty_ns = (at.tv_nsec // 1000000 + s.delay_ms) % 1000 * 1000000
        _hand_over(s, first, error)
        _tell(s)
    pthread_mutex_unlock(&s.mutex)
    free(iov)
    return NULL


cdef class Committer:
    """Appends records to one open segment from a thread of its own.

    fd: the segment, positioned writes only; stays the caller's to close. nonce: its 8 octets. offset: where the first record goes.
    notify: an eventfd that counts finished groups. delay_ms: longest time until octets written without a flush are flushed.
    ahead: octets of zeros to write ahead of small groups, 4 MiB at most; 0: none.
    """

    cdef State *s
    cdef uint64_t next_offset
    cdef int running
    cdef readonly int records

    def __cinit__(self, int fd, bytes nonce, uint64_t offset, int notify, long delay_ms=1000, uint64_t ahead=0):
        cdef pthread_condattr_t attr
        cdef sigset_t all_signals
        cdef sigset_t old
        cdef int error
        if len(nonce) != 8:
            raise ValueError("a nonce has 8 octets")
        if ahead > MAX_AHEAD:
            raise ValueError("at most 4 MiB are prepared ahead")
        self.s = <State *> calloc(1, sizeof(State))
        if self.s == NULL:
            raise MemoryError()
        self.s.fd = fd
        self.s.notify = notify
        self.s.delay_ms = delay_ms
        self.s.ahead = ahead
        self.s.written = self.s.flushed = self.next_offset = offset
        memcpy(self.s.nonce, PyBytes_AS_STRING(nonce), 8)
        pthread_mutex_init(&self.s.mutex, NULL)
        pthread_condattr_init(&attr)
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC)
        pthread_cond_init(&self.s.wake, &attr)
        # signals belong to the main thread
        sigfillset(&all_signals)
        pthread_sigmask(SIG_SETMASK, &all_signals, &old)
        error = pthread_create(&self.s.thread, NULL, _run, self.s)
        pthread_sigmask(SIG_SETMASK, &old, NULL)
        if error:
            raise OSError(error, "can't start the committer's thread")
        self.running = 1

    def __dealloc__(self):
        if self.s == NULL:
            return
        if self.running:
            self._stop()
        while self.s.done_first != NULL:
            self._release(self._next_done())
        pthread_cond_destroy(&self.s.wake)
        pthread_mutex_destroy(&self.s.mutex)
        free(self.s.heads)
        free(self.s)

    cdef void _stop(self) noexcept:
        cdef State *s = self.s
        with nogil:
            pthread_mutex_lock(&s.mutex)
            s.stop = 1
            pthread_cond_signal(&s.wake)
            pthread_mutex_unlock(&s.mutex)
            pthread_join(s.thread, NULL)
        self.running = 0

    cdef Entry *_next_done(self) noexcept:
        cdef Entry *e = self.s.done_first
        self.s.done_first = e.next
        if e.next == NULL:
            self.s.done_last = NULL
        return e

    cdef void _release(self, Entry *e) noexcept:
        cdef int i
        for i in range(e.pieces):
            PyBuffer_Release(&e.views[i])
        if e.token != NULL:
            Py_DECREF(<object> e.token)
        free(e)

    def submit(self, int kind, int flags, int generation, bytes id, uint64_t queue_ms, payload, pieces, bint flush, token):
        """Queue one record; its offset. It is written in the order of the calls; `kick` wakes the thread.

        payload: octets of the MessagePack part. pieces: the content, at most 255 objects with octets, one after the other.
        token: handed back by `reap`. Raises ValueError if closed or too long.
        """
        cdef Py_ssize_t count = len(pieces)
        cdef Py_ssize_t content = 0
        cdef Entry *e
        cdef Py_ssize_t i
        if not self.running or self.s.seal:
            raise ValueError("this committer is closed")
        if len(id) != 16:
            raise ValueError("an id has 16 octets")
        if count >= MAX_PIECES:
            pieces = [b"".join(pieces)]
            count = 1
        e = <Entry *> malloc(sizeof(Entry) + (count + 1) * sizeof(Py_buffer))
        if e == NULL:
            raise MemoryError()
        e.views = <Py_buffer *> (<char *> e + sizeof(Entry))
        e.pieces = 0
        e.token = NULL
        e.next = NULL
        e.failed = 0
        try:
            PyObject_GetBuffer(payload, &e.views[0], PyBUF_SIMPLE)
            e.pieces = 1
            for i in range(count):
                PyObject_GetBuffer(pieces[i], &e.views[i + 1], PyBUF_SIMPLE)
                e.pieces += 1
                content += e.views[i + 1].len
            if content > 0x7FFFFFFF or e.views[0].len > 0x7FFFFFFF:
                raise ValueError("too long for a record")
        except BaseException:
            self._release(e)
            raise
        Py_INCREF(token)
        e.token = <PyObject *> token
        e.flush = flush
        e.offset = self.next_offset
        e.length = HEAD + e.views[0].len + content + 4
        e.tail_length = 4 + (8 - e.length % 8) % 8
        e.length += e.tail_length - 4
        memset(e.tail, 0, 16)
        _head(e.head, kind, flags, generation, self.s.nonce, e.offset, <const unsigned char *> PyBytes_AS_STRING(id), queue_ms,
              e.views[0].len, content)
        self.next_offset += e.length
        self.records += 1
        pthread_mutex_lock(&self.s.mutex)
        if self.s.last == NULL:
            self.s.first = e
        else:
            self.s.last.next = e
        self.s.last = e
        pthread_mutex_unlock(&self.s.mutex)
        return e.offset

    def kick(self):
        """Wake the thread if it waits. One call for all records of a loop iteration makes them one group."""
        # Without the lock, which the thread needs at once. It can't sleep over a record: `submit` took the lock after its last look.
        pthread_cond_signal(&self.s.wake)

    def reap(self):
        """(tokens done, tokens failed, errno of the first failure or 0) since the last call, in the order of `submit`."""
        cdef list good = []
        cdef list bad = []
        cdef Entry *e
        cdef Entry *following
        cdef int error
        pthread_mutex_lock(&self.s.mutex)
        e = self.s.done_first
        self.s.done_first = self.s.done_last = NULL
        error = self.s.failed
        pthread_mutex_unlock(&self.s.mutex)
        while e != NULL:
            following = e.next
            if e.failed:
                bad.append(<object> e.token)
            else:
                good.append(<object> e.token)
            self._release(e)
            e = following
        return good, bad, error

    def fail(self, int error):
        """Let everything not yet written fail with this errno; a group being flushed fails too."""
        pthread_mutex_lock(&self.s.mutex)
        if not self.s.failed:
            self.s.failed = error if error else ECANCELED
        pthread_mutex_unlock(&self.s.mutex)

    def seal(self):
        """Write the footer after all that waits, and flush; `sealed` tells when. Nothing can be submitted any more."""
        pthread_mutex_lock(&self.s.mutex)
        self.s.seal = 1
        pthread_mutex_unlock(&self.s.mutex)
        pthread_cond_signal(&self.s.wake)

    def close(self):
        """Write and flush what waits and end the thread; blocks that long. Tokens are still reaped afterwards."""
        if self.running:
            self._stop()

    @property
    def offset(self):
        """Where the next record goes."""
        return self.next_offset

    @property
    def written(self):
        """End of the last record the kernel took."""
        pthread_mutex_lock(&self.s.mutex)
        cdef uint64_t value = self.s.written
        pthread_mutex_unlock(&self.s.mutex)
        return value

    @property
    def flushed(self):
        """End of the octets known to be on the disk."""
        pthread_mutex_lock(&self.s.mutex)
        cdef uint64_t value = self.s.flushed
        pthread_mutex_unlock(&self.s.mutex)
        return value

    @property
    def flushes(self):
        """How often the file was flushed, or tried to be."""
        pthread_mutex_lock(&self.s.mutex)
        cdef uint64_t value = self.s.flushes
        pthread_mutex_unlock(&self.s.mutex)
        return value

    @property
    def sealed(self):
        """Whether the footer was dealt with (written, or given up after a failure)."""
        pthread_mutex_lock(&self.s.mutex)
        cdef bint value = self.s.sealed
        pthread_mutex_unlock(&self.s.mutex)
        return value

    @property
    def failed(self):
        """errno of the first failure, or 0."""
        pthread_mutex_lock(&self.s.mutex)
        cdef int value = self.s.failed
        pthread_mutex_unlock(&self.s.mutex)
        return value
