/* CRC-32C (Castagnoli, RFC 3720 B.4): SSE4.2 with three streams at once where the processor has it, else eight tables. */
#ifndef IEMS_CRC32C_H
#define IEMS_CRC32C_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

#define CRC32C_LONG 8192
#define CRC32C_SHORT 256

static uint32_t crc32c_table[8][256];
static uint32_t crc32c_long[4][256], crc32c_short[4][256];
static int crc32c_hardware;
static pthread_once_t crc32c_once = PTHREAD_ONCE_INIT;

/* Tables that advance a register over `octets` zeros: the register is linear in its bits, so 32 bits tell all. */
static void crc32c_zeros(uint32_t shift[4][256], size_t octets) {
    uint32_t bit[32];
    for (int i = 0; i < 32; i++) {
        uint32_t c = 1u << i;
        for (size_t n = 0; n < octets; n++) c = crc32c_table[0][c & 255] ^ (c >> 8);
        bit[i] = c;
    }
    for (int place = 0; place < 4; place++)
        for (int value = 0; value < 256; value++) {
            uint32_t c = 0;
            for (int i = 0; i < 8; i++)
                if (value >> i & 1) c ^= bit[place * 8 + i];
            shift[place][value] = c;
        }
}

static void crc32c_init(void) {
    for (uint32_t value = 0; value < 256; value++) {
        uint32_t c = value;
        for (int i = 0; i < 8; i++) c = c & 1 ? (c >> 1) ^ 0x82f63b78u : c >> 1;
        crc32c_table[0][value] = c;
    }
    for (int value = 0; value < 256; value++)
        for (int k = 1; k < 8; k++)
            crc32c_table[k][value] = crc32c_table[0][crc32c_table[k - 1][value] & 255] ^ (crc32c_table[k - 1][value] >> 8);
#if defined(__x86_64__)
    __builtin_cpu_init();
    crc32c_hardware = __builtin_cpu_supports("sse4.2");
    if (crc32c_hardware) {
        crc32c_zeros(crc32c_long, CRC32C_LONG);
        crc32c_zeros(crc32c_short, CRC32C_SHORT);
    }
#endif
}

static uint32_t crc32c_by_table(uint32_t c, const unsigned char *p, size_t n) {
    while (n && ((uintptr_t)p & 7)) { c = crc32c_table[0][(c ^ *p++) & 255] ^ (c >> 8); n--; }
    while (n >= 8) {
        uint32_t low, high;
        memcpy(&low, p, 4);
        memcpy(&high, p + 4, 4);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        low = __builtin_bswap32(low);
        high = __builtin_bswap32(high);
#endif
        low ^= c;
        c = crc32c_table[7][low & 255] ^ crc32c_table[6][low >> 8 & 255] ^ crc32c_table[5][low >> 16 & 255] ^ crc32c_table[4][low >> 24]
          ^ crc32c_table[3][high & 255] ^ crc32c_table[2][high >> 8 & 255] ^ crc32c_table[1][high >> 16 & 255] ^ crc32c_table[0][high >> 24];
        p += 8;
        n -= 8;
    }
    while (n--) c = crc32c_table[0][(c ^ *p++) & 255] ^ (c >> 8);
    return c;
}

#if defined(__x86_64__)
static inline uint32_t crc32c_shift(uint32_t table[4][256], uint32_t c) {
    return table[0][c & 255] ^ table[1][c >> 8 & 255] ^ table[2][c >> 16 & 255] ^ table[3][c >> 24];
}

static inline uint64_t crc32c_word(const unsigned char *p) { uint64_t w; memcpy(&w, p, 8); return w; }

/* The instruction takes three cycles and starts one each cycle: three runs side by side, joined by their tables. */
__attribute__((target("sse4.2")))
static const unsigned char *crc32c_three(uint64_t *c0, const unsigned char *p, size_t run, uint32_t table[4][256]) {
    uint64_t c1 = 0, c2 = 0;
    const unsigned char *end = p + run;
    do {
        *c0 = _mm_crc32_u64(*c0, crc32c_word(p));
        c1 = _mm_crc32_u64(c1, crc32c_word(p + run));
        c2 = _mm_crc32_u64(c2, crc32c_word(p + 2 * run));
        p += 8;
    } while (p < end);
    *c0 = crc32c_shift(table, (uint32_t)*c0) ^ c1;
    *c0 = crc32c_shift(table, (uint32_t)*c0) ^ c2;
    return p + 2 * run;
}

__attribute__((target("sse4.2")))
static uint32_t crc32c_by_sse(uint32_t c, const unsigned char *p, size_t n) {
    uint64_t c0 = c;
    while (n && ((uintptr_t)p & 7)) { c0 = _mm_crc32_u8((uint32_t)c0, *p++); n--; }
    while (n >= 3 * CRC32C_LONG) { p = crc32c_three(&c0, p, CRC32C_LONG, crc32c_long); n -= 3 * CRC32C_LONG; }
    while (n >= 3 * CRC32C_SHORT) { p = crc32c_three(&c0, p, CRC32C_SHORT, crc32c_short); n -= 3 * CRC32C_SHORT; }
    while (n >= 8) { c0 = _mm_crc32_u64(c0, crc32c_word(p)); p += 8; n -= 8; }
    while (n--) c0 = _mm_crc32_u8((uint32_t)c0, *p++);
    return (uint32_t)c0;
}
#endif

/* The checksum of what `crc` covers followed by p[0:n]; 0 begins. */
static uint32_t crc32c_update(uint32_t crc, const void *p, size_t n) {
    pthread_once(&crc32c_once, crc32c_init);
    crc = ~crc;
#if defined(__x86_64__)
    if (crc32c_hardware) return ~crc32c_by_sse(crc, (const unsigned char *)p, n);
#endif
    return ~crc32c_by_table(crc, (const unsigned char *)p, n);
}

/* The same without the instruction, for tests and other processors. */
static uint32_t crc32c_update_table(uint32_t crc, const void *p, size_t n) {
    pthread_once(&crc32c_once, crc32c_init);
    return ~crc32c_by_table(~crc, (const unsigned char *)p, n);
}

#endif
