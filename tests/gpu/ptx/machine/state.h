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
    kSelect,
    kShuffle,
    kReduction,
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

enum State : u8 { kRuns, kWaitsForBlock, kWaitsForWarp, kEnded };

// Every lane has a program counter of its own.
struct Warp {
    std::vector<u64> registers;
    std::vector<u32> defined;  // of each register, the lanes in which it was written
    u32 pc[kLanes];
    State state[kLanes];
    s32 barrier[kLanes];
    u32 expected[kLanes];  // threads at that barrier; 0: all
    u32 exists = 0, first_thread = 0;
    u32 syncs = 0;  // how often all its lanes have synchronised

    u64* reg(s32 number) { return &registers[size_t(number) * kLanes]; }
    u64* output(const Instruction& i, int k) { return reg(i.output[k]); }
    u64* input(const Instruction& i, int k) { return reg(i.input[k]); }
    u32 lanes_in(State which) const {
        return lanes_where([&](int lane) { return state[lane] == which; });
    }
    u32 lanes_running_at(u32 at) const {
        return lanes_where([&](int lane) { return state[lane] == kRuns && pc[lane] == at; });
    }
};

// What an instruction that accesses memory has moved. Units are sectors of 32 bytes, of shared
// memory wavefronts; `least` is how many would do for the same bytes.
struct Traffic {
    u64 requests = 0, lanes = 0, bytes = 0, units = 0, least = 0;
};

}  // namespace ptx
