/* A matrix times a vector. */
#include "rescaling.h"

void reflow_dense_dense(const struct reflow_dense *layer, const int8_t *input, int8_t *output) {
  const int8_t *weights = layer->weights;
  int32_t row;
  for (row = 0; row < layer->outputs; ++row) {
    const struct reflow_channel channel = reflow_channel_at(&layer->rescaling, row);
    const int8_t *values = input, *const end = input + (layer->inputs & ~3);
    int32_t sum = layer->biases[row];
    while (values != end) {
      sum += weights[0] * values[0];
      sum += weights[1] * values[1];
      sum += weights[2] * values[2];
      sum += weights[3] * values[3];
      weights += 4;
      values += 4;
    }
    while (values != input + layer->inputs) sum += *weights++ * *values++;
    sum = (int32_t)((uint32_t)sum << 8);
    *output++ = (int8_t)reflow_narrow(sum, channel, layer->rescaling.rounding, &layer->rescaling);
  }
}
