// mlx-rs seeds its random numbers from a clock that only Mach has.
#include <cstdint>
#include <ctime>

extern "C" std::uint64_t mach_approximate_time() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return std::uint64_t(now.tv_sec) * 1000000000u + std::uint64_t(now.tv_nsec);
}
