// Features in registers and caches: what axial_kernel.cpp (inference) and axial_training.cpp are made of.
//
// Features lie as [bin][channel][frame], frames padded to whole vectors: a vector holds frames of one channel, a weight
// is one number for all its lanes, and so no width of the network wastes any. A pass takes a few vectors at a time
// through norm, convolution, SiLU, contraction and residual while they are in registers and the first cache, and leaves
// each row's mean and squared deviations behind for the next norm. Rows are summed up in the order of bins, whoever
// computed them: the result is the same to the bit for any number of threads and any batch.

#pragma once

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

#include <immintrin.h>

namespace {

// Accumulators (channels x vectors), a row of inputs and a weight fill the registers of each instruction set.
#if defined(__AVX512F__)
constexpr int LANES = 16, TILE_VECTORS = 4, TILE_CHANNELS = 6;
#elif defined(__AVX2__)
constexpr int LANES = 8, TILE_VECTORS = 3, TILE_CHANNELS = 4;
#else
#error "needs AVX2 or AVX-512: elsewhere model/axial.py runs its matrix products"
#endif

// Vectors that lie across two lines of the cache take twice as long to load.
template <class Number>
struct InLines {
    typedef Number value_type;
    Number* allocate(size_t count) { return static_cast<Number*>(::operator new(count * sizeof(Number), LINE)); }
    void deallocate(Number* at, size_t) { ::operator delete(at, LINE); }
    bool operator==(const InLines&) const { return true; }
    bool operator!=(const InLines&) const { return false; }
    static constexpr std::align_val_t LINE{64};
};

typedef std::vector<float, InLines<float>> Floats;

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

inline Vector load(const float* at) { return *reinterpret_cast<const Unaligned*>(at); }
inline void store(float* at, Vector value) { *reinterpret_cast<Unaligned*>(at) = value; }
inline Vector splat(float value) { return value - Vector{}; }

#if defined(__AVX512F__)
// With a mask of all lanes, which costs nothing: of those without, GCC 12 warns that they read what nobody wrote.
constexpr __mmask16 ALL = 0xffff;
inline Vector larger(Vector a, Vector b) { return _mm512_maskz_max_ps(ALL, a, b); }
inline Vector smaller(Vector a, Vector b) { return _mm512_maskz_min_ps(ALL, a, b); }
#else
inline Vector larger(Vector a, Vector b) { return _mm256_max_ps(a, b); }
inline Vector smaller(Vector a, Vector b) { return _mm256_min_ps(a, b); }
#endif

// 1 + exp(-x), with x no lower than -43, where SiLU is zero to any sum, so that two of these can be multiplied.
inline __attribute__((always_inline)) Vector one_and_exponential(Vector x) {
    const Vector low = splat(-43.0f), high = splat(87.0f), shift = splat(12582912.0f);  // 1.5 * 2^23: rounds to integers
    x = smaller(larger(x, low), high);
    const Vector rounded = x * -1.44269504f + shift;
    const Vector whole = rounded - shift;
    const Vector part = x * -1.44269504f - whole;  // -0.5 to 0.5
    Vector power = splat(0.0013276470126584172f);
    power = power * part + 0.009675540961325169f;
    power = power * part + 0.05550713092088699f;
    power = power * part + 0.24022120237350464f;
    power = power * part + 0.6931469440460205f;
    power = power * part + 1.0000001192092896f;
    const Integers exponent = reinterpret_cast<Integers>(rounded) << 23;
    return reinterpret_cast<Vector>(reinterpret_cast<Integers>(power) + exponent) + 1.0f;
}

// 1 / a and 1 / b. A division costs as much as the rest of a SiLU: two share one, or an estimate is made exact to rounding.
inline __attribute__((always_inline)) void invert(Vector& a, Vector& b) {
#if defined(__AVX512F__)
    for (Vector* of : {&a, &b}) {
        const Vector estimate = _mm512_maskz_rcp14_ps(ALL, *of);
        *of = estimate + estimate * (1.0f - *of * estimate);
    }
#else
    const Vector inverse = 1.0f / (a * b), of_a = inverse * b;
    b = inverse * a;
    a = of_a;
#endif
}

inline __attribute__((always_inline)) void silu(Vector& a, Vector& b) {
    Vector part_a = one_and_exponential(a), part_b = one_and_exponential(b);
    invert(part_a, part_b);
    a *= part_a;
    b *= part_b;
}

// Lane l of the result takes two lanes of `a` where l has the bit STEP not set, of `b` where it has.
template <int STEP>
inline Vector halve(Vector a, Vector b) {
#if defined(__clang__)
    Vector sum;
    for (int lane = 0; lane < LANES; ++lane) sum[lane] = lane & STEP ? b[lane] + b[lane ^ STEP] : a[lane] + a[lane ^ STEP];
    return sum;
#else
    Integers straight, crossed;
    for (int lane = 0; lane < LANES; ++lane) {
        straight[lane] = (lane & STEP ? LANES : 0) + lane;
        crossed[lane] = (lane & STEP ? LANES : 0) + (lane ^ STEP);
    }
    return __builtin_shuffle(a, b, straight) + __builtin_shuffle(a, b, crossed);
#endif
}

// Lane l of the result is the sum over the lanes of vectors[l].
template <int STEP = LANES / 2>
inline Vector sums(Vector (&vectors)[LANES]) {
    if constexpr (STEP == 0) {
        return vectors[0];
    } else {
        for (int at = 0; at < STEP; ++at) vectors[at] = halve<STEP>(vectors[at], vectors[at + STEP]);
        return sums<STEP / 2>(vectors);
    }
}

// Register by register: GCC would have one instruction write zeros to memory, and wait for it.
template <int ROWS, int VECTORS>
inline __attribute__((always_inline)) void clear(Vector (&rows)[ROWS][VECTORS]) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) rows[r][v] = Vector{};
}

