//! Churn: clients make random verbs on many pods, daemon, shims, pins and plugins are killed
//! meanwhile, and every answer is held against a model of what CRI allows.
//!
//! What is random comes from a seed, which a failure names: the same seed makes the same verbs.
//! What the machine makes of them, and whom a kill meets, differs from run to run. A run consists of
//! rounds; each ends with a quiet point, at which everything is compared, and some with the removal
//! of everything.

mod belief;
mod board;
mod client;
pub mod docker;
mod events;
mod images;
mod kills;
mod model;
mod outcomes;
mod random;
mod report;
mod requests;
mod script;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use tokio::{sync::watch, task::JoinHandle};

pub use self::report::{Report, percentile};
use self::{
    board::Board,
    client::{Client, Standing, World},
    events::follow,
    images::Images,
    kills::Killer,
    random::Random,
    requests::find,
};
use crate::{daemon::Daemon, machine::Machine};

/// How many verbs a client makes in a round.
const ROUND: usize = 120;
/// Everything is removed after so many rounds.
const REMOVAL: usize = 4;
/// How long what a removal leaves to the background may take: a DEL that was killed several times
/// is tried again after some seconds.
const BACKGROUND: Duration = Duration::from_secs(60);
/// The number of the generator that chooses kills; clients have the numbers from 0 on.
const KILLER: u64 = 1 << 32;

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    pub clients: usize,
    /// Of all clients together.
    pub pods: usize,
    pub duration: Duration,
}

/// Runs it on a machine of its own and returns what was done. `progress` is called every few
/// seconds.
///
/// # Errors
/// Something that the model does not allow: an answer, an event, or what was left behind.
pub async fn run(
    plan: Plan,
    progress: impl Fn(&Report) + Send + 'static,
) -> anyhow::Result<Arc<Report>> {
    ensure!(plan.clients > 0 && plan.pods >= plan.clients, "each client needs a pod");
    let machine = Arc::new(Machine::new());
    let daemon = machine.start().await;
    let world = World {
        board: Arc::default(),
        ledger: Arc::default(),
        report: Arc::default(),
        images: Arc::new(Images::serve(&machine, plan.clients)),
        machine,
    };
    let report = world.report.clone();
    let machine = world.machine.clone();
    let telling = tokio::spawn(tell(report.clone(), progress));
    let outcome = Churn::new(plan, world).run(daemon).await;
    telling.abort();
    outcome.with_context(|| {
        // The machine's directory goes with the machine.
        let kept = std::env::temp_dir().join(format!("berth-churn-{}.log", plan.seed));
        let log = std::fs::copy(machine.path("berthd.log"), &kept)
            .map_or_else(|error| error.to_string(), |_| kept.display().to_string());
        let Plan { seed, clients, pods, .. } = plan;
        format!("seed {seed} with {clients} clients and {pods} pods, berthd's log: {log}\n{report}")
    })?;
    Ok(report)
}

async fn tell(report: Arc<Report>, progress: impl Fn(&Report)) {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        progress(&report);
    }
}

struct Churn {
    world: World,
    deadline: Instant,
    clients: Vec<Client>,
    killer: Killer,
    /// Follows the events. It ends only with an error.
    listener: JoinHandle<anyhow::Result<()>>,
}

impl Churn {
    fn new(plan: Plan, world: World) -> Self {
        let pods_of = |client| (plan.pods + client) / plan.clients;
        let clients = (0..plan.clients)
            .map(|number| Client::new(world.clone(), plan.seed, number, pods_of(number)))
            .collect();
        let killer = Killer {
            machine: world.machine.clone(),
            board: world.board.clone(),
            report: world.report.clone(),
            random: Random::part(plan.seed, KILLER),
        };
        let socket = world.machine.path("berth.sock");
        let listener = tokio::spawn(follow(
            socket,
            world.board.clone(),
            world.ledger.clone(),
            world.report.clone(),
        ));
        Self { world, deadline: Instant::now() + plan.duration, clients, killer, listener }
    }

    async fn run(mut self, mut daemon: Daemon) -> anyhow::Result<()> {
        let stays = self.world.images.names()[0].clone();
        daemon.cri().pull(&stays).await.context("pull the image of all pods")?;
        for round in 1.. {
            daemon = self.round(daemon).await?;
            self.quiet_point(&daemon).await.context("at a quiet point")?;
            let is_last = Instant::now() >= self.deadline;
            if is_last || round % REMOVAL == 0 {
                self.removal().await.context("at the removal of everything")?;
            }
            if is_last {
                break;
            }
        }
        self.listener.abort();
        Ok(())
    }

    async fn round(&mut self, daemon: Daemon) -> anyhow::Result<Daemon> {
        let deadline = self.deadline;
        let work = move |mut client: Client| async move {
            let done = client.round(ROUND, deadline).await;
            (client, done)
        };
        let board = self.world.board.clone();
        let fought = fight(&board, &mut self.killer, daemon, &mut self.clients, work).await;
        self.check_listener().await?;
        fought
    }

