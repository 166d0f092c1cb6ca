//! berthd: the program around the parts, which are crates beside this one.

mod activation;
mod arguments;
mod build;
mod cli;
mod client;
mod daemon;
mod debug;
mod exporter;
#[cfg(feature = "faults")]
mod faults;
mod import_config;
mod layout_version;
mod log;
mod manager;
mod memory;
mod root_lock;
mod traces;

fn main() -> std::process::ExitCode {
    // Before anything else: the daemon starts this for each layer of each image.
    if let Some(ended) = berth_image::unpack_if_asked() {
        return ended;
    }
    #[cfg(feature = "faults")]
    faults::start();
    cli::run()
}
