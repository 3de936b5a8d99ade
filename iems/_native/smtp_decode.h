/* The end of mail data, found and unstuffed in one pass (RFC 5321 4.5.2); the state is carried from chunk to chunk.
 *
 * Only CRLF is a line end, so only CRLF.CRLF ends the data: LF.LF, LF.CRLF, CR.CR and the like never do.
 * 64 octets are looked at together: CR, LF and dot become bit masks, and a block in which every CR has its LF and
 * no line begins with a dot costs no branch an octet. What is odd goes through the plain state machine.
 */
#ifndef IEMS_SMTP_DECODE_H
#define IEMS_SMTP_DECODE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum { AT_BOL, AT_DOT, AT_DOT_CR, IN_LINE, AT_CR };

typedef struct {
    uint64_t octets;  /* of the content, unstuffed */
    uint64_t limit;   /* 0: none */
    uint64_t longest; /* octets of the longest line, its CRLF not counted */
    uint64_t line;    /* octets of the line under way */
    int state;
    int raw;    /* a BDAT chunk: no stuffing, no end mark */
    int strict; /* stop keeping content once it has a bare CR, a bare LF or a NUL */
    int keep;
    int eight_bit, bare_cr, bare_lf, nul, dot_line, too_big, done;
    int out_bol; /* smtp_normalise only: the next octet written begins a line */
} smtp_decoder;

static void smtp_note_line(smtp_decoder *d, int64_t length)
{
    if ((uint64_t)length > d->longest)
        d->longest = (uint64_t)length;
}

static size_t smtp_emit(smtp_decoder *d, const unsigned char *from, size_t count, unsigned char *to)
{
    if (!count)
        return 0;
    d->octets += count;
    if (d->limit && d->octets > d->limit) {
        d->too_big = 1;
        d->keep = 0;
    }
    if (!d->keep)
        return 0;
    memcpy(to, from, count);
    return count;
}

#ifdef __SSE2__
static uint64_t smtp_mask(__m128i a, __m128i b, __m128i c, __m128i d)
{
    return (uint64_t)(unsigned)_mm_movemask_epi8(a) | (uint64_t)(unsigned)_mm_movemask_epi8(b) << 16 |
           (uint64_t)(unsigned)_mm_movemask_epi8(c) << 32 | (uint64_t)(unsigned)_mm_movemask_epi8(d) << 48;
}

static uint64_t smtp_equal(__m128i a, __m128i b, __m128i c, __m128i d, char octet)
{
    __m128i x = _mm_set1_epi8(octet);
    return smtp_mask(_mm_cmpeq_epi8(a, x), _mm_cmpeq_epi8(b, x), _mm_cmpeq_epi8(c, x), _mm_cmpeq_epi8(d, x));
}
#endif

