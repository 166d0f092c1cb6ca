//! The program berthd: arguments, configuration, one daemon for each root, and signals.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixDatagram,
    },
    process::Command,
};

use berth_tests::{Image, Machine, binary, container, eventually, pod, ready};
use nix::sys::signal::Signal;

fn berthd(arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(binary("berthd")).args(arguments).output().expect("run berthd");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_default_configuration_is_printed_and_checks() {
    let machine = tempfile::tempdir().unwrap();
    let (ok, default, _) = berthd(&["config", "default"]);
    assert!(ok && default.contains("[registry]"));
    let path = machine.path().join("config.toml");
    fs::write(&path, &default).unwrap();
    assert!(berthd(&["config", "check", "--config", path.to_str().unwrap()]).0);
    fs::write(&path, "[cni]\nconf_dirs = \"/x\"\ntimeout_seconds = 0\n[metrics]\nport = 1\n")
        .unwrap();
    let (ok, _, error) = berthd(&["config", "check", "--config", path.to_str().unwrap()]);
    for told in
        ["2:1: unknown field `conf_dirs`", "3:19: invalid value", "5:1: unknown field `port`"]
    {
        assert!(!ok && error.contains(&format!("{}:{told}", path.display())), "{told}: {error}");
    }
    let (ok, _, error) = berthd(&["--config", "/no/such/file"]);
    assert!(!ok && error.contains("/no/such/file"), "{error}");
}

#[test]
fn help_shows_examples() {
    let (ok, help, _) = berthd(&["--help"]);
    assert!(
        ok && help.contains("Examples:") && help.contains("--root") && help.contains("config"),
        "{help}"
    );
}

#[tokio::test]
async fn a_second_daemon_on_a_root_is_refused_and_sigterm_ends_at_once() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    assert_eq!(fs::metadata(&daemon.socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(machine.path("root")).unwrap().permissions().mode() & 0o777, 0o700);
    let (second, _) = machine.launch(&[]);
    assert!(!second.wait().success());
    assert!(daemon.log().contains("another berthd uses"), "{}", daemon.log());
    daemon.cri().serving().await.unwrap();
    let begun = std::time::Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success() && begun.elapsed().as_millis() < 1000);
    // The socket file that is left does not keep the next daemon from starting.
    machine.start().await.cri().serving().await.unwrap();
}

/// What a service manager hears, up to a message with `word` in it.
fn heard(socket: &UnixDatagram, word: &str) -> String {
    let mut bytes = [0; 4096];
    loop {
        let length = socket.recv(&mut bytes).unwrap_or_else(|error| panic!("{word}: {error}"));
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        if text.contains(word) {
            return text;
        }
    }
}

#[tokio::test]
async fn a_service_manager_hears_of_containers_and_its_watchdog_is_answered() {
    let mut machine = Machine::new();
    let manager = machine.path("notify.sock");
    let socket = UnixDatagram::bind(&manager).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    machine.environment.push(("NOTIFY_SOCKET".to_owned(), manager.display().to_string()));
    machine.environment.push(("WATCHDOG_USEC".to_owned(), "300000".to_owned()));
    let daemon = machine.start().await;
    assert!(heard(&socket, "READY=1").contains("STATUS=Serving; 0 containers run"));
    let cri = daemon.cri();
    let image = cri.pull_image(&machine, Image::busybox()).await;
    let sandbox = cri.run_pod(pod(&machine, "kept")).await.unwrap();
    let id = cri.run(&sandbox, container("runs", &image, "exec sleep 1000")).await.unwrap();
    assert!(heard(&socket, "1 container runs").contains("WATCHDOG=1"));
    daemon.signal(Signal::SIGTERM);
    assert!(heard(&socket, "STOPPING=1").contains("STATUS=Ended; 1 container runs on"));
    assert!(daemon.wait().success());
    let log = fs::read_to_string(machine.path("berthd.log")).unwrap();
    assert!(log.contains("ends; 1 container runs on"), "{log}");
    machine.environment.clear();
    let daemon = machine.start().await;
    assert_eq!(daemon.cri().exec(&id, &["true"], 20).await.unwrap().exit_code, 0);
}

#[tokio::test]
async fn a_group_may_connect_that_the_configuration_names() {
    let machine = Machine::new();
    let (daemon, cri) = machine.launch(&[]);
    cri.serving().await.unwrap();
    daemon.kill();
    let config = machine.path("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    for (group, mode) in [("daemon", Some(0o660)), ("no-such-group", None)] {
        fs::write(&config, format!("group = {group:?}\n{text}")).unwrap();
        let (daemon, cri) = machine.launch(&[]);
        match mode {
            Some(mode) => {
                cri.serving().await.unwrap();
                let socket = fs::metadata(&daemon.socket).unwrap();
                assert_eq!((socket.permissions().mode() & 0o777, socket.gid()), (mode, 1));
                daemon.kill();
            }
            None => {
                assert!(!daemon.wait().success());
                let log = fs::read_to_string(machine.path("berthd.log")).unwrap();
                assert!(log.contains("no group \"no-such-group\""), "{log}");
            }
        }
    }
}

