/* Largest values of windows. */
#include "pool.h"

static int32_t find_largest(const struct reflow_pool *layer, const int8_t *input, struct reflow_window window) {
  int32_t largest = -128, y, x;
  for (y = window.top; y < window.bottom; ++y) {
    for (x = window.left; x < window.right; ++x) {
      const int32_t value = input[(y * layer->input_width + x) * layer->channels];
      if (value > largest) largest = value;
    }
  }
  return largest;
}

void reflow_max_pool(const struct reflow_pool *layer, const int8_t *input, int8_t *output) {
  int32_t y, x, channel;
  for (y = 0; y < layer->output_height; ++y) {
    for (x = 0; x < layer->output_width; ++x) {
      const struct reflow_window window = reflow_window_at(layer, y, x);
      for (channel = 0; channel < layer->channels; ++channel) {
        const int32_t largest = find_largest(layer, input + channel, window);
        *output++ = (int8_t)reflow_clamp(largest, layer->lowest, layer->highest);
      }
    }
  }
}
