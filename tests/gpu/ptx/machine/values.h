// Register values: 64 bits that hold a number of any PTX type.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ptx {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using u128 = unsigned __int128;
using s128 = __int128;
using f16 = _Float16;
using f32 = float;
using f64 = double;

constexpr int kLanes = 32;
constexpr u32 kAllLanes = ~0u;

template <class T>
inline T get(u64 bits) {
    T value;
    std::memcpy(static_cast<void*>(&value), &bits, sizeof value);
    return value;
}
template <>
inline bool get<bool>(u64 bits) {
    return bits & 1;
}
template <class T>
inline u64 put(T value) {
    u64 bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}

struct bf16 {
    u16 bits = 0;
    bf16() = default;
    // To the nearest, halves to even. Rounding to float32 first must not decide a half: what it
    // drops stays as the lowest bit.
    explicit bf16(f64 x) {
        f32 single = f32(x);
        u32 b = get<u32>(put(single));
        if (x == x && f64(single) != x && !std::isinf(single)) {
            if (std::fabs(f64(single)) > std::fabs(x)) --b;
            b |= 1;
        }
        bits = x != x ? 0x7FFF : u16((b + 0x7FFF + (b >> 16 & 1)) >> 16);
    }
    operator f32() const { return get<f32>(u64(bits) << 16); }
};

struct pair {
    f32 x, y;
};

// Calls f(lane) for every lane of the mask.
template <class F>
inline void each(u32 mask, F f) {
    if (mask == kAllLanes) {
        for (int lane = 0; lane < kLanes; ++lane) f(lane);
        return;
    }
    for (; mask; mask &= mask - 1) f(__builtin_ctz(mask));
}

template <class Condition>
inline u32 lanes_where(Condition condition) {
    u32 mask = 0;
    for (int lane = 0; lane < kLanes; ++lane) mask |= u32(bool(condition(lane))) << lane;
    return mask;
}

}  // namespace ptx
