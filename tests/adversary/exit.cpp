// Returns from main while globals own a session that streams and the model it talks to: `exit
// MODEL`. Run by process.rs.
#include <atomic>
#include <chrono>
#include <optional>
#include <thread>

#include "moxin_vlm.hpp"

namespace {

std::atomic<int> events{ 0 };
std::optional<moxin::Model> model;
std::optional<moxin::Session> session;

} // namespace

int main(int argc, char **argv) {
    if (argc != 2) {
        return 2;
    }
    model.emplace(argv[1]);
    moxin::SessionOptions options;
    options.temperature = 50; // generates a long answer
    session.emplace(*model, options);
    session->add_text(MOXIN_ROLE_USER, "Describe");
    session->start([](const moxin::Event &) {
        ++events;
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        return true;
    });
    while (events == 0) {
        std::this_thread::yield();
    }
    return 0;
}
