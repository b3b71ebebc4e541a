#include "cuda/sums.h"

SIMMIM_BEGIN

inline namespace sums_file {

constexpr int kColumns = 32, kLanes = 32;
constexpr int kRows = 4;  // rows that a lane adds, all loaded at once, before more lanes are used

template <class T>
__global__ void __launch_bounds__(kColumns* kLanes)
    add_rows_kernel(const T* partial, int64_t rows, int64_t columns, Array out) {
    __shared__ double sums[kLanes][kColumns];
    const int64_t column = int64_t(blockIdx.x) * kColumns + threadIdx.x;
    double sum = 0;
    if (column < columns) {
#pragma unroll kRows
        for (int64_t row = threadIdx.y; row < rows; row += blockDim.y) {
            sum += double(partial[row * columns + column]);
        }
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || column >= columns) return;
    for (unsigned lane = 1; lane < blockDim.y; ++lane) sum += sums[lane][threadIdx.x];
    out.store(column, sum);
}

}  // namespace sums_file

int add_rows(const void* partial, int partial_element, int64_t rows, int64_t columns, Array out,
             Stream stream) {
    const dim3 threads(kColumns, unsigned(power_of_two(ceil_div(rows, kRows), kLanes)));
    const int64_t blocks = ceil_div(columns, kColumns);
    if (partial_element == kFloat64) {
        return launch(add_rows_kernel<double>, blocks, threads, stream,
                      static_cast<const double*>(partial), rows, columns, out);
    }
    return launch(add_rows_kernel<float>, blocks, threads, stream,
                  static_cast<const float*>(partial), rows, columns, out);
}

SIMMIM_END
