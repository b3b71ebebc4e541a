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

// The runtime in this module is its own: it must be told the device that PyTorch has chosen.
class OnDevice {
  public:
    explicit OnDevice(int device) {
        check(cudaGetDevice(&before_));
        if (before_ != device) check(cudaSetDevice(device));
        device_ = device;
    }
    ~OnDevice() {
        if (before_ != device_) cudaSetDevice(before_);
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
    int before_ = 0, device_ = 0;
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
