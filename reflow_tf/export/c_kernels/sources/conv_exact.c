/* Convolution as the reference writes it, for layers that the tiles cannot take: fewer than 4 output pixels, or sums
 * of more than 24 bits. `starts` holds the plain biases.
 */
#include "rescaling.h"

static int32_t sum(const struct reflow_conv *layer, const int8_t *input, const int8_t *weights, int32_t top,
                   int32_t left) {
  const int32_t channels = layer->input_channels;
  int32_t total = 0, row, column, channel;
  for (row = 0; row < layer->kernel_height; ++row) {
    for (column = 0; column < layer->kernel_width; ++column, weights += channels) {
      const int32_t y = top + row, x = left + column;
      const int8_t *pixel = input + (y * layer->input_width + x) * channels;
      if (y < 0 || y >= layer->input_height || x < 0 || x >= layer->input_width) continue;
      for (channel = 0; channel < channels; ++channel)
        total += weights[channel] * (pixel[channel] - layer->input_zero_point);
    }
  }
  return total;
}

void reflow_conv_exact(const struct reflow_conv *layer, const int8_t *input, int8_t *output) {
  const struct reflow_rescaling *rescaling = &layer->rescaling;
  const int32_t length = layer->kernel_height * layer->kernel_width * layer->input_channels;
  int32_t y, x, channel;
  for (y = 0; y < layer->output_height; ++y) {
    for (x = 0; x < layer->output_width; ++x) {
      const int32_t top = y * layer->stride_height - layer->padding_top;
      const int32_t left = x * layer->stride_width - layer->padding_left;
      const int8_t *weights = layer->weights;
      for (channel = 0; channel < layer->output_channels; ++channel, weights += length) {
        int32_t value = sum(layer, input, weights, top, left) + (int32_t)layer->starts[channel];
        value = reflow_rescale(value, rescaling->multipliers[channel], rescaling->shifts[channel]);
        *output++ = (int8_t)reflow_clamp(value + rescaling->zero_point, rescaling->lowest, rescaling->highest);
      }
    }
  }
}
