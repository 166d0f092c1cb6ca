//! A clock that is set, in either direction, while the daemon is away. To a daemon that starts, it
//! looks as if the times in its records were wrong, which can be played without a clock of the
//! test's own. Within one process all durations are those of the monotonic clock.

use std::fs;

use berth_proto::v1::{self, ContainerState};
use berth_tests::{container, eventually, pod, ready};
use serde_json::Value;

use crate::state;

/// Nanoseconds of a year.
const YEAR: i64 = 365 * 86_400 * 1_000_000_000;

#[tokio::test]
async fn a_clock_that_is_set_neither_hurries_nor_delays_a_stop_and_times_stay_as_recorded() {
    let (machine, mut daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let stubborn = "trap '' TERM; while true; do sleep 0.05; done";
    for (step, name) in [(-YEAR, "back"), (YEAR, "forth")] {
        let patient = cri.run(&sandbox, container(&format!("{name}-patient"), &image, stubborn));
        let patient = patient.await.unwrap();
        let brief = cri.run(&sandbox, container(&format!("{name}-brief"), &image, stubborn));
        let brief = brief.await.unwrap();
        let ended = cri.run(&sandbox, container(&format!("{name}-ended"), &image, "exit 7"));
        let ended = ended.await.unwrap();
        cri.exited(&ended).await;
        let record = |id: &str, name: &str| machine.path(&format!("root/containers/{id}/{name}"));
        for (id, grace) in [(&patient, 10_000), (&brief, 2)] {
            let cri = cri.clone();
            let (cri_id, stop) = (id.clone(), record(id, "stop.json"));
            tokio::spawn(async move { cri.stop(&cri_id, grace).await });
            eventually("the stop's record", async || {
                fs::read_to_string(&stop).is_ok_and(|text| text.contains("true"))
            })
            .await;
        }
        daemon.kill();
        // A clock that was set back by a year since makes the recorded times those of next year.
        for (id, file, key) in [
            (&patient, "stop.json", "deadline"),
            (&brief, "stop.json", "deadline"),
            (&patient, "started.json", "at"),
            (&ended, "exit.json", "at"),
            (&ended, "meta.json", "created_at"),
        ] {
            let path = record(id, file);
            let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            value[key] = (value[key].as_i64().unwrap() - step).into();
            fs::write(&path, value.to_string()).unwrap();
        }
        daemon = machine.start().await;
        assert_eq!(cri.exited(&brief).await.exit_code, 137, "{name}");
        assert_eq!(state(&cri, &patient).await, ContainerState::ContainerRunning, "{name}");
        let status = cri.status(&ended).await.unwrap();
        assert_eq!(status.exit_code, 7, "{name}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let shift = status.finished_at - now.as_nanos() as i64;
        assert!((shift + step).abs() < YEAR / 365, "{name}: {shift}");
        let request = v1::ContainerStatsRequest { container_id: patient.clone() };
        let stats = cri.runtime.clone().container_stats(request).await.unwrap().into_inner();
        let cpu = stats.stats.unwrap().cpu.unwrap();
        // Never more than all processors of the machine.
        let rate = cpu.usage_nano_cores.map_or(0, |rate| rate.value);
        assert!(rate < 1_000_000_000_000, "{name}: {rate}");
        cri.stop(&patient, 0).await.unwrap();
    }
    drop(daemon);
    let _daemon = machine.start().await;
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
