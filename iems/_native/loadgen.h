/* The load generators of the perf suite: one epoll loop each, no allocation while the clock runs.
 *
 * smtp_load  SMTP or LMTP sessions that send prepared messages, each with 16 hexadecimal digits of its own patched in.
 * fetch_load IMAP or POP3 sessions that ask for message after message and throw the octets away.
 * drip_load  SMTP sessions that send one octet now and then, for as long as they are left alone.
 * sink_run   an SMTP receiver that accepts everything, keeps nothing and counts.
 *
 * Latency is taken from the moment the kernel has the last octet of a request until the last octet of its answer is read. With a
 * rate, messages or commands fall due at random times (Poisson), whether or not the server keeps up, and latency is taken from then:
 * a server that stalls can't hide it by being asked less. Several generators may run at once, each in a thread of its own. */
#ifndef IEMS_LOADGEN_H
#define IEMS_LOADGEN_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define LG_EVENTS 256
#define LG_LINE 8192

typedef struct { const char *data; size_t length; size_t mark; } lg_message; /* mark: where the 16 digits stand */

typedef struct {
    int port, sessions, lmtp, pipeline, per_connection;
    long count;            /* messages to send; 0: go by time */
    double warmup_s, run_s;
    const char *sender;
    const char *const *recipients;
    long recipient_count;
    const lg_message *messages;
    long message_count;
    uint64_t first_id;
    double rate;     /* messages a second over all sessions; 0: each session as fast as it is answered */
    double *settled; /* when message n got its 250 (CLOCK_MONOTONIC), caller-owned; or NULL */
    long settled_room;
} lg_smtp;

typedef struct { double rate, next; uint64_t state; int timer; } lg_pace;

typedef struct {
    long done, errors, connections, waiting; /* waiting: fell due with a rate and could not be sent */
    double octets, seconds;
    double *latency; /* seconds, caller-owned */
    long latency_room, latency_count;
    char complaint[160];
} lg_result;

static double lg_now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }

static int lg_connect(int port) {
    struct sockaddr_in to;
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    memset(&to, 0, sizeof to);
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS) { close(fd); return -1; }
    return fd;
}

static uint64_t lg_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* When the next request falls due; its time is returned and the one after it drawn. */
static double lg_due(lg_pace *c) {
    double due = c->next, u = (lg_random(&c->state) >> 11) / 9007199254740992.0;
    c->next += -log(1 - u) / c->rate;
    return due;
}

/* Wake the loop when the next request falls due: epoll's own timeout is too coarse for it. */
static void lg_alarm(const lg_pace *c) {
    struct itimerspec when = {{0, 0}, {(time_t)c->next, (long)((c->next - (time_t)c->next) * 1e9)}};
    timerfd_settime(c->timer, TFD_TIMER_ABSTIME, &when, 0);
}

static int lg_pace_start(lg_pace *c, int ep, double rate, uint64_t seed) {
    memset(c, 0, sizeof *c);
    c->timer = -1;
    if (rate <= 0) return 0;
    c->rate = rate;
    c->state = seed;
    c->next = lg_now();
    c->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = 0};
    return c->timer < 0 ? -1 : epoll_ctl(ep, EPOLL_CTL_ADD, c->timer, &e);
}

static void lg_pace_clear(const lg_pace *c) { uint64_t times; if (read(c->timer, &times, sizeof times) < 0) { } }

static void lg_note(lg_result *r, double latency) { if (r->latency_count < r->latency_room) r->latency[r->latency_count++] = latency; }

static void lg_complain(lg_result *r, const char *line, size_t length) {
    r->errors++;
    if (!r->complaint[0]) snprintf(r->complaint, sizeof r->complaint, "%.*s", (int)(length < 150 ? length : 150), line);
}

/* ---------------------------------------------------------------- SMTP and LMTP */

enum lg_state { LG_GREETING, LG_EHLO, LG_IDLE, LG_MAIL, LG_RCPT, LG_DATA, LG_BODY, LG_FINAL, LG_QUIT };

