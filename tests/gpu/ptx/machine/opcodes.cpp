// The handler of every opcode by name.
#include <unordered_map>

#include "arithmetic.h"
#include "conversion.h"
#include "memory.h"

namespace ptx {
namespace {

#define HANDLER_ARGUMENTS                                                                         \
    [[maybe_unused]] Machine &m, [[maybe_unused]] Warp &w, [[maybe_unused]] const Instruction &i, \
        u32 mask

template <class T, class D, D (*F)(T)>
void unary(HANDLER_ARGUMENTS) {
    u64 *d = w.output(i, 0), *a = w.input(i, 0);
    each(mask, [=](int l) { d[l] = put<D>(F(get<T>(a[l]))); });
}
template <class A, class B, class D, D (*F)(A, B)>
void binary(HANDLER_ARGUMENTS) {
    u64 *d = w.output(i, 0), *a = w.input(i, 0), *b = w.input(i, 1);
    each(mask, [=](int l) { d[l] = put<D>(F(get<A>(a[l]), get<B>(b[l]))); });
}
template <class A, class B, class C, class D, D (*F)(A, B, C)>
void ternary(HANDLER_ARGUMENTS) {
    u64 *d = w.output(i, 0), *a = w.input(i, 0), *b = w.input(i, 1), *c = w.input(i, 2);
    each(mask, [=](int l) { d[l] = put<D>(F(get<A>(a[l]), get<B>(b[l]), get<C>(c[l]))); });
}
// add.f32.bf16 and the like: the first operand is narrow.
template <class Narrow, f32 (*F)(f32, f32)>
void mixed(HANDLER_ARGUMENTS) {
    u64 *d = w.output(i, 0), *a = w.input(i, 0), *b = w.input(i, 1);
    each(mask, [=](int l) { d[l] = put(F(f32(get<Narrow>(a[l])), get<f32>(b[l]))); });
}
void logic(HANDLER_ARGUMENTS) {
    u64 *d = w.output(i, 0), *a = w.input(i, 0), *b = w.input(i, 1), *c = w.input(i, 2);
    u64* table = w.input(i, 3);
    each(mask, [=](int l) { d[l] = logic3(u32(a[l]), u32(b[l]), u32(c[l]), u32(table[l])); });
}

template <class T>
void set_predicate(HANDLER_ARGUMENTS) {  // code: comparison + 16 * (1 and, 2 or, 3 xor)
    u64 *d = w.output(i, 0), *a = w.input(i, 0), *b = w.input(i, 1);
    const int join = i.code >> 4;
    u64* c = join ? w.input(i, 2) : nullptr;
    each(mask, [&](int l) {
        const bool p = compare<T>(i.code & 15, get<T>(a[l]), get<T>(b[l]));
        const bool q = join && c[l] & 1;
        d[l] = join == 0 ? p : join == 1 ? p && q : join == 2 ? p || q : p != q;
    });
}
void select(HANDLER_ARGUMENTS) {
    u64 *d = w.output(i, 0), *a = w.input(i, 0), *b = w.input(i, 1), *p = w.input(i, 2);
    each(mask, [=](int l) { d[l] = p[l] & 1 ? a[l] : b[l]; });
}
void move(HANDLER_ARGUMENTS) {  // a register, or parts of one: size bits in all
    const int bits = i.size / std::max(i.inputs, i.outputs);
    const u64 keep = bits == 64 ? ~0ull : (1ull << bits) - 1;
    each(mask, [&](int l) {
        u64 all = 0;
        for (int k = 0; k < i.inputs; ++k) {
            const u64 part = w.input(i, k)[l];
            all |= i.inputs == 1 ? part : (part & keep) << (k * bits);
        }
        for (int k = 0; k < i.outputs; ++k)
            w.output(i, k)[l] = i.outputs == 1 ? all : all >> (k * bits) & keep;
    });
}
void convert_type(HANDLER_ARGUMENTS) {  // variant: a pair, the first source is the upper half
    u64 *d = w.output(i, 0), *a = w.input(i, 0), *b = i.variant ? w.input(i, 1) : nullptr;
    const int to = i.code & 15, from = i.code >> 4 & 15, rounding = i.code >> 8;
    each(mask, [=](int l) {
        const u64 first = convert(to, from, rounding, a[l]);
        d[l] = b ? first << 16 | convert(to, from, rounding, b[l]) : first;
    });
}

void load(HANDLER_ARGUMENTS) {  // variant: extends the sign
    u64 base[kLanes];
    std::memcpy(base, w.input(i, 0), sizeof base);
    const u32 total = u32(i.size * i.outputs);
    m.count(i, mask, base, total);
    each(mask, [&](int l) {
        const u8* found = m.access(w, i, l, base[l] + u64(i.offset), total, nullptr);
        for (int k = 0; k < i.outputs; ++k) {
            u64 v = 0;
            if (found) std::memcpy(&v, found + k * i.size, size_t(i.size));
            const int unused = 64 - 8 * i.size;
            w.output(i, k)[l] = i.variant ? u64(s64(v << unused) >> unused) : v;
        }
    });
}
void store(HANDLER_ARGUMENTS) {
    const u64* base = w.input(i, 0);
    const int count = i.inputs - 1;
    const u32 total = u32(i.size * count);
    m.count(i, mask, base, total);
    each(mask, [&](int l) {
        u8 value[8 * kMostOperands];
        for (int k = 0; k < count; ++k)
            std::memcpy(value + k * i.size, w.input(i, k + 1) + l, size_t(i.size));
        u8* found = m.access(w, i, l, base[l] + u64(i.offset), total, value);
        if (found) std::memcpy(found, value, total);
    });
}

// ldmatrix and stmatrix: lanes 8k to 8k+7 hold the addresses of the rows of matrix k, 8 x 8 numbers
// of 16 bits; every lane holds two numbers of each. variant: transposed.
template <bool writes>
void matrix(HANDLER_ARGUMENTS) {
    const int count = writes ? i.inputs - 1 : i.outputs;
    u64 base[kLanes];
    std::memcpy(base, w.input(i, 0), sizeof base);
    m.count(i, count == 4 ? kAllLanes : (1u << 8 * count) - 1, base, 16);
    if (mask != kAllLanes) m.fault("matrix access of a divided warp", i, w.first_thread, mask);
    for (int k = 0; k < count; ++k) {
        u64* v = writes ? w.input(i, k + 1) : w.output(i, k);
        u16 numbers[8][8];
        auto number = [&](int lane, int half) -> u16& {
            const int row = lane / 4, column = lane % 4 * 2 + half;
            return i.variant ? numbers[column][row] : numbers[row][column];
        };
        for (int l = 0; writes && l < kLanes; ++l)
            number(l, 0) = u16(v[l]), number(l, 1) = u16(v[l] >> 16);
        for (int r = 0; r < 8; ++r) {
            u8* row = reinterpret_cast<u8*>(numbers[r]);
            const u64 address = base[8 * k + r] + u64(i.offset);
            u8* found = m.access(w, i, 8 * k + r, address, 16, writes ? row : nullptr);
            if (found) std::memcpy(writes ? found : row, writes ? row : found, 16);
        }
        for (int l = 0; !writes && l < kLanes; ++l) v[l] = number(l, 0) | u32(number(l, 1)) << 16;
    }
}

enum Shuffle { kUpwards, kDownwards, kButterfly, kIndex };
template <Shuffle how>
void shuffle(HANDLER_ARGUMENTS) {
    u64 *d = w.output(i, 0), *p = i.outputs > 1 ? w.output(i, 1) : nullptr;
    u64 a[kLanes], *b = w.input(i, 1), *c = w.input(i, 2);
    std::memcpy(a, w.input(i, 0), sizeof a);
    const u32 known = w.known_input(i, 0).both();
    u32 good = 0;
    each(mask, [&](int l) {
        const int step = int(b[l] & 31), clamp = int(c[l] & 31), segment = int(c[l] >> 8 & 31);
        const int last = (l & segment) | (clamp & ~segment), first = l & segment;
        int from = how == kUpwards     ? l - step
                   : how == kDownwards ? l + step
                   : how == kButterfly ? l ^ step
                                       : first | (step & ~segment);
        const bool inside = how == kUpwards ? from >= last : from <= last;
        if (!inside) from = l;
        if (!(mask >> from & 1))
            m.fault("shuffle from an absent lane", i, w.first_thread + u32(l), u64(from));
        d[l] = u32(a[from]);
        if (p) p[l] = inside;
        good |= (known >> from & 1) << l;
    });
    for (int k = 0; k < i.outputs; ++k) {
        w.known_output(i, k).replace(mask, k == 0 ? Known{good, good} : kKnown);
    }
}
template <class T, T (*F)(T, T)>
void reduce(HANDLER_ARGUMENTS) {
    const u64* a = w.input(i, 0);
    T result = get<T>(a[__builtin_ctz(mask)]);
    each(mask & (mask - 1), [&](int l) { result = F(result, get<T>(a[l])); });
    u64* d = w.output(i, 0);
    each(mask, [=](int l) { d[l] = put(result); });
}
void ballot(HANDLER_ARGUMENTS) {
    const u64* a = w.input(i, 0);
    u32 votes = 0;
    each(mask, [&](int l) { votes |= u32(a[l] & 1) << l; });
    u64* d = w.output(i, 0);
    each(mask, [=](int l) { d[l] = votes; });
}

void nothing(Machine&, Warp&, const Instruction&, u32) {}
void end(Machine&, Warp& w, const Instruction&, u32 mask) {
    each(mask, [&](int l) { w.state[l] = kEnded; });
}
void wait_for_block(HANDLER_ARGUMENTS) {
    each(mask, [&](int l) {
        w.state[l] = kWaitsForBlock;
        w.barrier[l] = s32(w.input(i, 0)[l]);
        w.expected[l] = i.inputs > 1 ? u32(w.input(i, 1)[l]) : 0;
    });
}
void synchronise_warp(Machine&, Warp& w, const Instruction&, u32 mask) {
    if (mask == w.exists) ++w.syncs;
}

using Table = std::unordered_map<std::string, Opcode>;
#define UNARY(T, F) (Opcode{unary<T, T, F<T>>})
#define BINARY(T, F) (Opcode{binary<T, T, T, F<T>>})

template <class T>
void add_numbers(Table& t, const std::string& type) {
    t["add." + type] = BINARY(T, add), t["sub." + type] = BINARY(T, sub);
    t["div." + type] = BINARY(T, divide), t["setp." + type] = {set_predicate<T>};
    t["min." + type] = BINARY(T, minimum), t["max." + type] = BINARY(T, maximum);
    t["neg." + type] = UNARY(T, negate), t["abs." + type] = UNARY(T, absolute);
}
template <class T, class Wide>
void add_integers(Table& t, const std::string& type) {
    add_numbers<T>(t, type);
    t["mul.lo." + type] = BINARY(T, mul), t["rem." + type] = BINARY(T, modulo);
    t["mad.lo." + type] = {ternary<T, T, T, T, multiply_add<T>>};
    t["shr." + type] = {binary<T, u32, T, shift_right<T>>};
    t["bfe." + type] = {ternary<T, u32, u32, T, bit_field<T>>};
    t["mul.hi." + type] = {binary<T, T, T, mul_high<T, Wide>>};
    if constexpr (sizeof(Wide) <= 8) {
        t["mul.wide." + type] = {binary<T, T, Wide, mul_wide<T, Wide>>};
        t["mad.wide." + type] = {ternary<T, T, Wide, Wide, mad_wide<T, Wide>>};
    }
}
template <class T>
void add_bits(Table& t, const std::string& type) {
    t["and." + type] = BINARY(T, bit_and), t["or." + type] = BINARY(T, bit_or);
    t["xor." + type] = BINARY(T, bit_xor), t["not." + type] = UNARY(T, bit_not);
    if constexpr (sizeof(T) > 1) {
        t["shl." + type] = {binary<T, u32, T, shift_left<T>>};
        t["shr." + type] = {binary<T, u32, T, shift_right<T>>};
        t["setp." + type] = {set_predicate<T>};
    }
}
template <class T>
void add_reals(Table& t, const std::string& type) {
    add_numbers<T>(t, type);
    t["mul." + type] = BINARY(T, mul), t["copysign." + type] = BINARY(T, copy_sign);
    t["fma." + type] = {ternary<T, T, T, T, multiply_add<T>>};
    t["min.NaN." + type] = {binary<T, T, T, keeping_nan<T, minimum<T>>>};
    t["max.NaN." + type] = {binary<T, T, T, keeping_nan<T, maximum<T>>>};
    t["sqrt." + type] = UNARY(T, square_root), t["rsqrt." + type] = UNARY(T, reciprocal_root);
    t["rcp." + type] = UNARY(T, reciprocal), t["ex2." + type] = UNARY(T, power_of_two);
    t["lg2." + type] = UNARY(T, log_of_two);
}
template <class T>
void add_reductions(Table& t, const std::string& type) {
    t["redux.add." + type] = {reduce<T, add<T>>, kReduction};
    t["redux.min." + type] = {reduce<T, minimum<T>>, kReduction};
    t["redux.max." + type] = {reduce<T, maximum<T>>, kReduction};
}

Table make_table() {
    Table t;
    add_integers<s16, s32>(t, "s16"), add_integers<u16, u32>(t, "u16");
    add_integers<s32, s64>(t, "s32"), add_integers<u32, u64>(t, "u32");
    add_integers<s64, s128>(t, "s64"), add_integers<u64, u128>(t, "u64");
    add_bits<u16>(t, "b16"), add_bits<u32>(t, "b32"), add_bits<u64>(t, "b64");
    add_bits<bool>(t, "pred");
    add_reals<f32>(t, "f32"), add_reals<f64>(t, "f64");
    t["rsqrt.rough.f64"] = {unary<f64, f64, rough_reciprocal_root>};
    t["setp.f16"] = {set_predicate<f16>}, t["setp.bf16"] = {set_predicate<bf16>};
    t["max.relu.s32"] = {binary<s32, s32, s32, clamped_at_zero<s32, maximum<s32>>>};
    t["min.relu.s32"] = {binary<s32, s32, s32, clamped_at_zero<s32, minimum<s32>>>};
    t["add.f32x2"] = {binary<pair, pair, pair, of_pairs<add<f32>>>, kPairs};
    t["sub.f32x2"] = {binary<pair, pair, pair, of_pairs<sub<f32>>>, kPairs};
    t["mul.f32x2"] = {binary<pair, pair, pair, of_pairs<mul<f32>>>, kPairs};
    t["fma.f32x2"] = {ternary<pair, pair, pair, pair, multiply_add_pairs>, kPairs};
    t["add.f32.bf16"] = {mixed<bf16, add<f32>>}, t["sub.f32.bf16"] = {mixed<bf16, sub<f32>>};
    t["add.f32.f16"] = {mixed<f16, add<f32>>}, t["sub.f32.f16"] = {mixed<f16, sub<f32>>};
    t["popc.b32"] = {unary<u32, u32, count_ones<u32>>};
    t["popc.b64"] = {unary<u64, u32, count_ones<u64>>};
    t["clz.b32"] = {unary<u32, u32, leading_zeros32>};
    t["clz.b64"] = {unary<u64, u32, leading_zeros64>};
    t["brev.b32"] = {unary<u32, u32, reverse_bits>};
    t["add.s16x2"] = {binary<u32, u32, u32, add_halves>};
    t["dp4a.u32.u32"] = {ternary<u32, u32, u32, u32, add_byte_products>};
    t["prmt.b32"] = {ternary<u32, u32, u32, u32, permute_bytes>, kPermutation};
    t["shf.l.b32"] = {ternary<u32, u32, u32, u32, funnel_shift<true>>};
    t["shf.r.b32"] = {ternary<u32, u32, u32, u32, funnel_shift<false>>};
    t["lop3.b32"] = {logic}, t["mov"] = {move, kMove}, t["cvt"] = {convert_type};
    t["selp"] = {select, kSelect}, t["ld"] = {load, kLoad}, t["st"] = {store, kStore};
    t["ldmatrix"] = {matrix<false>, kMatrix}, t["stmatrix"] = {matrix<true>, kMatrix};
    t["shfl.up"] = {shuffle<kUpwards>, kShuffle}, t["shfl.down"] = {shuffle<kDownwards>, kShuffle};
    t["shfl.bfly"] = {shuffle<kButterfly>, kShuffle}, t["shfl.idx"] = {shuffle<kIndex>, kShuffle};
    add_reductions<s32>(t, "s32"), add_reductions<u32>(t, "u32");
    t["redux.and.b32"] = {reduce<u32, bit_and<u32>>, kReduction};
    t["redux.or.b32"] = {reduce<u32, bit_or<u32>>, kReduction};
    t["redux.xor.b32"] = {reduce<u32, bit_xor<u32>>, kReduction};
    t["vote.ballot.b32"] = {ballot, kReduction};
    t["nothing"] = {nothing}, t["bra"] = {nothing, kBranch}, t["ret"] = {end, kReturn};
    t["bar"] = {wait_for_block, kBarrier}, t["bar.warp"] = {synchronise_warp};
    return t;
}

}  // namespace

Opcode find_opcode(const std::string& name) {
    static const Table table = make_table();
    const auto found = table.find(name);
    return found == table.end() ? Opcode{} : found->second;
}

}  // namespace ptx
