//! RuntimeService by verb, against the real kernel.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::{collections::HashMap, fs, os::unix::fs::MetadataExt};

use berth_proto::v1;
use berth_tests::{Machine, container, eventually, in_guest, pod, ready};
use tonic::Code;

#[tokio::test]
async fn version_status_and_config_are_what_the_kubelet_requires() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let mut runtime = daemon.cri().runtime;
    let version = runtime.version(v1::VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!(
        (version.version.as_str(), version.runtime_name.as_str(), version.runtime_api_version.as_str()),
        ("0.1.0", "berth", "v1")
    );
    let status = runtime.status(v1::StatusRequest { verbose: true }).await.unwrap().into_inner();
    let conditions: HashMap<String, bool> =
        status.status.unwrap().conditions.into_iter().map(|c| (c.r#type, c.status)).collect();
    assert_eq!(conditions, HashMap::from([("RuntimeReady".to_owned(), true), ("NetworkReady".to_owned(), true)]));
    let handlers: Vec<String> = status.runtime_handlers.into_iter().map(|handler| handler.name).collect();
    assert_eq!(handlers, ["", "berth", "runc", "test-handler"]);
    for value in status.info.values() {
        assert!(serde_json::from_str::<serde_json::Value>(value).unwrap().is_object(), "{value}");
    }
    let config = runtime.runtime_config(v1::RuntimeConfigRequest {}).await.unwrap().into_inner();
    let driver = if in_guest() { v1::CgroupDriver::Systemd } else { v1::CgroupDriver::Cgroupfs };
    assert_eq!(config.linux.unwrap().cgroup_driver(), driver);
    runtime.update_runtime_config(v1::UpdateRuntimeConfigRequest::default()).await.unwrap();
    let missing = runtime.checkpoint_container(v1::CheckpointContainerRequest::default()).await.unwrap_err();
    assert_eq!(missing.code(), Code::Unimplemented);
    assert!(missing.message().contains("CheckpointContainer"), "{missing}");
}

#[tokio::test]
async fn network_is_not_ready_when_a_conf_is_broken_or_its_plugin_missing() {
    let machine = Machine::new();
    // None that was good before.
    fs::create_dir_all(machine.path("net.d")).unwrap();
    let daemon = machine.start().await;
    for (text, what) in [
        ("{", "00.conflist"),
        (r#"{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"no-such-plugin"}]}"#, "no-such-plugin"),
    ] {
        fs::write(machine.path("net.d/00.conflist"), text).unwrap();
        let status = daemon.cri().runtime.status(v1::StatusRequest::default()).await.unwrap().into_inner();
        let network =
            status.status.unwrap().conditions.into_iter().find(|condition| condition.r#type == "NetworkReady").unwrap();
        assert!(
            !network.status && network.reason == "NetworkPluginNotReady" && network.message.contains(what),
            "{network:?}"
        );
        assert!(network.message.starts_with("Network plugin returns error:"));
        let refused = daemon.cri().run_pod(pod(&machine, "p")).await.unwrap_err();
        assert!(refused.message().contains(what), "{refused}");
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_pod_lives_and_goes_and_leaves_nothing() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "one")).await.unwrap();
    let status = cri.pod_status(&sandbox).await.unwrap();
    assert_eq!(status.state(), v1::PodSandboxState::SandboxReady);
    let ip = status.network.unwrap().ip;
    assert!(ip.starts_with("10.88."), "{ip}");

    let id =
        cri.create(&sandbox, container("main", &image, "echo out; echo err >&2; printf tail; exit 3")).await.unwrap();
    let created = cri.status(&id).await.unwrap();
    assert_eq!((created.state(), created.started_at), (v1::ContainerState::ContainerCreated, 0));
    assert!(created.created_at > 0 && created.image_id.starts_with("sha256:") && created.image_ref.contains('@'));
    cri.start(&id).await.unwrap();
    let exited = cri.exited(&id).await;
    assert_eq!((exited.exit_code, exited.reason.as_str()), (3, "Error"));
    assert!(exited.started_at >= exited.created_at && exited.finished_at >= exited.started_at);
    let log = fs::read_to_string(&exited.log_path).unwrap();
    let lines: Vec<(&str, &str)> = log.lines().map(|line| line.split_once(' ').unwrap()).collect();
    let mut said: Vec<&str> = lines.iter().map(|(_, rest)| *rest).collect();
    said.sort_unstable();
    assert_eq!(said, ["stderr F err", "stdout F out", "stdout P tail"]);
    assert!(
        lines.iter().all(|(time, _)| time.len() == "2016-10-06T00:17:09.669794202Z".len() && time.ends_with('Z')),
        "{log}"
    );
    assert_eq!(fs::metadata(&exited.log_path).unwrap().mode() & 0o777, 0o640);

    assert_eq!(cri.start(&id).await.unwrap_err().code(), Code::FailedPrecondition);
    cri.remove(&id).await.unwrap();
    assert_eq!(cri.status(&id).await.unwrap_err().code(), Code::NotFound);
    cri.stop_pod(&sandbox).await.unwrap();
    cri.stop_pod(&sandbox).await.unwrap();
    assert_eq!(cri.pod_status(&sandbox).await.unwrap().state(), v1::PodSandboxState::SandboxNotready);
    cri.remove_pod(&sandbox).await.unwrap();
    assert_eq!(cri.pod_status(&sandbox).await.unwrap_err().code(), Code::NotFound);
    machine.assert_clean().await;
    drop(daemon);
}

#[tokio::test]
async fn what_is_not_there_is_stopped_and_removed_with_success_and_not_found_otherwise() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    cri.stop_pod("none").await.unwrap();
    cri.remove_pod("none").await.unwrap();
    cri.stop("none", 1).await.unwrap();
    cri.remove("none").await.unwrap();
    cri.remove_image("none").await.unwrap();
    assert!(cri.image_status("none").await.unwrap().is_none());
    for code in [
        cri.status("none").await.unwrap_err().code(),
        cri.pod_status("none").await.unwrap_err().code(),
        cri.start("none").await.unwrap_err().code(),
        cri.exec("none", &["true"], 1).await.unwrap_err().code(),
        cri.create("none", container("c", "none", "true")).await.unwrap_err().code(),
    ] {
        assert_eq!(code, Code::NotFound);
    }
}

#[tokio::test]
async fn names_are_taken_and_a_second_container_of_a_name_is_refused() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let again = cri.run_pod(pod(&machine, "p")).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    assert!(again.message().contains(&sandbox), "{again}");
    let id = cri.create(&sandbox, container("c", &image, "true")).await.unwrap();
    let again = cri.create(&sandbox, container("c", &image, "true")).await.unwrap_err();
    assert!(again.code() == Code::AlreadyExists && again.message().contains(&id), "{again}");
    // While it is under way, the same request is the same operation.
    let config = pod(&machine, "q");
    let (first, second) = tokio::join!(cri.run_pod(config.clone()), cri.run_pod(config));
    assert_eq!(first.unwrap(), second.unwrap());
    for sandbox in cri.pods(v1::PodSandboxFilter::default()).await {
        cri.remove_pod(&sandbox.id).await.unwrap();
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn lists_filter_by_everything_at_once() {
    let (machine, _daemon, cri, image) = ready().await;
    let (one, two) =
        (cri.run_pod(pod(&machine, "one")).await.unwrap(), cri.run_pod(pod(&machine, "two")).await.unwrap());
    cri.stop_pod(&two).await.unwrap();
    let label = |value: &str| HashMap::from([("app".to_owned(), value.to_owned())]);
    let state = |state: v1::PodSandboxState| Some(v1::PodSandboxStateValue { state: state.into() });
    for (filter, expected) in [
        (v1::PodSandboxFilter::default(), 2),
        (v1::PodSandboxFilter { id: one[..13].to_owned(), ..Default::default() }, 1),
        (v1::PodSandboxFilter { label_selector: label("two"), ..Default::default() }, 1),
        (v1::PodSandboxFilter { state: state(v1::PodSandboxState::SandboxReady), ..Default::default() }, 1),
        (
            v1::PodSandboxFilter {
                state: state(v1::PodSandboxState::SandboxReady),
                label_selector: label("two"),
                ..Default::default()
            },
            0,
        ),
    ] {
        assert_eq!(cri.pods(filter.clone()).await.len(), expected, "{filter:?}");
    }
    let id = cri.run(&one, container("c", &image, "exec sleep 1000")).await.unwrap();
    let state = |state: v1::ContainerState| Some(v1::ContainerStateValue { state: state.into() });
    for (filter, expected) in [
        (v1::ContainerFilter::default(), 1),
        (v1::ContainerFilter { id: id[..13].to_owned(), ..Default::default() }, 1),
        (v1::ContainerFilter { pod_sandbox_id: two, ..Default::default() }, 0),
        (
            v1::ContainerFilter {
                pod_sandbox_id: one.clone(),
                state: state(v1::ContainerState::ContainerRunning),
                ..Default::default()
            },
            1,
        ),
        (
            v1::ContainerFilter {
                pod_sandbox_id: one,
                state: state(v1::ContainerState::ContainerExited),
                ..Default::default()
            },
            0,
        ),
    ] {
        assert_eq!(cri.containers(filter.clone()).await.len(), expected, "{filter:?}");
    }
    // Prefixes name things wherever an id does.
    assert_eq!(cri.status(&id[..13]).await.unwrap().id, id);
}

#[tokio::test]
async fn a_container_sees_what_it_should() {
    let (machine, _daemon, cri, image) = ready().await;
    let mut config = pod(&machine, "look");
    config.dns_config = Some(v1::DnsConfig {
        servers: vec!["10.0.0.10".into()],
        searches: vec!["svc.local".into()],
        options: vec!["ndots:5".into()],
    });
    let sandbox = cri.run_pod(config).await.unwrap();
    let ip = cri.pod_status(&sandbox).await.unwrap().network.unwrap().ip;
    fs::create_dir_all(machine.path("volume")).unwrap();
    fs::write(machine.path("volume/file"), "from the host").unwrap();
    let mut config = container("c", &image, "exec sleep 1000");
    config.working_dir = "/made/for/it".to_owned();
    config.envs = vec![
        v1::KeyValue { key: "FROM_CONFIG".into(), value: b"a b".to_vec() },
        v1::KeyValue { key: "FROM_IMAGE".into(), value: b"no".to_vec() },
    ];
    let mount = |container_path: &str, readonly| v1::Mount {
        host_path: machine.path("volume").display().to_string(),
        container_path: container_path.to_owned(),
        readonly,
        ..Default::default()
    };
    config.mounts = vec![mount("/rw", false), mount("/ro", true)];
    let id = cri.run(&sandbox, config).await.unwrap();

    assert_eq!(cri.sh(&id, "hostname; cat /etc/hostname; echo $HOSTNAME").await, "look\nlook\nlook\n");
    assert_eq!(cri.sh(&id, "cat /etc/resolv.conf").await, "search svc.local\nnameserver 10.0.0.10\noptions ndots:5\n");
    assert!(cri.sh(&id, "cat /etc/hosts").await.contains(&format!("{ip}\tlook")));
    assert_eq!(
        cri.sh(&id, "pwd; echo $FROM_CONFIG $FROM_IMAGE $PATH").await,
        "/made/for/it\na b no /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    );
    assert_eq!(cri.sh(&id, "cat /ro/file; echo x > /rw/new && ! echo x 2>/dev/null > /ro/new").await, "from the host");
    assert_eq!(fs::read_to_string(machine.path("volume/new")).unwrap(), "x\n");
    // Its own processes, the pod's network, the devices that everyone has.
    assert_eq!(cri.sh(&id, "cat /proc/1/comm").await, "sleep\n");
    assert!(cri.sh(&id, "ip addr show eth0").await.contains(&ip));
    assert_eq!(
        cri.sh(&id, "echo x > /dev/null; head -c 3 /dev/zero | wc -c; stat -c %a /dev/shm; ls /dev/pts/ptmx").await,
        "3\n1777\n/dev/pts/ptmx\n"
    );
    assert!(cri.sh(&id, "cat /proc/mounts").await.lines().all(|line| !line.contains(" shared:")));
    // No descriptor of the daemon or the shim is open.
    assert_eq!(cri.sh(&id, "ls /proc/self/fd | wc -l").await.trim(), "4");
    let status = cri.status(&id).await.unwrap();
    assert_eq!(status.mounts.len(), 2);
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn security_is_what_was_asked_for() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "secure")).await.unwrap();
    let with = |name: &str, change: &dyn Fn(&mut v1::LinuxContainerSecurityContext)| {
        let mut config = container(name, &image, "exec sleep 1000");
        change(config.linux.as_mut().unwrap().security_context.as_mut().unwrap());
        config
    };
    let status_line = "grep -E '^(CapEff|CapBnd|CapInh|NoNewPrivs|Seccomp):' /proc/self/status | tr '\\t\\n' ' ;'";

    let plain = cri.run(&sandbox, with("plain", &|_| {})).await.unwrap();
    let said = cri.sh(&plain, status_line).await;
    assert!(
        said.contains("CapInh: 0000000000000000") && said.contains("NoNewPrivs: 0") && said.contains("Seccomp: 0"),
        "{said}"
    );
    assert!(said.contains("CapEff: 00000000a80425fb"), "{said}");

    let confined = with("confined", &|security| {
        security.no_new_privs = true;
        security.seccomp = Some(v1::SecurityProfile::default());
        security.capabilities = Some(v1::Capability {
            drop_capabilities: vec!["ALL".into()],
            add_capabilities: vec!["CHOWN".into()],
            ..Default::default()
        });
        security.readonly_rootfs = true;
        security.run_as_user = Some(v1::Int64Value { value: 0 });
        security.masked_paths = vec!["/etc/group".into(), "/root".into()];
        security.readonly_paths = vec!["/proc/sys".into()];
    });
    let confined = cri.run(&sandbox, confined).await.unwrap();
    let said = cri.sh(&confined, status_line).await;
    assert!(said.contains("CapEff: 0000000000000001") && said.contains("CapBnd: 0000000000000001"), "{said}");
    assert!(said.contains("NoNewPrivs: 1") && said.contains("Seccomp: 2"), "{said}");
    assert_eq!(
        cri.sh(&confined, "! touch /x 2>/dev/null; touch /dev/shm/y; wc -c < /etc/group; ls /root | wc -l").await,
        "0\n0\n"
    );
    assert_eq!(
        cri.sh(
            &confined,
            "! unshare -m true 2>/dev/null; ! sh -c 'echo 1 > /proc/sys/vm/drop_caches' 2>/dev/null && echo refused"
        )
        .await,
        "refused\n"
    );

    let web = with("web", &|security| {
        security.run_as_username = "web".into();
        security.supplemental_groups = vec![1234];
    });
    let web = cri.run(&sandbox, web).await.unwrap();
    assert_eq!(cri.sh(&web, "id -u; id -g; id -G; echo $HOME").await, "1000\n1000\n1000 1234 2000\n/home/web\n");
    let user = cri.status(&web).await.unwrap().user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid), (1000, 1000));
    // A number is itself, known to the image or not.
    let number = cri
        .run(&sandbox, with("number", &|security| security.run_as_user = Some(v1::Int64Value { value: 4242 })))
        .await
        .unwrap();
    assert_eq!(cri.sh(&number, "id -u; id -g").await, "4242\n0\n");

    let unknown = v1::Capability { add_capabilities: vec!["FLY".into()], ..Default::default() };
    for refused in [
        with("privileged", &|security| security.privileged = true),
        with("group", &|security| security.run_as_group = Some(v1::Int64Value { value: 1 })),
        with("capability", &|security| security.capabilities = Some(unknown.clone())),
    ] {
        assert_eq!(cri.create(&sandbox, refused).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let nobody = cri
        .create(&sandbox, with("nobody", &|security| security.run_as_username = "nobody-there".into()))
        .await
        .unwrap();
    assert_eq!(cri.start(&nobody).await.unwrap_err().code(), Code::InvalidArgument);
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn exec_gives_output_code_and_a_deadline() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "exec")).await.unwrap();
    let id = cri.run(&sandbox, container("c", &image, "exec sleep 1000")).await.unwrap();
    let output = cri.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 7"], 0).await.unwrap();
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice(), output.exit_code),
        (&b"out\n"[..], &b"err\n"[..], 7)
    );
    for _ in 0..50 {
        assert_eq!(cri.exec(&id, &["echo", "tail"], 0).await.unwrap().stdout, b"tail\n");
    }
    assert_eq!(cri.exec(&id, &["sh", "-c", "kill -9 $$"], 0).await.unwrap().exit_code, 137);
    // A child that stays and holds the pipes is not waited for.
    let begun = std::time::Instant::now();
    assert_eq!(cri.exec(&id, &["sh", "-c", "setsid sleep 600 & echo started"], 0).await.unwrap().stdout, b"started\n");
    assert!(begun.elapsed().as_secs() < 10);
    let late = cri.exec(&id, &["sh", "-c", "sleep 4242 & sleep 4242"], 1).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    eventually("the end of what ran out of time", async || !cri.sh(&id, "ps -o args").await.contains("4242")).await;
    // As much as a message holds, and the rest without blocking the program.
    let much = cri.exec(&id, &["sh", "-c", "yes | head -c 20000000; echo done >&2"], 0).await.unwrap();
    assert_eq!((much.stdout.len() >> 20, much.stderr.as_slice()), (15, &b"done\n"[..]));
    for command in [&["/no/such/program"][..], &["/etc/passwd"], &[""], &[]] {
        assert_eq!(cri.exec(&id, command, 0).await.unwrap_err().code(), Code::InvalidArgument, "{command:?}");
    }
    cri.stop(&id, 0).await.unwrap();
    assert_eq!(cri.exec(&id, &["true"], 0).await.unwrap_err().code(), Code::FailedPrecondition);
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn stop_signals_waits_and_kills() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "stop")).await.unwrap();
    // A first process without a handler ignores signals: its trap must be set before they come.
    let running = async |config| {
        let id = cri.run(&sandbox, config).await.unwrap();
        let path = cri.status(&id).await.unwrap().log_path;
        eventually("its trap", async || fs::read_to_string(&path).unwrap().contains("ready")).await;
        id
    };
    let polite = running(container(
        "polite",
        &image,
        "trap 'echo bye; exit 5' TERM; echo ready; while true; do sleep 0.05; done",
    ))
    .await;
    cri.stop(&polite, 20).await.unwrap();
    let status = cri.status(&polite).await.unwrap();
    assert_eq!((status.state(), status.exit_code), (v1::ContainerState::ContainerExited, 5));
    assert!(fs::read_to_string(status.log_path).unwrap().contains("bye"));
    cri.stop(&polite, 20).await.unwrap();

    let stubborn = |name| container(name, &image, "trap '' TERM; echo ready; while true; do sleep 0.05; done");
    let killed = running(stubborn("killed")).await;
    cri.stop(&killed, 1).await.unwrap();
    assert_eq!(cri.status(&killed).await.unwrap().exit_code, 137);

    // A shorter grace takes effect, and a caller that leaves loses nothing.
    let shorter = running(stubborn("shorter")).await;
    let patient = tokio::spawn({
        let (cri, id) = (cri.clone(), shorter.clone());
        async move { cri.stop(&id, 600).await }
    });
    eventually("the first stop's record", async || {
        machine.path(&format!("root/containers/{shorter}/stop.json")).exists()
    })
    .await;
    patient.abort();
    cri.stop(&shorter, 0).await.unwrap();
    assert_eq!(cri.status(&shorter).await.unwrap().exit_code, 137);

    let mut own = container("own", &image, "trap 'exit 9' USR1; echo ready; while true; do sleep 0.05; done");
    own.stop_signal = v1::Signal::Sigusr1.into();
    let own = running(own).await;
    assert_eq!(cri.status(&own).await.unwrap().stop_signal(), v1::Signal::Sigusr1);
    cri.stop(&own, 20).await.unwrap();
    assert_eq!(cri.status(&own).await.unwrap().exit_code, 9);
    // Children that ignore everything go with the first process.
    let family = cri
        .run(&sandbox, container("family", &image, "setsid sh -c 'trap \"\" TERM; sleep 1000' & exec sleep 1000"))
        .await
        .unwrap();
    cri.stop_pod(&sandbox).await.unwrap();
    assert_eq!(cri.status(&family).await.unwrap().state(), v1::ContainerState::ContainerExited);
    assert!(machine.shims().is_empty());
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn logs_are_cut_at_16_kib_and_reopened() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "logs")).await.unwrap();
    let script = "yes a | tr -d '\\n' | head -c 40000; echo; while true; do echo tick; sleep 0.02; done";
    let id = cri.run(&sandbox, container("c", &image, script)).await.unwrap();
    let path = cri.status(&id).await.unwrap().log_path;
    eventually("the long line", async || fs::read_to_string(&path).unwrap().contains("tick")).await;
    let log = fs::read_to_string(&path).unwrap();
    let tags: Vec<&str> = log.lines().take(3).map(|line| line.split(' ').nth(2).unwrap()).collect();
    assert_eq!(tags, ["P", "P", "F"]);
    let joined: usize = log.lines().take(3).map(|line| line.splitn(4, ' ').nth(3).unwrap().len()).sum();
    assert_eq!(joined, 40000);
    fs::rename(&path, format!("{path}.1")).unwrap();
    let mut runtime = cri.runtime.clone();
    runtime.reopen_container_log(v1::ReopenContainerLogRequest { container_id: id.clone() }).await.unwrap();
    assert!(fs::exists(&path).unwrap());
    let old = fs::read_to_string(format!("{path}.1")).unwrap().len();
    eventually("lines in the new file", async || fs::read_to_string(&path).unwrap().contains("tick")).await;
    assert_eq!(fs::read_to_string(format!("{path}.1")).unwrap().len(), old);
    cri.stop(&id, 0).await.unwrap();
    fs::remove_file(&path).unwrap();
    let refused = runtime.reopen_container_log(v1::ReopenContainerLogRequest { container_id: id }).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(!fs::exists(&path).unwrap(), "an ended container's log is not made anew");
}