typedef struct lg_session {
    int fd, awaited, watching_out;
    enum lg_state state;
    long sent_here, number;
    double due;
    struct lg_session *next_idle;
    const lg_message *message;
    char digits[16];
    size_t body_at;
    double sent_at;
    char out[2048];
    size_t out_length, out_at;
    char in[LG_LINE];
    size_t in_length;
} lg_session;

static void lg_watch(int ep, lg_session *s, int out) {
    if (s->watching_out == out) return;
    struct epoll_event e = {.events = EPOLLIN | (out ? EPOLLOUT : 0), .data.ptr = s};
    epoll_ctl(ep, EPOLL_CTL_MOD, s->fd, &e);
    s->watching_out = out;
}

static int lg_open(int ep, lg_session *s, const lg_smtp *p, lg_result *r) {
    s->fd = lg_connect(p->port);
    if (s->fd < 0) { lg_complain(r, "can't connect", 13); return -1; }
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = s};
    epoll_ctl(ep, EPOLL_CTL_ADD, s->fd, &e);
    s->state = LG_GREETING;
    s->awaited = 1;
    s->watching_out = 0;
    s->sent_here = 0;
    s->in_length = s->out_length = s->out_at = 0;
    r->connections++;
    return 0;
}

static void lg_push(int ep, lg_session *s) {
    while (s->out_at < s->out_length) {
        ssize_t n = send(s->fd, s->out + s->out_at, s->out_length - s->out_at, MSG_NOSIGNAL);
        if (n < 0) { if (errno == EAGAIN) lg_watch(ep, s, 1); return; }
        s->out_at += n;
    }
    s->out_at = s->out_length = 0;
    lg_watch(ep, s, 0);
}

static void lg_say(lg_session *s, const char *text) {
    size_t n = strlen(text);
    if (s->out_length + n <= sizeof s->out) { memcpy(s->out + s->out_length, text, n); s->out_length += n; }
}

/* Send what is left of the message; pieces: before the digits, the digits, after them, the final dot. */
static void lg_send_body(int ep, lg_session *s) {
    const lg_message *m = s->message;
    struct iovec all[4] = {{(void *)m->data, m->mark}, {s->digits, 16}, {(void *)(m->data + m->mark + 16), m->length - m->mark - 16}, {".\r\n", 3}};
    for (;;) {
        struct iovec v[4];
        size_t skip = s->body_at;
        int n = 0;
        for (int i = 0; i < 4; i++) {
            if (skip >= all[i].iov_len) { skip -= all[i].iov_len; continue; }
            v[n].iov_base = (char *)all[i].iov_base + skip;
            v[n++].iov_len = all[i].iov_len - skip;
            skip = 0;
        }
        if (!n) break;
        ssize_t done = writev(s->fd, v, n);
        if (done < 0) { if (errno == EAGAIN) lg_watch(ep, s, 1); return; }
        s->body_at += done;
    }
    s->state = LG_FINAL;
    s->awaited = 1;
    s->sent_at = lg_now();
    lg_watch(ep, s, 0);
}

typedef struct { long issued; lg_session *idle; } lg_run;

static void lg_next_message(int ep, lg_session *s, const lg_smtp *p, lg_run *run, double due) {
    char line[512];
    if ((p->per_connection && s->sent_here >= p->per_connection) || (p->count && run->issued >= p->count)) {
        s->state = LG_QUIT;
        s->awaited = 1;
        lg_say(s, "QUIT\r\n");
        lg_push(ep, s);
        return;
    }
    if (p->rate > 0 && due < 0) { /* nothing is due */
        s->state = LG_IDLE;
        s->next_idle = run->idle;
        run->idle = s;
        return;
    }
    long number = s->number = run->issued++;
    s->due = due;
    static const char hex[] = "0123456789abcdef";
    uint64_t id = p->first_id + number;
    for (int i = 15; i >= 0; i--, id >>= 4) s->digits[i] = hex[id & 15];
    s->message = &p->messages[number % p->message_count];
    s->body_at = 0;
    snprintf(line, sizeof line, "MAIL FROM:<%s>\r\n", p->sender);
    lg_say(s, line);
    snprintf(line, sizeof line, "RCPT TO:<%s>\r\n", p->recipients[number % p->recipient_count]);
    if (p->pipeline) {
        lg_say(s, line);
        lg_say(s, "DATA\r\n");
        s->state = LG_DATA;
        s->awaited = 3;
    } else {
        s->state = LG_MAIL;
        s->awaited = 1;
        /* the recipient goes out when MAIL is answered: kept after the sent part */
    }
    lg_push(ep, s);
}