#[tokio::test]
async fn logs_are_json_on_demand() {
    let machine = Machine::new();
    let (daemon, cri) = machine.launch(&["--log-format", "json"]);
    cri.serving().await.unwrap();
    let log = daemon.log();
    assert!(!log.is_empty());
    for line in log.lines() {
        assert!(
            serde_json::from_str::<serde_json::Value>(line).unwrap()["level"].is_string(),
            "{line}"
        );
    }
}

#[tokio::test]
async fn a_root_or_state_directory_of_another_layout_is_left_alone() {
    let machine = Machine::new();
    machine.start().await.kill();
    let log = machine.path("berthd.log");
    for (directory, option) in [("root", "--root"), ("state", "--state")] {
        let version = machine.path(directory).join("version");
        let own = fs::read_to_string(&version).unwrap();
        // As a later berthd writes it.
        fs::write(&version, "99 berthd 7.1.0\n").unwrap();
        let (daemon, _) = machine.launch(&[]);
        assert!(!daemon.wait().success());
        let said = fs::read_to_string(&log).unwrap();
        for told in [
            format!(
                "{} is of layout 99, written by berthd 7.1.0,",
                machine.path(directory).display()
            ),
            format!("start berthd 7.1.0 again or a later one, or choose another {option}"),
        ] {
            assert!(said.contains(&told), "{told}: {said}");
        }
        assert_eq!(fs::read_to_string(&version).unwrap(), "99 berthd 7.1.0\n");
        // A power loss may leave an empty file, and builds from before the file left none: neither
        // is a reason to refuse the directory.
        fs::write(&version, "").unwrap();
        machine.start().await.kill();
        assert_eq!(fs::read_to_string(&version).unwrap(), own);
        fs::remove_file(&version).unwrap();
        machine.start().await.kill();
        assert_eq!(fs::read_to_string(&version).unwrap(), own);
    }
}

#[tokio::test]
async fn what_is_on_disk_is_told_without_a_daemon() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "told")).await.unwrap();
    let running = cri.run(&sandbox, container("runs", &image, "exec sleep 1000")).await.unwrap();
    let ended = cri.run(&sandbox, container("ended", &image, "exit 7")).await.unwrap();
    cri.exited(&ended).await;
    let created = cri.create(&sandbox, container("created", &image, "true")).await.unwrap();
    let (root, state) =
        (machine.path("root").display().to_string(), machine.path("state").display().to_string());
    let say = || {
        let (ok, text, error) = berthd(&["--root", &root, "--state", &state, "debug", "state"]);
        assert!(ok, "{error}");
        text
    };
    let line = |text: &str, id: &str| {
        text.lines().find(|line| line.contains(id)).unwrap_or_default().to_owned()
    };
    let text = say();
    assert!(text.contains(": runs (process ") && text.contains(&root), "{text}");
    let pod = line(&text, &sandbox);
    assert!(pod.contains("  ready  told_test_uid-told_0"), "{text}");
    for (id, words) in [
        (&running, "  running  runs (attempt 0)"),
        (&ended, "  exited with 7  "),
        (&created, "  created  "),
    ] {
        assert!(line(&text, id).contains(words), "{words}: {text}");
    }
    // A damaged record of a container that runs: a daemon would list the container as unknown, and
    // its pod.
    let meta = machine.path(&format!("root/containers/{running}/meta.json"));
    let whole = fs::read(&meta).unwrap();
    fs::write(&meta, "{").unwrap();
    let text = say();
    assert!(line(&text, &running).contains("its meta.json is damaged; remove it with"), "{text}");
    fs::write(&meta, whole).unwrap();
    daemon.kill();
    for (pid, _) in machine.shims() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    eventually("the shims' end", async || machine.shims().is_empty()).await;
    fs::create_dir(machine.path("root/containers/abc.tmp")).unwrap();
    let text = say();
    assert!(text.contains(": does not run\n") && text.contains("attached"), "{text}");
    assert!(line(&text, &running).contains("its shim was killed"), "{text}");
    assert!(line(&text, "abc.tmp").contains("incomplete: removed at the next start"), "{text}");
    let daemon = machine.start().await;
    assert!(line(&say(), &running).contains("exited with 137"), "{}", say());
    daemon.cri().remove_pod(&sandbox).await.unwrap();
    assert!(!say().contains(&sandbox));
    machine.assert_clean().await;
}
