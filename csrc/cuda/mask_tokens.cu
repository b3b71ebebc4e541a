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
        int64_t unit;
        const int64_t offset = tokens.offset(t, &unit);
        masked[k] = tokens.masked(tile.piece, unit);
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
        int64_t unit;
        const int64_t offset = tokens.offset(t, &unit);
        double value = tokens.masked(tile.piece, unit)
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

int mask_tokens_forward(const Tensor& x, const Tensor& mask, const Tensor& token,
                        const Tensor& pos_embed, const Tensor& out, int64_t prefix_tokens,
                        Stream stream) {
    const Problem p = problem_of(x, mask, prefix_tokens, stream);
    const int64_t width = p.width;
    if (x.numel() == 0) return cudaSuccess;
    const int64_t pos_skip = pos_embed ? p.tokens.length - pos_embed.numel() / width : 0;
    const Array source = array_of(x), shared = array_of(token), added = array_of(pos_embed);
    const Array target = array_of(out);
    if (tokens_pack(source, p.tokens, width) && either(shared, x.element, width) &&
        either(added, x.element, width) && packs(out.data, out.element, width)) {
        switch (pair(x.element, out.element)) {
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
    return start(forward_narrow, 1, p.batch, p.tokens, width, stream, source, p.tokens, shared,
                 added, pos_skip, target);
}

SIMMIM_END
