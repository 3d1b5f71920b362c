/* From reset to main(), and from a fault to words. The linker script says where everything is.
 *
 * The boards that QEMU plays let a program write to its flash, and ignore what it does in much of the space where they
 * have no memory. So the memory protection unit allows what is meant, and the rest is a fault, as on a device.
 */
#include <stdint.h>

#include "semihosting.h"

extern uint8_t vectors_begin[], vectors_end[], flash_begin[], flash_end[], ram_begin[], ram_end[];
extern uint32_t stack_top[], data_begin[], data_end[], data_in_flash[], bss_begin[], bss_end[];

int main(void);
void reset(void);
void fault(void);
void describe_fault(const uint32_t *frame);

/* System control registers: Architecture Reference Manuals of Armv7-M (DDI 0403), B3.2 and B3.5, and of Armv8-M
 * (DDI 0553), D1.2. */
#define CFSR (*(volatile uint32_t *)0xE000ED28)
#define HFSR (*(volatile uint32_t *)0xE000ED2C)
#define MMFAR (*(volatile uint32_t *)0xE000ED34)
#define BFAR (*(volatile uint32_t *)0xE000ED38)
#define CPACR (*(volatile uint32_t *)0xE000ED88)
#define MPU_CTRL (*(volatile uint32_t *)0xE000ED94)
#define MPU_RNR (*(volatile uint32_t *)0xE000ED98)
#define MPU_RBAR (*(volatile uint32_t *)0xE000ED9C)
#define MPU_RASR (*(volatile uint32_t *)0xE000EDA0)
#define MPU_RLAR MPU_RASR
#define MPU_MAIR0 (*(volatile uint32_t *)0xE000EDC0)

/* Of every exception but the reset: none is expected. */
__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    stack_top, reset, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault};

enum access { READ_AND_EXECUTE, READ_AND_WRITE };

#if __ARM_ARCH >= 8
static void allow(uint32_t number, const uint8_t *begin, const uint8_t *end, enum access access) {
  MPU_MAIR0 = 0xFF; /* ordinary memory */
  MPU_RNR = number;
  MPU_RBAR = (uint32_t)begin | (access == READ_AND_WRITE ? 1u << 1 | 1u : 3u << 1);
  MPU_RLAR = (((uint32_t)end - 1) & ~31u) | 1u;
}
#else
/* Both ends are rounded to a power of two that is at least as long. */
static void allow(uint32_t number, const uint8_t *begin, const uint8_t *end, enum access access) {
  const uint32_t log_size = 32 - (uint32_t)__builtin_clz((uint32_t)(end - begin) - 1);
  const uint32_t ordinary = 1u << 19 | 1u << 17 | 1u << 16;
  MPU_RNR = number;
  MPU_RBAR = (uint32_t)begin & ~((1u << log_size) - 1);
  MPU_RASR = ordinary | (access == READ_AND_WRITE ? 1u << 28 | 3u << 24 : 6u << 24) | (log_size - 1) << 1 | 1u;
}
#endif

static void protect_memory(void) {
  allow(0, vectors_begin, vectors_end, READ_AND_EXECUTE);
  allow(1, flash_begin, flash_end, READ_AND_EXECUTE);
  allow(2, ram_begin, ram_end, READ_AND_WRITE);
  MPU_CTRL = 1;
  __asm__ volatile("dsb\n\tisb" ::: "memory");
}

void reset(void) {
#if __ARM_FP || __ARM_FEATURE_MVE
  CPACR |= 0xFu << 20; /* float and vector registers: full access to coprocessors 10 and 11 */
  __asm__ volatile("dsb\n\tisb" ::: "memory");
#endif
  for (uint32_t *word = data_begin, *from = data_in_flash; word != data_end; ++word) *word = *from++;
  for (uint32_t *word = bss_begin; word != bss_end; ++word) *word = 0;
  protect_memory();
  leave((uintptr_t)main());
}

/* The stack may be what is broken, so the words get a fresh one; the frame stays where it is. */
__attribute__((naked)) void fault(void) {
  __asm__("mov r0, sp\n\tldr r1, =stack_top\n\tmov sp, r1\n\tb describe_fault\n\t.ltorg");
}

static void say_number(const char *name, uint32_t number) {
  char digits[] = "00000000 ";
  for (int place = 7; place >= 0; --place, number >>= 4) digits[place] = "0123456789abcdef"[number & 15];
  say(name), say("0x"), say(digits);
}

static const char *name_fault(uint32_t status) {
  if (status & 1u << 24) return "unaligned access ";
  if (status & 1u << 20) return "stack overflow ";
  if (status & 1u << 19) return "no such coprocessor ";
  if (status & 1u << 18) return "invalid program counter ";
  if (status & 1u << 17) return "invalid state ";
  if (status & 1u << 16) return "undefined instruction ";
  if (status & (1u << 12 | 1u << 4)) return "stack overflow ";
  if (status & (1u << 8 | 1u << 0)) return "no code there ";
  if (status & (1u << 9 | 1u << 10 | 1u << 1)) return "no memory there, or written to flash ";
  return "hard fault ";
}

void describe_fault(const uint32_t *frame) {
  const uint32_t status = CFSR;
  say("fault: "), say(name_fault(status));
  if (status & 1u << 7) say_number("at ", MMFAR);
  if (status & 1u << 15) say_number("at ", BFAR);
  if (!(status & (1u << 12 | 1u << 4 | 1u << 20))) /* else there is no frame */
    say_number("pc ", frame[6]), say_number("lr ", frame[5]);
  say_number("CFSR ", status), say_number("HFSR ", HFSR), say("\n");
  leave(1);
}
