//! What a streaming URL stands for.

use std::{path::PathBuf, sync::Arc};

use berth_node::container::Container;

use super::{
    copy,
    streams::{StreamOptions, Streams},
};

#[derive(Debug)]
pub enum Session {
    /// Exec and Attach.
    Process(Process),
    PortForward(PortForward),
}

/// A process of a container and its standard streams.
#[derive(Debug)]
pub struct Process {
    container: Arc<Container>,
    task: Task,
    pub options: StreamOptions,
}

#[derive(Debug)]
enum Task {
    /// Runs a command, given as its arguments.
    Exec(Vec<String>),
    /// Joins the container's first process.
    Attach,
}

/// Ports of a pod.
#[derive(Debug)]
pub struct PortForward {
    /// The pod's network namespace; `None` for the host's.
    pub netns: Option<PathBuf>,
    /// From the request, for WebSocket clients; SPDY clients name a port for each connection.
    pub ports: Vec<u16>,
}

impl Session {
    /// Runs `command` in a running container.
    pub fn exec(container: Arc<Container>, command: Vec<String>, options: StreamOptions) -> Self {
        Self::Process(Process { container, task: Task::Exec(command), options })
    }

    /// Joins the first process of a running container.
    pub fn attach(container: Arc<Container>, options: StreamOptions) -> Self {
        Self::Process(Process { container, task: Task::Attach, options })
    }

    /// Connects to ports of the pod with this network namespace; `None` stands for the host's.
    pub fn port_forward(netns: Option<PathBuf>, ports: Vec<u16>) -> Self {
        Self::PortForward(PortForward { netns, ports })
    }

    /// The first part of the URL's path.
    pub(super) fn verb(&self) -> &'static str {
        match self {
            Self::Process(Process { task: Task::Exec(_), .. }) => "exec",
            Self::Process(Process { task: Task::Attach, .. }) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }
}

impl Process {
    /// Serves a client until the process ends or the client leaves.
    pub(super) async fn run(self, streams: Streams) {
        match self.task {
            Task::Exec(command) => {
                copy::exec(&self.container, command, self.options.tty, streams).await;
            }
            Task::Attach => copy::attach(&self.container, self.options, streams).await,
        }
    }
}