#[tokio::test]
async fn pods_reach_each_other_and_the_host_reaches_pods() {
    let (machine, _daemon, cri, image) = ready().await;
    let server = cri.run_pod(pod(&machine, "server")).await.unwrap();
    let ip = cri.pod_status(&server).await.unwrap().network.unwrap().ip;
    cri.run(&server, container("c", &image, "while true; do echo served | nc -l -p 8080; done")).await.unwrap();
    let client = cri.run_pod(pod(&machine, "client")).await.unwrap();
    let id = cri.run(&client, container("c", &image, "exec sleep 1000")).await.unwrap();
    eventually("an answer between pods", async || {
        let output = cri.exec(&id, &["nc", "-w", "2", &ip, "8080"], 5).await.unwrap();
        output.stdout == b"served\n"
    })
    .await;
    let mut from_host = String::new();
    eventually("an answer to the host", async || {
        from_host = machine.in_network(|| {
            let mut text = String::new();
            if let Ok(mut stream) = std::net::TcpStream::connect(format!("{ip}:8080")) {
                let _ = stream.set_read_timeout(Some(std::time::Duration::from_secs(2)));
                let _ = std::io::Read::read_to_string(&mut stream, &mut text);
            }
            text
        });
        from_host == "served\n"
    })
    .await;
    for sandbox in [server, client] {
        cri.remove_pod(&sandbox).await.unwrap();
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn namespaces_are_shared_as_asked() {
    let (machine, _daemon, cri, image) = ready().await;
    // crictl's default: all of them are the pod's, the PID namespace too.
    let mut config = pod(&machine, "shared");
    config.linux.as_mut().unwrap().security_context = None;
    let shared = cri.run_pod(config).await.unwrap();
    let both = |name: &str| {
        let mut config = container(name, &image, "exec sleep 1000");
        config.linux = None;
        config
    };
    let (a, b) = (cri.run(&shared, both("a")).await.unwrap(), cri.run(&shared, both("b")).await.unwrap());
    let namespaces = "for n in pid net ipc uts; do readlink /proc/self/ns/$n; done";
    assert_eq!(cri.sh(&a, namespaces).await, cri.sh(&b, namespaces).await);
    assert_eq!(cri.sh(&a, "cat /proc/1/comm; ps -o args | grep -c '[s]leep 1000'").await, "berth-pause\n2\n");
    // The pod is not ready any more once the process that holds its namespace is gone.
    let pause = machine.shims().into_iter().find(|(_, command)| command.contains("/pause")).expect("a pause shim").0;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pause), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("NotReady", async || {
        cri.pod_status(&shared).await.unwrap().state() == v1::PodSandboxState::SandboxNotready
    })
    .await;
    cri.remove_pod(&shared).await.unwrap();

    let mut config = pod(&machine, "host");
    let options = config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options.as_mut().unwrap();
    options.network = v1::NamespaceMode::Node.into();
    options.ipc = v1::NamespaceMode::Node.into();
    config.hostname = String::new();
    let host = cri.run_pod(config).await.unwrap();
    assert_eq!(cri.pod_status(&host).await.unwrap().network.unwrap().ip, "");
    let mut config = container("c", &image, "exec sleep 1000");
    let options = config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options.as_mut().unwrap();
    options.pid = v1::NamespaceMode::Node.into();
    let id = cri.run(&host, config).await.unwrap();
    let of_host =
        |name: &str| fs::read_link(format!("/proc/{}/ns/{name}", machine.shims()[0].0)).unwrap().display().to_string();
    for name in ["net", "ipc", "uts"] {
        assert_eq!(cri.sh(&id, &format!("readlink /proc/self/ns/{name}")).await.trim(), of_host(name), "{name}");
    }
    cri.remove_pod(&host).await.unwrap();
    machine.assert_clean().await;
}
