// The Python module `_cpu`: picks the instruction set when it is loaded and binds every kernel.
// Tensors arrive through DLPack; no PyTorch header is needed, so one build serves all.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

#include "loss_spec_caster.h"
#include "tensor_caster.h"

#define SIMMIM_ISA baseline
#include "cpu/kernels.h"
#undef SIMMIM_ISA
#ifdef SIMMIM_X86
#define SIMMIM_ISA avx2
#include "cpu/kernels.h"
#undef SIMMIM_ISA
#define SIMMIM_ISA avx512
#include "cpu/kernels.h"
#undef SIMMIM_ISA
#endif

namespace py = pybind11;

namespace simmim {

void* allocate(int64_t bytes) { return ::operator new(size_t(bytes), std::align_val_t(64)); }
void release(void* memory) { ::operator delete(memory, std::align_val_t(64)); }

}  // namespace simmim

namespace {

struct Kernels {
    const char* isa;
#define X(kernel) decltype(&simmim::baseline::kernel) kernel;
    SIMMIM_CPU_KERNELS(X)
#undef X
};

#define X(kernel) &simmim::baseline::kernel,
constexpr Kernels kBaseline{"baseline", SIMMIM_CPU_KERNELS(X)};
#undef X
#ifdef SIMMIM_X86
#define X(kernel) &simmim::avx2::kernel,
constexpr Kernels kAvx2{"avx2", SIMMIM_CPU_KERNELS(X)};
#undef X
#define X(kernel) &simmim::avx512::kernel,
constexpr Kernels kAvx512{"avx512", SIMMIM_CPU_KERNELS(X)};
#undef X
#endif

bool runs_here(const std::string& isa) {
    if (isa == "baseline") return true;
#ifdef SIMMIM_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (isa == "avx2") return avx2;
    if (isa == "avx512")
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return false;
}

const Kernels& choose() {
    const char* forced = std::getenv("SIMMIM_KERNELS_ISA");
#ifdef SIMMIM_X86
    const Kernels* widest_first[] = {&kAvx512, &kAvx2, &kBaseline};
#else
    const Kernels* widest_first[] = {&kBaseline};
#endif
    for (const Kernels* kernels : widest_first) {
        if ((!forced || !*forced || kernels->isa == std::string(forced)) && runs_here(kernels->isa))
            return *kernels;
    }
    throw std::runtime_error("SIMMIM_KERNELS_ISA=" + std::string(forced) +
                             " is not available on this processor or in this build; use baseline, "
                             "avx2 or avx512, or leave it unset");
}

}  // namespace

PYBIND11_MODULE(_cpu, m, py::mod_gil_not_used()) {
    const Kernels& kernels = choose();
    m.def("connect", simmim::dlpack::connect,
          "Find DLPack's functions in torch.Tensor, before any kernel is called.");
    m.def("describe", simmim::describe, "What kernels are told about a tensor.");
    m.attr("isa") = kernels.isa;
#ifdef _OPENMP
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
#define X(kernel) m.def(#kernel, kernels.kernel, py::call_guard<py::gil_scoped_release>());
    SIMMIM_CPU_KERNELS(X)
#undef X
}
