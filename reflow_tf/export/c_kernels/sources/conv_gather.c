/* Gathers what the pixels of a tile see into a scratch, two pixels in one word.
 *
 * A word holds pixel A in its low 24 bits and pixel B in the 8 above: A + 128 + B * 2^24. One 32 x 32 -> 64 bit
 * multiply-accumulate by weight * 2^8 then serves both: B's sum grows in the high word of the accumulator, A's, times
 * 2^8, in the low one, and overflows nowhere as long as it has 24 bits. `starts` of the layer is
 * 2^32 bias + 2^8 (bias - 128 * sum of the weights), the input's zero point in the biases.
 */
#include "conv_gather.h"

#include <string.h>

static void pack_pair(const int8_t *a, const int8_t *b, int32_t length, int32_t pairs, int32_t *words) {
  const int8_t *const end = a + length;
  while (end - a >= 4) {
    words[0] = *a++ + 128 + *b++ * (1 << 24);
    words[pairs] = *a++ + 128 + *b++ * (1 << 24);
    words[2 * pairs] = *a++ + 128 + *b++ * (1 << 24);
    words[3 * pairs] = *a++ + 128 + *b++ * (1 << 24);
    words += 4 * pairs;
  }
  while (a != end) {
    *words = *a++ + 128 + *b++ * (1 << 24);
    words += pairs;
  }
}

/* Where the window of an output pixel begins; outside of the input where it is padded. */
struct place {
  int32_t y, x;
};

static struct place place_of(const struct reflow_conv *layer, int32_t pixel) {
  struct place place;
  place.y = pixel / layer->output_width * layer->stride_height - layer->padding_top;
  place.x = pixel % layer->output_width * layer->stride_width - layer->padding_left;
  return place;
}

static const int8_t *find(const struct reflow_conv *layer, const int8_t *input, struct place place, const int8_t *zeros) {
  if ((uint32_t)place.y >= (uint32_t)layer->input_height || (uint32_t)place.x >= (uint32_t)layer->input_width)
    return zeros;
  return input + (place.y * layer->input_width + place.x) * layer->input_channels;
}

static void gather_pair(const struct reflow_conv *layer, const int8_t *input, int32_t pixel, int32_t pairs,
                        int32_t *words, const int8_t *zeros) {
  const int32_t channels = layer->input_channels, width = layer->kernel_width;
  struct place a = place_of(layer, pixel), b = place_of(layer, pixel + 1);
  /* Without padding to the left and right, the kernel's rows lie in one piece. */
  const int32_t last = layer->input_width - width;
  const int32_t piece = a.x >= 0 && b.x >= 0 && a.x <= last && b.x <= last ? width : 1;
  int32_t row, column;
  for (row = 0; row < layer->kernel_height; ++row, ++a.y, ++b.y) {
    for (column = 0; column < width; column += piece) {
      struct place left = a, right = b;
      left.x += column;
      right.x += column;
      pack_pair(find(layer, input, left, zeros), find(layer, input, right, zeros), piece * channels, pairs, words);
      words += piece * channels * pairs;
    }
  }
}

static void gather(const struct reflow_conv *layer, const int8_t *input, int32_t pixel, int32_t pairs, int32_t *tile,
                   const int8_t *zeros) {
  const int32_t channels = layer->input_channels;
  int32_t pair;
  if (zeros == 0) { /* 1x1 without strides: a pixel sees itself */
    input += pixel * channels;
    for (pair = 0; pair < pairs; ++pair, input += 2 * channels)
      pack_pair(input, input + channels, channels, pairs, tile + pair);
    return;
  }
  for (pair = 0; pair < pairs; ++pair) gather_pair(layer, input, pixel + 2 * pair, pairs, tile + pair, zeros);
}

void reflow_conv_tiles(const struct reflow_conv *layer, const int8_t *input, int8_t *output, int32_t *scratch,
                       reflow_multiply *multiply_large, reflow_multiply *multiply_small) {
  const int32_t pixels = layer->output_height * layer->output_width;
  const int32_t taps = layer->kernel_height * layer->kernel_width;
  const int32_t row = taps * layer->input_channels;
  int8_t *zeros = 0;
  int32_t pixel = 0;
  if (taps > 1 || layer->stride_height > 1 || layer->stride_width > 1) {
    zeros = (int8_t *)(scratch + row * (pixels < 2 * REFLOW_PAIRS ? REFLOW_PAIRS / 2 : REFLOW_PAIRS));
    memset(zeros, layer->input_zero_point, (uint32_t)(layer->kernel_width * layer->input_channels));
  }
  while (pixel < pixels) {
    /* The last tile begins early rather than be cut: its first pixels are computed twice. */
    const int32_t left = pixels - pixel;
    const int32_t size = left > REFLOW_PAIRS && pixels >= 2 * REFLOW_PAIRS ? 2 * REFLOW_PAIRS : REFLOW_PAIRS;
    const int32_t first = left < size ? pixels - size : pixel;
    gather(layer, input, first, size / 2, scratch, zeros);
    (size > REFLOW_PAIRS ? multiply_large : multiply_small)(layer, scratch, output + first * layer->output_channels);
    pixel = first + size;
  }
}
