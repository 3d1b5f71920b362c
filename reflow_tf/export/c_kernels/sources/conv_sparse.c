/* Convolution by weights of which most are zero: only the others are stored, and multiplied. */
#include "conv_gather.h"
#include "conv_rows.h"

static void multiply_large(const struct reflow_conv *layer, const int32_t *tile, int8_t *output) {
  const int16_t *stream = layer->weights;
  const struct reflow_rescaling rescaling = layer->rescaling;
  const int64_t *const starts = layer->starts;
  const int32_t pitch = layer->output_channels;
  int32_t row;
  for (row = 0; row < pitch; ++row) {
    const struct reflow_channel channel = reflow_channel_at(&rescaling, row);
    int8_t *to;
    const int32_t *words = tile;
    int64_t a = starts[row], b = a, c = a, d = a;
    for (;;) {
      const int32_t entry = *stream++;
      const int32_t weight = entry & ~255;
      words += (entry & 255) * 4;
      if (weight == 0) break;
      a += (int64_t)weight * words[0];
      b += (int64_t)weight * words[1];
      c += (int64_t)weight * words[2];
      d += (int64_t)weight * words[3];
    }
    to = output + row;
    REFLOW_FORGET(to);
    REFLOW_STORE_ROW(reflow_store_4, rescaling, to, pitch, channel, a, b, c, d);
  }
}

static void multiply_small(const struct reflow_conv *layer, const int32_t *tile, int8_t *output) {
  const int16_t *stream = layer->weights;
  const struct reflow_rescaling rescaling = layer->rescaling;
  const int64_t *const starts = layer->starts;
  const int32_t pitch = layer->output_channels;
  int32_t row;
  for (row = 0; row < pitch; ++row) {
    const struct reflow_channel channel = reflow_channel_at(&rescaling, row);
    int8_t *to;
    const int32_t *words = tile;
    int64_t a = starts[row], b = a;
    for (;;) {
      const int32_t entry = *stream++;
      const int32_t weight = entry & ~255;
      words += (entry & 255) * 2;
      if (weight == 0) break;
      a += (int64_t)weight * words[0];
      b += (int64_t)weight * words[1];
    }
    to = output + row;
    REFLOW_FORGET(to);
    REFLOW_STORE_ROW(reflow_store_2, rescaling, to, pitch, channel, a, b);
  }
}

void reflow_conv_sparse(const struct reflow_conv *layer, const int8_t *input, int8_t *output, int32_t *scratch) {
  reflow_conv_tiles(layer, input, output, scratch, multiply_large, multiply_small);
}
