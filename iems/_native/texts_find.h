/* Searches of octets in which letters of ASCII are equal in either case. */
#ifndef IEMS_TEXTS_FIND_H
#define IEMS_TEXTS_FIND_H

#include <stddef.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define IEMS_TEXTS_AVX2 1
#endif

static inline unsigned char iems_lower(unsigned char octet) {
    return (unsigned char)(octet - 'A') < 26 ? octet | 32 : octet;
}

static int iems_same_word(const unsigned char *text, const unsigned char *word, size_t length) {
    for (size_t i = 0; i < length; ++i)
        if (iems_lower(text[i]) != word[i])
            return 0;
    return 1;
}

/* One place at a time: what other processors do, and the end of a run of vectors. */
static ptrdiff_t iems_find_word_plain(const unsigned char *text, size_t at, size_t size, const unsigned char *word, size_t length) {
    for (; at + length <= size; ++at)
        if (iems_lower(text[at]) == word[0] && iems_same_word(text + at, word, length))
            return (ptrdiff_t)at;
    return -1;
}

#ifdef IEMS_TEXTS_AVX2
/* 32 places at a time by the first and the last octet of the word, which together are rare. */
__attribute__((target("avx2,bmi")))
static ptrdiff_t iems_find_word_avx2(const unsigned char *text, size_t size, const unsigned char *word, size_t length) {
    const unsigned char head = word[0], tail = word[length - 1];
    const __m256i first = _mm256_set1_epi8((char)head), last = _mm256_set1_epi8((char)tail);
    const __m256i first_case = _mm256_set1_epi8((unsigned char)(head - 'a') < 26 ? 32 : 0);
    const __m256i last_case = _mm256_set1_epi8((unsigned char)(tail - 'a') < 26 ? 32 : 0);
    size_t at = 0;
    for (; at + length + 31 <= size; at += 32) {
        __m256i here = _mm256_or_si256(_mm256_loadu_si256((const __m256i *)(text + at)), first_case);
        __m256i there = _mm256_or_si256(_mm256_loadu_si256((const __m256i *)(text + at + length - 1)), last_case);
        unsigned both = (unsigned)_mm256_movemask_epi8(_mm256_and_si256(_mm256_cmpeq_epi8(here, first), _mm256_cmpeq_epi8(there, last)));
        while (both) {
            unsigned bit = (unsigned)__builtin_ctz(both);
            if (iems_same_word(text + at + bit, word, length))
                return (ptrdiff_t)(at + bit);
            both &= both - 1;
        }
    }
    return iems_find_word_plain(text, at, size, word, length);
}
#endif

/* The first place of a word (in lower case, one octet at least) in a text, -1 if it is not there. */
static ptrdiff_t iems_find_word(const unsigned char *text, size_t size, const unsigned char *word, size_t length) {
#ifdef IEMS_TEXTS_AVX2
    if (size >= length + 63 && __builtin_cpu_supports("avx2"))
        return iems_find_word_avx2(text, size, word, length);
#endif
    return iems_find_word_plain(text, 0, size, word, length);
}

/* Whether an octet above 127 is there. Without branches, so that compilers judge many at once. */
static int iems_wide(const unsigned char *text, size_t size) {
    unsigned char all = 0;
    for (size_t i = 0; i < size; ++i)
        all |= text[i];
    return all >> 7;
}

/* Whether a header is more than ASCII in lines: octets above 127, encoded words, a CR that ends no line (it is taken out, not a space). */
static int iems_odd_header(const unsigned char *text, size_t size) {
    unsigned char odd = 0;
    if (size == 0)
        return 0;
    for (size_t i = 0; i + 1 < size; ++i) {
        unsigned char octet = text[i], next = text[i + 1];
        odd |= (octet >> 7) | ((octet == '=') & (next == '?')) | ((octet == '\r') & (next != '\n'));
    }
    return odd | (text[size - 1] >> 7) | (text[size - 1] == '\r');
}

#endif
