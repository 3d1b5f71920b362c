/* A QEMU TCG plugin that says how many instructions the guest has executed from one of its functions to another.
 *
 * Options: begin=ADDRESS,end=ADDRESS, of two functions of the guest. At each call of the second it prints a line for
 * each translated block that ran since the first was called: the block's address and the instructions executed in it,
 * and then a line 'end'. Blocks end at branches, so a count is exact at a call; a guest without interrupts gives the
 * same numbers every time.
 *
 * Debian 12 ships no qemu-plugin.h, so the few declarations are here, as QEMU 7.2's include/qemu/qemu-plugin.h has them
 * (https://www.qemu.org/docs/master/devel/tcg-plugins.html).
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };

typedef void (*translated)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*called)(unsigned int vcpu, void *);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op, void *, uint64_t);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, called, enum qemu_plugin_cb_flags, void *);
void qemu_plugin_outs(const char *);

EXPORT int qemu_plugin_version = 1;

/* An open hash table. A block may be translated more than once, and keeps its place; address 0, the vectors', is none. */
typedef struct {
  uint64_t address, executed, before;
} block;

enum { PLACES = 1 << 16 };
static block blocks[PLACES];
static size_t taken;
static uint64_t begin, end;

static block *find(uint64_t address) {
  size_t place = (address >> 1) % PLACES;
  while (blocks[place].address && blocks[place].address != address) place = (place + 1) % PLACES;
  if (!blocks[place].address && ++taken > PLACES / 2) {
    fprintf(stderr, "count_instructions: more than %d blocks\n", PLACES / 2);
    exit(1);
  }
  blocks[place].address = address;
  return &blocks[place];
}

static void at_begin(unsigned int vcpu, void *data) {
  (void)vcpu, (void)data;
  for (size_t place = 0; place < PLACES; ++place) blocks[place].before = blocks[place].executed;
}

static void at_end(unsigned int vcpu, void *data) {
  (void)vcpu, (void)data;
  for (const block *one = blocks; one != blocks + PLACES; ++one) {
    if (one->executed != one->before) {
      char line[64];
      snprintf(line, sizeof line, "%" PRIx64 " %" PRIu64 "\n", one->address, one->executed - one->before);
      qemu_plugin_outs(line);
    }
  }
  qemu_plugin_outs("end\n");
}

static void count(qemu_plugin_id_t id, struct qemu_plugin_tb *translation) {
  (void)id;
  const uint64_t address = qemu_plugin_tb_vaddr(translation);
  qemu_plugin_register_vcpu_tb_exec_inline(translation, QEMU_PLUGIN_INLINE_ADD_U64, &find(address)->executed,
                                           qemu_plugin_tb_n_insns(translation));
  if (address == begin) qemu_plugin_register_vcpu_tb_exec_cb(translation, at_begin, QEMU_PLUGIN_CB_NO_REGS, NULL);
  if (address == end) qemu_plugin_register_vcpu_tb_exec_cb(translation, at_end, QEMU_PLUGIN_CB_NO_REGS, NULL);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv) {
  (void)info;
  for (int i = 0; i < argc; ++i) {
    if (!strncmp(argv[i], "begin=", 6)) begin = strtoull(argv[i] + 6, NULL, 16);
    if (!strncmp(argv[i], "end=", 4)) end = strtoull(argv[i] + 4, NULL, 16);
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, count);
  return 0;
}
