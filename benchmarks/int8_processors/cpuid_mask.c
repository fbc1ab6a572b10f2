// Hides instruction sets from a process on Linux x86-64, so that a library chooses other kernels.
//
// Preload it (LD_PRELOAD) with CPUID_MASK=avx512, avx2-vnni or avx2. The processor then raises SIGSEGV at each
// CPUID instruction (arch_prctl ARCH_SET_CPUID; the flag cpuid_fault of /proc/cpuinfo), and the handler answers
// without the hidden bits. Bits: Intel SDM volume 2A, CPUID.

#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))

// Leaf 7.0, EBX: AVX512 F, DQ, IFMA, PF, ER, CD, BW, VL.
#define AVX512_EBX (BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31))
// Leaf 7.0, ECX: AVX512 VBMI, VBMI2, BITALG, VPOPCNTDQ; VNNI apart.
#define AVX512_ECX (BIT(1) | BIT(6) | BIT(12) | BIT(14))
#define AVX512_VNNI_ECX BIT(11)
// Leaf 7.0, EDX: AVX512 4VNNIW, 4FMAPS, VP2INTERSECT, FP16; AMX BF16, TILE, INT8.
#define AVX512_EDX (BIT(2) | BIT(3) | BIT(8) | BIT(23))
#define AMX_EDX (BIT(22) | BIT(24) | BIT(25))
// Leaf 7.1, EAX: AVX-VNNI, AVX512-BF16. EDX: AVX-VNNI-INT8, AVX-NE-CONVERT, AVX-VNNI-INT16.
#define AVX_VNNI_EAX BIT(4)
#define AVX512_BF16_EAX BIT(5)
#define AVX_VNNI_INT8_EDX (BIT(4) | BIT(5) | BIT(10))

static int keeps_avx512, keeps_avx_vnni;

static void allow_cpuid(int allowed) {
  if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, allowed)) {
    perror("cpuid_mask: this processor or kernel has no CPUID faulting");
    _exit(70);
  }
}

static void answer_cpuid(int number, siginfo_t *info, void *context) {
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *instruction = (const unsigned char *)registers[REG_RIP];
  (void)info;
  if (instruction[0] != 0x0f || instruction[1] != 0xa2) {  // a real fault: it recurs without this handler
    signal(number, SIG_DFL);
    return;
  }
  uint32_t leaf = registers[REG_RAX], part = registers[REG_RCX], eax, ebx, ecx, edx;
  allow_cpuid(1);
  __cpuid_count(leaf, part, eax, ebx, ecx, edx);
  allow_cpuid(0);
  if (leaf == 7 && part == 0) {
    ecx &= ~AVX512_VNNI_ECX;
    edx &= ~AMX_EDX;
    if (!keeps_avx512) {
      ebx &= ~AVX512_EBX;
      ecx &= ~AVX512_ECX;
      edx &= ~AVX512_EDX;
    }
  }
  if (leaf == 7 && part == 1) {
    eax &= ~AVX512_BF16_EAX;
    edx &= ~AVX_VNNI_INT8_EDX;
    if (!keeps_avx_vnni) eax &= ~AVX_VNNI_EAX;
  }
  registers[REG_RAX] = eax;
  registers[REG_RBX] = ebx;
  registers[REG_RCX] = ecx;
  registers[REG_RDX] = edx;
  registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void start(void) {
  const char *mask = getenv("CPUID_MASK");
  if (!mask) return;
  keeps_avx512 = !strcmp(mask, "avx512");
  keeps_avx_vnni = !strcmp(mask, "avx2-vnni");
  struct sigaction action = {.sa_sigaction = answer_cpuid, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGSEGV, &action, NULL);
  allow_cpuid(0);
}
