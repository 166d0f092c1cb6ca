//! hosts.toml.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| berth_image::fuzz::hosts(text));
