//! A manifest, an index or a config.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berthd::fuzz::documents(data));
