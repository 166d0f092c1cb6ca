//! Every named step of every verb: the daemon, the shim or the plugin is killed there, or the step
//! fails. Then the same question is asked again. The answer is one of those that the verb may give,
//! and in the end nothing is left.
//!
//! The steps are those that the programs list, so a new one is walked as soon as it has a name. One
//! that its verb does not reach fails the test.

mod node;
mod verb;

use std::{sync::Arc, time::Instant};

use berth_tests::{Capability, eventually, skip_without};

use self::{
    node::Node,
    verb::{Verb, steps},
};
use crate::SOON;

/// Kills a program at each of its steps, for the verbs that `is_meant`.
async fn walk(program: &str, is_meant: impl Fn(Verb) -> bool) {
    if skip_without(Capability::Faults) {
        return;
    }
    let mut node = Node::start().await;
    for (step, verb) in steps(program).into_iter().filter(|(_, verb)| is_meant(*verb)) {
        node.kill_at(&step, verb, program == "berthd").await;
    }
}

fn is_of_pods(verb: Verb) -> bool {
    matches!(verb, Verb::RunPod | Verb::StopPod | Verb::RemovePod)
}

fn is_of_images(verb: Verb) -> bool {
    matches!(verb, Verb::Pull | Verb::PullAgain | Verb::Import | Verb::RemoveImage)
}

#[tokio::test]
async fn a_daemon_killed_at_any_step_of_a_pod() {
    walk("berthd", is_of_pods).await;
}

#[tokio::test]
async fn a_daemon_killed_at_any_step_of_a_container() {
    walk("berthd", |verb| !is_of_pods(verb) && !is_of_images(verb)).await;
}

#[tokio::test]
async fn a_daemon_killed_at_any_step_of_an_image() {
    walk("berthd", is_of_images).await;
}

#[tokio::test]
async fn a_shim_killed_at_any_step() {
    walk("berth-shim", |_| true).await;
}

#[tokio::test]
async fn a_plugin_killed_at_any_step() {
    walk("berth-bridge", |_| true).await;
}

#[tokio::test]
async fn a_step_that_fails_is_an_error_and_leaves_nothing() {
    if skip_without(Capability::Faults) {
        return;
    }
    let mut node = Node::start().await;
    // With the connection to the registry, which is kept.
    node.prepare(Verb::PullAgain).await;
    node.clean_up("a pull").await;
    let most = node.descriptors();
    for program in ["berthd", "berth-shim", "berth-bridge"] {
        // A response is not a step that fails: all is done.
        for (step, verb) in steps(program).into_iter().filter(|(step, _)| step != "rpc.response") {
            node.fail_at(&step, verb).await;
            eventually(&format!("{step}: at most {most} descriptors"), async || {
                node.descriptors() <= most
            })
            .await;
        }
    }
}

#[tokio::test]
async fn what_stops_at_a_step_harms_only_its_own_object() {
    if skip_without(Capability::Faults) {
        return;
    }
    let node = Arc::new(Node::start().await);
    // At the same time: a plugin, which is given up after its timeout; an exec, after that of its
    // request; and the shim of a launch, when there is no progress.
    let mut stopped = Vec::new();
    for (step, verb) in
        [("launch.started", Verb::Start), ("exec.join", Verb::Exec), ("add.link", Verb::RunPod)]
    {
        stopped.push((step, node.stop_at(step, verb).await));
    }
    let served = Instant::now();
    let other = node.prepare(Verb::Kill).await;
    assert_eq!(node.cri.sh(&other.container, "echo served").await, "served\n");
    node.ask(Verb::Kill, &other).await.unwrap();
    node.cri.remove_pod(&other.sandbox).await.unwrap();
    assert!(served.elapsed() < SOON, "{:?}", served.elapsed());
    for (step, asked) in stopped {
        let error = asked.await.unwrap().expect_err(step);
        let why = ["no progress within", "did not answer within", "no answer in"];
        assert!(why.iter().any(|why| error.message().contains(why)), "{step}: {error}");
    }
    node.clean_up("stopped").await;
}
