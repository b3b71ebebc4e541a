// The Python module `_cpu`: picks the instruction set when it is loaded and binds every kernel.
// Tensors arrive through DLPack; no PyTorch header is needed, so one build serves all.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

#include "call_signature.h"
#include "cpu/runs_here.h"
#include "loss_spec_caster.h"
#include "tensor_caster.h"

#ifdef SIMMIM_HAS_BASELINE
#define SIMMIM_ISA baseline
#include "cpu/kernels.h"
#undef SIMMIM_ISA
#endif
#ifdef SIMMIM_HAS_AVX2
#define SIMMIM_ISA avx2
#include "cpu/kernels.h"
#undef SIMMIM_ISA
#endif
#ifdef SIMMIM_HAS_AVX512
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

#if defined(SIMMIM_HAS_BASELINE)
namespace some = simmim::baseline;
#elif defined(SIMMIM_HAS_AVX2)
namespace some = simmim::avx2;
#else
namespace some = simmim::avx512;
#endif

/// The kernels of one instruction set; their types are the same in each.
struct Kernels {
    const char* isa;
#define X(kernel) decltype(&some::kernel) kernel;
    SIMMIM_CPU_KERNELS(X)
#undef X
};

// The instruction sets in this build, widest first.
constexpr Kernels kSets[] = {
#ifdef SIMMIM_HAS_AVX512
#define X(kernel) &simmim::avx512::kernel,
    {"avx512", SIMMIM_CPU_KERNELS(X)},
#undef X
#endif
#ifdef SIMMIM_HAS_AVX2
#define X(kernel) &simmim::avx2::kernel,
    {"avx2", SIMMIM_CPU_KERNELS(X)},
#undef X
#endif
#ifdef SIMMIM_HAS_BASELINE
#define X(kernel) &simmim::baseline::kernel,
    {"baseline", SIMMIM_CPU_KERNELS(X)},
#undef X
#endif
};

std::string built_sets() {
    std::string names;
    for (const Kernels& kernels : kSets)
        names += (names.empty() ? "" : ", ") + std::string(kernels.isa);
    return names;
}

const Kernels& choose() {
    const char* forced = std::getenv("SIMMIM_KERNELS_ISA");
    const bool free = !forced || !*forced;
    for (const Kernels& kernels : kSets) {
        if ((free || kernels.isa == std::string(forced)) && simmim::runs_here(kernels.isa))
            return kernels;
    }
    if (free)
        throw std::runtime_error("this build holds the instruction sets " + built_sets() +
                                 ", and this processor runs none of them; build it here again");
    throw std::runtime_error("SIMMIM_KERNELS_ISA=" + std::string(forced) +
                             " is not available on this processor or in this build, which holds " +
                             built_sets() + "; use one of these, or leave it unset");
}

}  // namespace

PYBIND11_MODULE(_cpu, m, py::mod_gil_not_used()) {
    const Kernels& kernels = choose();
    m.def("connect", simmim::dlpack::connect,
          "Find DLPack's functions in torch.Tensor, before any kernel is called.");
    m.def("make_call_signature", simmim::make_call_signature,
          "Make the function that describes a call.");
    m.def("describe", simmim::describe, "What kernels are told about a tensor.");
    m.attr("isa") = kernels.isa;
    m.attr("isas") = built_sets();
#ifdef _OPENMP
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
#define X(kernel) m.def(#kernel, kernels.kernel, py::call_guard<py::gil_scoped_release>());
    SIMMIM_CPU_KERNELS(X)
#undef X
}
