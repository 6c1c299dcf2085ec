// The axial CNN of model/axial.py for training on a CPU: forward as in axial_strip.h, and the gradients of all weights.
//
// A clip's features before each branch are kept: the tape. The backward pass goes through a branch unit by unit: some
// bins whose features after the norm, before and after SiLU, and gradients stay in the caches while all products of them
// are taken. Each clip is one thread's, and the clips' gradients are added in the order of clips: the same to the bit for
// any number of threads.
//
// Compiled once for each instruction set (see setup.py), plain C linkage, no Python: model/axial_kernel.py.

#include "axial_strip.h"

#include <atomic>
#include <exception>
#include <memory>
#include <new>
#include <system_error>
#include <thread>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

constexpr int UNIT_VECTORS = 32;  // of positions whose products are summed in registers; more would leave the caches

inline int unit_bins(const Grid& grid) { return std::max(1, UNIT_VECTORS / grid.vectors()); }

// What lies where: each block's features before its three branches and before its compression.
struct Stage {
    Grid grid;
    bool compresses;
    size_t features[4], norms, factors;  // places on the tape, and in a clip's factors of dropout
    const float* const* weights;
    size_t gradients;
};

struct Plan {
    const Network& network;
    std::vector<Stage> stages;
    Grid result;
    size_t tape = 0, factors = 0, gradients = 0, room = 0;  // floats; the tape's and factors' of one clip

    explicit Plan(const Network& network) : network(network), result{} {
        const float* const* weight = network.weights + 1;
        Grid grid{network.bins, network.widths[0], network.frames};
        gradients = grid.channels;
        for (int block = 0; block < network.blocks; ++block) {
            Stage stage{grid, network.compresses[block] != 0, {}, 0, 0, weight, gradients};
            const size_t floats = grid.bins * grid.row(), channels = grid.channels;
            room = std::max(room, floats);
            for (int n = 0; n < (stage.compresses ? 4 : 3); ++n, tape += floats) stage.features[n] = tape;
            stage.norms = tape;
            tape += (12 * channels + LANES - 1) / LANES * LANES;
            stage.factors = factors;
            factors += 3 * channels;
            weight += 18;
            gradients += 13 * channels + 12 * channels * channels;
            if (stage.compresses) {
                weight += 1;
                gradients += 3 * channels * network.widths[block + 1];
                grid = Grid{grid.bins, network.widths[block + 1], (grid.frames + 1) / 2};
            }
            stages.push_back(stage);
        }
        result = grid;
        room = std::max(room, result.bins * result.row());
    }

    Grid after(int block) const { return block + 1 < network.blocks ? stages[block + 1].grid : result; }

    // Features of a block before branch n; n = 3: after its last branch.
    float* features(int block, int n, float* tape_at, float* last) const {
        if (n == 3 && !stages[block].compresses) ++block, n = 0;
        return block == static_cast<int>(stages.size()) ? last : tape_at + stages[block].features[n];
    }
};

// SiLU, and its slope.
inline __attribute__((always_inline)) void silu_and_slope(Vector& a, Vector& b, Vector& slope_a, Vector& slope_b) {
    slope_a = one_and_exponential(a), slope_b = one_and_exponential(b);
    invert(slope_a, slope_b);
    a *= slope_a;
    b *= slope_b;
    slope_a += a - a * slope_a;
    slope_b += b - b * slope_b;
}

template <int TAPS, int VECTORS>
struct SpreadBack {  // inputs after the norm, and gradients after the branch -> SiLU, and gradients before it
    const Branch& branch;
    const float* contract;  // [inner][channels], with scale and dropout
    int channels;
    const float* const (&inputs)[TAPS][VECTORS];
    size_t inputs_stride;
    const float* const (&changes)[1][VECTORS];
    size_t changes_stride;
    float* inner;  // VECTORS * LANES of each inner channel
    size_t inner_stride;
    float* const (&out)[VECTORS];
    size_t out_stride;
    float* bias;  // LANES of each inner channel

    template <int ROWS>
    void run(int first) const {
        Vector rows[ROWS][VECTORS], slopes[ROWS][VECTORS];
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECTORS; ++v) rows[r][v] = splat(branch.spread_bias[first + r]);
        const size_t stride = static_cast<size_t>(channels) * TAPS;
        add_product<TAPS, ROWS, VECTORS>(rows, branch.spread + first * stride, stride, inputs, inputs_stride, channels);
        Vector *flat = &rows[0][0], *slope = &slopes[0][0], spare{}, spare_slope{};
        int at = 0;
        for (; at + 1 < ROWS * VECTORS; at += 2) silu_and_slope(flat[at], flat[at + 1], slope[at], slope[at + 1]);
        if (at < ROWS * VECTORS) silu_and_slope(flat[at], spare, slope[at], spare_slope);
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECTORS; ++v) {
                store(inner + (first + r) * inner_stride + v * LANES, rows[r][v]);
                rows[r][v] = Vector{};
            }
        add_product<1, ROWS, VECTORS>(
            rows, contract + static_cast<size_t>(first) * channels, channels, changes, changes_stride, channels);
        for (int r = 0; r < ROWS; ++r) {
            Vector sum = load(bias + (first + r) * LANES);
            for (int v = 0; v < VECTORS; ++v) {
                const Vector change = rows[r][v] * slopes[r][v];
                store(out[v] + (first + r) * out_stride, change);
                sum += change;
            }
            store(bias + (first + r) * LANES, sum);
        }
    }
};

