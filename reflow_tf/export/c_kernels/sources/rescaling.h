/* From accumulators to int8, inlined into the kernels. */
#ifndef REFLOW_RESCALING_H
#define REFLOW_RESCALING_H

#include "kernels.h"

#if defined(__ARM_FEATURE_SAT)
#include <arm_acle.h>
#define REFLOW_TO_INT8(x) __ssat((x), 8)
#else
#define REFLOW_TO_INT8(x) reflow_clamp((x), -128, 127)
#endif

static inline int32_t reflow_clamp(int32_t x, int32_t lowest, int32_t highest) {
  x = x < lowest ? lowest : x;
  return x > highest ? highest : x;
}

/* x / 2^shift, ties away from zero. */
static inline int32_t reflow_divide_by_power(int32_t x, int32_t shift) {
  const int32_t mask = (int32_t)(((uint32_t)1 << shift) - 1);
  return (x >> shift) + ((x & mask) > (mask >> 1) + (x < 0));
}

/* x * y / 2^31, ties up. */
static inline int32_t reflow_multiply_high(int32_t x, int32_t y) {
  return (int32_t)(((int64_t)x * y + ((int64_t)1 << 30)) >> 31);
}

/* TFLite's MultiplyByQuantizedMultiplier, rounding twice. */
static inline int32_t reflow_rescale(int32_t x, int32_t multiplier, int32_t shift) {
  const int32_t left = shift > 0 ? shift : 0;
  const int32_t raised = (int32_t)((uint32_t)x << left);
  return reflow_divide_by_power(reflow_multiply_high(raised, multiplier), left - shift);
}

/* The constants of one output channel. With an accumulator a, multiplier m and TFLite's shift e to the right, rounding
 * twice with ties up is floor((a m + 2^30 + 2^(30 + e)) / 2^(31 + e)). All of that times 2^8: the high word of
 * (2^8 a) m, plus `addend`, shifted by e + 7; floors of floors are exact.
 */
struct reflow_channel {
  int32_t multiplier, addend, shift;
};

static inline struct reflow_channel reflow_channel_at(const struct reflow_rescaling *rescaling, int32_t index) {
  const int32_t shift = rescaling->shifts[index];
  struct reflow_channel channel;
  channel.multiplier = rescaling->multipliers[index];
  channel.shift = shift;
  channel.addend = rescaling->rounding == REFLOW_EXACT
                       ? 0
                       : 64 + (int32_t)((uint32_t)(2 * rescaling->zero_point + 1) << (shift - 1));
  return channel;
}

/* The high word of x * y, rounded, ties up. */
static inline int32_t reflow_multiply_high_rounded(int32_t x, int32_t y) {
#if defined(__GNUC__) && defined(__ARM_FEATURE_DSP)
  int32_t product; /* what GCC 12 does not find on its own */
  __asm__("smmulr %0, %1, %2" : "=r"(product) : "r"(x), "r"(y));
  return product;
#else
  return (int32_t)(((int64_t)x * y + ((int64_t)1 << 31)) >> 32);
#endif
}

/* The high word of x * y, plus `addend`. */
static inline int32_t reflow_multiply_add_high(int32_t x, int32_t y, int32_t addend) {
#if defined(__GNUC__) && defined(__ARM_FEATURE_DSP)
  int32_t sum;
  __asm__("smmla %0, %1, %2, %3" : "=r"(sum) : "r"(x), "r"(y), "r"(addend));
  return sum;
#else
  return (int32_t)(((int64_t)x * y) >> 32) + addend;
#endif
}

/* The int8 for `accumulator` = 2^8 a; `rounding` is a constant where it is inlined. */
static inline int32_t reflow_narrow(int32_t accumulator, struct reflow_channel channel, int32_t rounding,
                                    const struct reflow_rescaling *rescaling) {
  int32_t x;
  if (rounding == REFLOW_EXACT) {
    x = reflow_rescale(accumulator >> 8, channel.multiplier, channel.shift) + rescaling->zero_point;
    return reflow_clamp(x, rescaling->lowest, rescaling->highest);
  }
  x = reflow_multiply_add_high(accumulator, channel.multiplier, channel.addend);
  if (rounding == REFLOW_AWAY) x += (accumulator >> 31) & -128;
  return REFLOW_TO_INT8(x >> channel.shift);
}

#endif
