// Which lanes run next, and what they do at branches and barriers.
#pragma once

#include <random>

#include "memory.h"

namespace ptx {

// Warps take turns at barriers. Rising and falling: by their number; else a seed draws their order
// anew each time. `switches`: they also take turns between barriers, after a drawn number of
// instructions.
struct Order {
    enum { kRising, kFalling };
    s64 seed;
    bool switches;
};

class Scheduler {
  public:
    Scheduler(Machine& machine, Order order);
    void run_grid();

  private:
    void start_block(u64 number);
    void run_block();
    void run_warp(Warp& warp);
    void run_lanes(Warp& warp, u32 pc, u32 active);
    u32 enabled(Warp& warp, const Instruction& i, u32 active);
    // Lanes of `mask` that stay; the others wait until the lanes that the instruction names are
    // here.
    u32 gather(Warp& warp, const Instruction& i, u32 mask, u32* active);
    Known known_result(Warp& warp, const Instruction& i, int output, u32 mask);
    void execute(Warp& warp, const Instruction& i, u32 mask);
    void count_execution(const Instruction& i, u32 mask);
    bool release_barrier();
    template <class T>
    void arrange(std::vector<T>& turns);

    Machine& m_;
    const std::vector<Instruction>& code_;
    Order order_;
    std::mt19937 random_;
    s64 left_ = 0;  // instructions until the next warp's turn
};

}  // namespace ptx
