// What a program is made of, and where its warps stand.
#pragma once

#include <string>
#include <vector>

#include "values.h"

namespace ptx {

constexpr int kMostOperands = 12;

enum Space : s32 { kGlobal, kShared, kParameter, kGeneric };

// An instruction as Python writes it (encode.py).
struct Row {
    s32 handler;    // number in the list of opcodes
    s32 predicate;  // register, or -1
    s32 negated, starts_block, outputs, inputs, target, space;
    s32 size;     // bytes of one element in memory; bits of a move
    s32 code;     // comparison or conversion
    s32 variant;  // sign extension, a pair of results, a transposed matrix
    s32 lanes;    // register that names the lanes which must come together, or -1
    s32 output[kMostOperands], input[kMostOperands];
    s64 offset;
};

struct Machine;
struct Warp;
struct Instruction;
using Handler = void (*)(Machine&, Warp&, const Instruction&, u32 mask);

// What the scheduler must know of an opcode; the rest is the handler's.
enum Kind : u8 {
    kPlain,
    kMove,
    kPairs,
    kSelect,
    kShuffle,
    kReduction,
    kPermutation,
    kLoad,
    kStore,
    kMatrix,
    kBranch,
    kReturn,
    kBarrier
};

struct Opcode {
    Handler run = nullptr;
    Kind kind = kPlain;
};
Opcode find_opcode(const std::string& name);  // without handler where there is none

struct Instruction : Row {
    Handler run;
    Kind kind;
    s32 number;
};

// Registers with fixed meaning; the kernel's own follow, constants among them.
enum Register : s32 {
    kSink,
    kThread,
    kBlockSize = 4,
    kBlock = 7,
    kGridSize = 10,
    kLaneId = 13,
    kWarpId,
    kZero,
    kFirstFree
};

struct Constant {
    u64 reg, value;
};

struct Program {
    std::vector<Instruction> code;
    std::vector<Constant> constants;
    s32 registers = 0;
    s64 shared_bytes = 0;
};

// The lanes in which the lower and the upper half of a register have been written: compilers
// pack two numbers into one register, of which one may stay unused.
struct Known {
    u32 low = 0, high = 0;

    u32 both() const { return low & high; }
    u32 half(int k) const { return k == 0 ? low : high; }
    void replace(u32 mask, Known by) {
        low = (low & ~mask) | (by.low & mask);
        high = (high & ~mask) | (by.high & mask);
    }
};
inline Known operator&(Known a, Known b) { return {a.low & b.low, a.high & b.high}; }
constexpr Known kKnown{kAllLanes, kAllLanes};

enum State : u8 { kRuns, kWaitsForBlock, kWaitsForWarp, kEnded };

// Every lane has a program counter of its own.
struct Warp {
    std::vector<u64> registers;
    std::vector<Known> known;
    u32 pc[kLanes];
    State state[kLanes];
    s32 barrier[kLanes];
    u32 expected[kLanes];  // threads at that barrier; 0: all
    u32 exists = 0, first_thread = 0;
    u32 syncs = 0;  // how often all its lanes have synchronised

    u64* reg(s32 number) { return &registers[size_t(number) * kLanes]; }
    Known& known_output(const Instruction& i, int k) { return known[size_t(i.output[k])]; }
    const Known& known_input(const Instruction& i, int k) { return known[size_t(i.input[k])]; }
    u64* output(const Instruction& i, int k) { return reg(i.output[k]); }
    u64* input(const Instruction& i, int k) { return reg(i.input[k]); }
    u32 lanes_in(State which) const {
        return lanes_where([&](int lane) { return state[lane] == which; });
    }
    u32 lanes_running_at(u32 at) const {
        return lanes_where([&](int lane) { return state[lane] == kRuns && pc[lane] == at; });
    }
};

// How often an instruction ran, counted once for every lane, and what it has moved. Units are
// sectors of 32 bytes, of shared memory wavefronts; `least` is how many would do for the same
// bytes.
struct Counts {
    u64 executed = 0, requests = 0, lanes = 0, bytes = 0, units = 0, least = 0;
};

}  // namespace ptx
