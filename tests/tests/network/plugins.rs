//! CNI plugins that misbehave: the error says what happened, the sandbox is undone, and other pods
//! are not held up.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use berth_proto::v1;
use berth_tests::{Machine, eventually, pod, without_load};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tonic::Code;

/// A machine whose network is a chain of these plugins.
fn with_plugins(names: &[&str]) -> Machine {
    let mut machine = Machine::new();
    machine.plugin_seconds = 2;
    fs::create_dir_all(machine.path("cni-bin")).unwrap();
    let plugins: Vec<Value> = names.iter().map(|name| json!({ "type": name })).collect();
    machine.write_network(&json!({ "cniVersion": "1.1.0", "name": "test", "plugins": plugins }));
    machine
}

/// Whether a process has this command line.
fn runs(command: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.into_iter().any(|entry| {
        fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == command.as_bytes())
    })
}

/// The result of a plugin that works.
const ANSWER: &str = r#"{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.5/16"}]}"#;

#[tokio::test]
async fn plugins_that_misbehave_are_told_apart_and_undone() {
    let machine = with_plugins(&["bad"]);
    let daemon = machine.start().await;
    let cri = daemon.cri();
    for (script, what) in [
        ("kill -9 $$", "signal: 9"),
        ("echo hello", "result of CNI plugin bad"),
        ("echo broken >&2; exit 3", "broken"),
        (
            r#"echo '{"cniVersion":"1.0.0","code":7,"msg":"no leases","details":"try later"}'; exit 1"#,
            "no leases",
        ),
        (r#"echo '{"cniVersion":"1.0.0","code":7,"msg":"no leases"}'; exit 0"#, "no leases"),
        ("exec yes", "more than 1 MiB"),
        ("yes >&2", "more than 1 MiB"),
        ("echo '{}'", "no address"),
        ("sleep 1234; true", "CNI plugin bad ADD: no answer in 2 s: killed"),
    ] {
        // DEL succeeds, so that ADD alone is at fault.
        machine.write_plugin("bad", &format!("[ \"$CNI_COMMAND\" = ADD ] || exit 0\n{script}"));
        let begun = Instant::now();
        let refused = cri.run_pod(pod(&machine, "p")).await.unwrap_err();
        assert!(refused.message().contains(what), "{script}: {refused}");
        assert!(begun.elapsed().as_secs() < 20, "{script}");
        // The processes that the plugin started are gone too.
        eventually("the end of what it started", async || !runs("sleep\u{0}1234\u{0}")).await;
        machine.assert_clean().await;
    }
}

#[tokio::test]
async fn a_plugin_that_is_being_installed_is_waited_for() {
    let machine = with_plugins(&["late"]);
    let plugin = machine.path("cni-bin/late");
    // execve(2) fails with ETXTBSY for a file that is open for writing.
    fs::copy("/bin/true", &plugin).unwrap();
    let writer = fs::File::options().write(true).open(&plugin).unwrap();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let run = cri.run_pod(pod(&machine, "p"));
    let finish = async {
        // The daemon meets ETXTBSY meanwhile, which it does not tell anybody.
        tokio::time::sleep(Duration::from_millis(150)).await;
        drop(writer);
    };
    let (refused, ()) = tokio::join!(run, finish);
    // It ran: /bin/true prints nothing, which is not a result.
    assert!(refused.unwrap_err().message().contains("result of CNI plugin late"));
    machine.assert_clean().await;
}

/// A plugin that records its environment and input, and does what `script` says.
fn recorder(log: &Path, script: &str) -> String {
    let log = log.display();
    format!(
        "conf=$(cat)\necho \"$CNI_COMMAND ${{0##*/}} netns=$CNI_NETNS args=$CNI_ARGS conf=$conf\" \
            >> {log}\n{script}"
    )
}

#[tokio::test]
async fn plugins_hear_what_libcni_would_tell_them() {
    let machine = with_plugins(&[]);
    machine.write_network(&json!({
        "cniVersion": "0.4.0", "cniVersions": ["1.0.0", "0.4.0"], "name": "test", "plugins": [
        { "type": "first", "own": 1 },
        { "type": "second",
            "capabilities": { "portMappings": true, "bandwidth": true, "dns": true,
                "cgroupPath": true,
            "io.kubernetes.cri.pod-annotations": true, "mac": true } },
    ] }));
    let log = machine.path("plugins.log");
    machine.write_plugin(
        "first",
        &recorder(&log, &format!("[ $CNI_COMMAND = ADD ] && echo '{ANSWER}'; exit 0")),
    );
    let second = r#"{"cniVersion":"1.0.0",
        "interfaces":[{"name":"eth0","sandbox":"x"},{"name":"net1","sandbox":"x"}],
        "ips":[{"interface":0,"address":"fd00::5/64"},{"interface":1,"address":"192.0.2.1/24"},
        {"interface":0,"address":"10.1.0.5/16"}]}"#;
    let second = second.replace('\n', "");
    machine.write_plugin(
        "second",
        &recorder(&log, &format!("[ $CNI_COMMAND = ADD ] && echo '{second}'; exit 0")),
    );
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let mut config = pod(&machine, "p");
    config.annotations = [("kubernetes.io/ingress-bandwidth".to_owned(), "10M".to_owned())].into();
    config.dns_config =
        Some(v1::DnsConfig { servers: vec!["10.0.0.10".to_owned()], ..Default::default() });
    config.port_mappings = vec![v1::PortMapping {
        host_port: 8080,
        container_port: 80,
        protocol: 1,
        ..Default::default()
    }];
    let id = cri.run_pod(config).await.unwrap();

    let status = cri.pod_status(&id).await.unwrap().network.unwrap();
    let more: Vec<&str> = status.additional_ips.iter().map(|ip| ip.ip.as_str()).collect();
    assert_eq!((status.ip.as_str(), more), ("10.1.0.5", vec!["fd00::5"]), "of eth0, IPv4 first");

    // The cached result is where libcni looks for it, in libcni's format.
    let cached = fs::read_to_string(machine.path(&format!("cni-results/test-{id}-eth0"))).unwrap();
    let cached: Value = serde_json::from_str(&cached).unwrap();
    assert_eq!(
        (&cached["kind"], &cached["ifName"], &cached["networkName"]),
        (&json!("cniCacheV1"), &json!("eth0"), &json!("test"))
    );
    assert_eq!(cached["cniArgs"][0], json!(["IgnoreUnknown", "1"]));
    assert_eq!(cached["result"]["ips"][0]["address"], "fd00::5/64");

    cri.remove_pod(&id).await.unwrap();
    let said = fs::read_to_string(&log).unwrap();
    let calls: Vec<(&str, Value)> = said
        .lines()
        .map(|line| line.split_once(" conf=").unwrap())
        .map(|(call, conf)| (call, serde_json::from_str(conf).unwrap()))
        .collect();
    let verbs: Vec<String> = calls
        .iter()
        .map(|(call, _)| call.split(' ').take(2).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(verbs, ["ADD first", "ADD second", "DEL second", "DEL first"]);
    let args = format!(
        "args=IgnoreUnknown=1;K8S_POD_NAMESPACE=test;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID=uid-p"
    );
    assert!(
        calls
            .iter()
            .all(|(call, _)| call.contains(&args) && call.contains("netns=/var/run/netns/cni-")),
        "{said}"
    );
    let (_, first) = &calls[0];
    assert_eq!(*first, json!({ "type": "first", "own": 1, "name": "test", "cniVersion": "1.0.0" }));
    let (_, second) = &calls[1];
    assert_eq!(second["prevResult"]["ips"][0]["address"], "10.1.0.5/16");
    assert_eq!(
        second["runtimeConfig"],
        json!({
            "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "udp" }],
            "bandwidth": { "ingressRate": 10_000_000, "ingressBurst": 10_000_000, "egressRate": 0,
                "egressBurst": 0 },
            "dns": { "servers": ["10.0.0.10"], "searches": [], "options": [] },
            "cgroupPath": format!("/{}", machine.cgroup_parent),
            "io.kubernetes.cri.pod-annotations": { "kubernetes.io/ingress-bandwidth": "10M" },
        })
    );
    let (_, del) = &calls[3];
    assert_eq!(del["prevResult"]["ips"][0]["address"], "fd00::5/64", "DEL hears the result of all");
    machine.assert_clean().await;

    let mut config = pod(&machine, "q");
    config.annotations = [("kubernetes.io/egress-bandwidth".to_owned(), "fast".to_owned())].into();
    let refused = cri.run_pod(config).await.unwrap_err();
    assert!(refused.message().contains("\"fast\" is not a quantity"), "{refused}");
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_failing_or_hanging_del_holds_no_pod_up_and_is_tried_until_it_succeeds() {
    let _alone = without_load().await;
    let machine = with_plugins(&["bad"]);
    let log = machine.path("plugins.log");
    let fails = |how: &str| {
        let script = format!(
            "[ $CNI_COMMAND = ADD ] && echo '{ANSWER}' && exit 0\n[ $CNI_COMMAND = DEL ] && {{ \
                {how}; }}\nexit 0"
        );
        machine.write_plugin("bad", &recorder(&log, &script));
    };
    fails(r#"echo '{"cniVersion":"1.1.0","code":11,"msg":"the fabric is down"}'; exit 1"#);
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let pending = |cri: berth_tests::Cri| async move {
        let status = cri
            .runtime
            .clone()
            .status(v1::StatusRequest { verbose: true })
            .await
            .unwrap()
            .into_inner();
        serde_json::from_str::<Value>(&status.info["cniconfig"]).unwrap()["pendingDetachments"]
            .as_u64()
            .unwrap()
    };
    let one = cri.run_pod(pod(&machine, "one")).await.unwrap();
    cri.stop_pod(&one).await.unwrap();
    assert_eq!(cri.pod_status(&one).await.unwrap().state(), v1::PodSandboxState::SandboxNotready);
    assert_eq!(pending(cri.clone()).await, 1);
    cri.stop_pod(&one).await.unwrap();
    cri.remove_pod(&one).await.unwrap();
    assert_eq!(cri.pod_status(&one).await.unwrap_err().code(), Code::NotFound);
    assert!(daemon.log().contains("the fabric is down"), "{}", daemon.log());

    // A plugin that hangs is killed at its timeout, and not waited for any longer.
    fails("exec sleep 20");
    let two = cri.run_pod(pod(&machine, "two")).await.unwrap();
    let begun = Instant::now();
    cri.remove_pod(&two).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());

    // A pending DEL survives a restart of the daemon.
    daemon.kill();
    fails("true");
    let daemon = machine.start().await;
    let cri = daemon.cri();
    eventually("every DEL", async || {
        fs::read_dir(machine.path("root/networks")).unwrap().next().is_none()
    })
    .await;
    for id in [&one, &two] {
        let said = fs::read_to_string(&log).unwrap();
        let last = said
            .lines()
            .rfind(|line| line.starts_with("DEL") && line.contains(id.as_str()))
            .unwrap();
        assert!(last.contains("netns= "), "its namespace is gone: {last}");
    }
    assert_eq!(pending(cri).await, 0);
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_broken_edit_of_the_network_stops_nobody_and_its_loss_is_told() {
    let machine = with_plugins(&["good"]);
    machine.write_plugin("good", &format!("[ $CNI_COMMAND = ADD ] && echo '{ANSWER}'; exit 0"));
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let network = |cri: berth_tests::Cri| async move {
        let status = cri
            .runtime
            .clone()
            .status(v1::StatusRequest { verbose: true })
            .await
            .unwrap()
            .into_inner();
        let conditions = status.status.unwrap().conditions;
        let ready =
            conditions.into_iter().find(|condition| condition.r#type == "NetworkReady").unwrap();
        let info: Value = serde_json::from_str(&status.info["cniconfig"]).unwrap();
        (ready.status, ready.message, info["lastCNILoadStatus"].as_str().unwrap().to_owned())
    };
    assert_eq!(network(cri.clone()).await, (true, String::new(), "OK".to_owned()));
    fs::write(machine.path("net.d/00-test.conflist"), "{ \"cniVersion\": ").unwrap();
    let (ready, _, wrong) = network(cri.clone()).await;
    assert!(ready && wrong.contains("00-test.conflist") && wrong.contains("EOF"), "{wrong}");
    let id = cri.run_pod(pod(&machine, "p")).await.unwrap();
    fs::remove_file(machine.path("net.d/00-test.conflist")).unwrap();
    // The one that `Machine` writes where the kernel has no NAT.
    let _ = fs::remove_file(machine.path("net.d/10-without-nat.conflist"));
    let (ready, message, _) = network(cri.clone()).await;
    assert!(!ready && message.contains("network \"test\" is gone"), "{message}");
    let refused = cri.run_pod(pod(&machine, "q")).await.unwrap_err();
    assert!(refused.message().contains("is gone"), "{refused}");
    // DEL runs with the configuration that ADD ran with.
    cri.remove_pod(&id).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_conf_list_that_is_no_file_is_passed_over() {
    let machine = with_plugins(&["good"]);
    machine.write_plugin("good", &format!("[ $CNI_COMMAND = ADD ] && echo '{ANSWER}'; exit 0"));
    machine.output("mkfifo", &[&machine.path("net.d/00-fifo.conflist").display().to_string()]);
    fs::create_dir(machine.path("net.d/00-directory.conf")).unwrap();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let id = tokio::time::timeout(Duration::from_secs(10), cri.run_pod(pod(&machine, "p")))
        .await
        .unwrap()
        .unwrap();
    cri.remove_pod(&id).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_directory_of_plugins_that_does_not_answer_stops_nobody_else() {
    let _alone = without_load().await;
    let machine = with_plugins(&["good"]);
    let daemon = machine.start().await;
    let cri = daemon.cri();
    // A FUSE filesystem whose daemon never answers, mounted in the daemon's mount namespace.
    let fuse = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let mut mount = machine.command("mount");
    mount.args(["-i", "-t", "fuse", "-o", "fd=0,rootmode=40000,user_id=0,group_id=0", "dead"]);
    assert!(
        mount
            .arg(machine.path("cni-bin"))
            .stdin(fuse.try_clone().unwrap())
            .status()
            .unwrap()
            .success()
    );
    drop(mount);
    // More requests than the daemon has threads.
    let names: Vec<String> = (0..8).map(|number| format!("p{number}")).collect();
    let runs = join_all(names.iter().map(|name| cri.run_pod(pod(&machine, name))));
    let others = async {
        for _ in 0..20 {
            let begun = Instant::now();
            cri.pods(v1::PodSandboxFilter::default()).await;
            assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
            // For a second in all, while the other requests wait.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let both = async { tokio::join!(runs, others) };
    let (refused, ()) = tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
    for refused in refused.into_iter().map(Result::unwrap_err) {
        assert!(refused.message().contains("look for CNI plugin good in"), "{refused}");
    }
    // When the filesystem goes, all requests that wait for it end.
    drop(fuse);
    assert!(
        machine
            .command("umount")
            .arg("-l")
            .arg(machine.path("cni-bin"))
            .status()
            .unwrap()
            .success()
    );
    machine.assert_clean().await;
}

/// A plugin that hangs where `when` holds, as long as the file `hangs` exists, and works otherwise.
fn hangs_when(machine: &Machine, when: &str) {
    let hangs = machine.path("hangs");
    fs::write(&hangs, "").unwrap();
    let hangs = hangs.display();
    let script = format!(
        "if {when}; then while [ -e {hangs} ]; do sleep 0.05; done; fi\n[ $CNI_COMMAND = ADD ] && \
            echo '{ANSWER}'; exit 0"
    );
    machine.write_plugin("bad", &script);
}

#[tokio::test]
async fn a_del_that_hangs_after_a_restart_holds_no_other_pod_up() {
    let _alone = without_load().await;
    let mut machine = with_plugins(&["bad"]);
    machine.plugin_seconds = 60;
    machine.write_plugin(
        "bad",
        &format!("[ $CNI_COMMAND = ADD ] && echo '{ANSWER}' && exit 0\n[ $CNI_COMMAND != DEL ]"),
    );
    let daemon = machine.start().await;
    let pending = daemon.cri().run_pod(pod(&machine, "pending")).await.unwrap();
    daemon.cri().stop_pod(&pending).await.unwrap();
    daemon.kill();
    hangs_when(&machine, &format!("[ $CNI_COMMAND$CNI_CONTAINERID = DEL{pending} ]"));
    let daemon = machine.start().await;
    let cri = daemon.cri();
    // For longer than anybody waits for the DEL.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(13) {
        let each = Instant::now();
        let id = cri.run_pod(pod(&machine, "other")).await.unwrap();
        cri.remove_pod(&id).await.unwrap();
        assert!(
            each.elapsed() < Duration::from_secs(2),
            "{:?} after {:?}",
            each.elapsed(),
            begun.elapsed()
        );
    }
    fs::remove_file(machine.path("hangs")).unwrap();
    cri.remove_pod(&pending).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_gc_that_hangs_gives_way_to_pods_and_is_made_up_for() {
    let _alone = without_load().await;
    let mut machine = with_plugins(&["bad"]);
    machine.plugin_seconds = 60;
    let log = machine.path("plugins.log");
    hangs_when(&machine, &format!("[ $CNI_COMMAND = GC ] && echo GC >> {}", log.display()));
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let collections = || fs::read_to_string(&log).unwrap_or_default().lines().count();
    eventually("the GC of the start", async || collections() > 0).await;
    let begun = Instant::now();
    let id = cri.run_pod(pod(&machine, "p")).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    fs::remove_file(machine.path("hangs")).unwrap();
    eventually("another GC", async || collections() > 1).await;
    cri.remove_pod(&id).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_status_that_hangs_is_told_soon_and_blocks_no_pod() {
    let _alone = without_load().await;
    let mut machine = with_plugins(&["bad"]);
    machine.plugin_seconds = 60;
    let log = machine.path("plugins.log");
    hangs_when(&machine, &format!("[ $CNI_COMMAND = STATUS ] && echo STATUS >> {}", log.display()));
    fs::remove_file(machine.path("hangs")).unwrap();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let network = async || {
        let begun = Instant::now();
        let status =
            cri.runtime.clone().status(v1::StatusRequest::default()).await.unwrap().into_inner();
        let conditions = status.status.unwrap().conditions;
        let ready =
            conditions.into_iter().find(|condition| condition.r#type == "NetworkReady").unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        (ready.status, ready.reason, ready.message)
    };
    assert!(network().await.0);
    fs::write(machine.path("hangs"), "").unwrap();
    for _ in 0..3 {
        let (ready, reason, message) = network().await;
        assert!(!ready && reason == "NetworkPluginNotReady", "{message}");
        assert!(
            message.contains("CNI plugin bad STATUS: no answer for")
                && message.contains("the last answer"),
            "{message}"
        );
        let id = cri.run_pod(pod(&machine, "p")).await.unwrap();
        cri.remove_pod(&id).await.unwrap();
    }
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 2, "one question at a time");
    fs::remove_file(machine.path("hangs")).unwrap();
    eventually("the plugin's word", async || network().await.0).await;
    machine.assert_clean().await;
}
