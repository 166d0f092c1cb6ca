//! Frames of a streaming client.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berthd::fuzz_spdy(data));