template <int TAPS, int VECTORS>
struct NormBack {  // gradients before SiLU -> gradients after the norm, and what the norm needs summed of them
    const float* spread;  // [channels][inner][TAPS, the last first]
    int inner_channels;
    const float* const (&inputs)[TAPS][VECTORS];
    size_t inputs_stride;
    const float* const (&features)[VECTORS];
    float* const (&out)[VECTORS];
    size_t out_stride;
    const Vector (&valid)[VECTORS];
    const float* means;
    float *sums, *products;  // LANES of each channel

    template <int ROWS>
    void run(int first) const {
        Vector rows[ROWS][VECTORS];
        clear(rows);
        const size_t stride = static_cast<size_t>(inner_channels) * TAPS;
        add_product<TAPS, ROWS, VECTORS>(rows, spread + first * stride, stride, inputs, inputs_stride, inner_channels);
        for (int r = 0; r < ROWS; ++r) {
            const int channel = first + r;
            const Vector mean = splat(means[channel]);
            Vector sum = load(sums + channel * LANES), product = load(products + channel * LANES);
            for (int v = 0; v < VECTORS; ++v) {
                const Vector change = rows[r][v] * valid[v];
                store(out[v] + channel * out_stride, change);
                sum += change;
                product += change * (load(features[v] + channel * out_stride) - mean);
            }
            store(sums + channel * LANES, sum);
            store(products + channel * LANES, product);
        }
    }
};

template <int VECTORS>
struct CompressBack {  // gradients after the compression -> those before it, even and odd frames apart
    const float *to_even, *to_odd;  // [channels][wide], [channels][wide][2]
    int wide;
    const float* const (&here)[1][VECTORS];
    const float* const (&next_and_here)[2][VECTORS];
    size_t inputs_stride;
    float* const (&even)[VECTORS];
    float* const (&odd)[VECTORS];
    size_t out_stride;

    template <int ROWS>
    void run(int first) const {
        const size_t stride = wide;
        Vector rows[ROWS][VECTORS];
        clear(rows);
        add_product<1, ROWS, VECTORS>(rows, to_even + first * stride, stride, here, inputs_stride, wide);
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECTORS; ++v) {
                store(even[v] + (first + r) * out_stride, rows[r][v]);
                rows[r][v] = Vector{};
            }
        add_product<2, ROWS, VECTORS>(rows, to_odd + 2 * first * stride, 2 * stride, next_and_here, inputs_stride, wide);
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECTORS; ++v) store(odd[v] + (first + r) * out_stride, rows[r][v]);
    }
};

// Channels `stride` apart, with their vectors at these places.
struct Side {
    const float* from;
    size_t stride;
    const std::vector<size_t>& places;
    int count;
};

constexpr int OUTER_COLUMNS = 4, OUTER_ROWS = LANES / OUTER_COLUMNS;

inline size_t outer_room(int rows, int columns) {
    return static_cast<size_t>((rows + OUTER_ROWS - 1) / OUTER_ROWS) * ((columns + OUTER_COLUMNS - 1) / OUTER_COLUMNS) * LANES;
}

// Adds to `tiles` the product of these channels, summed over all places: OUTER_ROWS x OUTER_COLUMNS numbers to a vector.
// Rows stay in the first cache: the side that lies across its lines.
inline void add_outer(const Side& rows, const Side& columns, float* tiles) {
    const size_t vectors = rows.places.size();
    const size_t *row_at = rows.places.data(), *column_at = columns.places.data();
    for (int row = 0; row < rows.count; row += OUTER_ROWS)
        for (int column = 0; column < columns.count; column += OUTER_COLUMNS, tiles += LANES) {
            const float *left[OUTER_ROWS], *right[OUTER_COLUMNS];  // over the edge: the last one again
            for (int r = 0; r < OUTER_ROWS; ++r) left[r] = rows.from + std::min(row + r, rows.count - 1) * rows.stride;
            for (int c = 0; c < OUTER_COLUMNS; ++c)
                right[c] = columns.from + std::min(column + c, columns.count - 1) * columns.stride;
            Vector products[OUTER_ROWS][OUTER_COLUMNS];
            clear(products);
            for (size_t v = 0; v < vectors; ++v) {
                Vector b[OUTER_COLUMNS];
#pragma GCC unroll 8
                for (int c = 0; c < OUTER_COLUMNS; ++c) b[c] = load(right[c] + column_at[v]);
#pragma GCC unroll 8
                for (int r = 0; r < OUTER_ROWS; ++r) {
                    const Vector a = load(left[r] + row_at[v]);
#pragma GCC unroll 8
                    for (int c = 0; c < OUTER_COLUMNS; ++c) products[r][c] += a * b[c];
                }
            }
            Vector lanes[LANES];
#pragma GCC unroll 16
            for (int at = 0; at < LANES; ++at) lanes[at] = products[at / OUTER_COLUMNS][at % OUTER_COLUMNS];
            store(tiles, load(tiles) + sums(lanes));
        }
}

