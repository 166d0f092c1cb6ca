//! hosts.toml.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| berthd::fuzz::hosts(text));
