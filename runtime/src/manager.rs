//! What the daemon tells its service manager (sd_notify(3)). All of it fails without one, and then
//! nobody is there to hear it.

use std::sync::Arc;

use berth_node::{Node, container::State};
use sd_notify::NotifyState;

/// What there is to run in, besides its own: pods, and containers of docker.
#[derive(Clone, Debug)]
pub(crate) struct Nodes {
    pub pods: Arc<Node>,
    pub engine: Arc<Node>,
}

impl Nodes {
    /// How many containers run. It takes the locks of all of them, as every list does.
    fn running(&self) -> usize {
        let containers = [&self.pods, &self.engine].map(|node| node.containers.all());
        let running = |state: State| matches!(state, State::Running { .. });
        containers.iter().flatten().filter(|container| running(container.state())).count()
    }
}

/// The sockets accept clients (`Type=notify`).
pub(crate) fn ready(nodes: &Nodes) {
    let status = serving(nodes);
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
    if let Some(period) = sd_notify::watchdog_enabled() {
        tokio::spawn(beat(nodes.clone(), period / 3));
    }
}

/// Tells the watchdog (`WatchdogSec=`) that the daemon's tasks are run and that its locks are given
/// back: with either one stuck no request is served, and a daemon that is killed loses nothing. It
/// asks no disk, as one that hangs would hang in the next daemon as well.
async fn beat(nodes: Nodes, every: std::time::Duration) {
    let mut beats = tokio::time::interval(every);
    loop {
        beats.tick().await;
        let status = serving(&nodes);
        let _ = sd_notify::notify(&[NotifyState::Watchdog, NotifyState::Status(&status)]);
    }
}

/// The daemon ends, and nothing else does.
pub(crate) fn stopping(nodes: &Nodes) {
    let left = match nodes.running() {
        1 => "1 container runs on".to_owned(),
        running => format!("{running} containers run on"),
    };
    tracing::info!("ends; {left}, and the next berthd takes them over");
    let status = format!("Ended; {left}");
    let _ = sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status(&status)]);
}

fn serving(nodes: &Nodes) -> String {
    match nodes.running() {
        1 => "Serving; 1 container runs".to_owned(),
        running => format!("Serving; {running} containers run"),
    }
}
