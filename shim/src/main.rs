//! `berth-shim`: makes a pod's namespaces (`pin`), starts one container and keeps it (`run`), or
//! tries what the machine can do (`probe`).
//!
//! One process, one thread, no async runtime: a fork is safe anywhere, and memory is counted in
//! kilobytes. The README has the contract with the daemon.

mod cgroup;
mod descriptor;
mod error;
mod hooks;
mod mount;
mod namespaces;
mod oci;
mod passwd;
mod process;
mod root;
mod seccomp;
mod start;
mod stdio;
mod steps;
mod supervise;
mod sys;
mod verbs;

use std::{
    env,
    io::{Read, Write},
    path::PathBuf,
    process::ExitCode,
};

use berth_shim::record::Report;

use crate::{
    process::report::report,
    verbs::{pin, probe, run},
};

const USAGE: &str = "\
berth-shim is started by berthd; there is no need to run it by hand.

usage: berth-shim pin --dir DIR     make the namespaces of DIR/pin.json, bind them, and exit
       berth-shim run --dir DIR     start the container of DIR/spec.json and keep it until it ends
       berth-shim probe --dir DIR   whether pods with files in DIR can have user namespaces
       berth-shim hold              do nothing until standard input ends: holds a systemd scope
       berth-shim --version
";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    // A descriptor without close-on-exec, left open by the daemon or by whatever started that,
    // would end up in the container (CVE-2024-21626).
    if let Err(error) = sys::close_from(3) {
        eprintln!("berth-shim: close_range: {error}");
        return ExitCode::FAILURE;
    }
    #[cfg(feature = "faults")]
    steps::allow_faults();
    let result = match args[..] {
        ["pin", "--dir", dir] => pin::run(&PathBuf::from(dir)),
        ["run", "--dir", dir] => run::run(&PathBuf::from(dir)),
        ["probe", "--dir", dir] => probe::run(&PathBuf::from(dir)),
        ["hold"] => {
            // Returns when the daemon closes the pipe, or has ended.
            let _ = std::io::stdin().read(&mut [0]);
            return ExitCode::SUCCESS;
        }
        ["--version"] => {
            return print(
                concat!("berth-shim ", env!("CARGO_PKG_VERSION"), "\n"),
                ExitCode::SUCCESS,
            );
        }
        ["--help" | "-h"] => return print(USAGE, ExitCode::SUCCESS),
        _ => return print(USAGE, ExitCode::from(2)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&Report::Error(error));
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str, code: ExitCode) -> ExitCode {
    // If standard output is closed there is nobody to tell.
    let _ = std::io::stdout().write_all(text.as_bytes());
    code
}
