//! Why a container or an exec could not be started, in runc's words: docker's CLI makes its own exit
//! code of them.

use std::path::Path;

use berth_base::error::Error;
use berth_shim::record::{ENTER_DIRECTORY, EXECUTE};
use nix::errno::Errno;

/// The exit code of what is not there.
const NOT_FOUND: i32 = 127;
/// That of what may not be executed.
const NOT_EXECUTABLE: i32 = 126;

/// A start that failed for a reason that is the request's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NotStarted {
    /// 126 or 127.
    pub exit_code: i32,
    pub why: String,
}

impl NotStarted {
    /// `program` is what was to be started. `None` if the reason is another one.
    pub(crate) fn of(program: &str, error: &Error) -> Option<Self> {
        if program.is_empty() {
            return Some(Self::not_found("exec: \"\": executable file not found in $PATH"));
        }
        let failure = error.step.as_ref()?;
        let (step, path) = (failure.step.as_str(), failure.path.as_str());
        let errno = Errno::from_raw(failure.errno);
        match (step, errno) {
            (EXECUTE, Errno::ENOENT) if path.contains('/') => Some(Self::not_found(format!(
                "exec: \"{path}\": stat {path}: no such file or directory"
            ))),
            (EXECUTE, Errno::ENOENT) => Some(Self::not_found(format!(
                "exec: \"{path}\": executable file not found in $PATH"
            ))),
            (EXECUTE, Errno::EISDIR) => Some(Self::not_executable(format!(
                "exec: \"{path}\": is a directory: permission denied"
            ))),
            (EXECUTE, Errno::EACCES) => {
                Some(Self::not_executable(format!("exec: \"{path}\": permission denied")))
            }
            (ENTER_DIRECTORY, _) => Self::of_directory(Path::new(path), errno),
            _ => None,
        }
    }

    fn of_directory(path: &Path, errno: Errno) -> Option<Self> {
        let path = path.display();
        let why = errno.desc().to_lowercase();
        let why = format!("chdir to cwd (\"{path}\") set in config.json failed: {why}");
        match errno {
            Errno::ENOENT | Errno::ENOTDIR => Some(Self::not_found(why)),
            Errno::EACCES => Some(Self::not_executable(why)),
            _ => None,
        }
    }

    fn not_found(why: impl Into<String>) -> Self {
        Self { exit_code: NOT_FOUND, why: why.into() }
    }

    fn not_executable(why: impl Into<String>) -> Self {
        Self { exit_code: NOT_EXECUTABLE, why: why.into() }
    }
}

#[cfg(test)]
mod tests {
    use berth_base::error::Kind;
    use berth_shim::record::Failure;

    use super::*;

    #[test]
    fn steps_and_error_numbers_decide() {
        for (step, path, errno, expected) in [
            (
                EXECUTE,
                "x",
                Errno::ENOENT,
                Some((127, "exec: \"x\": executable file not found in $PATH")),
            ),
            (
                EXECUTE,
                "/x",
                Errno::ENOENT,
                Some((127, "exec: \"/x\": stat /x: no such file or directory")),
            ),
            (
                EXECUTE,
                "/etc",
                Errno::EISDIR,
                Some((126, "exec: \"/etc\": is a directory: permission denied")),
            ),
            (EXECUTE, "/x", Errno::EACCES, Some((126, "exec: \"/x\": permission denied"))),
            (EXECUTE, "/x", Errno::ENOMEM, None),
            (
                ENTER_DIRECTORY,
                "/x",
                Errno::ENOENT,
                Some((
                    127,
                    "chdir to cwd (\"/x\") set in config.json failed: no such file or directory",
                )),
            ),
            (ENTER_DIRECTORY, "/x", Errno::EIO, None),
            ("mount on", "/x", Errno::ENOENT, None),
        ] {
            let failure =
                Failure { path: path.into(), errno: errno as i32, ..Failure::of_node(step) };
            let error = Error::of_step(Kind::Internal, &failure).during("start");
            let expected =
                expected.map(|(exit_code, why)| NotStarted { exit_code, why: why.to_owned() });
            assert_eq!(NotStarted::of("program", &error), expected, "{step} {path} {errno}");
        }
        let text = Error::invalid("execve x: No such file or directory (os error 2)");
        assert_eq!(NotStarted::of("x", &text), None, "words decide nothing");
        assert_eq!(NotStarted::of("", &text).unwrap().exit_code, 127);
    }
}
