/* Sums of two tensors of one shape. The output may be either of them. */
#include "rescaling.h"

/* x * factor, for 2 x: a number of at most 30 bits, rounded twice, with `addend` beneath the shift. */
static inline int32_t scale(int32_t doubled, int32_t multiplier, int32_t shift, int32_t addend) {
  const int32_t product = reflow_multiply_high_rounded(doubled, multiplier);
  const int32_t below = shift > 0 ? -1 : 0; /* nothing is rounded without a shift */
  return (product + addend + ((product >> 31) & below)) >> shift;
}

/* Inlined with a constant for `narrow`: whether the limits are those of int8. */
static inline void add(const struct reflow_add layer, const int8_t *first, const int8_t *second, int8_t *output,
                       int32_t narrow) {
  const int32_t half = ((int32_t)1 << layer.first.shift) >> 1;
  const int32_t addend =
      (((int32_t)1 << layer.output.shift) >> 1) + (int32_t)((uint32_t)(int32_t)layer.zero_point << layer.output.shift);
  const int8_t *const end = first + layer.size;
  while (first != end) {
    const int32_t x = (*first++ - layer.first_zero_point) * (1 << 21);
    const int32_t y = (*second++ - layer.second_zero_point) * (1 << 19);
    const int32_t sum = scale(x, layer.first.multiplier, layer.first.shift, half) + y;
    const int32_t result = scale(sum * 2, layer.output.multiplier, layer.output.shift, addend);
    *output++ = (int8_t)(narrow ? REFLOW_TO_INT8(result) : reflow_clamp(result, layer.lowest, layer.highest));
  }
}

void reflow_add(const struct reflow_add *layer, const int8_t *first, const int8_t *second, int8_t *output) {
  if (layer->lowest == -128 && layer->highest == 127)
    add(*layer, first, second, output, 1);
  else
    add(*layer, first, second, output, 0);
}
