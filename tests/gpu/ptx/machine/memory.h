// Accesses to memory: their bounds, alignment and order, and how much they move.
#pragma once

#include <map>

#include "state.h"

namespace ptx {

// Who wrote a byte last, and two threads that have read it since. `barrier` and `sync` count the
// barriers of the block and of the warp at that time.
struct Shadow {
    struct Access {
        u32 thread = ~0u, barrier = 0, sync = 0;
    };
    Access writer, reader[2];
    u32 block = 0;  // in shared memory: the one that this belongs to
    bool written = false;
};

// `touched`: of each sector of 32 bytes, whether anyone has read it (1) or written it (2).
struct Buffer {
    u64 begin, end;
    std::vector<Shadow> shadow = {};
    std::vector<u8> touched = {};

    bool holds(u64 address, u64 size) const {
        return address >= begin && address <= end && end - address >= size;
    }
};

struct Machine {
    const Program* program = nullptr;
    std::vector<Buffer> buffers;
    const u8* parameters = nullptr;
    u64 parameter_bytes = 0;
    u32 grid[3] = {}, block_size[3] = {}, block[3] = {};
    u32 block_number = 0, barriers = 0;
    u32 blocks_begun = 0;
    bool checks_races = true;
    bool stuck = false;  // the launch cannot go on
    u64 executed = 0;    // instructions, counted once for every lane
    u64 most_instructions = ~0ull;
    std::vector<u8> shared;
    std::vector<Shadow> shared_shadow;
    std::vector<Warp> warps;
    std::vector<Counts> counts;
    std::string report;

    u32 threads() const { return block_size[0] * block_size[1] * block_size[2]; }

    // One line of the report for each fault of each instruction.
    void fault(const char* kind, const Instruction& i, u32 thread, u64 address,
               const char* text = "");

    // The host's address of `size` bytes at `address` as `lane` sees them, with everything checked;
    // null where there is nothing. `value` is what will be written.
    u8* access(Warp& warp, const Instruction& i, int lane, u64 address, u32 size, const u8* value);

    void count(const Instruction& i, u32 mask, const u64* base, u32 size);

  private:
    Buffer* find_buffer(u64 address, u32 size);
    bool ordered(const Shadow::Access& before, u32 thread, const Warp& warp) const;
    void touch(Shadow& s, u32 thread, Warp& warp, const Instruction& i, u64 address, bool writes,
               bool changes);
    void count_wavefronts(Counts& t, const Instruction& i, u32 mask, const u64* base, u32 size);
    void count_sectors(Counts& t, const Instruction& i, u32 mask, const u64* base, u32 size);

    std::map<std::pair<std::string, s32>, u64> seen_;
    size_t last_buffer_ = 0;
};

}  // namespace ptx
