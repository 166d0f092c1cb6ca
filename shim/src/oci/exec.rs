//! One more process in a container of another OCI runtime.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use berth_shim::spec::Process;
use nix::{sched::CloneFlags, unistd::Pid};
use rustix::fs::OFlags;
use serde_json::Value;

use super::{CONFIG, Oci, config, write_private};
use crate::{
    error::{Failure, Result, Step, failure},
    mount::inside::open_path,
    passwd,
    process::{
        child::{Child, Exec},
        successor::lead_session,
    },
    seccomp::Pass,
    stdio::child::install,
};

/// Forks the runtime's `exec`: it stays in front of the process, passes its streams on, and ends as
/// that one does. `init` is the container's first process.
pub(crate) fn start(
    oci: &Oci<'_>,
    id: &str,
    init: Pid,
    process: &Process,
    streams: Vec<OwnedFd>,
) -> Result<Exec> {
    // The state directory is in memory: an exec must not need room on a disk.
    let file = |name: &str| oci.spec.socket_dir.join(format!("exec-{id}.{name}"));
    let request = file("oci.json");
    let pid_file = file("pid");
    let (child, channel) = Child::fork(CloneFlags::empty(), None, |_| {
        let prepared = write_request(oci, init, process, &request)
            .and_then(|()| install(process, streams))
            // The runtime hands its terminal to the process, so it has to lead a session first.
            .and_then(|()| lead_session(process.tty, Pass::default()));
        prepared.map_or_else(|failure| failure, |()| execute(oci, &request, &pid_file))
    })?;
    Ok(Exec {
        pid: child.pid,
        pidfd: child.pidfd,
        successor: None,
        channel: Some(channel),
        cgroup: None,
        pid_file: Some(pid_file),
    })
}

/// Writes `process` as the runtime reads it. In the child, not in the monitor: the
/// container may have put anything at /etc/passwd, also what does not answer.
fn write_request(oci: &Oci<'_>, init: Pid, process: &Process, path: &Path) -> Result<()> {
    // Limits and the OOM score of the first process are those that were allowed, not those that
    // were asked for: they are taken from its own record.
    let config = oci.dir.join(CONFIG);
    let text = fs::read(&config).step_on("read", &config)?;
    let mut json: Value =
        serde_json::from_slice(&text).map_err(|_| failure("damaged:", &config))?;
    let mut json = json["process"].take();
    let root = format!("/proc/{init}/root");
    let root = open_path(Path::new(&root), OFlags::DIRECTORY).step_on("open", &root)?;
    let login = passwd::resolve(root.as_fd(), &process.user)?;
    json["args"] = process.args.clone().into();
    json["terminal"] = process.tty.into();
    // Its terminal is another one, which has its size already.
    json["consoleSize"].take();
    json["cwd"] = process.cwd.display().to_string().into();
    json["env"] = passwd::with_home(&process.env, &login.home).into();
    json["user"] = config::user(&login.user);
    write_private(path, &json)
}

fn execute(oci: &Oci<'_>, request: &Path, pid_file: &Path) -> Failure {
    let request = request.display().to_string();
    let pid_file = pid_file.display().to_string();
    oci.execute(&["exec", "--process", &request, "--pid-file", &pid_file, &oci.spec.id])
}

/// Kills the process for which an exec's runtime passes streams on. The runtime waits for that
/// process, so while the exec lives its number is not given to another.
pub(crate) fn kill_program(pid_file: &Path) {
    let pid = fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok());
    if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
        // ESRCH: it has ended already.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}
