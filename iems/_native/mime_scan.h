/* Search of a message for lines that may be delimiters ("--" behind a LF), counting line ends on the way. */
#ifndef IEMS_MIME_SCAN_H
#define IEMS_MIME_SCAN_H

#include <stddef.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define IEMS_MIME_AVX2 1
#endif

/* One LF at a time: what other processors do, and the last octets of a run of vectors. */
static size_t iems_find_delimiter_plain(const unsigned char *text, size_t at, size_t end, size_t *lines) {
    while (at < end) {
        const unsigned char *hit = memchr(text + at, '\n', end - at);
        if (hit == NULL)
            return end;
        at = (size_t)(hit - text);
        if (at + 2 < end && hit[1] == '-' && hit[2] == '-')
            return at;
        ++*lines;
        ++at;
    }
    return end;
}

#ifdef IEMS_MIME_AVX2
/* 32 octets at a time. Text has a LF in every second vector, base64 a "-" in none: asking for both at once keeps the
 * rare branch rare. Reads up to 34 octets from `at`, so the last ones are left to the plain search. */
__attribute__((target("avx2,popcnt,bmi")))
static size_t iems_find_delimiter_avx2(const unsigned char *text, size_t at, size_t end, size_t *lines) {
    const __m256i feed = _mm256_set1_epi8('\n'), dash = _mm256_set1_epi8('-');
    size_t count = 0;
    for (; at + 34 <= end; at += 32) {
        __m256i here = _mm256_cmpeq_epi8(_mm256_loadu_si256((const __m256i *)(text + at)), feed);
        __m256i next = _mm256_cmpeq_epi8(_mm256_loadu_si256((const __m256i *)(text + at + 1)), dash);
        unsigned feeds = (unsigned)_mm256_movemask_epi8(here);
        unsigned both = feeds & (unsigned)_mm256_movemask_epi8(next);
        while (both) {
            unsigned bit = (unsigned)__builtin_ctz(both);
            if (text[at + bit + 2] == '-') {
                *lines += count + (size_t)__builtin_popcount(feeds & ((1u << bit) - 1));
                return at + bit;
            }
            both &= both - 1;
        }
        count += (size_t)__builtin_popcount(feeds);
    }
    *lines += count;
    return iems_find_delimiter_plain(text, at, end, lines);
}
#endif

/* The offset of the first LF in text[at, end) that "--" follows within it, or `end`. Adds the LFs before it to *lines. */
static size_t iems_find_delimiter(const unsigned char *text, size_t at, size_t end, size_t *lines) {
#ifdef IEMS_MIME_AVX2
    if (end - at >= 64 && __builtin_cpu_supports("avx2"))
        return iems_find_delimiter_avx2(text, at, end, lines);
#endif
    return iems_find_delimiter_plain(text, at, end, lines);
}

#endif
