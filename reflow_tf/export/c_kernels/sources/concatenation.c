/* One tensor beside another. */
#include <string.h>

#include "kernels.h"

void reflow_concatenation(const struct reflow_concatenation *layer, const int8_t *input, int8_t *output) {
  const uint32_t length = (uint32_t)layer->length;
  int32_t row;
  output += layer->start;
  for (row = 0; row < layer->rows; ++row, input += length, output += layer->pitch) memcpy(output, input, length);
}
