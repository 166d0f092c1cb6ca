//! The model's verbs as requests of CRI, and responses as the model's answers.

use std::{collections::HashMap, error::Error as _};

use anyhow::bail;
use berth_proto::v1::{self, ContainerState, PodSandboxState};
use tonic::{Code, Status};

use super::model::{Answer, Command, FAILED, Phase, Program, SHARES, SLOTS, Sandbox, Verb};
use crate::{
    client::Cri,
    machine::Machine,
    request::{Config, container, pod},
};

/// The label that pods and their containers are found by: the name of the pod.
pub(super) const LABEL: &str = "churn";
/// The label of a container's slot.
const SLOT: &str = "slot";

/// An answer, with the id of what was made.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    Made(String),
    Answer(Answer),
    /// A daemon that has just started does not know the container's state yet.
    Unknown(String),
}

impl Reply {
    pub(super) fn answer(&self) -> Option<Answer> {
        match self {
            Self::Made(_) => Some(Answer::Done),
            Self::Answer(answer) => Some(*answer),
            Self::Unknown(_) => None,
        }
    }
}

/// The names that one pod is known by.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub name: String,
    /// Whether its containers share a PID namespace, and the pod has a pause process.
    pub shares_pids: bool,
    /// The id of the last pod of this name.
    pub id: String,
    pub containers: [String; SLOTS],
}

impl Target {
    pub(super) fn new(name: String, shares_pids: bool) -> Self {
        // Nothing has this id, as long as none is known.
        let none = || "0".repeat(64);
        Self { name, shares_pids, id: none(), containers: [none(), none()] }
    }

    fn pod_config(&self, machine: &Machine) -> v1::PodSandboxConfig {
        let mut config = pod(machine, &self.name);
        config.labels = self.labels();
        if self.shares_pids {
            config.namespaces().pid = v1::NamespaceMode::Pod.into();
        }
        config
    }

    fn container_config(&self, slot: usize, image: &str, program: Program) -> v1::ContainerConfig {
        let script = match program {
            Program::Patient => "trap 'exit 0' TERM; sleep 100000 & wait".to_owned(),
            Program::Stubborn => "trap '' TERM; sleep 100000 & wait; wait".to_owned(),
            Program::Brief => format!("sleep 0.1; exit {}", super::model::ENDED),
        };
        let mut config = container(&format!("c{slot}"), image, &script);
        config.labels = self.labels();
        config.labels.insert(SLOT.to_owned(), slot.to_string());
        if self.shares_pids {
            config.namespaces().pid = v1::NamespaceMode::Pod.into();
        }
        config.linux.get_or_insert_default().resources =
            Some(v1::LinuxContainerResources { cpu_shares: SHARES, ..Default::default() });
        config
    }

    fn labels(&self) -> HashMap<String, String> {
        HashMap::from([(LABEL.to_owned(), self.name.clone())])
    }
}

/// Makes one request. `images` are those that a slot may be made of: the first one is always there.
///
/// # Errors
/// The answer is one that no model need know: wrong in itself.
pub(super) async fn ask(
    cri: &Cri,
    machine: &Machine,
    target: &Target,
    verb: Verb,
    images: &[String],
) -> anyhow::Result<Reply> {
    let done = |result: Result<(), Status>| match result {
        Ok(()) => Reply::Answer(Answer::Done),
        Err(status) => refused(&status),
    };
    let made = |result: Result<String, Status>| match result {
        Ok(id) => Reply::Made(id),
        Err(status) => refused(&status),
    };
    Ok(match verb {
        Verb::RunPod => made(cri.run_pod(target.pod_config(machine)).await),
        Verb::StopPod => done(cri.stop_pod(&target.id).await),
        Verb::RemovePod => done(cri.remove_pod(&target.id).await),
        Verb::PodStatus => match cri.pod_status(&target.id).await {
            Ok(status) => Reply::Answer(Answer::Sandbox(sandbox(status.state()))),
            Err(status) => refused(&status),
        },
        Verb::List => return list(cri, target).await,
        Verb::Create { slot, program, shared_image } => {
            let image = &images[shared_image.map_or(0, |shared| shared + 1)];
            let config = target.container_config(slot, image, program);
            made(Box::pin(cri.create(&target.id, config)).await)
        }
        Verb::Start { slot } => done(cri.start(&target.containers[slot]).await),
        Verb::Stop { slot, grace } => done(cri.stop(&target.containers[slot], grace).await),
        Verb::Remove { slot } => done(cri.remove(&target.containers[slot]).await),
        Verb::Status { slot } => status(cri, &target.containers[slot]).await?,
        Verb::Exec { slot, command } => exec(cri, &target.containers[slot], command).await?,
        Verb::Update { slot, shares } => done(update(cri, &target.containers[slot], shares).await),
    })
}

