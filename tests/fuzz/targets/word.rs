//! A word with variables.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| berth_dockerfile::fuzz::word(text));
