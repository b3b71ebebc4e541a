// Mask-token substitution: out = where(masked, token, x) + pos, in one pass.
#include "cuda/kernels.h"
#include "cuda/tokens_tile.h"

SIMMIM_BEGIN

using namespace tokens_tile;

inline namespace mask_tokens_file {

// In, Out: types of x and of the result; token and pos are In or float. Without positions the bits
// of numbers are copied without conversion.
template <class In, class Out, bool POS>
__global__ void __launch_bounds__(kRowThreads)
    forward_wide(RowCut cut, const In* x, Tokens tokens, Array token, Array pos, int32_t pos_skip,
                 Out* out, int64_t width) {
    constexpr int V = kNumbers<In, Out>;
    __shared__ int64_t places[kCells];
    const RowPiece piece(cut, tokens.length);
    tokens.list_places<In>(piece, places);
    __syncthreads();
    const int64_t feature = int64_t(piece.group) * V;
    if (feature >= width || piece.down >= cut.down) return;
    float shared[V];
    load_either<In, V>(token, feature, shared);
    const Pack<Out, V> substitute = narrow_pack<Out, V>(shared);
    x += piece.row * tokens.sb + feature;
    Out* to =
        out + (int64_t(piece.row) * tokens.length + piece.first + piece.down) * width + feature;
    const int64_t step = cut.down * width;
    for (int32_t start = piece.down; start < piece.padded; start += piece.step) {
        int64_t place[kInFlight];
        Pack<In, V> packs[kInFlight];
        const int64_t* listed = places + start;
#pragma unroll
        for (int k = 0; k < kInFlight; ++k, listed += cut.down) {  // all loads before the first use
            place[k] = *listed;
            if (place[k] >= 0) packs[k] = load_pack<In, V>(moved(x, place[k]));
        }
#pragma unroll
        for (int k = 0; k < kInFlight; ++k, to += step) {
            if (place[k] == kOutside) continue;
            const int32_t row = piece.first + start + k * cut.down - pos_skip;
            if (POS && row >= 0) {
                float values[V], added[V];
                widen_pack<In, V>(packs[k], values);
                load_either<In, V>(pos, row * width + feature, added);
#pragma unroll
                for (int i = 0; i < V; ++i) {
                    values[i] = (place[k] < 0 ? shared[i] : values[i]) + added[i];
                }
                store_pack<Out, V>(to, values);
            } else if (place[k] < 0) {
                store_pack<Out, V>(to, substitute);
            } else {
                store_pack<Out, V>(to, converted<In, Out, V>(packs[k]));
            }
        }
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
    const RowCut cut = cut_rows(p.batch, p.tokens.length, p.width / kNumbers<In, Out>);
    const auto kernel = pos.base ? forward_wide<In, Out, true> : forward_wide<In, Out, false>;
    return launch(kernel, cut.blocks(p.batch), cut.threads(), p.stream, cut,
                  static_cast<const In*>(x.base), p.tokens, token, pos, int32_t(pos_skip),
                  static_cast<Out*>(out.base), p.width);
}

}  // namespace mask_tokens_file

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
