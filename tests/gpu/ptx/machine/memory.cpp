#include "memory.h"

#include <algorithm>
#include <cstdio>

namespace ptx {

void Machine::fault(const char* kind, const Instruction& i, u32 thread, u64 address,
                    const char* text) {
    if (seen_[{kind, i.number}]++) return;
    char line[256];
    std::snprintf(line, sizeof line, "%s|%d|block %u,%u,%u thread %u|0x%llx|%s\n", kind, i.number,
                  block[0], block[1], block[2], thread, (unsigned long long)address, text);
    report += line;
}

Buffer* Machine::find_buffer(u64 address, u32 size) {
    if (last_buffer_ < buffers.size() && buffers[last_buffer_].holds(address, size))
        return &buffers[last_buffer_];
    for (last_buffer_ = 0; last_buffer_ < buffers.size(); ++last_buffer_)
        if (buffers[last_buffer_].holds(address, size)) return &buffers[last_buffer_];
    return nullptr;
}

// Threads are numbered through the grid. Barriers order the threads of a block, `bar.warp.sync`
// those of a warp; nothing orders two blocks.
bool Machine::ordered(const Shadow::Access& before, u32 thread, const Warp& warp) const {
    if (before.thread == ~0u || before.thread == thread) return true;
    const u32 n = threads(), local = thread % n, other = before.thread % n;
    if (before.thread / n != thread / n) return false;
    if (before.barrier < barriers) return true;
    return other / kLanes == local / kLanes && before.sync < warp.syncs;
}

// A write that changes nothing races with nobody: several threads may store the same value.
void Machine::touch(Shadow& s, u32 thread, Warp& warp, const Instruction& i, u64 address,
                    bool writes, bool changes) {
    char text[64];
    const u32 local = thread % threads();
    auto describe = [&](const char* did, u32 other) {
        std::snprintf(text, sizeof text, "block %u thread %u %s it", other / threads(),
                      other % threads(), did);
        return text;
    };
    if ((!writes || changes) && !ordered(s.writer, thread, warp))
        fault(writes ? "race, write after write" : "race, read after write", i, local, address,
              describe("wrote", s.writer.thread));
    const Shadow::Access now{thread, barriers, warp.syncs};
    if (!writes) {
        Shadow::Access& first = s.reader[0];
        const bool free = first.thread == thread || ordered(first, thread, warp);
        s.reader[free ? 0 : 1] = now;
        return;
    }
    for (const Shadow::Access& reader : s.reader)
        if (!ordered(reader, thread, warp))
            fault("race, write after read", i, local, address, describe("read", reader.thread));
    s.writer = now;
    s.written = true;
    if (changes) s.reader[0] = s.reader[1] = Shadow::Access{};
}

u8* Machine::access(Warp& warp, const Instruction& i, int lane, u64 address, u32 size,
                    const u8* value) {
    const bool writes = value != nullptr;
    const u32 local = warp.first_thread + u32(lane), thread = block_number * threads() + local;
    if (i.space == kParameter) {
        if (address + size > parameter_bytes) {
            fault("parameter beyond the end", i, local, address);
            return nullptr;
        }
        return const_cast<u8*>(parameters) + address;
    }
    if (address % size) fault("misaligned", i, local, address);
    if (i.space == kShared) {
        if (address > shared.size() || shared.size() - address < size) {
            fault("shared memory out of bounds", i, local, address);
            return nullptr;
        }
        for (u64 k = address; k < address + size; ++k) {
            Shadow& s = shared_shadow[k];
            if (s.block != blocks_begun) s = Shadow{}, s.block = blocks_begun;
            if (!writes && !s.written) fault("uninitialised shared byte", i, local, k);
            const bool changes = writes && (!s.written || shared[k] != value[k - address]);
            if (checks_races) touch(s, thread, warp, i, k, writes, changes);
            s.written |= writes;
        }
        return &shared[address];
    }
    Buffer* buffer = find_buffer(address, size);
    if (!buffer) {
        fault(writes ? "global write out of bounds" : "global read out of bounds", i, local,
              address);
        return nullptr;
    }
    u8* found = reinterpret_cast<u8*>(address);
    buffer->touched[address / 32 - buffer->begin / 32] |= writes ? 2 : 1;
    if (checks_races && buffer->shadow.empty()) buffer->shadow.resize(buffer->end - buffer->begin);
    for (u32 k = 0; checks_races && k < size; ++k) {
        Shadow& s = buffer->shadow[address - buffer->begin + k];
        touch(s, thread, warp, i, address + k, writes, writes && found[k] != value[k]);
    }
    return found;
}

void Machine::count(const Instruction& i, u32 mask, const u64* base, u32 size) {
    if (i.space == kParameter) return;
    Counts& t = counts[size_t(i.number)];
    ++t.requests;
    t.lanes += u64(__builtin_popcount(mask));
    if (i.space == kShared)
        count_wavefronts(t, i, mask, base, size);
    else
        count_sectors(t, i, mask, base, size);
}

// Lanes whose bytes fill the 32 banks of 4 bytes go together; two words of one bank need a
// wavefront each.
void Machine::count_wavefronts(Counts& t, const Instruction& i, u32 mask, const u64* base,
                               u32 size) {
    const int group = std::clamp(int(128 / size), 1, kLanes);
    std::vector<u64> words;
    for (int first = 0; first < kLanes; first += group) {
        words.clear();
        for (int lane = first; lane < first + group; ++lane)
            for (u32 k = 0; mask >> lane & 1 && k < std::max(size, 4u); k += 4)
                words.push_back((base[lane] + u64(i.offset) + k) / 4);
        if (words.empty()) continue;
        std::sort(words.begin(), words.end());
        words.erase(std::unique(words.begin(), words.end()), words.end());
        u64 ways[32] = {};
        for (u64 word : words) ++ways[word % 32];
        t.units += *std::max_element(ways, ways + 32);
        t.least += (words.size() + 31) / 32;
        t.bytes += 4 * words.size();
    }
}

void Machine::count_sectors(Counts& t, const Instruction& i, u32 mask, const u64* base, u32 size) {
    u64 at[kLanes], end = 0, bytes = 0, next_sector = 0;
    int n = 0;
    each(mask, [&](int lane) { at[n++] = base[lane] + u64(i.offset); });
    std::sort(at, at + n);
    for (int k = 0; k < n; ++k) {
        const u64 stop = at[k] + size, last = (stop - 1) / 32;
        if (stop > end) bytes += stop - std::max(at[k], end), end = stop;
        const u64 first = std::max(at[k] / 32, next_sector);
        if (last >= first) t.units += last - first + 1, next_sector = last + 1;
    }
    t.bytes += bytes;
    t.least += (bytes + 31) / 32;
}

}  // namespace ptx
