//! What a container executes, in which environment and with which privileges.

use std::path::Path;

use berth_base::error::{Error, Result};
use berth_shim::spec::{Process, Rlimit, RlimitKind};

use super::{capabilities::capabilities, inputs::Inputs, user::user};
use crate::container::config::Config;

/// For images that set no PATH, as Docker does.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The soft and the hard limit of open files, as systemd sets them for services. With a limit of
/// millions, programs that close every possible descriptor take seconds to start.
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// The container's first process.
///
/// # Errors
/// `InvalidArgument` if neither the request nor the image names a command, and for a user or a
/// capability that does not exist.
pub(super) fn process(inputs: &Inputs<'_>, selinux: Option<String>) -> Result<Process> {
    let Inputs { config, image, .. } = inputs;
    let of_image = image.config().clone().unwrap_or_default();
    let security = &config.security;
    let cwd = match (config.working_dir.as_str(), of_image.working_dir().as_deref()) {
        ("", None | Some("")) => "/",
        ("", Some(directory)) => directory,
        (directory, _) => directory,
    };
    let mut user = user(security, of_image.user().as_deref().unwrap_or_default())?;
    user.supplementary.extend(&inputs.named.additional_gids);
    Ok(Process {
        args: args(
            config,
            of_image.entrypoint().as_deref().unwrap_or_default(),
            of_image.cmd().as_deref().unwrap_or_default(),
        )?,
        env: env(inputs, of_image.env().as_deref().unwrap_or_default()),
        // Images may have a relative one, which is relative to the root.
        cwd: Path::new("/").join(cwd),
        user,
        capabilities: capabilities(security)?,
        no_new_privileges: security.no_new_privs,
        rlimits: vec![Rlimit { kind: RlimitKind::Nofile, soft: OPEN_FILES.0, hard: OPEN_FILES.1 }],
        ulimits: config.ulimits.clone(),
        // The range that the kernel accepts (proc_pid_oom_score_adj(5)).
        oom_score_adj: Some(config.resources.oom_score_adj.clamp(-1000, 1000) as i32),
        seccomp: security.is_filtered(),
        apparmor: inputs.apparmor.clone(),
        selinux,
        tty: config.tty,
    })
}

/// The command line. A command in the request replaces both the image's entrypoint and its
/// arguments; arguments alone replace only the arguments (`ContainerConfig.command`).
fn args(config: &Config, entrypoint: &[String], cmd: &[String]) -> Result<Vec<String>> {
    let (program, arguments) = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => (config.command.as_slice(), config.args.as_slice()),
        (true, false) => (entrypoint, config.args.as_slice()),
        (true, true) => (entrypoint, cmd),
    };
    let args = [program, arguments].concat();
    match args.first() {
        None => Err(Error::invalid(
            "no command specified: neither the container nor its image names one to run",
        )),
        Some(first) if first.is_empty() => Err(Error::invalid("the command is empty")),
        // execve(2) takes C strings, and would see what is before the NUL byte only.
        Some(_) if args.iter().any(|arg| arg.contains('\0')) => {
            Err(Error::invalid("the command has a NUL byte in it"))
        }
        Some(_) => Ok(args),
    }
}

/// The environment: defaults and the image's variables, without those that the request unsets, the
/// request's, and those of CDI devices. A later value of a variable replaces an earlier one, in the
/// place of the earlier one.
fn env(inputs: &Inputs<'_>, of_image: &[String]) -> Vec<String> {
    let hostname = &inputs.hostname;
    let mut all = vec![PATH.to_owned()];
    all.extend((!hostname.is_empty()).then(|| format!("HOSTNAME={hostname}")));
    all.extend(inputs.config.tty.then(|| "TERM=xterm".to_owned()));
    all.extend(of_image.iter().cloned());
    all.retain(|variable| inputs.config.unset_env.iter().all(|unset| unset != name(variable)));
    all.extend(inputs.config.env.iter().map(|(name, value)| format!("{name}={value}")));
    all.extend(inputs.named.env.iter().cloned());
    let mut env: Vec<String> = Vec::new();
    for variable in all {
        match env.iter_mut().find(|earlier| name(earlier) == name(&variable)) {
            Some(earlier) => *earlier = variable,
            None => env.push(variable),
        }
    }
    env
}

/// `PATH` of `PATH=/bin`.
fn name(variable: &str) -> &str {
    variable.split('=').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(command: &[&str], args: &[&str]) -> Config {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Config { command: owned(command), args: owned(args), ..Config::default() }
    }

    #[test]
    fn commands_are_those_of_the_request_or_of_the_image() {
        let (entrypoint, cmd) = (["/e".to_owned()], ["c".to_owned()]);
        for (command, given, expected) in [
            (&[][..], &[][..], &["/e", "c"][..]),
            (&["/x"], &[], &["/x"]),
            (&["/x"], &["a"], &["/x", "a"]),
            (&[], &["a"], &["/e", "a"]),
        ] {
            assert_eq!(args(&config(command, given), &entrypoint, &cmd).unwrap(), expected);
        }
        assert!(
            args(&config(&[], &[]), &[], &[]).unwrap_err().message.contains("no command specified")
        );
        assert!(args(&config(&["a\0b"], &[]), &[], &[]).is_err());
    }
}