// The numbers of such tiles, one by one: into[row * row_step + column * column_step].
inline void spread_tiles(const float* tiles, int rows, int columns, float* into, size_t row_step, size_t column_step) {
    for (int row = 0; row < rows; row += OUTER_ROWS)
        for (int column = 0; column < columns; column += OUTER_COLUMNS, tiles += LANES)
            for (int r = 0; r < std::min(OUTER_ROWS, rows - row); ++r)
                for (int c = 0; c < std::min(OUTER_COLUMNS, columns - column); ++c)
                    into[(row + r) * row_step + (column + c) * column_step] = tiles[r * OUTER_COLUMNS + c];
}

inline float sum_of_lanes(const float* from) {
    float sum = 0;
    for (int lane = 0; lane < LANES; ++lane) sum += from[lane];
    return sum;
}

// One thread's way back through a clip. `changes`: the loss's gradient with respect to the features where it is.
class Backward {
public:
    explicit Backward(const Plan& plan) : plan_(plan), changes_(plan.room), other_(plan.room) {
        size_t slots = 0, splits = 0, inner = 0, most = 0;
        const auto see = [&](const Grid& grid, int inner_channels) {
            const size_t bins = unit_bins(grid), row = static_cast<size_t>(grid.vectors() + 1) * LANES;
            slots = std::max(slots, (bins + 3) * (inner_channels * row + LANES));
            inner = std::max(inner, inner_channels * bins * grid.vectors() * LANES);
            most = std::max(most, static_cast<size_t>(inner_channels));
        };
        for (size_t at = 0; at < plan.stages.size(); ++at) {
            const Grid& grid = plan.stages[at].grid;
            see(grid, 2 * grid.channels);
            if (!plan.stages[at].compresses) continue;
            const Grid& smaller = at + 1 < plan.stages.size() ? plan.stages[at + 1].grid : plan.result;
            see(smaller, smaller.channels);
            splits = std::max(splits, static_cast<size_t>(unit_bins(smaller)) * grid.channels * 2 * (smaller.vectors() + 1) * LANES);
        }
        normed_.resize(std::max(slots, splits + LANES));
        inner_changes_.resize(slots);
        inner_.resize(inner);
        contract_.resize(most * most), spread_.resize(3 * most * most);
        for (Floats& tiles : tiles_) tiles.resize(outer_room(most, most));
        bias_.resize(most * LANES), sums_.resize(most * LANES), products_.resize(most * LANES);
    }

    // The gradients of all weights by a clip; `gradient`: the loss's with respect to the result.
    void clip(const float* cqt, const float* factors, float* tape, const float* gradient, float* into) {
        const auto at = [&](int block, int n) { return plan_.features(block, n, tape, nullptr); };
        begin(plan_.result, gradient);
        for (int block = plan_.network.blocks - 1; block >= 0; --block) {
            const Stage& stage = plan_.stages[block];
            const Grid& grid = stage.grid;
            const size_t channels = grid.channels;
            const size_t axial = 4 * channels + 4 * channels * channels, pointwise = axial + channels;  // gradients of a branch
            float* to = into + stage.gradients;
            if (stage.compresses)
                compress(grid, plan_.after(block), stage.weights[18], at(block, 3), to + 2 * axial + pointwise);
            const float* const* weight = stage.weights;
            const Branch first = Network::next(weight), second = Network::next(weight), third = Network::next(weight);
            const float *factor = factors + stage.factors, *norms = tape + stage.norms;
            branch<POINTWISE>(grid, third, factor + 2 * channels, norms + 8 * channels, at(block, 2), to + 2 * axial);
            branch<ALONG_TIME>(grid, second, factor + channels, norms + 4 * channels, at(block, 1), to + axial);
            branch<ALONG_FREQUENCY>(grid, first, factor, norms, at(block, 0), to);
        }
        project(plan_.stages[0].grid, cqt, into);
    }

private:
    void begin(const Grid& grid, const float* gradient) {
        const int padded = grid.vectors() * LANES;
        for (int row = 0; row < grid.bins * grid.channels; ++row) {
            float* to = changes_.data() + static_cast<size_t>(row) * padded;
            std::copy_n(gradient + static_cast<size_t>(row) * grid.frames, grid.frames, to);
            std::fill(to + grid.frames, to + padded, 0.0f);
        }
    }

