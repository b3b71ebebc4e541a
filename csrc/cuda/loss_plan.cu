#include "cuda/kernels.h"
#include "cuda/loss_wide.h"

SIMMIM_BEGIN

inline namespace loss_plan_file {

bool whole(int64_t strides, int64_t bytes) { return strides % bytes == 0; }

// The strides of a prediction (or of its gradient) in elements: by sample, plane and cell.
struct RowStrides {
    int64_t sample, plane, cell;
};

RowStrides strides_of(const Tensor& pred, bool image, bool last, int64_t cells) {
    if (image && last) return {pred.stride(0), 0, pred.stride(2)};
    if (image) return {pred.stride(0), pred.stride(1), pred.stride(2)};
    if (pred.dims == 2) return {cells * pred.stride(0), 0, pred.stride(0)};
    return {pred.stride(0), 0, pred.stride(1)};
}

}  // namespace loss_plan_file

bool plan_wide(const Tensor& pred, const Tensor& grad, const Tensor& target, const Tensor& mask,
               const Tensor& index, const Tensor& std, const LossSpec& spec, WideLoss* wide) {
    const ImageLayout at = image_layout(target);
    const int64_t p = prediction_patch(pred, at), height = at.size.height, width = at.size.width;
    const bool image = pred.dims == 4, same = pred.element == target.element;
    if (pred.element == kFloat64 ||
        !(same || target.element == kFloat32 || target.element == kUInt8))
        return false;
    if (image && p != 1) return false;  // a map
    // Channels innermost in both: a line is contiguous, and channels need not be told apart.
    const bool last = at.sc == 1 && at.sx == at.channels && at.channels > 1;
    // Tokens of one pixel have their channels innermost in either order.
    const bool interleaved = spec.order == kInterleaved || p == 1;
    const bool inner = image ? pred.stride(1) == 1 && pred.stride(3) == at.channels
                             : interleaved && pred.stride(-1) == 1;
    if (last && !(inner && !std && target.element != kUInt8)) return false;
    if (!last && (at.sx != 1 || pred.stride(-1) != 1)) return false;
    if (!last && !image && interleaved && at.channels > 1) return false;
    const int64_t depth = last ? at.channels : 1;

    const Extent units = extent_from(mask, 1), unit = scale_of(at.size, units);
    const int64_t ph = image ? 1 : p, pw = (image ? width : p) * depth;
    const int64_t unit_h = index ? ph : unit.height, unit_w = index ? pw : unit.width * depth;
    int64_t V = 16 / element_size(pred.element);
    // Half a word at a time where a token is not a whole number of words: features, histograms.
    if (V == 8 && pw % 8 == 4 && !std && target.element != kUInt8) V = 4;
    const bool nested =
        (unit_h % ph == 0 || ph % unit_h == 0) && (unit_w % pw == 0 || pw % unit_w == 0);
    if (!nested || pw % V || (unit_w < pw && unit_w % V)) return false;

    const bool flat = index && index.dims == 1, each = spec.reduction == kEach;
    const int64_t lines = height / ph, across = width * depth / pw;
    int64_t rows = at.batch, cells = lines * across;
    if (index) cells = flat ? (each ? 1 : index.numel()) : index.size(1);
    if (index) rows = flat ? (each ? index.numel() : 1) : index.size(0);
    const int64_t planes = image && !last ? at.channels : 1;
    const int64_t numbers = image ? pw : at.channels * p * p;

    const int64_t size = element_size(pred.element), pixel = element_size(target.element);
    const int64_t bytes = min_of<int64_t>(16, V * pixel);
    const int64_t word = V * size;
    const RowStrides from = strides_of(pred, image, last, cells);
    const auto words = [&](const Tensor& of, const RowStrides& by) {
        return reinterpret_cast<uintptr_t>(of.data) % uintptr_t(word) == 0 && whole(by.sample, V) &&
               whole(by.plane, V) && whole(by.cell, V);
    };
    bool fits = reinterpret_cast<uintptr_t>(target.data) % uintptr_t(bytes) == 0 &&
                words(pred, from) && whole(at.sb * pixel, bytes) && whole(at.sy * pixel, bytes) &&
                (last || whole(at.sc * pixel, bytes));
    RowStrides to{};
    if (grad) {
        to = strides_of(grad, image, last, cells);
        const bool dense = image && last ? grad.stride(1) == 1 && grad.stride(3) == at.channels
                                         : grad.stride(-1) == 1;
        fits = fits && dense && words(grad, to);
    }
    constexpr int64_t kMost = 0x7FFFFFFF;
    fits = fits && numbers <= kMost && cells <= kMost && rows * planes <= kMost &&
           from.cell * size <= kMost && to.cell * size <= kMost && height <= kMost &&
           width * depth <= kMost;
    if (!fits || !numbers) return false;

    WideLoss& w = *wide;
    w = {};
    w.pred_sample = from.sample * size;
    w.pred_plane = from.plane * size;
    w.pred_cell = int32_t(from.cell * size);
    w.grad_sample = to.sample * size;
    w.grad_plane = to.plane * size;
    w.grad_cell = int32_t(to.cell * size);
    w.target_sample = at.sb * pixel;
    w.target_channel = last ? 0 : at.sc * pixel;
    w.target_y = at.sy * pixel;
    w.planes = int32_t(planes);
    w.cells = int32_t(cells);
    w.numbers = int32_t(numbers);
    w.vector = int32_t(V);
    w.cells_across = int32_t(across);
    w.ph = int32_t(ph);
    w.pw = int32_t(pw);
    w.unit_h = int32_t(unit_h);
    w.unit_w = int32_t(unit_w);
    w.units_across = int32_t(units.width);
    w.fine = unit_h < ph || unit_w < pw;
    w.scaled = pred.element != kFloat16;
    w.parameter = float(with_loss(spec.kind, [&](auto l) { return l.parameter(spec.beta); }));
    w.unit = target.element == kUInt8 ? 255.0 : 1.0;
    w.cut = cut_rows(rows * planes, cells, numbers / V);
    const bool paired = pw % (2 * V) == 0 && (unit_w >= pw || unit_w % (2 * V) == 0) &&
                        w.cut.across % 2 == 0 && w.cut.across * w.cut.parts == numbers / V;
    const bool together = !w.fine && w.cut.across % kWarp == 0;
    w.paired = !paired ? 0 : together ? kAllLanes : 3;
    return w.cut.blocks(rows * planes) <= kMost;
}

