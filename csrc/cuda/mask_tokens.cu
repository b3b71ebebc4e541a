// Mask-token substitution: out = where(masked, token, x) + pos, in one pass.
#include "cuda/kernels.h"
#include "cuda/tokens_tile.h"

SIMMIM_BEGIN

using namespace tokens_tile;

namespace {

// In: what x holds; Out: what the result holds; token and pos hold In or float.
template <class In, class Out>
__global__ void __launch_bounds__(kThreads)
    forward_wide(const In* x, Tokens tokens, Array token, Array pos, int64_t pos_skip, Out* out,
                 int32_t tiles, int64_t width) {
    const Tile tile = tile_of<kVector>(tiles, width);
    if (tile.feature >= width) return;
    Pack<In, kVector> packs[kTokens];
    bool masked[kTokens];
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
        const int32_t t = tile.token + k * int32_t(blockDim.y);
        masked[k] = true;
        if (t >= tokens.length) continue;
        int64_t cell;
        const int64_t offset = tokens.offset(t, &cell);
        masked[k] = tokens.masked(tile.piece, cell);
        if (!masked[k]) {
            packs[k] = load_pack<In, kVector>(x + tile.piece * tokens.sb + offset + tile.feature);
        }
    }
    float shared[kVector];
    load_either<In, kVector>(token, tile.feature, shared);
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
        const int32_t t = tile.token + k * int32_t(blockDim.y);
        if (t >= tokens.length) continue;
        float values[kVector], added[kVector];
        widen_pack<In, kVector>(packs[k], values);
#pragma unroll
        for (int i = 0; i < kVector; ++i) values[i] = masked[k] ? shared[i] : values[i];
        if (pos.base && t >= pos_skip) {
            load_either<In, kVector>(pos, (t - pos_skip) * width + tile.feature, added);
#pragma unroll
            for (int i = 0; i < kVector; ++i) values[i] += added[i];
        }
        store_pack<Out, kVector>(out + (tile.piece * tokens.length + t) * width + tile.feature,
                                 values);
    }
}

__global__ void __launch_bounds__(kThreads)
    forward_narrow(Array x, Tokens tokens, Array token, Array pos, int64_t pos_skip, Array out,
                   int32_t tiles, int64_t width) {
    const Tile tile = tile_of<1>(tiles, width);
    if (tile.feature >= width) return;
    for (int k = 0; k < kTokens; ++k) {
        const int32_t t = tile.token + k * int32_t(blockDim.y);
        if (t >= tokens.length) return;
        int64_t cell;
        const int64_t offset = tokens.offset(t, &cell);
        double value = tokens.masked(tile.piece, cell)
                           ? token.load(tile.feature)
                           : x.load(tile.piece * tokens.sb + offset + tile.feature * tokens.sd);
        if (pos.base && t >= pos_skip) {
            value += pos.load((t - pos_skip) * width + tile.feature);
        }
        out.store((tile.piece * tokens.length + t) * width + tile.feature, value);
    }
}

bool either(const Array& rows, int element, int64_t width) {
    return !rows.base || ((rows.element == element || rows.element == kFloat32) &&
                          packs(rows.base, rows.element, width));
}

template <class In, class Out>
int start_forward(const Problem& p, const Array& x, const Array& token, const Array& pos,
                  int64_t pos_skip, const Array& out) {
    return start(forward_wide<In, Out>, kVector, p.batch, p.tokens, p.width, p.stream,
                 static_cast<const In*>(x.base), p.tokens, token, pos, pos_skip,
                 static_cast<Out*>(out.base));
}

}  // namespace

int mask_tokens_forward(Address x, int x_element, int64_t x_sb, int64_t x_sy, int64_t x_sx,
                        int64_t x_sd, Address mask, int64_t grid_h, int64_t grid_w, Address token,
                        int token_element, Address pos, int pos_element, int64_t pos_skip,
                        Address out, int out_element, int64_t batch, int64_t prefix, int64_t h,
                        int64_t w, int64_t width, Address stream) {
    if (batch * (prefix + h * w) * width == 0) return cudaSuccess;
    const Problem p{tokens_of(x_sb, x_sy, x_sx, x_sd, mask, grid_h, grid_w, prefix, h, w), width,
                    batch, stream};
    const Array source{x.pointer, x_element}, shared{token.pointer, token_element},
        added{pos.pointer, pos_element}, target{out.pointer, out_element};
    if (tokens_pack(source, p.tokens, width) && either(shared, x_element, width) &&
        either(added, x_element, width) && packs(out.pointer, out_element, width)) {
        switch (pair(x_element, out_element)) {
            case pair(kFloat32, kFloat32):
                return start_forward<float, float>(p, source, shared, added, pos_skip, target);
            case pair(kBFloat16, kBFloat16):
                return start_forward<BFloat16, BFloat16>(p, source, shared, added, pos_skip,
                                                         target);
            case pair(kBFloat16, kFloat32):
                return start_forward<BFloat16, float>(p, source, shared, added, pos_skip, target);
            case pair(kFloat16, kFloat16):
                return start_forward<Float16, Float16>(p, source, shared, added, pos_skip, target);
            case pair(kFloat16, kFloat32):
                return start_forward<Float16, float>(p, source, shared, added, pos_skip, target);
        }
    }
    return start(forward_narrow, 1, batch, p.tokens, width, stream, source, p.tokens, shared, added,
                 pos_skip, target);
}

SIMMIM_END
