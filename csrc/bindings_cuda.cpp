// The Python module `_cuda`: every launcher, on a device and a stream that Python names. Tensors
// arrive through DLPack; no PyTorch header is needed, so one build serves all.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cuda/kernels.h"
#include "loss_spec_caster.h"
#include "tensor_caster.h"

namespace py = pybind11;

namespace {

using Context = struct CUctx_st*;

// The driver's function of that name.
template <class Function>
Function* driver_function(const char* name) {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
    cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found);
#else
    cudaGetDriverEntryPoint(name, &function, cudaEnableDefault, &found);
#endif
    return reinterpret_cast<Function*>(function);
}

// The runtime in this module is its own: it must be told the device that PyTorch has chosen. What
// was current before is the driver's business, for the runtime would create a context on the GPU
// that it takes for the current one, the first, only to make that current again.
class OnDevice {
  public:
    explicit OnDevice(int device) {
        static const auto get = driver_function<int(Context*)>("cuCtxGetCurrent");
        known_ = get && get(&before_) == 0;
        check(cudaSetDevice(device));
    }
    ~OnDevice() {
        static const auto set = driver_function<int(Context)>("cuCtxSetCurrent");
        if (known_ && set) set(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

    static void check(int code) {
        if (code != cudaSuccess) {
            cudaGetLastError();  // it is reported here, and must not stick to the next call
            throw std::runtime_error(std::string("CUDA: ") +
                                     cudaGetErrorString(static_cast<cudaError_t>(code)));
        }
    }

  private:
    Context before_ = nullptr;
    bool known_ = false;
};

template <class Launcher>
struct Bind;

// Runs a launcher on the device of its first argument.
template <class... Arguments>
struct Bind<int (*)(const simmim::Tensor&, Arguments...)> {
    template <int (*launcher)(const simmim::Tensor&, Arguments...)>
    static void call(const simmim::Tensor& first, Arguments... arguments) {
        const OnDevice on(first.device);
        OnDevice::check(launcher(first, arguments...));
    }
};

std::string why_not(int device) {
    try {
        const OnDevice on(device);
        OnDevice::check(simmim::cuda::probe());
        return "";
    } catch (const std::runtime_error& error) {
        return error.what();
    }
}

}  // namespace

PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
    m.attr("device_type") = SIMMIM_DEVICE_TYPE;
    m.def("connect", simmim::dlpack::connect,
          "Find DLPack's functions in torch.Tensor, before any kernel is called.");
    m.def("describe", simmim::describe, "What kernels are told about a tensor.");
    m.def("why_not", why_not, "Why the kernels can't run on a device; empty where they can.");
#define X(kernel)                                                                       \
    m.def(#kernel, &Bind<decltype(&simmim::cuda::kernel)>::call<&simmim::cuda::kernel>, \
          py::call_guard<py::gil_scoped_release>());
    SIMMIM_CUDA_KERNELS(X)
#undef X
#define X(size) m.def(#size, &simmim::cuda::size);
    SIMMIM_CUDA_SIZES(X)
#undef X
}
