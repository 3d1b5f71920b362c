/* Zeros around an image. */
#include <string.h>

#include "kernels.h"

void reflow_pad(const struct reflow_pad *layer, const int8_t *input, int8_t *output) {
  const uint32_t length = (uint32_t)(layer->input_width * layer->channels);
  const uint32_t left = (uint32_t)(layer->left * layer->channels), right = (uint32_t)(layer->right * layer->channels);
  const uint32_t pitch = left + length + right;
  int32_t row;
  memset(output, layer->zero_point, (uint32_t)layer->top * pitch);
  output += (uint32_t)layer->top * pitch;
  for (row = 0; row < layer->input_height; ++row, input += length, output += pitch) {
    memset(output, layer->zero_point, left);
    memcpy(output + left, input, length);
    memset(output + left + length, layer->zero_point, right);
  }
  memset(output, layer->zero_point, (uint32_t)layer->bottom * pitch);
}