    // `norms`: gain, shift, mean and inverse of each channel. `into`: the gradients of this branch's weights.
    template <Axis AXIS>
    void branch(const Grid& grid, const Branch& branch, const float* factors, const float* norms, const float* features, float* into) {
        constexpr int TAPS = AXIS == POINTWISE ? 1 : 3, REACH = AXIS == ALONG_FREQUENCY ? 1 : 0;
        const int channels = grid.channels, inner = AXIS == POINTWISE ? 2 * channels : channels;
        float *norm_gain = into, *norm_bias = norm_gain + channels, *spread = norm_bias + channels;
        float *spread_bias = spread + static_cast<size_t>(inner) * channels * TAPS, *contract = spread_bias + inner;
        float* scale = contract + static_cast<size_t>(channels) * inner;
        std::fill_n(tiles_[3].begin(), outer_room(channels, inner), 0.0f);
        for (int tap = 0; tap < TAPS; ++tap) std::fill_n(tiles_[tap].begin(), outer_room(channels, inner), 0.0f);
        for (int i = 0; i < inner; ++i)
            for (int c = 0; c < channels; ++c) {
                contract_[static_cast<size_t>(i) * channels + c] = branch.contract[static_cast<size_t>(c) * inner + i] * branch.scale[c] * factors[c];
                for (int tap = 0; tap < TAPS; ++tap)
                    spread_[(static_cast<size_t>(c) * inner + i) * TAPS + TAPS - 1 - tap] =
                        branch.spread[(static_cast<size_t>(i) * channels + c) * TAPS + tap];
            }
        std::fill_n(bias_.begin(), inner * LANES, 0.0f);
        std::fill_n(sums_.begin(), channels * LANES, 0.0f);
        std::fill_n(products_.begin(), channels * LANES, 0.0f);
        start(grid, unit_bins(grid), channels, inner);
        int ready = -REACH, done = 0;
        if (REACH) std::fill_n(inner_slot(-1), inner_slot_, 0.0f);
        for (int first = 0; first < grid.bins; first += unit_bins(grid)) {
            const int end = std::min(first + unit_bins(grid), grid.bins), total = (end - first) * vectors_;
            for (; ready < end + REACH; ++ready) normalise(grid, norms, features, ready);
            int at = 0;
            for (; at + TILE_VECTORS <= total; at += TILE_VECTORS) spread_back<TAPS, REACH, TILE_VECTORS>(grid, branch, first, at);
            for (; at < total; ++at) spread_back<TAPS, REACH, 1>(grid, branch, first, at);
            place(grid, first, end);
            add_outer(
                {changes_.data(), features_stride_, places_, channels}, {inner_.data(), inner_stride_, packed_, inner}, tiles_[3].data());
            for (int tap = 0; tap < TAPS; ++tap) {
                const std::vector<size_t>& near = REACH ? near_[tap] : near_[1];
                add_outer(
                    {normed_.data() + LANES + (AXIS == ALONG_TIME ? tap - 1 : 0), stride_, near, channels},
                    {inner_changes_.data() + LANES, stride_, inner_places_, inner}, tiles_[tap].data());
            }
            if (REACH && end == grid.bins) std::fill_n(inner_slot(end), inner_slot_, 0.0f);
            const int until = end == grid.bins ? end : end - REACH, ready_vectors = (until - done) * vectors_;
            at = 0;
            for (; at + TILE_VECTORS <= ready_vectors; at += TILE_VECTORS)
                norm_back<TAPS, REACH, TILE_VECTORS>(grid, inner, norms, features, done, at);
            for (; at < ready_vectors; ++at) norm_back<TAPS, REACH, 1>(grid, inner, norms, features, done, at);
            done = std::max(done, until);
        }
        spread_tiles(tiles_[3].data(), channels, inner, contract, inner, 1);
        for (int tap = 0; tap < TAPS; ++tap)
            spread_tiles(tiles_[tap].data(), channels, inner, spread + tap, TAPS, static_cast<size_t>(channels) * TAPS);
        for (int i = 0; i < inner; ++i) spread_bias[i] = sum_of_lanes(&bias_[i * LANES]);
        for (int c = 0; c < channels; ++c) {
            float sum = 0;
            for (int i = 0; i < inner; ++i) {
                float& product = contract[static_cast<size_t>(c) * inner + i];
                sum += product * branch.contract[static_cast<size_t>(c) * inner + i];
                product *= factors[c] * branch.scale[c];
            }
            scale[c] = factors[c] * sum;
            norm_bias[c] = sum_of_lanes(&sums_[c * LANES]);
            norm_gain[c] = sum_of_lanes(&products_[c * LANES]) * norms[3 * channels + c];
        }
        through_norm(grid, norms, features, norm_gain, norm_bias);
    }

