/* Tiles of pixels for the convolutions. */
#ifndef REFLOW_CONV_GATHER_H
#define REFLOW_CONV_GATHER_H

#include "kernels.h"

enum { REFLOW_PAIRS = 4 }; /* pairs of pixels in a large tile; a small one has half of them */

/* Multiplies one tile by all weights. `output` is that of the tile's first pixel. */
typedef void reflow_multiply(const struct reflow_conv *layer, const int32_t *tile, int8_t *output);

/* Runs over all tiles of the output, of 8 or, where no more are left, of 4 pixels. The output has at least 4. */
void reflow_conv_tiles(const struct reflow_conv *layer, const int8_t *input, int8_t *output, int32_t *scratch,
                       reflow_multiply *multiply_large, reflow_multiply *multiply_small);

#endif