/* Take octets of src[0:end) up to the end of data; `to` has room for end + 1 octets, *written tells how many came. */
static size_t smtp_decode(smtp_decoder *d, const unsigned char *src, size_t end, unsigned char *to, size_t *written)
{
    size_t i = 0, run = 0, w = 0;
    int state = d->state;
    int64_t begin = -(int64_t)d->line; /* where the line under way began, seen from src */

    *written = 0;
    if (!end)
        return 0;
    if (state == AT_DOT_CR && src[0] != '\n') {
        /* The CR held back since the last chunk is content after all; whether it is bare, the next octet tells. */
        w += smtp_emit(d, (const unsigned char *)"\r", 1, to + w);
        begin = -1;
        state = AT_CR;
    }
    while (i < end) {
#ifdef __SSE2__
        while (end - i >= 64 && (state == IN_LINE || state == AT_BOL || state == AT_CR)) {
            const __m128i *at = (const __m128i *)(src + i);
            __m128i a = _mm_loadu_si128(at), b = _mm_loadu_si128(at + 1), c = _mm_loadu_si128(at + 2),
                    e = _mm_loadu_si128(at + 3);
            uint64_t cr = smtp_equal(a, b, c, e, '\r'), lf = smtp_equal(a, b, c, e, '\n');
            uint64_t dots = smtp_equal(a, b, c, e, '.') & (lf << 1 | (state == AT_BOL));
            uint64_t odd = (cr << 1 | (state == AT_CR)) ^ lf;
            uint64_t nul = smtp_equal(a, b, c, e, 0), high = smtp_mask(a, b, c, e);
            uint64_t hit = d->raw ? odd : odd | dots, seen = ~(uint64_t)0;
            unsigned taken = 64;

            if (hit) {
                taken = (unsigned)__builtin_ctzll(hit);
                if (!taken)
                    break;
                seen = ((uint64_t)1 << taken) - 1;
            }
            d->nul |= (nul & seen) != 0;
            d->eight_bit |= (high & seen) != 0;
            d->dot_line |= d->raw && (dots & seen);
            for (uint64_t ends = lf & seen; ends; ends &= ends - 1) {
                int64_t p = (int64_t)i + __builtin_ctzll(ends);
                smtp_note_line(d, p - begin - 1);
                begin = p + 1;
            }
            state = lf >> (taken - 1) & 1 ? AT_BOL : cr >> (taken - 1) & 1 ? AT_CR : IN_LINE;
            i += taken;
            if (hit)
                break;
        }
        if (i >= end)
            break;
#endif
        unsigned char c = src[i];
        if (state == AT_DOT_CR) {
            if (c == '\n') {
                d->done = 1;
                i++;
                break;
            }
            begin = (int64_t)i - 1;
            state = AT_CR;
            continue;
        }
        d->nul |= c == 0;
        d->eight_bit |= c >> 7;
        switch (state) {
        case AT_BOL:
            if (c == '.') {
                if (!d->raw) {
                    w += smtp_emit(d, src + run, i - run, to + w);
                    run = i + 1;
                    begin = (int64_t)i + 1;
                    state = AT_DOT;
                    break;
                }
                d->dot_line = 1;
            }
            /* fall through */
        case IN_LINE:
            d->bare_lf |= c == '\n';
            state = c == '\r' ? AT_CR : IN_LINE;
            break;
        case AT_CR:
            if (c == '\n') {
                smtp_note_line(d, (int64_t)i - begin - 1);
                begin = (int64_t)i + 1;
                state = AT_BOL;
            } else {
                d->bare_cr = 1;
                state = c == '\r' ? AT_CR : IN_LINE;
            }
            break;
        default: /* AT_DOT: this dot was put there by the client and is gone already */
            if (c == '\r') {
                state = AT_DOT_CR;
                break;
            }
            d->dot_line |= c == '.';
            d->bare_lf |= c == '\n';
            state = IN_LINE;
        }
        i++;
    }
    if (d->done || state == AT_DOT_CR) {
        /* `run` stands at the CR of ".CR", which is not content if its LF came or may come. */
        d->line = 0;
        if (d->done)
            state = AT_BOL;
    } else {
        w += smtp_emit(d, src + run, i - run, to + w);
        d->line = (uint64_t)((int64_t)i - begin);
    }
    if (d->strict && (d->bare_cr | d->bare_lf | d->nul))
        d->keep = 0;
    d->state = state;
    *written = w;
    return i;
}

/* As smtp_decode, but a bare LF becomes CRLF, a bare CR a space, a NUL nothing. `to` has room for 2 * end + 1 octets. */
static size_t smtp_normalise(smtp_decoder *d, const unsigned char *src, size_t end, unsigned char *to, size_t *written)
{
    size_t i, w = 0;

    *written = 0;
    for (i = 0; i < end && !d->done; i++) {
        unsigned char c = src[i], put[4];
        size_t n = 0;

        if (d->state == AT_DOT_CR && c == '\n') {
            d->done = 1;
            d->state = AT_BOL;
            continue;
        }
        if (d->state == AT_DOT && c == '\r') {
            d->state = AT_DOT_CR;
            continue;
        }
        if (d->state == AT_BOL && c == '.' && !d->raw) {
            d->state = AT_DOT;
            continue;
        }
        if ((d->state == AT_CR || d->state == AT_DOT_CR) && c != '\n') {
            d->bare_cr = 1;
            put[n++] = ' ';
            d->line++;
            d->out_bol = 0;
        }
        d->eight_bit |= c >> 7;
        if (c == '\n') {
            d->bare_lf |= d->state != AT_CR;
            d->state = d->state == AT_CR ? AT_BOL : IN_LINE;
            put[n++] = '\r';
            put[n++] = '\n';
            smtp_note_line(d, (int64_t)d->line);
            d->line = 0;
            d->out_bol = 1;
        } else if (c == '\r') {
            d->state = AT_CR;
        } else {
            d->state = IN_LINE;
            if (c == 0) {
                d->nul = 1;
            } else {
                d->dot_line |= d->out_bol && c == '.';
                d->out_bol = 0;
                d->line++;
                put[n++] = c;
            }
        }
        w += smtp_emit(d, put, n, to + w);
    }
    *written = w;
    return i;
}

#endif
