//! `berth-shim`: makes a pod's namespaces (`pin`), starts one container and keeps it (`run`), or tries out what can be
//! done here (`probe`).
//!
//! One process, one thread, no runtime: fork is safe here and memory is counted in kilobytes. See the README for the contract.

mod cgroup;
mod credentials;
mod devices;
mod error;
mod exec;
mod hooks;
mod init;
mod log;
mod monitor;
mod mounts;
mod namespaces;
mod oci;
mod overlay;
mod passwd;
mod pin;
mod probe;
mod rootfs;
mod run;
mod seccomp;
mod selinux;
mod socket;
mod stdio;
mod sys;
mod volumes;

use std::{
    env,
    io::{Read, Write},
    path::PathBuf,
    process::ExitCode,
};

use berth_shim::record::Report;

const USAGE: &str = "\
berth-shim is started by berthd; there is no need to run it by hand.

usage: berth-shim pin --dir DIR     make the namespaces that DIR/pin.json names, bind them, and leave
       berth-shim run --dir DIR     start the container of DIR/spec.json and keep it until it ends
       berth-shim probe --dir DIR   whether pods with files in DIR can have user namespaces
       berth-shim hold              do nothing until standard input ends: the first process of a systemd scope
       berth-shim --version
";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    // A descriptor that the daemon, or whoever started it, left open must not reach a container.
    if let Err(error) = sys::close_from(3) {
        eprintln!("berth-shim: close_range: {error}");
        return ExitCode::FAILURE;
    }
    let result = match args[..] {
        ["pin", "--dir", dir] => pin::run(&PathBuf::from(dir)),
        ["run", "--dir", dir] => run::run(&PathBuf::from(dir)),
        ["probe", "--dir", dir] => probe::run(&PathBuf::from(dir)),
        ["hold"] => {
            // Until the daemon closes it, or is gone.
            let _ = std::io::stdin().read(&mut [0]);
            return ExitCode::SUCCESS;
        }
        ["--version"] => return say(concat!("berth-shim ", env!("CARGO_PKG_VERSION"), "\n"), ExitCode::SUCCESS),
        ["--help" | "-h"] => return say(USAGE, ExitCode::SUCCESS),
        _ => return say(USAGE, ExitCode::from(2)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            run::report(&Report::Error(error));
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str, code: ExitCode) -> ExitCode {
    // Nobody is left to tell when standard output is closed.
    let _ = std::io::stdout().write_all(text.as_bytes());
    code
}