// rows[r] += weights[r][i * TAPS + t] * inputs[t][v][i], for i < channels.
template <int TAPS, int ROWS, int VECTORS>
inline __attribute__((always_inline)) void add_product(
    Vector (&rows)[ROWS][VECTORS], const float* weights, size_t weights_stride, const float* const (&inputs)[TAPS][VECTORS],
    size_t inputs_stride, int channels) {
    for (int channel = 0; channel < channels; ++channel) {
#pragma GCC unroll 8
        for (int tap = 0; tap < TAPS; ++tap) {
            Vector input[VECTORS];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) input[v] = load(inputs[tap][v] + channel * inputs_stride);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const Vector weight = splat(weights[r * weights_stride + channel * TAPS + tap]);
#pragma GCC unroll 8
                for (int v = 0; v < VECTORS; ++v) rows[r][v] += weight * input[v];
            }
        }
    }
}

// Calls body.template run<rows>(first) for every tile of the channels; tiles as equal as can be.
template <class Body>
inline void for_tiles(int channels, const Body& body) {
    const int tiles = (channels + TILE_CHANNELS - 1) / TILE_CHANNELS;
    for (int tile = 0; tile < tiles; ++tile) {
        const int first = tile * channels / tiles, rows = (tile + 1) * channels / tiles - first;
        switch (rows) {
            case 1: body.template run<1>(first); break;
            case 2: body.template run<2>(first); break;
            case 3: body.template run<3>(first); break;
            case 4: body.template run<4>(first); break;
            case 5: body.template run<5>(first); break;
            case 6: body.template run<6>(first); break;
        }
    }
}

struct Branch {
    const float *norm_gain, *norm_bias, *spread, *spread_bias, *contract, *scale;
};

// The shape of the features at one stage of the network, and where a number lies.
struct Grid {
    int bins, channels, frames;
    int vectors() const { return (frames + LANES - 1) / LANES; }
    size_t row() const { return static_cast<size_t>(channels) * vectors() * LANES; }  // floats of a bin
};

template <int TAPS, int VECTORS>
struct Spread {  // inputs after the norm -> SiLU of the convolution
    const Branch& branch;
    int channels;
    const float* const (&inputs)[TAPS][VECTORS];
    size_t inputs_stride;
    float* inner;  // [channel][VECTORS * LANES]

