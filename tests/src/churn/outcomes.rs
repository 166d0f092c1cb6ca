//! What CRI allows: for each verb in each state the answers that may come, and the state after each.
//!
//! There are several on purpose. A program ends by itself, a killed daemon leaves a verb done, not
//! done or half done, a killed shim takes its container along.

use tonic::Code;

use super::model::{
    Answer, Command, Container, ENDED, FAILED, Faults, KILLED, NOT_STARTED, Phase, Pod, Program,
    SHARES, SLOTS, Sandbox, Verb,
};

/// What may come of a verb in one state: answers, each with the state after it. The ordinary
/// outcome is the first.
pub(super) fn outcomes(pod: &Pod, verb: Verb, faults: Faults) -> Vec<(Answer, Pod)> {
    match verb {
        Verb::RunPod => run_pod(pod, faults),
        Verb::StopPod if pod.sandbox == Sandbox::Absent => vec![(Answer::Done, *pod)],
        Verb::StopPod => {
            vec![(Answer::Done, pod.in_state(Sandbox::NotReady).each(Container::killed))]
        }
        Verb::RemovePod => vec![(Answer::Done, Pod::default())],
        Verb::PodStatus if pod.sandbox == Sandbox::Absent => refused(pod, Code::NotFound),
        Verb::PodStatus => vec![(Answer::Sandbox(pod.sandbox), *pod)],
        Verb::List => {
            let listed = pod.containers.map(|container| without_code(container.phase));
            vec![(Answer::Listed(pod.sandbox, listed), *pod)]
        }
        Verb::Create { slot, program, shared_image } => create(pod, slot, program, shared_image),
        Verb::Start { slot } => start(pod, slot, faults),
        Verb::Stop { slot, grace } => stop(pod, slot, grace),
        Verb::Remove { slot } => vec![(Answer::Done, pod.with(slot, Container::default()))],
        Verb::Status { slot } => match pod.containers[slot] {
            Container { phase: Phase::Absent, .. } => refused(pod, Code::NotFound),
            Container { phase, shares, .. } => vec![(Answer::Container { phase, shares }, *pod)],
        },
        Verb::Exec { slot, command } => exec(pod, slot, command, faults),
        Verb::Update { slot, shares } => match pod.containers[slot] {
            Container { phase: Phase::Absent, .. } => refused(pod, Code::NotFound),
            container => {
                vec![(Answer::Done, pod.with(slot, Container { shares, ..container }))]
            }
        },
    }
}

fn refused(pod: &Pod, code: Code) -> Vec<(Answer, Pod)> {
    vec![(Answer::Refused(code), *pod)]
}

fn without_code(phase: Phase) -> Phase {
    if let Phase::Exited(_) = phase { Phase::Exited(0) } else { phase }
}

fn run_pod(pod: &Pod, faults: Faults) -> Vec<(Answer, Pod)> {
    if pod.sandbox != Sandbox::Absent {
        return refused(pod, Code::AlreadyExists);
    }
    let mut found = vec![(Answer::Done, pod.in_state(Sandbox::Ready))];
    if faults.launches {
        // What cannot be undone is listed, so that it can be removed.
        let failed = Answer::Refused(Code::Internal);
        found.extend([(failed, *pod), (failed, pod.in_state(Sandbox::NotReady))]);
    }
    found
}

fn create(
    pod: &Pod,
    slot: usize,
    program: Program,
    shared_image: Option<usize>,
) -> Vec<(Answer, Pod)> {
    if pod.sandbox == Sandbox::Absent {
        return refused(pod, Code::NotFound);
    }
    let mut found = Vec::new();
    if pod.containers[slot].phase != Phase::Absent {
        found.extend(refused(pod, Code::AlreadyExists));
    }
    if pod.sandbox == Sandbox::NotReady {
        found.extend(refused(pod, Code::FailedPrecondition));
    }
    if found.is_empty() {
        let created = Container { phase: Phase::Created, program, shares: SHARES, stopping: false };
        found.push((Answer::Done, pod.with(slot, created)));
        if shared_image.is_some() {
            found.extend(refused(pod, Code::NotFound));
        }
    }
    found
}

