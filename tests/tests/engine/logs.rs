//! `docker logs`, `docker events` and `docker stats`.

use std::process::Stdio;

use berth_tests::{Capability, finish, skip_without};
use serde_json::json;

use crate::ready;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn logs_of_all_runs_are_read_and_followed_to_the_end() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let script = "for i in 1 2 3; do echo out$i; echo err$i >&2; sleep 0.1; done; printf part";
    engine.create("c1", json!({ "Image": image, "Cmd": ["sh", "-c", script] })).await;
    engine.start("c1").await;
    let followed = machine.docker(&["logs", "-f", "c1"]);
    let (out, err) = ("out1\nout2\nout3\npart", "err1\nerr2\nerr3\n");
    assert_eq!((text(&followed.stdout), text(&followed.stderr)), (out.into(), err.into()));
    // Lines of both streams count, whichever of the last two came first.
    assert_eq!(text(&machine.docker(&["logs", "-n", "3", "c1"]).stdout), "out3\npart");
    let stamped = text(&machine.docker(&["logs", "-t", "-n", "1", "c1"]).stdout);
    assert!(stamped.ends_with("Z part"), "{stamped}");
    let none = machine.docker(&["logs", "--since", "2100-01-01T00:00:00", "c1"]);
    assert_eq!(text(&none.stdout), "");
    assert_eq!(engine.wait("c1").await, 0);
    engine.start("c1").await;
    assert_eq!(engine.wait("c1").await, 0);
    assert_eq!(text(&machine.docker(&["logs", "c1"]).stdout), format!("{out}{out}"));
    for (query, status, message) in [
        ("", 400, "Bad parameters: you must choose at least one stream"),
        ("stdout=1&since=x", 500, "strconv.ParseInt: parsing \"x\": invalid syntax"),
    ] {
        let answer = engine.request("GET", &format!("/containers/c1/logs?{query}"), None).await;
        assert_eq!(answer, (status, json!({ "message": message })));
    }
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_terminal_has_its_own_line_ends_and_some_containers_have_no_log() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let body = json!({ "Image": image, "Cmd": ["echo", "hi"], "Tty": true });
    engine.create("t1", body).await;
    let body = json!({
        "Image": image, "Cmd": ["echo", "hi"], "HostConfig": { "LogConfig": { "Type": "none" } },
    });
    engine.create("n1", body).await;
    for name in ["t1", "n1"] {
        engine.start(name).await;
        assert_eq!(engine.wait(name).await, 0);
    }
    assert_eq!(text(&machine.docker(&["logs", "t1"]).stdout), "hi\r\n");
    let refused = engine.request("GET", "/containers/n1/logs?stdout=1", None).await;
    assert_eq!(refused.0, 501);
    engine.remove("t1").await;
    engine.remove("n1").await;
    machine.assert_clean().await;
}

/// The numbers of `line NUMBER` of what a container has written.
fn numbers(output: &[u8]) -> Vec<u32> {
    text(output).lines().map(|line| line.trim_start_matches("line ").parse().unwrap()).collect()
}

