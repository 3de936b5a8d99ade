"""The load generators of the perf suite: compiled, so that they cost less than any server they measure (see loadgen.h)."""

import array

from cpython cimport array as carray
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free


cdef extern from "loadgen.h" nogil:
    ctypedef struct lg_message:
        const char *data
        size_t length
        size_t mark
    ctypedef struct lg_smtp:
        int port, sessions, lmtp, pipeline, per_connection
        long count
        double warmup_s, run_s
        const char *sender
        const char *const *recipients
        long recipient_count
        const lg_message *messages
        long message_count
        uint64_t first_id
        double rate
        double *settled
        long settled_room
    ctypedef struct lg_fetch:
        int port, sessions, pop3
        double warmup_s, run_s
        const char *const *users
        long user_count
        const char *password
        const char *mailbox
        const char *command
        long first, last
        double idle_s, rate
        int shuffle
        uint64_t seed
        const int *over
    ctypedef struct lg_drip:
        int port, sessions
        double interval_s, run_s
        const char *opening
        const int *over
    ctypedef struct lg_result:
        long done, errors, connections, waiting
        double octets, seconds
        double *latency
        long latency_room, latency_count
        char complaint[160]
    int smtp_load(const lg_smtp *p, lg_result *r, void (*mark)(int, void *) noexcept, void *about) noexcept
    int fetch_load(const lg_fetch *p, lg_result *r, void (*mark)(int, void *) noexcept, void *about) noexcept
    int drip_load(const lg_drip *p, lg_result *r, void (*mark)(int, void *) noexcept, void *about) noexcept
    long sink_run(int listener, double *came, long room, uint64_t first_id) noexcept


cdef void _mark(int end, void *about) noexcept with gil:
    cdef object on_mark = <object> about
    if on_mark is not None:
        try:
            on_mark("end" if end else "start")
        except Exception as error:  # a generator in full flight can't raise
            print(f"mark failed: {error}", flush=True)


cdef class Over:
    """Ends the loads it was given to, from another thread."""
    cdef int flag

    def set(self):
        """End them."""
        self.flag = 1


cdef void _clear(lg_result *r, carray.array latency):
    r.done = r.errors = r.connections = r.waiting = r.latency_count = 0
    r.octets = r.seconds = 0
    r.latency = latency.data.as_doubles if latency is not None else NULL
    r.latency_room = len(latency) if latency is not None else 0
    r.complaint[0] = 0


cdef dict _answer(lg_result *r, carray.array latency):
    return {
        "done": r.done,
        "errors": r.errors,
        "connections": r.connections,
        "waiting": r.waiting,
        "octets": r.octets,
        "seconds": r.seconds,
        "latency_s": latency[: r.latency_count] if latency is not None else array.array("d"),
        "complaint": (<bytes> r.complaint).decode("latin-1"),
    }


cdef class _Strings:
    """C strings over a list of bytes that stays alive with it."""
    cdef const char **at
    cdef list kept

    def __cinit__(self, list texts):
        cdef Py_ssize_t i
        self.kept = texts
        self.at = <const char **> calloc(max(1, len(texts)), sizeof(char *))
        if self.at == NULL:
            raise MemoryError()
        for i in range(len(texts)):
            self.at[i] = texts[i]

    def __dealloc__(self):
        free(self.at)


def smtp(int port, list messages, list recipients, bytes sender, *, int sessions=1, long count=0, double warmup_s=1.0,
         double run_s=3.0, bint lmtp=False, bint pipeline=False, int per_connection=0, uint64_t first_id=0, double rate=0.0,
         carray.array settled=None, on_mark=None):
    """Send messages to a server on loopback.

    messages: (octets, mark) pairs, dot-stuffed, ending in CRLF; 16 digits at `mark` are made unique. count: how many, or 0 for
    warmup_s and then run_s seconds. rate: messages a second, due at random times, over all sessions; 0: as fast as the server answers.
    settled: array of double that gets the CLOCK_MONOTONIC time of the 250 to message n at n. on_mark("start" or "end") is called
    when the measured part begins and ends. Returns done, errors, connections, octets, seconds, waiting (due, but not sent when the
    load ended), latency_s (array of double, final dot to 250; with a rate, due time to 250) and the first complaint. Raises
    ValueError for arguments that make no load, OSError when no session could be opened.
    """
    cdef lg_smtp p
    cdef lg_result r
    cdef Py_ssize_t i
    cdef int rc
    cdef void *about
    cdef carray.array latency = array.array("d", bytes(8 * (count if count else 2_000_000)))
    if not messages or not recipients or sessions < 1 or count < 0 or not rate >= 0:
        raise ValueError("needs messages, recipients, at least one session and no negative rate")
    if settled is not None and settled.typecode != "d":
        raise ValueError("settled must be an array of double")
    cdef _Strings names = _Strings(recipients)
    cdef lg_message *pool = <lg_message *> calloc(len(messages), sizeof(lg_message))
    if pool == NULL:
        raise MemoryError()
    try:
        for i in range(len(messages)):
            octets, mark = messages[i]
            if not 0 <= mark <= len(octets) - 16:
                raise ValueError("mark lies outside its message")
            pool[i].data = <const char *> (<bytes> octets)
            pool[i].length = len(octets)
            pool[i].mark = mark
        p.port = port; p.sessions = sessions; p.lmtp = lmtp; p.pipeline = pipeline; p.per_connection = per_connection
        p.count = count; p.warmup_s = warmup_s; p.run_s = run_s; p.sender = sender; p.recipients = names.at
        p.recipient_count = len(recipients); p.messages = pool; p.message_count = len(messages); p.first_id = first_id
        p.rate = rate
        p.settled = settled.data.as_doubles if settled is not None else NULL
        p.settled_room = len(settled) if settled is not None else 0
        _clear(&r, latency)
        about = <void *> on_mark
        with nogil:
            rc = smtp_load(&p, &r, _mark, about)
        if rc < 0:
            raise OSError(f"no session could be opened on port {port}")
        return _answer(&r, latency)
    finally:
        free(pool)