    void compress(const Grid& grid, const Grid& smaller, const float* weights, const float* features, float* into) {
        const int channels = grid.channels, wide = smaller.channels, bins = unit_bins(smaller);
        const size_t half = static_cast<size_t>(smaller.vectors() + 1) * LANES, split_row = channels * 2 * half;
        for (int tap = 0; tap < 3; ++tap) std::fill_n(tiles_[tap].begin(), outer_room(channels, wide), 0.0f);
        float *to_even = contract_.data(), *to_odd = spread_.data();
        for (int c = 0; c < channels; ++c)
            for (int o = 0; o < wide; ++o) {
                const float* taps = weights + (static_cast<size_t>(o) * channels + c) * 3;
                const size_t at = static_cast<size_t>(c) * wide + o;
                to_odd[2 * at] = taps[0], to_even[at] = taps[1], to_odd[2 * at + 1] = taps[2];
            }
        start(smaller, bins, 0, wide);
        std::fill_n(normed_.begin(), bins * split_row + LANES, 0.0f);
        std::vector<size_t>& split_places = near_[1];
        for (int first = 0; first < grid.bins; first += bins) {
            const int end = std::min(first + bins, grid.bins), total = (end - first) * vectors_;
            for (int bin = first; bin < end; ++bin) {
                split(grid, features + bin * grid.row(), normed_.data() + (bin - first) * split_row, half);
                for (int o = 0; o < wide; ++o)
                    std::copy_n(
                        changes_.data() + bin * smaller.row() + o * features_stride_, features_stride_,
                        inner_slot(bin) + o * stride_ + LANES);
            }
            place(smaller, first, end);
            for (int v = 0; v < total; ++v) split_places[v] = v / vectors_ * split_row + v % vectors_ * LANES;
            const float* odd = normed_.data() + LANES;
            const float* taps[3] = {odd - 1, odd + half, odd};
            for (int tap = 0; tap < 3; ++tap)
                add_outer(
                    {taps[tap], 2 * half, split_places, channels}, {inner_changes_.data() + LANES, stride_, inner_places_, wide},
                    tiles_[tap].data());
            int at = 0;
            for (; at + TILE_VECTORS <= total; at += TILE_VECTORS) compress_back<TILE_VECTORS>(channels, wide, half, at);
            for (; at < total; ++at) compress_back<1>(channels, wide, half, at);
            for (int bin = first; bin < end; ++bin)
                join(grid, normed_.data() + (bin - first) * split_row, half, other_.data() + bin * grid.row());
        }
        for (int tap = 0; tap < 3; ++tap)
            spread_tiles(tiles_[tap].data(), channels, wide, into + tap, 3, static_cast<size_t>(channels) * 3);
        changes_.swap(other_);
    }

    void project(const Grid& grid, const float* cqt, float* into) {
        std::fill_n(sums_.begin(), grid.channels * LANES, 0.0f);
        const int padded = grid.vectors() * LANES;
        Floats& row = inner_;
        std::fill_n(row.begin(), padded, 0.0f);
        for (int bin = 0; bin < grid.bins; ++bin) {
            std::copy_n(cqt + static_cast<size_t>(bin) * grid.frames, grid.frames, row.begin());
            const float* change = changes_.data() + bin * grid.row();
            for (int c = 0; c < grid.channels; ++c) {
                Vector sum = load(&sums_[c * LANES]);
                for (int at = 0; at < padded; at += LANES, change += LANES) sum += load(change) * load(&row[at]);
                store(&sums_[c * LANES], sum);
            }
        }
        for (int c = 0; c < grid.channels; ++c) into[c] = sum_of_lanes(&sums_[c * LANES]);
    }

    void start(const Grid& grid, int bins, int channels, int inner) {
        vectors_ = grid.vectors();
        features_stride_ = static_cast<size_t>(vectors_) * LANES;
        stride_ = features_stride_ + LANES;
        slots_ = bins + 3;
        slot_ = channels * stride_ + LANES, inner_slot_ = inner * stride_ + LANES;
        inner_stride_ = bins * features_stride_;
        // Zeros between the channels: what a convolution finds over the edge.
        for (int n = 0; n < slots_; ++n) {
            if (channels)
                for (int c = 0; c <= channels; ++c) std::fill_n(&normed_[n * slot_ + c * stride_], LANES, 0.0f);
            for (int i = 0; i <= inner; ++i) std::fill_n(&inner_changes_[n * inner_slot_ + i * stride_], LANES, 0.0f);
        }
        for (int lane = 0; lane < LANES; ++lane) last_[lane] = (vectors_ - 1) * LANES + lane < grid.frames ? 1.0f : 0.0f;
    }

