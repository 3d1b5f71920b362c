/* A function of one int8, looked up. The output may be the input. */
#include "kernels.h"

void reflow_lookup(const struct reflow_lookup *layer, const int8_t *input, int8_t *output) {
  const int8_t *const table = layer->table + 128; /* read once: for all that C knows, the output may be the layer */
  const int8_t *const end = input + layer->size;
  while (input < end) *output++ = table[*input++];
}