def fetch(int port, list users, bytes password, bytes command, long first, long last, *, int sessions=18, bint pop3=False,
          bytes mailbox=b"INBOX", double warmup_s=1.0, double run_s=3.0, double idle_s=1.0, double rate=0.0, bint shuffle=False,
          uint64_t seed=0, Over over=None, on_mark=None):
    """Fetch message after message from a server on loopback and throw the octets away.

    command: with one %ld for the number of the message, first to last, such as b"FETCH %ld BODY.PEEK[]" or b"RETR %ld"; None logs
    in, selects and holds the sessions for idle_s; on_mark("start") comes when all are there. Session n logs in as users[n % len].
    rate: as in `smtp`. shuffle: messages in random order. Returns what `smtp` returns; latency is from command to completion.
    """
    cdef lg_fetch p
    cdef lg_result r
    cdef int rc
    cdef void *about = <void *> on_mark
    cdef carray.array latency = array.array("d", bytes(8 * 2_000_000))
    if not users or sessions < 1 or first > last or not rate >= 0 or (command is not None and command.count(b"%") > 1) or (command is not None and b"%" in command and b"%ld" not in command):
        raise ValueError("needs users, a session, and at most one %ld in the command")
    cdef _Strings names = _Strings(users)
    p.port = port; p.sessions = sessions; p.pop3 = pop3; p.warmup_s = warmup_s; p.run_s = run_s; p.users = names.at
    p.user_count = len(users); p.password = password; p.mailbox = mailbox
    p.command = NULL if command is None else <const char *> command
    p.first = first; p.last = last; p.idle_s = idle_s; p.rate = rate; p.shuffle = shuffle; p.seed = seed
    p.over = &over.flag if over is not None else NULL
    _clear(&r, latency)
    with nogil:
        rc = fetch_load(&p, &r, _mark, about)
    if rc < 0:
        raise OSError(f"no session stayed open on port {port}: {(<bytes> r.complaint).decode('latin-1')}")
    return _answer(&r, latency)


def drip(int port, bytes recipient, bytes sender=b"drip@load.test", *, int sessions=100, double interval_s=1.0, double run_s=3.0,
         Over over=None, on_mark=None):
    """Hold SMTP sessions that send one octet each interval_s: the envelope first, then content that never ends.

    Returns what `smtp` returns: done are octets sent, errors sessions that the server closed. Raises OSError when none is left.
    """
    cdef lg_drip p
    cdef lg_result r
    cdef int rc
    cdef void *about = <void *> on_mark
    if sessions < 1 or not interval_s > 0:
        raise ValueError("needs a session and an interval above 0")
    opening = b"EHLO drip.load.test\r\nMAIL FROM:<%b>\r\nRCPT TO:<%b>\r\nDATA\r\n" % (sender, recipient)
    p.port = port; p.sessions = sessions; p.interval_s = interval_s; p.run_s = run_s; p.opening = <const char *> opening
    p.over = &over.flag if over is not None else NULL
    _clear(&r, None)
    with nogil:
        rc = drip_load(&p, &r, _mark, about)
    if rc < 0:
        raise OSError(f"no session stayed open on port {port}: {(<bytes> r.complaint).decode('latin-1')}")
    return _answer(&r, None)


def sink(int listener, double[::1] came=None, uint64_t first_id=0):
    """Serve SMTP on a listening socket's descriptor, accept everything, keep nothing; returns the count after XSTOP.

    came: gets at n the CLOCK_MONOTONIC time at which the message with the digits first_id + n in its Message-ID was whole.
    """
    cdef long total
    cdef double *at = NULL
    cdef long room = 0
    if came is not None and came.shape[0]:
        at = &came[0]
        room = came.shape[0]
    with nogil:
        total = sink_run(listener, at, room, first_id)
    return total
