//! A `.dockerignore`, which names the paths itself.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_dockerfile::fuzz::ignore(data));
