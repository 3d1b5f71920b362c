/* Means of whole planes. */
#include "rescaling.h"

void reflow_mean(const struct reflow_mean *layer, const int8_t *input, int8_t *output) {
  const int32_t zeros = layer->pixels * layer->input_zero_point;
  int32_t channel, pixel;
  for (channel = 0; channel < layer->channels; ++channel) {
    const int8_t *value = input + channel;
    int32_t sum = -zeros;
    for (pixel = 0; pixel < layer->pixels; ++pixel, value += layer->channels) sum += *value;
    sum = reflow_rescale(sum, layer->multiplier, layer->shift) + layer->zero_point;
    output[channel] = (int8_t)reflow_clamp(sum, -128, 127);
  }
}
