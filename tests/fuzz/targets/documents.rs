//! A manifest, an index or a config.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_image::fuzz::documents(data));