    size_t slot_of(int bin) const { return (bin + slots_) % slots_; }
    float* inner_slot(int bin) { return inner_changes_.data() + slot_of(bin) * inner_slot_; }
    float* slot(int bin) { return normed_.data() + slot_of(bin) * slot_; }

    void normalise(const Grid& grid, const float* norms, const float* features, int bin) {
        if (bin < 0 || bin >= grid.bins) {
            std::fill_n(slot(bin), slot_, 0.0f);
            return;
        }
        const float* from = features + bin * grid.row();
        float* out = slot(bin) + LANES;
        for (int c = 0; c < grid.channels; ++c, out += stride_) {
            const Vector gain = splat(norms[c]), shift = splat(norms[grid.channels + c]);
            for (int v = 0; v < vectors_; ++v, from += LANES) store(out + v * LANES, load(from) * gain + shift);
            float* last = out + (vectors_ - 1) * LANES;
            store(last, load(last) * last_);
        }
    }

    // Where the vectors of these bins lie.
    void place(const Grid& grid, int first, int end) {
        const int total = (end - first) * vectors_;
        for (std::vector<size_t>* places : {&places_, &packed_, &inner_places_, &near_[0], &near_[1], &near_[2]})
            places->resize(total);
        for (int v = 0; v < total; ++v) {
            const int bin = first + v / vectors_;
            const size_t at = static_cast<size_t>(v % vectors_) * LANES;
            places_[v] = bin * grid.row() + at;
            packed_[v] = static_cast<size_t>(v) * LANES;
            inner_places_[v] = slot_of(bin) * inner_slot_ + at;
            for (int tap = 0; tap < 3; ++tap) near_[tap][v] = slot_of(bin + tap - 1) * slot_ + at;
        }
    }

    template <int TAPS, int REACH, int VECTORS>
    void spread_back(const Grid& grid, const Branch& branch, int first, int at) {
        const float *inputs[TAPS][VECTORS], *changes[1][VECTORS];
        float* out[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            const int bin = first + (at + v) / vectors_;
            const size_t place = static_cast<size_t>((at + v) % vectors_) * LANES;
            for (int tap = 0; tap < TAPS; ++tap) {
                const int off = TAPS == 3 ? tap - 1 : 0;
                inputs[tap][v] = slot(bin + off * REACH) + LANES + place + off * (1 - REACH);
            }
            changes[0][v] = changes_.data() + bin * grid.row() + place;
            out[v] = inner_slot(bin) + LANES + place;
        }
        const int inner = TAPS == 1 ? 2 * grid.channels : grid.channels;
        for_tiles(inner, SpreadBack<TAPS, VECTORS>{
            branch, contract_.data(), grid.channels, inputs, stride_, changes, features_stride_,
            inner_.data() + static_cast<size_t>(at) * LANES, inner_stride_, out, stride_, bias_.data()});
    }

    template <int TAPS, int REACH, int VECTORS>
    void norm_back(const Grid& grid, int inner, const float* norms, const float* features, int first, int at) {
        const float *inputs[TAPS][VECTORS], *from[VECTORS];
        float* out[VECTORS];
        Vector valid[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            const int bin = first + (at + v) / vectors_, in_row = (at + v) % vectors_;
            const size_t place = static_cast<size_t>(in_row) * LANES;
            for (int tap = 0; tap < TAPS; ++tap) {
                const int off = TAPS == 3 ? tap - 1 : 0;
                inputs[tap][v] = inner_slot(bin + off * REACH) + LANES + place + off * (1 - REACH);
            }
            from[v] = features + bin * grid.row() + place;
            out[v] = other_.data() + bin * grid.row() + place;
            valid[v] = in_row == vectors_ - 1 ? last_ : splat(1.0f);
        }
        for_tiles(grid.channels, NormBack<TAPS, VECTORS>{
            spread_.data(), inner, inputs, stride_, from, out, features_stride_, valid, norms + 2 * grid.channels, sums_.data(),
            products_.data()});
    }

    // Adds to the changes what comes through the norm.
    void through_norm(const Grid& grid, const float* norms, const float* features, const float* norm_gain, const float* norm_bias) {
        const int channels = grid.channels;
        const float count = static_cast<float>(grid.bins) * grid.frames;
        float* change = changes_.data();
        const float* after = other_.data();
        for (int bin = 0; bin < grid.bins; ++bin)
            for (int c = 0; c < channels; ++c) {
                const float inverse = norms[3 * channels + c];
                const Vector gain = splat(norms[c]), mean = splat(norms[2 * channels + c]);
                const Vector level = splat(norm_bias[c] / count), tilt = splat(norm_gain[c] / count * inverse);
                const auto add = [&](const Vector& valid) {
                    store(change, load(change) + gain * valid * (load(after) - level - (load(features) - mean) * tilt));
                    change += LANES, after += LANES, features += LANES;
                };
                for (int v = 0; v < vectors_ - 1; ++v) add(splat(1.0f));
                add(last_);
            }
    }

