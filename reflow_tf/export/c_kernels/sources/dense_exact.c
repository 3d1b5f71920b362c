/* A matrix times a vector as the reference writes it, for sums of more than 24 bits. */
#include "rescaling.h"

void reflow_dense_exact(const struct reflow_dense *layer, const int8_t *input, int8_t *output) {
  const struct reflow_rescaling *rescaling = &layer->rescaling;
  const int8_t *weights = layer->weights;
  int32_t row, index;
  for (row = 0; row < layer->outputs; ++row) {
    int32_t sum = layer->biases[row];
    for (index = 0; index < layer->inputs; ++index) sum += *weights++ * input[index];
    sum = reflow_rescale(sum, rescaling->multipliers[row], rescaling->shifts[row]) + rescaling->zero_point;
    *output++ = (int8_t)reflow_clamp(sum, rescaling->lowest, rescaling->highest);
  }
}