/// What a status is to the model: a broken connection, or a code.
fn refused(status: &Status) -> Reply {
    if is_broken(status) {
        return Reply::Answer(Answer::Interrupted);
    }
    if status.message().contains("unknown state") {
        return Reply::Unknown(status.message().to_owned());
    }
    Reply::Answer(Answer::Refused(status.code()))
}

/// Whether a status comes from the client's side of the connection, which has broken. A server's
/// has no source.
pub(super) fn is_broken(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Cancelled) || status.source().is_some()
}

fn sandbox(state: PodSandboxState) -> Sandbox {
    match state {
        PodSandboxState::SandboxReady => Sandbox::Ready,
        PodSandboxState::SandboxNotready => Sandbox::NotReady,
    }
}

/// `None` for a state that is not known.
fn phase(state: ContainerState, code: i32) -> Option<Phase> {
    match state {
        ContainerState::ContainerCreated => Some(Phase::Created),
        ContainerState::ContainerRunning => Some(Phase::Running),
        ContainerState::ContainerExited => Some(Phase::Exited(code)),
        ContainerState::ContainerUnknown => None,
    }
}

async fn status(cri: &Cri, id: &str) -> anyhow::Result<Reply> {
    let status = match cri.status(id).await {
        Ok(status) => status,
        Err(status) => return Ok(refused(&status)),
    };
    let Some(phase) = phase(status.state(), status.exit_code) else {
        return Ok(Reply::Unknown(status.message));
    };
    // Nobody may see a container that has ended without an end, or one that runs with one.
    let has_ended = matches!(phase, Phase::Exited(_));
    if has_ended != (status.finished_at > 0) || has_ended && status.reason.is_empty() {
        bail!("a status that contradicts itself: {status:?}");
    }
    let resources = status.resources.and_then(|resources| resources.linux).unwrap_or_default();
    Ok(Reply::Answer(Answer::Container { phase, shares: resources.cpu_shares }))
}

async fn exec(cri: &Cri, id: &str, command: Command) -> anyhow::Result<Reply> {
    let fails = format!("exit {FAILED}");
    let command: &[&str] = match command {
        Command::Echo => &["echo", id],
        Command::Fail => &["sh", "-c", &fails],
        Command::Missing => &["/missing"],
    };
    match cri.exec(id, command, 60).await {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            if command[0] == "echo" && output.exit_code == 0 && said.trim_end() != id {
                bail!("ExecSync: {command:?} said {said:?}");
            }
            Ok(Reply::Answer(Answer::Output(output.exit_code)))
        }
        Err(status) => Ok(refused(&status)),
    }
}

async fn update(cri: &Cri, id: &str, shares: i64) -> Result<(), Status> {
    let request = v1::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(v1::LinuxContainerResources { cpu_shares: shares, ..Default::default() }),
        ..Default::default()
    };
    cri.runtime.clone().update_container_resources(request).await.map(drop)
}

/// The pods and the containers with this label; an empty value means all of them.
///
/// # Errors
/// The lists cannot be had.
pub(super) async fn find(
    cri: &Cri,
    name: &str,
) -> Result<(Vec<v1::PodSandbox>, Vec<v1::Container>), Status> {
    let labels: HashMap<String, String> = if name.is_empty() {
        HashMap::new()
    } else {
        HashMap::from([(LABEL.to_owned(), name.to_owned())])
    };
    // Not by `Cri::pods`, which compares two lists: here others change them all the time.
    let mut runtime = cri.runtime.clone();
    let filter = v1::PodSandboxFilter { label_selector: labels.clone(), ..Default::default() };
    let request = v1::ListPodSandboxRequest { filter: Some(filter) };
    let pods = runtime.list_pod_sandbox(request).await?.into_inner().items;
    let filter = v1::ContainerFilter { label_selector: labels, ..Default::default() };
    let containers = cri.listed_containers(filter).await?;
    Ok((pods, containers))
}

/// The slot that a container's label names.
pub(super) fn slot(container: &v1::Container) -> Option<usize> {
    container.labels.get(SLOT)?.parse().ok().filter(|slot| *slot < SLOTS)
}

async fn list(cri: &Cri, target: &Target) -> anyhow::Result<Reply> {
    let (pods, containers) = match find(cri, &target.name).await {
        Ok(found) => found,
        Err(status) => return Ok(refused(&status)),
    };
    if pods.len() > 1 {
        bail!("two pods of one name: {pods:?}");
    }
    let mut phases = [Phase::Absent; SLOTS];
    for container in &containers {
        let Some(slot) = slot(container) else { bail!("whose container is {container:?}?") };
        let Some(phase) = phase(container.state(), 0) else {
            return Ok(Reply::Unknown(container.id.clone()));
        };
        if std::mem::replace(&mut phases[slot], phase) != Phase::Absent {
            bail!("two containers of one name: {containers:?}");
        }
    }
    let sandbox = pods.first().map_or(Sandbox::Absent, |pod| sandbox(pod.state()));
    Ok(Reply::Answer(Answer::Listed(sandbox, phases)))
}
