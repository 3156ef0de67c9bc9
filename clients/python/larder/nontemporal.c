/* Copies past the caches. A KV block is copied once and read much later, often by a device: bringing its destination
 * into the cache first, as ordinary stores do, costs a third of the memory's bandwidth and evicts what others use.
 * Called through ctypes, so without the interpreter's lock. See nontemporal.py.
 */
#include <stddef.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#include <stdint.h>

enum {
    SMALL = 16 * 1024, /* below it the cache is faster */
    LINE = 64,
    STEP = 4 * LINE,
    AHEAD = 4 * STEP, /* how far the source is fetched in advance; tried: 2 to 8 */
};

int larder_nontemporal(void) { return __builtin_cpu_supports("avx2") != 0; }

__attribute__((target("avx2"))) void larder_copy(char *to, const char *from, size_t length)
{
    size_t head;

    if (length < SMALL) {
        memcpy(to, from, length);
        return;
    }
    head = -(uintptr_t)to & (LINE - 1);
    memcpy(to, from, head);
    to += head, from += head, length -= head;
    for (; length >= STEP; to += STEP, from += STEP, length -= STEP) {
        __m256i part[STEP / sizeof(__m256i)];
        for (size_t at = 0; at < STEP; at += LINE) /* beyond the end it does nothing */
            _mm_prefetch(from + AHEAD + at, _MM_HINT_NTA);
        for (size_t i = 0; i < STEP / sizeof *part; i++)
            part[i] = _mm256_loadu_si256((const __m256i *)from + i);
        for (size_t i = 0; i < STEP / sizeof *part; i++)
            _mm256_stream_si256((__m256i *)to + i, part[i]);
    }
    memcpy(to, from, length);
    _mm_sfence(); /* before anybody is told that the bytes are there */
}

#else

int larder_nontemporal(void) { return 0; }

void larder_copy(char *to, const char *from, size_t length) { memcpy(to, from, length); }

#endif
