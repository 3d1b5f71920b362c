/* Means of windows, without what is padded; ties away from zero. */
#include "pool.h"

static int32_t sum(const struct reflow_pool *layer, const int8_t *input, struct reflow_window window) {
  int32_t total = 0, y, x;
  for (y = window.top; y < window.bottom; ++y) {
    const int8_t *value = input + (y * layer->input_width + window.left) * layer->channels;
    for (x = window.left; x < window.right; ++x, value += layer->channels) total += *value;
  }
  return total;
}

void reflow_average_pool(const struct reflow_pool *layer, const int8_t *input, int8_t *output) {
  int32_t y, x, channel;
  for (y = 0; y < layer->output_height; ++y) {
    for (x = 0; x < layer->output_width; ++x) {
      const struct reflow_window window = reflow_window_at(layer, y, x);
      const int32_t count = (window.bottom - window.top) * (window.right - window.left);
      for (channel = 0; channel < layer->channels; ++channel) {
        const int32_t total = sum(layer, input + channel, window);
        const int32_t mean = (total > 0 ? total + count / 2 : total - count / 2) / count;
        *output++ = (int8_t)reflow_clamp(mean, layer->lowest, layer->highest);
      }
    }
  }
}
