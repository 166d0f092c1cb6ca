//! Pods whose RuntimeClass names another OCI runtime: logs, exec, exit codes and recovery are the
//! same as with berth's own.

use std::{fs, os::unix::fs::PermissionsExt, time::Instant};

use berth_proto::v1;
use berth_tests::{
    Config, Cri, Machine, SpdyClient, bind, container, eventually, has_systemd_scopes, pod,
    ready_with,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tonic::Code;

/// Other OCI runtimes, at the paths of Debian's packages.
const HANDLERS: &str = "[handlers.crun]\noci_runtime = \"/usr/bin/crun\"
[handlers.debian-runc]\noci_runtime = \"/usr/sbin/runc\"
[handlers.missing]\noci_runtime = \"/no/such/runtime\"
";

/// The runtime that can run here: runc refuses a cgroup that systemd has made and put a process
/// into, and crun refuses a host that has both versions of cgroups.
fn runtimes() -> [&'static str; 1] {
    if has_systemd_scopes() { ["crun"] } else { ["debian-runc"] }
}

fn given(machine: &Machine, readonly: bool) -> v1::Mount {
    v1::Mount { readonly, ..bind(&machine.path("given"), "/given") }
}

/// A container that uses as much of `config.json` as possible.
fn rich(machine: &Machine, image: &str) -> v1::ContainerConfig {
    let mut config =
        container("c", image, "trap 'exit 7' TERM; sleep 1000 & echo out; echo err >&2; wait");
    config.mounts = vec![given(machine, true)];
    config.devices = vec![v1::Device {
        host_path: "/dev/zero".into(),
        container_path: "/dev/nothing".into(),
        permissions: "r".into(),
    }];
    config.envs = vec![v1::KeyValue { key: "KEY".into(), value: "value".into() }];
    config.security().run_as_username = "web".into();
    config.security().seccomp = Some(v1::SecurityProfile {
        profile_type: v1::security_profile::ProfileType::RuntimeDefault.into(),
        localhost_ref: String::new(),
    });
    config.security().masked_paths = vec!["/proc/keys".into()];
    config.security().readonly_paths = vec!["/proc/sys".into()];
    let limits = v1::LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: 500,
        ..Default::default()
    };
    config.linux.as_mut().unwrap().resources = Some(limits);
    config
}

/// What a container sees of itself, which must not depend on the runtime that made it. Processes
/// are counted without a pipe, as the process at a pipe's other end may be counted or not.
const LOOK: &str = "id; pwd; echo $KEY $HOME $HOSTNAME; cat /given/file; hostname
    cat /proc/1/oom_score_adj; set -- /proc/[0-9]*; echo $#;
    grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/1/status; ls -1 /dev | grep -v core
    wc -c </proc/keys; ulimit -n -H; ip -o -4 addr show dev eth0 | wc -l;
    (echo x >/proc/sys/kernel/domainname) 2>&1; (echo x >/given/file) 2>&1
    unshare -U true 2>&1; head -c 3 /dev/nothing | wc -c;
    grep -cE ' (/|/given|/etc/hosts|/dev/shm) ' /proc/mounts; true";

async fn look(cri: &Cri, machine: &Machine, handler: &str, image: &str) -> (String, String) {
    let sandbox = cri.run_pod_under(handler, pod(machine, handler)).await.unwrap();
    let id = cri.run(&sandbox, rich(machine, image)).await.unwrap();
    let log = machine.path(&format!("logs/{handler}/c.log"));
    eventually("its last word", async || {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("err"))
    })
    .await;
    let seen = cri.sh(&id, LOOK).await.replace(handler, "HANDLER");
    (seen, id)
}

