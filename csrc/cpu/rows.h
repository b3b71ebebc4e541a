// Rows of numbers of any element type, read into and written from a compute type (float or double).
#pragma once

#include "common/numbers.h"
#include "cpu/stream.h"
#include "cpu/vectors.h"

SIMMIM_BEGIN

constexpr int64_t kRow = 512;  // elements converted at a time; two such rows fit the L1 cache

// The element code of a compute type: rows of that type can be used in place.
template <class C>
constexpr int kElement = kFloat32;
template <>
constexpr int kElement<double> = kFloat64;

// Converts a number to C; integers directly, not through float32.
template <class C, class T>
inline C convert(T v) {
    if constexpr (kSame<T, uint8_t> || kSame<T, uint16_t> || kSame<T, int16_t>)
        return C(int32_t(v));
    else
        return C(widen(v));
}

// How many numbers are converted together where the compiler's own loop would not use the
// processor's conversion, float16 from and to float32; 0 for other types.
template <class C, class T>
constexpr int64_t kTogether =
    kSame<T, Float16> && kSame<C, float> ? kVectorBytes / int64_t(sizeof(C)) : 0;

template <class C, class T>
inline void load_as(const T* source, int64_t stride, int64_t n, C* row) {
    if (stride == 1) {
        int64_t i = 0;
        if constexpr (constexpr int64_t m = kTogether<C, T>; m > 0)
            for (; i + m <= n; i += m) store_vector<C, m>(load_vector<C, m>(source + i), row + i);
        for (; i < n; ++i) row[i] = convert<C>(source[i]);
    } else {
        for (int64_t i = 0; i < n; ++i) row[i] = convert<C>(source[i * stride]);
    }
}

template <class C, class T>
inline void store_as(const C* row, int64_t n, int64_t stride, T* target) {
    if (stride == 1) {
        int64_t i = 0;
        if constexpr (constexpr int64_t m = kTogether<C, T>; m > 0)
            for (; i + m <= n; i += m) store_vector<C, m>(load_vector<C, m>(row + i), target + i);
        for (; i < n; ++i) target[i] = Narrow<T>::from(row[i]);
    } else {
        for (int64_t i = 0; i < n; ++i) target[i * stride] = Narrow<T>::from(row[i]);
    }
}

// A tensor's memory: address and element type. Offsets and strides count elements.
struct Memory {
    char* base;
    int element;

    char* at(int64_t offset) const { return base + offset * element_size(element); }

    template <class C>
    void load(int64_t offset, int64_t stride, int64_t n, C* row) const {
        const char* p = at(offset);
        switch (element) {
            case kFloat32:
                return load_as(reinterpret_cast<const float*>(p), stride, n, row);
            case kFloat64:
                return load_as(reinterpret_cast<const double*>(p), stride, n, row);
            case kBFloat16:
                return load_as(reinterpret_cast<const BFloat16*>(p), stride, n, row);
            case kFloat16:
                return load_as(reinterpret_cast<const Float16*>(p), stride, n, row);
            case kUInt16:
                return load_as(reinterpret_cast<const uint16_t*>(p), stride, n, row);
            case kInt16:
                return load_as(reinterpret_cast<const int16_t*>(p), stride, n, row);
            default:
                return load_as(reinterpret_cast<const uint8_t*>(p), stride, n, row);
        }
    }

    template <class C>
    void store(const C* row, int64_t n, int64_t offset, int64_t stride) const {
        char* p = at(offset);
        switch (element) {
            case kFloat32:
                return store_as(row, n, stride, reinterpret_cast<float*>(p));
            case kFloat64:
                return store_as(row, n, stride, reinterpret_cast<double*>(p));
            case kBFloat16:
                return store_as(row, n, stride, reinterpret_cast<BFloat16*>(p));
            default:
                return store_as(row, n, stride, reinterpret_cast<Float16*>(p));
        }
    }

    void zero(int64_t offset, int64_t stride, int64_t n, bool stream = false) const {
        if (n == 0) return;  // the memory may be null then, which memset does not take
        const int64_t size = element_size(element);
        if (stride == 1 && stream) {
            stream_zero(at(offset), n * size);
        } else if (stride == 1) {
            std::memset(at(offset), 0, size_t(n * size));
        } else {
            for (int64_t i = 0; i < n; ++i) std::memset(at(offset + i * stride), 0, size_t(size));
        }
    }
};

inline Memory memory_of(const Tensor& tensor) { return {tensor.as<char>(), tensor.element}; }

SIMMIM_END
