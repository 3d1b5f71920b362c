/* Depthwise convolution of any size, as the reference writes it. */
#include "rescaling.h"

static int32_t sum(const struct reflow_depthwise *layer, const int8_t *input, const int8_t *weights, int32_t top,
                   int32_t left) {
  int32_t total = 0, row, column;
  for (row = 0; row < layer->kernel_height; ++row) {
    for (column = 0; column < layer->kernel_width; ++column, ++weights) {
      const int32_t y = top + row, x = left + column;
      int32_t value = layer->input_zero_point;
      if (y >= 0 && y < layer->input_height && x >= 0 && x < layer->input_width)
        value = input[(y * layer->input_width + x) * layer->channels];
      total += *weights * value;
    }
  }
  return total;
}

void reflow_depthwise_exact(const struct reflow_depthwise *layer, const int8_t *input, int8_t *output) {
  const struct reflow_rescaling *rescaling = &layer->rescaling;
  const int32_t length = layer->kernel_height * layer->kernel_width, outputs = layer->channels * layer->multiplier;
  int32_t y, x, channel;
  for (y = 0; y < layer->output_height; ++y) {
    for (x = 0; x < layer->output_width; ++x) {
      const int32_t top = y * layer->stride_height - layer->padding_top;
      const int32_t left = x * layer->stride_width - layer->padding_left;
      for (channel = 0; channel < outputs; ++channel) {
        int32_t value = layer->biases[channel];
        value += sum(layer, input + channel / layer->multiplier, layer->weights + channel * length, top, left);
        value = reflow_rescale(value, rescaling->multipliers[channel], rescaling->shifts[channel]);
        *output++ = (int8_t)reflow_clamp(value + rescaling->zero_point, rescaling->lowest, rescaling->highest);
      }
    }
  }
}
