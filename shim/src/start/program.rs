//! The last step: a process becomes the program of the container.

use std::{
    ffi::{CStr, CString},
    path::{Path, PathBuf},
};

use berth_shim::{record::EXECUTE, spec::Process};
use nix::{errno::Errno, unistd::execve};
use rustix::fs::{FileType, stat};

use crate::{
    error::{Failure, Fault, Step, failure},
    passwd::{Login, with_home},
    sys,
};

/// Becomes the program of `process`, whose credentials this process already has. Returns only a
/// failure.
pub(crate) fn execute(process: &Process, login: &Login) -> Failure {
    // Blocked and ignored signals survive execve(2), and the program expects neither.
    if let Err(failure) = sys::default_signals().step("reset signals") {
        return failure;
    }
    let env = with_home(&process.env, &login.home);
    let (Some(args), Some(env_c), Some(program)) =
        (c_strings(&process.args), c_strings(&env), process.args.first())
    else {
        return failure("empty command, or a NUL byte in it or in the environment", "");
    };
    // As execvp(3): directories without the program are passed over, and any other error counts if
    // no later directory has it.
    let mut error = Errno::ENOENT;
    for candidate in candidates(program, &env) {
        let Ok(path) = CString::new(candidate.into_os_string().into_encoded_bytes()) else {
            continue;
        };
        match execve(&path, &args, &env_c) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(Errno::EACCES) if is_directory(&path) => error = Errno::EISDIR,
            Err(errno) => error = errno,
        }
    }
    // The image has nothing at that path, or nothing that can be executed. Everything else, such as
    // ENOMEM, is the node's fault.
    let of_image = matches!(
        error,
        Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES | Errno::ENOEXEC | Errno::EISDIR
    );
    let fault = if of_image { Fault::Request } else { Fault::Node };
    Failure { errno: error as i32, fault, ..failure(EXECUTE, program) }
}

/// execve(2) says of directories that they may not be executed, as of files without the permission.
fn is_directory(path: &CStr) -> bool {
    stat(path).is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory)
}

/// `None` if one has a NUL byte.
fn c_strings(strings: &[String]) -> Option<Vec<CString>> {
    strings.iter().map(|text| CString::new(text.as_str()).ok()).collect()
}

/// Where a program may be: at its own path if that has a slash, otherwise in each directory of
/// PATH. The default is that of the OCI runtimes.
fn candidates(program: &str, env: &[String]) -> Vec<PathBuf> {
    if program.contains('/') {
        return vec![program.into()];
    }
    let path = env
        .iter()
        .find_map(|variable| variable.strip_prefix("PATH="))
        .unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    path.split(':')
        // An empty entry is the working directory (environ(7)).
        .map(|directory| {
            Path::new(if directory.is_empty() { "." } else { directory }).join(program)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_up_in_the_containers_path() {
        let env = ["A=b".to_owned(), "PATH=/x:/y".to_owned()];
        assert_eq!(candidates("ls", &env), [Path::new("/x/ls"), Path::new("/y/ls")]);
        assert_eq!(candidates("./ls", &env), [Path::new("./ls")]);
        assert!(candidates("ls", &[]).contains(&PathBuf::from("/bin/ls")));
    }
}