    // Of each channel: LANES zeros, odd frames, LANES zeros, even frames.
    static void split(const Grid& grid, const float* from, float* to, size_t half) {
        const int padded = grid.vectors() * LANES;
        for (int c = 0; c < grid.channels; ++c, from += padded, to += 2 * half) {
            float *odd = to + LANES, *even = odd + half;
            for (int u = 0; u < grid.frames / 2; ++u) even[u] = from[2 * u], odd[u] = from[2 * u + 1];
            if (grid.frames % 2) even[grid.frames / 2] = from[grid.frames - 1], odd[grid.frames / 2] = 0.0f;
        }
    }

    static void join(const Grid& grid, const float* from, size_t half, float* to) {
        const int padded = grid.vectors() * LANES;
        for (int c = 0; c < grid.channels; ++c, from += 2 * half, to += padded) {
            const float *odd = from + LANES, *even = odd + half;
            for (int u = 0; u < grid.frames / 2; ++u) to[2 * u] = even[u], to[2 * u + 1] = odd[u];
            if (grid.frames % 2) to[grid.frames - 1] = even[grid.frames / 2];
            std::fill(to + grid.frames, to + padded, 0.0f);
        }
    }

    template <int VECTORS>
    void compress_back(int channels, int wide, size_t half, int at) {
        const float *here[1][VECTORS], *next_and_here[2][VECTORS];
        float *even[VECTORS], *odd[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            here[0][v] = next_and_here[1][v] = inner_changes_.data() + LANES + inner_places_[at + v];
            next_and_here[0][v] = here[0][v] + 1;
            odd[v] = normed_.data() + LANES + near_[1][at + v];
            even[v] = odd[v] + half;
        }
        for_tiles(channels, CompressBack<VECTORS>{
            contract_.data(), spread_.data(), wide, here, next_and_here, stride_, even, odd, 2 * half});
    }

    const Plan& plan_;
    Floats changes_, other_, normed_, inner_changes_, inner_, contract_, spread_, bias_, sums_, products_;
    Floats tiles_[4];  // three taps of a convolution, and the contraction
    std::vector<size_t> places_, packed_, inner_places_, near_[3];
    size_t features_stride_ = 0, stride_ = 0, slot_ = 0, inner_slot_ = 0, inner_stride_ = 0;
    int vectors_ = 0, slots_ = 1;
    Vector last_{};
};

// One thread's room, and its way through a clip.
class Trainee {
public:
    explicit Trainee(const Plan& plan)
        : plan_(plan), channels_(*std::max_element(plan.network.widths, plan.network.widths + plan.network.blocks + 1)),
          shared_(plan.network.bins, channels_),
          strip_(shared_, alone_, 0, plan.network.bins, plan.network.widest(3), static_cast<size_t>(2) * channels_ * TILE_VECTORS * LANES, channels_),
          last_(plan.room), scale_(channels_) {}

    void forward(const float* cqt, const float* factors, float* tape, float* out) {
        strip_.project(plan_.stages[0].grid, cqt, plan_.network.weights[0], at(0, 0, tape));
        for (int block = 0; block < plan_.network.blocks; ++block) {
            branches(block, factors, tape);
            const Stage& stage = plan_.stages[block];
            if (!stage.compresses) continue;
            const Grid smaller = plan_.after(block);
            strip_.compress(stage.grid, smaller, stage.weights[18], at(block + 1, 0, tape));
        }
        strip_.give(plan_.result, out);
    }

private:
    float* at(int block, int n, float* tape) { return plan_.features(block, n, tape, last_.data()); }

    void branches(int block, const float* factors, float* tape) {
        const Stage& stage = plan_.stages[block];
        const float* const* weight = stage.weights;
        for (int n = 0; n < 3; ++n) {
            Branch branch = Network::next(weight);
            const float* factor = factors + stage.factors + n * stage.grid.channels;
            for (int c = 0; c < stage.grid.channels; ++c) scale_[c] = branch.scale[c] * factor[c];
            branch.scale = scale_.data();
            float* to = at(block, n + 1, tape);
            if (n == 0) strip_.add_branch<ALONG_FREQUENCY>(stage.grid, branch, plan_.network.epsilon, to);
            if (n == 1) strip_.add_branch<ALONG_TIME>(stage.grid, branch, plan_.network.epsilon, to);
            if (n == 2) strip_.add_branch<POINTWISE>(stage.grid, branch, plan_.network.epsilon, to);
            float* norms = tape + stage.norms + 4 * n * stage.grid.channels;
            const Norm& norm = strip_.norm();
            for (const Floats* part : {&norm.gain, &norm.shift, &norm.mean, &norm.inverse})
                norms = std::copy_n(part->begin(), stage.grid.channels, norms);
        }
    }

