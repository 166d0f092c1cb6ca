//! One client: it follows its script on pods of its own, one verb after the other, and holds what
//! it knows of each pod against every answer.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail, ensure};
use tonic::Code;

use super::{
    belief::Belief,
    board::{Board, Moment},
    events::{Kind, Ledger},
    images::{Images, Tools},
    model::{Answer, Faults, Phase, SLOTS, Sandbox, Verb},
    report::Report,
    requests::{Reply, Target, ask, find, slot},
    script::{Script, Step},
};
use crate::{client::Cri, machine::Machine};

/// How long a daemon that has just started may not know what became of a container.
const UNKNOWN: Duration = Duration::from_secs(30);
/// How many verbs on a pod an error shows.
const TRACE: usize = 25;

/// What all clients share.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub machine: Arc<Machine>,
    pub board: Arc<Board>,
    pub ledger: Arc<Ledger>,
    pub report: Arc<Report>,
    pub images: Arc<Images>,
}

/// What came of one attempt.
enum Outcome {
    Answered,
    /// The verb is to be made again.
    Again,
    /// So far the daemon does not know the container's state.
    Unknown(String),
}

/// A pod and what is known of it.
#[derive(Debug)]
struct Known {
    target: Target,
    belief: Belief,
    /// The last verbs and their answers.
    trace: VecDeque<String>,
}

#[derive(Debug)]
pub(super) struct Client {
    number: usize,
    world: World,
    script: Script,
    pods: Vec<Known>,
    cri: Cri,
    /// The daemon that `cri` is connected to.
    generation: Option<u64>,
}

impl Client {
    pub(super) fn new(world: World, seed: u64, number: usize, pods: usize) -> Self {
        let known = |pod| Known {
            // Of every third pod the containers share a PID namespace.
            target: Target::new(format!("pod-{number}-{pod}"), pod % 3 == 2),
            belief: Belief::default(),
            trace: VecDeque::new(),
        };
        let cri = Cri::connect(&world.machine.path("berth.sock"));
        let script = Script::new(seed, number, pods, world.images.shared());
        Self { number, world, script, pods: (0..pods).map(known).collect(), cri, generation: None }
    }

    /// Makes so many verbs, and fewer when the deadline comes or another client has failed.
    ///
    /// # Errors
    /// An answer is wrong.
    pub(super) async fn round(&mut self, verbs: usize, deadline: Instant) -> anyhow::Result<()> {
        for _ in 0..verbs {
            if Instant::now() >= deadline || self.world.board.has_failed() {
                break;
            }
            match self.script.next() {
                Some(Step::Pod { pod, verb, twice }) => self.perform(pod, verb, twice).await?,
                Some(Step::Image { verb, contested }) => {
                    self.connect().await;
                    let World { images, board, report, .. } = &self.world;
                    let tools = Tools { cri: &self.cri, board, report };
                    images.perform(self.number, (verb, contested), tools).await?;
                }
                None => break,
            }
        }
        Ok(())
    }

    /// Asks for everything that is known of its pods, while nobody is killed; returns how many of
    /// its pods are ready and the ids of its containers that run.
    ///
    /// # Errors
    /// Something is not as it was answered.
    pub(super) async fn compare(&mut self) -> anyhow::Result<Standing> {
        let mut standing = Standing::default();
        for pod in 0..self.pods.len() {
            self.perform(pod, Verb::PodStatus, false).await?;
            for slot in 0..SLOTS {
                self.perform(pod, Verb::Status { slot }, false).await?;
            }
            self.perform(pod, Verb::List, false).await?;
            let known = &self.pods[pod];
            for state in known.belief.states() {
                standing.ready += usize::from(state.sandbox == Sandbox::Ready);
                let is_broken = self.world.board.shim_died(&known.target.id);
                standing.broken += usize::from(state.sandbox == Sandbox::NotReady && is_broken);
                standing.listed += usize::from(state.sandbox != Sandbox::Absent);
                for (slot, container) in state.containers.iter().enumerate() {
                    standing.listed += usize::from(container.phase != Phase::Absent);
                    if container.phase == Phase::Running {
                        standing.running.push(known.target.containers[slot].clone());
                    }
                }
            }
        }
        Ok(standing)
    }

    /// Removes all of its pods.
    ///
    /// # Errors
    /// One cannot be removed.
    pub(super) async fn remove_all(&mut self) -> anyhow::Result<()> {
        for pod in 0..self.pods.len() {
            self.perform(pod, Verb::RemovePod, false).await?;
        }
        self.script.forget();
        Ok(())
    }

