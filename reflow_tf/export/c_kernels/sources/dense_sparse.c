/* A matrix of which most weights are zero times a vector. */
#include "rescaling.h"

void reflow_dense_sparse(const struct reflow_dense *layer, const int8_t *input, int8_t *output) {
  const int16_t *stream = layer->weights;
  int32_t row;
  for (row = 0; row < layer->outputs; ++row) {
    const struct reflow_channel channel = reflow_channel_at(&layer->rescaling, row);
    const int8_t *values = input;
    uint32_t sum = (uint32_t)layer->biases[row] << 8;
    for (;;) {
      const int32_t entry = *stream++;
      const int32_t weight = entry & ~255;
      values += entry & 255;
      if (weight == 0) break;
      sum += (uint32_t)(weight * *values);
    }
    *output++ = (int8_t)reflow_narrow((int32_t)sum, channel, layer->rescaling.rounding, &layer->rescaling);
  }
}