    template <int ROWS>
    void run(int first) const {
        Vector rows[ROWS][VECTORS];
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECTORS; ++v) rows[r][v] = splat(branch.spread_bias[first + r]);
        const size_t stride = static_cast<size_t>(channels) * TAPS;
        add_product<TAPS, ROWS, VECTORS>(rows, branch.spread + first * stride, stride, inputs, inputs_stride, channels);
        Vector* flat = &rows[0][0];
        float* out = inner + static_cast<size_t>(first) * VECTORS * LANES;
        int at = 0;
        for (; at + 1 < ROWS * VECTORS; at += 2) {
            silu(flat[at], flat[at + 1]);
            store(out + at * LANES, flat[at]);
            store(out + (at + 1) * LANES, flat[at + 1]);
        }
        if (at < ROWS * VECTORS) {
            Vector spare{};
            silu(flat[at], spare);
            store(out + at * LANES, flat[at]);
        }
    }
};

template <int VECTORS>
struct Contract {  // adds to the residual
    const Branch& branch;
    int inner_channels;
    const float* const (&inputs)[1][VECTORS];
    const float* const (&features)[VECTORS];
    float* const (&out)[VECTORS];  // may be the features
    size_t features_stride;

    template <int ROWS>
    void run(int first) const {
        Vector rows[ROWS][VECTORS];
        clear(rows);
        add_product<1, ROWS, VECTORS>(
            rows, branch.contract + static_cast<size_t>(first) * inner_channels, inner_channels, inputs, VECTORS * LANES,
            inner_channels);
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECTORS; ++v) {
                const size_t at = (first + r) * features_stride;
                store(out[v] + at, load(features[v] + at) + rows[r][v] * branch.scale[first + r]);
            }
    }
};

template <int VECTORS>
struct Compress {  // a convolution without bias into other features
    const float* weights;
    int channels;
    const float* const (&inputs)[3][VECTORS];
    size_t inputs_stride;
    float* const (&out)[VECTORS];
    size_t out_stride;

    template <int ROWS>
    void run(int first) const {
        Vector rows[ROWS][VECTORS];
        clear(rows);
        const size_t stride = static_cast<size_t>(channels) * 3;
        add_product<3, ROWS, VECTORS>(rows, weights + first * stride, stride, inputs, inputs_stride, channels);
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECTORS; ++v) store(out[v] + (first + r) * out_stride, rows[r][v]);
    }
};

// Threads that work on one clip wait here for each other, asleep.
class Team {
public:
    explicit Team(int size) : size_(size) {}
    int size() const { return size_; }
    void meet() {
        if (size_ == 1) return;
        std::unique_lock<std::mutex> lock(mutex_);
        const unsigned round = round_;
        if (++arrived_ == size_) {
            arrived_ = 0;
            ++round_;
            all_.notify_all();
        } else {
            all_.wait(lock, [&] { return round != round_; });
        }
    }

private:
    const int size_;
    int arrived_ = 0;
    unsigned round_ = 0;
    std::mutex mutex_;
    std::condition_variable all_;
};

constexpr int SLOTS = 8;  // rows of inputs after the norm that a tile may need at once: its own four, and one on either side

// What threads that work on one clip share. A bin's statistics lie `channels` apart at every stage, so that a thread
// that is a stage ahead writes over nobody's.
struct Shared {
    Floats means, deviations;
    size_t channels;
    Shared(int bins, int most_channels)
        : means(static_cast<size_t>(bins) * most_channels), deviations(means.size()), channels(most_channels) {}
};

// The bins of tiles, as many as a tile has vectors: strips of whole ones have the tiles that one strip would have.
inline int bin_groups(int bins) { return (bins + TILE_VECTORS - 1) / TILE_VECTORS; }

inline int strip_start(int bins, int member, int members) {
    return std::min(bins, bin_groups(bins) * member / members * TILE_VECTORS);
}

enum Axis { ALONG_FREQUENCY, ALONG_TIME, POINTWISE };

// Of each channel: its mean, one over its deviation, and what both and the weights make of a feature.
struct Norm {
    Floats gain, shift, mean, inverse;
    explicit Norm(int channels) : gain(channels), shift(channels), mean(channels), inverse(channels) {}
};

// One thread's part of a clip: a strip of bins, and room for what is at hand.
class Strip {
public:
    Strip(Shared& shared, Team& team, int member, int bins, size_t widest_row, size_t most_inner, int most_channels)
        : shared_(shared), team_(team), first_(strip_start(bins, member, team.size())),
          end_(strip_start(bins, member + 1, team.size())), ring_(SLOTS * widest_row), halo_(widest_row),
          inner_(most_inner), norm_(most_channels) {}

