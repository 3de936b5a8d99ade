/* Look-up in a flat table of counts: buckets of 16 slots, one cache line each. bayes_py.py tells the layout. A key has 29 bits. */
#include <stdint.h>

static inline uint32_t iems_other(uint32_t home, uint32_t rest, int bits) {
    return home ^ (((rest * 0x9E3779B1u) >> (32 - bits)) | 1u);
}

/* Which of a bucket's 16 slots have `mark` as their lower bits: a bit each. */
#ifdef __SSE2__
#include <emmintrin.h>
static inline unsigned iems_alike(const uint32_t *bucket, uint32_t mark, uint32_t mask) {
    const __m128i marks = _mm_set1_epi32((int)mark), masks = _mm_set1_epi32((int)mask);
    const __m128i *quads = (const __m128i *)bucket;
    __m128i a = _mm_cmpeq_epi32(_mm_and_si128(_mm_loadu_si128(quads), masks), marks);
    __m128i b = _mm_cmpeq_epi32(_mm_and_si128(_mm_loadu_si128(quads + 1), masks), marks);
    __m128i c = _mm_cmpeq_epi32(_mm_and_si128(_mm_loadu_si128(quads + 2), masks), marks);
    __m128i d = _mm_cmpeq_epi32(_mm_and_si128(_mm_loadu_si128(quads + 3), masks), marks);
    return (unsigned)_mm_movemask_epi8(_mm_packs_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d)));
}
#else
static inline unsigned iems_alike(const uint32_t *bucket, uint32_t mark, uint32_t mask) {
    unsigned found = 0;
    for (int i = 0; i < 16; i++)
        found |= (unsigned)((bucket[i] & mask) == mark) << i;
    return found;
}
#endif

/* The slot in one bucket whose lower bits are `mark` and whose count is not 0, or -1. */
static inline int iems_in_bucket(const uint32_t *bucket, uint32_t mark, uint32_t mask) {
    for (unsigned alike = iems_alike(bucket, mark, mask); alike; alike &= alike - 1)
        if (bucket[__builtin_ctz(alike)] > mask)
            return __builtin_ctz(alike);
    return -1;
}

/* Ask for both buckets of a key before they are needed. */
static inline void iems_prefetch(const uint32_t *table, int bits, uint32_t key) {
    uint32_t home = key >> (29 - bits), rest = key & ((1u << (29 - bits)) - 1);
    __builtin_prefetch(table + (size_t)home * 16);
    __builtin_prefetch(table + (size_t)iems_other(home, rest, bits) * 16);
}

static inline int64_t iems_find(const uint32_t *table, int bits, uint32_t key) {
    uint32_t mask = (2u << (29 - bits)) - 1, rest = key & (mask >> 1), home = key >> (29 - bits);
    int slot = iems_in_bucket(table + (size_t)home * 16, rest, mask);
    if (slot >= 0)
        return (int64_t)home * 16 + slot;
    uint32_t other = iems_other(home, rest, bits);
    slot = iems_in_bucket(table + (size_t)other * 16, rest | (1u << (29 - bits)), mask);
    return slot < 0 ? -1 : (int64_t)other * 16 + slot;
}

static inline uint32_t iems_count(const uint32_t *table, int bits, uint32_t key) {
    int64_t slot = iems_find(table, bits, key);
    return slot < 0 ? 0 : table[slot] >> (30 - bits);
}

static inline int iems_insert(uint32_t *table, int bits, uint32_t key, uint32_t count) {
    uint32_t mask = (2u << (29 - bits)) - 1, rest = key & (mask >> 1), home = key >> (29 - bits);
    uint32_t buckets[2] = {home, iems_other(home, rest, bits)};
    int room[2] = {0, 0}, first[2] = {-1, -1};
    for (int b = 0; b < 2; b++)
        for (int i = 15; i >= 0; i--)
            if (table[(size_t)buckets[b] * 16 + i] <= mask) {
                room[b]++;
                first[b] = i;
            }
    int elsewhere = room[1] > room[0];
    if (first[elsewhere] < 0)
        return 0;
    table[(size_t)buckets[elsewhere] * 16 + first[elsewhere]] =
        rest | ((uint32_t)elsewhere << (29 - bits)) | (count << (30 - bits));
    return 1;
}
