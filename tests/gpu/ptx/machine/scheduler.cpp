#include "scheduler.h"

#include <algorithm>
#include <numeric>

namespace ptx {

Scheduler::Scheduler(Machine& machine, Order order)
    : m_(machine), code_(machine.program->code), order_(order), random_(u32(order.seed)) {
    m_.warps.resize((m_.threads() + kLanes - 1) / kLanes);
    for (Warp& warp : m_.warps) {
        warp.registers.resize(size_t(m_.program->registers) * kLanes);
        warp.known.resize(size_t(m_.program->registers));
    }
}

template <class T>
void Scheduler::arrange(std::vector<T>& turns) {
    std::iota(turns.begin(), turns.end(), T(0));
    if (order_.seed == Order::kFalling) std::reverse(turns.begin(), turns.end());
    if (order_.seed > Order::kFalling) std::shuffle(turns.begin(), turns.end(), random_);
}

void Scheduler::run_grid() {
    std::vector<u64> blocks(u64(m_.grid[0]) * m_.grid[1] * m_.grid[2]);
    arrange(blocks);
    for (u64 number : blocks) {
        start_block(number);
        run_block();
        if (m_.stuck) return;
    }
}

void Scheduler::start_block(u64 number) {
    const u64 plane = u64(m_.grid[0]) * m_.grid[1];
    m_.block_number = u32(number);
    m_.block[0] = u32(number % m_.grid[0]);
    m_.block[1] = u32(number % plane / m_.grid[0]);
    m_.block[2] = u32(number / plane);
    ++m_.blocks_begun;
    m_.barriers = 0;
    std::fill(m_.shared.begin(), m_.shared.end(), u8(0xA5));
    const u32 *size = m_.block_size, threads = m_.threads();
    for (size_t k = 0; k < m_.warps.size(); ++k) {
        Warp& w = m_.warps[k];
        w.first_thread = u32(k) * kLanes;
        w.syncs = 0;
        w.exists = lanes_where([&](int lane) { return w.first_thread + u32(lane) < threads; });
        std::fill(w.registers.begin(), w.registers.end(), 0xDEADBEEFDEADBEEFull);
        std::fill(w.known.begin(), w.known.end(), Known{});
        std::fill(w.known.begin(), w.known.begin() + kFirstFree, kKnown);
        for (const Constant& constant : m_.program->constants) {
            w.known[constant.reg] = kKnown;
            std::fill_n(w.reg(s32(constant.reg)), kLanes, constant.value);
        }
        for (u32 lane = 0; lane < kLanes; ++lane) {
            const u32 thread = w.first_thread + lane;
            w.pc[lane] = 0;
            w.state[lane] = thread < threads ? kRuns : kEnded;
            w.reg(kThread)[lane] = thread % size[0];
            w.reg(kThread + 1)[lane] = thread / size[0] % size[1];
            w.reg(kThread + 2)[lane] = thread / size[0] / size[1];
            for (int axis = 0; axis < 3; ++axis) {
                w.reg(kBlockSize + axis)[lane] = size[axis];
                w.reg(kBlock + axis)[lane] = m_.block[axis];
                w.reg(kGridSize + axis)[lane] = m_.grid[axis];
            }
            w.reg(kLaneId)[lane] = lane;
            w.reg(kWarpId)[lane] = k;
            w.reg(kZero)[lane] = 0;
        }
    }
}

void Scheduler::run_block() {
    std::vector<u32> turns(m_.warps.size());
    do {
        bool running = true;
        while (running && !m_.stuck) {
            running = false;
            arrange(turns);
            for (u32 k : turns) {
                left_ = order_.switches ? 1 + s64(random_() % 64) : INT64_MAX;
                run_warp(m_.warps[k]);
                running |= m_.warps[k].lanes_in(kRuns) != 0;
            }
        }
    } while (!m_.stuck && release_barrier());
}

void Scheduler::run_warp(Warp& w) {
    while (left_ > 0 && !m_.stuck) {
        u32 pc = ~0u;
        for (int lane = 0; lane < kLanes; ++lane)
            if (w.state[lane] == kRuns) pc = std::min(pc, w.pc[lane]);
        if (pc == ~0u) break;
        run_lanes(w, pc, w.lanes_running_at(pc));
    }
    const u32 waiting = w.lanes_in(kWaitsForWarp);
    if (waiting && !w.lanes_in(kRuns)) {
        const Instruction& i = code_[w.pc[__builtin_ctz(waiting)]];
        m_.fault("a warp operation that not all its lanes reach", i, w.first_thread, waiting);
        m_.stuck = true;
    }
}

// Runs lanes that stand at one place until they part, end or wait, or may meet others.
void Scheduler::run_lanes(Warp& w, u32 pc, u32 active) {
    auto stand_at = [&](u32 mask, u32 place) { each(mask, [&](int l) { w.pc[l] = place; }); };
    const bool alone = w.lanes_in(kRuns) == active;
    while (active && left_-- > 0) {
        const Instruction& i = code_[pc];
        if (m_.executed > m_.most_instructions) {
            m_.fault("a launch that does not end", i, w.first_thread, 0);
            m_.stuck = true;
            return;
        }
        u32 mask = enabled(w, i, active);
        if (i.lanes >= 0 && mask) {
            mask = gather(w, i, mask, &active);
            if (!mask) break;  // the rest of the warp has been told where it stands
        }
        if (i.kind == kBranch) {
            count_execution(i, active);
            if (mask == active && alone) {
                pc = u32(i.target);
                continue;
            }
            stand_at(active & ~mask, pc + 1);
            stand_at(mask, u32(i.target));
            return;
        }
        if (mask) execute(w, i, mask);
        ++pc;
        const bool parts = mask && (i.kind == kBarrier || i.kind == kReturn);
        if (parts || (code_[pc].starts_block && !alone)) break;
    }
    stand_at(active, pc);
}

void Scheduler::count_execution(const Instruction& i, u32 mask) {
    const u64 lanes = u64(__builtin_popcount(mask));
    m_.executed += lanes;
    m_.counts[size_t(i.number)].executed += lanes;
}

// The lanes in which the instruction's predicate holds.
u32 Scheduler::enabled(Warp& w, const Instruction& i, u32 active) {
    if (i.predicate < 0) return active;
    const u64* p = w.reg(i.predicate);
    const u32 unknown = active & ~w.known[size_t(i.predicate)].both();
    if (unknown)
        m_.fault("undefined predicate", i, w.first_thread + u32(__builtin_ctz(unknown)), 0);
    return active & lanes_where([&](int lane) { return (p[lane] & 1) != u64(i.negated); });
}

u32 Scheduler::gather(Warp& w, const Instruction& i, u32 mask, u32* active) {
    const u32 at = u32(i.number);
    const u32 named = u32(w.reg(i.lanes)[__builtin_ctz(mask)]) & w.exists;
    if (!(named & ~mask)) return mask;
    const u32 ended = named & w.lanes_in(kEnded);
    if (ended) m_.fault("a warp operation names lanes that have ended", i, w.first_thread, ended);
    const u32 here = mask | lanes_where([&](int lane) {
                         return w.state[lane] == kWaitsForWarp && w.pc[lane] == at;
                     });
    if (named & ~here & ~ended) {
        each(mask, [&](int l) { w.state[l] = kWaitsForWarp, w.pc[l] = at; });
        each(*active & ~mask, [&](int l) { w.pc[l] = at + 1; });
        *active = 0;
        return 0;
    }
    each(here, [&](int l) { w.state[l] = kRuns; });
    *active |= here;
    return here;
}

// The same of a result whose four bytes are chosen among the eight of b:a.
Known known_bytes(Known a, Known b, Known selector, const u64* choices) {
    const Known all[] = {a, b};
    Known result{selector.both(), selector.both()};
    for (int k = 0; k < 4; ++k) {
        const u32 good = lanes_where([&](int lane) {
            const u64 byte = choices[lane] >> (4 * k) & 7;
            return all[byte / 4].half(byte / 2 % 2) >> lane & 1;
        });
        (k < 2 ? result.low : result.high) &= good;
    }
    return result;
}

// The lanes in which an output will be known, as far as the inputs are.
Known Scheduler::known_result(Warp& w, const Instruction& i, int output, u32 mask) {
    auto known = [&](int k) { return w.known_input(i, k); };
    if (i.kind == kLoad || i.kind == kMatrix) return kKnown;
    if (i.kind == kSelect) {
        const u64* p = w.input(i, 2);
        const u32 first = lanes_where([&](int lane) { return p[lane] & 1; }) & known(2).both();
        const u32 chosen = known(2).both();
        Known result = known(1);
        result.replace(first, known(0));
        return result & Known{chosen, chosen};
    }
    if (i.kind == kPermutation) return known_bytes(known(0), known(1), known(2), w.input(i, 2));
    if (i.kind == kMove && i.size >= 32 && i.outputs > 1) {
        const u32 half = known(0).half(2 * output / i.outputs);
        return {half, half};
    }
    if (i.kind == kMove && i.size >= 32 && i.inputs > 1) {
        Known result = kKnown;
        for (int k = 0; k < i.inputs; ++k)
            (2 * k < i.inputs ? result.low : result.high) &= known(k).both();
        return result;
    }
    Known all = kKnown;
    for (int k = 0; k < i.inputs; ++k) all = all & known(k);
    if (i.kind == kPairs || (i.kind == kMove && i.inputs == 1)) return all;
    const u32 both = i.kind == kReduction && mask & ~all.both() ? 0 : all.both();
    return {both, both};
}

void Scheduler::execute(Warp& w, const Instruction& i, u32 mask) {
    const bool must_know =
        i.kind == kLoad || i.kind == kStore || i.kind == kMatrix || i.kind == kBarrier;
    for (int k = 0; must_know && k < i.inputs; ++k)
        if (const u32 bad = mask & ~w.known_input(i, k).both())
            m_.fault("undefined register", i, w.first_thread + u32(__builtin_ctz(bad)), 0);
    Known results[kMostOperands];
    for (int k = 0; k < i.outputs; ++k) results[k] = known_result(w, i, k, mask);
    i.run(m_, w, i, mask);
    count_execution(i, mask);
    for (int k = 0; k < i.outputs && i.kind != kShuffle; ++k)
        w.known_output(i, k).replace(mask, results[k]);
    w.known[kSink] = kKnown;
}

// Everyone has ended or waits. Returns whether anyone goes on.
bool Scheduler::release_barrier() {
    u32 alive = 0, waiting = 0, expected = 0;
    s32 id = -1;
    bool agree = true;
    const Instruction* at = nullptr;
    for (Warp& w : m_.warps) {
        const u32 here = w.lanes_in(kWaitsForBlock);
        alive += u32(__builtin_popcount(w.exists & ~w.lanes_in(kEnded)));
        waiting += u32(__builtin_popcount(here));
        each(here, [&](int l) {
            at = &code_[w.pc[l] - 1];
            if (w.pc[l] != w.pc[__builtin_ctz(here)])
                m_.fault("the lanes of a warp wait at different barriers", *at,
                         w.first_thread + u32(l), 0);
            agree &= id < 0 || id == w.barrier[l];
            id = w.barrier[l];
            expected = std::max(expected, w.expected[l]);
        });
    }
    if (!alive) return false;
    if (!at || waiting != alive || !agree || (expected && expected != m_.threads())) {
        if (at) m_.fault("a barrier that not all threads reach", *at, 0, waiting);
        m_.stuck = true;
        return false;
    }
    ++m_.barriers;
    for (Warp& w : m_.warps) each(w.lanes_in(kWaitsForBlock), [&](int l) { w.state[l] = kRuns; });
    return true;
}

}  // namespace ptx