static void lg_close(int ep, lg_session *s, const lg_smtp *p, lg_result *r, lg_run *run) {
    for (lg_session **at = &run->idle; *at; at = &(*at)->next_idle) if (*at == s) { *at = s->next_idle; break; }
    epoll_ctl(ep, EPOLL_CTL_DEL, s->fd, 0);
    close(s->fd);
    s->fd = -1;
    if (!(p->count && run->issued >= p->count)) lg_open(ep, s, p, r);
}

static void lg_reply(int ep, lg_session *s, const lg_smtp *p, lg_result *r, const char *line, size_t length, lg_run *run) {
    char text[512];
    int bad = line[0] >= '4' || line[0] < '2';
    if (bad) {
        lg_complain(r, line, length);
        if (s->state != LG_FINAL) { lg_close(ep, s, p, r, run); return; }
    }
    if (--s->awaited > 0) return;
    switch (s->state) {
    case LG_GREETING:
        lg_say(s, p->lmtp ? "LHLO load.test\r\n" : "EHLO load.test\r\n");
        s->state = LG_EHLO;
        s->awaited = 1;
        lg_push(ep, s);
        break;
    case LG_EHLO:
        lg_next_message(ep, s, p, run, -1);
        break;
    case LG_MAIL:
        snprintf(text, sizeof text, "RCPT TO:<%s>\r\n", p->recipients[s->number % p->recipient_count]);
        lg_say(s, text);
        s->state = LG_RCPT;
        s->awaited = 1;
        lg_push(ep, s);
        break;
    case LG_RCPT:
        lg_say(s, "DATA\r\n");
        s->state = LG_DATA;
        s->awaited = 1;
        lg_push(ep, s);
        break;
    case LG_DATA:
        s->state = LG_BODY;
        lg_send_body(ep, s);
        break;
    case LG_BODY:
    case LG_IDLE:
        break;
    case LG_FINAL:
        if (!bad) {
            r->done++;
            r->octets += s->message->length;
            double now = lg_now();
            lg_note(r, now - (p->rate > 0 ? s->due : s->sent_at));
            if (s->number < p->settled_room) p->settled[s->number] = now;
        }
        s->sent_here++;
        lg_next_message(ep, s, p, run, -1);
        break;
    case LG_QUIT:
        lg_close(ep, s, p, r, run);
        break;
    }
}

static void lg_read(int ep, lg_session *s, const lg_smtp *p, lg_result *r, lg_run *run) {
    ssize_t n = recv(s->fd, s->in + s->in_length, sizeof s->in - s->in_length, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        if (s->state != LG_QUIT) lg_complain(r, "connection closed", 17);
        lg_close(ep, s, p, r, run);
        return;
    }
    s->in_length += n;
    char *at = s->in, *end = s->in + s->in_length, *lf;
    while ((lf = memchr(at, '\n', end - at))) {
        int fd = s->fd;
        if (lf - at >= 4 && at[3] != '-') lg_reply(ep, s, p, r, at, lf - at, run);
        if (s->fd != fd || s->fd < 0) return; /* another connection by now: what is left belonged to the old one */
        at = lf + 1;
    }
    s->in_length = end - at;
    memmove(s->in, at, s->in_length);
    if (s->in_length == sizeof s->in) s->in_length = 0; /* a line longer than any reply: drop it */
}