    // Each of these three leaves its result at `to`, where the next one finds it.
    void project(const Grid& grid, const float* cqt, const float* weights, float* to) {
        features_ = to;
        const int padded = grid.vectors() * LANES;
        for (int bin = first_; bin < end_; ++bin) {
            float* row = features_ + bin * grid.row();
            const float* from = cqt + static_cast<size_t>(bin) * grid.frames;
            for (int channel = 0; channel < grid.channels; ++channel, row += padded) {
                for (int t = 0; t < grid.frames; ++t) row[t] = weights[channel] * from[t];
                std::fill(row + grid.frames, row + padded, 0.0f);
            }
            measure(grid, bin);
        }
        start(grid);
    }

    template <Axis AXIS>
    void add_branch(const Grid& grid, const Branch& branch, float epsilon, float* to) {
        to_ = to;  // may be where the features are
        team_.meet();  // all rows are measured
        prepare_norm(grid, branch, epsilon);
        next_ = first_;
        if (AXIS == ALONG_FREQUENCY) {
            next_ = first_ - 1;
            halo_bin_ = -1;
            if (team_.size() > 1) {  // the neighbours change these rows while this thread still needs them
                normalise(grid, next_++);
                if (end_ < grid.bins) {
                    normalise_into(grid, end_, halo_.data());
                    halo_bin_ = end_;
                }
            }
        }
        if (team_.size() > 1) team_.meet();
        measured_ = first_;
        const int total = (end_ - first_) * grid.vectors();
        int at = 0;
        for (; at + TILE_VECTORS <= total; at += TILE_VECTORS) add_tile<AXIS, TILE_VECTORS>(grid, branch, at);
        for (; at < total; ++at) add_tile<AXIS, 1>(grid, branch, at);
        features_ = to;
    }

    void compress(const Grid& grid, const Grid& smaller, const float* weights, float* to) {
        const size_t half = static_cast<size_t>(smaller.vectors() + 1) * LANES;
        const size_t stride = 2 * half;  // of a channel: LANES zeros, odd frames, LANES zeros, even frames
        std::fill(ring_.begin(), ring_.begin() + grid.channels * stride + LANES, 0.0f);
        const int padded = grid.vectors() * LANES;
        for (int bin = first_; bin < end_; ++bin) {
            for (int channel = 0; channel < grid.channels; ++channel) {
                const float* from = features_ + bin * grid.row() + static_cast<size_t>(channel) * padded;
                float *odd = ring_.data() + channel * stride + LANES, *even = odd + half;
                for (int u = 0; u < grid.frames / 2; ++u) even[u] = from[2 * u], odd[u] = from[2 * u + 1];
                if (grid.frames % 2) even[grid.frames / 2] = from[grid.frames - 1];
            }
            float* out = to + bin * smaller.row();
            int at = 0;
            for (; at + TILE_VECTORS <= smaller.vectors(); at += TILE_VECTORS)
                compress_tile<TILE_VECTORS>(grid, smaller, weights, half, at, out);
            for (; at < smaller.vectors(); ++at) compress_tile<1>(grid, smaller, weights, half, at, out);
        }
        resume(smaller, to);
    }

    // Go on from these features.
    void resume(const Grid& grid, float* features) {
        features_ = features;
        for (int bin = first_; bin < end_; ++bin) measure(grid, bin);
        start(grid);
    }

    // Of the last branch.
    const Norm& norm() const { return norm_; }

    void give(const Grid& grid, float* out) const {
        const int padded = grid.vectors() * LANES;
        for (int row = first_ * grid.channels; row < end_ * grid.channels; ++row)
            std::copy_n(features_ + static_cast<size_t>(row) * padded, grid.frames, out + static_cast<size_t>(row) * grid.frames);
    }

private:
    // A new stage: other rows lie in the ring, each channel of it after LANES zeros.
    void start(const Grid& grid) {
        stride_ = static_cast<size_t>(grid.vectors() + 1) * LANES;
        slot_ = grid.channels * stride_ + LANES;
        std::fill(ring_.begin(), ring_.begin() + SLOTS * slot_, 0.0f);
        std::fill(halo_.begin(), halo_.begin() + slot_, 0.0f);
        for (int lane = 0; lane < LANES; ++lane) last_[lane] = (grid.vectors() - 1) * LANES + lane < grid.frames ? 1.0f : 0.0f;
    }

