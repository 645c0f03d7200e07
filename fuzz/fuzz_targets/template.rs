#![no_main]
moxin_vlm_fuzz::fuzz!(template);
