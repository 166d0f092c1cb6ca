//! Churn of docker's verbs: as that of CRI's, with containers of the Docker Engine API. Half of them
//! have the policy `always`, and half of all end at once.

mod client;
mod model;

use std::{collections::BTreeSet, fs, sync::Arc, time::Instant};

use anyhow::{Context, ensure};

use super::{
    BACKGROUND, KILLER, Plan, ROUND, Report, board::Board, fight, kills::Killer, random::Random,
    tell, within,
};
use crate::{Daemon, Engine, Image, Machine, engine};

use self::client::Client;

struct Churn {
    machine: Arc<Machine>,
    board: Arc<Board>,
    clients: Vec<Client>,
    killer: Killer,
    deadline: Instant,
}

/// Runs it on a machine of its own and returns what was done; `pods` of the plan are containers.
/// `progress` is called every few seconds.
///
/// # Errors
/// Something that the model does not allow: an answer, or what was left behind.
pub async fn run(
    plan: Plan,
    progress: impl Fn(&Report) + Send + 'static,
) -> anyhow::Result<Arc<Report>> {
    ensure!(plan.clients > 0 && plan.pods >= plan.clients, "each client needs a container");
    let mut machine = Machine::new();
    machine.config = engine::config();
    let machine = Arc::new(machine);
    let daemon = machine.start().await;
    let image = daemon.cri().pull_image(&machine, Image::busybox()).await;
    let (board, report) = (Arc::<Board>::default(), Arc::<Report>::default());
    let api = Engine::of(&machine);
    let clients = (0..plan.clients).map(|number| {
        let random = Random::part(plan.seed, number as u64);
        let containers = (plan.pods + number) / plan.clients;
        Client::new((number, &image, &api), (&board, &report), random, containers)
    });
    let churn = Churn {
        clients: clients.collect(),
        killer: Killer {
            machine: machine.clone(),
            board: board.clone(),
            report: report.clone(),
            random: Random::part(plan.seed, KILLER),
        },
        machine: machine.clone(),
        board,
        deadline: Instant::now() + plan.duration,
    };
    let telling = tokio::spawn(tell(report.clone(), progress));
    let outcome = churn.run(daemon).await;
    telling.abort();
    outcome.with_context(|| {
        // The machine's directory goes with the machine.
        let kept = std::env::temp_dir().join(format!("berth-churn-{}.log", plan.seed));
        let log = fs::copy(machine.path("berthd.log"), &kept)
            .map_or_else(|error| error.to_string(), |_| kept.display().to_string());
        let Plan { seed, clients, pods, .. } = plan;
        format!("seed {seed}, {clients} clients, {pods} containers, berthd's log: {log}\n{report}")
    })?;
    Ok(report)
}

impl Churn {
    async fn run(mut self, mut daemon: Daemon) -> anyhow::Result<()> {
        loop {
            daemon = self.round(daemon).await?;
            self.quiet_point().await.context("at a quiet point")?;
            if Instant::now() >= self.deadline {
                break;
            }
        }
        self.removal().await.context("at the removal of everything")
    }

    async fn round(&mut self, daemon: Daemon) -> anyhow::Result<Daemon> {
        let deadline = self.deadline;
        let work = move |mut client: Client| async move {
            let done = client.round(ROUND, deadline).await;
            (client, done)
        };
        fight(&self.board, &mut self.killer, daemon, &mut self.clients, work).await
    }

    /// Everything that is listed, and every shim that there is, is what is known of.
    async fn quiet_point(&mut self) -> anyhow::Result<()> {
        let mut standing = Vec::new();
        for client in &mut self.clients {
            standing.extend(client.compare().await?);
        }
        let api = Engine::of(&self.machine);
        let list = api.get("/containers/json?all=1").await;
        let listed: BTreeSet<&str> =
            list.as_array().into_iter().flatten().filter_map(|one| one["Id"].as_str()).collect();
        let known: BTreeSet<&str> = standing.iter().map(|(id, _)| id.as_str()).collect();
        ensure!(listed == known, "listed: {listed:?}, known: {known:?}");
        let may_run: BTreeSet<&str> =
            standing.iter().filter(|(_, may)| *may).map(|(id, _)| id.as_str()).collect();
        within(BACKGROUND, || {
            let shims = self.machine.shims();
            let kept: BTreeSet<&str> = shims
                .iter()
                .filter_map(|(_, command)| command.split_once("/containers/")?.1.split(' ').next())
                .collect();
            let unknown: Vec<_> = kept.difference(&may_run).collect();
            ensure!(unknown.is_empty(), "shims of containers that do not run: {unknown:?}");
            Ok(())
        })
        .await
    }

    async fn removal(&mut self) -> anyhow::Result<()> {
        for client in &mut self.clients {
            client.remove_all().await?;
        }
        within(BACKGROUND, || {
            let mut left = self.machine.leftovers();
            let containers = fs::read_dir(self.machine.path("root/engine/containers"));
            left.extend(containers?.flatten().map(|entry| entry.path().display().to_string()));
            ensure!(left.is_empty(), "left behind:\n{}", left.join("\n"));
            Ok(())
        })
        .await
    }
}
