//! The execs that were asked for, and what became of them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use berth_base::id;
use berth_node::container::stdio::Window;
use http::StatusCode;

use crate::{
    api::exec::ExecBody,
    container::{object::Container, state::Phase},
    http::error::{Failure, Result},
    streams::detach::DEFAULT_KEYS,
};

/// How long one that has ended is known: clients ask for the exit code after the end.
const KEPT: Duration = Duration::from_secs(600);

/// By their ids.
#[derive(Debug, Default)]
pub(crate) struct Execs(Mutex<HashMap<String, Arc<Exec>>>);

/// One command for a running container.
#[derive(Debug)]
pub(crate) struct Exec {
    /// 64 hexadecimal digits.
    pub id: String,
    pub container: Arc<Container>,
    pub body: ExecBody,
    pub command: Vec<String>,
    /// As they were asked for; none means the default ones.
    pub detach_keys: Vec<u8>,
    progress: Mutex<Progress>,
}

/// How far an exec has come.
#[derive(Debug)]
pub(crate) enum Progress {
    Created,
    Running {
        pid: u32,
        window: Option<Window>,
    },
    Ended {
        exit_code: i32,
        /// 0 if it did not start.
        pid: u32,
        at: Instant,
    },
}

impl Execs {
    /// Keeps a new one.
    pub(crate) fn add(
        &self,
        container: Arc<Container>,
        body: ExecBody,
        command: Vec<String>,
        detach_keys: Vec<u8>,
    ) -> Arc<Exec> {
        let exec = Arc::new(Exec {
            id: id::random_hex(32),
            container,
            body,
            command,
            detach_keys,
            progress: Mutex::new(Progress::Created),
        });
        let mut execs = lock(&self.0);
        execs.retain(|_, exec| !exec.is_forgotten());
        execs.insert(exec.id.clone(), exec.clone());
        exec
    }

    /// # Errors
    /// 404.
    pub(crate) fn find(&self, id: &str) -> Result<Arc<Exec>> {
        let exec = lock(&self.0).get(id).filter(|exec| !exec.is_forgotten()).cloned();
        exec.ok_or_else(|| Failure::not_found(format!("No such exec instance: {id}")))
    }

    /// The ids of those of a container that have not ended.
    pub(crate) fn of(&self, container: &Container) -> Vec<String> {
        let execs = lock(&self.0);
        let own = execs.values().filter(|exec| exec.container.id == container.id);
        own.filter(|exec| !matches!(*exec.progress(), Progress::Ended { .. }))
            .map(|exec| exec.id.clone())
            .collect()
    }
}

impl Exec {
    pub(crate) fn progress(&self) -> MutexGuard<'_, Progress> {
        lock(&self.progress)
    }

    /// Whether nobody asks for it any more.
    fn is_forgotten(&self) -> bool {
        match *self.progress() {
            Progress::Ended { at, .. } => at.elapsed() > KEPT,
            _ => self.container.is_removed(),
        }
    }

    /// The keys that leave its terminal.
    pub(crate) fn keys(&self) -> Vec<u8> {
        match self.detach_keys.is_empty() {
            true => DEFAULT_KEYS.to_vec(),
            false => self.detach_keys.clone(),
        }
    }

    /// Takes it for the one start that it has.
    ///
    /// # Errors
    /// 409 if it was started before.
    pub(crate) fn begin(&self) -> Result<()> {
        let mut progress = self.progress();
        let what = match *progress {
            Progress::Created => {
                *progress = Progress::Running { pid: 0, window: None };
                return Ok(());
            }
            Progress::Running { .. } => "is already running",
            Progress::Ended { .. } => "has already run",
        };
        Err(Failure::conflict(format!("exec command {} {what}", self.id)))
    }

    pub(crate) fn runs_as(&self, pid: u32, window: Option<Window>) {
        *self.progress() = Progress::Running { pid, window };
    }

    pub(crate) fn end(&self, exit_code: i32) {
        let mut progress = self.progress();
        let pid = match *progress {
            Progress::Running { pid, .. } => pid,
            _ => 0,
        };
        *progress = Progress::Ended { exit_code, pid, at: Instant::now() };
    }
}

/// Refuses what needs a running container. `name` is what the client calls it.
///
/// # Errors
/// 409 in dockerd's words.
pub(crate) fn check_active(container: &Container, name: &str) -> Result<()> {
    let state = container.state();
    let id = &container.id;
    let why = match state.phase {
        Phase::Paused { .. } => {
            format!("Container {name} is paused, unpause the container before exec")
        }
        Phase::Restarting => {
            format!("Container {id} is restarting, wait until the container is running")
        }
        Phase::Running { .. } => return Ok(()),
        _ => format!("container {id} is not running"),
    };
    Err(Failure::new(StatusCode::CONFLICT, why))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