#[tokio::test]
async fn a_container_is_the_same_whoever_makes_it() {
    let (machine, _daemon, cri, image) = ready_with(HANDLERS).await;
    fs::create_dir(machine.path("given")).unwrap();
    fs::write(machine.path("given/file"), "from the host\n").unwrap();
    let (own, _) = look(&cri, &machine, "berth", &image).await;
    for handler in runtimes() {
        let (seen, id) = look(&cri, &machine, handler, &image).await;
        assert_eq!(seen, own, "{handler}");
        let memory = machine.cgroup_file(&id, ("memory", "memory.limit_in_bytes"), "memory.max");
        assert_eq!(memory, (64 << 20).to_string());
        let log = fs::read_to_string(machine.path(&format!("logs/{handler}/c.log"))).unwrap();
        assert!(log.contains(" stdout F out\n") && log.contains(" stderr F err\n"), "{log}");
        let status = cri.status(&id).await.unwrap();
        assert_eq!(status.user.unwrap().linux.unwrap().uid, 1000);

        let failed = cri.exec(&id, &["sh", "-c", "echo said; exit 3"], 10).await.unwrap();
        assert_eq!((failed.exit_code, failed.stdout.as_slice()), (3, &b"said\n"[..]));
        let begun = Instant::now();
        let late = cri.exec(&id, &["sleep", "4321"], 1).await.unwrap_err();
        assert!(late.code() == Code::DeadlineExceeded && begun.elapsed().as_secs() < 5, "{late}");
        let left = cri.sh(&id, "ps -o args | grep -c '[s]leep 4321' || true").await;
        assert_eq!(left, "0\n", "{handler}: what took too long is dead");

        // With a terminal. Its size is set after the program has started, so it is asked for until
        // it is right.
        let script = "until [ \"$(stty size)\" = '43 132' ]; do :; done; tty; exit 3";
        let cmd = ["sh", "-c", script].map(str::to_owned).to_vec();
        let request = v1::ExecRequest {
            container_id: id.clone(),
            cmd,
            tty: true,
            stdout: true,
            ..Default::default()
        };
        let url = cri.runtime.clone().exec(request).await.unwrap().into_inner().url;
        machine.in_network(|| {
            let mut client = SpdyClient::open_all(&url, &["error", "stdout", "resize"]);
            client.send(5, br#"{"Width":132,"Height":43}"#);
            let ending = client.read_all(1);
            assert!(ending.contains(r#""message":"3""#), "{handler}: {ending}");
            assert!(client.text(3).contains("/dev/pts/"), "{handler}: {}", client.text(3));
        });

        cri.stop(&id, 10).await.unwrap();
        let status = cri.status(&id).await.unwrap();
        assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    }
    for pod in cri.pods(v1::PodSandboxFilter::default()).await {
        cri.remove_pod(&pod.id).await.unwrap();
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn the_hosts_console_is_shut_whoever_makes_the_container() {
    let (machine, _daemon, cri, image) = ready_with(HANDLERS).await;
    // crun adds default devices of its own, among them 5:1 (the console), which cannot be taken
    // away.
    for handler in
        ["berth"].into_iter().chain(runtimes().into_iter().filter(|name| *name != "crun"))
    {
        let sandbox = cri.run_pod_under(handler, pod(&machine, handler)).await.unwrap();
        let id = cri.run(&sandbox, container("c", &image, "exec sleep 1000")).await.unwrap();
        let console = "mknod /tmp/console c 5 1; exec 3<>/tmp/console";
        let refused = cri.exec(&id, &["sh", "-c", console], 10).await.unwrap();
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            refused.exit_code != 0 && told.contains("Operation not permitted"),
            "{handler}: {told:?}"
        );
        cri.remove_pod(&sandbox).await.unwrap();
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn it_outlives_the_daemon_and_leaves_nothing_when_its_shim_is_killed() {
    for handler in runtimes() {
        let (machine, daemon, cri, image) = ready_with(HANDLERS).await;
        let sandbox = cri.run_pod_under(handler, pod(&machine, "p")).await.unwrap();
        let mut terminal = container("t", &image, "test -t 0 && test -t 1 && tty; sleep 1000");
        terminal.tty = true;
        let terminal = cri.run(&sandbox, terminal).await.unwrap();
        let id = cri.run(&sandbox, container("c", &image, "sleep 1000")).await.unwrap();
        let pid = cri.info(&id).await["pid"].as_i64().unwrap() as i32;
        // `crun start` returns a moment before the process has become the container's program.
        let name = format!("/proc/{pid}/comm");
        eventually("the program", async || {
            fs::read_to_string(&name).is_ok_and(|name| name.trim() == "sleep")
        })
        .await;
        let exec = tokio::spawn({
            let cri = cri.clone();
            let id = id.clone();
            async move { cri.exec(&id, &["sleep", "2004"], 0).await }
        });
        let runs = async || cri.sh(&id, "ps -o args").await.contains("sleep 2004");
        eventually("an exec", runs).await;
        daemon.kill();
        exec.await.unwrap().unwrap_err();
        let _daemon = machine.start().await;
        assert_eq!(cri.sh(&id, "echo reached").await, "reached\n");
        eventually("the end of the exec", async || !runs().await).await;
        let log = fs::read_to_string(machine.path("logs/p/t.log")).unwrap();
        assert!(log.contains("stdout F /dev/pts/0"), "{handler}: {log}");
        cri.stop(&terminal, 0).await.unwrap();
        let (shim, _) =
            machine.shims().into_iter().find(|(_, command)| command.contains(&id)).unwrap();
        kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
        let status = cri.exited(&id).await;
        assert_eq!(status.exit_code, 137);
        // Its new parent has yet to reap it.
        let status = format!("/proc/{pid}/status");
        let gone =
            || fs::read_to_string(&status).map_or(true, |status| status.contains("State:	Z"));
        eventually("the container's end with its shim", async || gone()).await;
        cri.remove_pod(&sandbox).await.unwrap();
        machine.assert_clean().await;
    }
}

#[tokio::test]
async fn what_a_runtime_cannot_make_is_told_in_its_words_and_undone() {
    let (machine, daemon, cri, image) = ready_with(HANDLERS).await;
    let status =
        daemon.cri().runtime.status(v1::StatusRequest::default()).await.unwrap().into_inner();
    let features = |name: &str| {
        let handler = status.runtime_handlers.iter().find(|handler| handler.name == name).unwrap();
        handler.features.unwrap()
    };
    assert!(
        features("").recursive_read_only_mounts && !features("crun").recursive_read_only_mounts
    );
    assert!(!features("crun").user_namespaces);
    let unknown = cri.run_pod_under("kata", pod(&machine, "u")).await.unwrap_err();
    assert!(
        unknown.code() == Code::InvalidArgument && unknown.message().contains("debian-runc"),
        "{unknown}"
    );
    fs::create_dir(machine.path("given")).unwrap();

    let sandbox = cri.run_pod_under("missing", pod(&machine, "m")).await.unwrap();
    let id = cri.create(&sandbox, container("c", &image, "true")).await.unwrap();
    let missing = cri.start(&id).await.unwrap_err();
    assert!(missing.message().contains("/no/such/runtime: No such file or directory"), "{missing}");
    cri.remove_pod(&sandbox).await.unwrap();

    for handler in runtimes() {
        let sandbox = cri.run_pod_under(handler, pod(&machine, handler)).await.unwrap();
        let mut nothing = container("n", &image, "");
        nothing.command = vec!["no-such-program".into()];
        let id = cri.create(&sandbox, nothing).await.unwrap();
        let failed = cri.start(&id).await.unwrap_err();
        assert!(
            failed.message().contains("OCI runtime: create: ")
                && failed.message().contains("no-such-program"),
            "{failed}"
        );
        let status = cri.status(&id).await.unwrap();
        assert_eq!((status.reason.as_str(), status.exit_code), ("StartError", 128), "{handler}");

        let mut shared = container("s", &image, "true");
        shared.mounts = vec![v1::Mount {
            propagation: v1::MountPropagation::PropagationBidirectional.into(),
            ..given(&machine, false)
        }];
        let refused = cri.create(&sandbox, shared).await.unwrap_err();
        assert!(
            refused.code() == Code::InvalidArgument && refused.message().contains("/given"),
            "{refused}"
        );

        let ended = cri.run(&sandbox, container("e", &image, "exit 9")).await.unwrap();
        assert_eq!(cri.exited(&ended).await.exit_code, 9, "{handler}");
        let spec = cri.info(&ended).await["spec"].clone();
        assert_ne!(spec["program"]["container"]["oci_runtime"], Value::Null);
        cri.remove_pod(&sandbox).await.unwrap();
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_runtime_that_hangs_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("stuck");
    fs::write(&program, "#!/bin/sh\ncase \"$*\" in *create*) exec sleep 1000 ;; esac\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let (machine, _daemon, cri, image) = ready_with(&format!(
        "[handlers.stuck]\noci_runtime = {:?}\n",
        program.display().to_string()
    ))
    .await;
    let sandbox = cri.run_pod_under("stuck", pod(&machine, "p")).await.unwrap();
    let id = cri.create(&sandbox, container("c", &image, "true")).await.unwrap();
    let failed = cri.start(&id).await.unwrap_err();
    assert!(failed.message().contains("create: no end within 25 s"), "{failed}");
    assert_eq!(cri.status(&id).await.unwrap().reason, "StartError");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