/* Runs until `count` messages are settled or the time is over. 0, or -1 when no session could be opened. */
static int smtp_load(const lg_smtp *p, lg_result *r, void (*mark)(int, void *), void *about) {
    struct epoll_event events[LG_EVENTS];
    lg_session *sessions = calloc(p->sessions, sizeof *sessions);
    int ep = epoll_create1(EPOLL_CLOEXEC), open = 0, measuring = p->count > 0;
    lg_run run = {0, 0};
    lg_pace pace;
    if (!sessions || ep < 0 || lg_pace_start(&pace, ep, p->rate, p->first_id) < 0) { free(sessions); return -1; }
    if (measuring) mark(0, about);
    double started = lg_now(), begun = started; /* after the mark, which takes time of its own */
    for (int i = 0; i < p->sessions && (!p->count || i < p->count); i++) open += lg_open(ep, &sessions[i], p, r) == 0;
    while (open) {
        int n = epoll_wait(ep, events, LG_EVENTS, 20);
        for (int i = 0; i < n; i++) {
            lg_session *s = events[i].data.ptr;
            if (!s) { lg_pace_clear(&pace); continue; }
            if (s->fd < 0) continue;
            if (events[i].events & EPOLLOUT) { if (s->out_length) lg_push(ep, s); if (s->state == LG_BODY) lg_send_body(ep, s); }
            if (s->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) lg_read(ep, s, p, r, &run);
        }
        double now = lg_now();
        if (p->rate > 0) {
            while (run.idle && pace.next <= now && !(p->count && run.issued >= p->count)) {
                lg_session *s = run.idle;
                run.idle = s->next_idle;
                lg_next_message(ep, s, p, &run, lg_due(&pace));
            }
            if (run.idle) lg_alarm(&pace);
        }
        if (r->errors > 1000 && r->errors > r->done) break;
        if (p->count) {
            if (r->done + r->errors >= p->count || now - started > 600) break;
        } else if (!measuring && now - started >= p->warmup_s) {
            measuring = 1;
            r->done = r->errors = r->connections = r->latency_count = 0;
            r->octets = 0;
            r->waiting = p->rate > 0 ? (long)((now - pace.next) * p->rate) : 0;
            mark(0, about);
            begun = lg_now();
        } else if (measuring && now - begun >= p->run_s) break;
    }
    r->seconds = lg_now() - begun;
    if (p->rate > 0) { /* what fell due and was not sent, in the measured part */
        long late = pace.next < lg_now() ? (long)((lg_now() - pace.next) * p->rate) : 0;
        r->waiting = late > (r->waiting > 0 ? r->waiting : 0) ? late - (r->waiting > 0 ? r->waiting : 0) : 0;
    }
    mark(1, about);
    for (int i = 0; i < p->sessions; i++) if (sessions[i].fd > 0) close(sessions[i].fd);
    if (pace.timer >= 0) close(pace.timer);
    close(ep);
    free(sessions);
    return open ? 0 : -1;
}

/* ---------------------------------------------------------------- IMAP and POP3 */

typedef struct {
    int port, sessions, pop3;
    double warmup_s, run_s;
    const char *const *users; /* session i logs in as users[i % user_count] */
    long user_count;
    const char *password;
    const char *mailbox;
    const char *command; /* with one %ld for the message's number; NULL: log in, select and sit */
    long first, last;
    double idle_s; /* with command NULL: how long to hold the sessions */
    double rate;   /* commands a second over all sessions; 0: each session as fast as it is answered */
    int shuffle;   /* messages in random order rather than one after the other */
    uint64_t seed;
    const volatile int *over; /* set to end the load early, or NULL */
} lg_fetch;

enum lf_state { LF_GREETING, LF_USER, LF_LOGIN, LF_SELECT, LF_READY, LF_ASK, LF_IDLE };

typedef struct {
    int fd;
    enum lf_state state;
    long next;
    size_t skip; /* octets of a literal still to be thrown away */
    int multi;   /* POP3: inside a multi-line answer */
    double asked_at;
    uint64_t random;
    int next_ready; /* the session that is ready too, or -1 */
    char in[LG_LINE];
    size_t in_length;
} lf_session;

