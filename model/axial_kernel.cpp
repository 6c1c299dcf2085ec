// The axial CNN of model/axial.py for inference on a CPU, in one pass over the features for each branch: axial_strip.h.
//
// Compiled once for each instruction set (see setup.py), plain C linkage, no Python: model/axial_kernel.py.

#include "axial_strip.h"

#include <atomic>
#include <exception>
#include <future>
#include <memory>
#include <new>
#include <thread>

namespace {

// Runs through the network in `features` and `compressed`, each with room for the widest row of every bin.
void infer(const Network& network, Strip& strip, const float* cqt, float* features, float* compressed, float* out) {
    const float* const* weight = network.weights;
    Grid grid{network.bins, network.widths[0], network.frames};
    strip.project(grid, cqt, *weight++, features);
    for (int block = 0; block < network.blocks; ++block) {
        strip.add_branch<ALONG_FREQUENCY>(grid, Network::next(weight), network.epsilon, features);
        strip.add_branch<ALONG_TIME>(grid, Network::next(weight), network.epsilon, features);
        strip.add_branch<POINTWISE>(grid, Network::next(weight), network.epsilon, features);
        if (network.compresses[block]) {
            const Grid smaller{network.bins, network.widths[block + 1], (grid.frames + 1) / 2};
            strip.compress(grid, smaller, *weight++, compressed);
            std::swap(features, compressed);
            grid = smaller;
        }
    }
    strip.give(grid, out);
}

}  // namespace

// float32 cqt (clips, bins, frames) -> float32 out (clips, bins, channels, steps). Returns a Status.
extern "C" int phalar_axial_infer(
    const float* cqt, float* out, int32_t clips, int32_t bins, int32_t frames, int32_t blocks, const int32_t* widths,
    const int32_t* compresses, const float* const* weights, float epsilon, int32_t threads) try {
    const Network network{bins, frames, blocks, widths, compresses, weights, epsilon};
    int steps = frames;
    for (int block = 0; block < blocks; ++block)
        if (compresses[block]) steps = (steps + 1) / 2;
    const size_t clip_in = static_cast<size_t>(bins) * frames, clip_out = static_cast<size_t>(bins) * widths[blocks] * steps;
    const int channels = *std::max_element(widths, widths + blocks + 1);
    threads = std::max(1, std::min(threads, bin_groups(bins)));
    const bool together = clips < threads;  // on one clip after the other; otherwise each on its own
    const int teams = together ? 1 : threads;

    std::vector<std::unique_ptr<Team>> team;
    std::vector<std::unique_ptr<Shared>> shared;
    const size_t room = bins * network.widest(0);
    std::vector<float> features(2 * room * teams);
    std::vector<std::unique_ptr<Strip>> strips;
    for (int n = 0; n < teams; ++n) {
        team.push_back(std::make_unique<Team>(together ? threads : 1));
        shared.push_back(std::make_unique<Shared>(bins, channels));
    }
    for (int n = 0; n < threads; ++n) {
        const int of = together ? 0 : n;
        strips.push_back(std::make_unique<Strip>(
            *shared[of], *team[of], together ? n : 0, bins, network.widest(3), static_cast<size_t>(2) * channels * TILE_VECTORS * LANES,
            channels));
    }
    std::atomic<int> next{0};
    const auto work = [&](int member) {
        float* at = features.data() + (together ? 0 : 2 * room * member);
        for (int clip = together ? 0 : next++; clip < clips; clip = together ? clip + 1 : next++)
            infer(network, *strips[member], cqt + clip * clip_in, at, at + room, out + clip * clip_out);
    };
    // None begins before all are there: one that waited for a missing one would wait for ever.
    std::promise<bool> complete;
    const std::shared_future<bool> begin = complete.get_future().share();
    std::vector<std::thread> others;
    others.reserve(threads);
    bool enough = true;
    try {
        for (int n = 1; n < threads; ++n)
            others.emplace_back([&, n] {
                if (begin.get()) work(n);
            });
    } catch (const std::exception&) {  // no more threads, or no memory for one: those that wait must be told
        enough = false;
    }
    complete.set_value(enough);
    if (enough) work(0);
    for (std::thread& other : others) other.join();
    return enough ? DONE : NO_THREADS;
} catch (const std::bad_alloc&) {
    return NO_MEMORY;
}
