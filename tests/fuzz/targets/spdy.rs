//! Frames of a streaming client.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_streaming::fuzz_spdy(data));
