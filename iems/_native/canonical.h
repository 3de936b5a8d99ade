/* Relaxed canonical form of a body (RFC 6376 3.4.4): what stays as it is moves sixteen octets at a time, the rest octet by octet. */
#ifndef IEMS_CANONICAL_H
#define IEMS_CANONICAL_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

/* Held back, in this order: so many line ends, white space, a CR. */
typedef struct {
    uint64_t blank;
    int space;
    int cr;
} relaxed;

static inline int relaxed_white(unsigned char c) { return c == ' ' || c == '\t'; }

/* Where an octet at or behind `i` and before `end` is that does not stay as it is: a tab, or a space before white space or CR.
   src[end] may be read. */
static size_t relaxed_same(const unsigned char *src, size_t i, size_t end) {
#if defined(__SSE2__)
    const __m128i tab = _mm_set1_epi8('\t'), space = _mm_set1_epi8(' '), cr = _mm_set1_epi8('\r');
    while (i + 16 <= end) {
        __m128i here = _mm_loadu_si128((const __m128i *)(src + i));
        __m128i next = _mm_loadu_si128((const __m128i *)(src + i + 1));
        __m128i ends = _mm_or_si128(_mm_cmpeq_epi8(next, cr), _mm_or_si128(_mm_cmpeq_epi8(next, space), _mm_cmpeq_epi8(next, tab)));
        __m128i changes = _mm_or_si128(_mm_cmpeq_epi8(here, tab), _mm_and_si128(_mm_cmpeq_epi8(here, space), ends));
        int mask = _mm_movemask_epi8(changes);
        if (mask) return i + (size_t)__builtin_ctz((unsigned)mask);
        i += 16;
    }
#endif
    for (; i < end; i++)
        if (src[i] == '\t' || (src[i] == ' ' && (relaxed_white(src[i + 1]) || src[i + 1] == '\r'))) return i;
    return end;
}

/* The end of what is not white space or line ends. */
static size_t relaxed_solid(const unsigned char *src, size_t n) {
    while (n && (relaxed_white(src[n - 1]) || src[n - 1] == '\r' || src[n - 1] == '\n')) n--;
    return n;
}

/* What is held back was no end: it goes out, as far as there is room; whether all of it did. Room for two octets must be left behind it. */
static int relaxed_let_go(relaxed *s, unsigned char *to, size_t *at, size_t room) {
    while (s->blank && *at + 5 <= room) {
        to[(*at)++] = '\r';
        to[(*at)++] = '\n';
        s->blank--;
    }
    if (s->blank || *at + 3 > room) return 0;
    if (s->space) { to[(*at)++] = ' '; s->space = 0; }
    return 1;
}

/* Octets of src taken; *written of them, in canonical form, are in `to`. solid: as relaxed_solid has it for all of src. */
static size_t relaxed_run(relaxed *s, const unsigned char *src, size_t n, size_t solid, unsigned char *to, size_t room, size_t *written) {
    size_t i = 0, at = 0;
    while (i < n) {
        if (!s->blank && !s->space && !s->cr && i < solid) {
            /* src[solid - 1] is text, so octets before it can be told from their next one. */
            size_t end = solid - i > room - at ? i + (room - at) : solid;
            if (end > i) {
                size_t last = end == solid ? end - 1 : end;
                size_t same = relaxed_same(src, i, last);
                if (same == last && end == solid) same = end;
                memcpy(to + at, src + i, same - i);
                at += same - i;
                i = same;
                if (i == end) {
                    if (end != solid) break; /* no room */
                    continue;
                }
            }
        }
        unsigned char c = src[i];
        if (relaxed_white(c)) {
            if (s->cr) {
                if (!relaxed_let_go(s, to, &at, room)) break;
                to[at++] = '\r';
                s->cr = 0;
            }
            s->space = 1;
        } else if (c == '\r') {
            if (s->cr) {
                if (!relaxed_let_go(s, to, &at, room)) break;
                to[at++] = '\r';
            }
            s->cr = 1;
        } else if (c == '\n' && s->cr) {
            s->cr = s->space = 0;
            s->blank++;
        } else {
            if (!relaxed_let_go(s, to, &at, room)) break;
            if (s->cr) { to[at++] = '\r'; s->cr = 0; }
            to[at++] = c;
        }
        i++;
    }
    *written = at;
    return i;
}

/* A field's value (what is behind the colon) in relaxed form; octets written to `to`, which has room for n. */
static size_t relaxed_value(const unsigned char *src, size_t n, unsigned char *to) {
    size_t at = 0;
    int space = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = src[i];
        if (c == '\r' && i + 1 < n && src[i + 1] == '\n') { i++; continue; }
        if (relaxed_white(c)) { space = 1; continue; }
        if (space && at) to[at++] = ' ';
        space = 0;
        to[at++] = c;
    }
    return at;
}

/* The body has ended: a CR that is held back is text. Whether all of it went out; *written octets are in `to`. */
static int relaxed_end(relaxed *s, unsigned char *to, size_t room, size_t *written) {
    size_t at = 0;
    int all = !s->cr || relaxed_let_go(s, to, &at, room);
    if (all && s->cr) { to[at++] = '\r'; s->cr = 0; }
    *written = at;
    return all;
}

#endif
