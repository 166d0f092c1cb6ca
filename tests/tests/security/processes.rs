//! Shared PID namespaces. A container that may trace others (`SYS_PTRACE`, as in Kubernetes'
//! example of debugging) inspects every process in /proc: roots, descriptors and privileges of the
//! pause process, and of processes that are about to become a program.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use berth_proto::v1;
use berth_tests::{Config, Cri, Daemon, Image, Machine, binary, container, eventually, pod, ready};

/// A shell script that reports whatever should not be visible, until it is told to stop. It uses
/// builtins only, so that one round takes microseconds.
const PROBER: &str = r#"
echo ready
looks=0
while [ ! -e /stop ]; do
    for process in /proc/[0-9]*; do
        looks=$((looks + 1))
        [ -e $process/root$MARKER ] && echo "root of the host: $process"
        for fd in $process/fd/*; do [ -d $fd ] && echo "directory: $fd"; done
        while read -r key value; do
            # CAP_SYS_ADMIN: no container here has it.
            [ $key = CapEff: ] && [ $((0x$value >> 21 & 1)) = 1 ] && echo "privileged: $process \
                $value"
        done < $process/status
    done
done 2>/dev/null
echo "looks: $looks"
"#;

/// The script checks first that its /proc shows its own PID namespace.
const IN_PLACE: &str =
    "read -r pid rest < /proc/self/stat; test $pid = $$ && test -e /proc/1/status && exit 3";

fn tracing(mut config: v1::ContainerConfig) -> v1::ContainerConfig {
    let add_capabilities = vec!["SYS_PTRACE".to_owned()];
    config.security().capabilities =
        Some(v1::Capability { add_capabilities, ..v1::Capability::default() });
    // berth's default AppArmor profile forbids to trace processes under other profiles; the test is
    // about what holds without it.
    let profile_type = v1::security_profile::ProfileType::Unconfined.into();
    config.security().apparmor =
        Some(v1::SecurityProfile { profile_type, localhost_ref: String::new() });
    config
}

fn sharing(mut config: v1::ContainerConfig) -> v1::ContainerConfig {
    config.namespaces().pid = v1::NamespaceMode::Pod.into();
    config
}

fn joining(mut config: v1::ContainerConfig, target: &str) -> v1::ContainerConfig {
    config.namespaces().pid = v1::NamespaceMode::Target.into();
    config.namespaces().target_id = target.to_owned();
    config
}

/// As `ready`. With `older`, the shim behaves as before Linux 6.18, whose procfs lacks the option
/// `pidns`: it is told to ask for an option that no kernel has.
async fn ready_on(older: bool) -> (Machine, Daemon, Cri, String) {
    if !older {
        return ready().await;
    }
    let mut machine = Machine::new();
    let programs = machine.path("programs");
    fs::create_dir(&programs).unwrap();
    for name in ["berthd", "berth-bridge", "berth-shim"] {
        let mut program = fs::read(binary(name)).unwrap();
        if name == "berth-shim" {
            let options: Vec<usize> = program
                .windows(7)
                .enumerate()
                .filter(|(_, bytes)| bytes.ends_with(b"pidns\0"))
                .map(|(at, _)| at)
                .collect();
            assert!(!options.is_empty());
            options.into_iter().for_each(|at| program[at + 1] = b'q');
        }
        fs::write(programs.join(name), program).unwrap();
        fs::set_permissions(programs.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    machine.programs = Some(programs);
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let image = cri.pull_image(&machine, Image::busybox()).await;
    (machine, daemon, cri, image)
}

async fn shared_pod(machine: &Machine, cri: &Cri, user: Option<v1::UserNamespace>) -> String {
    let mut config = pod(machine, "p");
    let options = config.namespaces();
    options.pid = v1::NamespaceMode::Pod.into();
    options.userns_options = user;
    cri.run_pod(config).await.unwrap()
}

/// As many rounds as fit into some seconds, so that a busy machine has enough time, and at least
/// twenty.
fn rounds(most: u32) -> impl Iterator<Item = u32> {
    let begun = Instant::now();
    (0..most).take_while(move |round| *round < 20 || begun.elapsed() < Duration::from_secs(6))
}

/// A container that runs the script all the time.
struct Prober<'a> {
    cri: &'a Cri,
    id: String,
    log: PathBuf,
}

impl<'a> Prober<'a> {
    async fn start(
        machine: &Machine,
        cri: &'a Cri,
        sandbox: &str,
        image: &str,
        change: impl Fn(v1::ContainerConfig) -> v1::ContainerConfig,
    ) -> Self {
        let marker = machine.path("marker");
        fs::write(&marker, "").unwrap();
        let mut config = change(tracing(container("prober", image, PROBER)));
        config.envs =
            vec![v1::KeyValue { key: "MARKER".into(), value: marker.display().to_string().into() }];
        let id = cri.run(sandbox, config).await.unwrap();
        let prober = Self { cri, id, log: machine.path("logs/p/prober.log") };
        eventually("the prober's first look", async || prober.said().contains("ready")).await;
        prober
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asserts that the script ran all the time, and reported nothing.
    async fn assert_blind(self) {
        // The script may end, and the PID namespace with it, before this command has: then it is
        // killed, and its result says nothing.
        let _ = self.cri.exec(&self.id, &["touch", "/stop"], 20).await;
        assert_eq!(self.cri.exited(&self.id).await.exit_code, 0);
        let said = self.said();
        let lines: Vec<&str> =
            said.lines().map(|line| line.split(" F ").nth(1).unwrap_or(line)).collect();
        let [ready, seen @ .., looks] = &lines[..] else { panic!("{said}") };
        assert_eq!(*ready, "ready");
        assert!(
            seen.is_empty(),
            "{} of the {looks}, among them {:?}",
            seen.len(),
            &seen[..seen.len().min(5)]
        );
        // Thousands of rounds, unless the machine is emulated.
        assert!(looks.strip_prefix("looks: ").unwrap().parse::<u32>().unwrap() > 10, "{looks}");
    }
}

#[tokio::test]
async fn the_pause_process_shows_and_owns_nothing() {
    let ids = vec![v1::IdMapping { host_id: 200_000, container_id: 0, length: 65_536 }];
    let user =
        v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids };
    for (user, older) in
        [(None, false), (None, true), (Some(user.clone()), false), (Some(user), true)]
    {
        let (machine, _daemon, cri, image) = ready_on(older).await;
        let sandbox = shared_pod(&machine, &cri, user.clone()).await;
        let mut config = sharing(tracing(container("debugger", &image, "exec sleep 1000")));
        config.namespaces().userns_options = user.clone();
        let id = cri.run(&sandbox, config).await.unwrap();
        assert_eq!(cri.sh(&id, "cat /proc/1/cmdline /proc/1/comm").await, "/pause\0pause\n");
        let status = cri.sh(&id, "cat /proc/1/status").await;
        let nobody = "65534\t65534\t65534\t65534";
        for (key, value) in [
            ("Uid", nobody),
            ("Gid", nobody),
            ("Groups", ""),
            ("CapInh", "0000000000000000"),
            ("CapPrm", "0000000000000000"),
            ("CapEff", "0000000000000000"),
            ("CapBnd", "0000000000000000"),
            ("CapAmb", "0000000000000000"),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
        ] {
            let found = status
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
                .map(str::trim);
            assert_eq!(found, Some(value), "{key} in {status}");
        }
        let mounts = cri.sh(&id, "cat /proc/1/mountinfo").await;
        assert!(mounts.lines().count() <= 1 && !mounts.contains("/dev/"), "{mounts}");
        // The reason for all this: here it got a shell as root of the host.
        let tried = cri
            .exec(&id, &["busybox", "chroot", "/proc/1/root", "/bin/busybox", "id"], 20)
            .await
            .unwrap();
        assert_ne!(tried.exit_code, 0, "{tried:?}");
        if user.is_none() {
            assert_eq!(
                cri.sh(&id, "ls -A /proc/1/root/ /proc/1/cwd/ /proc/1/fd/")
                    .await
                    .matches('\n')
                    .count(),
                5
            );
            assert_eq!(mounts.lines().count(), 1, "{mounts}");
            for script in
                ["echo x > /proc/1/root/x", "echo x > /proc/1/exe", "kill -9 1 && ! kill -0 1"]
            {
                assert_ne!(
                    cri.exec(&id, &["sh", "-c", script], 20).await.unwrap().exit_code,
                    0,
                    "{script}"
                );
            }
        }
        // The pause process reaps orphans, and no process is left in the end.
        cri.sh(&id, "(setsid sh -c 'sleep 0.1' &) ; true").await;
        eventually("orphans are reaped", async || {
            !cri.sh(&id, "ps -o stat,args").await.contains("Z ")
        })
        .await;
        cri.remove_pod(&sandbox).await.unwrap();
        machine.assert_clean().await;
    }
}

#[tokio::test]
async fn an_exec_is_seen_only_as_what_it_is_going_to_be() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let prober = Prober::start(&machine, &cri, &sandbox, &image, |config| config).await;
    for round in rounds(600) {
        let echoed = cri.exec(&prober.id, &["echo", "here"], 20).await.unwrap();
        assert_eq!(
            (echoed.exit_code, &*echoed.stdout),
            (0, &b"here\n"[..]),
            "round {round}: {echoed:?}"
        );
    }
    prober.assert_blind().await;
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_container_that_joins_its_pod_is_seen_only_as_what_it_is_going_to_be() {
    for older in [false, true] {
        let (machine, _daemon, cri, image) = ready_on(older).await;
        let sandbox = shared_pod(&machine, &cri, None).await;
        let prober = Prober::start(&machine, &cri, &sandbox, &image, sharing).await;
        for round in rounds(100) {
            let id = cri
                .run(&sandbox, sharing(container(&format!("c{round}"), &image, IN_PLACE)))
                .await
                .unwrap();
            assert_eq!(cri.exited(&id).await.exit_code, 3);
            cri.remove(&id).await.unwrap();
        }
        prober.assert_blind().await;
        cri.remove_pod(&sandbox).await.unwrap();
        machine.assert_clean().await;
    }
}

#[tokio::test]
async fn a_container_that_joins_another_is_seen_only_as_what_it_is_going_to_be() {
    for older in [false, true] {
        let (machine, _daemon, cri, image) = ready_on(older).await;
        let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
        let prober = Prober::start(&machine, &cri, &sandbox, &image, |config| config).await;
        for round in rounds(100) {
            let config = joining(container(&format!("c{round}"), &image, IN_PLACE), &prober.id);
            let id = cri.run(&sandbox, config).await.unwrap();
            assert_eq!(cri.exited(&id).await.exit_code, 3);
            cri.remove(&id).await.unwrap();
        }
        prober.assert_blind().await;
        cri.remove_pod(&sandbox).await.unwrap();
        machine.assert_clean().await;
    }
}

/// Another container of the pod may have put something in the place of its /proc, from which
/// processes of the pod are seen.
#[tokio::test]
async fn a_proc_that_shows_other_processes_is_not_taken() {
    let (machine, _daemon, cri, image) = ready_on(true).await;
    let mut config = pod(&machine, "p");
    config.security().privileged = true;
    let sandbox = cri.run_pod(config).await.unwrap();
    for (name, script) in [
        ("tmpfs", "mount -t tmpfs x /proc; echo up; exec sleep 1000"),
        ("nested", "unshare -pf sh -c 'mount -t proc x /proc; echo up; exec sleep 1000'"),
    ] {
        let mut config = container(name, &image, script);
        config.security().privileged = true;
        let target = cri.run(&sandbox, config).await.unwrap();
        let log = machine.path(&format!("logs/p/{name}.log"));
        eventually("its mount", async || {
            fs::read_to_string(&log).unwrap_or_default().contains("up")
        })
        .await;
        let config = joining(container(&format!("to-{name}"), &image, "true"), &target);
        let refused = cri.run(&sandbox, config).await.unwrap_err();
        assert!(refused.message().contains("no /proc any more"), "{refused}");
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// session-keyring(7): keys in the session keyring of one container are not available to another.
#[tokio::test]
async fn a_session_keyring_is_one_containers() {
    let (machine, _daemon, cri, image) = ready().await;
    // Root of the host may have other keyrings, which root of a container sees as well; only
    // session keyrings are closed to processes of the same uid.
    let look = "grep ' perm 3f000000 .* keyring  *_ses' /proc/keys";
    let mut seen = Vec::new();
    for name in ["a", "b"] {
        let sandbox = cri.run_pod(pod(&machine, name)).await.unwrap();
        let id = cri
            .run(&sandbox, container("c", &image, &format!("{look}; exec sleep 1000")))
            .await
            .unwrap();
        let log = machine.path(&format!("logs/{name}/c.log"));
        eventually("the keyring", async || {
            fs::read_to_string(&log).unwrap_or_default().contains("keyring")
        })
        .await;
        let said = fs::read_to_string(&log).unwrap();
        let of_exec = cri.sh(&id, look).await;
        let serial = |line: &str| line.split_whitespace().next().unwrap().to_owned();
        let first: Vec<String> =
            said.lines().map(|line| serial(line.split(" F ").nth(1).unwrap())).collect();
        let exec: Vec<String> = of_exec.lines().map(serial).collect();
        assert_eq!((first.len(), &first), (1, &exec), "{said}{of_exec}");
        seen.extend(first);
    }
    assert_ne!(seen[0], seen[1]);
    for sandbox in cri.pods(v1::PodSandboxFilter::default()).await {
        cri.remove_pod(&sandbox.id).await.unwrap();
    }
    machine.assert_clean().await;
}
