//! Random verbs of docker and random kills against a model; `hack/churn --docker` does the same for
//! longer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use berth_tests::{
    churn::{Plan, docker::run},
    has_single_processor, without_load,
};

/// A seed that is the same in every run, so that a change that breaks it is seen at once.
const SEED: u64 = 20;

/// Runs in parts: one with the same verbs each time, and one with others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_is_wrong_and_nothing_is_left_whatever_is_asked_and_whoever_is_killed() {
    let _alone = without_load().await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    for seed in [SEED, u64::from(now.subsec_nanos())] {
        // The comparisons and the removals come on top.
        let duration = Duration::from_secs(if has_single_processor() { 6 } else { 10 });
        let plan = Plan { seed, clients: 6, pods: 24, duration };
        // Shown by the test harness if this fails.
        eprintln!("seed {seed}: hack/churn 1 --docker --seed {seed} --clients 6 --pods 24");
        let report = run(plan, |report| eprintln!("{}", report.progress())).await;
        let report = report.unwrap_or_else(|error| panic!("{error:?}"));
        eprintln!("{report}");
        // Otherwise nothing was proved.
        assert!(report.verbs() > 100 && report.kills("daemons") > 0, "{report}");
    }
}