static void lf_ask(lf_session *s, const lg_fetch *p, long number) {
    char line[1024];
    int n;
    const char *user = p->users[number % p->user_count];
    switch (s->state) {
    case LF_USER: n = snprintf(line, sizeof line, "USER %s\r\n", user); break;
    case LF_LOGIN: n = p->pop3 ? snprintf(line, sizeof line, "PASS %s\r\n", p->password) : snprintf(line, sizeof line, "a LOGIN \"%s\" \"%s\"\r\n", user, p->password); break;
    case LF_SELECT: n = p->pop3 ? snprintf(line, sizeof line, "STAT\r\n") : snprintf(line, sizeof line, "a SELECT \"%s\"\r\n", p->mailbox); break;
    default:
        n = p->pop3 ? 0 : 2;
        if (n) memcpy(line, "a ", 2);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        n += snprintf(line + n, sizeof line - n - 2, p->command, s->next);
#pragma GCC diagnostic pop
        memcpy(line + n, "\r\n", 2);
        n += 2;
        s->next = p->shuffle ? p->first + (long)(lg_random(&s->random) % (uint64_t)(p->last - p->first + 1)) : s->next >= p->last ? p->first : s->next + 1;
    }
    s->multi = 0;
    s->asked_at = lg_now();
    if (send(s->fd, line, n, MSG_NOSIGNAL) != n) s->state = LF_IDLE;
}

/* The answer is there: the next command, or wait until one is due. */
static void lf_go_on(lf_session *s, const lg_fetch *p, int *ready, long number) {
    if (p->rate > 0 && s->state == LF_ASK) {
        s->state = LF_READY;
        s->next_ready = *ready;
        *ready = (int)number;
    } else lf_ask(s, p, number);
}

static int lf_line(lf_session *s, const lg_fetch *p, lg_result *r, const char *at, size_t length, int *ready, long number) {
    int answered = 0, ok = 1;
    if (p->pop3) {
        if (s->multi) answered = length == 2 && at[0] == '.';
        else if (at[0] == '-') answered = 1, ok = 0;
        else if (s->state == LF_ASK) s->multi = 1;
        else answered = 1;
    } else if (s->state == LF_GREETING) answered = 1, ok = at[0] == '*';
    else if (length > 4 && at[0] == 'a' && at[1] == ' ') answered = 1, ok = at[2] == 'O';
    else if (at[0] == '*' || at[0] != 'a') {
        const char *brace = length > 3 && at[length - 2] == '\r' && at[length - 3] == '}' ? memrchr(at, '{', length) : 0;
        if (brace) s->skip = strtoul(brace + 1, 0, 10), r->octets += s->skip;
    }
    if (!answered) return 0;
    if (!ok) { lg_complain(r, at, length); return -1; }
    switch (s->state) {
    case LF_GREETING: s->state = p->pop3 ? LF_USER : LF_LOGIN; break;
    case LF_USER: s->state = LF_LOGIN; break;
    case LF_LOGIN: s->state = LF_SELECT; break;
    case LF_SELECT:
        if (!p->command) { s->state = LF_IDLE; r->done++; lg_note(r, lg_now() - s->asked_at); return 0; }
        s->state = LF_ASK;
        break;
    case LF_ASK: r->done++; lg_note(r, lg_now() - s->asked_at); break;
    case LF_READY:
    case LF_IDLE: return 0;
    }
    lf_go_on(s, p, ready, number);
    return 0;
}

