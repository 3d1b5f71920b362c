/* Depthwise 3x3 convolution, a channel at a time. Input and output may be the same memory.
 *
 * The scratch holds the channel's plane as int16, with its padding; from there, two neighbouring pixels are one word.
 * As the whole plane is copied before the first result is stored, results may overwrite the input.
 */
#include <string.h>

#include "rescaling.h"

/* Sums of products of the halves of two words. */
#if defined(__ARM_FEATURE_DSP)
#include <arm_acle.h>
#define ADD_BOTH(sum, x, w) __smlad((x), (w), (sum))
#define ADD_LOW_HIGH(sum, x, w) __smlabt((x), (w), (sum))
#define ADD_HIGH_LOW(sum, x, w) __smlatb((x), (w), (sum))
#else
#define LOW(x) ((int16_t)(x))
#define HIGH(x) ((x) >> 16)
#define ADD_BOTH(sum, x, w) ((sum) + LOW(x) * LOW(w) + HIGH(x) * HIGH(w))
#define ADD_LOW_HIGH(sum, x, w) ((sum) + LOW(x) * HIGH(w))
#define ADD_HIGH_LOW(sum, x, w) ((sum) + HIGH(x) * LOW(w))
#endif

enum { SCALE = 256 }; /* of weights and biases: sums come out as reflow_narrow wants them */

static int32_t join(int32_t low, int32_t high) {
  return (int32_t)((uint32_t)low & 0xffff) + (int32_t)((uint32_t)high << 16);
}

static int32_t load(const int16_t *pair) {
  int32_t word;
  memcpy(&word, pair, sizeof word);
  return word;
}

struct plane {
  int32_t height, width, pitch; /* pitch is even, and lets the last pair of outputs read beyond the width */
};

static struct plane plane_of(const struct reflow_depthwise *layer) {
  struct plane plane;
  plane.height = (layer->output_height - 1) * layer->stride_height + 3;
  plane.width = (layer->output_width - 1) * layer->stride_width + 3;
  plane.pitch = (((layer->output_width + 1) & ~1) - 1) * layer->stride_width + 4;
  plane.pitch = (plane.pitch + 1) & ~1;
  return plane;
}

static int32_t least(int32_t x, int32_t y) { return x < y ? x : y; }

static void copy_channel(const struct reflow_depthwise *layer, struct plane plane, const int8_t *input, int16_t *copy) {
  const int32_t channels = layer->channels;
  const int32_t rows = least(layer->input_height, plane.height - layer->padding_top);
  const int32_t columns = least(layer->input_width, plane.width - layer->padding_left);
  int32_t row;
  copy += layer->padding_top * plane.pitch + layer->padding_left;
  for (row = 0; row < rows; ++row, copy += plane.pitch, input += layer->input_width * channels) {
    const int8_t *from = input;
    int16_t *to = copy, *const end = copy + columns;
    while (end - to >= 4) {
      to[0] = from[0];
      to[1] = from[channels];
      to[2] = from[2 * channels];
      to[3] = from[3 * channels];
      from += 4 * channels;
      to += 4;
    }
    while (to != end) {
      *to++ = *from;
      from += channels;
    }
  }
}

struct filter {
  int32_t first[3], last[3]; /* of each row: weights 0 and 1, weights 1 and 2 */
};

static struct filter filter_of(const int8_t *weights) {
  struct filter filter;
  int32_t row;
  for (row = 0; row < 3; ++row, weights += 3) {
    filter.first[row] = join(weights[0] * SCALE, weights[1] * SCALE);
    filter.last[row] = join(weights[1] * SCALE, weights[2] * SCALE);
  }
  return filter;
}

/* Adds a row of the window to the sums of two neighbours, whose windows begin `step` pixels apart. */
static inline void add_row(const int16_t *from, int32_t step, int32_t first, int32_t last, int32_t *left,
                           int32_t *right) {
  const int32_t p = load(from), q = load(from + 2);
  *left = ADD_BOTH(*left, p, first);
  *left = ADD_LOW_HIGH(*left, q, last);
  if (step == 1) {
    *right = ADD_HIGH_LOW(*right, p, first);
    *right = ADD_BOTH(*right, q, last);
  } else {
    *right = ADD_BOTH(*right, q, first);
    *right = ADD_LOW_HIGH(*right, from[4], last);
  }
}

/* Inlined with constants for `step` and `rounding`. */
static inline void convolve(const struct reflow_depthwise *layer, int32_t index, int32_t pitch, const int16_t *copy,
                            int8_t *output, int32_t step, int32_t rounding) {
  const struct reflow_channel channel = reflow_channel_at(&layer->rescaling, index);
  const struct filter filter = filter_of(layer->weights + 9 * index);
  const int32_t bias = layer->biases[index] * SCALE, channels = layer->channels, width = layer->output_width;
  int32_t y;
  for (y = 0; y < layer->output_height; ++y, copy += step * pitch) {
    const int16_t *from = copy, *const end = copy + step * (width & ~1);
    int32_t left, right;
    for (; from != end; from += 2 * step) {
      left = right = bias;
      add_row(from, step, filter.first[0], filter.last[0], &left, &right);
      add_row(from + pitch, step, filter.first[1], filter.last[1], &left, &right);
      add_row(from + 2 * pitch, step, filter.first[2], filter.last[2], &left, &right);
      output[0] = (int8_t)reflow_narrow(left, channel, rounding, &layer->rescaling);
      output[channels] = (int8_t)reflow_narrow(right, channel, rounding, &layer->rescaling);
      output += 2 * channels;
    }
    if (width & 1) {
      left = right = bias;
      add_row(from, step, filter.first[0], filter.last[0], &left, &right);
      add_row(from + pitch, step, filter.first[1], filter.last[1], &left, &right);
      add_row(from + 2 * pitch, step, filter.first[2], filter.last[2], &left, &right);
      *output = (int8_t)reflow_narrow(left, channel, rounding, &layer->rescaling);
      output += channels;
    }
  }
}

void reflow_depthwise_3x3(const struct reflow_depthwise *layer, const int8_t *input, int8_t *output,
                          int32_t *scratch) {
  const struct plane plane = plane_of(layer);
  int16_t *const copy = (int16_t *)scratch;
  int32_t index;
  for (index = 0; index < plane.height * plane.pitch; ++index) copy[index] = layer->input_zero_point;
  for (index = 0; index < layer->channels; ++index) {
    copy_channel(layer, plane, input + index, copy);
    if (layer->stride_width == 1 && layer->rescaling.rounding == REFLOW_UP)
      convolve(layer, index, plane.pitch, copy, output + index, 1, REFLOW_UP);
    else if (layer->stride_width == 1)
      convolve(layer, index, plane.pitch, copy, output + index, 1, layer->rescaling.rounding);
    else if (layer->rescaling.rounding == REFLOW_UP)
      convolve(layer, index, plane.pitch, copy, output + index, 2, REFLOW_UP);
    else
      convolve(layer, index, plane.pitch, copy, output + index, 2, layer->rescaling.rounding);
  }
}
