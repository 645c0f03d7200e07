// Asks a model about a picture and streams the answers: `describe MODEL IMAGE QUESTION...`
#include <exception>
#include <iostream>

#include "moxin_vlm.hpp"

int main(int argc, char **argv) {
    if (argc < 4) {
        std::cerr << "usage: describe MODEL IMAGE QUESTION...\n";
        return 2;
    }
    try {
        moxin::Model model(argv[1]);
        moxin::Session session(model);
        session.add_image(moxin::Image::from_file(argv[2]));
        for (int i = 3; i < argc; i++) {
            session.add_text(MOXIN_ROLE_USER, argv[i]);
            for (const moxin::Event &event : session.generate()) {
                std::cout << event.text << std::flush;
            }
            std::cout << '\n';
        }
    } catch (const moxin::Error &error) {
        std::cerr << "describe: " << error.what() << " (" << moxin_status_name(error.status())
                  << ")\n";
        for (const std::string &cause : error.causes()) {
            std::cerr << "  because: " << cause << '\n';
        }
        return 1;
    } catch (const std::exception &error) {
        std::cerr << "describe: " << error.what() << '\n';
        return 1;
    }
    return 0;
}