static int lf_read(lf_session *s, const lg_fetch *p, lg_result *r, int *ready, long number) {
    static __thread char waste[262144];
    for (;;) {
        if (s->skip) {
            ssize_t n = recv(s->fd, waste, s->skip < sizeof waste ? s->skip : sizeof waste, MSG_TRUNC);
            if (n < 0) return errno == EAGAIN ? 0 : -1;
            if (n == 0) return -1;
            s->skip -= n;
            continue;
        }
        if (p->pop3 && s->multi) { /* the end is looked for in place; nothing is kept but the last octets */
            ssize_t n = recv(s->fd, waste + 4, sizeof waste - 4, 0);
            if (n < 0) return errno == EAGAIN ? 0 : -1;
            if (n == 0) return -1;
            memcpy(waste, s->in, 4); /* the four octets before these */
            r->octets += n;
            if (n >= 1 && !memcmp(waste + 4 + n - 5, "\r\n.\r\n", 5)) {
                s->in_length = 0;
                memset(s->in, 0, 4);
                s->multi = 0;
                r->done++;
                lg_note(r, lg_now() - s->asked_at);
                lf_go_on(s, p, ready, number);
            } else memcpy(s->in, waste + n, 4);
            continue;
        }
        ssize_t n = recv(s->fd, s->in + s->in_length, sizeof s->in - s->in_length, 0);
        if (n < 0) return errno == EAGAIN ? 0 : -1;
        if (n == 0) return -1;
        s->in_length += n;
        char *at = s->in, *end = s->in + s->in_length, *lf;
        while (at < end && (lf = memchr(at, '\n', end - at))) {
            size_t length = lf + 1 - at;
            if (lf_line(s, p, r, at, length, ready, number) < 0) return -1;
            at = lf + 1;
            if (s->skip) {
                size_t have = end - at, drop = have < s->skip ? have : s->skip;
                at += drop;
                s->skip -= drop;
                if (s->skip) { at = end; break; }
            }
            if (p->pop3 && s->multi && s->state == LF_ASK) { /* the body may have begun in this buffer */
                size_t have = end - at;
                r->octets += have;
                if (have >= 5 && !memcmp(end - 5, "\r\n.\r\n", 5)) { s->multi = 0; r->done++; lg_note(r, lg_now() - s->asked_at); at = end; s->in_length = 0; memset(s->in, 0, 4); lf_go_on(s, p, ready, number); break; }
                char last[4] = {0};
                for (int i = 0; i < 4 && (size_t)i < have; i++) last[3 - i] = end[-1 - i];
                memcpy(s->in, last, 4);
                s->in_length = 0;
                at = end = s->in;
                break;
            }
        }
        if (p->pop3 && s->multi) { s->in_length = 0; continue; }
        s->in_length = end - at;
        memmove(s->in, at, s->in_length);
        if (s->in_length == sizeof s->in) { /* a long response line without a literal: keep only its tail */
            memmove(s->in, s->in + sizeof s->in / 2, sizeof s->in / 2);
            s->in_length = sizeof s->in / 2;
        }
    }
}

static int fetch_load(const lg_fetch *p, lg_result *r, void (*mark)(int, void *), void *about) {
    struct epoll_event events[LG_EVENTS];
    lf_session *sessions = calloc(p->sessions, sizeof *sessions);
    int ep = epoll_create1(EPOLL_CLOEXEC), open = 0, measuring = 0, ready = -1;
    lg_pace pace;
    if (!sessions || ep < 0 || lg_pace_start(&pace, ep, p->rate, p->seed) < 0) { free(sessions); return -1; }
    for (int i = 0; i < p->sessions; i++) {
        lf_session *s = &sessions[i];
        s->fd = lg_connect(p->port);
        if (s->fd < 0) { lg_complain(r, "can't connect", 13); continue; }
        long span = p->last - p->first + 1;
        s->next = p->first + (span > 0 ? i * 7919L % span : 0);
        s->random = p->seed + (uint64_t)i * 1000003u;
        if (p->shuffle && span > 0) s->next = p->first + (long)(lg_random(&s->random) % (uint64_t)span);
        struct epoll_event e = {.events = EPOLLIN, .data.u64 = (uint64_t)i + 1};
        epoll_ctl(ep, EPOLL_CTL_ADD, s->fd, &e);
        r->connections++;
        open++;
    }
    double started = lg_now(), begun = started;
    while (open > 0) {
        int n = epoll_wait(ep, events, LG_EVENTS, 20);
        for (int i = 0; i < n; i++) {
            if (!events[i].data.u64) { lg_pace_clear(&pace); continue; }
            long number = (long)events[i].data.u64 - 1;
            lf_session *s = &sessions[number];
            if (s->fd >= 0 && lf_read(s, p, r, &ready, number) < 0) {
                if (!r->complaint[0]) lg_complain(r, "connection closed", 17); else r->errors++;
                for (int *at = &ready; *at >= 0; at = &sessions[*at].next_ready) if (*at == number) { *at = s->next_ready; break; }
                close(s->fd);
                s->fd = -1;
                open--;
            }
        }
        double now = lg_now();
        if (p->rate > 0) {
            while (ready >= 0 && pace.next <= now) {
                lf_session *s = &sessions[ready];
                long number = ready;
                ready = s->next_ready;
                s->state = LF_ASK;
                lf_ask(s, p, number);
                s->asked_at = lg_due(&pace);
            }
            if (ready >= 0) lg_alarm(&pace);
        }
        if (p->over && *p->over) break;
        if (!p->command) {
            if (!measuring && r->done + r->errors >= p->sessions) { measuring = 1; mark(0, about); begun = lg_now(); }
            if (measuring && now - begun >= p->idle_s) break;
            if (now - started > 300) break;
        } else if (!measuring && now - started >= p->warmup_s) {
            measuring = 1;
            r->done = r->errors = r->latency_count = 0;
            r->octets = 0;
            r->waiting = p->rate > 0 ? (long)((now - pace.next) * p->rate) : 0;
            mark(0, about);
            begun = lg_now();
        } else if (measuring && now - begun >= p->run_s) break;
    }
    r->seconds = lg_now() - begun;
    if (p->rate > 0) {
        long late = pace.next < lg_now() ? (long)((lg_now() - pace.next) * p->rate) : 0;
        r->waiting = late > (r->waiting > 0 ? r->waiting : 0) ? late - (r->waiting > 0 ? r->waiting : 0) : 0;
    }
    mark(1, about);
    for (int i = 0; i < p->sessions; i++) if (sessions[i].fd > 0) close(sessions[i].fd);
    if (pace.timer >= 0) close(pace.timer);
    close(ep);
    free(sessions);
    return open > 0 ? 0 : -1;
}

