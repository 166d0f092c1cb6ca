//! One client of docker: it makes random verbs on containers of its own, and holds what it knows of
//! each against every answer.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail};
use serde_json::{Value, json};

use super::{
    super::{
        board::{Board, Moment},
        random::Random,
        report::Report,
    },
    model::{Answer, Belief, Faults, Kind, Phase, Verb, WEIGHTS},
};
use crate::engine::Engine;

/// The longest that a request may take: a daemon that starts has nothing else to wait for.
const LIMIT: Duration = Duration::from_secs(60);
/// How many verbs on a container an error shows.
const TRACE: usize = 25;

/// A container and what is known of it.
#[derive(Debug)]
struct Known {
    name: String,
    /// Its last id, by which its shims are known.
    id: String,
    belief: Belief,
    /// When it was last asked for.
    asked: Moment,
    /// The last verbs and their answers.
    trace: VecDeque<String>,
}

#[derive(Debug)]
pub(super) struct Client {
    number: usize,
    image: String,
    engine: Engine,
    board: Arc<Board>,
    report: Arc<Report>,
    random: Random,
    containers: Vec<Known>,
}

impl Client {
    pub(super) fn new(
        (number, image, engine): (usize, &str, &Engine),
        (board, report): (&Arc<Board>, &Arc<Report>),
        random: Random,
        containers: usize,
    ) -> Self {
        let known = |slot: usize| Known {
            name: format!("c-{number}-{slot}"),
            id: String::new(),
            belief: Belief::new(Kind { is_kept: slot % 2 == 1, is_brief: slot % 4 >= 2 }),
            asked: board.now(),
            trace: VecDeque::new(),
        };
        Self {
            number,
            image: image.to_owned(),
            engine: engine.clone(),
            board: board.clone(),
            report: report.clone(),
            random,
            containers: (0..containers).map(known).collect(),
        }
    }

    /// Makes so many verbs, and fewer when the deadline comes or another client has failed.
    ///
    /// # Errors
    /// An answer is wrong.
    pub(super) async fn round(&mut self, verbs: usize, deadline: Instant) -> anyhow::Result<()> {
        for _ in 0..verbs {
            if Instant::now() >= deadline || self.board.has_failed() {
                break;
            }
            let slot = self.random.below(self.containers.len());
            let verb = self.random.weighted(&WEIGHTS);
            self.perform(slot, verb).await?;
        }
        Ok(())
    }

    /// Looks at all of its containers while nobody is killed. Gives the ids of those that exist, each
    /// with whether it may run.
    ///
    /// # Errors
    /// Something is not as it was answered.
    pub(super) async fn compare(&mut self) -> anyhow::Result<Vec<(String, bool)>> {
        let mut standing = Vec::new();
        for slot in 0..self.containers.len() {
            self.perform(slot, Verb::Inspect).await?;
            let known = &self.containers[slot];
            let Belief { kind, .. } = known.belief;
            let phases: Vec<Phase> = known.belief.phases().collect();
            if phases != [Phase::Absent] {
                let may_run = phases.iter().any(|phase| phase.has_processes())
                    || phases == [Phase::Restarting] && kind.is_kept;
                standing.push((known.id.clone(), may_run));
            }
        }
        Ok(standing)
    }

    /// Removes all of its containers.
    ///
    /// # Errors
    /// One cannot be removed.
    pub(super) async fn remove_all(&mut self) -> anyhow::Result<()> {
        for slot in 0..self.containers.len() {
            self.perform(slot, Verb::Remove).await?;
        }
        Ok(())
    }

    /// Makes a verb, and again for as long as the daemon is killed meanwhile.
    async fn perform(&mut self, slot: usize, verb: Verb) -> anyhow::Result<()> {
        while self.attempt(slot, verb).await? == Answer::Interrupted {
            if self.board.has_failed() {
                bail!("another client has failed");
            }
        }
        Ok(())
    }

