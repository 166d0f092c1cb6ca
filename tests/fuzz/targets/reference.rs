//! The name of an image.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| berth_image::fuzz::reference(text));