/* ---------------------------------------------------------------- slow senders */

typedef struct {
    int port, sessions;
    double interval_s; /* between two octets of one session */
    double run_s;
    const char *opening; /* EHLO to DATA; after it lines of content without end */
    const volatile int *over; /* set to end the load early, or NULL */
} lg_drip;

/* Sends one octet on every session each interval, spread evenly over it. done: octets sent; errors: sessions that were closed. */
static int drip_load(const lg_drip *p, lg_result *r, void (*mark)(int, void *), void *about) {
    static const char line[] = "drip by drip\r\n";
    int *fds = malloc(p->sessions * sizeof *fds), open = 0;
    long *at = calloc(p->sessions, sizeof *at);
    char waste[4096];
    if (!fds || !at) { free(fds); free(at); return -1; }
    for (int i = 0; i < p->sessions; i++) {
        fds[i] = lg_connect(p->port);
        if (fds[i] < 0) { lg_complain(r, "can't connect", 13); continue; }
        r->connections++;
        open++;
        if (i % 200 == 199) { struct timespec nap = {0, 20000000}; nanosleep(&nap, 0); } /* the backlog is not endless */
    }
    struct timespec settle = {0, 200000000};
    nanosleep(&settle, 0);
    mark(0, about);
    size_t length = strlen(p->opening);
    double begun = lg_now();
    long turn = 0;
    while (open && lg_now() - begun < p->run_s && !(p->over && *p->over)) {
        long due = (long)((lg_now() - begun) / p->interval_s * p->sessions);
        for (; turn < due; turn++) {
            int i = turn % p->sessions;
            if (fds[i] < 0) continue;
            ssize_t got;
            while ((got = recv(fds[i], waste, sizeof waste, 0)) > 0)
                if (waste[0] >= '4') lg_complain(r, waste, got);
            char octet = at[i] < (long)length ? p->opening[at[i]] : line[(at[i] - length) % (sizeof line - 1)];
            if (got == 0 || send(fds[i], &octet, 1, MSG_NOSIGNAL) != 1) {
                lg_complain(r, "connection closed", 17);
                close(fds[i]);
                fds[i] = -1;
                open--;
                continue;
            }
            at[i]++;
            r->done++;
        }
        struct timespec nap = {0, 2000000};
        nanosleep(&nap, 0);
    }
    r->octets = r->done;
    r->seconds = lg_now() - begun;
    mark(1, about);
    for (int i = 0; i < p->sessions; i++) if (fds[i] >= 0) close(fds[i]);
    free(fds);
    free(at);
    return open ? 0 : -1;
}

/* ---------------------------------------------------------------- the sink */

typedef struct { int fd, in_data, known; uint64_t id; size_t in_length; char in[65536]; } ls_session;