    async fn attempt(&mut self, slot: usize, verb: Verb) -> anyhow::Result<Answer> {
        self.board.served().await;
        let before = self.board.now();
        let clock = Instant::now();
        let asked = tokio::time::timeout(LIMIT, self.ask(slot, verb)).await;
        let (answer, said) = asked.unwrap_or((Answer::Interrupted, "nothing".to_owned()));
        let after = self.board.now();
        let word = match answer {
            Answer::Status(status) => status.to_string(),
            Answer::Seen(_) => "200".to_owned(),
            Answer::Interrupted => "interrupted".to_owned(),
        };
        let time = (answer != Answer::Interrupted).then(|| clock.elapsed());
        self.report.answered(name(verb), word, time);
        let line = format!("{verb:?}: {answer:?} {said}");
        if answer == Answer::Interrupted && !after.daemon_died_since(before) {
            return Err(self.wrong(slot, &format!("{line}\nthe connection broke")));
        }
        let known = &mut self.containers[slot];
        let faults = Faults {
            daemon: after.daemon_died_since(known.asked),
            shim: self.board.shim_died(&known.id),
            launches: after.launch_killed_since(before),
        };
        let Some(belief) = known.belief.after(verb, answer, faults) else {
            let allowed = known.belief.allowed(verb, faults);
            let what =
                format!("{line}\nallowed: {allowed:?}\n{faults:?}\nfrom: {:?}", known.belief);
            return Err(self.wrong(slot, &what));
        };
        known.belief = belief;
        known.asked = before;
        known.trace.push_back(line);
        if known.trace.len() > TRACE {
            known.trace.pop_front();
        }
        Ok(answer)
    }

    /// Asks, and gives the answer with what was said.
    async fn ask(&mut self, slot: usize, verb: Verb) -> (Answer, String) {
        let known = &self.containers[slot];
        let (name, kind) = (known.name.clone(), known.belief.kind);
        let (method, path, body) = match verb {
            Verb::Create => ("POST", format!("create?name={name}"), Some(self.body(kind))),
            Verb::Start => ("POST", format!("{name}/start"), None),
            Verb::Stop => ("POST", format!("{name}/stop?t=0"), None),
            Verb::Kill => ("POST", format!("{name}/kill"), None),
            Verb::Restart => ("POST", format!("{name}/restart?t=0"), None),
            Verb::Pause => ("POST", format!("{name}/pause"), None),
            Verb::Unpause => ("POST", format!("{name}/unpause"), None),
            Verb::Exec => ("POST", format!("{name}/exec"), Some(json!({ "Cmd": ["true"] }))),
            Verb::Remove => ("DELETE", format!("{name}?force=1"), None),
            Verb::Inspect => ("GET", format!("{name}/json"), None),
        };
        let asked = self.engine.try_request(method, &format!("/containers/{path}"), body).await;
        let Ok((status, answer)) = asked else {
            return (Answer::Interrupted, String::new());
        };
        let said = answer["message"].as_str().unwrap_or_default().to_owned();
        let id = match (verb, status) {
            (Verb::Create | Verb::Inspect, ..300) => answer["Id"].as_str().map(str::to_owned),
            // It was made by a request whose answer was lost.
            (Verb::Create, _) => match self.look_up(&name).await {
                Some(id) => Some(id),
                None => return (Answer::Interrupted, said),
            },
            _ => None,
        };
        if let Some(id) = id {
            self.containers[slot].id = id;
        }
        let phase = answer["State"]["Status"].as_str().and_then(Phase::named);
        match phase.filter(|_| verb == Verb::Inspect && status == 200) {
            Some(phase) => (Answer::Seen(phase), said),
            None => (Answer::Status(status), said),
        }
    }

    async fn look_up(&self, name: &str) -> Option<String> {
        let path = format!("/containers/{name}/json");
        let (_, seen) = self.engine.try_request("GET", &path, None).await.ok()?;
        seen["Id"].as_str().map(str::to_owned)
    }

    fn body(&self, kind: Kind) -> Value {
        let command: &[&str] = if kind.is_brief { &["true"] } else { &["sleep", "100000"] };
        let policy = if kind.is_kept { "always" } else { "no" };
        json!({
            "Image": self.image,
            "Cmd": command,
            "HostConfig": { "RestartPolicy": { "Name": policy } },
        })
    }

    /// An error with all that is needed to see how it came to that.
    fn wrong(&self, slot: usize, what: &str) -> anyhow::Error {
        let Known { name, id, trace, .. } = &self.containers[slot];
        let trace: Vec<&str> = trace.iter().map(String::as_str).collect();
        anyhow!(
            "client {}, {name} ({id}): {what}\nbefore that:\n  {}",
            self.number,
            trace.join("\n  ")
        )
    }
}

fn name(verb: Verb) -> &'static str {
    match verb {
        Verb::Create => "create",
        Verb::Start => "start",
        Verb::Stop => "stop",
        Verb::Kill => "kill",
        Verb::Restart => "restart",
        Verb::Pause => "pause",
        Verb::Unpause => "unpause",
        Verb::Exec => "exec",
        Verb::Remove => "rm",
        Verb::Inspect => "inspect",
    }
}