    async fn check_listener(&mut self) -> anyhow::Result<()> {
        if self.listener.is_finished() {
            (&mut self.listener).await.context("the listener panicked")?.context("events")?;
            bail!("the listener of events has gone");
        }
        Ok(())
    }

    /// Everything that is listed, and every process and network that there is, is what is known of.
    async fn quiet_point(&mut self, daemon: &Daemon) -> anyhow::Result<()> {
        let mut all = Standing::default();
        for client in &mut self.clients {
            let standing = client.compare().await?;
            all.ready += standing.ready;
            all.running.extend(standing.running);
            all.broken += standing.broken;
            all.listed += standing.listed;
        }
        let (pods, containers) = find(&daemon.cri(), "").await?;
        let listed = pods.len() + containers.len();
        ensure!(listed == all.listed, "{listed} objects are listed, {} are known", all.listed);
        self.world.ledger.settle().await?;
        self.check_listener().await?;
        self.compare_processes(&all).await
    }

    /// A shim for each container that runs, and a network namespace and an address for each pod
    /// that is ready.
    async fn compare_processes(&self, all: &Standing) -> anyhow::Result<()> {
        let machine = &self.world.machine;
        let running: BTreeSet<&str> = all.running.iter().map(String::as_str).collect();
        let compare = || {
            let shims = machine.shims();
            let kept: BTreeSet<&str> = shims
                .iter()
                .filter_map(|(_, command)| command.split_once("/containers/")?.1.split(' ').next())
                .collect();
            // A brief program may have ended since.
            let unknown: Vec<&&str> = kept.difference(&running).collect();
            ensure!(unknown.is_empty(), "shims of containers that do not run: {unknown:?}");
            let left = machine.leftovers();
            // Of the files for one address the one that names its pod.
            for (what, mark) in [("netns ", ""), ("link ", ""), ("address ", "@")] {
                let is_one = |line: &&String| line.starts_with(what) && line.contains(mark);
                let count = left.iter().filter(is_one).count();
                let pods = all.ready..=all.ready + all.broken;
                ensure!(pods.contains(&count), "{count} of {what} for {pods:?} pods: {left:#?}");
            }
            Ok(())
        };
        within(BACKGROUND, compare).await
    }

    async fn removal(&mut self) -> anyhow::Result<()> {
        for client in &mut self.clients {
            client.remove_all().await?;
        }
        self.world.ledger.settle().await?;
        let machine = &self.world.machine;
        within(BACKGROUND, || {
            let left = machine.leftovers();
            ensure!(left.is_empty(), "left behind:\n{}", left.join("\n"));
            Ok(())
        })
        .await
    }
}

/// All clients do their work, while somebody kills. Gives the daemon that runs then.
///
/// # Errors
/// The daemon's failure, which explains those of the clients, or else the first of these, which
/// explains the others.
async fn fight<C: Send + 'static, W>(
    board: &Arc<Board>,
    killer: &mut Killer,
    daemon: Daemon,
    clients: &mut Vec<C>,
    work: impl Fn(C) -> W,
) -> anyhow::Result<Daemon>
where
    W: Future<Output = (C, anyhow::Result<()>)> + Send + 'static,
{
    let (peace, war) = watch::channel(false);
    let mut working = Vec::new();
    for client in clients.drain(..) {
        let (board, work) = (board.clone(), work(client));
        working.push(tokio::spawn(async move {
            let (client, done) = work.await;
            if done.is_err() {
                board.fail();
            }
            (client, done)
        }));
    }
    let killing = async {
        let killed = killer.run(daemon, war).await;
        if killed.is_err() {
            // Releases the clients, who wait for a daemon that serves.
            board.fail();
            board.daemon_serves();
        }
        killed
    };
    let ending = async {
        let mut ended = Vec::new();
        for client in working {
            ended.push(client.await);
        }
        peace.send_replace(true);
        ended
    };
    let (killed, ended) = tokio::join!(killing, ending);
    let daemon = killed?;
    let mut first = None;
    for client in ended {
        let (client, done) = client.context("a client panicked")?;
        clients.push(client);
        if let Err(error) = done
            && first.as_ref().is_none_or(is_consequence)
        {
            first = Some(error);
        }
    }
    first.map_or(Ok(daemon), Err)
}

/// Whether an error only says that another client has failed.
fn is_consequence(error: &anyhow::Error) -> bool {
    ["another client has failed", "no daemon serves"].contains(&error.to_string().as_str())
}

/// Waits until `check` succeeds.
///
/// # Errors
/// The last one of the check, when it does not succeed in time.
async fn within(limit: Duration, check: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let checked = check();
        if checked.is_ok() || Instant::now() >= deadline {
            return checked;
        }
        // Polled: nobody announces that a process or a file of another program is gone.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