/* The 16 digits of the message, if its Message-ID is among these octets. */
static void ls_look(ls_session *s, const char *at, const char *end) {
    static const char head[] = "Message-ID: <";
    const char *found = s->known ? 0 : memmem(at, end - at, head, sizeof head - 1);
    if (!found || end - found < (long)sizeof head - 1 + 16) return;
    s->id = 0;
    s->known = 1;
    for (int i = 0; i < 16; i++) {
        int c = found[sizeof head - 1 + i];
        s->id = s->id << 4 | (uint64_t)(c <= '9' ? c - '0' : c - 'a' + 10);
    }
}

/* Serves `listener` until a connection says XSTOP; XSTAT answers with the number of messages. came[n] gets the time (CLOCK_MONOTONIC)
 * at which the message whose digits are first_id + n was whole. */
static long sink_run(int listener, double *came, long room, uint64_t first_id) {
    struct epoll_event events[LG_EVENTS], e = {.events = EPOLLIN, .data.ptr = 0};
    int ep = epoll_create1(EPOLL_CLOEXEC), one = 1;
    long messages = 0;
    char reply[4096];
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int n = epoll_wait(ep, events, LG_EVENTS, -1);
        for (int i = 0; i < n; i++) {
            ls_session *s = events[i].data.ptr;
            if (!s) {
                int fd = accept4(listener, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC);
                if (fd < 0) continue;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                s = calloc(1, sizeof *s);
                s->fd = fd;
                struct epoll_event c = {.events = EPOLLIN, .data.ptr = s};
                epoll_ctl(ep, EPOLL_CTL_ADD, fd, &c);
                if (send(fd, "220 sink ESMTP\r\n", 16, MSG_NOSIGNAL) < 0) { }
                continue;
            }
            ssize_t got = recv(s->fd, s->in + s->in_length, sizeof s->in - s->in_length, 0);
            if (got < 0 && errno == EAGAIN) continue;
            if (got <= 0) { close(s->fd); free(s); continue; }
            s->in_length += got;
            char *at = s->in, *end = s->in + s->in_length;
            size_t out = 0;
            int stop = 0;
            while (at < end) {
                if (s->in_data) {
                    char *dot = at[0] == '.' && end - at >= 3 && s->in_data == 2 && !memcmp(at, ".\r\n", 3) ? at - 2 : memmem(at, end - at, "\r\n.\r\n", 5);
                    if (came) ls_look(s, at, dot ? dot : end);
                    if (!dot) { size_t keep = came && !s->known ? 80 : 4; if ((size_t)(end - at) < keep) keep = end - at; memmove(s->in, end - keep, keep); s->in_length = keep; at = end = s->in + keep; s->in_data = 1; goto kept; }
                    at = dot + 5;
                    s->in_data = 0;
                    messages++;
                    if (s->known && s->id >= first_id && s->id - first_id < (uint64_t)room) came[s->id - first_id] = lg_now();
                    s->known = 0;
                    out += snprintf(reply + out, sizeof reply - out, "250 2.0.0 Ok\r\n");
                    continue;
                }
                char *lf = memchr(at, '\n', end - at);
                if (!lf) break;
                size_t room = sizeof reply - out;
                if (!strncasecmp(at, "EHLO", 4)) out += snprintf(reply + out, room, "250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-DSN\r\n250 SIZE 104857600\r\n");
                else if (!strncasecmp(at, "DATA", 4)) { out += snprintf(reply + out, room, "354 Go on\r\n"); s->in_data = 2; }
                else if (!strncasecmp(at, "QUIT", 4)) { out += snprintf(reply + out, room, "221 2.0.0 Bye\r\n"); stop = 1; }
                else if (!strncasecmp(at, "XSTAT", 5)) out += snprintf(reply + out, room, "250 %ld\r\n", messages);
                else if (!strncasecmp(at, "XSTOP", 5)) { close(s->fd); free(s); close(ep); return messages; }
                else out += snprintf(reply + out, room, "250 2.1.0 Ok\r\n");
                at = lf + 1;
                if (out > sizeof reply - 512) { if (send(s->fd, reply, out, MSG_NOSIGNAL) < 0) { } out = 0; }
            }
            s->in_length = end - at;
            memmove(s->in, at, s->in_length);
        kept:
            if (out && send(s->fd, reply, out, MSG_NOSIGNAL) < 0) stop = 1;
            if (stop) { close(s->fd); free(s); }
        }
    }
}
#endif