    /// Waits until a daemon serves, and connects to it if it is a new one.
    async fn connect(&mut self) {
        let generation = Some(self.world.board.served().await);
        if self.generation != generation {
            self.generation = generation;
            // Not the old connection, which may not have been found broken yet.
            self.cri = Cri::connect(&self.world.machine.path("berth.sock"));
        }
    }

    /// Makes a verb, and again for as long as the daemon is killed meanwhile, or a launch of
    /// RunPodSandbox, as the kubelet does.
    async fn perform(&mut self, pod: usize, verb: Verb, twice: bool) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut twice = twice;
        loop {
            match self.attempt(pod, verb, twice).await? {
                Outcome::Answered => return Ok(()),
                Outcome::Again => {}
                Outcome::Unknown(why) => {
                    if begun.elapsed() > UNKNOWN {
                        return Err(self.wrong(pod, &format!("{verb:?}: for ever unknown: {why}")));
                    }
                    // It is found out in the background, which nothing announces.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            if self.world.board.has_failed() {
                bail!("another client has failed");
            }
            twice = false;
        }
    }

    async fn attempt(&mut self, pod: usize, verb: Verb, twice: bool) -> anyhow::Result<Outcome> {
        self.connect().await;
        let before = self.world.board.now();
        let listening = self.world.ledger.generation();
        let clock = Instant::now();
        let replies = self.requests(pod, verb, twice).await;
        let replies = replies.map_err(|error| self.wrong(pod, &format!("{error:#}")))?;
        let after = self.world.board.now();
        let answers: Vec<Answer> = replies.iter().filter_map(Reply::answer).collect();
        for answer in &answers {
            self.world.report.verb(verb.name(), *answer, clock.elapsed());
        }
        let is_interrupted = answers.contains(&Answer::Interrupted);
        if is_interrupted && !after.daemon_died_since(before) {
            return Err(self.wrong(pod, &format!("{verb:?}: the connection broke")));
        }
        let removed = self.removed_by(pod, verb);
        self.learn_ids(pod, verb, &replies).await?;
        self.believe(pod, verb, &answers, (before, after))?;
        for reply in replies {
            if let Reply::Unknown(why) = reply {
                return Ok(Outcome::Unknown(why));
            }
        }
        if is_interrupted || answers == [Answer::Refused(Code::Internal)] {
            return Ok(Outcome::Again);
        }
        // Events are due only of a daemon that lived and was listened to all the time.
        let lived = after.generation().filter(|_| !after.daemon_died_since(before));
        if lived.is_some() && lived == listening && answers.contains(&Answer::Done) {
            self.expect_events(pod, verb, &removed, lived.unwrap_or_default());
        }
        Ok(Outcome::Answered)
    }

    /// The request, or the same one twice at the same time.
    async fn requests(&self, pod: usize, verb: Verb, twice: bool) -> anyhow::Result<Vec<Reply>> {
        let target = &self.pods[pod].target;
        let once = || {
            Box::pin(ask(&self.cri, &self.world.machine, target, verb, self.world.images.names()))
        };
        if twice {
            let (one, other) = tokio::join!(once(), once());
            return Ok(vec![one?, other?]);
        }
        Ok(vec![once().await?])
    }

    /// Narrows down what is known by the answers, of which there are none, one or two.
    fn believe(
        &mut self,
        pod: usize,
        verb: Verb,
        answers: &[Answer],
        (before, after): (Moment, Moment),
    ) -> anyhow::Result<()> {
        let faults = self.faults(pod, (before, after));
        let known = &mut self.pods[pod];
        let believed = match answers {
            [] => Some(known.belief.clone()),
            [answer] => known.belief.after(verb, *answer, faults),
            [one, other, ..] => known.belief.after_twins(verb, [*one, *other], faults),
        };
        let line = format!("{verb:?}: {answers:?}");
        let Some(belief) = believed else {
            let allowed = known.belief.allowed(verb, faults);
            let states: Vec<_> = known.belief.states().collect();
            let what = format!("{line}\nallowed: {allowed:?}\n{faults:?}\nfrom: {states:#?}");
            return Err(self.wrong(pod, &what));
        };
        known.belief = belief;
        known.trace.push_back(line);
        if known.trace.len() > TRACE {
            known.trace.pop_front();
        }
        Ok(())
    }

