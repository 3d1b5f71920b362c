/* Runs the network on real images and compares its outputs, bit for bit, with those that TFLM gave, TFLite's reference
 * kernels.
 * Exits with 0 if all are equal.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "images.h"
#include "model.h"
#include "semihosting.h"

static void say_number(size_t number) {
  char digits[12] = "";
  size_t place = sizeof digits - 1;
  do digits[--place] = (char)('0' + number % 10);
  while (number /= 10);
  say(digits + place);
}

int main(void) {
  static int8_t output[REFLOW_OUTPUT_BYTES];
  size_t equal = 0;
  for (size_t i = 0; i < NUM_IMAGES; ++i) {
    reflow_invoke(images[i], output);
    equal += memcmp(output, expected[i], sizeof output) == 0;
  }
  say_number(equal), say(" of "), say_number(NUM_IMAGES), say(" outputs are equal\n");
  return equal == NUM_IMAGES ? 0 : 1;
}