    float* slot(int bin) { return ring_.data() + ((bin + SLOTS) % SLOTS) * slot_; }

    void prepare_norm(const Grid& grid, const Branch& branch, float epsilon) {
        for (int channel = 0; channel < grid.channels; ++channel) {
            double sum = 0, squares = 0;
            for (int bin = 0; bin < grid.bins; ++bin) sum += shared_.means[bin * shared_.channels + channel];
            const double mean = sum / grid.bins;
            for (int bin = 0; bin < grid.bins; ++bin) {
                const size_t at = bin * shared_.channels + channel;
                const double apart = shared_.means[at] - mean;
                squares += shared_.deviations[at] + grid.frames * apart * apart;
            }
            const double variance = squares / (static_cast<double>(grid.bins) * grid.frames);
            const double inverse = 1 / std::sqrt(variance + epsilon), gain = branch.norm_gain[channel] * inverse;
            norm_.gain[channel] = static_cast<float>(gain);
            norm_.shift[channel] = static_cast<float>(branch.norm_bias[channel] - mean * gain);
            norm_.mean[channel] = static_cast<float>(mean);
            norm_.inverse[channel] = static_cast<float>(inverse);
        }
    }

    void normalise_into(const Grid& grid, int bin, float* out) const {
        const int vectors = grid.vectors();
        const float* from = features_ + bin * grid.row();
        for (int channel = 0; channel < grid.channels; ++channel, out += stride_) {
            const Vector gain = splat(norm_.gain[channel]), shift = splat(norm_.shift[channel]);
            for (int v = 0; v < vectors; ++v, from += LANES) store(out + (v + 1) * LANES, load(from) * gain + shift);
            store(out + vectors * LANES, load(out + vectors * LANES) * last_);  // the convolution pads with zeros
        }
    }

    void normalise(const Grid& grid, int bin) {
        if (bin < 0 || bin >= grid.bins)
            std::fill_n(slot(bin), slot_, 0.0f);
        else if (bin == halo_bin_)
            std::copy_n(halo_.data(), slot_, slot(bin));
        else
            normalise_into(grid, bin, slot(bin));
    }

    // Mean and squared deviations of a row's channels, in two sweeps while the row is in the first cache.
    void measure(const Grid& grid, int bin) { measure(grid, bin, features_); }

    void measure(const Grid& grid, int bin, const float* features) {
        const int vectors = grid.vectors();
        const float* row = features + bin * grid.row();
        float *means = shared_.means.data() + bin * shared_.channels;
        float *deviations = shared_.deviations.data() + bin * shared_.channels;
        Vector valid;
        for (int lane = 0; lane < LANES; ++lane) valid[lane] = (vectors - 1) * LANES + lane < grid.frames ? 1.0f : 0.0f;
        for (int first = 0; first < grid.channels; first += LANES) {
            const int count = std::min(LANES, grid.channels - first);
            const float* from = row + static_cast<size_t>(first) * vectors * LANES;
            Vector lanes[LANES] = {};
            for (int n = 0; n < count; ++n) {
                const float* at = from + static_cast<size_t>(n) * vectors * LANES;
                lanes[n] = sum_of(at, vectors, [&](Vector value, bool last) { return last ? value * valid : value; });
            }
            const Vector mean = sums(lanes) / static_cast<float>(grid.frames);
            for (int n = 0; n < LANES; ++n) lanes[n] = Vector{};
            for (int n = 0; n < count; ++n) {
                const float* at = from + static_cast<size_t>(n) * vectors * LANES;
                const Vector middle = splat(mean[n]);
                lanes[n] = sum_of(at, vectors, [&](Vector value, bool last) {
                    const Vector apart = last ? (value - middle) * valid : value - middle;
                    return apart * apart;
                });
            }
            const Vector squares = sums(lanes);
            for (int n = 0; n < count; ++n) means[first + n] = mean[n], deviations[first + n] = squares[n];
        }
    }

