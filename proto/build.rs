//! Compiles `api.proto` and `berth.proto` with protox, which is pure Rust: nothing to install.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=api.proto");
    println!("cargo:rerun-if-changed=berth.proto");
    let descriptors = protox::compile(["api.proto"], ["."])?;
    // The test against the published table reads the descriptors, not the source text.
    fs::write(
        PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin"),
        descriptors.encode_to_vec(),
    )?;
    tonic_prost_build::configure()
        .generate_default_stubs(true)
        .extern_path(".runtime.v1.ListContainersResponse", "crate::ListContainersResponse")
        .compile_fds(descriptors)?;
    tonic_prost_build::configure().compile_fds(protox::compile(["berth.proto"], ["."])?)?;
    Ok(())
}
