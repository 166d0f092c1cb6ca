//! A layer as a registry may send it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let directory = tempfile::tempdir().expect("make a directory");
    berth_image::fuzz::layer(directory.path(), data);
});
