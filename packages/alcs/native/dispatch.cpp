// Which instruction sets this build holds and this processor runs.
#include <cstring>

#include "kernels.hpp"

namespace alcs {

#if defined(__x86_64__)
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx2;
extern const Kernels kernels_sse;
static const Kernels* const kAll[] = {&kernels_avx512, &kernels_avx2, &kernels_sse, nullptr};
#elif defined(__aarch64__)
extern const Kernels kernels_neon;
static const Kernels* const kAll[] = {&kernels_neon, nullptr};
#else
extern const Kernels kernels_generic;
static const Kernels* const kAll[] = {&kernels_generic, nullptr};
#endif

const Kernels* const* all_kernels() { return kAll; }

bool supported(const Kernels& kernels) {
#if defined(__x86_64__)
  // These ask the system as well: without its support the registers are not saved.
  if (!std::strcmp(kernels.name, "avx512")) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("fma");
  }
  if (!std::strcmp(kernels.name, "avx2")) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }
#endif
  return kernels.lanes > 0;  // the baseline of the architecture
}

}  // namespace alcs
