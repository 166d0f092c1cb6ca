//! The container's first process: the ordered steps from clone3(2) to execve(2).
//!
//! The order is the point. Each step needs what a later one takes away: the host's files, its
//! /proc, root's privileges. And no step may show anything of the host to the processes that are in
//! the container's PID namespace already.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use berth_shim::spec::{Container, Namespace, Program, Spec};
use nix::sched::{CloneFlags, unshare};

use super::{credentials, pause, program, reaper, terminal};
use crate::{
    cgroup,
    error::{Failure, Result, Step, failure},
    hooks::{Bundle, Status},
    mount::inside::open_root,
    namespaces::{
        join::{self, Joined},
        user,
    },
    passwd::{self, Login},
    process::{
        channel::{self, Message},
        limits, successor,
    },
    root::rootfs,
    stdio::child::{ChildStdio, install_first},
    steps::{At, begin},
    sys::Successor,
};

/// What the first process inherits from the one that forked it.
pub(crate) struct First<'a> {
    pub dir: &'a Path,
    pub spec: &'a Spec,
    pub filter: &'a [u8],
    pub channel: BorrowedFd<'a>,
    /// Where it notes the sibling that takes its place, if it needs one.
    pub successor: &'a Successor,
}

impl First<'_> {
    /// Becomes the container's program, or the pause process. Returns only a failure.
    pub(crate) fn run(&self, stdio: ChildStdio) -> Failure {
        match &self.spec.program {
            Program::Pause => pause::run(self.spec, self.channel, self.successor),
            Program::Container(container) => match self.enter(container, stdio) {
                Ok(login) => self.become_program(container, &login),
                Err(failure) => failure,
            },
        }
    }

    /// Does everything that takes privileges. Leaves this process in the container's root, and its
    /// future children in the container's PID namespace.
    fn enter(&self, container: &Container, stdio: ChildStdio) -> Result<Login> {
        let Self { dir, spec, channel, .. } = *self;
        let mapped = spec.namespaces.user.as_ref();
        // Hooks and other children must not be able to name a successor.
        self.successor.keep_from_children().step("madvise")?;
        // Through the host's /proc, and with the host's CAP_SYS_RESOURCE.
        limits::set_oom_score_adj(&container.process)?;
        begin(At::InitJoin)?;
        // The pins are paths of the host.
        join::join(&spec.namespaces)?;
        // Before the cgroup namespace, whose root is where this process is when it is made.
        cgroup::join_controllers(&spec.cgroups)?;
        // Opened now, as it is a path of the host as well. Entered at the very end.
        let joined = Joined::open(&spec.namespaces)?;
        begin(At::InitRootfs)?;
        // Sources of mounts are files of the host that only its root can open.
        let prepared = rootfs::prepare(dir, container, mapped, joined.as_ref())?;
        if let Some(user) = mapped {
            // Only root of the host can change an owner to an id of another user namespace.
            stdio.chown(user.root_uid, user.root_gid);
            // From here on this process is root of the pod and of nothing else. What is mounted
            // below is owned by the pod's user namespace.
            user::enter_user(user, &spec.namespaces.pid, self.successor)?;
        }
        if !spec.namespaces.host_cgroup {
            unshare(CloneFlags::CLONE_NEWCGROUP).step("unshare the cgroup namespace")?;
        }
        // The root is mounted over the host's `/`, which this process goes on seeing until it
        // pivots: that needs no directory. Hooks expect a path at which the root can be found.
        let bundle = Bundle::of(spec);
        let hooks = &container.hooks;
        let at = if hooks.is_empty() { PathBuf::from("/") } else { bundle.rootfs() };
        if !hooks.is_empty() {
            // `prestart` and `createRuntime` hooks run now, outside, when the namespaces exist and
            // nothing is mounted. The parent does not answer if one fails.
            channel::send(channel, &Message::Created, None);
            channel::receive(channel)?.ok_or_else(|| failure("the shim was killed", ""))?;
        }
        begin(At::InitAssemble)?;
        rootfs::assemble(&prepared, container, &at)?;
        // With the container's mounts in place and the host's programs still at their paths.
        bundle.run(&hooks.create_container, Status::Creating, std::process::id() as i32)?;
        // After the hooks: execve(2) of a hook would change to this label.
        credentials::set_label(&container.process)?;
        begin(At::InitEnter)?;
        rootfs::enter(&prepared, container)?;
        // Inside the root, because a terminal belongs to the container's own devpts, and /dev/null
        // to its own /dev.
        match stdio {
            ChildStdio::Terminal => terminal::open(channel, spec.stdio.window)?,
            pipes => install_first(pipes.replace_null()?)?,
        }
        let root = open_root()?;
        let login = passwd::resolve(root.as_fd(), &container.process.user)?;
        // After the hooks, which are children too, and see the host's root.
        joined.map_or(Ok(()), Joined::enter)?;
        // The last message before others can see a process of ours: see `await_start`.
        channel::send(channel, &Message::User(login.user.clone()), None);
        Ok(login)
    }

    /// Gives up privileges and executes the program. Returns only a failure.
    fn become_program(&self, container: &Container, login: &Login) -> Failure {
        let process = &container.process;
        // In a PID namespace of its own nobody is there who could trace this process.
        let place =
            matches!(self.spec.namespaces.pid, Namespace::Join(_)).then_some(self.successor);
        begin(At::InitProgram)
            .and_then(|()| credentials::assume(process, login, self.filter, self.channel))
            .and_then(|pass| {
                successor::enter_pid_namespace(process, place, pass)?;
                self.run_start_hooks(container)?;
                // With no more privileges than the program: it is in front of it all the time.
                if container.init { reaper::stay(process.tty, pass) } else { Ok(()) }
            })
            .map_or_else(|failure| failure, |()| program::execute(process, login))
    }

    /// `startContainer` hooks are programs of the container's root, where the image may have put
    /// its own. So they run with what the program has, and no more.
    fn run_start_hooks(&self, container: &Container) -> Result<()> {
        let hooks = &container.hooks.start_container;
        Bundle::of(self.spec).run(hooks, Status::Created, std::process::id() as i32)
    }
}
