/* What the dense and the sparse convolutions share: the end of a row. */
#ifndef REFLOW_CONV_ROWS_H
#define REFLOW_CONV_ROWS_H

#include "rescaling.h"

/* Keeps GCC from holding one pointer for each pixel of a tile, for which there are no registers. */
#if defined(__GNUC__)
#define REFLOW_FORGET(pointer) __asm__("" : "+r"(pointer))
#else
#define REFLOW_FORGET(pointer) (void)(pointer)
#endif

/* Narrows the accumulator of a pair, see conv_gather.c, and stores it; returns where the next pair goes. */
static inline int8_t *reflow_store_pair(int64_t pair, int8_t *output, int32_t pitch, struct reflow_channel channel,
                                        int32_t rounding, const struct reflow_rescaling *rescaling) {
  const int32_t low = (int32_t)(uint32_t)(uint64_t)pair;
  const uint32_t high = (uint32_t)((uint64_t)pair >> 32) + ((uint32_t)low >> 31);
  *output = (int8_t)reflow_narrow(low, channel, rounding, rescaling);
  output += pitch;
  *output = (int8_t)reflow_narrow((int32_t)(high << 8), channel, rounding, rescaling);
  return output + pitch;
}

static inline void reflow_store_2(int64_t a, int64_t b, int8_t *output, int32_t pitch, struct reflow_channel channel,
                                  int32_t rounding, const struct reflow_rescaling *rescaling) {
  output = reflow_store_pair(a, output, pitch, channel, rounding, rescaling);
  reflow_store_pair(b, output, pitch, channel, rounding, rescaling);
}

static inline void reflow_store_4(int64_t a, int64_t b, int64_t c, int64_t d, int8_t *output, int32_t pitch,
                                  struct reflow_channel channel, int32_t rounding,
                                  const struct reflow_rescaling *rescaling) {
  output = reflow_store_pair(a, output, pitch, channel, rounding, rescaling);
  output = reflow_store_pair(b, output, pitch, channel, rounding, rescaling);
  reflow_store_2(c, d, output, pitch, channel, rounding, rescaling);
}

/* Stores the accumulators of a row with `store`, reflow_store_2 or reflow_store_4: one piece of code for each rounding,
 * without a question in it. */
#define REFLOW_STORE_ROW(store, rescaling, output, pitch, channel, ...)      \
  do {                                                                       \
    if ((rescaling).rounding == REFLOW_UP)                                   \
      store(__VA_ARGS__, output, pitch, channel, REFLOW_UP, &(rescaling));   \
    else if ((rescaling).rounding == REFLOW_AWAY)                            \
      store(__VA_ARGS__, output, pitch, channel, REFLOW_AWAY, &(rescaling)); \
    else                                                                     \
      store(__VA_ARGS__, output, pitch, channel, REFLOW_EXACT, &(rescaling)); \
  } while (0)

#endif
