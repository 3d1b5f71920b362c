/* A ReLU on its own. The output may be the input. */
#include "rescaling.h"

void reflow_relu(const struct reflow_relu *layer, const int8_t *input, int8_t *output) {
  int32_t index;
  for (index = 0; index < layer->size; ++index) {
    int32_t value = input[index] - layer->input_zero_point;
    value = reflow_rescale(value, layer->multiplier, layer->shift) + layer->zero_point;
    output[index] = (int8_t)reflow_clamp(value, layer->lowest, layer->highest);
  }
}
