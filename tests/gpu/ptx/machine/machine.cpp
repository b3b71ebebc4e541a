// Runs PTX on the host, warp by warp, and says what is wrong with it. Python calls these functions
// (kernel.py).
#include <algorithm>
#include <cstdio>
#include <memory>
#include <sstream>

#include "scheduler.h"

using namespace ptx;

extern "C" {

// `opcodes`: a line each. Null where one is unknown; `missing` then holds their names.
Program* ptx_program(const Row* rows, s64 count, const char* opcodes, s64 registers,
                     const Constant* constants, s64 constant_count, s64 shared_bytes, char* missing,
                     s64 room) {
    std::vector<Opcode> known;
    std::string unknown, name;
    for (std::istringstream names(opcodes); std::getline(names, name);) {
        known.push_back(find_opcode(name));
        if (!known.back().run) unknown += name + " ";
    }
    if (!unknown.empty()) {
        std::snprintf(missing, size_t(room), "%s", unknown.c_str());
        return nullptr;
    }
    auto program = std::make_unique<Program>();
    program->registers = s32(registers);
    program->constants.assign(constants, constants + constant_count);
    program->shared_bytes = shared_bytes;
    for (s64 k = 0; k < count; ++k) {
        const Opcode opcode = known[size_t(rows[k].handler)];
        program->code.push_back({rows[k], opcode.run, opcode.kind, s32(k)});
    }
    return program.release();
}

void ptx_free(Program* program) { delete program; }

struct Launch {
    u32 grid[3], block[3];
    const u8* parameters;
    s64 parameter_bytes, dynamic_shared_bytes;
    const u64* ranges;  // begin and end of each buffer that the kernel may access
    s64 range_count, seed, switches, checks_races;
    u64 most_instructions;
};

struct Totals {
    u64 executed = 0, sectors_read = 0, sectors_written = 0;  // each sector once
};

// Adds to the counts of each instruction. The report has a line
// for each fault: kind, instruction, thread, address and more, with bars between.
void ptx_launch(const Program* program, const Launch* launch, Counts* counts, Totals* totals,
                char* report, s64 room) {
    Machine m;
    m.program = program;
    for (s64 k = 0; k < launch->range_count; ++k)
        m.buffers.push_back({launch->ranges[2 * k], launch->ranges[2 * k + 1]});
    for (Buffer& b : m.buffers) b.touched.resize((b.end + 31) / 32 - b.begin / 32);
    std::copy_n(launch->grid, 3, m.grid);
    std::copy_n(launch->block, 3, m.block_size);
    m.parameters = launch->parameters;
    m.parameter_bytes = u64(launch->parameter_bytes);
    m.checks_races = launch->checks_races;
    m.most_instructions = launch->most_instructions;
    m.shared.resize(size_t(program->shared_bytes + launch->dynamic_shared_bytes));
    m.shared_shadow.resize(m.shared.size());
    m.counts.resize(program->code.size());
    Scheduler(m, {launch->seed, launch->switches != 0}).run_grid();
    for (size_t k = 0; k < m.counts.size(); ++k) {
        const Counts& t = m.counts[k];
        Counts& sum = counts[k];
        sum.executed += t.executed, sum.requests += t.requests, sum.lanes += t.lanes,
            sum.bytes += t.bytes;
        sum.units += t.units, sum.least += t.least;
    }
    *totals = {m.executed};
    for (const Buffer& b : m.buffers)
        for (u8 t : b.touched) totals->sectors_read += t & 1, totals->sectors_written += t >> 1;
    std::snprintf(report, size_t(room), "%s", m.report.c_str());
}

}  // extern "C"
