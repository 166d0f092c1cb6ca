//! The verbs whose steps are walked, and which verb comes to which step.

use berth_tests::{Capability, faults, skip_without};

/// A question to the node, with what has to be there before it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    RunPod,
    StopPod,
    RemovePod,
    Create,
    Start,
    Exec,
    /// StopContainer of a program that ends by the stop signal.
    Stop,
    /// StopContainer without a grace period.
    Kill,
    /// The same, of a container whose shim does not answer.
    KillWithoutShim,
    Remove,
    Pull,
    PullAgain,
    Import,
    RemoveImage,
}

const VERBS: [Verb; 14] = [
    Verb::RunPod,
    Verb::StopPod,
    Verb::RemovePod,
    Verb::Create,
    Verb::Start,
    Verb::Exec,
    Verb::Stop,
    Verb::Kill,
    Verb::KillWithoutShim,
    Verb::Remove,
    Verb::Pull,
    Verb::PullAgain,
    Verb::Import,
    Verb::RemoveImage,
];

/// How steps begin that only verbs of docker's come to.
const DOCKERS: [&str; 11] = [
    "docker_",
    "name_image.",
    "push_image.",
    "write_",
    "connect_sandbox.",
    "disconnect_sandbox.",
    "lead_sandbox.",
    "up.",
    "down.",
    "lead.",
    "yield.",
];

/// The verbs that come to a step and are to be asked for it. A new operation has to be added here.
fn verbs_of(step: &str) -> &'static [Verb] {
    match step.split_once('.').expect("OPERATION.STEP") {
        ("run_sandbox" | "attach" | "pin" | "add", _) | ("cni", "ADD") => &[Verb::RunPod],
        ("stop_sandbox" | "detach" | "del", _) | ("cni", "DEL") => &[Verb::StopPod],
        ("remove_sandbox", _) => &[Verb::RemovePod],
        ("create_container", _) => &[Verb::Create],
        ("start_container" | "launch" | "init", _) => &[Verb::Start],
        ("exec", _) => &[Verb::Exec],
        ("stop_container", "force") => &[Verb::KillWithoutShim],
        ("stop_container", "kill") | ("end", _) => &[Verb::Kill],
        ("stop_container", _) => &[Verb::Stop],
        ("remove_container", _) => &[Verb::Remove],
        ("pull_image", "head") => &[Verb::PullAgain],
        ("pull_image", _) => &[Verb::Pull],
        ("import_image", _) => &[Verb::Import],
        ("remove_image", _) => &[Verb::RemoveImage],
        // All is done, and the answer is lost.
        ("rpc", "response") => &VERBS,
        _ => panic!("no verb is known to come to {step}"),
    }
}

/// Steps that may fail without that the verb does: it goes another way, or on in the background.
pub(super) fn may_fail_unnoticed(step: &str) -> bool {
    matches!(
        step,
        "stop_container.record"
            | "stop_container.signal"
            | "stop_container.kill"
            | "cni.DEL"
            | "detach.forget"
    ) || ["del.", "end."].iter().any(|operation| step.starts_with(operation))
}

/// What the machine's kernel cannot do is not reached.
fn is_reachable(step: &str) -> bool {
    match step {
        "add.masquerade" => !skip_without(Capability::Nat),
        "add.bandwidth" => !skip_without(Capability::TokenBucket),
        _ => true,
    }
}

/// The steps that a program of the build with faults lists, each with the verbs that come to it.
pub(super) fn steps(program: &str) -> Vec<(String, Verb)> {
    let names = faults::steps(program);
    // What is docker's is walked by the engine's tests.
    let is_dockers = |step: &String| DOCKERS.iter().any(|prefix| step.starts_with(prefix));
    let names = names.into_iter().filter(|step| !is_dockers(step));
    let reachable = names.filter(|step| is_reachable(step));
    reachable
        .flat_map(|step| verbs_of(&step).iter().map(move |verb| (step.clone(), *verb)))
        .collect()
}
