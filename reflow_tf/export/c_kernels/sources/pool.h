/* The part of the input that one output of a pooling sees. */
#ifndef REFLOW_POOL_H
#define REFLOW_POOL_H

#include "rescaling.h"

struct reflow_window {
  int32_t top, bottom, left, right;
};

static inline struct reflow_window reflow_window_at(const struct reflow_pool *layer, int32_t y, int32_t x) {
  const int32_t top = y * layer->stride_height - layer->padding_top;
  const int32_t left = x * layer->stride_width - layer->padding_left;
  struct reflow_window window;
  window.top = top < 0 ? 0 : top;
  window.left = left < 0 ? 0 : left;
  window.bottom = reflow_clamp(top + layer->kernel_height, 0, layer->input_height);
  window.right = reflow_clamp(left + layer->kernel_width, 0, layer->input_width);
  return window;
}

#endif