    // Four sums side by side: one alone would wait for each addition.
    template <class Term>
    static Vector sum_of(const float* from, int vectors, const Term& term) {
        Vector parts[4] = {term(load(from + (vectors - 1) * LANES), true)};
        int v = 0;
        for (; v + 4 < vectors; v += 4)
            for (int part = 0; part < 4; ++part) parts[part] += term(load(from + (v + part) * LANES), false);
        for (; v < vectors - 1; ++v) parts[0] += term(load(from + v * LANES), false);
        return (parts[0] + parts[1]) + (parts[2] + parts[3]);
    }

    // `at` counts the strip's vectors: all of its first bin, then all of the next.
    template <Axis AXIS, int VECTORS>
    void add_tile(const Grid& grid, const Branch& branch, int at) {
        constexpr int TAPS = AXIS == POINTWISE ? 1 : 3;
        constexpr int REACH = AXIS == ALONG_FREQUENCY ? 1 : 0;
        const int vectors = grid.vectors();
        const int last_bin = first_ + (at + VECTORS - 1) / vectors;
        while (next_ <= last_bin + REACH) normalise(grid, next_++);
        const float *inputs[TAPS][VECTORS], *features[VECTORS];
        float* out[VECTORS];
        const float* inner[1][VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            const int bin = first_ + (at + v) / vectors, place = (at + v) % vectors * LANES;
            for (int tap = 0; tap < TAPS; ++tap) {
                const int row = AXIS == ALONG_FREQUENCY ? bin + tap - 1 : bin;
                inputs[tap][v] = slot(row) + LANES + place + (AXIS == ALONG_TIME ? tap - 1 : 0);
            }
            features[v] = features_ + bin * grid.row() + place;
            out[v] = to_ + bin * grid.row() + place;
            inner[0][v] = inner_.data() + v * LANES;
        }
        const int inner_channels = AXIS == POINTWISE ? 2 * grid.channels : grid.channels;
        for_tiles(inner_channels, Spread<TAPS, VECTORS>{branch, grid.channels, inputs, stride_, inner_.data()});
        for_tiles(grid.channels, Contract<VECTORS>{branch, inner_channels, inner, features, out, static_cast<size_t>(vectors) * LANES});
        const int done = first_ + (at + VECTORS) / vectors;
        while (measured_ < done) measure(grid, measured_++, to_);
    }

    template <int VECTORS>
    void compress_tile(const Grid& grid, const Grid& smaller, const float* weights, size_t half, int at, float* row) {
        const float* inputs[3][VECTORS];
        float* out[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            const float* odd = ring_.data() + LANES + (at + v) * LANES;
            inputs[0][v] = odd - 1;
            inputs[1][v] = odd + half;
            inputs[2][v] = odd;
            out[v] = row + (at + v) * LANES;
        }
        for_tiles(smaller.channels, Compress<VECTORS>{weights, grid.channels, inputs, 2 * half, out, static_cast<size_t>(smaller.vectors()) * LANES});
    }

    Shared& shared_;
    Team& team_;
    const int first_, end_;
    float *features_ = nullptr, *to_ = nullptr;
    Floats ring_, halo_, inner_;
    Norm norm_;
    size_t stride_ = 0, slot_ = 0;
    Vector last_{};
    int next_ = 0, measured_ = 0, halo_bin_ = -1;
};

enum Status { DONE, NO_MEMORY, NO_THREADS };

struct Network {
    int bins, frames, blocks;
    const int32_t* widths;  // blocks + 1: the channels of each block, and those of the result
    const int32_t* compresses;  // of each block, 0 or 1
    const float* const* weights;  // in the order in which they are used
    float epsilon;

    size_t widest(int lanes_more) const {
        size_t most = 0;
        int length = frames;
        for (int block = 0; block <= blocks; ++block) {
            const size_t vectors = (length + LANES - 1) / LANES;
            most = std::max(most, widths[block] * (vectors + lanes_more) * LANES + LANES);
            if (block < blocks && compresses[block]) length = (length + 1) / 2;
        }
        return most;
    }

    static Branch next(const float* const*& weight) {
        const Branch branch{weight[0], weight[1], weight[2], weight[3], weight[4], weight[5]};
        weight += 6;
        return branch;
    }
};

}  // namespace