#[tokio::test]
async fn a_full_log_goes_on_in_a_new_file_whether_or_not_the_daemon_lives() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, daemon, engine, image) = ready().await;
    let script = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; done";
    let body = |size: &str, files: &str| {
        let config = json!({ "max-size": size, "max-file": files });
        let log = json!({ "Type": "json-file", "Config": config });
        json!({
            "Image": image,
            "Cmd": ["sh", "-c", format!("{script}; read end")],
            "OpenStdin": true,
            "HostConfig": { "LogConfig": log },
        })
    };
    // All of it, over many rotations, while it is written and afterwards.
    let all: Vec<u32> = (1..=2000).collect();
    engine.create("c1", body("5k", "100")).await;
    engine.start("c1").await;
    let followed = machine.docker_command(&["logs", "-f", "c1"]).stdout(Stdio::piped()).spawn();
    let followed = followed.unwrap();
    while numbers(&machine.docker(&["logs", "-n", "1", "c1"]).stdout) != [2000] {}
    engine.post("/containers/c1/stop?t=0", json!(null)).await;
    assert_eq!(numbers(&finish(followed).stdout), all);
    assert_eq!(numbers(&machine.docker(&["logs", "c1"]).stdout), all);
    // The last of it, of a container that has written it without a daemon.
    let id = engine.create("c2", body("5k", "3")).await;
    engine.start("c2").await;
    daemon.kill();
    let directory = machine.path("root/engine/containers").join(&id);
    while !std::fs::read_to_string(directory.join("container.log"))
        .is_ok_and(|log| log.ends_with("line 2000\n"))
    {
        std::thread::yield_now();
    }
    let files = std::fs::read_dir(&directory).unwrap().flatten();
    let logs: Vec<u64> = files
        .filter(|file| file.file_name().to_string_lossy().starts_with("container.log"))
        .map(|file| file.metadata().unwrap().len())
        .collect();
    assert!(logs.len() == 3 && logs.iter().all(|length| *length < 5100), "{logs:?}");
    let _daemon = machine.start().await;
    let kept = numbers(&machine.docker(&["logs", "c2"]).stdout);
    assert_eq!(kept, all[all.len() - kept.len()..]);
    assert!(kept.len() > 200, "{}", kept.len());
    for name in ["c1", "c2"] {
        engine.remove(name).await;
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn options_of_a_log_are_refused_in_dockerds_words() {
    let (machine, _daemon, engine, image) = ready().await;
    let body = |driver: &str, config: serde_json::Value| {
        let log = json!({ "Type": driver, "Config": config });
        json!({ "Image": image, "Cmd": ["true"], "HostConfig": { "LogConfig": log } })
    };
    for (driver, config, message) in [
        ("nope", json!({}), "error looking up logging plugin nope: plugin \"nope\" not found"),
        ("local", json!({ "nope": "1" }), "unknown log opt 'nope' for log driver local"),
    ] {
        let asked = Some(body(driver, config));
        let answer = engine.request("POST", "/containers/create", asked).await;
        assert_eq!(answer, (400, json!({ "message": message })));
    }
    engine.create("c1", body("json-file", json!({ "max-size": "x" }))).await;
    let message = "failed to create task for container: failed to initialize logging driver: \
                   invalid size: 'x'";
    let answer = engine.request("POST", "/containers/c1/start", None).await;
    assert_eq!(answer, (500, json!({ "message": message })));
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn events_of_a_run_come_in_the_order_of_dockerd() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let run = ["run", "--rm", "--name", "c1", "--label", "l=v", &image, "sh", "-c", "exit 3"];
    assert_eq!(machine.docker(&run).status.code(), Some(3));
    let format = "{{.Action}} {{.Actor.Attributes.exitCode}}";
    let arguments = [
        "events",
        "--since",
        "1h",
        "--until",
        // Whole seconds go over the wire: until now would leave out what has just happened.
        "-1s",
        "--filter",
        "type=container",
        "--filter",
        "label=l=v",
        "--format",
        format,
    ];
    let seen = text(&machine.docker(&arguments).stdout);
    let missing = "<no value>";
    let plain = |action: &str| format!("{action} {missing}\n");
    let expected =
        ["create", "attach", "start"].map(plain).concat() + "die 3\n" + &plain("destroy");
    assert_eq!(seen, expected);
    let refused = engine.request("GET", "/events?since=5&until=1", None).await;
    assert_eq!(refused.0, 400);
    machine.assert_clean().await;
}

#[tokio::test]
async fn stats_are_what_the_cli_reads() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    engine
        .create("c1", json!({ "Image": image, "Cmd": ["sh", "-c", "while :; do :; done"] }))
        .await;
    let empty = engine.get("/containers/c1/stats?stream=0").await;
    assert_eq!((&empty["name"], &empty["read"]), (&json!("/c1"), &json!("0001-01-01T00:00:00Z")));
    engine.start("c1").await;
    let stats = engine.get("/containers/c1/stats?stream=0").await;
    let total = |of: &str| stats[of]["cpu_usage"]["total_usage"].as_u64().unwrap();
    assert!(total("cpu_stats") > total("precpu_stats"), "{stats}");
    assert!(stats["memory_stats"]["usage"].as_u64().unwrap() > 0);
    assert_eq!(stats["pids_stats"]["current"], 1);
    let shown = machine.docker(&["stats", "--no-stream", "--format", "{{.Name}} {{.CPUPerc}}"]);
    let shown = text(&shown.stdout);
    assert!(shown.starts_with("c1 ") && shown != "c1 0.00%\n", "{shown}");
    let (status, _) = engine.request("GET", "/containers/c1/stats?one-shot=1", None).await;
    assert_eq!(status, 400);
    engine.remove("c1").await;
    machine.assert_clean().await;
}
