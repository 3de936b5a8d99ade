/* The load generators of the perf suite: one epoll loop each, no allocation while the clock runs.
 *
 * smtp_load  SMTP or LMTP sessions that send prepared messages, each with 16 hexadecimal digits of its own patched in.
 * fetch_load IMAP or POP3 sessions that ask for message after message and throw the octets away.
 * sink_run   an SMTP receiver that accepts everything, keeps nothing and counts.
 *
 * Latency is taken from the moment the kernel has the last octet of a request until the last octet of its answer is read. */
#ifndef IEMS_LOADGEN_H
#define IEMS_LOADGEN_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
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
} lg_smtp;

typedef struct {
    long done, errors, connections;
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

static void lg_note(lg_result *r, double latency) { if (r->latency_count < r->latency_room) r->latency[r->latency_count++] = latency; }

static void lg_complain(lg_result *r, const char *line, size_t length) {
    r->errors++;
    if (!r->complaint[0]) snprintf(r->complaint, sizeof r->complaint, "%.*s", (int)(length < 150 ? length : 150), line);
}

/* ---------------------------------------------------------------- SMTP and LMTP */

enum lg_state { LG_GREETING, LG_EHLO, LG_MAIL, LG_RCPT, LG_DATA, LG_BODY, LG_FINAL, LG_QUIT };

typedef struct {
    int fd, awaited, watching_out;
    enum lg_state state;
    long sent_here;
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

static void lg_next_message(int ep, lg_session *s, const lg_smtp *p, long *issued) {
    char line[512];
    if ((p->per_connection && s->sent_here >= p->per_connection) || (p->count && *issued >= p->count)) {
        s->state = LG_QUIT;
        s->awaited = 1;
        lg_say(s, "QUIT\r\n");
        lg_push(ep, s);
        return;
    }
    long number = (*issued)++;
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

static void lg_close(int ep, lg_session *s, const lg_smtp *p, lg_result *r, long issued) {
    epoll_ctl(ep, EPOLL_CTL_DEL, s->fd, 0);
    close(s->fd);
    s->fd = -1;
    if (!(p->count && issued >= p->count)) lg_open(ep, s, p, r);
}

static void lg_reply(int ep, lg_session *s, const lg_smtp *p, lg_result *r, const char *line, size_t length, long *issued) {
    char text[512];
    int bad = line[0] >= '4' || line[0] < '2';
    if (bad) {
        lg_complain(r, line, length);
        if (s->state != LG_FINAL) { lg_close(ep, s, p, r, *issued); return; }
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
        lg_next_message(ep, s, p, issued);
        break;
    case LG_MAIL: {
        uint64_t number = 0;
        for (int i = 0; i < 16; i++) number = number << 4 | (uint64_t)(s->digits[i] <= '9' ? s->digits[i] - '0' : s->digits[i] - 'a' + 10);
        snprintf(text, sizeof text, "RCPT TO:<%s>\r\n", p->recipients[(number - p->first_id) % p->recipient_count]);
        lg_say(s, text);
        s->state = LG_RCPT;
        s->awaited = 1;
        lg_push(ep, s);
        break;
    }
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
        break;
    case LG_FINAL:
        if (!bad) {
            r->done++;
            r->octets += s->message->length;
            lg_note(r, lg_now() - s->sent_at);
        }
        s->sent_here++;
        lg_next_message(ep, s, p, issued);
        break;
    case LG_QUIT:
        lg_close(ep, s, p, r, *issued);
        break;
    }
}

static void lg_read(int ep, lg_session *s, const lg_smtp *p, lg_result *r, long *issued) {
    ssize_t n = recv(s->fd, s->in + s->in_length, sizeof s->in - s->in_length, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        if (s->state != LG_QUIT) lg_complain(r, "connection closed", 17);
        lg_close(ep, s, p, r, *issued);
        return;
    }
    s->in_length += n;
    char *at = s->in, *end = s->in + s->in_length, *lf;
    while ((lf = memchr(at, '\n', end - at))) {
        int fd = s->fd;
        if (lf - at >= 4 && at[3] != '-') lg_reply(ep, s, p, r, at, lf - at, issued);
        if (s->fd != fd || s->fd < 0) return; /* another connection by now: what is left belonged to the old one */
        at = lf + 1;
    }
    s->in_length = end - at;
    memmove(s->in, at, s->in_length);
    if (s->in_length == sizeof s->in) s->in_length = 0; /* a line longer than any reply: drop it */
}

/* Runs until `count` messages are settled or the time is over. 0, or -1 when no session could be opened. */
static int smtp_load(const lg_smtp *p, lg_result *r, void (*mark)(int)) {
    struct epoll_event events[LG_EVENTS];
    lg_session *sessions = calloc(p->sessions, sizeof *sessions);
    int ep = epoll_create1(EPOLL_CLOEXEC), open = 0, measuring = p->count > 0;
    long issued = 0;
    double started = lg_now(), begun = started;
    if (!sessions || ep < 0) { free(sessions); return -1; }
    if (measuring) mark(0);
    for (int i = 0; i < p->sessions && (!p->count || i < p->count); i++) open += lg_open(ep, &sessions[i], p, r) == 0;
    while (open) {
        int n = epoll_wait(ep, events, LG_EVENTS, 20);
        for (int i = 0; i < n; i++) {
            lg_session *s = events[i].data.ptr;
            if (s->fd < 0) continue;
            if (events[i].events & EPOLLOUT) { if (s->out_length) lg_push(ep, s); if (s->state == LG_BODY) lg_send_body(ep, s); }
            if (s->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) lg_read(ep, s, p, r, &issued);
        }
        double now = lg_now();
        if (r->errors > 1000 && r->errors > r->done) break;
        if (p->count) {
            if (r->done + r->errors >= p->count || now - started > 600) break;
        } else if (!measuring && now - started >= p->warmup_s) {
            measuring = 1;
            begun = now;
            r->done = r->errors = r->connections = r->latency_count = 0;
            r->octets = 0;
            mark(0);
        } else if (measuring && now - begun >= p->run_s) break;
    }
    r->seconds = lg_now() - begun;
    mark(1);
    for (int i = 0; i < p->sessions; i++) if (sessions[i].fd > 0) close(sessions[i].fd);
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
} lg_fetch;

enum lf_state { LF_GREETING, LF_USER, LF_LOGIN, LF_SELECT, LF_ASK, LF_IDLE };

typedef struct {
    int fd;
    enum lf_state state;
    long next;
    size_t skip; /* octets of a literal still to be thrown away */
    int multi;   /* POP3: inside a multi-line answer */
    double asked_at;
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
        s->next = s->next >= p->last ? p->first : s->next + 1;
    }
    s->multi = 0;
    s->asked_at = lg_now();
    if (send(s->fd, line, n, MSG_NOSIGNAL) != n) s->state = LF_IDLE;
}

static int lf_line(lf_session *s, const lg_fetch *p, lg_result *r, const char *at, size_t length, long number) {
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
    case LF_IDLE: return 0;
    }
    lf_ask(s, p, number);
    return 0;
}

static int lf_read(lf_session *s, const lg_fetch *p, lg_result *r, long number) {
    static char waste[262144];
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
                lf_ask(s, p, number);
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
            if (lf_line(s, p, r, at, length, number) < 0) return -1;
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
                if (have >= 5 && !memcmp(end - 5, "\r\n.\r\n", 5)) { s->multi = 0; r->done++; lg_note(r, lg_now() - s->asked_at); at = end; s->in_length = 0; memset(s->in, 0, 4); lf_ask(s, p, number); break; }
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

static int fetch_load(const lg_fetch *p, lg_result *r, void (*mark)(int)) {
    struct epoll_event events[LG_EVENTS];
    lf_session *sessions = calloc(p->sessions, sizeof *sessions);
    int ep = epoll_create1(EPOLL_CLOEXEC), open = 0, measuring = 0;
    if (!sessions || ep < 0) { free(sessions); return -1; }
    for (int i = 0; i < p->sessions; i++) {
        lf_session *s = &sessions[i];
        s->fd = lg_connect(p->port);
        if (s->fd < 0) { lg_complain(r, "can't connect", 13); continue; }
        long span = p->last - p->first + 1;
        s->next = p->first + (span > 0 ? i * 7919L % span : 0);
        struct epoll_event e = {.events = EPOLLIN, .data.u32 = i};
        epoll_ctl(ep, EPOLL_CTL_ADD, s->fd, &e);
        r->connections++;
        open++;
    }
    double started = lg_now(), begun = started;
    while (open > 0) {
        int n = epoll_wait(ep, events, LG_EVENTS, 20);
        for (int i = 0; i < n; i++) {
            lf_session *s = &sessions[events[i].data.u32];
            if (s->fd >= 0 && lf_read(s, p, r, events[i].data.u32) < 0) {
                if (!r->complaint[0]) lg_complain(r, "connection closed", 17); else r->errors++;
                close(s->fd);
                s->fd = -1;
                open--;
            }
        }
        double now = lg_now();
        if (!p->command) {
            if (!measuring && r->done + r->errors >= p->sessions) { measuring = 1; begun = now; mark(0); }
            if (measuring && now - begun >= p->idle_s) break;
            if (now - started > 300) break;
        } else if (!measuring && now - started >= p->warmup_s) {
            measuring = 1;
            begun = now;
            r->done = r->errors = r->latency_count = 0;
            r->octets = 0;
            mark(0);
        } else if (measuring && now - begun >= p->run_s) break;
    }
    r->seconds = lg_now() - begun;
    mark(1);
    for (int i = 0; i < p->sessions; i++) if (sessions[i].fd > 0) close(sessions[i].fd);
    close(ep);
    free(sessions);
    return open > 0 ? 0 : -1;
}

/* ---------------------------------------------------------------- the sink */

typedef struct { int fd, in_data; size_t in_length; char in[65536]; } ls_session;

/* Serves `listener` until a connection says XSTOP; XSTAT answers with the number of messages. */
static long sink_run(int listener) {
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
                    if (!dot) { size_t keep = end - at < 4 ? (size_t)(end - at) : 4; memmove(s->in, end - keep, keep); s->in_length = keep; at = end = s->in + keep; s->in_data = 1; goto kept; }
                    at = dot + 5;
                    s->in_data = 0;
                    messages++;
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
