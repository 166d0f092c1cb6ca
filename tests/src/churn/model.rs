//! The words of the model: the states of a pod and of its containers, requests and answers. What
//! may come of a request is in `outcomes`, what is known after some of them in `belief`.
//!
//! ```text
//!            RunPod          StopPod             Create          Start           end, Stop
//!   Absent ----------> Ready ---------> NotReady    ---> Created ------> Running ----------> Exited
//!      ^                 |                 |               |    (Ready)     |                  |
//!      +-----------------+-----------------+               +---------- Remove, RemovePod ------+
//! ```

use tonic::Code;

/// How many containers a pod may have at the same time: each has a name of its own.
pub(super) const SLOTS: usize = 2;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sandbox {
    #[default]
    Absent,
    Ready,
    NotReady,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    #[default]
    Absent,
    Created,
    Running,
    /// With this exit code.
    Exited(i32),
}

/// What a container runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Program {
    /// Runs until it is stopped, and exits with 0 then.
    #[default]
    Patient,
    /// Ignores SIGTERM.
    Stubborn,
    /// Exits with [`ENDED`] after a moment.
    Brief,
}

/// The exit code of a program that ends by itself.
pub(super) const ENDED: i32 = 3;
/// The exit code of a command that fails.
pub(super) const FAILED: i32 = 7;
/// The exit code of what SIGKILL ended, and of a container whose shim was killed.
pub(super) const KILLED: i32 = 137;
/// The `cpu_shares` that containers are created with.
pub(super) const SHARES: i64 = 100;

/// The exit code of what SIGTERM ended before it could catch the signal.
const TERMINATED: i32 = 143;
/// The exit code of a container whose program never ran.
pub(super) const NOT_STARTED: i32 = 128;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Container {
    pub phase: Phase,
    pub program: Program,
    /// Its `cpu_shares`.
    pub shares: i64,
    /// A stop was begun whose caller did not hear of its end. It may be completed at any time.
    pub stopping: bool,
}

/// One pod: its sandbox and what has each of its containers' names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pod {
    pub sandbox: Sandbox,
    pub containers: [Container; SLOTS],
}

/// A command for ExecSync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Prints what it is told to.
    Echo,
    /// Exits with [`FAILED`].
    Fail,
    /// Is not in the image.
    Missing,
}

/// A request. A slot is the index of a container's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    RunPod,
    StopPod,
    RemovePod,
    PodStatus,
    /// The pod and its containers in ListPodSandbox and ListContainers.
    List,
    Create {
        slot: usize,
        program: Program,
        /// An image that others may remove.
        shared_image: Option<usize>,
    },
    Start {
        slot: usize,
    },
    Stop {
        slot: usize,
        grace: i64,
    },
    Remove {
        slot: usize,
    },
    Status {
        slot: usize,
    },
    Exec {
        slot: usize,
        command: Command,
    },
    Update {
        slot: usize,
        shares: i64,
    },
}

impl Verb {
    /// The RPC, for tables.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::RunPod => "RunPodSandbox",
            Self::StopPod => "StopPodSandbox",
            Self::RemovePod => "RemovePodSandbox",
            Self::PodStatus => "PodSandboxStatus",
            Self::List => "List",
            Self::Create { .. } => "CreateContainer",
            Self::Start { .. } => "StartContainer",
            Self::Stop { .. } => "StopContainer",
            Self::Remove { .. } => "RemoveContainer",
            Self::Status { .. } => "ContainerStatus",
            Self::Exec { .. } => "ExecSync",
            Self::Update { .. } => "UpdateContainer",
        }
    }
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    /// PodSandboxStatus.
    Sandbox(Sandbox),
    /// ContainerStatus.
    Container {
        phase: Phase,
        shares: i64,
    },
    /// Lists do not show exit codes: here they are 0.
    Listed(Sandbox, [Phase; SLOTS]),
    /// The exit code of an ExecSync.
    Output(i32),
    Refused(Code),
    /// The connection broke, since the daemon was killed: the verb may be done, or not, or half.
    Interrupted,
}

/// What was killed and may be the reason of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    /// The shim of each slot's container: at any time since its creation.
    pub shims: [bool; SLOTS],
    /// The process that holds the pod's PID namespace, at any time since the pod was run.
    pub pause: bool,
    /// Something that RunPodSandbox launches, whichever pod's, while the verb was under way.
    pub launches: bool,
}

impl Pod {
    pub(super) fn with(&self, slot: usize, container: Container) -> Self {
        let mut pod = *self;
        pod.containers[slot] = container;
        pod
    }

    pub(super) fn each(&self, change: impl Fn(Container) -> Container) -> Self {
        Self { containers: self.containers.map(change), ..*self }
    }

    pub(super) fn in_state(&self, sandbox: Sandbox) -> Self {
        Self { sandbox, ..*self }
    }
}

impl Container {
    pub(super) fn exited(self, code: i32) -> Self {
        Self { phase: Phase::Exited(code), stopping: false, ..self }
    }

    /// As StopPodSandbox leaves it.
    pub(super) fn killed(self) -> Self {
        if self.phase == Phase::Running { self.exited(KILLED) } else { self }
    }

    pub(super) fn being_stopped(self) -> Self {
        Self { stopping: self.phase == Phase::Running, ..self }
    }

    /// The exit codes that a stop may lead to. A program that ends by itself meanwhile is the
    /// business of `outcomes::spontaneous`.
    pub(super) fn stopped_codes(self, grace: i64) -> &'static [i32] {
        match self.program {
            _ if grace <= 0 => &[KILLED],
            Program::Stubborn => &[KILLED, TERMINATED],
            Program::Patient => &[0, KILLED, TERMINATED],
            // The first process of a PID namespace is spared signals that it does not catch.
            Program::Brief => &[KILLED, TERMINATED],
        }
    }
}