    fn faults(&self, pod: usize, (before, after): (Moment, Moment)) -> Faults {
        let target = &self.pods[pod].target;
        let board = &self.world.board;
        Faults {
            shims: target.containers.each_ref().map(|id| board.shim_died(id)),
            pause: target.shares_pids && board.shim_died(&target.id),
            launches: after.launch_killed_since(before),
        }
    }

    /// Notes the ids of what was made, and looks for it where nobody said whether it was.
    async fn learn_ids(&mut self, pod: usize, verb: Verb, replies: &[Reply]) -> anyhow::Result<()> {
        if !matches!(verb, Verb::RunPod | Verb::Create { .. }) {
            return Ok(());
        }
        let mut ids = replies.iter().filter_map(|reply| match reply {
            Reply::Made(id) => Some(id.clone()),
            _ => None,
        });
        let Some(id) = ids.next() else { return self.look_up(pod).await };
        if let Some(other) = ids.next().filter(|other| *other != id) {
            return Err(self.wrong(pod, &format!("{verb:?} twice made {id} and {other}")));
        }
        let target = &mut self.pods[pod].target;
        match verb {
            Verb::Create { slot, .. } => target.containers[slot] = id,
            _ => target.id = id,
        }
        Ok(())
    }

    async fn look_up(&mut self, pod: usize) -> anyhow::Result<()> {
        loop {
            self.connect().await;
            let before = self.world.board.now();
            match find(&self.cri, &self.pods[pod].target.name).await {
                Ok((pods, containers)) => {
                    let target = &mut self.pods[pod].target;
                    if let Some(found) = pods.first() {
                        target.id.clone_from(&found.id);
                    }
                    for container in &containers {
                        let slot = slot(container).context("a container without a slot")?;
                        target.containers[slot].clone_from(&container.id);
                    }
                    return Ok(());
                }
                Err(status) => {
                    let died = self.world.board.now().daemon_died_since(before);
                    ensure!(died, "cannot list {}: {status}", self.pods[pod].target.name);
                    ensure!(!self.world.board.has_failed(), "no daemon serves");
                }
            }
        }
    }

    /// What the verb is about to remove: ids that are certain to exist.
    fn removed_by(&self, pod: usize, verb: Verb) -> Vec<String> {
        let known = &self.pods[pod];
        let certain = |is: &dyn Fn(&super::model::Pod) -> bool| known.belief.states().all(is);
        let mut ids = Vec::new();
        if verb == Verb::RemovePod && certain(&|state| state.sandbox != Sandbox::Absent) {
            ids.push(known.target.id.clone());
        }
        for slot in 0..SLOTS {
            let is_removed = verb == Verb::RemovePod
                || matches!(verb, Verb::Remove { slot: own } if own == slot);
            if is_removed && certain(&|state| state.containers[slot].phase != Phase::Absent) {
                ids.push(known.target.containers[slot].clone());
            }
        }
        ids
    }

    /// What the daemon has to say once it has done a verb.
    fn expect_events(&self, pod: usize, verb: Verb, removed: &[String], generation: u64) {
        let target = &self.pods[pod].target;
        let expect = |id: &str, kind| self.world.ledger.expect(generation, id, kind);
        match verb {
            Verb::RunPod => {
                expect(&target.id, Kind::Created);
                expect(&target.id, Kind::Started);
            }
            Verb::Create { slot, .. } => expect(&target.containers[slot], Kind::Created),
            Verb::Start { slot } => expect(&target.containers[slot], Kind::Started),
            Verb::Remove { .. } | Verb::RemovePod => {
                removed.iter().for_each(|id| expect(id, Kind::Deleted));
            }
            _ => {}
        }
    }

    /// An error with all that is needed to see how it came to that.
    fn wrong(&self, pod: usize, what: &str) -> anyhow::Error {
        let known = &self.pods[pod];
        let trace: Vec<&str> = known.trace.iter().map(String::as_str).collect();
        let Target { name, id, containers, .. } = &known.target;
        anyhow!(
            "client {}, {name} ({id}, containers {containers:?}): {what}\nbefore that:\n  {}",
            self.number,
            trace.join("\n  ")
        )
    }
}

/// What a client's pods are, at a quiet point.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// How many pods are ready.
    pub ready: usize,
    /// How many pods are not ready because their pause process was killed: they keep their network
    /// until they are stopped.
    pub broken: usize,
    /// Ids of containers that run.
    pub running: Vec<String>,
    /// How many pods and containers there are.
    pub listed: usize,
}
