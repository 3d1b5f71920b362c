/* A function of one int8, looked up. The output may be the input. */
#include "kernels.h"

void reflow_lookup(const struct reflow_lookup *layer, const int8_t *input, int8_t *output) {
  int32_t index;
  for (index = 0; index < layer->size; ++index) output[index] = layer->table[input[index] + 128];
}
