#include <moxin_vlm.h>