bool plan_staged(const Tensor& pred, const Tensor& grad, const Tensor& target, const Tensor& mask,
                 const Tensor& index, const LossSpec& spec, WideLoss* wide, StagedCell* cell) {
    const ImageLayout at = image_layout(target);
    const int64_t p = prediction_patch(pred, at), height = at.size.height, width = at.size.width;
    const bool map = pred.dims == 4, last = at.sc == 1 && at.sx == at.channels && at.channels > 1;
    if (pred.element == kFloat64 || target.element == kFloat64 || p < 2) return false;
    if (target.element == kUInt16 || target.element == kInt16) return false;
    const bool pairs = p % 4 != 0;
    const int64_t W = pairs ? 2 : 4;
    if ((map && (last || pairs)) || (!last && at.sx != 1) || p % 2) return false;
    const Extent units = extent_from(mask, 1), unit = scale_of(at.size, units);
    if (!index && (unit.height % p || unit.width % p)) return false;
    const int64_t h = height / p, across = width / p, size = element_size(pred.element);
    const int64_t pixel = element_size(target.element), V = pairs ? 4 : 16 / size;
    const int64_t numbers = map ? p * h * across : at.channels * p * p;
    const int64_t most = pairs ? kStagedNumbers / 4 : kStagedNumbers;
    if (numbers % V || numbers > most || at.channels > kStagedChannels) return false;
    if (map && h * across > kStagedTokens) return false;

    const bool flat = index && index.dims == 1, each = spec.reduction == kEach;
    int64_t rows = at.batch, cells = map ? at.channels * p : h * across;
    if (index) cells = flat ? (each ? 1 : index.numel()) : index.size(1);
    if (index) rows = flat ? (each ? index.numel() : 1) : index.size(0);
    const auto strides = [&](const Tensor& of) -> RowStrides {
        if (map) return {of.stride(0), 0, p * of.stride(1)};
        if (of.dims == 2) return {cells * of.stride(0), 0, of.stride(0)};
        return {of.stride(0), 0, of.stride(1)};
    };
    const auto dense = [&](const Tensor& of) {
        const RowStrides by = strides(of);
        const bool rows_follow = !map || (of.stride(2) == across && of.stride(1) == h * across);
        return of.stride(-1) == 1 && rows_follow && whole(by.sample, V) && whole(by.cell, V) &&
               reinterpret_cast<uintptr_t>(of.data) % uintptr_t(V * size) == 0 &&
               by.cell * size <= 0x7FFFFFFF;
    };
    const bool aligned = reinterpret_cast<uintptr_t>(target.data) % uintptr_t(W * pixel) == 0 &&
                         whole(at.sb, W) && whole(at.sy, W) && (last || whole(at.sc, W));
    if (!aligned || !dense(pred) || (grad && !dense(grad))) return false;
    if (cells > 0x7FFFFFFF || rows > 0x7FFFFFFF) return false;

    const RowStrides from = strides(pred), to = grad ? strides(grad) : RowStrides{};
    WideLoss& w = *wide;
    w = {};
    w.pred_sample = from.sample * size;
    w.pred_cell = int32_t(from.cell * size);
    w.grad_sample = to.sample * size;
    w.grad_cell = int32_t(to.cell * size);
    w.target_sample = at.sb * pixel;
    w.target_channel = at.sc * pixel;
    w.target_y = at.sy * pixel;
    w.planes = w.cut.parts = 1;
    w.cells = int32_t(cells);
    w.numbers = int32_t(numbers);
    w.cells_across = int32_t(across);
    w.ph = int32_t(p);
    w.pw = int32_t(p);
    w.unit_h = int32_t(index ? p : unit.height);
    w.unit_w = int32_t(index ? p : unit.width);
    w.units_across = int32_t(units.width);
    w.scaled = pred.element != kFloat16;
    w.parameter = float(with_loss(spec.kind, [&](auto l) { return l.parameter(spec.beta); }));
    w.unit = target.element == kUInt8 ? 255.0 : 1.0;
    const bool interleaved = spec.order == kInterleaved;
    const int32_t side = int32_t(p), channels = int32_t(at.channels);
    StagedCell& s = *cell;
    s = {};
    s.size = int32_t(pixel);
    s.column = int32_t(last ? at.channels * pixel : pixel);
    s.channels = channels;
    s.p = side;
    s.pairs = pairs;
    s.run = 1;
    if (map) {  // lines: one of each token row; numbers of a line: (token column, dx)
        s.tokens = int32_t(h * across);
        s.tokens_across = int32_t(across);
        s.lines = s.inner_lines = int32_t(h);
        s.line = int32_t(width);
        s.inner_bytes = p * w.target_y;
        s.inner_place = int32_t(across);
        s.run = side;
        s.run_place = 1;
        s.number_place = s.tokens;
    } else if (last) {  // lines: dy; numbers: (dx, channel)
        w.pw = int32_t(p);
        s.lines = s.inner_lines = side;
        s.line = side * channels;
        s.inner_bytes = w.target_y;
        s.inner_place = interleaved ? side * channels : side;
        s.run = channels;
        s.run_place = interleaved ? channels : 1;
        s.number_place = interleaved ? 1 : side * side;
        s.late = !interleaved;
        w.target_channel = 0;
    } else {  // lines: (channel, dy); numbers: dx
        s.lines = side * channels;
        s.inner_lines = side;
        s.line = side;
        s.outer_bytes = w.target_channel;
        s.inner_bytes = w.target_y;
        s.outer_place = interleaved ? 1 : side * side;
        s.inner_place = interleaved ? side * channels : side;
        s.run_place = interleaved ? channels : 1;
    }
    const int64_t chunk =
        max_of<int64_t>(ceil_div(rows * cells, s.few() ? 4 * kRowBlocks : kRowBlocks), 16);
    w.cut.tiles = int32_t(max_of<int64_t>(ceil_div(cells, chunk), 1));
    w.cut.chunk = int32_t(ceil_div(cells, w.cut.tiles));
    // With channels innermost in both, every number would need its own statistics.
    if (last && interleaved) return false;
    return w.cut.blocks(rows) <= 0x7FFFFFFF;
}

SIMMIM_END