fn start(pod: &Pod, slot: usize, faults: Faults) -> Vec<(Answer, Pod)> {
    let container = pod.containers[slot];
    match container.phase {
        Phase::Absent => return refused(pod, Code::NotFound),
        Phase::Created if pod.sandbox == Sandbox::Ready => {}
        _ => return refused(pod, Code::FailedPrecondition),
    }
    let running = Container { phase: Phase::Running, ..container };
    let mut found = vec![(Answer::Done, pod.with(slot, running))];
    if faults.shims[slot] || faults.pause {
        // After a failed start the container has exited, and its status says why.
        for code in [NOT_STARTED, KILLED] {
            let failed = Answer::Refused(Code::Internal);
            found.push((failed, pod.with(slot, container.exited(code))));
        }
    }
    found
}

fn stop(pod: &Pod, slot: usize, grace: i64) -> Vec<(Answer, Pod)> {
    let container = pod.containers[slot];
    if container.phase != Phase::Running {
        return vec![(Answer::Done, *pod)];
    }
    let codes = container.stopped_codes(grace).iter();
    codes.map(|code| (Answer::Done, pod.with(slot, container.exited(*code)))).collect()
}

fn exec(pod: &Pod, slot: usize, command: Command, faults: Faults) -> Vec<(Answer, Pod)> {
    let container = pod.containers[slot];
    match container.phase {
        Phase::Absent => return refused(pod, Code::NotFound),
        Phase::Running => {}
        Phase::Created | Phase::Exited(_) => return refused(pod, Code::FailedPrecondition),
    }
    let answer = match command {
        Command::Echo => Answer::Output(0),
        Command::Fail => Answer::Output(FAILED),
        Command::Missing => Answer::Refused(Code::InvalidArgument),
    };
    let mut found = vec![(answer, *pod)];
    if ends(container, slot, faults).next().is_some() {
        // The command goes with its container. The client may hear of that before the container's
        // end is published, so that the state after it is not certain.
        let gone = [Answer::Output(KILLED), Answer::Refused(Code::FailedPrecondition)];
        found.extend(gone.map(|answer| (answer, *pod)));
    }
    found
}

/// The exit codes with which a running container may end although nobody asks for it now.
fn ends(container: Container, slot: usize, faults: Faults) -> impl Iterator<Item = i32> {
    let by_itself = (container.program == Program::Brief).then_some(ENDED);
    let by_kill = (faults.shims[slot] || faults.pause).then_some(KILLED);
    let by_stop = if container.stopping { container.stopped_codes(1) } else { &[] };
    by_itself.into_iter().chain(by_kill).chain(by_stop.iter().copied())
}

/// The states that a killed daemon may leave, when it was killed during this verb.
pub(super) fn interrupted(pod: &Pod, verb: Verb, faults: Faults) -> Vec<Pod> {
    let mut found = vec![*pod];
    // As if the daemon had been killed just before the answer.
    found.extend(outcomes(pod, verb, faults).into_iter().map(|(_, after)| after));
    match verb {
        // The pod is marked first; then its containers are stopped, at the same time.
        Verb::StopPod if pod.sandbox != Sandbox::Absent => {
            found.push(pod.in_state(Sandbox::NotReady).each(Container::being_stopped));
        }
        Verb::RemovePod if pod.sandbox != Sandbox::Absent => {
            // Any of the containers may be removed by then.
            for removed in 0..1 << SLOTS {
                let mut left = pod.in_state(Sandbox::NotReady).each(Container::being_stopped);
                for slot in (0..SLOTS).filter(|slot| removed >> slot & 1 == 1) {
                    left.containers[slot] = Container::default();
                }
                found.push(left);
            }
        }
        // A stop is on record before its first signal, and the next daemon completes it.
        Verb::Stop { slot, .. } | Verb::Remove { slot } => {
            found.push(pod.with(slot, pod.containers[slot].being_stopped()));
        }
        _ => {}
    }
    found
}

/// The states that a pod may come to by itself, in one step.
pub(super) fn spontaneous(pod: &Pod, faults: Faults) -> Vec<Pod> {
    let mut found = Vec::new();
    if faults.pause && pod.sandbox == Sandbox::Ready {
        found.push(pod.in_state(Sandbox::NotReady));
    }
    for (slot, container) in pod.containers.into_iter().enumerate() {
        if container.phase == Phase::Running {
            found.extend(
                ends(container, slot, faults).map(|code| pod.with(slot, container.exited(code))),
            );
        }
    }
    found
}