    const Plan& plan_;
    const int channels_;
    Team alone_{1};
    Shared shared_;
    Strip strip_;
    Floats last_, scale_;
};

// Fresh memory comes page by page, each with a visit to the system: let it be large ones, where there are any.
inline void in_large_pages(float* from, size_t floats) {
#if defined(MADV_HUGEPAGE)
    constexpr uintptr_t PAGE = 1 << 21;
    const uintptr_t first = (reinterpret_cast<uintptr_t>(from) + PAGE - 1) / PAGE * PAGE;
    const uintptr_t end = reinterpret_cast<uintptr_t>(from + floats) / PAGE * PAGE;
    if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
    (void)from, (void)floats;
#endif
}

// Calls work(thread) in so many threads, or in as many as there are to be had.
template <class Work>
void in_threads(int threads, const Work& work) {
    std::vector<std::thread> others;
    others.reserve(threads);
    try {
        for (int n = 1; n < threads; ++n) others.emplace_back([&work, n] { work(n); });
    } catch (const std::system_error&) {
    }
    work(0);
    for (std::thread& other : others) other.join();
}

}  // namespace

// Floats that a clip's tape takes.
extern "C" int64_t phalar_axial_tape(
    int32_t bins, int32_t frames, int32_t blocks, const int32_t* widths, const int32_t* compresses) {
    const Network network{bins, frames, blocks, widths, compresses, nullptr, 0};
    return static_cast<int64_t>(Plan(network).tape);
}

// float32 cqt (clips, bins, frames), factors of dropout (clips, channels of all branches) -> float32 out (clips, bins,
// channels, steps) and the tape (clips, floats), aligned to whatever a float is. Returns a Status.
extern "C" int phalar_axial_forward(
    const float* cqt, const float* factors, float* tape, float* out, int32_t clips, int32_t bins, int32_t frames, int32_t blocks,
    const int32_t* widths, const int32_t* compresses, const float* const* weights, float epsilon,
    int32_t threads) try {
    const Network network{bins, frames, blocks, widths, compresses, weights, epsilon};
    const Plan plan(network);
    const size_t clip_in = static_cast<size_t>(bins) * frames;
    const size_t clip_out = static_cast<size_t>(bins) * plan.result.channels * plan.result.frames;
    threads = std::max(1, std::min(threads, clips));
    in_large_pages(tape, clips * plan.tape);
    std::vector<std::unique_ptr<Trainee>> trainees;
    for (int n = 0; n < threads; ++n) trainees.push_back(std::make_unique<Trainee>(plan));
    std::atomic<int> next{0};
    in_threads(threads, [&](int thread) {
        for (int clip = next++; clip < clips; clip = next++)
            trainees[thread]->forward(cqt + clip * clip_in, factors + clip * plan.factors, tape + clip * plan.tape, out + clip * clip_out);
    });
    return DONE;
} catch (const std::bad_alloc&) {
    return NO_MEMORY;
}

// The same, with the loss's gradient with respect to `out` -> those of all weights, one after the other, summed over clips.
extern "C" int phalar_axial_backward(
    const float* cqt, const float* factors, float* tape, const float* gradient, float* gradients, int32_t clips, int32_t bins,
    int32_t frames, int32_t blocks, const int32_t* widths, const int32_t* compresses,
    const float* const* weights, float epsilon, int32_t threads) try {
    const Network network{bins, frames, blocks, widths, compresses, weights, epsilon};
    const Plan plan(network);
    const size_t clip_in = static_cast<size_t>(bins) * frames;
    const size_t clip_out = static_cast<size_t>(bins) * plan.result.channels * plan.result.frames;
    threads = std::max(1, std::min(threads, clips));
    struct Place {
        Backward back;
        Floats gradients;
        explicit Place(const Plan& plan) : back(plan), gradients(plan.gradients) {}
    };
    std::vector<std::unique_ptr<Place>> places;
    for (int n = 0; n < threads; ++n) places.push_back(std::make_unique<Place>(plan));
    std::vector<double> sums(plan.gradients);
    std::atomic<int> next{0};
    int added = 0;
    std::mutex mutex;
    std::condition_variable turn;
    in_threads(threads, [&](int thread) {
        Place& place = *places[thread];
        for (int clip = next++; clip < clips; clip = next++) {
            place.back.clip(
                cqt + clip * clip_in, factors + clip * plan.factors, tape + clip * plan.tape, gradient + clip * clip_out,
                place.gradients.data());
            std::unique_lock<std::mutex> lock(mutex);
            turn.wait(lock, [&] { return added == clip; });
            for (size_t at = 0; at < plan.gradients; ++at) sums[at] += place.gradients[at];
            ++added;
            turn.notify_all();
        }
    });
    for (size_t at = 0; at < plan.gradients; ++at) gradients[at] = static_cast<float>(sums[at]);
    return DONE;
} catch (const std::bad_alloc&) {
    return NO_MEMORY;
}
